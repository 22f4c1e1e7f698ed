"""Tests for rlhf_jax.ops.labels."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.ops import advantages
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


class SoftLabelTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # Gaps .8 (objectives.md, Ex 2.2), -.8, .1, 0: 1 / (1 + e^-gap).
      ({}, [.689974, .310026, .524979, .5]),
      # Gaps doubled: 1 / (1 + e^-1.6), 1 / (1 + e^-.2).
      ({'temperature': .5}, [.832018, .167982, .549834, .5]),
      ({'temperature': 0.}, [1, 0, 1, .5]),
      ({'tie_margin': .3}, [.689974, .310026, .5, .5]),
      ({'tie_margin': 1., 'temperature': 0.}, [.5, .5, .5, .5]))
  def test_by_hand(self, kwargs, expected):
    scores = np.float32([[1.2, .4], [.4, 1.2], [.2, .1], [3, 3]])
    fn = self.variant(lambda x: labels.soft_label(x, **kwargs))
    np.testing.assert_allclose(fn(scores), expected, atol=1e-6)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    scores = np.random.default_rng(seed).normal(size=(50, 2))
    scores[0] = [2, 1]  # a gap of just the margin is a tie
    soft = jax.jit(lambda x: labels.soft_label(
        x, temperature=.7, tie_margin=1.))
    out = np.asarray(soft(np.float32(scores)))
    for (a, b), mine in zip(scores, out):
      tie = abs(a - b) <= 1
      self.assertAlmostEqual(
          float(mine), .5 if tie else 1 / (1 + np.exp((b - a) / .7)), 5)
    swapped = soft(np.float32(scores[:, ::-1]))
    np.testing.assert_allclose(out + swapped, 1, atol=1e-6)

  def test_dtype_and_gradient(self):
    for temperature in (0., 1.):
      fn = lambda x, t=temperature: labels.soft_label(x, temperature=t)
      out = fn(jnp.ones((2, 2), jnp.bfloat16))
      self.assertEqual(out.dtype, jnp.float32)
      grad = jax.grad(lambda x, fn=fn: fn(x).sum())(jnp.eye(2))
      np.testing.assert_array_equal(grad, 0)
      # A score that is not a number is no tie.
      self.assertTrue(jnp.isnan(fn(jnp.array([[jnp.nan, 1.]])))[0])

  @parameterized.parameters(('temperature', -1.), ('tie_margin', -.5))
  def test_rejects(self, name, value):
    with self.assertRaisesRegex(ValueError, f'{name}.*{value}'):
      labels.soft_label(np.zeros((3, 2), np.float32), **{name: value})

  def test_rejects_arrays(self):
    for bad in (np.zeros((3, 3), np.float32), np.zeros(2, np.float32),
                np.zeros((3, 2), int)):
      with self.assertRaises(AssertionError):
        labels.soft_label(bad)


class SampleLabelsTest(absltest.TestCase):

  def test_frequencies(self):
    probability = np.float32([0, .25, .5, .9, 1])
    keys = jax.random.split(jax.random.key(0), 4000)
    out = jax.jit(jax.vmap(lambda k: labels.sample_labels(k, probability)))(
        keys)
    self.assertEqual(out.dtype, jnp.int32)
    # Index 0 is the first; standard errors at most .5 / sqrt(4000) = .0079.
    np.testing.assert_allclose((out == 0).mean(0), probability, atol=.04)
    np.testing.assert_array_equal(out[:, 0], 1)
    np.testing.assert_array_equal(out[:, 4], 0)
    self.assertTrue(set(np.unique(out)) <= {0, 1})

  def test_pairs_are_drawn_apart(self):
    half = np.full(1000, .5, np.float32)
    one, same, other = (
        labels.sample_labels(jax.random.key(seed), half) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    self.assertTrue(np.any(one != other))
    self.assertBetween(int(one.sum()), 400, 600)

  def test_rejects(self):
    for bad in (np.zeros((3, 2), np.float32), np.zeros(3, int)):
      with self.assertRaises(AssertionError):
        labels.sample_labels(jax.random.key(0), bad)


class VoteLabelTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # (votes for the first + half the ties) / 3.
      ([1, 1, 1], 1, 1), ([2, 2, 2], 2, 0), ([0, 0, 0], 0, .5),
      ([1, 2, 1], 1, 2 / 3), ([2, 1, 2], 2, 1 / 3), ([0, 1, 1], 1, 2.5 / 3),
      ([0, 0, 2], 0, 1 / 3), ([2, 0, 2], 2, .5 / 3),
      # No value leads: a tie, and not the first annotator's vote.
      ([1, 2, 0], 0, .5), ([2, 1], 0, .5), ([1, 0], 0, .75), ([2, 0], 0, .25),
      ([1, 1, 2, 0], 1, 2.5 / 4), ([1], 1, 1))
  def test_by_hand(self, votes, majority, probability):
    out = self.variant(labels.vote_label)(np.int32([votes]))
    np.testing.assert_array_equal(out[0], [majority])
    np.testing.assert_allclose(out[1], [probability], rtol=1e-6)
    self.assertEqual(
        tuple(x.dtype for x in out), (jnp.int32, jnp.float32))

  def test_twin_and_swap(self):
    votes = np.random.default_rng(0).integers(0, 3, (200, 5))
    majority, probability = map(np.asarray, labels.vote_label(votes))
    for row, m, p in zip(votes, majority, probability):
      counts = np.bincount(row, minlength=3)
      best = np.flatnonzero(counts == counts.max())
      self.assertEqual(m, best[0] if len(best) == 1 else 0)
      self.assertAlmostEqual(float(p), (counts[1] + counts[0] / 2) / 5, 6)
    other = np.array([0, 2, 1])
    swapped = labels.vote_label(other[votes])
    np.testing.assert_array_equal(swapped[0], other[majority])
    np.testing.assert_allclose(swapped[1], 1 - probability, atol=1e-6)

  @parameterized.parameters(3, -1)
  def test_rejects_votes(self, vote):
    with self.assertRaisesRegex(ValueError, f'votes.*{vote}'):
      labels.vote_label(np.array([[1, 2, vote]]))

  def test_rejects_arrays(self):
    with self.assertRaisesRegex(ValueError, r'votes.*\(2, 0\)'):
      labels.vote_label(np.zeros((2, 0), int))
    for bad in (np.zeros(3, int), np.zeros((3, 2), np.float32)):
      with self.assertRaises(AssertionError):
        labels.vote_label(bad)


class RewardNoiseTest(parameterized.TestCase):

  @parameterized.parameters(1., 3., 5.)
  def test_every_sample_has_its_own(self, deviation):
    scores = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    noise = labels.reward_noise(
        jax.random.key(0), scores, deviation=deviation) - scores
    # 2,000 draws: standard error of the deviation .016, of the mean .022.
    self.assertAlmostEqual(float(noise.std()) / deviation, 1, delta=.08)
    self.assertAlmostEqual(float(noise.mean()) / deviation, 0, delta=.1)
    for axis in (0, 1):  # no draw is shared along either axis
      inside = noise.std(axis=axis).mean() / deviation
      self.assertGreater(inside, .7)
    # So advantages change, which shared noise would leave alone [Ex 7.6].
    moved = advantages.leave_one_out(scores + noise)
    self.assertGreater(
        float(jnp.abs(moved - advantages.leave_one_out(scores)).mean()),
        .5 * deviation)

  def test_key_decides(self):
    one, same, other = (
        labels.reward_noise(jax.random.key(seed), jnp.zeros((2, 3)),
                            deviation=1.) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    self.assertTrue(np.all(one != other))

  def test_zero_is_clean_and_float32(self):
    scores = jnp.array([[.1, 2.]], jnp.bfloat16)
    out = labels.reward_noise(jax.random.key(0), scores, deviation=0.)
    np.testing.assert_array_equal(out, scores.astype(jnp.float32))
    # Noise of 1 / 512 around 2 is lost in bfloat16, whose step is 1 / 64.
    out = labels.reward_noise(jax.random.key(0), scores, deviation=1 / 512)
    self.assertEqual(out.dtype, jnp.float32)
    self.assertTrue(np.all(out != scores.astype(jnp.float32)))

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, 'deviation.*-1'):
      labels.reward_noise(
          jax.random.key(0), np.zeros(3, np.float32), deviation=-1.)
    with self.assertRaises(AssertionError):
      labels.reward_noise(jax.random.key(0), np.zeros(3, int), deviation=1.)


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
