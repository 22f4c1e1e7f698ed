"""Laws every objective obeys; a new module in objectives/ is found by itself.

A module without an entry in SETTINGS is held to them with its defaults.
"""

import functools
import pkgutil

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from rlhf_jax import objectives
from rlhf_jax import types

B, K, T = 8, 2, 6
# Hyper-parameters that a module needs, or that select another branch of it.
SETTINGS = {
    'sft': [{}, {'aggregate': 'sequence'}],
    'bradley_terry': [{}, {'margin': .1, 'score_l2': .1, 'center_coef': .1}],
    'dpo': [{'beta': .1}, {'beta': .1, 'reference_free': True},
            {'kind': 'ipo', 'tau': .5},
            {'kind': 'ipo', 'tau': .5, 'length_normalize': True}],
    'reinforce': [
        {}, {'aggregate': 'token'}, {'aggregate': 'constant'},
        {'ratio': 'sequence', 'clip_ratio': .2},
        {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'sequence_mean'},
        {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'token'}],
}
TOKEN_ADVANTAGES = ('ppo', 'apa', 'awr')  # [B, K, T]; elsewhere [B, K]
DETACHED = ('ref_logprobs', 'old_logprobs', 'advantages', 'targets', 'returns',
            'old_values', 'scores')
CASES = [
    (f'{module.name}_{i}', module.name, kwargs)
    for module in pkgutil.iter_modules(objectives.__path__)
    for i, kwargs in enumerate(SETTINGS.get(module.name, [{}]))
]


def _example(name, seed=0):
  """Ragged responses; both of the second prompt and one of the third empty."""
  rng = np.random.default_rng(seed)
  f = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  logp = lambda: -jnp.exp(f(B, K, T))
  lengths = rng.integers(1, T, size=(B, K, 1))
  lengths[1], lengths[2, 0] = 0, 0
  start = rng.integers(0, 2, size=(B, K, 1))
  position = np.arange(T)
  mask = jnp.asarray((position >= start) & (position < start + lengths))
  shape = (B, K, T) if name in TOKEN_ADVANTAGES else (B, K)
  out = types.PolicyOutput(logp(), -logp(), f(B, K, T), f(B, K))
  batch = types.Batch(
      tokens=jnp.asarray(rng.integers(0, 9, size=(B, K, T))), mask=mask,
      scores=f(B, K), old_logprobs=out.logprobs + .3 * f(B, K, T),
      ref_logprobs=logp(), old_values=f(B, K, T), rewards=f(B, K, T),
      advantages=f(*shape), returns=f(B, K, T),
      targets=jax.nn.sigmoid(f(B, K)))
  return out, batch


def _fill_padding(tree, mask, value):
  """Overwrites floats at padded tokens, and those of empty responses."""
  def fill(x):
    if x.dtype != jnp.float32:
      return x
    return jnp.where(mask if x.ndim == 3 else mask.any(-1), x, value)
  return jax.tree.map(fill, tree)


def _sums(fn, out, batch):
  """Sums of loss and metrics, and the weight, as the train step takes them."""
  result = fn(out, batch)
  total = lambda x: jnp.sum(
      jnp.where(result.weight > 0, x * result.weight, 0))
  return total(result.loss), jax.tree.map(total, result.metrics), jnp.sum(
      result.weight)


def _value_and_grad(fn, out, batch):
  return jax.value_and_grad(lambda x: _sums(fn, x, batch)[0])(out)


def _loss(fn, out, batch):
  """The scalar that the train step minimises."""
  loss, _, weight = _sums(fn, out, batch)
  return loss / weight


