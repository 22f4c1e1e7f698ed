"""The one train step and the one train loop.

An objective returns unreduced losses and weights of one unit shape. Here, and
only here, they become a number: sum(loss * weight) / sum(weight), summed over
micro-batches before the division. (The mean of micro-batch means is another
number as soon as masks are ragged.) Under jit over a mesh the compiler sums
over devices; under `jax.pmap` and `jax.shard_map` the step does, by axis name.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.ops import kl
from rlhf_jax.ops import optimizers
from rlhf_jax.parallel import processes
from rlhf_jax.parallel import sharding

Forward = Callable[..., types.PolicyOutput]  # (params, batch[, targets])
Objective = Callable[[types.PolicyOutput, types.Batch], types.LossOutput]
Metrics = dict[str, Any]
MAX_SKIPPED = 5  # in a row, before training stops

optimizer = optimizers.adamw


def init_state(params: types.Params, tx: optax.GradientTransformation,
               key: jax.Array,
               targets: types.Params | None = None) -> types.TrainState:
  """A state at step 0.

  `targets` are copied: a step that donates its state cannot share buffers.
  """
  return types.TrainState(
      step=jnp.int32(0), params=params, opt_state=tx.init(params), key=key,
      targets=jax.tree.map(jnp.copy, targets))


def place_state(params: types.Params, tx: optax.GradientTransformation,
                key: jax.Array, targets: types.Params | None = None, *,
                members: int = 0) -> types.TrainState:
  """The same, of which each device of the mesh in use holds its part alone.

  Args:
    params: leaves [E, ...] of an ensemble; given away, to be donated.
    tx, key: of `init_state`; key[E] of an ensemble.
    targets: of `init_state`.
    members: E; 0: one model.
  """
  # Of parameters that lie there already the optimizer's are born beside them.
  placed = sharding.shard_params(
      {'params': params, 'targets': targets}, members=members)
  return sharding.born(
      _init_states, placed['params'], key, placed['targets'],
      static=(tx, members), members=members)


def _init_states(tx, members, *args):
  init = lambda params, *rest: init_state(params, tx, *rest)
  return (sharding.map_members(init, members) if members else init)(*args)


def _split(batch: types.Batch, parts: int) -> types.Batch:
  """Cuts the prompts into `parts` micro-batches on a new leading axis."""
  size = batch.tokens.shape[0]
  if size % parts:
    raise ValueError(f'a batch of {size} prompts cannot be cut into '
                     f'num_microbatches={parts} equal parts.')
  # Every parts-th row, so that each device cuts the rows that it has.
  return jax.tree.map(lambda x: jnp.swapaxes(
      x.reshape(-1, parts, *x.shape[1:]), 0, 1), batch)


def make_train_step(
    forward: Forward,
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    num_microbatches: int = 1,
    update_targets: Callable[..., types.Params] | None = None,
    dropout: bool = False,
    coefficients: Sequence[str] = (),
    axis_name: str | None = None,
) -> Callable[..., tuple[types.TrainState, Metrics]]:
  """Returns step(state, batch, base=None) -> (state, metrics), ready for jit.

  Args:
    forward: (params, batch) -> PolicyOutput; where the state has `targets`,
      (params, batch, targets); with `dropout`, also `dropout_key=`.
    objective: (PolicyOutput, batch) -> LossOutput.
    tx: the optimizer.
    num_microbatches: the batch is cut into so many equal parts, whose
      gradients are summed; memory falls, the result does not change.
    update_targets: (targets, params, step) -> targets, after the update; step
      counts it. None leaves them as they are.
    dropout: whether `forward` gets a key of its own for each step and
      micro-batch.
    coefficients: arguments of `objective` that are data, not program, because
      a controller adapts them: each is given state.statistics[name].
    axis_name: of `jax.pmap` or `jax.shard_map`, over which the rows are split
      and the state is replicated; None: under jit, over any mesh.

  Returns:
    The step, pure. Metrics are f32[] means over the batch: those of the
    objective, 'train/loss', 'train/grad_norm' and 'train/skipped' (1 where the
    loss or the gradient was not finite and the state was left as it was, but
    for `step` and `key`).

    `base` holds parameters that are read and never written, such as those
    under an adapter or below the layers that are trained; `forward` gets them
    together with the state's. They have no gradient and no optimizer state,
    may be quantised, and must not be donated. ValueError if an entry is both
    in `base` and in the state.
  """

  def summed(params, part, base, targets, key, adapted):
    batch, index = part
    params = params if base is None else {**base, **params}
    extra = () if targets is None else (targets,)
    keys = {'dropout_key': jax.random.fold_in(key, index)} if dropout else {}
    out = objective(forward(params, batch, *extra, **keys), batch, **adapted)
    types.check_units(out, batch)
    total = lambda x: jnp.sum(jnp.where(out.weight > 0, x * out.weight, 0))
    sums = jax.tree.map(total, {'train/loss': out.loss, **out.metrics})
    return sums['train/loss'], (sums, jnp.sum(out.weight))

  grad_fn = jax.grad(summed, has_aux=True)

  def grad_of(*args):
    grads, sums = grad_fn(*args)
    return sharding.keep(grads), sums

  def accumulate(params, batch, *rest):
    if num_microbatches == 1:
      return grad_of(params, (batch, 0), *rest)
    parts = (_split(batch, num_microbatches), jnp.arange(num_microbatches))
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype),
                         jax.eval_shape(grad_fn, params, first, *rest))
    add = lambda total, part: (
        jax.tree.map(jnp.add, total, grad_of(params, part, *rest)), None)
    return jax.lax.scan(add, zeros, parts)[0]

  def step(state, batch, base=None):
    twice = [] if base is None else sorted(base.keys() & state.params.keys())
    if twice:
      raise ValueError(f'{", ".join(twice)} must be in base or in '
                       'state.params, not in both.')
    # [E, B, K] fits no cut by prompts, and no objective reads it.
    batch = batch.replace(member_scores=None)
    dropout_key = streams.child(state.key, 'dropout')
    if axis_name is not None:
      dropout_key = jax.random.fold_in(
          dropout_key, jax.lax.axis_index(axis_name))
    adapted = {name: state.statistics[name] for name in coefficients}
    grads, (sums, weight) = accumulate(
        state.params, batch, base, state.targets, dropout_key, adapted)
    if axis_name is not None:
      grads, sums, weight = jax.lax.psum((grads, sums, weight), axis_name)
    weight = jnp.maximum(weight, 1e-8)
    grads, metrics = jax.tree.map(lambda x: x / weight, (grads, sums))
    norm = optax.tree.norm(grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    new = (optax.apply_updates(state.params, updates), opt_state)
    finite = jnp.isfinite(norm) & jnp.isfinite(metrics['train/loss'])
    keep = lambda a, b: jnp.where(finite, a, b)
    params, opt_state = jax.tree.map(
        keep, new, (state.params, state.opt_state))
    targets = state.targets
    if update_targets is not None:
      targets = jax.tree.map(
          keep, update_targets(targets, params, state.step + 1), targets)
    metrics['train/grad_norm'] = norm
    metrics['train/skipped'] = 1.0 - finite.astype(jnp.float32)
    return sharding.keep(state.replace(
        step=state.step + 1, params=params, opt_state=opt_state,
        key=streams.child(state.key, 'next'), targets=targets)), metrics

  return step


def minibatch_order(key: jax.Array, num_prompts: int, *, num_epochs: int,
                    num_minibatches: int, repeats: int = 1) -> jax.Array:
  """Which prompts each update of a rollout takes.

  Of every `num_minibatches` neighbours each minibatch takes one, in a fresh
  order for each epoch. So whatever the number of devices, a minibatch has as
  many prompts on each, none has to move, and the order is the same; and so it
  is for the first prompts of a rollout that is filled up.

  Args:
    key: of the orders.
    num_prompts: B, a multiple of `num_minibatches`.
    num_epochs: passes over the rollout.
    num_minibatches: M, updates of a pass.
    repeats: updates in a row on the same minibatch.

  Returns:
    i32[num_epochs * M * repeats, B / M]; in each epoch every prompt occurs
    `repeats` times.

  Raises:
    ValueError: B is no multiple of `num_minibatches`, or a count is below 1.
  """
  for name, value in dict(num_epochs=num_epochs, repeats=repeats,
                          num_minibatches=num_minibatches).items():
    if value < 1:
      raise ValueError(f'{name} must be >= 1, got {value}.')
  if num_prompts % num_minibatches:
    raise ValueError(f'a rollout of {num_prompts} prompts cannot be cut into '
                     f'num_minibatches={num_minibatches} equal parts.')
  shape = num_prompts // num_minibatches, num_minibatches
  order = jnp.argsort(jax.vmap(lambda k: jax.random.uniform(k, shape))(
      jax.random.split(key, num_epochs)), axis=-1)
  order = jnp.swapaxes(order, 1, 2).reshape(-1, shape[0])
  order += num_minibatches * jnp.arange(shape[0])[None]
  return jnp.repeat(order, repeats, axis=0)


def take_minibatch(batch: types.Batch, order: jax.Array, num_minibatches: int
                   ) -> types.Batch:
  """The prompts of one row of `minibatch_order`."""
  def take(x):
    neighbours = x.reshape(-1, num_minibatches, *x.shape[1:])
    at = (order % num_minibatches).reshape(-1, *[1] * x.ndim)
    return jnp.take_along_axis(neighbours, at, axis=1)[:, 0]
  return batch if num_minibatches == 1 else jax.tree.map(take, batch)


def make_updates(
    step: Callable[..., tuple[types.TrainState, Metrics]],
    *,
    num_epochs: int = 1,
    num_minibatches: int = 1,
    repeats: int = 1,
    penalty_target: float | None = None,
) -> Callable[..., tuple[types.TrainState, Metrics]]:
  """Returns updates(state, rollout, base=None) -> (state, metrics).

  All optimizer steps on one rollout, as one program. PPO makes `num_epochs`
  passes over it, each in a fresh order of the prompts; the K responses of a
  prompt stay together. The code of Zhu et al. 2023 takes its 2 updates on a
  minibatch one after the other instead: num_epochs=1, repeats=2.

  Args:
    step: of `make_train_step`.
    num_epochs, num_minibatches, repeats: of `minibatch_order`.
    penalty_target: in nats per token. After the updates the state's
      'kl_penalty_coef' is halved or doubled by `ops.kl.doubling_coef` on the
      mean 'policy/approx_kl' of the last epoch. None leaves it.

  Returns:
    The function, pure. Its metrics are those of the rollout, f32[], and those
    of `step` with an axis of the updates, f32[U].

  Raises:
    ValueError: when traced, as `minibatch_order`.
  """

  def updates(state, rollout, base=None):
    batch = rollout.batch.replace(member_scores=None)  # see `step`
    order = minibatch_order(
        streams.child(state.key, 'minibatches'), batch.tokens.shape[0],
        num_epochs=num_epochs, num_minibatches=num_minibatches,
        repeats=repeats)
    state = state.replace(statistics=rollout.statistics)

    def update(state, at):
      return step(state, take_minibatch(batch, at, num_minibatches), base)

    state, metrics = jax.lax.scan(update, state, order)
    if penalty_target is not None:
      observed = jnp.mean(
          metrics['policy/approx_kl'][-num_minibatches * repeats:])
      coefficient = kl.doubling_coef(
          state.statistics['kl_penalty_coef'], observed, target=penalty_target)
      state = state.replace(statistics={
          **state.statistics, 'kl_penalty_coef': coefficient})
    return state, {**rollout.metrics, **metrics}

  return updates


def train(
    state: types.TrainState,
    frozen: types.Frozen,
    source: Callable[[int, types.TrainState, types.Frozen],
                     types.Batch | types.Rollout],
    step_fn: Callable[..., tuple[types.TrainState, Metrics]],
    *,
    start: int,
    num_steps: int,
    base: types.Params | None = None,
) -> Iterator[tuple[int, types.TrainState, Metrics]]:
  """Yields (steps taken, state, metrics) after each step.

  A step is one call of `step_fn`: an optimizer step on a batch, or all those
  on a rollout. Its number is passed to the source from the host, so that the
  next batch is prepared while the device still works. `base` goes to `step_fn`
  as it is, see `make_train_step`.

  Raises:
    NumericsError: with `skipped`, after `MAX_SKIPPED` steps in a row whose loss
      or gradient was not finite; the state is the last that was. A step is
      checked when the next has been dispatched.
  """
  skipped, previous = 0, None
  extra = () if base is None else (base,)
  for step in range(start, num_steps + 1):
    current = None
    if step < num_steps:
      state, current = step_fn(state, source(step, state, frozen), *extra)
    if previous is not None:
      worst = processes.whole(previous['train/skipped']).max()
      skipped = skipped + 1 if worst else 0
      if skipped >= MAX_SKIPPED:
        raise errors.NumericsError(
            f'loss or gradient not finite for {skipped} steps in a row, up to '
            f'step {step}; lower the learning rate or check the data',
            skipped=range(step - skipped, step))
    if current is not None:
      yield step + 1, state, current
    previous = current
