"""Tests for rlhf_jax.calibration."""

import itertools
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import twin

from rlhf_jax.evaluation import calibration


class KendallTest(absltest.TestCase):

  def test_by_hand(self):
    # Three pairs each: orders agree, 1; one pair exchanged, (2 - 1) / 3; a
    # tie in one list, (2 - 0) / root(2 * 3) = .816497.
    scores = np.array([[1., 2, 3], [1, 2, 3], [1, 1, 2]])
    gold = np.array([[10., 20, 30], [2, 1, 3], [1, 2, 3]])
    for rows, tau in (([0], 1.), ([1], 1 / 3), ([2], .816497),
                      ([0, 1, 2], (1 + 1 / 3 + .816497) / 3)):
      out = calibration.kendall_tau(scores[rows], gold[rows])
      self.assertAlmostEqual(out['tau'], tau, 6)
      self.assertEqual(out['left_out'], 0)

  def test_is_per_prompt(self):
    # Prompts' offsets would hide that each order is wrong.
    out = calibration.kendall_tau([[2, 1], [12, 11]], [[1, 2], [11, 12]])
    self.assertEqual(out['tau'], -1)

  def test_tied_prompts_are_left_out(self):
    scores = np.array([[1, 1, 1], [1, 2, 3], [1, 2, 3]])
    gold = np.array([[1, 2, 3], [5, 5, 5], [3, 2, 1]])
    self.assertEqual(calibration.kendall_tau(scores, gold),
                     {'tau': -1., 'left_out': 2})
    out = calibration.kendall_tau(scores[:2], gold[:2])
    self.assertTrue(math.isnan(out['tau']))
    self.assertEqual(out['left_out'], 2)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    scores, gold = np.random.default_rng(seed).integers(0, 4, size=(2, 5, 4))
    taus = []
    for x, y in zip(scores, gold):
      pairs = [(np.sign(x[i] - x[j]), np.sign(y[i] - y[j]))
               for i, j in itertools.combinations(range(4), 2)]
      total = sum(a * b for a, b in pairs)
      size = math.sqrt(sum(a * a for a, _ in pairs)
                       * sum(b * b for _, b in pairs))
      taus += [total / size] if size else []
    out = calibration.kendall_tau(scores, gold)
    self.assertEqual(out['left_out'], 5 - len(taus))
    if taus:
      self.assertAlmostEqual(out['tau'], np.mean(taus))
      self.assertAlmostEqual(
          calibration.kendall_tau(scores, -gold)['tau'], -out['tau'])

  def test_rejects(self):
    x = np.ones((2, 3))
    with self.assertRaisesRegex(ValueError, r'scores \(2, 3\), gold \(2, 2\)'):
      calibration.kendall_tau(x, x[:, :2])
    with self.assertRaisesRegex(ValueError, r'K >= 2.*\(2, 1\)'):
      calibration.kendall_tau(x[:, :1], x[:, :1])
    with self.assertRaisesRegex(ValueError, 'scores.*NaN'):
      calibration.kendall_tau(x * np.nan, x)
    with self.assertRaisesRegex(ValueError, 'gold.*NaN'):
      calibration.kendall_tau(x, x * np.nan)
    with self.assertRaisesRegex(ValueError, r'scores.*\(3,\)'):
      calibration.kendall_tau(x[0], x[0])


class VarianceTest(absltest.TestCase):

  def test_by_hand(self):
    # [Ex 3.2] columns (1, 3, 2) and (3, 3, 0): population 2/3 and 2, on
    # average 4/3; with ddof 1, 1 and 3.
    out = calibration.intra_ensemble_variance([[1, 3], [3, 3], [2, 0]])
    self.assertEqual(set(out), {'ddof_0', 'ddof_1'})
    self.assertAlmostEqual(out['ddof_0'], 1.333333, 6)
    self.assertAlmostEqual(out['ddof_1'], 2., 6)
    self.assertIs(type(out['ddof_0']), float)

  def test_one_member_does_not_disagree(self):
    self.assertEqual(calibration.intra_ensemble_variance([[1, 3]]),
                     {'ddof_0': 0., 'ddof_1': 0.})

  def test_rejects(self):
    for bad, message in (([1, 2], r'\(2,\)'), ([[1, np.nan]], 'NaN'),
                         (np.ones((0, 2)), r'\(0, 2\)')):
      with self.assertRaisesRegex(ValueError, f'member_scores.*{message}'):
        calibration.intra_ensemble_variance(bad)


def _members(gaps):
  """Scores [E, N, 2] with the given gaps f[E, N], at various heights."""
  gaps = np.asarray(gaps, float)
  second = np.arange(gaps.size).reshape(gaps.shape) / 7
  return np.stack([gaps + second, second], axis=-1)


def _random_pairs(seed, e=3, n=20):
  rng = np.random.default_rng(seed)
  return (2 * rng.normal(size=(e, n, 2)), rng.integers(0, 2, size=n),
          rng.normal(size=n))


