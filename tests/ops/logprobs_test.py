"""Tests for rlhf_jax.ops.logprobs."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.ops import logprobs

ROWS, T, D, V = 2, 4, 3, 7

# Whole programs compile faster than their operations one by one.
_from_hidden = jax.jit(logprobs.from_hidden, static_argnames=(
    'temperature', 'chunk_size'))
_token_logprobs = jax.jit(logprobs.token_logprobs)


def _reference(hidden, unembed, tokens, temperature):
  """float64 statistics [3, R, T], token by token."""
  out = np.zeros((3, *tokens.shape))
  for row, t in np.ndindex(tokens.shape[0], tokens.shape[1] - 1):
    logits = unembed.astype(np.float64) @ hidden[row, t].astype(np.float64)
    probs = np.exp((logits - logits.max()) / temperature)
    probs /= probs.sum()
    token = tokens[row, t + 1]
    out[:, row, t + 1] = (
        np.log(probs[token]), -np.sum(probs * np.log(probs)), logits[token])
  return out


def _inputs(seed=0, rows=ROWS, t=T, d=D, v=V):
  rng = np.random.default_rng(seed)
  hidden = rng.normal(size=(rows, t, d)).astype(np.float32)
  unembed = rng.normal(size=(v, d)).astype(np.float32)
  return hidden, unembed, rng.integers(0, v, (rows, t))


def _from_logits(hidden, unembed, tokens, temperature=1., chunk_size=None):
  """The same statistics by the functions that take whole logits."""
  del chunk_size
  logits = hidden @ unembed.T
  taken = jnp.take_along_axis(logits[:, :-1], tokens[:, 1:, None], -1)[..., 0]
  return (logprobs.token_logprobs(logits, tokens, temperature=temperature),
          logprobs.token_entropy(logits, tokens, temperature=temperature),
          jnp.pad(taken, ((0, 0), (1, 0))))


def _split(x):
  """(hidden, unembed) out of one flat array."""
  cut = ROWS * T * D
  return x[:cut].reshape(ROWS, T, D), x[cut:].reshape(V, D)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _mixture(x, inputs, chunk_size, temperature):
  """Weighs every statistic of every token."""
  tokens, weights = inputs
  fn = _from_logits if chunk_size is None else logprobs.from_hidden
  out = fn(*_split(x), tokens, temperature=temperature, chunk_size=chunk_size)
  return jnp.sum(weights * jnp.stack(out))


def _sizes(jaxpr):
  """Elements of every float32 array inside, sub-programs included."""
  for eqn in jaxpr.eqns:
    for var in eqn.outvars:
      if var.aval.dtype == jnp.float32:
        yield var.aval.size
  for inner in core.subjaxprs(jaxpr):
    yield from _sizes(inner)


class LogprobsTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.product(chunk_size=(1, 2, 3, 9))
  def test_by_hand(self, chunk_size):
    # Weights 1, 2, 5 of 8: log(5 / 8); entropy (log 8 + 2 log 4 +
    # 5 log(8 / 5)) / 8. At temperature 1/2 weights 1, 4, 25 of 30: log(25 /
    # 30) and (log 30 + 4 log(30 / 4) + 25 log(30 / 25)) / 30; the logit stays.
    unembed = np.log(np.float32([[1], [2], [5]]))
    hidden, tokens = np.ones((1, 2, 1), np.float32), np.array([[0, 2]])
    for temperature, expected in ((1., (-.470004, .900256)),
                                  (.5, (-.182322, .533962))):
      out = self.variant(functools.partial(
          logprobs.from_hidden, temperature=temperature,
          chunk_size=chunk_size))(hidden, unembed, tokens)
      np.testing.assert_allclose(
          jnp.stack(out), [[[0, x]] for x in (*expected, np.log(5))],
          atol=1e-6)
      whole = self.variant(functools.partial(
          logprobs.token_logprobs, temperature=temperature))(
              hidden @ unembed.T, tokens)
      np.testing.assert_allclose(whole, [[0, expected[0]]], atol=1e-6)

  # None: from whole logits. 3 and 5 leave a ragged last chunk, 4 cuts 7 into
  # 4 and 3, 7 and 100 are one chunk.
  @parameterized.product(
      chunk_size=(None, 1, 3, 4, 5, 7, 100), temperature=(.7,))
  @twin.few
  @twin.randomised
  def test_twin(self, chunk_size, temperature, seed):
    hidden, unembed, tokens = _inputs(seed)
    weights = np.random.default_rng(seed).normal(
        size=(3, ROWS, T)).astype(np.float32)
    twin.assert_equal(
        lambda x: _mixture(x, (tokens, weights), chunk_size, temperature),
        lambda x: np.sum(weights * _reference(
            *_split(x), tokens, temperature)),
        np.concatenate([hidden.ravel(), unembed.ravel()]))

  # A bias is one more column of the unembedding, of which the state is 1.
  @parameterized.parameters(1, 3, 4, 5, 7)
  def test_bias(self, chunk_size):
    hidden, unembed, tokens = _inputs()
    bias = np.linspace(-2, 3, V, dtype=np.float32)
    weights = np.random.default_rng(1).normal(size=(3, ROWS, T))

    def loss(hidden, unembed, bias, chunk_size):
      out = jnp.stack(logprobs.from_hidden(
          hidden, unembed, tokens, bias=bias, temperature=.7,
          chunk_size=chunk_size))
      return jnp.sum(weights * out), out

    fn = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True),
                 static_argnums=3)
    (_, out), grads = fn(hidden, unembed, bias, chunk_size)
    wide = np.concatenate([hidden, np.ones((ROWS, T, 1), 'f')], axis=-1)
    matrix = np.concatenate([unembed, bias[:, None]], axis=-1)
    np.testing.assert_allclose(
        out, _reference(wide, matrix, tokens, .7), atol=1e-5)
    self.assertGreater(np.abs(
        out - _reference(hidden, unembed, tokens, .7)).max(), .5)
    for x, y in zip(grads, fn(hidden, unembed, bias, V)[1], strict=True):
      np.testing.assert_allclose(x, y, atol=1e-5)
    # In float64, by central differences.
    total = lambda b: np.sum(weights * _reference(wide, np.concatenate(
        [unembed, b[:, None]], axis=-1).astype('d'), tokens, .7))
    step = 1e-4 * np.eye(V)
    slope = [(total(bias + s) - total(bias - s)) / 2e-4 for s in step]
    np.testing.assert_allclose(grads[2], slope, atol=1e-4)

  def test_bias_in_bfloat16_is_added_in_float32(self):
    # 1 + 2^-9 has no bfloat16; the logit is 0 + bias.
    hidden, tokens = jnp.zeros((2, 1), jnp.bfloat16), jnp.array([0, 1])
    for chunk_size in (1, 2):
      out = _from_hidden(hidden, jnp.ones((2, 1), jnp.bfloat16), tokens,
                         bias=jnp.array([0., 1 + 2**-9]),
                         chunk_size=chunk_size)
      self.assertEqual(out.logits[1], 1 + 2**-9)

  @parameterized.parameters(1, 5)
  def test_short_rows(self, t):
    inputs = _inputs(t=t)
    out = _from_hidden(*inputs, chunk_size=4)
    np.testing.assert_allclose(
        jnp.stack(out), _reference(*inputs, 1.), atol=1e-5)
    np.testing.assert_array_equal(jnp.stack(out)[..., 0], 0)

  def test_leading_axes(self):
    hidden, unembed, tokens = _inputs(rows=6)
    fold = lambda x: x.reshape(2, 3, *x.shape[1:])
    for fn in (
        lambda h, t: jnp.stack(_from_hidden(
            h, unembed, t, chunk_size=3)),
        lambda h, t: _token_logprobs(h @ unembed.T, t)[None]):
      flat = fn(hidden, tokens)
      np.testing.assert_allclose(
          fn(fold(hidden), fold(tokens)).reshape(flat.shape), flat, rtol=1e-6)
      np.testing.assert_allclose(
          fn(hidden[0], tokens[0]), flat[:, 0], rtol=1e-5)

  def test_depends_only_on_logits_before(self):
    hidden, unembed, tokens = _inputs()
    grad = jax.jit(jax.grad(lambda x: _token_logprobs(x, tokens)[0, 2]))(
        hidden @ unembed.T)
    self.assertEqual(set(map(tuple, np.argwhere(grad)[:, :2])), {(0, 1)})

  def test_upcasts_before_the_softmax(self):
    # 512 equal logits: log 512 = 6.2383, which bfloat16 rounds to 6.25.
    logits = jnp.zeros((2, 512), jnp.bfloat16)
    out = _token_logprobs(logits, jnp.zeros(2, int))
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, [0, -np.log(512)], rtol=1e-6)

  def test_forbidden_tokens(self):
    # Two of three tokens allowed, equally likely: entropy log 2, finite.
    logits = jnp.array([[0., 0., -jnp.inf]] * 2)
    fn = lambda x: logprobs.token_entropy(x, jnp.zeros(2, int))[1]
    value, grad = jax.jit(jax.value_and_grad(fn))(logits)
    self.assertAlmostEqual(float(value), np.log(2), 6)
    np.testing.assert_allclose(grad, 0, atol=1e-6)

  def test_forbidden_tokens_in_chunks(self):
    # 10 * -3e38 is -inf: all of the first chunk and half of the last; the
    # three others are equally likely.
    unembed = np.float32([[-3e38], [-3e38], [0], [0], [0], [-3e38]])
    hidden, tokens = np.full((1, 2, 1), 10, np.float32), np.array([[0, 3]])
    fn = lambda *x: sum(y[0, 1] for y in _from_hidden(
        *x, tokens, chunk_size=2)[:2])
    value, grads = jax.value_and_grad(fn, (0, 1))(hidden, unembed)
    self.assertAlmostEqual(float(value), -np.log(3) + np.log(3), 6)
    # Logprob's gradient in the logits is 1[taken] - p, entropy's is 0.
    np.testing.assert_allclose(
        grads[1][:, 0], [0, 0, -10 / 3, 20 / 3, -10 / 3, 0], rtol=1e-5)
    np.testing.assert_allclose(grads[0], 0, atol=1e-5)

  @parameterized.parameters(1, -1)
  def test_large_logits(self, sign):
    """The largest logit grows, or falls, by 400 a chunk."""
    unembed = np.float32([[sign * 200 * i] for i in range(6)])
    hidden, tokens = np.ones((1, 2, 1), np.float32), np.array([[0, 2]])
    out = _from_hidden(hidden, unembed, tokens, chunk_size=2)
    # All the mass is on the highest, 600 or 400 above the token.
    np.testing.assert_allclose(
        jnp.stack(out)[:, 0, 1],
        [-600 if sign > 0 else -400, 0, sign * 400], atol=1e-5)

  def test_never_positive(self):
    hidden, unembed, tokens = _inputs(rows=50, v=6)
    tokens[:, 1:] = np.argmax(hidden @ unembed.T, axis=-1)[:, :-1]
    for chunk_size in (2, 6):
      out = _from_hidden(100 * hidden, unembed, tokens,
                                 chunk_size=chunk_size)
      self.assertLessEqual(out.logprobs.max(), 0)
      self.assertGreater(out.entropy.min(), -1e-5)

  def test_unknown_token_is_nan(self):
    hidden, unembed, tokens = _inputs()
    tokens[1, 2] = 2 * V
    for chunk_size in (3, V):
      out = _from_hidden(hidden, unembed, tokens,
                                 chunk_size=chunk_size)
      for x in (out.logprobs, out.logits):
        np.testing.assert_array_equal(
            np.argwhere(np.isnan(x)), [[1, 2]])

  def test_never_holds_all_logits(self):
    rows, t, v = 2, 65, 1000
    hidden, unembed, tokens = _inputs(rows=rows, t=t, v=v)
    whole = rows * (t - 1) * v

    def program(chunk_size):
      loss = lambda *x: sum(y.sum() for y in logprobs.from_hidden(
          *x, tokens, chunk_size=chunk_size))
      return jax.value_and_grad(loss, (0, 1))

    largest = lambda chunk_size: max(_sizes(
        jax.make_jaxpr(program(chunk_size))(hidden, unembed).jaxpr))
    self.assertLessEqual(largest(100), whole // 10)
    self.assertGreaterEqual(largest(v), whole)
    memory = jax.jit(program(100)).lower(
        hidden, unembed).compile().memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, .5 * 4 * whole)

  @parameterized.parameters(
      # Five equal chunks of 10 need no padding, 53 is prime: 3 rows of it.
      (50, 16, (5, 10)), (53, 16, (4, 14)), (50257, 2048, (29, 1733)),
      (7, 1, (7, 1)), (9, 8, (3, 3)), (11, 8, (2, 6)))
  def test_cuts_without_padding_where_it_can(self, v, chunk_size, shape):
    unembed = jax.ShapeDtypeStruct((v, D), jnp.float32)
    bias = jax.ShapeDtypeStruct((v,), jnp.float32)
    _, rows, added = jax.eval_shape(
        lambda x, y: logprobs._cut(x, y, chunk_size), unembed, bias)
    self.assertEqual(rows.shape, (*shape, D))
    self.assertEqual(added.shape, shape)

  def test_bfloat16(self):
    hidden, unembed, tokens = _inputs(d=8, v=256)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, unembed)]
    rounded = [np.asarray(x, np.float32) for x in low]
    expected = _reference(*rounded, tokens, 1.)
    for chunk_size in (2, 256):
      out = _from_hidden(*low, tokens, chunk_size=chunk_size)
      chex.assert_type([*out], jnp.float32)
      np.testing.assert_allclose(jnp.stack(out), expected, atol=1e-4)

  def test_bfloat16_gradients_add_up_in_float32(self):
    # Row i of 256 adds (i + 1) / 257 - p_i: a bfloat16 sum of as many terms
    # is off by percents, one rounding at the end by 2^-9.
    hidden, unembed, tokens = _inputs(rows=1, t=2, d=8, v=256)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (hidden, unembed)]
    grad = lambda chunk_size, x: jax.grad(
        lambda h: _from_hidden(
            h, x[1], tokens, chunk_size=chunk_size).entropy.sum())(x[0])
    exact = np.asarray(grad(256, [x.astype(jnp.float32) for x in low]))[0, 0]
    mine = np.asarray(grad(1, low), np.float32)[0, 0]
    np.testing.assert_allclose(mine, exact, atol=.006 * np.abs(exact).max())

  def test_rejects(self):
    hidden, unembed, tokens = _inputs()
    logits = hidden @ unembed.T
    with self.assertRaisesRegex(ValueError, 'temperature.*0'):
      logprobs.token_logprobs(logits, tokens, temperature=0.0)
    with self.assertRaisesRegex(ValueError, 'temperature.*-1'):
      logprobs.from_hidden(hidden, unembed, tokens, temperature=-1.0)
    with self.assertRaisesRegex(ValueError, 'chunk_size.*0'):
      logprobs.from_hidden(hidden, unembed, tokens, chunk_size=0)
    for args in ((logits, tokens[:, :-1]), (logits[0], tokens),
                 (logits, tokens.astype(np.float32)),
                 (logits.astype(int), tokens)):
      with self.assertRaises(AssertionError):
        logprobs.token_logprobs(*args)
    for args in ((hidden, unembed[:, :-1], tokens),
                 (hidden[:1], unembed, tokens),
                 (hidden, unembed.astype(int), tokens),
                 (hidden, unembed, tokens.astype(np.float32))):
      with self.assertRaises(AssertionError):
        logprobs.from_hidden(*args)
    for bias in (np.zeros(V - 1, 'f'), np.zeros((1, V), 'f'),
                 np.zeros(V, int)):
      with self.assertRaises(AssertionError):
        logprobs.from_hidden(hidden, unembed, tokens, bias=bias)


if __name__ == '__main__':
  absltest.main()
