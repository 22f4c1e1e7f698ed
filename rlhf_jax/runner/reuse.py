"""Taking a stage over from where it was made.

Two stages of one recipe hold the same result, whatever they are called and
whichever study they belong to, so one of them need not run.
"""

from collections.abc import Callable, Sequence
import contextlib
import os
import pathlib
import shutil
from typing import Any, NamedTuple

from rlhf_jax import errors
from rlhf_jax.runner import code
from rlhf_jax.runner import recipes
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

# Small, and the only files that are ever written in place, by a metrics
# writer or by hand; a link would change with them.
_COPIED = ('.json', '.jsonl')


class Offer(NamedTuple):
  """A complete stage of a recipe, and the code that made it."""

  directory: pathlib.Path
  code: dict[str, str]


Offers = dict[str, list[Offer]]  # by the key of their recipe


def offer(offers: Offers, directory: pathlib.Path, record: dict):
  """Adds a complete stage to `offers`.

  Not one without a recipe, and not one whose result holds an absolute path,
  which would be wrong anywhere else.
  """
  if record.get('recipe') and not _holds_path(record['result']):
    offers.setdefault(record['recipe'], []).append(
        Offer(directory, record['code']))


def find(offers: Offers, recipe: recipes.Recipe, *, accept_code_change: bool
         ) -> tuple[pathlib.Path | None, str]:
  """The first offer of a recipe, and why another is none, in words."""
  others = offers.get(recipe.key, [])
  for other in others:
    if accept_code_change or other.code == recipe.code:
      return other.directory, ''
  if not others:
    return None, ''
  names = recipes.listed(code.difference(others[0].code, recipe.code))
  return None, (f'{others[0].directory} is not reused: it was made by other '
                f'code ({names}); --accept_code_change takes it')


def _holds_path(value: Any) -> bool:
  if isinstance(value, dict | list):
    return any(map(_holds_path,
                   value.values() if isinstance(value, dict) else value))
  return isinstance(value, str) and os.path.isabs(value)


def scan(sources: Sequence[str | os.PathLike]) -> Offers:
  """The complete stages of workdirs, by recipe; those of an earlier one first.

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
              workdirs.read_intact(pathlib.Path(root)))
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