class CalibrationTest(parameterized.TestCase):

  def test_by_hand(self):
    # Probabilities of response 0 by member: 3/4 and 1/4; 1/4 and 1/4; 9/10
    # and 7/10. Means .5, .25, .8. Response 0 is preferred in the last only:
    # its probability is .5, .75, .8.
    logit = lambda p: math.log(p / (1 - p))
    scores = _members([[logit(p) for p in row]
                       for row in ([.75, .25, .9], [.25, .25, .7])])
    out = calibration.ensemble_calibration(scores, [1, 1, 0], num_bins=2)
    self.assertAlmostEqual(out['brier'], (.5**2 + .25**2 + .2**2) / 3)
    self.assertAlmostEqual(
        out['nll'], -(math.log(.5) + math.log(.75) + math.log(.8)) / 3)
    # Bins [.5, .75) and [.75, 1]: the first pair is a toss, half right.
    low, high = out['bins']
    self.assertEqual((low['count'], high['count']), (1, 2))
    np.testing.assert_allclose([low['confidence'], low['accuracy']], .5)
    np.testing.assert_allclose(
        [high['confidence'], high['accuracy']], [.775, 1])
    self.assertAlmostEqual(
        out['expected_calibration_error'], (1 * 0 + 2 * .225) / 3)
    self.assertNotIn('disagreement_spearman', out)

  def test_constant_half(self):
    out = calibration.ensemble_calibration(np.ones((2, 4, 2)), [0, 1, 1, 1])
    self.assertEqual(out['brier'], .25)
    self.assertAlmostEqual(out['nll'], math.log(2), 15)
    # A toss is half right whatever was preferred.
    self.assertEqual(out['expected_calibration_error'], 0)
    self.assertLen(out['bins'], 10)
    self.assertEqual([x['count'] for x in out['bins']], [4] + [0] * 9)
    self.assertTrue(math.isnan(out['bins'][1]['accuracy']))

  def test_perfectly_calibrated(self):
    # Of gap g, sigmoid(g) of the pairs prefer response 0: draws of that law.
    rng = np.random.default_rng(0)
    gaps = 2 * rng.normal(size=20_000)
    p = 1 / (1 + np.exp(-gaps))
    preferred = (rng.random(gaps.size) > p).astype(int)
    scores = _members(np.stack([gaps, gaps]))
    out = calibration.ensemble_calibration(scores, preferred)
    self.assertLess(out['expected_calibration_error'], .015)
    # Scores too far apart, or too close together, are not.
    for scale in (3, 1 / 3):
      worse = calibration.ensemble_calibration(scale * scores, preferred)
      self.assertGreater(worse['expected_calibration_error'], .05)
      self.assertGreater(worse['brier'], out['brier'])
      self.assertGreater(worse['nll'], out['nll'])

  def test_exactly_calibrated(self):
    # .75 of four pairs, .6 of five: error 0 by count. Edges .67 and .83.
    gaps = [math.log(3)] * 4 + [math.log(1.5)] * 5
    out = calibration.ensemble_calibration(
        _members([gaps]), [0, 0, 0, 1, 0, 0, 0, 1, 1], num_bins=3)
    self.assertAlmostEqual(out['expected_calibration_error'], 0)

  def test_chosen_first_is_as_good_as_any_order(self):
    scores, preferred, gold = _random_pairs(1)
    one = calibration.ensemble_calibration(scores, preferred, gold_gap=gold)
    swap = preferred == 1
    first = np.where(swap[:, None], scores[..., ::-1], scores)
    two = calibration.ensemble_calibration(
        first, 0 * preferred, gold_gap=np.where(swap, -gold, gold))
    for name in one:
      np.testing.assert_equal(two[name], one[name])

  def test_averages_probabilities_not_gaps(self):
    # Gaps 4 and -2: mean probability (.982 + .119) / 2; of the mean gap 1 it
    # would be .731.
    out = calibration.ensemble_calibration(_members([[4.], [-2.]]), [0])
    self.assertAlmostEqual(out['nll'], -math.log((.982014 + .119203) / 2), 5)

  def test_certain_and_wrong_is_finite(self):
    out = calibration.ensemble_calibration(_members([[-1e4], [-2e4]]), [0])
    # log((e^-1e4 + e^-2e4) / 2).
    self.assertAlmostEqual(out['nll'], 1e4 + math.log(2), 6)
    self.assertEqual(out['brier'], 1)
    self.assertEqual(out['expected_calibration_error'], 1)
    self.assertEqual(out['bins'][-1],
                     {'count': 1, 'confidence': 1., 'accuracy': 0.})

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    scores, preferred, gold = _random_pairs(seed)
    out = calibration.ensemble_calibration(
        scores, preferred, num_bins=4, gold_gap=gold)
    rows, spread, error = [], [], []
    for i, index in enumerate(preferred):
      gaps = [m[i, 0] - m[i, 1] for m in scores]
      p = sum(1 / (1 + math.exp(-g)) for g in gaps) / len(gaps)
      rows.append((max(p, 1 - p), (p > .5) == (index == 0),
                   p if index == 0 else 1 - p))
      centre = sum(gaps) / len(gaps)
      spread.append(sum((g - centre)**2 for g in gaps))
      error.append(abs(centre - gold[i]))
    self.assertAlmostEqual(
        out['brier'], np.mean([(1 - q)**2 for *_, q in rows]))
    self.assertAlmostEqual(out['nll'], np.mean([-math.log(q)
                                                for *_, q in rows]))
    total = 0.
    for k in range(4):
      inside = [r for r in rows if .5 + k / 8 <= r[0] < .5 + (k + 1) / 8]
      self.assertEqual(out['bins'][k]['count'], len(inside))
      if inside:
        confidence, accuracy, _ = np.mean(inside, axis=0)
        self.assertAlmostEqual(out['bins'][k]['confidence'], confidence)
        self.assertAlmostEqual(out['bins'][k]['accuracy'], accuracy)
        total += len(inside) / 20 * abs(confidence - accuracy)
    self.assertAlmostEqual(out['expected_calibration_error'], total)
    # Spearman without ties: 1 - 6 sum d^2 / (n (n^2 - 1)).
    ranks = [np.argsort(np.argsort(x)) for x in (spread, error)]
    self.assertAlmostEqual(
        out['disagreement_spearman'],
        1 - 6 * np.sum((ranks[0] - ranks[1])**2) / (20 * 399))

  def test_disagreement_tells_where_it_is_wrong(self):
    # Mean gaps 1, 2, 3; gold 1.1, 2.2, 3.3; deviations 1, 2, 3 times .5.
    centre, half = np.array([1., 2, 3]), np.array([.5, 1, 1.5])
    scores = _members([centre - half, centre + half])
    fn = lambda gold: calibration.ensemble_calibration(
        scores, [0, 0, 0], gold_gap=gold)['disagreement_spearman']
    self.assertAlmostEqual(fn([1.1, 2.2, 3.3]), 1)
    self.assertAlmostEqual(fn([1.3, 2.2, 3.1]), -1)
    # The error has no sign; ranks, not sizes, correlate.
    self.assertAlmostEqual(fn([1.1, 1.8, 99]), 1)

  def test_disagreement_that_is_constant_is_unknown(self):
    # Three identical members: their deviation is 0 but for rounding.
    member = np.random.default_rng(0).normal(size=(1, 9, 2))
    out = calibration.ensemble_calibration(
        np.repeat(member, 3, axis=0), np.zeros(9), gold_gap=np.arange(9.))
    self.assertTrue(math.isnan(out['disagreement_spearman']))
    one = calibration.ensemble_calibration(
        _members([[1.], [2.]]), [0], gold_gap=[1.])
    self.assertTrue(math.isnan(one['disagreement_spearman']))

  def test_reports_are_python_numbers(self):
    scores, preferred, gold = _random_pairs(2)
    out = calibration.ensemble_calibration(
        scores, preferred == 1, gold_gap=gold)
    bins = out.pop('bins')
    self.assertEqual({type(x) for x in out.values()}, {float})
    self.assertEqual({type(x['count']) for x in bins}, {int})

  def test_rejects(self):
    scores, preferred, gold = _random_pairs(0)
    fn = calibration.ensemble_calibration
    with self.assertRaisesRegex(ValueError, r'member_scores must.*\(20, 2\)'):
      fn(scores[0], preferred)
    with self.assertRaisesRegex(ValueError, r'\(3, 20, 1\)'):
      fn(scores[..., :1], preferred)
    with self.assertRaisesRegex(ValueError, r'\(3, 20, 2\) and \(19,\)'):
      fn(scores, preferred[1:])
    with self.assertRaisesRegex(ValueError, r'member_scores.*\(0, 20, 2\)'):
      fn(scores[:0], preferred)
    with self.assertRaisesRegex(ValueError, r'preferred\[2\].*got -1'):
      fn(scores, np.where(np.arange(20) == 2, -1, preferred))
    with self.assertRaisesRegex(ValueError, r'preferred\[0\].*got 0\.5'):
      fn(scores, preferred * 0 + .5)
    with self.assertRaisesRegex(ValueError, 'member_scores holds NaN'):
      fn(scores * np.nan, preferred)
    with self.assertRaisesRegex(ValueError, 'gold_gap holds NaN'):
      fn(scores, preferred, gold_gap=gold * np.nan)
    with self.assertRaisesRegex(ValueError, r'gold_gap \(19,\)'):
      fn(scores, preferred, gold_gap=gold[1:])
    with self.assertRaisesRegex(ValueError, 'num_bins must be >= 1, got 0'):
      fn(scores, preferred, num_bins=0)


if __name__ == '__main__':
  absltest.main()
