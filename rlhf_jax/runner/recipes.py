"""What a stage is made from, and taking it over from where it was made.

Two stages of one recipe hold the same result, whatever they are called and
whichever study they belong to, so one of them need not run.
"""

from collections.abc import Callable, Collection, Sequence
import contextlib
import functools
import inspect
import os
import pathlib
import shutil
from typing import Any

from rlhf_jax import __version__
from rlhf_jax import errors
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

_PACE = ('save_every', 'log_every')  # of `training`: they change no result
# Small, and the only files that are ever written in place, by a metrics
# writer or by hand; a link would change with them.
_COPIED = ('.json', '.jsonl')


def recipe(run: Callable, workdir: pathlib.Path, earlier: Collection[str],
           inputs: dict) -> str | None:
  """SHA-256 of all that the result of a stage depends on.

  That is the function, its arguments, the inputs of the study and the version
  of this package. Where an argument names an earlier stage, at any depth, the
  recipe that this one was made from stands in for its name.

  Args:
    run: of the stage, `functools.partial(module.run, **kwargs)`.
    workdir: of the study.
    earlier: names of the stages before this one.
    inputs: fingerprints of what the study reads from outside.

  Returns:
    None if it cannot be told: `run` is no partial of a function that can be
    imported, an argument is not JSON, or a stage it names is not complete or
    has no recipe.

  Raises:
    CheckpointError: the result of a stage that it names is damaged.
  """
  if not isinstance(run, functools.partial) or not _importable(run.func):
    return None

  def resolved(value):
    if isinstance(value, dict):
      return {_text(resolved(k)): resolved(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
      return [resolved(item) for item in value]
    if not isinstance(value, str) or value not in earlier:
      return value
    record = workdirs.read_record(workdir / value) or {}
    return f'recipe {_text(record.get("recipe"))}'

  keywords = dict(run.keywords)
  training = keywords.pop('training', None) or {}
  try:
    keywords['training'] = {
        k: v for k, v in training.items() if k not in _PACE}
    return files.digest({
        'function': f'{run.func.__module__}.{run.func.__qualname__}',
        'arguments': resolved([list(run.args), keywords]),
        'inputs': inputs, 'version': __version__})
  except (AttributeError, TypeError, ValueError):
    return None


def _importable(function: Any) -> bool:
  """Whether its name says what it does; not so for closures and scripts."""
  return (inspect.isfunction(function) and function.__module__ != '__main__'
          and '<' not in function.__qualname__)


def _text(value: Any) -> str:
  """A string; JSON would silently make one of a number or of None."""
  if not isinstance(value, str):
    raise TypeError(f'not a string: {value!r}')
  return value


def offer(offers: dict[str, pathlib.Path], directory: pathlib.Path,
          record: dict):
  """Adds a complete stage to `offers`, {recipe: directory}.

  Not one without a recipe, and not one whose result holds an absolute path,
  which would be wrong anywhere else.
  """
  if record.get('recipe') and not _holds_path(record['result']):
    offers.setdefault(record['recipe'], directory)


def _holds_path(value: Any) -> bool:
  if isinstance(value, dict | list):
    return any(map(_holds_path,
                   value.values() if isinstance(value, dict) else value))
  return isinstance(value, str) and os.path.isabs(value)


def scan(sources: Sequence[str | os.PathLike]) -> dict[str, pathlib.Path]:
  """The complete stages of workdirs, by recipe; an earlier workdir wins.

  The studies may be running: what is complete does not change.

  Raises:
    ConfigError: one of them holds no study.
    CheckpointError: a result in one of them is damaged.
  """
  offers = {}
  for source in sources:
    if not os.path.isfile(os.path.join(source, workdirs.CONFIG)):
      raise errors.ConfigError(
          f'--reuse={os.fspath(source)}: there is no study in it (no '
          f'{workdirs.CONFIG}); check the path')
    workdirs.check_layout(pathlib.Path(source))
    for root, below, names in os.walk(os.path.abspath(source)):
      if workdirs.RESULT in names:
        offer(offers, pathlib.Path(root),
              workdirs.read_record(pathlib.Path(root)))
        below.clear()  # of stages, none lies in another
      # Not what another process is just taking over.
      below[:] = sorted(name for name in below if not name.startswith('.'))
  return offers


def take_over(source: pathlib.Path, target: pathlib.Path,
              poll: Callable[[], None]):
  """Makes a complete stage appear in another workdir, all of it at once.

  Files are hard links, so they take no space and the source may be deleted;
  they are copied where that cannot be, as across file systems.

  Args:
    source: directory of the stage, complete.
    target: replaced; what an interrupted run has left there is lost.
    poll: called before every file; may raise, and nothing is left behind.

  Raises:
    CheckpointError: the source vanished, or the target cannot be written.
  """
  staging = _staging(target)
  try:
    clear(target)
    for root, _, names in os.walk(source, onerror=_fail, followlinks=True):
      folder = staging / pathlib.Path(root).relative_to(source)
      folder.mkdir(parents=True)
      for name in names:
        poll()
        if folder != staging or name != workdirs.RESULT:
          _share(pathlib.Path(root, name), folder / name)
    _share(source / workdirs.RESULT, staging / workdirs.RESULT)
    if target.exists():
      shutil.rmtree(target)
    staging.rename(target)
  except OSError as error:
    raise errors.CheckpointError(
        f'cannot take over {source} as {target}: {error.strerror}; run the '
        'same command again, or do without --reuse') from error
  finally:
    clear(target)


def clear(target: pathlib.Path):
  """Removes what a killed process had taken over so far."""
  shutil.rmtree(_staging(target), ignore_errors=True)


def _staging(target: pathlib.Path) -> pathlib.Path:
  return target.with_name(f'.{target.name}.tmp')  # same file system


def _share(source: pathlib.Path, target: pathlib.Path):
  if source.suffix not in _COPIED:
    with contextlib.suppress(OSError):
      os.link(os.path.realpath(source), target)
      return
  with open(source, 'rb') as stream, files.replacing(target) as copy:
    shutil.copyfileobj(stream, copy)


def _fail(error: OSError):
  raise error  # os.walk would leave out what it cannot read
