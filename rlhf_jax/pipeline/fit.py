"""Training of a stage that goes on where it was left, over all devices."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import time
from typing import Any

from rlhf_jax import errors
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.ops import packing
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import processes
from rlhf_jax.parallel import sharding
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files
from rlhf_jax.storage import metrics

SKIPPED = 'skipped.json'
# Share of rows left above which their masks cost what packing saves: measured
# on two CPU cores, where packing eight rows into eight takes 1.2 times as long.
_WORTHWHILE = .9


@dataclasses.dataclass(frozen=True)
class Loop:
  """How long, and how often something is kept of it."""

  num_steps: int  # where to end
  save_every: int = 200  # steps between checkpoints
  log_every: int = 20  # steps between lines of metrics
  folder: str = 'checkpoints'  # below the directory of the stage
  num_microbatches: int = 1  # into which the step cuts a batch
  packing: bool = False  # of rows, see `ops.packing`; batches alone, no rollout


@dataclasses.dataclass(frozen=True)
class Watch:
  """Looks at a state on the way: a line of evaluation.jsonl each time."""

  evaluate: Callable[[int, types.TrainState], dict[str, float]]
  every: int  # steps; also before the first step and after the last


class _Log:
  """The metrics of a training; with a watch also updates and evaluations."""

  def __init__(self, context: Any, watch: Watch | None):
    self._context, self._watch = context, watch
    self._directory = directory = context.directory
    self._stack = contextlib.ExitStack()
    self._writers = {}
    self._open('metrics')
    if watch is not None:
      self._open('evaluation')
      if (directory / 'updates.jsonl').exists():  # of a training that goes on
        self._open('updates')

  def __enter__(self) -> '_Log':
    return self

  def __exit__(self, *unused_exc):
    self._stack.close()

  def _open(self, name: str) -> metrics.MetricsWriter:
    if name not in self._writers:
      self._writers[name] = self._stack.enter_context(
          self._context.writer(name))
    return self._writers[name]

  def truncate(self, step: int, evaluated: int | None = None):
    """Drops what comes after a step, or after an evaluated one."""
    for name, writer in self._writers.items():
      late = name == 'evaluation' and evaluated is not None
      writer.truncate(evaluated if late else step)

  def step(self, step: int, current: train.Metrics) -> dict[str, float]:
    """Writes and returns the means of a step's metrics, over its updates."""
    current = processes.whole(dict(current))
    means = {k: float(v.mean()) for k, v in current.items()}
    self._writers['metrics'].write(step, means)
    each = {k: v for k, v in current.items() if v.ndim}
    # A step on logged responses is one update, and its metrics are scalars.
    if self._watch is not None and each:
      for update in range(len(each['train/loss'])):
        self._open('updates').write(
            step, {'update': update} | {k: v[update] for k, v in each.items()})
    return means

  def digests(self, num_steps: int) -> dict[str, str]:
    """Of what is written, by file, but of the evaluation at the end.

    That one is made again where a training is found to have ended.
    """
    return processes.from_owner(lambda: {
        name: writer.digest(num_steps if name == 'evaluation' else None)
        for name, writer in self._writers.items()})

  def evaluation(self, step: int, state: types.TrainState):
    if self._watch is not None:
      self._writers['evaluation'].write(
          step, self._watch.evaluate(step, state))

  def resume(self, start: int, num_steps: int, state: types.TrainState,
             digests: Mapping[str, str]):
    """What a training that goes on at `start` finds, and what it lacks.

    Raises:
      CheckpointError: a file has lost, or has another, of the lines before.
    """
    self.truncate(start)
    today = self.digests(num_steps)
    changed = [name for name in digests if digests[name] != today.get(name)]
    if changed:
      raise errors.CheckpointError(
          f'{self._directory / changed[0]}.jsonl is not as step {start} has '
          f'left it; --redo={self._directory.name} makes the stage again')
    if self._watch is not None and start == num_steps:
      self.truncate(start, start - 1)  # what else it wrote may be lost
      self.evaluation(start, state)

  def due(self, step: int, num_steps: int) -> bool:
    """Whether a step is evaluated."""
    return self._watch is not None and (
        step % self._watch.every == 0 or step == num_steps)


def _training(state: types.TrainState) -> dict[str, Any]:
  """What a checkpoint holds beside the parameters."""
  fields = {'opt_state': state.opt_state, 'key': state.key,
            'step': state.step, 'targets': state.targets,
            'statistics': state.statistics or None}
  return {k: v for k, v in fields.items() if v is not None}


def _placed(source: sources.Source, members: int, loop: Loop
            ) -> sources.Source:
  """The source with its batches split over the mesh; a rollout is already."""
  layout = packing.Layout(
      meshes.row_parts(members=members or 1), loop.num_microbatches)
  fill = lambda batch: sharding.pad_rows(
      batch, layout.shards * layout.microbatches, axis=int(members > 0))
  size = _packed_size(source, fill, loop, layout) if loop.packing else None

  def place(*args):
    batch = source(*args)
    if isinstance(batch, types.Rollout):
      return batch
    batch = fill(batch)
    if size is not None:
      batch = packing.pack(batch, size, layout)
    return sharding.shard_batch(batch, members=members)
  return place


