"""Tests for rlhf_jax.models.transformer."""

import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import transformer

B, T, V = 3, 7, 13
SHAPES = {
    'llama': ('llama', dict(num_heads=4)),
    'grouped': ('llama', dict(num_heads=4, num_kv_heads=2)),
    'tied': ('llama', dict(num_heads=2, tie_embeddings=True)),
    'gpt_neox': ('gpt_neox', dict(num_heads=2)),
}


@functools.cache
def _config(name, **kwargs):
  family, shape = SHAPES[name]
  return transformer.make_config(family, **(dict(
      vocab_size=V, hidden_size=16, num_layers=2, intermediate_size=24)
      | shape | kwargs))


@functools.cache
def _params(config):
  """Not fresh ones, where biases are 0 and scales 1."""
  params = jax.jit(transformer.init, static_argnums=0)(
      config, jax.random.key(0))
  rng = np.random.default_rng(1)
  return jax.tree.map(
      lambda x: x + np.float32(.2) * rng.normal(size=x.shape).astype('f'),
      params)


def _tokens(seed=0, shape=(B, T)):
  return np.random.default_rng(seed).integers(0, V, size=shape, dtype=np.int32)


_logits = jax.jit(transformer.logits, static_argnums=0)
_hidden = jax.jit(transformer.hidden_states, static_argnums=0)
_extend = jax.jit(transformer.extend, static_argnums=0)


