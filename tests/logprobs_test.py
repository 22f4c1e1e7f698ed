"""Tests for rlhf_jax.ops.logprobs."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import logprobs


def _twin(logits, tokens, temperature):
  """float64 log-probabilities and entropies of [R, T, V], by loops."""
  logits = logits.astype(np.float64) / temperature
  taken, entropy = np.zeros(tokens.shape), np.zeros(tokens.shape)
  for row in range(tokens.shape[0]):
    for t in range(1, tokens.shape[1]):
      probs = np.exp(logits[row, t - 1] - logits[row, t - 1].max())
      probs /= probs.sum()
      taken[row, t] = np.log(probs[tokens[row, t]])
      entropy[row, t] = -np.sum(probs * np.log(probs))
  return taken, entropy


def _inputs(t, seed=0, rows=3, d=4, v=7):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(rows, t, d)).astype(np.float32)
  unembed = rng.normal(size=(v, d)).astype(np.float32)
  return hidden, unembed, rng.integers(0, v, (rows, t))


class LogprobsTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(1.0, 0.7)
  def test_twin(self, temperature):
    hidden, unembed, tokens = _inputs(5)
    logits = hidden @ unembed.T
    taken, entropy = _twin(logits, tokens, temperature)
    for fn, expected in ((logprobs.token_logprobs, taken),
                         (logprobs.token_entropy, entropy)):
      out = self.variant(
          lambda x, y, fn=fn: fn(x, y, temperature=temperature))(
              logits, tokens)
      np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
      np.testing.assert_array_equal(out[:, 0], 0)

  def test_leading_axes(self):
    hidden, unembed, tokens = _inputs(5, rows=6)
    logits = hidden @ unembed.T
    flat = logprobs.token_logprobs(logits, tokens)
    deep = logprobs.token_logprobs(
        logits.reshape(2, 3, 5, 7), tokens.reshape(2, 3, 5))
    chex.assert_trees_all_close(deep.reshape(6, 5), flat, rtol=1e-6)
    one = logprobs.token_logprobs(logits[0], tokens[0])
    chex.assert_trees_all_close(one, flat[0], rtol=1e-6)

  def test_depends_only_on_logits_before(self):
    hidden, unembed, tokens = _inputs(5)
    grad = jax.grad(lambda x: logprobs.token_logprobs(x, tokens)[0, 2])(
        hidden @ unembed.T)
    self.assertEqual(set(map(tuple, np.argwhere(grad)[:, :2])), {(0, 1)})

  def test_upcasts_before_the_softmax(self):
    # 512 equal logits: log 512 = 6.2383, which bfloat16 rounds to 6.25.
    logits = jnp.zeros((2, 512), jnp.bfloat16)
    out = logprobs.token_logprobs(logits, jnp.zeros(2, int))
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, [0, -np.log(512)], rtol=1e-6)

  def test_forbidden_tokens(self):
    # Two of three tokens allowed, equally likely: entropy log 2, finite.
    logits = jnp.array([[0., 0., -jnp.inf]] * 2)
    fn = lambda x: logprobs.token_entropy(x, jnp.zeros(2, int))[1]
    value, grad = jax.value_and_grad(fn)(logits)
    self.assertAlmostEqual(float(value), np.log(2), 6)
    np.testing.assert_allclose(grad, 0, atol=1e-6)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters((1, 4), (2, 4), (5, 4), (6, 4), (9, 4), (9, 1),
                            (9, 100))
  def test_from_hidden_equals_whole(self, t, chunk_size):
    hidden, unembed, tokens = _inputs(t)

    def chunked(hidden, unembed):
      return logprobs.from_hidden(
          hidden, unembed, tokens, temperature=0.7, chunk_size=chunk_size)

    def whole(hidden, unembed):
      logits = hidden @ unembed.T
      return (logprobs.token_logprobs(logits, tokens, temperature=0.7),
              logprobs.token_entropy(logits, tokens, temperature=0.7))

    chex.assert_trees_all_close(
        self.variant(chunked)(hidden, unembed), whole(hidden, unembed),
        rtol=1e-5, atol=1e-5)
    mixed = lambda fn: lambda *x: sum(
        jnp.sum(jnp.sin(i + y)) for i, y in enumerate(fn(*x)))
    grads = [jax.grad(mixed(fn), (0, 1))(hidden, unembed)
             for fn in (chunked, whole)]
    chex.assert_trees_all_close(*grads, rtol=1e-4, atol=1e-5)

  def test_from_hidden_keeps_leading_axes(self):
    hidden, unembed, tokens = _inputs(6, rows=4)
    flat = logprobs.from_hidden(hidden, unembed, tokens, chunk_size=2)
    deep = logprobs.from_hidden(hidden.reshape(2, 2, 6, 4), unembed,
                                tokens.reshape(2, 2, 6), chunk_size=2)
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x.reshape(4, 6), deep), flat, rtol=1e-6)

  def test_from_hidden_never_holds_all_logits(self):
    hidden, unembed, tokens = _inputs(65, rows=2, v=1000)

    def loss(hidden, unembed):
      return logprobs.from_hidden(
          hidden, unembed, tokens, chunk_size=8)[0].sum()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, unembed).compile()
    whole = 2 * 64 * 1000 * 4  # bytes of f32[B, T, V]
    memory = compiled.memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 0.8 * whole)

  def test_from_hidden_in_bfloat16(self):
    hidden, unembed, tokens = _inputs(6)
    low = [x.astype(jnp.bfloat16) for x in (hidden, unembed)]
    for out in logprobs.from_hidden(*low, tokens):
      self.assertEqual(out.dtype, jnp.float32)

  def test_rejects(self):
    hidden, unembed, tokens = _inputs(4)
    with self.assertRaisesRegex(ValueError, 'temperature.*0'):
      logprobs.token_logprobs(hidden, tokens, temperature=0.0)
    with self.assertRaisesRegex(ValueError, 'temperature.*-1'):
      logprobs.from_hidden(hidden, unembed, tokens, temperature=-1.0)
    with self.assertRaisesRegex(ValueError, 'chunk_size.*0'):
      logprobs.from_hidden(hidden, unembed, tokens, chunk_size=0)
    with self.assertRaises(AssertionError):
      logprobs.token_logprobs(hidden, tokens[:, :-1])
    with self.assertRaises(AssertionError):
      logprobs.from_hidden(hidden, unembed[:, :-1], tokens)
    with self.assertRaises(AssertionError):
      logprobs.token_logprobs(hidden, tokens.astype(np.float32))


if __name__ == '__main__':
  absltest.main()
