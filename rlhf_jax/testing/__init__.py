"""What every objective is held to, for those of the package and a user's own.

  import functools
  from rlhf_jax import testing

  testing.check_objective(functools.partial(mine.objective, beta=0.1))

An objective is a function (PolicyOutput, Batch) -> LossOutput, see `types`.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import types

B, T = 8, 7  # prompts and tokens of `example`
# Fields of a batch that no gradient may reach.
DETACHED = (
    'ref_logprobs', 'old_logprobs', 'advantages', 'targets', 'returns',
    'rewards', 'old_values', 'scores', 'prompt_values', 'reference_points')
Objective = Callable[[types.PolicyOutput, types.Batch], types.LossOutput]
Example = tuple[types.PolicyOutput, types.Batch]


def example(*, responses: int = 2, token_advantages: bool = False,
            seed: int = 0) -> Example:
  """A batch of `B` prompts, padded to `T` tokens, with every field.

  Responses are ragged; those of the second prompt and one of the third are
  empty.

  Args:
    responses: K, to each prompt.
    token_advantages: whether advantages are [B, K, T], or [B, K].
    seed: of the numbers.
  """
  K, rng = responses, np.random.default_rng(seed)
  f = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  logp = lambda: -jnp.exp(f(B, K, T))
  lengths = rng.integers(1, T, size=(B, K, 1))
  # The last response is missing, so that those before it still rank.
  lengths[1], lengths[2, -1] = 0, 0
  start = rng.integers(1, 3, size=(B, K, 1))  # t = 0 is never a target
  position = np.arange(T)
  mask = jnp.asarray((position >= start) & (position < start + lengths))
  heads = lambda make: (make(), make())
  logprobs = logp()
  out = types.PolicyOutput(
      logprobs=logprobs, entropy=-logp(), values=f(B, K, T),
      step_rewards=f(B, K, T), scores=f(B, K),
      q_values=heads(lambda: f(B, K, T)), q_logprobs=heads(logp),
      target_q_values=heads(lambda: f(B, K, T)))
  batch = types.Batch(
      tokens=jnp.asarray(rng.integers(0, 9, size=(B, K, T))), mask=mask,
      scores=f(B, K), old_logprobs=logprobs + .3 * f(B, K, T),
      ref_logprobs=logp(), old_values=f(B, K, T), prompt_values=f(B),
      rewards=f(B, K, T),
      advantages=f(B, K, T) if token_advantages else f(B, K),
      returns=f(B, K, T), targets=jax.nn.sigmoid(f(B, K)),
      reference_points=jnp.abs(f(B, K)))
  return out, batch


def check_objective(objective: Objective, *, responses: int = 2,
                    token_advantages: bool = False):
  """Holds an objective to all of `LAWS`.

  Args:
    objective: with its hyper-parameters bound.
    responses: K that it takes.
    token_advantages: see `example`.

  Raises:
    AssertionError: the law that it breaks, and how.
  """
  for name, law in LAWS.items():
    try:
      law(objective, example(responses=responses,
                             token_advantages=token_advantages))
    except AssertionError as error:
      raise AssertionError(
          f'{" ".join((law.__doc__ or name).split())} '
          f'({name}): {error}') from error


def sums(objective: Objective, out: types.PolicyOutput, batch: types.Batch
         ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
  """Sums of loss and metrics, and the weight, as a train step takes them."""
  result = objective(out, batch)
  total = lambda x: jnp.sum(
      jnp.where(result.weight > 0, x * result.weight, 0))
  return total(result.loss), jax.tree.map(total, result.metrics), jnp.sum(
      result.weight)


def value_and_grad(objective: Objective, out: types.PolicyOutput,
                   batch: types.Batch):
  """The sum of the loss, and its gradient by everything in `out`."""
  return jax.value_and_grad(lambda x: sums(objective, x, batch)[0])(out)


def _valid(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Where an array of a batch with this mask [B, K, T] is not padding."""
  return {3: mask, 2: mask.any(-1), 1: mask.any((-1, -2))}[x.ndim]


def _fill_padding(tree, mask, value):
  """Overwrites floats at padded tokens, and those of empty responses."""
  def fill(x):
    if x.dtype != jnp.float32:
      return x
    return jnp.where(_valid(x, mask), x, value)
  return jax.tree.map(fill, tree)


