"""Tests for rlhf_jax.models.transformer."""

import functools
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import decoder_twin
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes

B, T, V = 3, 7, 13
# Every family, and every flag at least once.
SHAPES = {
    'llama': ('llama', dict(num_heads=4, num_kv_heads=2)),
    'llama_tied': ('llama', dict(
        tie_embeddings=True, head_size=6,
        rope_scaling=dict(kind='linear', factor=2.5))),
    # Of the four frequencies one stays, one is between, two are divided.
    'llama3': ('llama', dict(rope_theta=100., rope_scaling=dict(
        kind='llama3', factor=8., original_length=40))),
    'mistral': ('mistral', dict(num_kv_heads=1, windows=(3, 3))),
    'qwen2': ('qwen2', dict(num_heads=4, num_kv_heads=2)),
    'qwen3': ('qwen3', dict(num_kv_heads=1, head_size=10)),
    'gpt2': ('gpt2', dict(max_positions=T)),
    'gpt2_by_depth': ('gpt2', dict(max_positions=9, scale_by_depth=True)),
    'gpt_neo': ('gpt_neo', dict(max_positions=T, windows=(0, 2))),
    'gptj': ('gptj', {}),
    'gpt_neox': ('gpt_neox', {}),
    'dolly': ('gpt_neox', dict(residual='sequential', rotary_fraction=.5)),
    # Of no family; the flags are independent of each other.
    'relu': ('gpt2', dict(max_positions=T, activation='relu',
                          attention_bias=False, attention_scale=.2,
                          tie_embeddings=False, norm_epsilon=.1)),
    'mixed': ('llama', dict(norm='layer', activation='gelu_new',
                            residual='parallel', mlp_bias=True,
                            output_bias=True, unembed_bias=True,
                            windows=(2, 0), scale_by_depth=True)),
}


@functools.cache
def _config(name, **kwargs):
  family, shape = SHAPES[name]
  return transformer.make_config(family, **(dict(
      vocab_size=V, hidden_size=16, num_layers=2, num_heads=2,
      intermediate_size=24) | shape | kwargs))


@functools.cache
def _params(config):
  """Not fresh ones, where biases are 0 and scales 1."""
  shapes = jax.eval_shape(
      functools.partial(transformer.init, config), jax.random.key(0))
  rng = np.random.default_rng(1)

  def leaf(path, x):
    mean = 1. if path[-1].key == 'scale' else 0.
    return jnp.asarray(mean + .35 * rng.normal(size=x.shape), x.dtype)
  return jax.tree_util.tree_map_with_path(leaf, shapes)


def _tokens(seed=0, shape=(B, T)):
  return np.random.default_rng(seed).integers(0, V, size=shape, dtype=np.int32)


def _padded(tokens, lengths, left):
  """Rows of which `lengths` tokens stay, among noise: tokens, mask."""
  noise, mask = _tokens(5, tokens.shape), np.zeros(tokens.shape, bool)
  for i, (n, at_left) in enumerate(zip(lengths, left, strict=True)):
    at = slice(T - n, T) if at_left else slice(n)
    noise[i, at], mask[i, at] = tokens[i, :n], True
  return noise, mask


_logits = jax.jit(transformer.logits, static_argnums=0)
_hidden = jax.jit(transformer.hidden_states, static_argnums=0)
_extend = jax.jit(transformer.extend, static_argnums=0)


