"""A study: named stages in one workdir, each resumable, run once.

  workdir/status.json  the stage that runs, or how the last command ended
  workdir/log.txt      messages and tracebacks

What else is in a workdir is said in `workdirs`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fnmatch
import functools
import os
import pathlib
import time
import traceback

import jax

from rlhf_jax import errors
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import processes
from rlhf_jax.runner import cluster
from rlhf_jax.runner import recipes
from rlhf_jax.runner import reuse as reuse_lib
from rlhf_jax.runner import status as status_lib
from rlhf_jax.runner import stop as stop_lib
from rlhf_jax.runner import trust
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of a study; `run` may be called again after an interruption."""

  name: str  # such as 'seed_0/sft': a directory below the workdir
  run: Callable[['StageContext'], dict]  # returns JSON values
  alone: bool = False  # only reads and writes files: of one process
  quick: bool = False  # made again, without a word, where anything has changed
  # SHA-256 of what it reads from outside by name, and the modules of users
  # whose functions it is told of.
  inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
  modules: tuple[str, ...] = ()


class StageContext:
  """What a running stage may use of its study."""

  def __init__(self, workdir: pathlib.Path, name: str,
               stop: stop_lib.StopSignal,
               mesh: Callable[[], jax.sharding.Mesh] = meshes.make,
               recipe: recipes.Recipe | None = None,
               intact: dict[str, dict] | None = None,
               strict: bool = False):
    self.strict = strict  # whether a damaged checkpoint is an error
    self.directory = workdir / name
    self.stop = stop
    self.recipe = recipe
    # Records by stage, whose files need not be read again in this run.
    self.intact = {} if intact is None else intact
    self._workdir = workdir
    self.name = name
    self._mesh = mesh

  @property
  def mesh(self) -> jax.sharding.Mesh:
    """The mesh of the study; TopologyError if it does not fit the devices."""
    return self._mesh()

  @property
  def key(self) -> str | None:
    """What a checkpoint of the stage says that it belongs to."""
    return self.recipe and self.recipe.key

  def directory_of(self, name: str) -> pathlib.Path:
    """The directory of a complete stage; CheckpointError if it is not."""
    self.result_of(name)
    return self._workdir / name

  def result_of(self, name: str) -> dict:
    """The result of a complete stage; CheckpointError if it is not."""
    return self._record_of(name)['result']

  def seconds_of(self, name: str) -> float:
    """Wall time of the call that completed a stage; errors as above."""
    return self._record_of(name)['seconds']

  def recipe_of(self, name: str) -> str | None:
    """Key of the recipe of a complete stage, if it has one; errors as above."""
    return self._record_of(name).get('recipe')

  def _record_of(self, name: str) -> dict:
    record = self.intact.get(name) or workdirs.read_intact(
        self._workdir / name)
    if record is None:
      raise errors.CheckpointError(
          f'stage {self.name} needs {name}, which is not complete in '
          f'{self._workdir}; run it first, with --stages={name}')
    self.intact[name] = record
    return record

  def show(self, text: str):
    """Prints lines as they are, and appends them to the log."""
    _say(self._workdir, text)

  def log(self, message: str):
    """Prints one line and appends it to the log."""
    _say(self._workdir, f'{self.name}: {message}')


