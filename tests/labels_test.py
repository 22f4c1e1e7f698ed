"""Tests for rlhf_jax.ops.labels."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import labels


class FlipTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.product(dtype=(bool, np.int32), rate=(0., .25, .35, 1.))
  def test_exact_count(self, dtype, rate):
    before = (np.arange(100) % 3 == 0).astype(dtype)
    fn = self.variant(lambda key, x: labels.flip(key, x, rate=rate))
    after = fn(jax.random.key(0), before)
    self.assertEqual(after.dtype, dtype)
    self.assertEqual(np.sum(after != before), round(rate * 100))
    self.assertTrue(set(np.unique(after).tolist()) <= {0, 1})

  def test_rounds(self):
    # round(.25 * 7) = round(1.75) = 2.
    before = np.zeros(7, bool)
    self.assertEqual(labels.flip(jax.random.key(0), before, rate=.25).sum(), 2)

  @parameterized.parameters(True, False)
  def test_every_label_is_as_likely(self, exact):
    before = np.zeros(20, bool)
    keys = jax.random.split(jax.random.key(1), 4000)
    after = jax.vmap(lambda key: labels.flip(
        key, before, rate=.25, exact=exact))(keys)
    # Standard error sqrt(.25 * .75 / 4000) = .0068; five of them.
    np.testing.assert_allclose(after.mean(axis=0), .25, atol=.035)
    # Only the exact sampler has the same count under every key; Bernoulli's
    # has variance 20 * .25 * .75 = 3.75.
    variance = np.var(after.sum(axis=1))
    np.testing.assert_allclose(variance, 0 if exact else 3.75, atol=.5)

  def test_key_decides(self):
    before = np.zeros(50, bool)
    one, same, other = (
        labels.flip(jax.random.key(seed), before, rate=.5)
        for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    self.assertTrue(np.any(one != other))

  @parameterized.parameters(-.1, 1.1)
  def test_rejects_rate(self, rate):
    with self.assertRaisesRegex(ValueError, f'rate.*{rate}'):
      labels.flip(jax.random.key(0), np.zeros(3, bool), rate=rate)

  def test_rejects_arrays(self):
    for bad in (np.zeros(3, np.float32), np.zeros((3, 2), bool)):
      with self.assertRaises(AssertionError):
        labels.flip(jax.random.key(0), bad, rate=.5)


class UpvoteScoreTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 11.9] floor(log2(1 + u) + .5) + accepted: log2 2 = 1, log2 3 = 1.58,
      # log2 6 = 2.58, log2 101 = 6.66.
      (-3, False, -1), (0, True, -1), (1, False, 1), (1, True, 2),
      (2, False, 2), (5, False, 3), (5, True, 4), (100, True, 8))
  def test_by_hand(self, upvotes, accepted, expected):
    out = self.variant(labels.upvote_score)(
        jnp.array([upvotes]), jnp.array([accepted]))
    np.testing.assert_array_equal(out, [expected])
    self.assertEqual(out.dtype, jnp.float32)

  def test_equals_integer_rounding(self):
    # log2(1 + u) + .5 passes an integer k + 1 where 2 (1 + u)^2 >= 4^(k + 1).
    upvotes = np.arange(1, 5000)
    expected = [max(k for k in range(16) if 4**k <= 2 * (1 + int(u))**2)
                for u in upvotes]
    np.testing.assert_array_equal(
        labels.upvote_score(upvotes, np.zeros(4999, bool)), expected)

  def test_rejects(self):
    with self.assertRaises(AssertionError):
      labels.upvote_score(jnp.array([1]), jnp.array([1]))


if __name__ == '__main__':
  absltest.main()
