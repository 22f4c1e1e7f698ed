"""Tests for rlhf_jax.evaluate."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.evaluation import statistics

# Baheti et al. 2024, Table 2: instances of the four splits; rewards by split
# and the printed average.
INSTANCES = [2210, 2278, 1085, 2634]
TABLE = {
    'good': ([54.8, 40.3, 61.6, 50.5], 50.3),
    'bad': ([50.0, 34.3, 59.4, 45.3], 45.4),
    'reference': ([54.8, 36.5, 49.4, 41.5], 44.7),
    'nll': ([60.7, 44.0, 56.5, 49.5], 51.9),
    'pro': ([63.0, 46.4, 57.6, 51.8], 54.1),
    'dpo_reference_free': ([53.6, 50.1, 54.4, 52.3], 52.3),
    'dpo': ([60.9, 55.2, 61.0, 58.5], 58.6),
    'wbc': ([62.4, 47.0, 59.7, 53.2], 54.8),
    'r_gold': ([62.7, 46.7, 59.0, 52.6], 54.5),
    'r_lol': ([63.7, 47.0, 59.4, 53.1], 55.1),
    'a_lol_reference_free': ([63.8, 49.2, 60.7, 54.7], 56.4),
    'a_lol': ([64.3, 50.3, 61.1, 55.8], 57.3),
    'a_lol_sequence': ([64.4, 50.9, 62.2, 55.8], 57.6),
    'a_lol_kl': ([65.7, 50.7, 61.1, 56.2], 57.9),
    'ppo': ([64.0, 39.7, 45.9, 42.8], 48.0),
    'ppo_external': ([48.6, 32.1, 33.6, 33.3], 37.1),
}


class EvaluateTest(absltest.TestCase):

  def test_furthest(self):
    np.testing.assert_array_equal(
        statistics.furthest(np.array([0., 2., 2., 1., 1.5, 4., 3.])),
        [True, True, False, False, False, True, False])

  def test_standard_error_by_hand(self):
    # Deviations -1, 0, 1: variance 2 / (3 - 1) = 1, over the root of 3.
    self.assertAlmostEqual(
        float(statistics.standard_error([1, 2, 3])), 1 / 3**.5)
    x = np.array([[1., 2.], [3., 6.]])
    np.testing.assert_allclose(statistics.standard_error(x), [1, 2])
    np.testing.assert_allclose(statistics.standard_error(x, axis=1), [.5, 1.5])

  def test_standard_error_of_one_value_is_unknown(self):
    self.assertTrue(np.isnan(statistics.standard_error([1.])))
    out = statistics.standard_error(np.ones((1, 3)))
    self.assertEqual(out.shape, (3,))
    self.assertTrue(np.isnan(out).all())

  def test_standard_error_is_float64(self):
    # float32 would lose the spread beside the offset.
    x = np.float32(1e4) + np.arange(4, dtype=np.float32)
    self.assertAlmostEqual(float(statistics.standard_error(x)),
                           (5 / 3)**.5 / 2, places=12)

  def test_pair_accuracy_counts_a_tie_as_wrong(self):
    scores = np.array([[[2., 1.], [1., 1.], [0., 1.], [5., -5.]],
                       [[1., 1.], [1., 1.], [1., 1.], [2., 1.]]])
    np.testing.assert_array_equal(statistics.pair_accuracy(scores), [.5, .25])

  def test_with_single_is_the_mean_of_the_members(self):
    curves = {'single_0': np.array([[1., 3.]]), 'mean': np.array([[9., 9.]]),
              'single_1': np.array([[2., 7.]])}
    out = statistics.with_single(curves)
    np.testing.assert_array_equal(out['single'], [[1.5, 5.]])
    self.assertEqual(set(out), {'single', *curves})

  def test_summary_by_hand(self):
    ns = [1, 2, 4]
    gold = {
        'single_0': np.float32([[0, 4, 1], [2, 2, 3]]),
        'single_1': np.float32([[0, 2, 1], [0, 4, 1]]),
        'rises': np.float32([[0, 1, 2], [0, 1, 4]]),
    }
    rows = statistics.best_of_n_summary(ns, gold)
    # single: [[0, 3, 1], [1, 3, 2]], means .5, 3, 1.5: highest at n = 2.
    # Peaks 3, 3; finals 1, 2; drops 2, 1, whose s.d. is root .5.
    single = rows['single']
    self.assertEqual(single['peak_n'], 2)
    for name, value in (('peak', 3.), ('peak_se', 0.), ('final', 1.5),
                        ('final_se', .5), ('drop', 1.5), ('drop_se', .5)):
      self.assertAlmostEqual(single[name], value, msg=name)
    # single_0: means 1, 3, 2; drops 3 and -1: the drop of a prompt may be
    # negative, that of the mean not. Its error: s.d. 2.83 / root 2 = 2.
    self.assertAlmostEqual(rows['single_0']['drop'], 1.)
    self.assertAlmostEqual(rows['single_0']['drop_se'], 2.)
    # A curve that only rises peaks at its end and drops nothing.
    self.assertEqual(
        (rows['rises']['peak_n'], rows['rises']['drop']), (4, 0.))
    self.assertEqual(rows['rises']['final'], rows['rises']['peak'])

  def test_summary_is_json(self):
    rows = statistics.best_of_n_summary([1], {'single_0': np.ones((2, 1))})
    for row in rows.values():
      for name, value in row.items():
        self.assertIs(type(value), int if name == 'peak_n' else float)


def _ragged(seed, b=4, t=6):
  """Log-probabilities with NaN off the mask; every row has a token."""
  rng = np.random.default_rng(seed)
  mask = np.arange(t) < rng.integers(1, t + 1, size=(b, 1))
  logprobs = -rng.exponential(size=(b, t)).astype(np.float32)
  return np.where(mask, logprobs, np.nan), mask


class PerplexityTest(parameterized.TestCase):

  def test_by_hand(self):
    # [Ex 11.3] sums 3.5 over 3 tokens and 1 over 2: exp(4.5 / 5). The mean of
    # the two perplexities, exp(3.5 / 3) and exp(1 / 2), is 2.429996.
    logprobs = -np.array([[.5, 1., 2.], [.25, .75, np.nan]])
    mask = np.array([[True, True, True], [True, True, False]])
    self.assertAlmostEqual(
        statistics.perplexity(logprobs, mask), 2.459603, places=6)

  def test_of_a_uniform_model_is_the_vocabulary(self):
    mask = np.array([[True, False], [True, True]])
    self.assertAlmostEqual(
        statistics.perplexity(np.full((2, 2), -math.log(50)), mask), 50)

  @parameterized.parameters(np.nan, np.inf, -np.inf, 1e30, 0.)
  def test_padding_is_inert(self, padding):
    logprobs, mask = _ragged(0)
    expected = statistics.perplexity(np.where(mask, logprobs, -1), mask)
    self.assertEqual(expected, statistics.perplexity(
        np.where(mask, logprobs, padding), mask))

  def test_accumulates_in_float64(self):
    # In float32 the sum is off by 1e-8 of itself; in bfloat16 it sticks
    # where a term is less than half a unit of the last place.
    mask = np.ones(20_000, bool)
    for dtype in (np.float32, jnp.bfloat16):
      value = np.asarray(-.1, dtype)
      self.assertAlmostEqual(
          math.log(statistics.perplexity(np.full(20_000, value), mask)),
          -float(value), places=12)

  def test_a_nan_token_is_not_hidden(self):
    self.assertTrue(np.isnan(
        statistics.perplexity(np.array([np.nan, -1]), np.ones(2, bool))))

  def test_impossible_token(self):
    for x in (-np.inf, -1e6):
      self.assertEqual(
          statistics.perplexity(np.array([x]), np.ones(1, bool)), math.inf)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    logprobs, mask = _ragged(seed)
    total, tokens = 0., 0
    for row, used in zip(logprobs, mask):
      for x, counts in zip(row, used):
        if counts:
          total, tokens = total - float(x), tokens + 1
    self.assertAlmostEqual(statistics.perplexity(logprobs, mask),
                           math.exp(total / tokens), places=9)

  def test_rejects(self):
    x = -np.ones((2, 2))
    with self.assertRaisesRegex(ValueError, r'logprobs \(2, 2\).*\(2,\)'):
      statistics.perplexity(x, np.ones(2, bool))
    with self.assertRaisesRegex(ValueError, 'mask must be bool.*float64'):
      statistics.perplexity(x, np.ones((2, 2)))
    with self.assertRaisesRegex(ValueError, 'mask must.*0 true'):
      statistics.perplexity(x, np.zeros((2, 2), bool))
    # Negative log-likelihoods in the place of log-probabilities.
    with self.assertRaisesRegex(ValueError, 'logprobs must be <= 0, got 1'):
      statistics.perplexity(-x, np.ones((2, 2), bool))


class ResponseLengthsTest(absltest.TestCase):

  def test_by_hand(self):
    # Prompt of two, EOS 9. Ended after 3 tokens; cut off after 4; EOS at
    # once; nothing. Prompt and padding hold the EOS's id too.
    tokens = np.array([[9, 1, 4, 5, 6, 9], [1, 2, 4, 5, 6, 7],
                       [1, 2, 9, 9, 9, 9], [1, 2, 9, 9, 9, 9]])
    mask = np.array([[0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1],
                     [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    lengths = statistics.response_lengths(tokens, mask, eos_id=9)
    both = statistics.response_lengths(tokens, mask, eos_id=(9, 4))
    np.testing.assert_array_equal(
        both, lengths - (mask & (tokens == 4)).sum(-1))
    np.testing.assert_array_equal(lengths, [3, 4, 0, 0])
    np.testing.assert_array_equal(
        statistics.response_lengths(tokens[None], mask[None], eos_id=9),
        lengths[None])

  def test_rejects(self):
    tokens, mask = np.ones((2, 3), int), np.ones((2, 3), bool)
    with self.assertRaisesRegex(ValueError, r'tokens \(2, 3\)'):
      statistics.response_lengths(tokens, mask[:, 1:], eos_id=0)
    with self.assertRaisesRegex(ValueError, 'tokens must be.*float64'):
      statistics.response_lengths(tokens / 1, mask, eos_id=0)
    with self.assertRaisesRegex(ValueError, 'mask must be bool.*int64'):
      statistics.response_lengths(tokens, tokens, eos_id=0)
    with self.assertRaisesRegex(ValueError, r'tokens must.*shape \(\)'):
      statistics.response_lengths(tokens[0, 0], mask[0, 0], eos_id=0)


class RewardVarianceTest(absltest.TestCase):

  def test_by_hand(self):
    # Deviations -1, 0, 1: 2 / 3, where ddof 1 would give 1.
    self.assertAlmostEqual(statistics.reward_variance([1, 2, 3]), 2 / 3)
    self.assertEqual(statistics.reward_variance([5.]), 0)
    # Half the deviations, a quarter of the variance.
    self.assertAlmostEqual(
        statistics.variance_reduction([1, 1.5, 2], [1, 2, 3]), .75)
    self.assertAlmostEqual(statistics.variance_reduction([1, 3], [0, 1]), -3)

  def test_is_float64(self):
    # float32 cannot tell 1e8 from 1e8 + 1.
    self.assertEqual(statistics.reward_variance([1e8, 1e8 + 1]), .25)

  def test_of_itself_nothing_is_reduced(self):
    self.assertEqual(statistics.variance_reduction([1, 2], [1, 2]), 0)

  def test_rejects(self):
    for bad, message in (([[1., 2.]], r'\(1, 2\)'), ([], r'\(0,\)'),
                         ([1, np.nan], r'NaN, first at \(1,\)')):
      with self.assertRaisesRegex(ValueError, f'^scores.*{message}'):
        statistics.reward_variance(bad)
      with self.assertRaisesRegex(ValueError, f'^scores.*{message}'):
        statistics.variance_reduction(bad, [1, 2])
      with self.assertRaisesRegex(ValueError, f'baseline_scores.*{message}'):
        statistics.variance_reduction([1, 2], bad)
    with self.assertRaisesRegex(ValueError, 'baseline_scores.*variance 0'):
      statistics.variance_reduction([1, 2], [3, 3])


class WinRateTest(parameterized.TestCase):

  def test_by_hand(self):
    # [Ex 11.6] three wins, one tie, one loss: 3.5 / 5. Dropping the tie would
    # give .75, counting it as lost .6.
    self.assertAlmostEqual(
        statistics.win_rate([2, 2, 2, 1, 0], [1, 1, 1, 1, 1]), .7)

  def test_against_itself_is_half(self):
    x = np.random.default_rng(0).normal(size=9)
    self.assertEqual(statistics.win_rate(x, x), .5)

  @twin.few
  @twin.randomised
  def test_twin_and_exchange(self, seed):
    x, y = np.random.default_rng(seed).integers(0, 3, size=(2, 7))
    rate = statistics.win_rate(x, y)
    credit = [1 if a > b else 0 if a < b else .5 for a, b in zip(x, y)]
    self.assertAlmostEqual(rate, sum(credit) / 7)
    self.assertAlmostEqual(rate + statistics.win_rate(y, x), 1)

  def test_is_per_prompt(self):
    # Higher on average, but lower on two prompts of three.
    self.assertAlmostEqual(statistics.win_rate([9, 0, 0], [1, 1, 1]), 1 / 3)

  @parameterized.parameters((1, .25 * 2**.5), (0, .25))
  def test_against_many_by_hand(self, ddof, deviation):
    # Rates 1 and .5: mean .75, deviations .25; s.d. .25, or with ddof 1
    # root(.125 / 1).
    mean, spread = statistics.win_rate_against(
        [1., 3.], [[0., 0.], [2., 2.]], ddof=ddof)
    self.assertAlmostEqual(mean, .75)
    self.assertAlmostEqual(spread, deviation)

  def test_default_ddof_is_one(self):
    self.assertEqual(
        statistics.win_rate_against([1., 3.], [[0., 0.], [2., 2.]]),
        statistics.win_rate_against([1., 3.], [[0., 0.], [2., 2.]], ddof=1))

  def test_against_one_has_no_spread(self):
    mean, spread = statistics.win_rate_against([1.], [[0.]])
    self.assertEqual(mean, 1)
    self.assertTrue(np.isnan(spread))
    self.assertEqual(
        statistics.win_rate_against([1.], [[0.]], ddof=0), (1., 0.))

  def test_rejects(self):
    with self.assertRaisesRegex(
        ValueError, r'gold \(2,\), baseline_gold \(3,\)'):
      statistics.win_rate([1, 2], [1, 2, 3])
    # NaN is neither more nor equal: it would pass for a loss.
    for bad, message in (([1, np.nan], 'NaN'), ([], r'\(0,\)'),
                         ([[1], [2]], r'\(2, 1\)')):
      with self.assertRaisesRegex(ValueError, f'^gold.*{message}'):
        statistics.win_rate(bad, [1, 2])
      with self.assertRaisesRegex(ValueError, f'baseline_gold.*{message}'):
        statistics.win_rate([1, 2], bad)
    with self.assertRaisesRegex(ValueError, r'baselines.*\(2,\)'):
      statistics.win_rate_against([1, 2], [1, 2])
    with self.assertRaisesRegex(ValueError, r'gold \(2,\).*\(3,\)'):
      statistics.win_rate_against([1, 2], [[1, 2, 3]])
    with self.assertRaisesRegex(ValueError, 'ddof must be 0 or 1, got 2'):
      statistics.win_rate_against([1, 2], [[1, 2]], ddof=2)


class WeightedMeanTest(parameterized.TestCase):

  @parameterized.parameters(*TABLE)
  def test_printed_averages(self, row):
    # Splits and average are each rounded to .1: off by .1 at most, and in
    # fact by .06. Simple means miss all of them.
    values, printed = TABLE[row]
    self.assertLessEqual(
        abs(statistics.weighted_mean(values, INSTANCES) - printed), .06)
    self.assertGreater(abs(np.mean(values) - printed), .06)

  def test_by_hand(self):
    self.assertEqual(statistics.weighted_mean([1, 5], [3, 1]), 2)
    self.assertEqual(statistics.weighted_mean([1, 5], [0, 2]), 5)

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, r'values \(2,\), counts \(1,\)'):
      statistics.weighted_mean([1, 2], [1])
    for counts in ([1, -1], [0, 0]):
      with self.assertRaisesRegex(ValueError, 'counts must be >= 0'):
        statistics.weighted_mean([1, 2], counts)
    with self.assertRaisesRegex(ValueError, 'values.*NaN'):
      statistics.weighted_mean([1, np.nan], [1, 1])
    with self.assertRaisesRegex(ValueError, 'counts.*NaN'):
      statistics.weighted_mean([1, 2], [1, np.nan])


class CurveUntilTest(absltest.TestCase):

  def test_by_hand(self):
    # [Ex 11.5] root 150 = 12.247449; the limit itself is kept.
    values = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    x, kept = statistics.curve_until([0, 4, 150, 150.1], values)
    np.testing.assert_allclose(x, [0, 2, 12.247449], rtol=1e-6)
    np.testing.assert_array_equal(kept, [[1, 2, 3], [5, 6, 7]])

  def test_limit(self):
    # What comes after the first excess is not kept either.
    x, kept = statistics.curve_until([1, 4, 9, 2], [2, 3, 1, 5], limit=4)
    np.testing.assert_array_equal(x, [1, 2])
    np.testing.assert_array_equal(kept, [2, 3])
    x, kept = statistics.curve_until([900], [1], limit=np.inf)
    np.testing.assert_array_equal(x, [30])

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, 'kl must be >= 0, got -1'):
      statistics.curve_until([1, -1], [1, 2])
    with self.assertRaisesRegex(ValueError, r'values must end.*\(3,\)'):
      statistics.curve_until([1, 2], [1, 2, 3])
    with self.assertRaisesRegex(ValueError, 'kl.*NaN'):
      statistics.curve_until([1, np.nan], [1, 2])


class AsFloatsTest(absltest.TestCase):

  def test_is_a_float64_copy(self):
    x = np.ones(2)
    out = statistics.as_floats('x', x, 1)
    out[0] = 5
    self.assertEqual(x[0], 1)
    self.assertEqual(
        statistics.as_floats('x', jnp.ones((1, 2), jnp.bfloat16), 2).dtype,
        np.float64)

  def test_infinity_is_a_number(self):
    self.assertEqual(statistics.win_rate([1, -np.inf], [0, 0]), .5)

  def test_reports_are_python_numbers(self):
    for value in (
        statistics.reward_variance([1, 2]),
        statistics.variance_reduction([1, 2], [2, 4]),
        statistics.win_rate([1], [2]), *statistics.win_rate_against([1], [[2]]),
        statistics.weighted_mean([1, 2], [1, 1]),
        statistics.perplexity(-np.ones(1), np.ones(1, bool))):
      self.assertIs(type(value), float)


if __name__ == '__main__':
  absltest.main()
