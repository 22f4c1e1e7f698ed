"""Training of a stage that goes on where it was left."""

from collections.abc import Callable, Sequence
import contextlib
import json
import pathlib
import time
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax import sharding
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import metrics


class _Log:
  """The metrics of a training; of policies also updates and evaluations."""

  def __init__(self, directory: pathlib.Path, evaluate: Callable | None):
    self._directory = directory
    self._evaluate = evaluate
    self._stack = contextlib.ExitStack()
    self._writers = {}
    self._open('metrics')
    if evaluate is not None:
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
          metrics.MetricsWriter(self._directory / f'{name}.jsonl'))
    return self._writers[name]

  def truncate(self, step: int, evaluated: int | None = None):
    """Drops what comes after a step, or after an evaluated one."""
    for name, writer in self._writers.items():
      late = name == 'evaluation' and evaluated is not None
      writer.truncate(evaluated if late else step)

  def step(self, step: int, current: train.Metrics) -> dict[str, float]:
    """Writes and returns the means of a step's metrics, over its updates."""
    current = {k: np.asarray(v) for k, v in current.items()}
    means = {k: float(v.mean()) for k, v in current.items()}
    self._writers['metrics'].write(step, means)
    each = {k: v for k, v in current.items() if v.ndim}
    # A step on logged responses is one update, and its metrics are scalars.
    if self._evaluate is not None and each:
      for update in range(len(each['train/loss'])):
        self._open('updates').write(
            step, {'update': update} | {k: v[update] for k, v in each.items()})
    return means

  def check(self, steps: Sequence[int]):
    """Raises CheckpointError unless these steps have been evaluated."""
    writer = self._writers['evaluation']
    found = {json.loads(line)['step']
             for line in writer.path.read_text().splitlines()}
    missing = [step for step in steps if step not in found]
    if missing:
      raise errors.CheckpointError(
          f'{writer.path} lacks step {missing[0]}; delete '
          f'{writer.path.parent} to train again')

  def evaluation(self, step: int, state: types.TrainState):
    if self._evaluate is not None:
      self._writers['evaluation'].write(step, self._evaluate(step, state))


def fit(
    context: Any,
    state: types.TrainState,
    source: sources.Source,
    step_fn: Callable,
    *,
    num_steps: int,
    frozen: types.Frozen | None = None,
    base: types.Params | None = None,
    save_every: int = 200,
    log_every: int = 20,
    tokens_per_step: int = 0,
    evaluate: Callable[[int, types.TrainState], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    folder: str = 'checkpoints',
) -> tuple[types.TrainState, dict[str, float]]:
  """Runs a stage's training from where it was left, over all devices.

  Parameters are replicated and the prompts of a batch are split over a mesh
  of all devices; the step is the same on one. A rollout is left as its source
  has placed it.

  Checkpoints go to `directory/<folder>`, metrics to
  `directory/metrics.jsonl`, in which each logged step occurs once, and those
  of the several updates of a rollout, where a step has them, to
  `directory/updates.jsonl`. After `num_steps` the last checkpoint holds the
  result.

  Args:
    context: of the stage.
    state: at step 0; with a leading member axis for an ensemble.
    source: of batches.
    step_fn: jitted; may donate the state.
    num_steps: where to end.
    frozen: for the source.
    base: frozen parameters beside the trained ones, see `train.train`.
    save_every: steps between checkpoints.
    log_every: steps between lines of metrics.
    tokens_per_step: for the rate that is reported.
    evaluate: (steps taken, state) -> numbers, for a line of
      `directory/evaluation.jsonl`.
    evaluate_every: steps between evaluations; there is one before the first
      step and one after the last.
    folder: of the checkpoints.

  Returns:
    The final state, and the last metrics with 'seconds' and
    'tokens_per_second' of the whole training, interrupted or not.

  Raises:
    Interrupted: after saving, when asked to stop.
    NumericsError: see `train.train`.
    TopologyError: the batch size is no multiple of the number of devices.
  """
  def as_training(state):
    fields = {'opt_state': state.opt_state, 'key': state.key,
              'step': state.step, 'targets': state.targets,
              'statistics': state.statistics or None}
    return {k: v for k, v in fields.items() if v is not None}

  mesh = sharding.make_mesh()
  state, base, frozen = sharding.shard_params(
      (state, base, frozen or types.Frozen()), mesh)
  member_axes = state.step.ndim

  def spread(*args):
    found = source(*args)
    return found if isinstance(found, types.Rollout) else (
        sharding.shard_batch(found, mesh, axis=member_axes))

  last, before = {}, 0.0
  name = context.directory.name
  with (checkpoint.Checkpointer(context.directory / folder) as saver,
        _Log(context.directory, evaluate) as log):
    restored = saver.restore_latest(state.params, as_training(state))
    start = 0
    if restored:
      start, params, training, meta = restored
      last, before = meta['last'], meta['seconds']
      state = types.TrainState(params=params, **training)
      context.log(f'goes on at step {start} of {num_steps}')
    log.truncate(start if restored else -1)
    began = time.monotonic()
    if not restored:
      log.evaluation(0, state)
    elif evaluate is not None:
      log.check(range(0, start, evaluate_every))
      if start == num_steps:  # what else it wrote may have been lost
        log.truncate(start, start - 1)
        log.evaluation(start, state)
    with metrics.progress(num_steps, start, name) as bar:
      for step, new_state, current in train.train(
          state, frozen, spread, step_fn, start=start,
          num_steps=num_steps, base=base):
        state = new_state
        bar.update(1)
        stopping = context.stop.requested()
        if step % log_every == 0 or step == num_steps or stopping:
          last = log.step(step, current)
        if evaluate_every and (
            step % evaluate_every == 0 or step == num_steps):
          log.evaluation(step, state)
        if step % save_every == 0 or step == num_steps or stopping:
          spent = before + time.monotonic() - began
          saver.save(step, state.params, as_training(state),
                     {'last': last, 'seconds': spent})
          if step < num_steps:
            context.stop.check(f'step {step} of {name}')
    seconds = before + time.monotonic() - began
  return state, last | {
      'seconds': seconds,
      'tokens_per_second': tokens_per_step * num_steps / seconds}
