"""From the config node of a corpus to the corpus: checked, pinned, loaded."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

from rlhf_jax import errors
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import from_files
from rlhf_jax.data import logs
from rlhf_jax.data import small_worlds
from rlhf_jax.storage import files

FILES = ('path', 'preferences', 'tokenizer')  # fields that name one


class _Source(NamedTuple):
  """Where a corpus comes from."""

  load: Callable[..., corpus_lib.Corpus]  # (seed=, **fields)
  check: Callable[[Mapping], None]
  num_preferences: Callable[[Mapping], int]
  takes_directory: bool = False  # whether `path` may be one


_SOURCES = {
    'files': _Source(from_files.from_files, from_files.check,
                     from_files.num_preferences),
    'logged': _Source(logs.from_logged, logs.check, logs.num_preferences,
                      takes_directory=True),
    **{name: _Source(
        functools.partial(small_worlds.write, name),
        functools.partial(small_worlds.check, name), lambda node: 0)
       for name in small_worlds.NAMES},
}


def _source(name: str) -> _Source:
  if name not in _SOURCES:
    raise errors.ConfigError(f'config.data.name is {name!r}; there are '
                             f'{", ".join(_SOURCES)}')
  return _SOURCES[name]


def load(node: Mapping[str, Any], seed: int) -> corpus_lib.Corpus:
  """The corpus of a config node; kept for the next stage.

  The stages of a study ask for the same corpus one after the other, and it is
  a pure function of its arguments.

  Args:
    node: {name, **fields}: one of `small_worlds.NAMES`, 'files' or 'logged',
      the fields of `Options` of its module, and `stop` of `Tokenizer`. Those
      that are None are left out.
    seed: of the study.
  """
  # No string to stop at is as good as none said.
  return _load(seed, corpus_lib.freeze({
      k: v for k, v in node.items()
      if v is not None and (k != 'stop' or v)}))


@functools.lru_cache(maxsize=4)  # a study compares up to three logs
def _load(seed: int, items: tuple) -> corpus_lib.Corpus:
  fields = dict(items)
  stop = fields.pop('stop', ())
  corpus = _source(fields.pop('name')).load(seed=seed, **fields)
  return corpus if not stop else dataclasses.replace(
      corpus, tokenizer=corpus.tokenizer.ending_at(stop))


def num_preferences(node: Mapping[str, Any]) -> int:
  """Usable human pairs of a node; none in the small world."""
  return _source(node['name']).num_preferences(node)


def has_answers(node: Mapping[str, Any]) -> bool:
  """Whether a corpus has demonstrations, and not prompts alone."""
  return node['name'] != 'files' or from_files.has_answers(node)


def has_references(node: Mapping[str, Any]) -> bool:
  """Whether its prompts may have right answers, as some of a log do."""
  return node['name'] == 'logged' or (
      node['name'] == 'files' and from_files.has_references(node))


def check(node: Mapping[str, Any]):
  """Raises at once what `load` would raise later; touches no device.

  Args:
    node: as for `load`.

  Raises:
    DataError: a file that it names is missing or malformed.
    ConfigError: a field of it is unknown, missing or out of range.
  """
  source = _source(node['name'])
  for field in FILES:
    if not node.get(field):
      continue
    path = pathlib.Path(node[field])
    directory = field == 'tokenizer' or source.takes_directory
    if not (path.exists() if directory else path.is_file()):
      part = f'{node["name"]}.' * (
          field == 'tokenizer' or node['name'] == 'logged')
      raise errors.DataError(
          f'{path}: no such file; check --config.data.{part}{field}')
  for field in ('max_prompt_length', 'max_response_length'):
    if node.get(field) is not None and node[field] < 1:
      raise errors.ConfigError(f'{field} of config.data is {node[field]}; '
                               'give at least 1 token')
  stop = node.get('stop', ())
  if isinstance(stop, str) or not all(
      isinstance(s, str) and s for s in stop):
    raise errors.ConfigError(f'config.data.stop is {stop!r}; give a tuple of '
                             'texts, none of them empty')
  try:
    source.check(node)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'config.data: {error}') from None


def fingerprints(node: Mapping[str, Any]) -> dict[str, str]:
  """SHA-256 of the content of each file that a node names, by its field."""
  digests = {}
  for field in FILES:
    path = node.get(field)
    if path and field == 'path' and pathlib.Path(path).is_dir():
      digests[field] = files.tree_fingerprint(path)
    elif path:
      digests[field] = files.fingerprint(path, ('.json', '.txt', '.model'))
  return digests
