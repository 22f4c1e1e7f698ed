"""What stages share: training that resumes, and what others have trained."""

from collections.abc import Callable
import time
from typing import Any

import jax

from rlhf_jax import checkpoint
from rlhf_jax import metrics
from rlhf_jax import rewards
from rlhf_jax import sharding
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import transformer


def fit(
    context: Any,
    state: types.TrainState,
    source: sources.Source,
    step_fn: Callable,
    *,
    num_steps: int,
    frozen: types.Frozen | None = None,
    save_every: int = 200,
    log_every: int = 20,
    tokens_per_step: int = 0,
) -> tuple[types.TrainState, dict[str, float]]:
  """Runs a stage's training from where it was left, over all devices.

  Parameters are replicated and the prompts of a batch are split over a mesh
  of all devices; the step is the same on one.

  Checkpoints go to `directory/checkpoints`, metrics to
  `directory/metrics.jsonl`, in which each logged step occurs once. After
  `num_steps` the last checkpoint holds the result.

  Args:
    context: of the stage.
    state: at step 0; with a leading member axis for an ensemble.
    source: of batches.
    step_fn: jitted; may donate the state.
    num_steps: where to end.
    frozen: for the source.
    save_every: steps between checkpoints.
    log_every: steps between lines of metrics.
    tokens_per_step: for the rate that is reported.

  Returns:
    The final state, and the last metrics with 'seconds' and
    'tokens_per_second' of this call.

  Raises:
    Interrupted: after saving, when asked to stop.
    NumericsError: see `train.train`.
    TopologyError: the batch size is no multiple of the number of devices.
  """
  as_training = lambda s: {'opt_state': s.opt_state, 'key': s.key,
                           'step': s.step}
  mesh = sharding.make_mesh()
  state = sharding.shard_params(state, mesh)
  member_axes = state.step.ndim
  spread = lambda *args: sharding.shard_batch(
      source(*args), mesh, axis=member_axes)
  last = {}
  with (checkpoint.Checkpointer(context.directory / 'checkpoints') as saver,
        metrics.MetricsWriter(context.directory / 'metrics.jsonl') as writer):
    restored = saver.restore_latest(state.params, as_training(state))
    start = 0
    if restored:
      start, params, training, _ = restored
      state = types.TrainState(params=params, **training)
      context.log(f'goes on at step {start} of {num_steps}')
    writer.truncate(start)
    name = context.directory.name
    began = time.monotonic()
    with metrics.progress(num_steps, start, name) as bar:
      for step, new_state, current in train.train(
          state, frozen or types.Frozen(), spread, step_fn, start=start,
          num_steps=num_steps):
        state = new_state
        bar.update(1)
        stopping = context.stop.requested()
        if step % log_every == 0 or step == num_steps or stopping:
          last = {k: float(jax.numpy.mean(v)) for k, v in current.items()}
          writer.write(step, last)
        if step % save_every == 0 or step == num_steps or stopping:
          saver.save(step, state.params, as_training(state))
          if step < num_steps:
            context.stop.check(f'step {step} of {name}')
    seconds = time.monotonic() - began
  last['seconds'] = seconds
  last['tokens_per_second'] = (
      tokens_per_step * (num_steps - start) / max(seconds, 1e-9))
  return state, last


def load_policy(context: Any, stage: str,
                config: transformer.Config) -> types.Params:
  """The decoder that an SFT stage has trained."""
  return checkpoint.restore_params(
      context.directory_of(stage) / 'checkpoints',
      jax.eval_shape(lambda: transformer.init(config, jax.random.key(0))))


def load_members(context: Any, stage: str, config: transformer.Config,
                 num_members: int | None) -> types.Params:
  """The reward models of a stage, leaves [E, ...].

  Args:
    context: of the stage that asks.
    stage: that has trained them.
    config: shape of the trunk.
    num_members: E; None where the stage holds one model without the axis,
      which is then added.
  """
  one = lambda: rewards.init(config, jax.random.key(0))
  many = lambda: jax.vmap(lambda key: rewards.init(config, key))(
      jax.random.split(jax.random.key(0), num_members))
  params = checkpoint.restore_params(
      context.directory_of(stage) / 'checkpoints',
      jax.eval_shape(one if num_members is None else many))
  if num_members is None:
    params = jax.tree.map(lambda x: x[None], params)
  return params