class ForwardTest(parameterized.TestCase):

  def test_every_family_is_looked_at(self):
    self.assertEqual({family for family, _ in SHAPES.values()},
                     set(transformer.config_lib.FAMILIES))

  @parameterized.parameters(*SHAPES)
  def test_equals_numpy(self, name):
    """Whole, padded on the left and on the right, in one batch."""
    config, params, tokens = _config(name), _params(_config(name)), _tokens()
    lengths = [T, 5, 1]
    padded, mask = _padded(tokens, lengths, left=[False, True, False])
    logits = _logits(config, params, padded, mask)
    chex.assert_tree_all_finite(logits)
    for i, n in enumerate(lengths):
      np.testing.assert_allclose(
          logits[i][mask[i]], decoder_twin.logits(
              config, params, tokens[i, :n]), rtol=1e-4, atol=1e-4)

  @parameterized.parameters('llama', 'gpt_neo', 'gptj', 'mixed')
  def test_without_mask_is_causal(self, name):
    config, tokens = _config(name), _tokens()
    hidden = lambda *x: _hidden(config, _params(config), *x)
    whole = hidden(tokens)
    np.testing.assert_allclose(
        whole, hidden(tokens, np.ones((B, T), bool)), atol=1e-5)
    for t in (1, 4, T - 1):
      other = tokens.copy()
      other[:, t:] = (other[:, t:] + 1) % V
      changed = np.abs(hidden(other) - whole)
      np.testing.assert_allclose(changed[:, :t], 0, atol=1e-6)
      self.assertGreater(changed[:, t].max(-1).min(), 1e-3)

  def test_positions_count_what_is_not_padding(self):
    mask = np.array([[0, 0, 1, 1], [1, 1, 0, 0]], bool)
    positions, _ = transformer._layout(np.zeros((2, 4), np.int32), mask)
    np.testing.assert_array_equal(positions, [[0, 0, 0, 1], [0, 1, 1, 1]])

  def test_rejects_rows_beyond_the_table(self):
    config = _config('gpt2')
    with self.assertRaisesRegex(
        ValueError, '8 tokens exceed the gpt2 .*max_positions 7'):
      transformer.logits(config, _params(config), np.zeros((1, 8), np.int32))

  @parameterized.parameters('llama', 'gptj')
  def test_bfloat16_gives_float32_logits(self, name):
    config, tokens = _config(name), _tokens()
    low = _config(name, dtype='bfloat16')
    self.assertEqual(_hidden(low, _params(config), tokens).dtype, jnp.bfloat16)
    mask = np.ones((B, T), bool)
    logits = _logits(low, _params(config), tokens, mask)
    self.assertEqual(logits.dtype, jnp.float32)
    exact = _logits(config, _params(config), tokens, mask)
    self.assertLess(np.abs(logits - exact).max(), .05 * np.abs(exact).max())
    self.assertGreater(np.abs(logits - exact).max(), 0)

  @parameterized.parameters('qwen2', 'gpt_neo', 'gptj', 'mixed')
  def test_forms_of_one_cpu_change_no_gradient(self, name):
    config, tokens = _config(name), np.arange(B * T).reshape(B, T) % V

    def gradients(one_cpu):
      with mock.patch.object(meshes, 'on_one_cpu', lambda: one_cpu):
        return jax.jit(jax.grad(lambda p: jnp.mean(jax.nn.log_softmax(
            transformer.logits(config, p, tokens))[:, :, 3])))(_params(config))

    jax.tree.map(functools.partial(
        np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
                 gradients(True), gradients(False))

  @parameterized.parameters(
      (dict(data=1), 'none'), (dict(data=1), 'full'), (dict(fsdp=8), 'none'),
      (dict(tensor=2), 'none'))
  def test_forms_by_devices(self, axes, remat):
    config, number = _config('qwen2', remat=remat), math.prod(axes.values())
    with jax.set_mesh(meshes.make(axes, jax.devices()[:number])):
      text = jax.jit(functools.partial(transformer.logits, config)).lower(
          transformer.abstract(config), jax.ShapeDtypeStruct(
              (8, T), jnp.int32)).as_text()
    self.assertEqual('stablehlo.while' in text, number > 1 or remat != 'none')
    self.assertEqual(f'tensor<{8 * T}x16xf32>' in text, number == 1)

  def test_remat_recomputes_and_changes_nothing(self):
    config, tokens = _config('llama'), _tokens()
    results = []
    for remat in transformer.config_lib.REMATS:
      other = _config('llama', remat=remat)
      loss = lambda p, other=other: jnp.sum(
          jnp.sin(transformer.logits(other, p, tokens)))
      grad = jax.jit(jax.grad(loss))
      self.assertEqual(remat != 'none', 'remat' in str(
          grad.trace(_params(config)).jaxpr))
      results.append(grad(_params(config)))
    for other in results[1:]:
      chex.assert_trees_all_close(results[0], other, rtol=1e-4, atol=1e-4)


class PartsTest(parameterized.TestCase):
  """Other ways through the same layers."""

  # In 'mixed' every layer has a window and a scale of its own.
  @parameterized.product(name=('llama', 'gpt_neox', 'mixed'),
                         num_layers=(1, 2))
  def test_query_is_one_position_of_all(self, name, num_layers):
    windows = SHAPES[name][1].get('windows', ())[:num_layers]
    config = _config(name, num_layers=num_layers, windows=windows)
    params, tokens = _params(config), _tokens()
    attention_mask = None
    if num_layers == 2:
      tokens, attention_mask = _padded(tokens, [4, T, 5], [True, False, False])
    every = _hidden(config, params, tokens, attention_mask)
    for query in ([3, 0, 2], [T - 1, T - 1, 4]):
      one = _hidden(config, params, tokens, attention_mask,
                    query=np.array(query))
      self.assertEqual(one.shape, (B, 1, config.hidden_size))
      np.testing.assert_allclose(
          one[:, 0], every[np.arange(B), query], atol=1e-5)

  @parameterized.parameters((1, None), (2, None), (1, [6, 2, 4]),
                            (2, [6, 2, 4]))
  def test_top_layers_come_after_layers(self, at, query):
    config = _config('mixed', num_layers=3, windows=(2, 0, 3))
    params, tokens = _params(config), _tokens()
    split = params | {
        'layers': jax.tree.map(lambda x: x[:at], params['layers']),
        'top_layers': jax.tree.map(lambda x: x[at:], params['layers'])}
    whole = _hidden(config, params, tokens)
    if query is not None:
      query = np.array(query)
      whole = np.take_along_axis(whole, query[:, None, None], axis=1)
    np.testing.assert_allclose(
        _hidden(config, split, tokens, query=query), whole, atol=1e-5)
    cut = transformer.unstack(config, split)
    for i, layer in enumerate(transformer.unstack(config, params)):
      chex.assert_trees_all_equal(cut[i], layer)

  @parameterized.parameters('llama', 'gpt2_by_depth', 'gpt_neo', 'mixed')
  def test_cached_chunks_equal_the_whole(self, name):
    """Two slots are empty, as between a short prompt and its response."""
    config, tokens = _config(name), _tokens()
    params, slots = _params(config), T + 3
    expected = _hidden(config, params, tokens)
    cache = transformer.make_cache(config, B, slots)
    chex.assert_shape(jax.tree.leaves(cache),
                      (B, config.num_kv_heads, slots, config.head_size))
    # What is not yet written must not be seen.
    cache = jax.tree.map(lambda x: x + 7, cache)
    layers = transformer.unstack(config, params) if name == 'llama' else None
    slot_of = np.array([0, 1, 2, 5, 6, 7, 8])  # of each token
    held = np.full((B, slots), 3)
    held[:, slot_of] = np.arange(T)
    parts, start = [], 0
    for size in (3, 1, 1, 2):
      at = np.arange(start, start + size)
      seen = np.isin(np.arange(slots), slot_of)
      mask = seen & (np.arange(slots) <= slot_of[at][:, None])
      hidden, cache = _extend(
          config, params, tokens[:, at], np.broadcast_to(at, (B, size)),
          mask[None], cache, slot_of[start], layers=layers,
          key_positions=held)
      parts.append(transformer.finish(config, params, hidden))
      start += size
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1), expected, atol=1e-5)


