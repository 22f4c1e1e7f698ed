"""Tests for rlhf_jax.sharding."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import PartitionSpec
import numpy as np

from rlhf_jax import errors
from rlhf_jax import sharding

PARAMS = {'embed': np.zeros((12, 8)),
          'layers': {'q': {'kernel': np.zeros((2, 8, 6)),
                           'bias': np.zeros((2, 6))}}}


def _specs(tree):
  return {jax.tree_util.keystr(path, simple=True, separator='/'):
          tuple(x.sharding.spec)
          for path, x in jax.tree_util.tree_leaves_with_path(tree)}


class MeshTest(parameterized.TestCase):

  def test_default_is_all_devices(self):
    mesh = sharding.make_mesh()
    self.assertEqual(dict(mesh.shape), {'data': 8})

  def test_named_axes_and_chosen_devices(self):
    mesh = sharding.make_mesh({'data': 4, 'model': 2})
    self.assertEqual(dict(mesh.shape), {'data': 4, 'model': 2})
    devices = jax.devices()[2:5]
    mesh = sharding.make_mesh({'data': 3}, devices)
    self.assertEqual(set(mesh.devices.flat), set(devices))

  @parameterized.parameters(
      ({'data': 4}, 'mesh data 4 = 4 but there are 8 devices'),
      ({'data': 4, 'model': 3}, 'data 4 x model 3 = 12 but there are 8'))
  def test_sizes_must_multiply_to_the_devices(self, shape, message):
    with self.assertRaisesRegex(errors.TopologyError, message):
      sharding.make_mesh(shape)


class ParamsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.mesh = sharding.make_mesh({'data': 4, 'model': 2})

  def test_first_match_wins(self):
    rules = ((r'q/kernel$', PartitionSpec(None, None, 'model')),
             (r'kernel', PartitionSpec(None, 'data')),
             (r'embed', PartitionSpec(('model', 'data')[:1], 'data')),
             (r'.*', PartitionSpec()))
    placed = sharding.shard_params(PARAMS, self.mesh, rules)
    self.assertEqual(_specs(placed), {
        'embed': ('model', 'data'), 'layers/q/bias': (),
        'layers/q/kernel': (None, None, 'model')})
    shard = placed['layers']['q']['kernel'].addressable_shards[0].data
    self.assertEqual(shard.shape, (2, 8, 3))

  def test_default_replicates(self):
    placed = sharding.shard_params(PARAMS, self.mesh)
    for leaf in jax.tree.leaves(placed):
      self.assertTrue(leaf.is_fully_replicated)
      self.assertLen(leaf.sharding.device_set, 8)

  def test_unmatched_leaf_is_named(self):
    with self.assertRaisesRegex(
        errors.TopologyError, r'layers/q/bias \(2, 6\)'):
      sharding.shard_params(PARAMS, self.mesh, (
          (r'kernel', PartitionSpec()), (r'embed', PartitionSpec())))

  def test_indivisible_dimension(self):
    for spec, message in (
        (PartitionSpec(None, None, 'data'), '6 is not divisible by 4'),
        (PartitionSpec(('data', 'model')), '2 is not divisible by 8')):
      with self.assertRaisesRegex(
          errors.TopologyError, rf'layers/q/kernel \(2, 8, 6\) .*{message}'):
        sharding.shard_params(
            PARAMS, self.mesh, ((r'kernel', spec), (r'', PartitionSpec())))


class BatchTest(parameterized.TestCase):

  @parameterized.parameters(0, 1)
  def test_splits_the_prompts(self, axis):
    mesh = sharding.make_mesh()
    shape = (3, 16, 2)[1 - axis:]
    batch = {'a': np.arange(np.prod(shape)).reshape(shape),
             'b': np.zeros(shape[:axis + 1], bool), 'c': None}
    cut = sharding.shard_batch(batch, mesh, axis=axis)
    np.testing.assert_array_equal(cut['a'], batch['a'])
    for leaf in jax.tree.leaves(cut):
      self.assertEqual(leaf.sharding.spec[axis], 'data')
      self.assertEqual(leaf.addressable_shards[0].data.shape[axis], 2)

  def test_indivisible_batch(self):
    with self.assertRaisesRegex(errors.TopologyError,
                                '12 prompts is not divisible by data 8'):
      sharding.shard_batch({'a': np.zeros((12, 2))}, sharding.make_mesh())
    with self.assertRaisesRegex(errors.TopologyError, '3 prompts .* data 8'):
      sharding.shard_batch(np.zeros((8, 3)), sharding.make_mesh(), axis=1)


if __name__ == '__main__':
  absltest.main()
