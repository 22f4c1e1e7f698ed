"""Laws every objective obeys; `contracts` finds a new one by itself."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import contracts
import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from rlhf_jax import objectives

DETACHED = (
    'ref_logprobs', 'old_logprobs', 'advantages', 'targets', 'returns',
    'rewards', 'old_values', 'scores', 'prompt_values', 'reference_points')


def _valid(x, mask):
  """Where an array of a batch with this mask [B, K, T] is not padding."""
  return {3: mask, 2: mask.any(-1), 1: mask.any((-1, -2))}[x.ndim]


def _fill_padding(tree, mask, value):
  """Overwrites floats at padded tokens, and those of empty responses."""
  def fill(x):
    if x.dtype != jnp.float32:
      return x
    return jnp.where(_valid(x, mask), x, value)
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


class ContractTest(parameterized.TestCase):

  @parameterized.named_parameters(*contracts.CASES)
  def test_units_agree_and_are_float32(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    cast = lambda tree, dtype: jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating)
        else x, tree)
    low = cast(contracts.example(name), jnp.bfloat16)
    results = [fn(*inputs) for inputs in (
        contracts.example(name), low, cast(low, jnp.float32))]
    for result in results:
      leaves = [result.loss, result.weight, *result.metrics.values()]
      chex.assert_equal_shape(leaves)
      chex.assert_type(leaves, jnp.float32)
      chex.assert_tree_all_finite(result)
      self.assertTrue(set(np.unique(result.weight)) <= {0, 1})
    # What is low in precision is made float32 before any arithmetic.
    chex.assert_trees_all_close(*results[1:], rtol=1e-6)

  @parameterized.named_parameters(*contracts.CASES)
  def test_wrong_shapes_and_types_are_errors_at_trace_time(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    out, batch = contracts.example(name)
    trace = lambda out, batch: jax.eval_shape(fn, out, batch)
    trace(out, batch)
    cut = lambda x: x[..., :-1]
    wrong = (AssertionError, ValueError)
    with self.assertRaises(wrong):
      trace(out, batch.replace(mask=batch.mask.astype(jnp.float32)))
    with self.assertRaises(wrong):
      trace(jax.tree.map(cut, out), batch)
    with self.assertRaises(wrong):
      trace(jax.tree.map(lambda x: x.astype(jnp.int32), out), batch)
    with self.assertRaises(wrong):
      trace(jax.tree.map(lambda x: x[:1], out), batch)
    with self.assertRaises(wrong):
      trace(jax.tree.map(lambda x: x[:, 0], out), batch)
    whole = fn(out, batch)
    for field in DETACHED:  # an error, or not read at all
      x = getattr(batch, field)
      for other in (x[:1], x[..., None], x.astype(jnp.int32)):
        try:
          result = fn(out, batch.replace(**{field: other}))
        except wrong:
          continue
        chex.assert_trees_all_equal(result, whole)

  @parameterized.named_parameters(*contracts.CASES)
  def test_bad_hyperparameters_are_named_at_trace_time(self, name, kwargs):
    """None may be NaN or below 0, but for a margin."""
    for argument, value in kwargs.items():
      if not isinstance(value, float | tuple) or argument == 'margin':
        continue
      for bad in (float('nan'), -1.):
        wrong = (bad, bad) if isinstance(value, tuple) else bad
        fn = objectives.get(name, **{**kwargs, argument: wrong})
        with self.assertRaisesRegex(ValueError, f'{argument}.*{bad}'):
          jax.eval_shape(fn, *contracts.example(name))

  @parameterized.named_parameters(*contracts.CASES)
  def test_missing_arrays_are_named(self, name, kwargs):
    """Without a field the loss is as it was, or an error names the field."""
    fn = objectives.get(name, **kwargs)
    out, batch = contracts.example(name)
    whole = fn(out, batch)
    for part, place in ((out, 0), (batch, 1)):
      for field in dataclasses.fields(part):
        if field.name in ('tokens', 'mask'):
          continue
        inputs = [out, batch]
        inputs[place] = part.replace(**{field.name: None})
        try:
          result = fn(*inputs)
        except ValueError as error:
          self.assertIn(field.name, str(error))
        else:
          if (name, field.name) != ('bradley_terry', 'targets'):  # optional
            chex.assert_trees_all_equal(result, whole)

  @chex.variants(with_jit=True, without_jit=True, with_device=True)
  @parameterized.named_parameters(*contracts.CASES)
  def test_variants(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    step = lambda out, batch: _value_and_grad(fn, out, batch)
    chex.assert_trees_all_close(
        self.variant(step)(*contracts.example(name)),
        step(*contracts.example(name)), rtol=1e-6, atol=1e-6)

  @parameterized.named_parameters(*contracts.CASES)
  def test_padding_is_inert(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    out, batch = contracts.example(name)
    results = []
    for junk in (0., jnp.nan, jnp.inf):
      inputs = _fill_padding((out, batch), batch.mask, junk)
      chex.assert_tree_all_finite(fn(*inputs))
      results.append(_value_and_grad(fn, *inputs))
    chex.assert_trees_all_close(*results, rtol=1e-6)

  @parameterized.named_parameters(*contracts.CASES)
  def test_wider_padding_changes_nothing(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    inputs = contracts.example(name)
    wide = jax.tree.map(lambda x: jnp.pad(
        x, ((0, 0), (0, 0), (0, 3))) if x.ndim == 3 else x, inputs)
    cut = lambda x: x[..., :contracts.T] if x.ndim == 3 else x
    chex.assert_trees_all_close(
        jax.tree.map(cut, fn(*wide)), fn(*inputs), rtol=1e-6)

  @parameterized.named_parameters(*contracts.CASES)
  def test_gradient_only_under_the_mask(self, name, kwargs):
    out, batch = contracts.example(name)
    _, grads = _value_and_grad(objectives.get(name, **kwargs), out, batch)
    for grad in jax.tree.leaves(grads):
      np.testing.assert_array_equal(grad[~_valid(grad, batch.mask)], 0)
    self.assertGreater(sum(np.abs(x).sum() for x in jax.tree.leaves(grads)), 0)

  @parameterized.named_parameters(*contracts.CASES)
  def test_empty_units_have_no_weight(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    out, batch = contracts.example(name)
    weight = np.asarray(fn(out, batch).weight)
    np.testing.assert_array_equal(weight[1], 0)
    np.testing.assert_array_equal(
        weight.reshape(contracts.B, -1).any(axis=1)[3:], 1)
    empty = batch.replace(mask=jnp.zeros_like(batch.mask))
    value, grads = _value_and_grad(
        fn, jax.tree.map(lambda x: x * jnp.nan, out), empty)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(fn(out, empty).weight, 0)
    for grad in jax.tree.leaves(grads):
      np.testing.assert_array_equal(grad, 0)

  @parameterized.named_parameters(*contracts.CASES)
  def test_no_statistic_crosses_prompts(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    inputs = contracts.example(name)
    take = lambda rows: fn(*jax.tree.map(lambda x: x[rows], inputs))
    whole = fn(*inputs)
    parts = [take(slice(i, i + 2)) for i in range(0, contracts.B, 2)]
    chex.assert_trees_all_close(
        jax.tree.map(lambda *x: jnp.concatenate(x), *parts), whole, rtol=1e-6)
    order = np.random.default_rng(1).permutation(contracts.B)
    chex.assert_trees_all_close(
        take(order), jax.tree.map(lambda x: x[order], whole), rtol=1e-6)

  @parameterized.named_parameters(*contracts.CASES)
  def test_detached_inputs_have_no_gradient(self, name, kwargs):
    fn = objectives.get(name, **kwargs)
    out, batch = contracts.example(name)
    for field in DETACHED:
      loss = lambda x, field=field: _sums(
          fn, out, batch.replace(**{field: x}))[0]
      grad = jax.grad(loss)(getattr(batch, field))
      np.testing.assert_array_equal(grad, 0, err_msg=field)

  @parameterized.named_parameters(*contracts.CASES)
  def test_data_parallel(self, name, kwargs):
    """Loss, metrics and gradient are the same on 1 device, a mesh and pmap."""
    fn = objectives.get(name, **kwargs)
    inputs = contracts.example(name)

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
