"""Tests for rlhf_jax.ops.ratios."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.ops import ratios

# [Ex 6.3]
ADVANTAGES = np.float32([1, -1, 1, -1])
LOG_RATIO = np.log(np.float32([1.5, 1.5, .5, .5]))
# A pair (low, high), and the interval it stands for.
PAIRS = [(.2, (.8, 1.2)), ((.2, .28), (.8, 1.28)), ([.3, .1], (.7, 1.1)),
         (100, (-99, 101)), (None, (0, np.inf))]


def _fn(clip_ratio):
  return jax.jit(lambda x, a: ratios.clipped_surrogate(x, a, clip_ratio))


SURROGATES = [_fn(clip_ratio) for clip_ratio, _ in PAIRS]


def _surrogate(log_ratio, advantages, low, high):
  """Entry by entry, from the two cases of the sign of A."""
  total = 0.
  for x, a in zip(log_ratio, advantages):
    r = np.exp(x)
    total += a * (min(r, high) if a > 0 else max(r, low))
  return total


class RatioTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    out = self.variant(ratios.ratio)(np.float32([0, np.log(2), -np.log(2)]))
    np.testing.assert_allclose(out, [1, 2, .5], rtol=1e-6)

  def test_huge_ratios_are_finite(self):
    x = np.float32([-np.inf, -1e30, -200, 200, 1e30, np.inf])
    out = ratios.ratio(x)
    np.testing.assert_allclose(
        out, np.exp([-20] * 3 + [20] * 3), rtol=1e-6)
    grad = jax.grad(lambda x: ratios.ratio(x).sum())(x)
    np.testing.assert_array_equal(grad, 0)

  def test_up_to_twenty_nats_it_is_exp(self):
    # A guard, not a clip: nothing changes below it.
    x = np.float32([-19.9, 19.9])
    np.testing.assert_allclose(ratios.ratio(x), np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(lambda x: ratios.ratio(x).sum())(x), np.exp(x), rtol=1e-6)

  def test_is_float32(self):
    x = jnp.ones(2, jnp.bfloat16)
    for fn in (ratios.ratio, ratios.approx_kl):
      self.assertEqual(fn(x).dtype, jnp.float32)


class ApproxKlTest(absltest.TestCase):

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    x = np.random.default_rng(seed).normal(size=5)
    twin.assert_equal(lambda x: ratios.approx_kl(x).sum(),
                      lambda x: np.sum(np.exp(x) - 1 - x), x)

  def test_is_the_kl_of_old_and_current(self):
    # By enumeration over samples of old: KL(old || current), not its reverse.
    old, current = np.float32([.7, .2, .1]), np.float32([.4, .4, .2])
    out = np.sum(old * ratios.approx_kl(np.log(current / old)))
    self.assertAlmostEqual(out, np.sum(old * np.log(old / current)), 5)
    self.assertNotAlmostEqual(
        out, np.sum(current * np.log(current / old)), 3)

  def test_is_never_negative(self):
    x = np.concatenate([np.linspace(-1e-2, 1e-2, 2001),
                        np.linspace(-50, 50, 2001)]).astype(np.float32)
    self.assertGreaterEqual(ratios.approx_kl(x).min(), 0)

  def test_far_away(self):
    # Linear below, where the policy forgot a token; constant above.
    value, grad = jax.vmap(jax.value_and_grad(ratios.approx_kl))(
        np.float32([-200, 30, 300]))
    np.testing.assert_allclose(
        value, [199, np.exp(20) - 21, np.exp(20) - 21], rtol=1e-6)
    np.testing.assert_allclose(grad, [-1, 0, 0], atol=1e-6)


class IntervalTest(parameterized.TestCase):

  @parameterized.parameters(*PAIRS)
  def test_by_hand(self, clip_ratio, expected):
    # Trap 26: the lower bound is the first one.
    np.testing.assert_allclose(ratios.interval(clip_ratio), expected)

  def test_rejects(self):
    for value in (0., -1., float('nan'), (.2, 0.), (0., .2), (-.1, .2),
                  (.1, .2, .3), (.1,), ()):
      with self.assertRaisesRegex(ValueError, 'clip_ratio') as context:
        ratios.interval(value)
      self.assertIn(str(value), str(context.exception))


class ClippedSurrogateTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 6.3] min(1.5, 1.2), min(-1.5, -1.2), min(.5, .8), min(-.5, -.8).
    out, metrics = self.variant(
        lambda *x: ratios.clipped_surrogate(*x, .2))(LOG_RATIO, ADVANTAGES)
    np.testing.assert_allclose(out, [1.2, -1.5, .5, -.8], rtol=1e-6)
    np.testing.assert_array_equal(
        metrics['policy/clip_fraction'], [1, 0, 0, 1])
    # r - 1 - log r, of 1.5 and of .5.
    np.testing.assert_allclose(
        metrics['policy/approx_kl'], [.094535] * 2 + [.193147] * 2, rtol=1e-4)
    self.assertEqual(metrics['policy/clip_fraction'].dtype, jnp.float32)

  def test_gradient_by_hand(self):
    # [Ex 6.3] r A where it is not clipped.
    grad = jax.grad(lambda x: ratios.clipped_surrogate(
        x, ADVANTAGES, .2)[0].sum())(LOG_RATIO)
    np.testing.assert_allclose(grad, [0, -1.5, .5, 0], rtol=1e-6)

  def test_pair_by_hand(self):
    # Bounds .8 and 1.28: 1.25 and .75 are on different sides of theirs.
    log_ratio = np.log(np.float32([1.25, 1.5, .75, .5]))
    out, metrics = ratios.clipped_surrogate(
        log_ratio, np.float32([2, 2, -2, -2]), (.2, .28))
    np.testing.assert_allclose(out, [2.5, 2.56, -1.6, -1.6], rtol=1e-6)
    np.testing.assert_array_equal(
        metrics['policy/clip_fraction'], [0, 1, 1, 1])

  @parameterized.parameters(*range(len(PAIRS)))
  @twin.few
  @twin.randomised
  def test_twin(self, index, seed):
    log_ratio, advantages = np.random.default_rng(seed).normal(size=(2, 6))
    bounds = PAIRS[index][1]
    twin.assert_equal(
        lambda x: SURROGATES[index](x, np.float32(advantages))[0].sum(),
        lambda x: _surrogate(x, np.float32(advantages), *bounds),
        log_ratio)

  def test_without_clipping(self):
    out, metrics = ratios.clipped_surrogate(LOG_RATIO, ADVANTAGES, None)
    np.testing.assert_allclose(out, [1.5, -1.5, .5, -.5], rtol=1e-6)
    np.testing.assert_array_equal(metrics['policy/clip_fraction'], 0)

  def test_at_ratio_one(self):
    """Neither clipped nor halved: the gradient is A under every interval."""
    for clip_ratio, _ in PAIRS:
      grad = jax.grad(lambda x, c=clip_ratio: ratios.clipped_surrogate(
          x, ADVANTAGES, c)[0].sum())(np.zeros(4, np.float32))
      np.testing.assert_array_equal(grad, ADVANTAGES)

  def test_huge_ratios_are_finite(self):
    x = np.float32([-200, 200, -200, 200])
    for clip_ratio in (None, .2):
      chex.assert_tree_all_finite(jax.value_and_grad(
          lambda x, c=clip_ratio: ratios.clipped_surrogate(
              x, ADVANTAGES, c)[0].sum())(x))

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, 'clip_ratio.*-0.1'):
      ratios.clipped_surrogate(LOG_RATIO, ADVANTAGES, -.1)
    with self.assertRaises(AssertionError):
      ratios.clipped_surrogate(LOG_RATIO, ADVANTAGES[:1], .2)


if __name__ == '__main__':
  absltest.main()