def _reference(config, params, tokens):
  """Logits f64[T, V] of one row in NumPy, head by head, token by token."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  size, eps = config.hidden_size // config.num_heads, config.norm_epsilon
  turned = int(size * config.rotary_fraction)
  group = config.num_heads // (config.num_kv_heads or config.num_heads)

  def norm(x, w):
    if config.norm == 'rms':
      return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w['scale']
    x = x - x.mean(-1, keepdims=True)
    return (x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w['scale']
            + w['bias'])

  def rope(x, position):  # pairs (i, i + turned / 2) as complex numbers
    half = turned // 2
    z = x[:half] + 1j * x[half:turned]
    angle = position * config.rope_theta ** (-2 * np.arange(half) / turned)
    z = z * np.exp(1j * angle)
    return np.concatenate([z.real, z.imag, x[turned:]])

  def layer(x, w):
    dense = lambda y, n: y @ w[n]['kernel'] + w[n].get('bias', 0)
    y = norm(x, w['attention_norm'])
    q, k, v = (dense(y, n).reshape(len(x), -1, size) for n in 'qkv')
    out = np.zeros((len(x), config.num_heads, size))
    for t in range(len(x)):
      for n in range(config.num_heads):
        m = n // group
        scores = np.array([rope(q[t, n], t) @ rope(k[s, m], s)
                           for s in range(t + 1)]) / math.sqrt(size)
        weights = np.exp(scores - scores.max())
        out[t, n] = weights / weights.sum() @ v[:t + 1, m]
    attended = dense(out.reshape(len(x), -1), 'o')
    y = norm(x if config.parallel_residual else x + attended, w['mlp_norm'])
    if config.mlp == 'swiglu':
      gate = dense(y, 'gate')
      y = dense(gate / (1 + np.exp(-gate)) * dense(y, 'up'), 'down')
    else:
      u = dense(y, 'up')
      y = dense(u / 2 * (1 + np.vectorize(math.erf)(u / math.sqrt(2))), 'down')
    return x + attended + y

  x = p['embed'][tokens]
  for i in range(config.num_layers):
    x = layer(x, jax.tree.map(lambda w, i=i: w[i], p['layers']))
  out = p['embed' if config.tie_embeddings else 'unembed']
  return norm(x, p['norm']) @ out.T


class ForwardTest(parameterized.TestCase):

  @parameterized.parameters(*SHAPES)
  def test_equals_numpy(self, name):
    config, tokens = _config(name), _tokens()
    expected = [_reference(config, _params(config), row) for row in tokens]
    logits = _logits(config, _params(config), tokens)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(*SHAPES)
  def test_causal(self, name):
    config, tokens = _config(name), _tokens()
    whole = _logits(config, _params(config), tokens)
    for t in (1, 4, T - 1):
      other = tokens.copy()
      other[:, t:] = (other[:, t:] + 1) % V
      changed = np.abs(_logits(config, _params(config), other) - whole)
      np.testing.assert_allclose(changed[:, :t], 0, atol=1e-6)
      self.assertGreater(changed[:, t:].max(-1).min(), 1e-3)

  @parameterized.parameters(*SHAPES)
  def test_padding_is_inert(self, name):
    config, tokens = _config(name), _tokens()
    lengths = np.array([4, 7, 1])
    for left in (False, True):
      padded, mask = _tokens(seed=5), np.zeros((B, T), bool)
      at = [slice(T - n, T) if left else slice(n) for n in lengths]
      for i, n in enumerate(lengths):
        padded[i, at[i]], mask[i, at[i]] = tokens[i, :n], True
      logits = _logits(config, _params(config), padded, mask)
      chex.assert_tree_all_finite(logits)
      plain = _logits(config, _params(config), padded)
      for i, n in enumerate(lengths):
        expected = _logits(config, _params(config), tokens)[i, :n]
        np.testing.assert_allclose(logits[i, at[i]], expected, atol=1e-5)
        if not left:  # causality alone hides it
          np.testing.assert_allclose(plain[i, :n], expected, atol=1e-5)

  def test_positions_count_what_is_not_padding(self):
    mask = np.array([[0, 0, 1, 1], [1, 1, 0, 0]], bool)
    positions, _ = transformer._layout(np.zeros((2, 4), np.int32), mask)
    np.testing.assert_array_equal(positions, [[0, 0, 0, 1], [0, 1, 1, 1]])

  @parameterized.product(name=('grouped', 'gpt_neox'), num_layers=(1, 2))
  def test_query_is_one_position_of_all(self, name, num_layers):
    config = _config(name, num_layers=num_layers)
    tokens, mask = _tokens(), np.ones((B, T), bool)
    mask[0, :3] = mask[2, 5:] = False  # padded left, and right
    for attention_mask in (None, mask)[2 - num_layers:]:
      for query in ([3, 0, 2], [T - 1, T - 1, 4]):
        every = _hidden(config, _params(config), tokens, attention_mask)
        one = _hidden(config, _params(config), tokens, attention_mask,
                      query=np.array(query))
        self.assertEqual(one.shape, (B, 1, config.hidden_size))
        np.testing.assert_allclose(
            one[:, 0], every[np.arange(B), query], atol=1e-5)

  @parameterized.parameters('grouped', 'gpt_neox')
  def test_cached_chunks_equal_the_whole(self, name):
    config, tokens, slots = _config(name), _tokens(), T + 3
    params = _params(config)
    expected = _hidden(config, params, tokens)
    cache = transformer.make_cache(config, B, slots)
    chex.assert_shape(jax.tree.leaves(cache),
                      (B, slots, config.kv_heads, config.head_size))
    # What is not yet written must not be seen.
    cache = jax.tree.map(lambda x: x + 7, cache)
    if name == 'grouped':
      params = params | {'layers': transformer.unstack(config, params)}
    parts, start = [], 0
    for size in (3, 1, 1, 2):
      at = np.arange(start, start + size)
      mask = np.arange(slots) <= at[:, None]
      hidden, cache = _extend(
          config, params, tokens[:, at], np.broadcast_to(at, (B, size)),
          mask[None], cache, start)
      parts.append(transformer.finish(config, params, hidden))
      start += size
    np.testing.assert_allclose(
        np.concatenate(parts, axis=1), expected, atol=1e-5)

  def test_remat_recomputes_and_changes_nothing(self):
    config, tokens = _config('grouped'), _tokens()
    results = []
    for remat in (False, True):
      other = _config('grouped', remat=remat)
      loss = lambda p, other=other: jnp.sum(
          jnp.sin(transformer.logits(other, p, tokens)))
      grad = jax.jit(jax.grad(loss))
      self.assertEqual(remat, 'remat' in str(
          grad.trace(_params(config)).jaxpr))
      results.append(grad(_params(config)))
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-4)

  @parameterized.parameters('grouped', 'gpt_neox')
  def test_bfloat16_gives_float32_logits(self, name):
    config, tokens = _config(name), _tokens()
    low = _config(name, dtype='bfloat16')
    self.assertEqual(_hidden(low, _params(config), tokens).dtype, jnp.bfloat16)
    logits = _logits(low, _params(config), tokens)
    self.assertEqual(logits.dtype, jnp.float32)
    exact = _logits(config, _params(config), tokens)
    self.assertLess(np.abs(logits - exact).max(), .05 * np.abs(exact).max())
    self.assertGreater(np.abs(logits - exact).max(), 0)


class RotateTest(absltest.TestCase):

  def test_depends_on_distance_alone(self):
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32)
            for _ in range(2))
    turn = lambda x, p: transformer.rotate(x, jnp.full((1, 1), p), 1e4, 8)
    dot = lambda a, b: float(jnp.sum(turn(q, a) * turn(k, b)))
    self.assertAlmostEqual(dot(9, 4), dot(105, 100), delta=1e-4)
    self.assertNotAlmostEqual(dot(9, 4), dot(9, 3), delta=1e-2)

  def test_by_hand_and_rest_untouched(self):
    x = jnp.arange(1., 7).reshape(1, 1, 1, 6)
    out = transformer.rotate(x, jnp.full((1, 1), 2), 100., 4)[0, 0, 0]
    a, b = 2., 2 / 10  # theta^0 and theta^(-2/4) times the position
    np.testing.assert_allclose(out, [
        math.cos(a) - 3 * math.sin(a), 2 * math.cos(b) - 4 * math.sin(b),
        3 * math.cos(a) + math.sin(a), 4 * math.cos(b) + 2 * math.sin(b),
        5, 6], rtol=1e-6)

  def test_angles_are_float32(self):
    x = jnp.ones((1, 1, 1, 4))
    turn = lambda x: transformer.rotate(x, jnp.full((1, 1), 4099), 1e4, 4)
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
      self.assertEqual('unembed' in params, not config.tie_embeddings)
      for leaf in jax.tree.leaves(params['layers']):
        self.assertEqual(leaf.shape[0], config.num_layers)
      layer = params['layers']
      self.assertEqual('bias' in layer['up'], name == 'gpt_neox')
      self.assertEqual(layer['k']['kernel'].shape,
                       (2, 16, 8 if name == 'grouped' else 16))
      self.assertEqual(transformer.unembedding(params).shape, (V, 16))

  def test_layers_and_keys_differ(self):
    make = jax.jit(functools.partial(transformer.init, _config('llama')))
    one, same, other = (make(jax.random.key(s)) for s in (0, 0, 1))
    chex.assert_trees_all_equal(one, same)
    kernel = one['layers']['q']['kernel']
    self.assertGreater(np.abs(kernel[0] - kernel[1]).max(), .1)
    self.assertGreater(np.abs(one['embed'] - other['embed']).max(), .1)
    self.assertGreater(np.abs(one['embed'] - one['unembed']).max(), .1)

  def test_make_config(self):
    kwargs = dict(vocab_size=5, hidden_size=8, num_layers=1, num_heads=1)
    config = transformer.make_config('gpt_neox', **kwargs)
    self.assertEqual(config.intermediate_size, 32)
    self.assertEqual(config.rotary_size, 2)
    self.assertTrue(config.parallel_residual)
    config = transformer.make_config('gpt_neox', rotary_fraction=1., **kwargs)
    self.assertEqual(config.rotary_size, 8)
    self.assertEqual(hash(config), hash(
        transformer.make_config('gpt_neox', rotary_fraction=1., **kwargs)))
    with self.assertRaisesRegex(ValueError, "family .*gpt_neox.*'gpt5'"):
      transformer.make_config('gpt5', **kwargs)

  @parameterized.parameters(
      ('vocab_size must be >= 1, got 0', dict(vocab_size=0)),
      ('num_layers must be >= 1, got -1', dict(num_layers=-1)),
      ('intermediate_size must be >= 1, got 0', dict(intermediate_size=0)),
      ('hidden_size 16 .* num_heads 3', dict(num_heads=3)),
      ('num_heads 4 .* num_kv_heads 3', dict(num_heads=4, num_kv_heads=3)),
      ('rotary_fraction 0.25 rotates 1 of 4',
       dict(num_heads=4, rotary_fraction=.25)),
      ("norm must be .*'rms', 'layer'.*got 'batch'", dict(norm='batch')),
      ("mlp must be .*'swiglu', 'gelu'.*got 'relu'", dict(mlp='relu')),
  )
  def test_rejects(self, message, kwargs):
    with self.assertRaisesRegex(ValueError, message):
      _config('llama', **kwargs)


if __name__ == '__main__':
  absltest.main()
