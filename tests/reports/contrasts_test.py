"""Tests for rlhf_jax.reports.contrasts."""

import math

from absl.testing import absltest
import worlds

from rlhf_jax import errors
from rlhf_jax.reports import contrasts
from rlhf_jax.storage import files

EXPERIMENTS = worlds.ROOT / 'experiments'
FIELDS = dict(claim='c', paper='p', figure='f', first={'run': 'a'},
              column='gold', command='x')


class ValuesTest(absltest.TestCase):

  def values(self, rows, **changes):
    return contrasts.values(rows, contrasts.Contrast(**FIELDS | changes))

  def test_differences_of_the_same_seed(self):
    rows = worlds.curves(
        a={'1': (0, 5), '2': (0, 7)},
        b={'2': (9, 4), '1': (9, 1), '3': (0, 0)})
    self.assertEqual(self.values(rows, less={'run': 'b'}), {'1': 4, '2': 3})
    self.assertEqual(self.values(rows), {'1': 5, '2': 7})

  def test_members_count_by_their_mean(self):
    rows = worlds.curves(s0={'1': (0, 5)}, s1={'1': (0, 8)}, s2={'1': (0, 11)})
    self.assertEqual(self.values(rows, first={'method': 's'}), {'1': 8})

  def test_statistics(self):
    rows = worlds.curves(a={'1': (2, 6, 5)})
    self.assertEqual(self.values(rows, statistic='growth'), {'1': 2.5})
    self.assertEqual(self.values(rows, statistic='drop'), {'1': 1})
    for since, fall in ((0, -3), (1, 1), (2, 0)):
      self.assertEqual(
          self.values(rows, statistic='fall', since=since), {'1': fall})

  def test_the_drop_of_members_is_that_of_their_mean_curve(self):
    rows = worlds.curves(s0={'1': (0, 5, 1)}, s1={'1': (0, 2, 5)})
    drop = dict(first={'method': 's'}, statistic='drop')
    self.assertEqual(self.values(rows, **drop), {'1': .5})
    with self.assertRaisesRegex(errors.DataError, 'lengths in seed 1, of'):
      self.values(rows[:-1], **drop)

  def test_at_equal_kl(self):
    """The mean over the range of a line between its points."""
    rows = worlds.curves(
        a={'1': (0, 2, 4), '2': (0, 1)}, b={'1': (0, 0, 0), '2': (0, 0, 0)})
    at = {'column': 'kl', 'from': 1, 'to': 3}
    actual = self.values(rows, less={'run': 'b'}, at=at)
    self.assertAlmostEqual(actual['1'], 2)
    self.assertTrue(math.isnan(actual['2']))  # it ends at a KL of 2
    for at, there in (((2.5, 3.5), False), ((4.1, 4.2), False),
                      ((1.5, 2.), True), ((2., 3.), True), ((4., 4.), True)):
      at = {'column': 'kl', 'from': at[0], 'to': at[1]}
      self.assertEqual(not math.isnan(
          self.values(rows, less={'run': 'b'}, at=at)['1']), there)

  def test_a_kl_that_goes_back(self):
    """What is measured then is no policy of the furthest KL."""
    rows = worlds.curves(a={'1': (0, 1, 9, 8, 3)})
    for row, kl in zip(rows, ('0', '2', '1', '1.5', '4')):
      row['kl'] = kl
    for first, last, mean in ((2, 2, 1), (2, 4, 2)):
      at = {'column': 'kl', 'from': first, 'to': last}
      self.assertAlmostEqual(self.values(rows, at=at)['1'], mean)

  def test_mistakes(self):
    rows = worlds.curves(a={'1': (0,)})
    for changes, message in (
        (dict(first={'run': 'z'}), "no row of {'run': 'z'}"),
        (dict(column='silver'), "no column 'silver'"),
        (dict(statistic='fall', since=7), 'f has no step 7 in a run')):
      with self.assertRaisesRegex(errors.DataError, message):
        self.values(rows, **changes)
    for changes, message in (
        (dict(expects='better'), "expects is 'better'"),
        (dict(expects='equal'), 'margin is 0.0; give one above 0'),
        (dict(margin=-1.), 'margin is -1.0'), (dict(kind='sure'), 'kind is'),
        (dict(statistic='last'), 'statistic is'),
        (dict(statistic='fall'), "since is None and the statistic 'fall'"),
        (dict(since=3), "since is 3 and the statistic 'value'"),
        (dict(less={'run': 'b'}, reference=.5), 'give one of both'),
        (dict(less_figure='g'), "less_figure is 'g' without less")):
      with self.assertRaisesRegex(errors.ConfigError, message):
        contrasts.Contrast(**FIELDS | changes)

  def test_rates_and_growths_have_one(self):
    """Of the committed contrasts: next to 0 neither says anything."""
    count = 0
    for path in EXPERIMENTS.glob('*/contrasts.jsonl'):
      for line in files.read_jsonl(path):
        contrast = contrasts.Contrast(**line)
        if contrast.less is None and (
            contrast.column in ('win_rate', 'accuracy')
            or contrast.statistic == 'growth'):
          self.assertGreater(contrast.reference, 0, contrast.claim)
          self.assertEqual(contrast.margin, 0, contrast.claim)
          count += 1
    self.assertGreaterEqual(count, 15)


if __name__ == '__main__':
  absltest.main()
