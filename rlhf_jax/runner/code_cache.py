"""What `code` knows of source files, kept beside JAX's compiled programs.

To parse the package takes a second of each command. What is kept of a file is
found by its content, so that it is never out of date.
"""

import contextlib
import functools
import pathlib

import jax

from rlhf_jax import errors
from rlhf_jax.storage import files

_NAME = 'rlhf_jax_code.json'
_MOST = 4_000  # entries, of a few hundred bytes


@functools.cache
def load() -> dict[str, list]:
  """Entries by key, to which others may be added; none if it is damaged."""
  path = _path()
  if path is None:
    return {}
  try:
    record = files.read_object(path, 'entries', 'sha256')
  except errors.CheckpointError:
    return {}
  entries = record['entries']
  return entries if files.digest(entries) == record['sha256'] else {}


def save(entries: dict[str, list]):
  """Keeps the newest, unless nothing can be written there."""
  path = _path()
  if path is None:
    return
  entries = dict([*entries.items()][-_MOST:])
  with contextlib.suppress(OSError, errors.CheckpointError):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(
        path, {'entries': entries, 'sha256': files.digest(entries)})


def _path() -> pathlib.Path | None:
  """Where JAX keeps programs, if it does so in a directory of this machine."""
  directory = jax.config.jax_compilation_cache_dir
  if not directory or '://' in directory:
    return None
  return pathlib.Path(directory, _NAME)
