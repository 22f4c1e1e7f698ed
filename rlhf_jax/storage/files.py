"""Files that are whole or not there: JSON and arrays. No pickle.

Readers see an old file or a new one, never a part of one, and arrays carry a
SHA-256 that is verified when they are read. Nothing is written through a link,
which would change a file elsewhere.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import csv
import errno
import hashlib
import io
import json
import math
import os
import pathlib
import secrets
import stat
from typing import Any, BinaryIO

import numpy as np

from rlhf_jax import errors
from rlhf_jax.parallel import processes

_DIGEST, _OWNER = '__sha256__', '__owner__'


def jsonable(obj: Any) -> Any:
  """JSON values; arrays become lists and non-finite floats become None."""
  if isinstance(obj, dict):
    return {str(key): jsonable(value) for key, value in obj.items()}
  if isinstance(obj, list | tuple):
    return [jsonable(value) for value in obj]
  if isinstance(obj, float):  # np.float64 too
    return float(obj) if math.isfinite(obj) else None
  if hasattr(obj, 'tolist'):
    return jsonable(obj.tolist())
  if isinstance(obj, pathlib.PurePath):
    return str(obj)
  return obj


def digest(obj: Any) -> str:
  """SHA-256 of JSON values, independent of key order."""
  text = json.dumps(obj, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
  """A file that takes the place of `path` once complete and on disk.

  Only the process that owns the workdir writes; others write into nothing.
  """
  if processes.index():
    yield io.BytesIO()
    return
  path = pathlib.Path(path)
  # On the same file system; a name that nobody can have laid a link under.
  temporary = path.with_name(f'.{path.name}.{secrets.token_hex(8)}.tmp')
  try:
    with open(temporary, 'xb') as stream:
      yield stream
      stream.flush()
      os.fsync(stream.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)
  except OSError as error:
    raise errors.CheckpointError(
        f'cannot write {path}: {error.strerror or error}; free space, or '
        'choose another --workdir'
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def sync_directory(path: str | os.PathLike):
  """Waits until the names in a directory are on disk, where that can be."""
  with contextlib.suppress(OSError):  # not every file system can
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
      os.fsync(descriptor)
    finally:
      os.close(descriptor)


def sync_tree(path: str | os.PathLike):
  """Waits until a directory, what is in it and its name are on disk."""
  for root, _, _ in os.walk(path):
    sync_files(root)
  sync_directory(os.path.dirname(path))


def sync_files(path: str | os.PathLike):
  """Waits until the files of a directory, and their names, are on disk."""
  for file in pathlib.Path(path).iterdir():
    if file.is_file():
      with open(file, 'rb') as stream:
        os.fsync(stream.fileno())
  sync_directory(path)


def sweep(directory: pathlib.Path):
  """Removes what killed processes were writing, in a directory that is ours."""
  for path in directory.rglob('.*.tmp'):
    if path.is_symlink() or path.is_file():
      with contextlib.suppress(OSError):
        path.unlink()


def open_appending(path: str | os.PathLike) -> BinaryIO:
  """Opens a file to read and to append, without a buffer; or creates it.

  Raises:
    OSError: it cannot be opened, or is a link or no regular file.
  """
  opener = lambda name, flags: os.open(
      name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
  try:
    stream = open(path, 'a+b', buffering=0, opener=opener)
  except OSError as error:
    if error.errno != errno.ELOOP:
      raise
    raise OSError(errno.ELOOP, 'a link, which is not followed; remove it',
                  os.fspath(path)) from error
  if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
    return stream
  stream.close()
  raise OSError(errno.EINVAL, 'no regular file; remove it',
                os.fspath(path))


def write_text(path: str | os.PathLike, text: str):
  """Writes UTF-8 text atomically; CheckpointError if it cannot."""
  with replacing(path) as stream:
    stream.write(text.encode())


def write_json(path: str | os.PathLike, obj: Any):
  """Writes JSON atomically, see `jsonable`; CheckpointError if it cannot."""
  write_text(path, json.dumps(jsonable(obj), indent=2, allow_nan=False) + '\n')


def read_json(path: str | os.PathLike) -> Any:
  """Reads JSON; CheckpointError naming the file if missing or malformed."""
  try:
    return json.loads(_read(path))
  except (OSError, ValueError, RecursionError) as error:
    raise errors.CheckpointError(
        f'cannot read {path}: {errors.first_line(error)}') from error


def read_object(path: str | os.PathLike, *fields: str) -> dict[str, Any]:
  """A JSON object that has these fields, or CheckpointError, as `read_json`."""
  value = read_json(path)
  missing = ([name for name in fields if name not in value]
             if isinstance(value, dict) else ['{...}'])
  if missing:
    raise errors.CheckpointError(
        f'{path} is damaged: it has no {", ".join(missing)}; restore it')
  return value


def unreadable(path: str | os.PathLike, error: Exception
               ) -> errors.CheckpointError:
  """What is said of a file of a stage, which can be made again."""
  return errors.CheckpointError(
      f'cannot read {path}: {errors.first_line(error)}; restore it, or '
      f'make it again with --redo={pathlib.Path(path).parent.name}')


def _read(path: str | os.PathLike) -> bytes:
  """The content of a regular file; OSError."""
  with open_regular(path) as stream:
    return stream.read()


def open_regular(path: str | os.PathLike) -> BinaryIO:
  """Opens a file to read it; OSError if it is a pipe, say, which may hang."""
  opener = lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
  stream = open(path, 'rb', opener=opener)
  if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
    return stream
  stream.close()
  raise OSError(errno.EINVAL, 'no regular file', os.fspath(path))


def save_arrays(path: str | os.PathLike, *, owner: str | None = None,
                **arrays: Any):
  """Writes an uncompressed npz atomically, with a SHA-256 of its content.

  Args:
    path: should end in .npz; its directory exists.
    owner: what it is part of, such as the key of a stage's recipe.
    **arrays: of bool, integer, float, complex or string dtype.

  Raises:
    ValueError: an array has another dtype; npz would pickle or forget it.
    CheckpointError: the file cannot be written.
  """
  if owner is not None:
    arrays[_OWNER] = f'{owner} {pathlib.Path(path).name}'
  arrays = {name: np.asarray(array) for name, array in arrays.items()}
  for name, array in arrays.items():
    if array.dtype.kind not in 'biufcUS':
      raise ValueError(f'{name}: npz cannot hold dtype {array.dtype}')
  check = np.array(_arrays_digest(arrays))
  with replacing(path) as stream:
    np.savez(stream, **arrays, **{_DIGEST: check})


def load_arrays(path: str | os.PathLike, *, owner: str | None = None
                ) -> dict[str, np.ndarray]:
  """Reads what `save_arrays` wrote.

  Args:
    path: of the file.
    owner: as it was written, under this name; None: whosever it is.

  Raises:
    CheckpointError: the file is missing, truncated, damaged or foreign.
  """
  try:
    with open_regular(path) as file, np.load(
        file, allow_pickle=False) as stream:
      arrays = {name: stream[name] for name in stream.files}
    if _arrays_digest(arrays) != str(arrays.pop(_DIGEST)):
      raise ValueError('SHA-256 differs')
    mark = str(arrays.pop(_OWNER, ''))
    if owner is not None and mark != f'{owner} {pathlib.Path(path).name}':
      raise ValueError('it belongs to another stage, or has another name')
  except Exception as error:  # zip, npy and zlib raise many kinds
    raise unreadable(path, error) from error
  return arrays


def fingerprint(path: str | os.PathLike, suffixes: tuple[str, ...] = ()
                ) -> str:
  """SHA-256 of a file, or of the plain files of a directory.

  Args:
    path: what to read; of a directory, not what lies in its directories.
    suffixes: only files that end so count in a directory; (): all.

  Raises:
    DataError: it cannot be read, or is a pipe or a device.
  """
  path = pathlib.Path(path)
  def content(file):
    try:
      with open_regular(file) as stream:
        return hashlib.file_digest(stream, 'sha256').hexdigest()
    except OSError as error:
      raise errors.DataError(
          f'{file}: cannot be read: {error.strerror}') from error
  if not path.is_dir():
    return content(path)
  return digest({file.name: content(file) for file in path.iterdir()
                 if file.is_file() and file.name.endswith(suffixes or '')})


def tree_fingerprint(path: str | os.PathLike) -> str:
  """SHA-256 of a directory and all below it, hidden files left out."""
  path = pathlib.Path(path)
  names = [file.relative_to(path) for file in path.rglob('*')
           if file.is_file()]
  return digest({
      name.as_posix(): fingerprint(path / name) for name in names
      if not any(part.startswith('.') for part in name.parts)})


def array_digest(array: np.ndarray) -> str:
  """SHA-256 of the bytes of an array."""
  flat = np.ascontiguousarray(array).reshape(-1)
  return hashlib.sha256(flat.view(np.uint8)).hexdigest()


def _arrays_digest(arrays: dict[str, np.ndarray]) -> str:
  return digest({
      name: [array.dtype.str, list(array.shape), array_digest(array)]
      for name, array in arrays.items() if name != _DIGEST
  })


Row = dict[str, float | int | str | bool]


def write_csv(path: str | os.PathLike, rows: Sequence[Row]):
  """Writes rows that share their keys; whole or not at all."""
  text = io.StringIO()
  writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  write_text(path, text.getvalue())


def read_csv(path: str | os.PathLike) -> list[dict[str, str]]:
  """The rows of a file with a header.

  Raises:
    CheckpointError: it is missing or no text.
  """
  try:
    return list(csv.DictReader(io.StringIO(_read(path).decode(), newline='')))
  except (OSError, ValueError, csv.Error) as error:
    raise errors.CheckpointError(
        f'cannot read {path}: {errors.first_line(error)}') from error


def write_jsonl(path: str | os.PathLike, rows: Iterable[Row]):
  """Writes one JSON object a line; whole or not at all; NaN is null."""
  lines = [json.dumps(jsonable(row)) + '\n' for row in rows]
  write_text(path, ''.join(lines))


def read_jsonl(path: str | os.PathLike) -> list[dict]:
  """The objects of a file of JSON lines.

  Raises:
    CheckpointError: it is missing or damaged.
  """
  try:
    return [json.loads(line) for line in _read(path).splitlines()]
  except (OSError, ValueError, RecursionError) as error:
    raise unreadable(path, error) from error