class DropoutTest(absltest.TestCase):

  def test_only_where_a_key_is_given(self):
    config, tokens = _config('gpt2', dropout=.3), _tokens()
    hidden = lambda *args, **kwargs: np.asarray(_hidden(
        *args, _params(config), tokens, **kwargs))
    none = hidden(config)
    np.testing.assert_allclose(none, hidden(_config('gpt2')), atol=1e-6)
    one, same, other = (
        hidden(config, dropout_key=jax.random.key(s)) for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    self.assertGreater(np.abs(one - other).max(), .1)
    self.assertGreater(np.abs(one - none).max(), .1)
    last = {'query': np.array([6, 2, 4])}
    read = hidden(config, dropout_key=jax.random.key(0), **last)
    self.assertEqual(read.shape, (B, 1, 16))
    self.assertGreater(np.abs(read - hidden(config, **last)).max(), .1)

  def test_a_rate_of_zero_costs_nothing(self):
    config, tokens = _config('gpt2'), _tokens()
    program = lambda **kwargs: str(jax.make_jaxpr(functools.partial(
        transformer.hidden_states, config, **kwargs))(
            _params(config), tokens))
    self.assertNotIn('bernoulli', program(dropout_key=jax.random.key(0)))
    self.assertIn('bernoulli', str(jax.make_jaxpr(functools.partial(
        transformer.hidden_states, _config('gpt2', dropout=.1),
        dropout_key=jax.random.key(0)))(_params(config), tokens)))

  def test_mean_stays_and_every_place_has_its_own_mask(self):
    """Where o and down add 1 and nothing is normalised away.

    Then the last state before the norm is a sum of five dropped ones, and
    with equal terms its variance tells whether they are dropped together.
    """
    rate, size = .5, 256
    config = transformer.make_config(
        'gpt2', vocab_size=2, hidden_size=size, num_layers=2, num_heads=1,
        intermediate_size=4, max_positions=64, dropout=rate)
    params = jax.tree.map(jnp.zeros_like, jax.jit(
        transformer.init, static_argnums=0)(config, jax.random.key(0)))
    params['embed'] += 1.
    for name in ('o', 'down'):
      params['layers'][name]['bias'] += 1.
    with mock.patch.object(transformer, 'finish', lambda c, p, x: x):
      actual = np.asarray(transformer.hidden_states(
          config, params, np.zeros((8, 64), np.int32),
          dropout_key=jax.random.key(3)))
    # Each of five terms is 0 or 2, a variance of 1: 5 if they are apart, 25
    # if they are the same, 9 or more if layers share masks. 131,072 sums.
    self.assertAlmostEqual(actual.mean(), 5, delta=.05)
    self.assertAlmostEqual(actual.var(), 5, delta=.15)
    self.assertAlmostEqual(actual.mean(axis=(0, 1)).std(), 0, delta=.15)


class RotateTest(absltest.TestCase):

  def test_depends_on_distance_alone(self):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32)
            for _ in range(2))
    f = 1e4 ** -jnp.arange(0, 1, .25)
    turn = lambda x, p: transformer.rotate(x, jnp.full((1, 1), p), f)
    dot = lambda a, b: float(jnp.sum(turn(q, a) * turn(k, b)))
    self.assertAlmostEqual(dot(9, 4), dot(105, 100), delta=1e-4)
    self.assertNotAlmostEqual(dot(9, 4), dot(9, 3), delta=1e-2)

  def test_by_hand_and_rest_untouched(self):
    x = jnp.arange(1., 7).reshape(1, 1, 1, 6)
    out = transformer.rotate(x, jnp.full((1, 1), 2), jnp.array([1., .1]))[
        0, 0, 0]
    a, b = 2., 2 / 10  # theta^0 and theta^(-2/4) times the position
    np.testing.assert_allclose(out, [
        math.cos(a) - 3 * math.sin(a), 2 * math.cos(b) - 4 * math.sin(b),
        3 * math.cos(a) + math.sin(a), 4 * math.cos(b) + 2 * math.sin(b),
        5, 6], rtol=1e-6)

  def test_angles_are_float32(self):
    x = jnp.ones((1, 1, 1, 4))
    turn = lambda x: transformer.rotate(
        x, jnp.full((1, 1), 4099), jnp.array([1., .01]))
    low = turn(x.astype(jnp.bfloat16))
    self.assertEqual(low.dtype, jnp.bfloat16)
    np.testing.assert_allclose(low.astype('f'), turn(x), atol=.01)


