"""Tests for rlhf_jax.reports.verdicts."""

import dataclasses
import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats
import worlds

from rlhf_jax import errors
from rlhf_jax.reports import contrasts
from rlhf_jax.reports import verdicts
from rlhf_jax.storage import files

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

  @parameterized.parameters(
      ('more', 0., .3, .3), ('more', .1, .5, .4), ('less', 0., -.3, .3),
      ('less', .1, -.5, .4), ('no_less', .2, .1, .3), ('equal', .2, .1, .1),
      ('equal', .2, -.1, .1))
  def test_p_at_the_end_of_the_interval(self, expects, margin, mean, half):
    p_value = functools.partial(
        verdicts.p_value, expects=expects, margin=margin)
    self.assertAlmostEqual(p_value(around(mean, half)), .025, places=6)
    for factor, decided in ((.99, True), (1.01, False)):
      values = around(mean, factor * half)
      self.assertEqual(p_value(values) < .025, decided)
      self.assertEqual(
          not verdicts.word(values, expects=expects, margin=margin)
          .startswith('unresolved'), decided)

  def test_p_without_a_deviation(self):
    self.assertTrue(math.isnan(verdicts.p_value([1.])))
    self.assertEqual(verdicts.p_value([1., 1.]), 0)
    self.assertEqual(verdicts.p_value([1., 1.], margin=1.), 1)

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
    # Beyond the margin more seeds exclude that both are alike.
    word = verdicts.word(around(.3, .25), expects='equal', margin=.1)
    self.assertRegex(word, r'unresolved, \d+ seeds would do')


class RowTest(absltest.TestCase):

  def test_a_number_to_compare_with(self):
    """On whose other side a result is excluded, however near."""
    folder = worlds.folder()
    (folder / 'f').mkdir()
    rows = worlds.curves(a={'1': (.4,), '2': (.42,), '3': (.41,)})
    files.write_csv(folder / 'f/results.csv', rows)
    for changes, word, mean in (
        (dict(reference=.5), 'excluded', '-0.090'),
        (dict(reference=.3), 'holds', '0.110'),
        (dict(reference=.3, effect=.5), 'holds', '0.110'),
        (dict(reference=.41, effect=.45), 'excluded', '0.000'),
        (dict(reference=.41, effect=.42), 'unresolved, 7 seeds', '0.000')):
      line = verdicts.row(contrasts.Contrast(**FIELDS | changes), folder)
      self.assertStartsWith(line['word'], word)
      self.assertEqual(line['mean'].replace('-0.000', '0.000'), mean)
      self.assertEndsWith(line['contrast'], f'less {changes["reference"]}')

  def test_a_line(self):
    folder = worlds.folder()
    (folder / 'f').mkdir()
    rows = worlds.curves(a={'1': (0, 5), '2': (0, 7), '3': (0, 6)})
    files.write_csv(folder / 'f/results.csv', rows)
    line = verdicts.row(contrasts.Contrast(**FIELDS), folder)
    self.assertEqual((line['seeds'], line['mean'], line['word']),
                     (3, '6.000', 'holds'))
    self.assertEqual(line['contrast'], 'a: gold at the end')
    far = contrasts.Contrast(**FIELDS | dict(
        at={'column': 'kl', 'from': 4, 'to': 6}))
    self.assertEqual(verdicts.row(far, folder)['word'], 'not comparable')
    (folder / 'a_directory/results.csv').mkdir(parents=True)
    with self.assertRaisesRegex(errors.DataError, 'cannot read .*a_directory'):
      verdicts.row(contrasts.Contrast(
          **FIELDS | dict(figure='a_directory')), folder)

  def test_seeds_that_are_not_there(self):
    """Three and more than half have to be, or all."""
    folder = worlds.folder()
    (folder / 'f').mkdir()
    contrast = contrasts.Contrast(**FIELDS | dict(
        at={'column': 'kl', 'from': 2, 'to': 2}))
    for there, count, word in (
        (0, 3, 'not comparable'), (1, 1, 'unresolved, one seed'),
        (1, 2, 'not comparable, 1 of 2 seeds are there'), (2, 2, 'holds'),
        (2, 3, 'not comparable, 2 of 3 seeds are there'),
        (3, 4, 'holds, by the 3 of 4 seeds that are there'),
        (3, 6, 'not comparable, 3 of 6 seeds are there'),
        (4, 6, 'holds, by the 4 of 6 seeds that are there')):
      files.write_csv(folder / 'f/results.csv', worlds.curves(a={
          str(seed): (0, 5) if seed < there else (5,)
          for seed in range(count)}))
      line = verdicts.row(dataclasses.replace(
          contrast, kind='confirmatory', num_seeds=count), folder)
      self.assertEqual((line['seeds'], line['word']), (there, word))
      self.assertEqual(line['mean'] == '', word.startswith('not'))

  def test_a_note(self):
    line = verdicts.row(contrasts.Contrast(
        **FIELDS, note='changed later'), worlds.folder())
    self.assertEqual(line['note'], 'changed later')

  def test_two_figures(self):
    folder = worlds.folder()
    contrast = contrasts.Contrast(
        **FIELDS | dict(less={'run': 'a'}, less_figure='g'))
    for name, values in (('f', {'1': (5,), '2': (7,)}),
                         ('g', {'2': (3,), '1': (4,), '9': (0,)})):
      self.assertEqual(verdicts.row(contrast, folder)['word'], 'not yet run')
      (folder / name).mkdir()
      files.write_csv(folder / name / 'results.csv', worlds.curves(a=values))
    line = verdicts.row(contrast, folder)
    self.assertEqual((line['seeds'], line['mean']), (2, '2.500'))
    self.assertEqual(line['contrast'], 'a less a of g: gold at the end')
    (folder / 'own').mkdir()
    files.write_csv(folder / 'own/results.csv', worlds.curves(a={'1': (6,)}))
    line = verdicts.row(contrast, folder, own=folder / 'own')
    self.assertEqual((line['seeds'], line['mean']), (1, '2.000'))

  def test_no_word_before_the_last_of_the_seeds_that_were_fixed(self):
    folder = worlds.folder()
    contrast = contrasts.Contrast(
        **FIELDS | dict(kind='confirmatory', num_seeds=3))
    line = verdicts.row(contrast, folder)
    self.assertEqual((line['seeds'], line['mean'], line['word']),
                     (0, '', 'not yet run'))
    (folder / 'f').mkdir()
    for count, word in ((2, 'not yet run, 1 seeds are left'), (3, 'holds')):
      rows = worlds.curves(
          a={str(seed): (0, 5 + seed) for seed in range(count)})
      files.write_csv(folder / 'f/results.csv', rows)
      line = verdicts.row(contrast, folder)
      self.assertEqual((line['seeds'], line['word'], line['kind']),
                       (count, word, 'confirmatory'))
      self.assertEqual(line['mean'] == '', count < 3)


if __name__ == '__main__':
  absltest.main()