def run_study(
    stages: Sequence[Stage],
    workdir: str | os.PathLike,
    *,
    config: dict,
    only: Sequence[str] = (),
    reuse: Sequence[str | os.PathLike] = (),
    redo: Sequence[str] = (),
    accept_code_change: bool = False,
    strict_resume: bool = False,
    safe_keys: Sequence[str] = ('*log_every', '*save_every', '*description'),
):
  """Runs the stages that are not complete, in order.

  A stage that a workdir of `reuse`, or this one, holds already, under
  whatever name, is taken over from there instead: see `reuse`. What is
  complete is believed only if all of its files are as it has left them, and if
  it was made from what it would be made from today; else it is made again, or
  refused where that would cost what somebody may want to keep.

  Args:
    stages: in an order in which each finds what it needs.
    workdir: created where missing; owned by one process at a time.
    config: JSON values; must not change between runs in one workdir.
    only: fnmatch patterns of full stage names or of their last parts.
    reuse: workdirs of other studies, which are only read.
    redo: patterns likewise, of stages to make again with all that are made
      from them; what there was is set aside.
    accept_code_change: whether stages count that were made by other code.
    strict_resume: whether a damaged checkpoint is an error; else a stage goes
      on from the one before it.
    safe_keys: fnmatch patterns of dotted config keys that may change.

  Raises:
    ConfigError: the config changed, or what a stage was made from, a pattern
      matches no stage, or a workdir of `reuse` holds no study.
    WorkdirLockedError: another process owns the workdir.
    CheckpointError: the workdir is unusable or a result is damaged.
    Interrupted: after SIGTERM or SIGINT, with everything saved.
  """
  workdir = pathlib.Path(workdir).absolute()
  selected = _select(stages, only)
  made_of = recipes.of_stages(stages)
  again = recipes.depending(
      [stage.name for stage in _select(stages, redo)] if redo else [], made_of)
  offers = reuse_lib.scan(reuse)
  config = files.jsonable(config)
  # Once, for all stages; a study that has nothing to do touches no device.
  mesh = functools.cache(lambda: meshes.make(config.get('mesh')))
  _check_alike({'config': config, 'stages': [s.name for s in selected],
                'recipes': made_of})
  with contextlib.ExitStack() as stack:
    lock = workdirs.locked(workdir)
    processes.from_owner(lambda: stack.enter_context(lock))
    # Before the status: a refused command leaves that of the last one.
    for change in processes.from_owner(
        lambda: workdirs.check_config(workdir, config, safe_keys)):
      _say(workdir, f'config changed, safely: {change}')
    with _telling(workdir) as status, stop_lib.StopSignal(
        status.at_once).installed() as stop, cluster.losing():
      processes.from_owner(lambda: _clear(workdir, again))
      intact = {}
      for stage in selected:
        status.write(stage=stage.name)
        context = StageContext(workdir, stage.name, stop, mesh,
                               made_of[stage.name], intact, strict_resume)
        _complete(context, stage, offers,
                  accept_code_change=accept_code_change)


@contextlib.contextmanager
def _telling(workdir: pathlib.Path) -> Iterator[status_lib.Status]:
  """Writes how a command begins and how it ends, and what the last one left."""
  if before := processes.from_owner(lambda: status_lib.killed(workdir)):
    _say(workdir, f'the last command was killed ({before}); going on')
  status, end = status_lib.Status(workdir), None
  status.write()
  try:
    yield status
  except BaseException as error:
    end = error
    if not isinstance(error, errors.Interrupted):
      _log(workdir, traceback.format_exc())
    raise
  finally:
    try:
      status.ended(end)
    except errors.CheckpointError as error:
      # Must not hide the error on its way out, which often has one cause.
      _say(workdir, f'status.json: {error}')


def _check_alike(told: dict):
  """TopologyError unless all processes were told the same.

  Args:
    told: JSON values: the config, with what is read from outside, and stages.
  """
  digests = processes.from_all(files.digest(told))
  other = [i for i, value in enumerate(digests) if value != digests[0]]
  if other:
    raise errors.TopologyError(
        f'process {other[0]} of {len(digests)} was started with another '
        'config, other stages or other input files than process 0; start all '
        'with the same command')


def _select(stages: Sequence[Stage], only: Sequence[str]) -> list[Stage]:
  names = [stage.name for stage in stages]
  if len(set(names)) != len(names):
    raise ValueError(f'stage names repeat: {names}')
  for name in names:
    if name != os.path.normpath(name) or name.startswith(('/', '.')):
      raise ValueError(f'a stage name is a path below the workdir: {name!r}')
    if any(str(parent) in names for parent in pathlib.Path(name).parents):
      raise ValueError(f'a stage lies within another: {name!r}')

  def matches(name, pattern):
    return (fnmatch.fnmatchcase(name, pattern)
            or fnmatch.fnmatchcase(name.rpartition('/')[2], pattern))

  for pattern in only:
    if not any(matches(name, pattern) for name in names):
      raise errors.ConfigError(
          f'no stage matches {pattern!r}; there are {", ".join(names)}')
  return [stage for stage in stages
          if not only or any(matches(stage.name, p) for p in only)]


