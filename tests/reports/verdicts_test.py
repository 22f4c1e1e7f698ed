"""Tests for rlhf_jax.reports.verdicts."""

import dataclasses
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats
import worlds

from rlhf_jax import errors
from rlhf_jax.reports import verdicts
from rlhf_jax.storage import files

EXPERIMENTS = worlds.ROOT / 'experiments'
# Mean 1 and deviation 1 of three seeds: an interval of 1 +- 2.48.
WIDE, FIELDS = (0., 1., 2.), dict(
    claim='c', paper='p', figure='f', first={'run': 'a'}, column='gold',
    command='x')


def around(mean, half, count=5):
  """Values whose interval is mean +- half."""
  shape = np.linspace(-1, 1, count)
  quantile = stats.t.ppf(.975, count - 1)
  return mean + shape * half * math.sqrt(count) / quantile / shape.std(ddof=1)


class WordTest(parameterized.TestCase):

  def test_interval(self):
    mean, low, high = verdicts.interval(WIDE)
    # t(2) = 4.302653 standard errors, of 1 / sqrt(3).
    self.assertAlmostEqual(high - mean, 4.302653 / math.sqrt(3), 5)
    self.assertAlmostEqual(mean - low, 4.302653 / math.sqrt(3), 5)
    self.assertEqual(verdicts.interval([3.]), (3., -math.inf, math.inf))
    np.testing.assert_allclose(
        verdicts.interval(around(.3, .2)), (.3, .1, .5), atol=1e-9)

  @parameterized.parameters(
      ('more', 0., None, .3, .2, 'holds'), ('more', 0., None, .3, .4, 'unre'),
      ('more', .2, None, .3, .2, 'unresolved'), ('more', .05, None, .3, .2,
                                                 'holds'),
      ('more', 0., None, -.3, .2, 'excluded'), ('less', 0., None, -.3, .2,
                                                'holds'),
      ('less', 0., None, .3, .2, 'excluded'),
      # What the paper says is larger than the interval, though 0 is in it.
      ('more', 0., .6, .3, .35, 'unre'), ('more', 0., .7, .3, .35, 'excluded'),
      ('less', 0., -.7, -.3, .35, 'excluded'),
      ('less', 0., -.6, -.3, .35, 'unresolved'),
      ('equal', .1, None, .02, .05, 'equivalent within 0.1'),
      ('equal', .1, None, .02, .1, 'unresolved'),
      ('equal', .1, None, .3, .1, 'excluded'),
      ('equal', .1, None, -.3, .1, 'excluded'),
      ('more', .1, None, .02, .05, 'no effect beyond 0.1'),
      ('no_less', .1, None, .02, .1, 'holds'),
      ('no_less', .1, None, -.2, .05, 'excluded'),
      ('no_less', .1, None, -.1, .05, 'unresolved'))
  def test_the_rule(self, expects, margin, effect, mean, half, expected):
    self.assertStartsWith(verdicts.word(
        around(mean, half), expects=expects, margin=margin, effect=effect),
                          expected)

  def test_how_many_seeds_would_do(self):
    word = verdicts.word(WIDE)
    count = int(word.removeprefix('unresolved, ').removesuffix(
        ' seeds would do'))
    half = lambda n: stats.t.ppf(.975, n - 1) / math.sqrt(n)
    self.assertLess(half(count), 1)
    self.assertGreaterEqual(half(count - 1), 1)
    self.assertEqual(verdicts.word([-1., 1.]),
                     'unresolved, more than 999 seeds')
    self.assertEqual(verdicts.word([1.]), 'unresolved, one seed')


def table(**runs):
  """Rows of {run: {seed: values}}, with a KL of 0, 2, 4, ..."""
  return [{'seed': seed, 'run': run, 'method': run[0], 'gold': str(x),
           'kl': str(2 * i), 'empty': ''}
          for run, seeds in runs.items() for seed, values in seeds.items()
          for i, x in enumerate(values)]