class ParamsTest(parameterized.TestCase):

  def test_shapes(self):
    for name in SHAPES:
      config = _config(name)
      params = jax.eval_shape(functools.partial(transformer.init, config),
                              jax.random.key(0))
      chex.assert_type(jax.tree.leaves(params), jnp.float32)
      for entry, present in (
          ('unembed', not config.tie_embeddings),
          ('unembed_bias', config.unembed_bias),
          ('positions', config.max_positions is not None)):
        self.assertEqual(entry in params, present, (name, entry))
      layer = params['layers']
      for leaf in jax.tree.leaves(layer):
        self.assertEqual(leaf.shape[0], config.num_layers)
      for entry, present in (
          ('q', config.attention_bias), ('k', config.attention_bias),
          ('v', config.attention_bias), ('o', config.output_bias),
          ('up', config.mlp_bias), ('down', config.mlp_bias)):
        self.assertEqual('bias' in layer[entry], present, (name, entry))
      self.assertEqual('mlp_norm' in layer, config.residual != 'shared')
      self.assertEqual(
          layer['k']['kernel'].shape,
          (2, 16, config.num_kv_heads * config.head_size))
      self.assertEqual(jax.eval_shape(
          transformer.unembedding, params).shape, (V, 16))

  def test_layers_and_keys_differ(self):
    make = jax.jit(functools.partial(transformer.init, _config('llama')))
    one, same, other = (make(jax.random.key(s)) for s in (0, 0, 1))
    chex.assert_trees_all_equal(one, same)
    kernel = one['layers']['q']['kernel']
    self.assertGreater(np.abs(kernel[0] - kernel[1]).max(), .1)
    self.assertGreater(np.abs(one['embed'] - other['embed']).max(), .1)
    self.assertGreater(np.abs(one['embed'] - one['unembed']).max(), .1)


if __name__ == '__main__':
  absltest.main()