def _clear(workdir: pathlib.Path, names: Sequence[str]):
  """Sets aside what there is of stages."""
  for name in names:
    if (workdir / name).exists():
      aside = workdirs.set_aside(workdir / name)
      _say(workdir, f'{name:<38} made again; what there was is in {aside}')


def _complete(context: StageContext, stage: Stage, offers: reuse_lib.Offers,
              *, accept_code_change: bool):
  """Sees to it that a stage is complete, and offers it to later ones."""
  def is_complete() -> bool:
    """Whether it is without running."""
    poll = lambda: context.stop.check(f'the start of {stage.name}')
    if trust.complete(context, stage, accept_code_change=accept_code_change):
      context.show(f'{stage.name:<38} skipped, complete')
      return True
    poll()
    source = None
    if context.recipe is not None:
      source, reason = reuse_lib.find(
          offers, context.recipe, accept_code_change=accept_code_change)
      if reason:
        context.show(f'{stage.name:<38} {reason}')
    if source is not None:
      reuse_lib.take_over(source, context.directory, poll)
      context.show(f'{stage.name:<38} reused from {source}')
      return True
    reuse_lib.clear(context.directory)
    return False

  if not processes.from_owner(is_complete):
    context.stop.check(f'the start of {stage.name}')
    _run_stage(context, stage)

  def offer():
    record = workdirs.read_record(context.directory)
    context.intact[stage.name] = record
    reuse_lib.offer(offers, context.directory, record)

  processes.from_owner(offer)


def _run_stage(context: StageContext, stage: Stage):
  """Runs a stage; its result is written last."""
  made_of = {'stage': stage.name}
  if context.recipe is not None:
    made_of |= context.recipe.record()
  begun = workdirs.read_begun(context.directory) or {}
  if 'accepted' in begun:  # it goes on from what other code has saved
    made_of['accepted'] = begun['accepted']
  try:
    context.directory.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.CheckpointError(
        f'cannot create {context.directory}: {error.strerror}') from error
  workdirs.begin(context.directory, made_of)
  start = time.monotonic()
  if stage.alone:
    result = processes.from_owner(lambda: stage.run(context))
  else:
    with jax.set_mesh(context.mesh):
      result = stage.run(context)
  seconds = round(time.monotonic() - start, 3)
  if not isinstance(result, dict):
    raise TypeError(f'stage {stage.name} returned {type(result)}, not a dict')
  record = {'result': result, 'seconds': seconds}
  processes.from_owner(
      lambda: workdirs.write_record(context.directory, record | made_of))
  short = [f'{key}={value:.4g}' for key, value in result.items()
           if isinstance(value, int | float) and '/' not in key][:3]
  context.show(f'{stage.name:<38} {seconds:7.1f} s  {" ".join(short)}')


def read_result(workdir: str | os.PathLike, name: str) -> dict | None:
  """The verified result of a stage, or None if it is not complete."""
  record = workdirs.read_intact(pathlib.Path(workdir, name))
  return None if record is None else record['result']


def _say(workdir: pathlib.Path, message: str):
  """Prints to stdout and to the log."""
  _log(workdir, message)
  say(message)


def say(message: str):
  """Prints to stdout, which may be closed; of several processes, one."""
  if processes.index():
    return
  with contextlib.suppress(OSError, ValueError):
    print(message, flush=True)


def _log(workdir: pathlib.Path, message: str):
  if processes.index():
    return
  with contextlib.suppress(OSError):
    with files.open_appending(workdir / workdirs.LOG) as stream:
      stream.write(f'{status_lib.now()} {message}\n'.encode(errors='replace'))
