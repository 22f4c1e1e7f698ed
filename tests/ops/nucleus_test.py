"""Tests for rlhf_jax.ops.nucleus."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import sampling
from rlhf_jax.objectives import ppo
from rlhf_jax.ops import logprobs
from rlhf_jax.ops import nucleus

# [Ex 10.1]
PROBS = np.float32([.5, .3, .15, .05])


def _nucleus(probs, top_p):
  """Adds likeliest tokens until the mass is reached; one row of no ties."""
  allowed, mass = np.zeros(len(probs), bool), 0.
  for token in np.argsort(-probs):
    if mass >= top_p:
      break
    allowed[token] = True
    mass += probs[token]
  return allowed


def _log_softmax(logits, allowed):
  """log pi of one row renormalised on a set, in float64."""
  kept = logits[allowed]
  out = np.full(len(logits), -np.inf)
  out[allowed] = kept - kept.max() - np.log(np.sum(np.exp(kept - kept.max())))
  return out


def _policy(seed=0, t=4, v=6):
  """Logits [1, 1, T, V], tokens of their nuclei, mask, and the nuclei."""
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(1, 1, t, v)).astype(np.float32)
  allowed = nucleus.nucleus(logits, top_p=.8)
  tokens = np.zeros((1, 1, t), int)
  for i in range(1, t):
    tokens[0, 0, i] = rng.choice(np.flatnonzero(allowed[0, 0, i - 1]))
  return logits, tokens, np.arange(t)[None, None] > 0, allowed


class NucleusTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 10.1] .5 + .3 < .9 <= .5 + .3 + .15.
      (.9, [1, 1, 1, 0]), (.96, [1, 1, 1, 1]), (.6, [1, 1, 0, 0]),
      (.4, [1, 0, 0, 0]), (1e-9, [1, 0, 0, 0]), (1., [1, 1, 1, 1]))
  def test_by_hand(self, top_p, expected):
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
      out = self.variant(lambda x: nucleus.nucleus(x, top_p=top_p))(
          np.log(PROBS[order]))
      self.assertEqual(out.dtype, bool)
      np.testing.assert_array_equal(out, np.bool_(expected)[order])

  def test_reaching_the_mass_is_enough(self):
    # .5 + .25 is .75, exactly.
    logits = np.log(np.float32([.5, .25, .125, .125]))
    np.testing.assert_array_equal(
        nucleus.nucleus(logits, top_p=.75), [1, 1, 0, 0])

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(7), size=(2, 3))
    top_p = rng.uniform(.05, .99)
    out = nucleus.nucleus(np.log(probs.astype(np.float32)), top_p=top_p)
    for i in np.ndindex(2, 3):
      np.testing.assert_array_equal(out[i], _nucleus(probs[i], top_p))

  @parameterized.parameters(.1, .5, .9, 1.)
  def test_is_the_set_of_the_sampler(self, top_p):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 9)).astype(np.float32)
    logits[0] = rng.integers(0, 3, size=(4, 9))  # ties
    logits[1, :, ::2] = -np.inf
    np.testing.assert_array_equal(
        nucleus.nucleus(logits, top_p=top_p),
        np.isfinite(sampling.filter_logits(logits, top_p=top_p)))

  def test_ties_at_the_border_are_all_allowed(self):
    logits = np.log(np.float32([.2, .4, .2, .2]))
    np.testing.assert_array_equal(
        nucleus.nucleus(logits, top_p=.5), [1, 1, 1, 1])

  def test_forbidden_tokens_stay_so(self):
    # The masses of some rows add up to less than 1, and to less than top_p.
    logits = np.random.default_rng(0).normal(size=(64, 9)).astype(np.float32)
    logits[:, 4] = -np.inf
    for top_p in (1 - 1e-9, 1.):
      out = nucleus.nucleus(logits, top_p=top_p)
      np.testing.assert_array_equal(out[:, 4], False)

  def test_all_of_the_mass_is_every_token(self):
    # Even one whose probability is lost in the sum: e^-30.
    logits = np.float32([0, -30, -31])
    np.testing.assert_array_equal(nucleus.nucleus(logits, top_p=1.), True)

  def test_upcasts(self):
    # In bfloat16 the cumulative sum of many small masses is too small.
    logits = jnp.asarray(np.random.default_rng(0).normal(size=600),
                         jnp.bfloat16)
    np.testing.assert_array_equal(
        nucleus.nucleus(logits, top_p=.9),
        nucleus.nucleus(logits.astype(jnp.float32), top_p=.9))

  @parameterized.parameters(0., -.1, 1.1, float('nan'))
  def test_rejects(self, top_p):
    with self.assertRaisesRegex(ValueError, f'top_p.*{top_p}'):
      nucleus.nucleus(np.log(PROBS), top_p=top_p)
    with self.assertRaises(AssertionError):
      nucleus.nucleus(np.arange(3), top_p=.5)


class RestrictTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 10.1] .5, .3 and .15 over .95; log(.3 / .95).
    logits = np.stack([np.log(PROBS)] * 2)
    fn = lambda x: nucleus.restrict(x, nucleus.nucleus(x, top_p=.9))
    out = self.variant(fn)(logits)
    np.testing.assert_allclose(
        jax.nn.softmax(out)[0], [.526316, .315789, .157895, 0], atol=1e-6)
    taken = logprobs.token_logprobs(out, np.array([0, 1]))
    np.testing.assert_allclose(taken, [0, -1.152680], atol=1e-6)

  def test_position_before_governs_the_token(self):
    logits = np.zeros((2, 3), np.float32)
    allowed = np.array([[True, True, False], [False, False, True]])
    tokens = np.array([2, 1])
    out = logprobs.token_logprobs(nucleus.restrict(logits, allowed), tokens)
    np.testing.assert_allclose(out, [0, -np.log(2)], rtol=1e-6)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    """Log-probabilities of stored tokens, and their gradient."""
    logits, tokens, mask, allowed = _policy(seed)
    def expected(x):
      return sum(_log_softmax(x[0, 0, t - 1], np.array(allowed)[0, 0, t - 1])[
          tokens[0, 0, t]] for t in range(1, 4))
    twin.assert_equal(
        lambda x: logprobs.token_logprobs(
            nucleus.restrict(x, allowed), tokens)[mask].sum(),
        expected, logits)

  def test_entropy_is_of_the_set(self):
    logits, tokens, _, allowed = _policy()
    fn = lambda x: logprobs.token_entropy(
        nucleus.restrict(x, allowed), tokens)[0, 0, 2]
    value, grad = jax.value_and_grad(fn)(logits)
    kept = np.array(allowed[0, 0, 1])
    log_p = _log_softmax(np.float64(logits[0, 0, 1]), kept)[kept]
    self.assertAlmostEqual(float(value), -np.sum(np.exp(log_p) * log_p), 5)
    self.assertTrue(np.all(np.isfinite(grad)))
    self.assertGreater(np.abs(grad[0, 0, 1][kept]).max(), 0)

  def test_no_gradient_off_the_set(self):
    logits, tokens, _, allowed = _policy()
    grad = jax.grad(lambda x: logprobs.token_logprobs(
        nucleus.restrict(x, allowed), tokens).sum())(logits)
    np.testing.assert_array_equal(grad[~allowed], 0)
    self.assertTrue(np.all(np.isfinite(grad)))

  def test_stored_masks_are_reused(self):
    """A token sampled in the old nucleus may lie outside the new one."""
    logits, tokens, mask, stored = _policy()
    # The mask policy has come to hate the token at t = 2.
    refreshed = logits.copy()
    refreshed[0, 0, 1, tokens[0, 0, 2]] = -9
    fresh = nucleus.nucleus(refreshed, top_p=.8)
    taken = lambda allowed: logprobs.token_logprobs(
        nucleus.restrict(logits, allowed), tokens)
    self.assertEqual(taken(fresh)[0, 0, 2], -np.inf)
    self.assertTrue(np.all(np.isfinite(taken(stored))))
    # Trap 22: what was sampled was the masked policy; ratios are 1 with the
    # stored mask, and not without one.
    behaviour = taken(stored)
    ratio = lambda x: np.exp((x - behaviour)[mask])
    np.testing.assert_allclose(ratio(taken(stored)), 1, rtol=1e-6)
    plain = logprobs.token_logprobs(logits, tokens)
    self.assertLess(ratio(plain).max(), .95)

  def test_padding_is_left_alone(self):
    """PPO through a restricted policy, whose padding allows nothing."""
    logits, tokens, mask, allowed = _policy()
    mask, allowed = mask.copy(), np.array(allowed)
    mask[0, 0, -1] = False
    allowed[0, 0, -2] = False
    np.testing.assert_array_equal(
        nucleus.restrict(logits, allowed)[0, 0, -2], logits[0, 0, -2])
    advantages = np.ones(mask.shape, np.float32)
    def loss(x):
      current = logprobs.token_logprobs(nucleus.restrict(x, allowed), tokens)
      old = jax.lax.stop_gradient(current)
      return twin.mean(ppo.ppo_loss(current, old, advantages, mask))
    value, grad = jax.value_and_grad(loss)(logits)
    # On policy: -mean A.
    self.assertAlmostEqual(float(value), -1, 6)
    self.assertTrue(np.all(np.isfinite(grad)))
    np.testing.assert_array_equal(grad[0, 0, -2], 0)

  def test_keeps_the_dtype(self):
    for dtype in (jnp.bfloat16, jnp.float32):
      out = nucleus.restrict(jnp.zeros(2, dtype), jnp.array([True, False]))
      self.assertEqual(out.dtype, dtype)

  def test_rejects(self):
    logits, _, _, allowed = _policy()
    with self.assertRaises(AssertionError):
      nucleus.restrict(logits, allowed[..., 1:])
    with self.assertRaises(AssertionError):
      nucleus.restrict(logits, allowed.astype(np.float32))


class IncludeTest(absltest.TestCase):

  def test_by_hand(self):
    allowed = np.array([[True, False, False], [False, True, False],
                        [True, True, False]])
    out = nucleus.include(allowed, np.array([0, 2, 7]))
    np.testing.assert_array_equal(
        out, [[1, 0, 0], [0, 1, 1], [1, 1, 0]])
    self.assertEqual(out.dtype, bool)

  def test_rejects(self):
    with self.assertRaises(AssertionError):
      nucleus.include(np.ones((2, 3), bool), np.array([0]))
    with self.assertRaises(AssertionError):
      nucleus.include(np.ones((2, 3)), np.array([0, 1]))


if __name__ == '__main__':
  absltest.main()
