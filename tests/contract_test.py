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

from rlhf_jax import objectives
from rlhf_jax import testing


class ContractTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (f'{case}_{law}', name, kwargs, law)
      for case, name, kwargs in contracts.CASES for law in testing.LAWS)
  def test_law(self, name, kwargs, law):
    testing.LAWS[law](
        objectives.get(name, **kwargs), contracts.example(name))

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
    for field in testing.DETACHED:  # an error, or not read at all
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
    step = lambda out, batch: testing.value_and_grad(fn, out, batch)
    chex.assert_trees_all_close(
        self.variant(step)(*contracts.example(name)),
        step(*contracts.example(name)), rtol=1e-6, atol=1e-6)

  @parameterized.named_parameters(
      *(case for case in contracts.CASES if case[0].endswith('_0')))
  def test_data_parallel(self, name, kwargs):
    """Loss, metrics and gradient are the same on 1 device, a mesh and pmap.

    One setting of each: all are held to the law `prompts`, by which rows may
    be anywhere.
    """
    fn = objectives.get(name, **kwargs)
    inputs = contracts.example(name)

    def step(out, batch):
      def loss(out):
        total, *aux = testing.sums(fn, out, batch)
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
