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
      ({'data': -1}, {'data': 8}),
      ({'data': -1, 'model': 2}, {'data': 4, 'model': 2}),
      ({'data': 8, 'model': -1}, {'data': 8, 'model': 1}))
  def test_what_is_left(self, shape, sizes):
    before = dict(shape)
    self.assertEqual(dict(sharding.make_mesh(shape).shape), sizes)
    self.assertEqual(shape, before)  # a config's own

  @parameterized.parameters(
      ({'data': 4}, 'mesh data 4 = 4 but there are 8 devices'),
      ({'data': 4, 'model': 3}, 'data 4 x model 3 = 12 but there are 8'),
      ({'data': -1, 'model': 3}, 'data -1 x model 3 = 3 but there are 8'),
      ({'data': -1, 'model': -1}, 'data -1 x model -1 = 1 but there are 8'),
      ({'data': 16}, 'data 16 = 16 but'), ({'data': 0}, 'data 0 = 0 but'),
      ({'data': -1, 'model': 0}, 'data -1 x model 0 = 0 but there are 8'))
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


class ChunksTest(parameterized.TestCase):

  @parameterized.parameters(
      # Rows, of a chunk at most, devices: each chunk, and how many count.
      (5, 2, 1, [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]),
      (5, 3, 1, [([0, 1, 2], 3), ([3, 4, 3], 2)]),
      (4, 2, 1, [([0, 1], 2), ([2, 3], 2)]),
      (3, 99, 1, [([0, 1, 2], 3)]),
      (1, 4, 4, [([0, 0, 0, 0], 1)]),
      (7, 3, 4, [([0, 1, 2, 3], 4), ([4, 5, 6, 4], 3)]),
      (5, 99, 4, [([0, 1, 2, 3, 4, 0, 1, 2], 5)]))
  def test_by_hand(self, count, size, devices, expected):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    for where in (mesh,) if devices > 1 else (mesh, None):
      self.assertEqual([(rows.tolist(), number) for rows, number
                        in sharding.chunks(count, size, where)], expected)

  @parameterized.parameters(*range(1, 10))
  def test_every_row_counts_once_and_all_chunks_are_of_one_size(self, size):
    for mesh in (None, sharding.make_mesh({'data': 4, 'model': 2})):
      chunks = list(sharding.chunks(13, size, mesh))
      self.assertEqual(
          [i for rows, number in chunks for i in rows[:number]],
          list(range(13)))
      length, = {len(rows) for rows, _ in chunks}
      self.assertEqual(length % (1 if mesh is None else 4), 0)
      self.assertTrue(all(1 <= number <= length for _, number in chunks))

  @parameterized.parameters(0, -1)
  def test_size_below_one(self, size):
    with self.assertRaisesRegex(
        ValueError, f'^chunk_size must be >= 1, got {size}.$'):
      list(sharding.chunks(5, size))
    with self.assertRaisesRegex(ValueError, 'chunk_size must be >= 1'):
      sharding.map_rows(lambda x: x, np.ones(5), mesh=None, chunk_size=size)


class MapRowsTest(parameterized.TestCase):

  @parameterized.product(size=(1, 3, 4, 13, 99), on_mesh=(False, True))
  def test_results_of_all_rows_in_order(self, size, on_mesh):
    x, y = np.arange(26.).reshape(13, 2), np.arange(13)
    mesh = sharding.make_mesh() if on_mesh else None

    @jax.jit
    def function(a, b):
      return {'sum': a.sum(axis=1) + b, 'both': (a * 2, b)}

    out = sharding.map_rows(function, x, y, mesh=mesh, chunk_size=size)
    np.testing.assert_array_equal(out['sum'], x.sum(axis=1) + y)
    np.testing.assert_array_equal(out['both'][0], 2 * x)
    np.testing.assert_array_equal(out['both'][1], y)
    for leaf in jax.tree.leaves(out):
      self.assertIsInstance(leaf, np.ndarray)

  def test_polls_before_every_chunk(self):
    events = []

    def function(x):
      events.append(x.tolist())
      return x

    sharding.map_rows(function, np.arange(5), mesh=None, chunk_size=2,
                      poll=lambda: events.append('poll'))
    self.assertEqual(
        events, ['poll', [0, 1], 'poll', [2, 3], 'poll', [4, 4]])

  def test_a_poll_may_stop(self):
    seen = []

    def poll():
      if len(seen) == 2:
        raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      sharding.map_rows(lambda x: seen.append(x) or x, np.arange(9),
                        mesh=None, chunk_size=2, poll=poll)
    self.assertLen(seen, 2)

  def test_rows_of_a_chunk_are_split_over_the_mesh(self):
    placed = []

    def function(x):
      placed.append((x.shape, x.sharding.spec, len(x.sharding.device_set)))
      return x

    out = sharding.map_rows(
        function, np.arange(11), mesh=sharding.make_mesh(), chunk_size=6)
    np.testing.assert_array_equal(out, np.arange(11))
    self.assertEqual(placed, [((8,), PartitionSpec('data'), 8)] * 2)

  def test_one_program(self):
    shapes = []

    @jax.jit
    def function(x):
      shapes.append(x.shape)  # when it is traced
      return x

    sharding.map_rows(function, np.arange(11), mesh=None, chunk_size=4)
    self.assertEqual(shapes, [(4,)])


if __name__ == '__main__':
  absltest.main()