def _units(objective: Objective, inputs: Example):
  """Loss, weight and metrics are finite float32 arrays of one unit shape."""
  cast = lambda tree, dtype: jax.tree.map(
      lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating)
      else x, tree)
  low = cast(inputs, jnp.bfloat16)
  results = [objective(*x) for x in (inputs, low, cast(low, jnp.float32))]
  for result in results:
    try:
      types.check_units(result, inputs[1])
    except ValueError as error:
      raise AssertionError(str(error)) from error
    leaves = [result.loss, result.weight, *result.metrics.values()]
    chex.assert_equal_shape(leaves)
    chex.assert_type(leaves, jnp.float32)
    chex.assert_tree_all_finite(result)
    assert set(np.unique(result.weight)) <= {0, 1}, 'a weight is 0 or 1'
  # What is low in precision is made float32 before any arithmetic.
  chex.assert_trees_all_close(*results[1:], rtol=1e-6)


def _padding(objective: Objective, inputs: Example):
  """Padding changes nothing, even where it holds NaN."""
  results = []
  for junk in (0., jnp.nan, jnp.inf):
    filled = _fill_padding(inputs, inputs[1].mask, junk)
    chex.assert_tree_all_finite(objective(*filled))
    results.append(value_and_grad(objective, *filled))
  chex.assert_trees_all_close(*results, rtol=1e-6)


def _width(objective: Objective, inputs: Example):
  """Wider padding changes nothing."""
  wide = jax.tree.map(lambda x: jnp.pad(
      x, ((0, 0), (0, 0), (0, 3))) if x.ndim == 3 else x, inputs)
  cut = lambda x: x[..., :T] if x.ndim == 3 else x
  chex.assert_trees_all_close(
      jax.tree.map(cut, objective(*wide)), objective(*inputs), rtol=1e-6)


def _gradient(objective: Objective, inputs: Example):
  """There is a gradient, and only under the mask."""
  _, grads = value_and_grad(objective, *inputs)
  for grad in jax.tree.leaves(grads):
    np.testing.assert_array_equal(grad[~_valid(grad, inputs[1].mask)], 0)
  assert sum(np.abs(x).sum() for x in jax.tree.leaves(grads)) > 0, (
      'no gradient reaches the policy')


def _empty(objective: Objective, inputs: Example):
  """Units without a response weigh nothing, and others 1 somewhere."""
  out, batch = inputs
  weight = np.asarray(objective(out, batch).weight)
  np.testing.assert_array_equal(weight[1], 0)
  np.testing.assert_array_equal(weight.reshape(B, -1).max(axis=1)[3:], 1)
  empty = batch.replace(mask=jnp.zeros_like(batch.mask))
  value, grads = value_and_grad(
      objective, jax.tree.map(lambda x: x * jnp.nan, out), empty)
  assert value == 0, f'a batch without a response has the loss {value}'
  np.testing.assert_array_equal(objective(out, empty).weight, 0)
  for grad in jax.tree.leaves(grads):
    np.testing.assert_array_equal(grad, 0)


def _prompts(objective: Objective, inputs: Example):
  """No statistic crosses prompts: a batch is the sum of its parts."""
  take = lambda rows: objective(*jax.tree.map(lambda x: x[rows], inputs))
  whole = objective(*inputs)
  parts = [take(slice(i, i + 2)) for i in range(0, B, 2)]
  chex.assert_trees_all_close(
      jax.tree.map(lambda *x: jnp.concatenate(x), *parts), whole, rtol=1e-6)
  order = np.random.default_rng(1).permutation(B)
  chex.assert_trees_all_close(
      take(order), jax.tree.map(lambda x: x[order], whole), rtol=1e-6)


def _detached(objective: Objective, inputs: Example):
  """No gradient reaches what the batch holds."""
  out, batch = inputs
  grads = jax.grad(lambda fields: sums(
      objective, out, batch.replace(**fields))[0])(
          {field: getattr(batch, field) for field in DETACHED})
  for field, grad in grads.items():
    np.testing.assert_array_equal(grad, 0, err_msg=field)


def _jit(objective: Objective, inputs: Example):
  """It is the same under jit."""
  step = lambda *x: value_and_grad(objective, *x)
  chex.assert_trees_all_close(
      jax.jit(step)(*inputs), step(*inputs), rtol=1e-6, atol=1e-6)


LAWS = {'units': _units, 'padding': _padding, 'width': _width,
        'gradient': _gradient, 'empty': _empty, 'prompts': _prompts,
        'detached': _detached, 'jit': _jit}
