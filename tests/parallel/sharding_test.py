"""Tests for rlhf_jax.parallel.sharding: where each array lies."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax.sharding import PartitionSpec
import numpy as np
import optax
import worlds

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.models import heads
from rlhf_jax.models import lora
from rlhf_jax.models import quantize
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding
from rlhf_jax.rewards import models as reward_models

FAMILIES = ('gpt2', 'gpt_neo', 'gptj', 'gpt_neox', 'llama', 'qwen2', 'qwen3',
            'mistral')


def config(family='llama', **kwargs):
  return transformer.make_config(family, **{
      'vocab_size': 24, 'hidden_size': 32, 'num_layers': 2, 'num_heads': 4,
      'intermediate_size': 64} | kwargs)


def specs(tree, mesh, **kwargs):
  return {sharding.path_of(path): tuple(x.spec) for path, x in
          jax.tree_util.tree_leaves_with_path(
              sharding.shardings(tree, mesh, **kwargs))}


class RulesTest(parameterized.TestCase):

  @parameterized.parameters(*FAMILIES)
  def test_every_leaf_of_every_family_has_a_place(self, family):
    """And its moments the same one; no kernel is on every device."""
    params = transformer.abstract(config(family))
    params |= {'value_head': jax.eval_shape(lambda: heads.init_scalar(
        jax.random.key(0), 32, mlp=True)), 'value_trunk': heads.trunk(params)}
    tx = train.optimizer(learning_rate=1., num_steps=9)
    state = jax.eval_shape(
        lambda p: train.init_state(p, tx, jax.random.key(0)), params)
    mesh = meshes.make({'fsdp': 2, 'tensor': 4})
    places = specs(state, mesh)
    for name, spec in places.items():
      if name.startswith('params/'):
        leaf = name.removeprefix('params/')
        for moment in ('mu', 'nu'):
          where, = (other for path, other in places.items()
                    if path.endswith(f'/{moment}/{leaf}'))
          self.assertEqual(where, spec)
      if name.endswith('kernel'):
        self.assertIn('fsdp', spec, name)
        self.assertIn('tensor', spec, name)
      if name.endswith('embed'):
        self.assertEqual(spec, (None, 'fsdp'))

  def test_by_hand(self):
    mesh = meshes.make({'fsdp': 2, 'tensor': 4})
    self.assertEqual(specs(transformer.abstract(config('gpt_neox')), mesh), {
        'embed': (None, 'fsdp'), 'unembed': (None, 'fsdp'),
        'norm/scale': (), 'norm/bias': (),
        **{f'layers/{name}_norm/{x}': () for name in ('attention', 'mlp')
           for x in ('scale', 'bias')},
        **{f'layers/{x}/kernel': (None, 'fsdp', 'tensor')
           for x in ('q', 'k', 'v', 'up')},
        **{f'layers/{x}/bias': (None, 'tensor') for x in ('q', 'k', 'v', 'up')},
        **{f'layers/{x}/kernel': (None, 'tensor', 'fsdp')
           for x in ('o', 'down')},
        **{f'layers/{x}/bias': () for x in ('o', 'down')}})

  def test_adapters_quantised_bases_and_heads(self):
    mesh = meshes.make({'fsdp': 2, 'tensor': 4})
    shaped = config(hidden_size=128, intermediate_size=256)
    params = jax.eval_shape(
        lambda: quantize.quantize_params(transformer.init(
            shaped, jax.random.key(0))))
    adapter = jax.eval_shape(lambda: lora.init(
        shaped, transformer.abstract(shaped), jax.random.key(0), rank=2,
        alpha=2.)[1])
    tree = {**params, 'adapter': adapter, 'q_heads': jax.eval_shape(
        lambda: heads.init_q(jax.random.key(0), 128, 24, mlp=True)),
            'head': jax.eval_shape(lambda: heads.init_prompt_value(
                jax.random.key(0), 128))}
    places = specs(tree, mesh)
    for name, spec in {
        'layers/q/kernel/codes': (None, 'fsdp'),
        'layers/q/kernel/absmax': (None, 'fsdp'),
        'layers/q/kernel/scale': (), 'layers/q/kernel/offset': (),
        'adapter/layers/up/a': (None, 'fsdp'),
        'adapter/layers/up/b': (None, None, 'tensor'),
        'adapter/layers/down/a': (None, 'tensor'),
        'adapter/layers/down/b': (None, None, 'fsdp'),
        'q_heads/0/weight': (None, 'fsdp'), 'q_heads/1/bias': (),
        'q_heads/1/features/kernel': ('fsdp', 'tensor'),
        'head/query': (), 'head/attention/key/kernel': (),
        'head/scalar/weight': ('tensor',)}.items():
      self.assertEqual(places[name], spec, name)

  def test_members(self):
    """Split over their axis where it divides them; one model is no ensemble."""
    params = jax.eval_shape(lambda: reward_models.init_members(
        config(), jax.random.split(jax.random.key(0), 4)))
    mesh = meshes.make({'member': 2, 'fsdp': 2, 'tensor': 2})
    places = specs(params, mesh, members=4)
    self.assertEqual(
        places['trunk/layers/q/kernel'], ('member', None, 'fsdp', 'tensor'))
    self.assertEqual(places['head/bias'], ('member',))
    self.assertEqual(places['trunk/embed'], ('member', None, 'fsdp'))
    one = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype), params)
    self.assertEqual(specs(one, mesh, members=1)['trunk/embed'],
                     (None, None, 'fsdp'))
    self.assertEqual((meshes.row_parts(mesh), meshes.row_parts(
        mesh, members=4)), (4, 2))
    with self.assertRaisesRegex(
        errors.TopologyError, '3 members are not divisible by member 2'):
      meshes.row_parts(mesh, members=3)

  @parameterized.parameters(
      ({'new': {'part': np.zeros((4, 4))}}, 'no sharding rule .* new/part'),
      ({'q': {'kernel': np.zeros(4)}}, r'no sharding rule .* q/kernel \(4,\)'),
      ({'q': {'kernel': np.zeros((2, 6, 7))}},
       r'q/kernel \(2, 6, 7\) cannot be split: 7 is not divisible by tensor 4'),
      ({'embed': np.zeros((6, 3))}, r'embed \(6, 3\) .*: 3 is .* fsdp 2'))
  def test_what_has_no_place(self, params, message):
    with self.assertRaisesRegex(errors.TopologyError, message):
      sharding.shardings(
          params, meshes.make({'fsdp': 2, 'tensor': 4}))


class PlacesTest(parameterized.TestCase):

  def test_without_a_mesh_nothing_moves(self):
    x = jax.numpy.ones(3)
    self.assertIs(sharding.keep_rows(x), x)
    self.assertIs(sharding.whole(x), x)
    self.assertIs(sharding.keep({'any': x})['any'], x)
    self.assertIs(sharding.shard_batch({'any': x})['any'], x)
    self.assertIs(sharding.abstract({'any': x})['any'], x)

  def test_parameters_are_placed_once(self):
    params = transformer.init(config(), jax.random.key(0))
    with worlds.devices(8, fsdp=4):
      placed = sharding.shard_params(params)
      again = sharding.shard_params(placed)
    for before, one, two in zip(*map(
        jax.tree.leaves, (params, placed, again)), strict=True):
      np.testing.assert_array_equal(one, before)
      self.assertEqual([x.data.unsafe_buffer_pointer()
                        for x in one.addressable_shards],
                       [x.data.unsafe_buffer_pointer()
                        for x in two.addressable_shards])
    kernel = placed['layers']['up']['kernel']
    self.assertEqual(kernel.addressable_shards[0].data.shape, (2, 8, 64))

  def test_a_state_is_born_in_its_place_and_stays_there(self):
    params = transformer.init(config(), jax.random.key(0))
    tx = optax.adam(1e-3)
    with worlds.devices(8, fsdp=2, tensor=2):
      state = train.place_state(params, tx, jax.random.key(1))
      mesh = jax.sharding.get_mesh()
      where = sharding.shardings(state, mesh)
      self.assertTrue(all(jax.tree.leaves(jax.tree.map(
          lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, where))))
      kept = jax.jit(lambda s: sharding.keep(
          jax.tree.map(lambda x: x, s)))(state)
      jax.tree.map(lambda x, s: self.assertTrue(
          x.sharding.is_equivalent_to(s, x.ndim)), kept, where)

  @parameterized.parameters(1, 8)
  def test_what_is_born_again_is_not_traced_again(self, num_devices):
    sizes = []
    def make(size, x):
      sizes.append(size)
      return {'norm/scale': x * size}
    with worlds.devices(num_devices):
      for size in (3, 3, 5):
        out = sharding.born(make, np.ones(8), static=(size,))
        np.testing.assert_array_equal(out['norm/scale'], np.full(8, size))
    self.assertEqual(sizes, [3, 5])

  @parameterized.parameters(0, 2)
  def test_rows_of_a_batch(self, members):
    lead = (members,) * bool(members)
    size = (*lead, 16, 3)
    batch = {'a': np.arange(np.prod(size)).reshape(size),
             'b': np.zeros((*lead, 16), bool), 'c': None}
    with worlds.devices(8, member=2, fsdp=2):
      cut = sharding.shard_batch(batch, members=members)
      np.testing.assert_array_equal(cut['a'], batch['a'])
      for leaf in jax.tree.leaves(cut):
        part = leaf.addressable_shards[0].data.shape
        self.assertEqual(part[:2] if members else part[:1],
                         (1, 4) if members else (2,))
      with self.assertRaisesRegex(
          errors.TopologyError, '12 prompts is not divisible by member 2 x '
          'data 2 x fsdp 2'):
        sharding.shard_batch(np.zeros((12, 2)))

  def test_rows_that_fill_up(self):
    batch = {'a': np.ones((5, 2)), 'b': np.ones((5,), bool)}
    out = sharding.pad_rows(batch, 4)
    self.assertEqual(out['a'].shape, (8, 2))
    self.assertEqual(out['b'].tolist(), [True] * 5 + [False] * 3)
    self.assertIs(sharding.pad_rows(batch, 5)['a'], batch['a'])
    self.assertEqual(
        sharding.pad_rows(np.ones((2, 5)), 3, axis=1).shape, (2, 6))


class ChunksTest(parameterized.TestCase):

  @parameterized.parameters(
      # Rows, of a chunk at most, parts: each chunk, and how many count.
      (5, 2, 1, [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]),
      (5, 3, 1, [([0, 1, 2], 3), ([3, 4, 3], 2)]),
      (4, 2, 1, [([0, 1], 2), ([2, 3], 2)]),
      (3, 99, 1, [([0, 1, 2], 3)]),
      (1, 4, 4, [([0, 0, 0, 0], 1)]),
      (7, 3, 4, [([0, 1, 2, 3], 4), ([4, 5, 6, 4], 3)]),
      (5, 99, 4, [([0, 1, 2, 3, 4, 0, 1, 2], 5)]))
  def test_by_hand(self, count, size, parts, expected):
    self.assertEqual([(rows.tolist(), number) for rows, number
                      in sharding.chunks(count, size, parts)], expected)

  @parameterized.parameters(*range(1, 10))
  def test_every_row_counts_once_and_all_chunks_are_of_one_size(self, size):
    for parts in (1, 4):
      chunks = list(sharding.chunks(13, size, parts))
      self.assertEqual(
          [i for rows, number in chunks for i in rows[:number]],
          list(range(13)))
      length, = {len(rows) for rows, _ in chunks}
      self.assertEqual(length % parts, 0)
      self.assertTrue(all(1 <= number <= length for _, number in chunks))

  @parameterized.parameters(0, -1)
  def test_size_below_one(self, size):
    with self.assertRaisesRegex(
        ValueError, f'^chunk_size must be >= 1, got {size}.$'):
      list(sharding.chunks(5, size))
    with self.assertRaisesRegex(ValueError, 'chunk_size must be >= 1'):
      sharding.map_rows(lambda x: x, np.ones(5), chunk_size=size)


class MapRowsTest(parameterized.TestCase):

  @parameterized.product(size=(1, 3, 4, 13, 99), devices=(1, 8))
  def test_results_of_all_rows_in_order(self, size, devices):
    x, y = np.arange(26.).reshape(13, 2), np.arange(13)

    @jax.jit
    def function(a, b):
      return {'sum': a.sum(axis=1) + b, 'both': (a * 2, b)}

    with worlds.devices(devices):
      out = sharding.map_rows(function, x, y, chunk_size=size)
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

    sharding.map_rows(function, np.arange(5), chunk_size=2,
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
                        chunk_size=2, poll=poll)
    self.assertLen(seen, 2)

  def test_rows_of_a_chunk_are_split_over_the_mesh(self):
    placed = []

    def function(x):
      placed.append((x.shape, x.sharding.spec, len(x.sharding.device_set)))
      return x

    with worlds.devices(8, fsdp=2):
      out = sharding.map_rows(function, np.arange(11), chunk_size=6)
    np.testing.assert_array_equal(out, np.arange(11))
    self.assertEqual(
        placed, [((8,), PartitionSpec(meshes.ROWS), 8)] * 2)

  def test_one_program(self):
    shapes = []

    @jax.jit
    def function(x):
      shapes.append(x.shape)  # when it is traced
      return x

    sharding.map_rows(function, np.arange(11), chunk_size=4)
    self.assertEqual(shapes, [(4,)])


class MapMembersTest(absltest.TestCase):

  def test_on_one_cpu_one_after_the_other(self):
    """The same numbers, by a loop in place of larger products."""
    function = lambda tree, x: {'y': tree['w'] @ x, 'w': 2 * tree['w']}
    rng = np.random.default_rng(0)
    args = ({'w': rng.normal(size=(3, 4, 4)).astype(np.float32)},
            rng.normal(size=(3, 4)).astype(np.float32))

    def mapped():  # made anew, or jit would return what it has
      run = jax.jit(lambda *args: sharding.map_members(function, 3)(*args))
      return run.lower(*args).as_text(), run(*args)

    with jax.set_mesh(worlds.mesh()):
      alone, ours = mapped()
    beside, vmapped = mapped()
    self.assertIn('stablehlo.while', alone)
    self.assertNotIn('stablehlo.while', beside)
    chex.assert_trees_all_close(ours, vmapped, rtol=1e-6)
    np.testing.assert_allclose(
        ours['y'], np.einsum('eij,ej->ei', args[0]['w'], args[1]), rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