def _packed_size(source, fill, loop, layout) -> packing.Size | None:
  """For all steps, so that they run one program; None if it does not pay.

  It is a function of the data and their order alone: a training that goes on
  computes what it would have.
  """
  batches = (fill(source(step, None, None)) for step in range(loop.num_steps))
  sizes, pieces = [], 0
  for batch in batches:
    sizes.append(packing.size_of(batch, layout))
    pieces = batch.mask.shape[-3] * batch.mask.shape[-2]
  largest = packing.largest(sizes or [packing.Size(0, 0)])
  rows = largest.rows * layout.shards * layout.microbatches
  return largest if rows <= _WORTHWHILE * pieces else None


def _steps(context: Any, source: sources.Source, *args, **kwargs):
  """Those of `train.train`; where it gives up, a file says on which rows."""
  path, is_owner = context.directory / SKIPPED, not processes.index()
  if is_owner:
    path.unlink(missing_ok=True)  # of a training that has gone on
  try:
    yield from train.train(*args, **kwargs)
  except errors.NumericsError as error:
    rows = getattr(source, 'rows', lambda step: None)
    if is_owner:
      files.write_json(path, [{'step': step + 1, 'rows': rows(step)}
                              for step in error.skipped])
    raise errors.NumericsError(
        f'{error}; their rows are in {path}') from error


def fit(context: Any, state: types.TrainState, source: sources.Source,
        step_fn: Callable, *, loop: Loop, frozen: types.Frozen | None = None,
        watch: Watch | None = None
        ) -> tuple[types.TrainState, dict[str, float]]:
  """Runs a stage's training from where it was left, over all devices.

  Parameters and rows are split over the mesh in use; the step is the same on
  one device. A batch is filled up where the mesh does not divide it; a rollout
  is left as its source has placed it.

  Checkpoints go to `loop.folder`, metrics to metrics.jsonl, in which each
  logged step occurs once, and those of the several updates of a rollout,
  where a step has them, to updates.jsonl. After the last step the last
  checkpoint holds the result.

  Args:
    context: of the stage.
    state: at step 0, of `train.place_state`; with a leading member axis for an
      ensemble.
    source: of batches.
    step_fn: jitted; may donate the state.
    loop: how long.
    frozen: for the source; its `base`, frozen parameters beside the trained
      ones, also for the step, see `train.train`.
    watch: None: nobody looks.

  Returns:
    The final state, and the last metrics with 'seconds' of the whole
    training, interrupted or not.

  Raises:
    Interrupted: after saving, when asked to stop.
    NumericsError: see `train.train`; skipped.json has the steps and their
      rows, by place among those that the stage trains on, from 0 (of several
      rounds of prompts, all that may have been asked).
    CheckpointError: what it has logged before is damaged.
  """
  frozen = frozen or types.Frozen()
  members = len(state.step) if state.step.ndim else 0
  last, before, start, name = {}, 0.0, 0, context.directory.name
  with (checkpoint.Checkpointer(context.directory / loop.folder) as saver,
        _Log(context, watch) as log):
    restored = saver.restore_latest(state.params, _training(state),
                                    strict=context.strict)
    ended = restored is not None and restored[0] == loop.num_steps
    placed = source if ended else _placed(source, members, loop)
    began = time.monotonic()
    if restored:
      start, params, training, meta = restored
      _check_owner(context, loop.folder, start, meta)
      last, before = meta['last'], meta['seconds']
      state = types.TrainState(params=params, **training)
      context.log(f'goes on at step {start} of {loop.num_steps}')
      log.resume(start, loop.num_steps, state, meta.get('logs', {}))
    else:
      log.truncate(-1)
      log.evaluation(0, state)
    with context.progress(loop.num_steps, start, name) as bar:
      for step, state, current in _steps(  # noqa: B020
          context, source, state, frozen, placed, step_fn, start=start,
          num_steps=loop.num_steps, base=frozen.base):
        bar.update(1)
        stopping = context.stop.requested(step)
        last_step = step == loop.num_steps
        if step % loop.log_every == 0 or last_step:
          last = log.step(step, current)
        if log.due(step, loop.num_steps):
          log.evaluation(step, state)
        if step % loop.save_every == 0 or last_step or stopping:
          spent = before + time.monotonic() - began
          saver.save(step, state.params, _training(state),
                     {'last': last, 'seconds': spent, 'recipe': context.key,
                      'logs': log.digests(loop.num_steps)})
          if stopping and not last_step:
            context.stop.stop(f'step {step} of {name}')
    seconds = before + time.monotonic() - began
  return state, last | {'seconds': seconds}


def _check_owner(context, folder: str, step: int, meta):
  """CheckpointError for a step that another stage has saved."""
  if meta.get('recipe') != context.key:
    raise errors.CheckpointError(
        f'{context.directory / folder / str(step)} was saved by another stage; '
        f'--redo={context.name} makes this one again')


def rate(last: dict[str, float], tokens: float) -> dict[str, float]:
  """The metrics of `fit` with the tokens per second of all its steps."""
  return last | {'tokens_per_second': tokens / last['seconds']}
