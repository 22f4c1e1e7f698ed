"""From the config node of a corpus to the corpus: checked, pinned, loaded."""

from collections.abc import Callable
import functools
import pathlib

from rlhf_jax import errors
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import from_files
from rlhf_jax.data import from_reviews
from rlhf_jax.data import logs
from rlhf_jax.data import reviews
from rlhf_jax.storage import files

FILES = ('path', 'preferences', 'tokenizer')  # fields that name one


def num_preferences(config: dict) -> int:
  """Usable pairs of a node whose name is 'files' or 'logged'."""
  if config['name'] == 'logged':
    return logs.num_preferences(config)
  return len(from_files.read(config['path'], config['preferences'],
                   config.get('max_bad_rows', 0),
                   config['num_eval_prompts'])[1].rows)


def _logs():
  """The module of logged responses, which builds on this one."""
  from rlhf_jax.data import logs
  return logs


@functools.lru_cache(maxsize=4)  # a study compares up to three logs
def _load(seed: int, items: tuple) -> corpus_lib.Corpus:
  kwargs = dict(items)
  name = kwargs.pop('name')
  builders: dict[str, Callable[..., corpus_lib.Corpus]] = {
      'reviews': from_reviews.from_reviews,
      'files': from_files.from_files,
      'logged': logs.from_logged}
  if name not in builders:
    raise errors.ConfigError(f'config.data.name is {name!r}; there are '
                             f'{", ".join(sorted(builders))}')
  return builders[name](seed=seed, **kwargs)


def load(config: dict, seed: int) -> corpus_lib.Corpus:
  """The corpus of a config node {name, **kwargs}; kept for the next stage.

  Fields that are None are left out. The stages of a study ask for the same
  corpus one after the other, and it is a pure function of its arguments.
  """
  return _load(seed, corpus_lib.freeze(
      {k: v for k, v in config.items() if v is not None}))


def fingerprints(config: dict) -> dict[str, str]:
  """SHA-256 of the content of each file that `config` names."""
  found = {}
  for field in FILES:
    path = config.get(field)
    if path and field == 'path' and pathlib.Path(path).is_dir():
      found[field] = _directory_fingerprint(pathlib.Path(path))
    elif path:
      found[field] = files.fingerprint(path, ('.json', '.txt', '.model'))
  return found


def _directory_fingerprint(path: pathlib.Path) -> str:
  """SHA-256 of a directory of data, hidden files and caches left out."""
  names = [file.relative_to(path) for file in path.rglob('*')
           if file.is_file()]
  return files.digest({
      name.as_posix(): files.fingerprint(path / name) for name in names
      if not any(part.startswith('.') for part in name.parts)})


def check(config: dict):
  """Raises at once what `load` would raise later; touches no device.

  Raises:
    DataError: a file that `config` names is missing or malformed.
    ConfigError: a field of it is out of range.
  """
  for field in FILES:
    path = config.get(field)
    directory = field == 'tokenizer' or config['name'] == 'logged'
    exists = path and (pathlib.Path.exists if directory
                       else pathlib.Path.is_file)(pathlib.Path(path))
    if path and not exists:
      raise errors.DataError(
          f'{path}: no such file; check --config.data.{field}')
  for field in ('max_prompt_length', 'max_response_length'):
    if config.get(field, 1) < 1:
      raise errors.ConfigError(f'{field} of config.data is {config[field]}; '
                               'give at least 1 token')
  try:
    if config['name'] == 'reviews':
      reviews.Reviews(**{k: v for k, v in config.items() if k in (
          'num_adjectives', 'zipf', 'typo_rate', 'advert_rate',
          'sentences')})
      return
    if config['name'] == 'logged':
      logs.check(config)
      return
    coder = coders.named_tokenizer(config)
    rows, pairs = from_files.read(
        config['path'], config['preferences'], config.get('max_bad_rows', 0),
        config['num_eval_prompts'])
    from_files.check_formats(config, coder, rows, pairs)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'config.data: {error}') from None