class ValuesTest(parameterized.TestCase):

  def values(self, rows, **changes):
    return verdicts.values(rows, verdicts.Contrast(**FIELDS | changes))

  def test_differences_of_the_same_seed(self):
    rows = table(a={'1': (0, 5), '2': (0, 7)}, b={'2': (9, 4), '1': (9, 1),
                                                  '3': (0, 0)})
    self.assertEqual(self.values(rows, less={'run': 'b'}), {'1': 4, '2': 3})
    self.assertEqual(self.values(rows), {'1': 5, '2': 7})

  def test_members_count_by_their_mean(self):
    rows = table(s0={'1': (0, 5)}, s1={'1': (0, 8)}, s2={'1': (0, 11)})
    self.assertEqual(self.values(rows, first={'method': 's'}), {'1': 8})

  def test_statistics(self):
    rows = table(a={'1': (2, 6, 5)})
    self.assertEqual(self.values(rows, statistic='growth'), {'1': 2.5})
    self.assertEqual(self.values(rows, statistic='drop'), {'1': 1})

  def test_a_number_to_compare_with(self):
    """On whose other side a result is excluded, however near."""
    folder = worlds.folder()
    (folder / 'f').mkdir()
    rows = table(a={'1': (.4,), '2': (.42,), '3': (.41,)})
    files.write_csv(folder / 'f/results.csv', rows)
    for changes, word, mean in (
        (dict(reference=.5), 'excluded', '-0.090'),
        (dict(reference=.3), 'holds', '0.110'),
        (dict(reference=.3, effect=.5), 'holds', '0.110'),
        (dict(reference=.41, effect=.45), 'excluded', '0.000'),
        (dict(reference=.41, effect=.42), 'unresolved, more than', '0.000')):
      line = verdicts.row(verdicts.Contrast(**FIELDS | changes), folder)
      self.assertStartsWith(line['word'], word)
      self.assertEqual(line['mean'].replace('-0.000', '0.000'), mean)
      self.assertEndsWith(line['contrast'], f'less {changes["reference"]}')

  def test_rates_and_growths_have_one(self):
    """Of the committed contrasts: next to 0 neither says anything."""
    count = 0
    for path in EXPERIMENTS.glob('*/contrasts.jsonl'):
      for line in files.read_jsonl(path):
        contrast = verdicts.Contrast(**line)
        if contrast.less is None and (
            contrast.column in ('win_rate', 'accuracy')
            or contrast.statistic == 'growth'):
          self.assertGreater(contrast.reference, 0, contrast.claim)
          self.assertEqual(contrast.margin, 0, contrast.claim)
          count += 1
    self.assertGreaterEqual(count, 15)

  def test_at_equal_kl(self):
    """The mean over the range of a line between its points."""
    rows = table(a={'1': (0, 2, 4), '2': (0, 1)}, b={'1': (0, 0, 0),
                                                     '2': (0, 0, 0)})
    at = {'column': 'kl', 'from': 1, 'to': 3}
    actual = self.values(rows, less={'run': 'b'}, at=at)
    self.assertAlmostEqual(actual['1'], 2)
    self.assertTrue(math.isnan(actual['2']))  # it ends at a KL of 2
    for at, there in (((2.5, 3.5), False), ((4.1, 4.2), False),
                      ((1.5, 2.), True), ((2., 3.), True), ((4., 4.), True)):
      at = {'column': 'kl', 'from': at[0], 'to': at[1]}
      self.assertEqual(not math.isnan(
          self.values(rows, less={'run': 'b'}, at=at)['1']), there)

  def test_mistakes(self):
    rows = table(a={'1': (0,)})
    for changes, message in (
        (dict(first={'run': 'z'}), "no row of {'run': 'z'}"),
        (dict(column='silver'), "no column 'silver'")):
      with self.assertRaisesRegex(errors.DataError, message):
        self.values(rows, **changes)
    for changes, message in (
        (dict(expects='better'), "expects is 'better'"),
        (dict(expects='equal'), 'margin is 0.0; give one above 0'),
        (dict(margin=-1.), 'margin is -1.0'), (dict(kind='sure'), 'kind is'),
        (dict(statistic='last'), 'statistic is'),
        (dict(less={'run': 'b'}, reference=.5), 'give one of both'),
        (dict(less_figure='g'), "less_figure is 'g' without less")):
      with self.assertRaisesRegex(errors.ConfigError, message):
        verdicts.Contrast(**FIELDS | changes)

  def test_a_line(self):
    folder = worlds.folder()
    (folder / 'f').mkdir()
    rows = table(a={'1': (0, 5), '2': (0, 7), '3': (0, 6)})
    files.write_csv(folder / 'f/results.csv', rows)
    line = verdicts.row(verdicts.Contrast(**FIELDS), folder)
    self.assertEqual((line['seeds'], line['mean'], line['word']),
                     (3, '6.000', 'holds'))
    self.assertEqual(line['contrast'], 'a: gold at the end')
    far = verdicts.Contrast(**FIELDS | dict(
        at={'column': 'kl', 'from': 4, 'to': 6}))
    self.assertEqual(verdicts.row(far, folder)['word'], 'not comparable')
    files.write_csv(folder / 'f/results.csv', [
        row | {'kl': '6'} if row['kl'] == '2' and row['seed'] != '2' else row
        for row in rows])
    line = verdicts.row(dataclasses.replace(
        far, kind='confirmatory', num_seeds=3), folder)
    self.assertEqual((line['seeds'], line['word']), (2, verdicts.word(
        [5 * 5 / 6, 6 * 5 / 6]) + ', by the 2 of 3 seeds that are there'))
    (folder / 'a_directory/results.csv').mkdir(parents=True)
    with self.assertRaisesRegex(errors.DataError, 'cannot read .*a_directory'):
      verdicts.row(verdicts.Contrast(
          **FIELDS | dict(figure='a_directory')), folder)

  def test_two_figures(self):
    folder = worlds.folder()
    contrast = verdicts.Contrast(
        **FIELDS | dict(less={'run': 'a'}, less_figure='g'))
    for name, values in (('f', {'1': (5,), '2': (7,)}),
                         ('g', {'2': (3,), '1': (4,), '9': (0,)})):
      self.assertEqual(verdicts.row(contrast, folder)['word'], 'not yet run')
      (folder / name).mkdir()
      files.write_csv(folder / name / 'results.csv', table(a=values))
    line = verdicts.row(contrast, folder)
    self.assertEqual((line['seeds'], line['mean']), (2, '2.500'))
    self.assertEqual(line['contrast'], 'a less a of g: gold at the end')
    (folder / 'own').mkdir()
    files.write_csv(folder / 'own/results.csv', table(a={'1': (6,)}))
    line = verdicts.row(contrast, folder, own=folder / 'own')
    self.assertEqual((line['seeds'], line['mean']), (1, '2.000'))

  def test_no_word_before_the_last_of_the_seeds_that_were_fixed(self):
    folder = worlds.folder()
    contrast = verdicts.Contrast(
        **FIELDS | dict(kind='confirmatory', num_seeds=3))
    line = verdicts.row(contrast, folder)
    self.assertEqual((line['seeds'], line['mean'], line['word']),
                     (0, '', 'not yet run'))
    (folder / 'f').mkdir()
    for count, word in ((2, 'not yet run, 1 seeds are left'), (3, 'holds')):
      rows = table(a={str(seed): (0, 5 + seed) for seed in range(count)})
      files.write_csv(folder / 'f/results.csv', rows)
      line = verdicts.row(contrast, folder)
      self.assertEqual((line['seeds'], line['word'], line['kind']),
                       (count, word, 'confirmatory'))
      self.assertEqual(line['mean'] == '', count < 3)


if __name__ == '__main__':
  absltest.main()