class ContractTest(parameterized.TestCase):

  @parameterized.named_parameters(*CASES)
  def test_units_agree_and_are_float32(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    out, batch = _example(name)
    low = lambda tree: jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, tree)
    for inputs in ((out, batch), (low(out), low(batch))):
      result = fn(*inputs)
      leaves = [result.loss, result.weight, *result.metrics.values()]
      chex.assert_equal_shape(leaves)
      chex.assert_type(leaves, jnp.float32)
      chex.assert_tree_all_finite(result)
    self.assertTrue(set(np.unique(result.weight)) <= {0, 1})
    # bfloat16 inputs differ by 2^-9 relative, accumulation adds nothing.
    np.testing.assert_allclose(
        _loss(fn, low(out), low(batch)), _loss(fn, out, batch), rtol=.1)

  @parameterized.named_parameters(*CASES)
  def test_padding_is_inert(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    out, batch = _example(name)
    results = []
    for junk in (0., jnp.nan, jnp.inf):
      inputs = _fill_padding((out, batch), batch.mask, junk)
      chex.assert_tree_all_finite(fn(*inputs))
      results.append(_value_and_grad(fn, *inputs))
    chex.assert_trees_all_close(*results, rtol=1e-6)

  @parameterized.named_parameters(*CASES)
  def test_gradient_only_under_the_mask(self, name, kwargs):
    out, batch = _example(name)
    _, grads = _value_and_grad(objectives.get(name, **kwargs), out, batch)
    for grad in jax.tree.leaves(grads):
      valid = batch.mask if grad.ndim == 3 else batch.mask.any(-1)
      np.testing.assert_array_equal(grad[~valid], 0)
    self.assertGreater(sum(np.abs(x).sum() for x in jax.tree.leaves(grads)), 0)

  @parameterized.named_parameters(*CASES)
  def test_empty_units_have_no_weight(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    out, batch = _example(name)
    weight = np.asarray(fn(out, batch).weight)
    np.testing.assert_array_equal(weight[1], 0)
    np.testing.assert_array_equal(weight.reshape(B, -1).any(axis=1)[3:], 1)
    empty = batch.replace(mask=jnp.zeros_like(batch.mask))
    value, grads = _value_and_grad(
        fn, jax.tree.map(lambda x: x * jnp.nan, out), empty)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(fn(out, empty).weight, 0)
    for grad in jax.tree.leaves(grads):
      np.testing.assert_array_equal(grad, 0)

  @parameterized.named_parameters(*CASES)
  def test_no_statistic_crosses_prompts(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    inputs = _example(name)
    take = lambda rows: fn(*jax.tree.map(lambda x: x[rows], inputs))
    whole = fn(*inputs)
    parts = [take(slice(i, i + 2)) for i in range(0, B, 2)]
    chex.assert_trees_all_close(
        jax.tree.map(lambda *x: jnp.concatenate(x), *parts), whole, rtol=1e-6)
    order = np.random.default_rng(1).permutation(B)
    chex.assert_trees_all_close(
        take(order), jax.tree.map(lambda x: x[order], whole), rtol=1e-6)

  @parameterized.named_parameters(*CASES)
  def test_detached_inputs_have_no_gradient(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    out, batch = _example(name)
    for field in DETACHED:
      loss = lambda x, field=field: _sums(
          fn, out, batch.replace(**{field: x}))[0]
      grad = jax.grad(loss)(getattr(batch, field))
      np.testing.assert_array_equal(grad, 0, err_msg=field)

  @parameterized.named_parameters(*CASES)
  def test_data_parallel(self, name, kwargs):
    """Loss, metrics and gradient are the same on 1 device, a mesh and pmap."""
    fn = objectives.get(name, **kwargs)
    inputs = _example(name)

    def step(out, batch):
      def loss(out):
        total, *aux = _sums(fn, out, batch)
        return total, aux
      return jax.value_and_grad(loss, has_aux=True)(out)

    (loss, aux), grads = jax.jit(step)(*inputs)
    devices = jax.device_count()
    self.assertEqual(devices, 8)
    mesh = jax.make_mesh((devices,), ('data',), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec('data'))
    sharded = jax.jit(step)(*jax.device_put(inputs, rows))
    cut = jax.tree.map(
        lambda x: x.reshape(devices, -1, *x.shape[1:]), inputs)
    (part, part_aux), part_grads = jax.pmap(step)(*cut)
    mapped = (jax.tree.map(lambda x: x.sum(0), (part, part_aux)),
              jax.tree.map(lambda x, y: x.reshape(y.shape), part_grads, grads))
    for other in (sharded, mapped):
      chex.assert_trees_all_close(
          jax.device_get(other), jax.device_get(((loss, aux), grads)),
          rtol=1e-6, atol=1e-6)


class GetTest(absltest.TestCase):

  def test_binds(self):
    fn = objectives.get('dpo', beta=.5)
    self.assertIsInstance(fn, functools.partial)
    self.assertEqual(fn.keywords, {'beta': .5})

  def test_unknown_name(self):
    with self.assertRaisesRegex(ValueError, "'dpoo'.*dpo, .*sft"):
      objectives.get('dpoo')


if __name__ == '__main__':
  absltest.main()
