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
from rlhf_jax.runner import context as context_lib
from rlhf_jax.runner import progress as progress_lib
from rlhf_jax.runner import recipes
from rlhf_jax.runner import reuse as reuse_lib
from rlhf_jax.runner import screen as screen_lib
from rlhf_jax.runner import status as status_lib
from rlhf_jax.runner import stop as stop_lib
from rlhf_jax.runner import trackers
from rlhf_jax.runner import trust
from rlhf_jax.runner import voice
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of a study; `run` may be called again after an interruption."""

  name: str  # such as 'seed_0/sft': a directory below the workdir
  # Returns JSON values.
  run: Callable[[context_lib.StageContext], dict]
  alone: bool = False  # only reads and writes files: of one process
  quick: bool = False  # made again, without a word, where anything has changed
  # SHA-256 of what it reads from outside by name, and the modules of users
  # whose functions it is told of.
  inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
  modules: tuple[str, ...] = ()


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
    log_to: Sequence[str] = (),
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
    log_to: who else follows the metrics, see `trackers`.
    safe_keys: fnmatch patterns of dotted config keys that may change.

  Raises:
    ConfigError: the config changed, or what a stage was made from, a pattern
      matches no stage, a workdir of `reuse` holds no study, or there is no
      such tracker.
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
  follow = trackers.Trackers(workdir, log_to, config)
  progress = progress_lib.Progress(
      workdir, stages, selected, follow=follow,
      is_ready=lambda name: made_of[name] and made_of[name].key in offers)
  with contextlib.ExitStack() as stack:
    stack.callback(follow.close)
    lock = workdirs.locked(workdir)
    processes.from_owner(lambda: stack.enter_context(lock))
    # Before the status: a refused command leaves that of the last one.
    for change in processes.from_owner(
        lambda: workdirs.check_config(workdir, config, safe_keys)):
      voice.tell(workdir, f'config changed, safely: {change}')
    screen = screen_lib.Screen(progress)

    def at_once(code):
      status.at_once(code)
      screen.leave()

    with _telling(workdir) as status, stop_lib.StopSignal(
        at_once).installed() as stop, cluster.losing(), screen:
      progress.tell = lambda: _update(status, progress)
      processes.from_owner(lambda: _clear(workdir, again))
      intact = {}
      for number, stage in enumerate(selected, 1):
        progress.begin(number)
        status.write(**progress.status())
        context = context_lib.StageContext(
            workdir, stage.name, stop, mesh, made_of[stage.name], intact,
            strict_resume, progress)
        _complete(context, stage, offers,
                  accept_code_change=accept_code_change)


def _update(status: status_lib.Status, progress: progress_lib.Progress):
  """Writes how far a stage is; what cannot be written stops no training."""
  with contextlib.suppress(errors.CheckpointError):
    status.write(**progress.status())


@contextlib.contextmanager
def _telling(workdir: pathlib.Path) -> Iterator[status_lib.Status]:
  """Writes how a command begins and how it ends, and what the last one left."""
  if before := processes.from_owner(lambda: status_lib.killed(workdir)):
    voice.tell(workdir, f'the last command was killed ({before}); going on')
  status, end = status_lib.Status(workdir), None
  status.write()
  try:
    yield status
  except BaseException as error:
    end = error
    if not isinstance(error, errors.Interrupted):
      voice.log(workdir, traceback.format_exc())
    raise
  finally:
    try:
      status.ended(end)
    except errors.CheckpointError as error:
      # Must not hide the error on its way out, which often has one cause.
      voice.tell(workdir, f'status.json: {error}')


def _check_alike(values: dict):
  """TopologyError unless all processes were told the same.

  Args:
    values: of JSON: the config, with what is read from outside, and stages.
  """
  digests = processes.from_all(files.digest(values))
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
      voice.tell(
          workdir, f'{name:<38} made again; what there was is in {aside}')


def _complete(context: context_lib.StageContext, stage: Stage,
              offers: reuse_lib.Offers, *, accept_code_change: bool):
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


def _run_stage(context: context_lib.StageContext, stage: Stage):
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
