"""Tests for rlhf_jax.reports.results, with numbers made by hand."""

import dataclasses
import json
import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.reports import results

NAN = math.nan
FIGURE = {'kind': 'curves', 'baseline': None, 'paired_by': ('noise',)}
SINGLE = {'method': 'single'}


def policy(seed, gold=(0.,), *, sqrt_kl=None, final=(), prompts=None,
           training=None, **labels):
  """One whose gold score was followed every ten rollouts, with error .1."""
  gold = np.array(gold)
  labels = {'method': 'mean', 'noise': 0., **labels}
  columns = {'step': 10. * np.arange(len(gold)), 'gold': gold,
             'gold_se': np.full(len(gold), .1)}
  if sqrt_kl is not None:
    columns['sqrt_kl'] = np.array(sqrt_kl)
  return results.Policy(
      directory=pathlib.Path('seed', labels['method']), seed=seed, run='run',
      labels=labels, rows=[], evaluation=columns, training=training or {},
      prompts=list('abcd'[:len(final)]) if prompts is None else prompts,
      gold=np.array(final, np.float64))


# Seed 0 has two members, whose mean is 0, 3, 2; seed 1 has one.
MEMBERS = [policy(0, [0., 4., 1.], method='single', member=0),
           policy(0, [0., 2., 3.], method='single', member=1),
           policy(1, [0., 1., 6.], method='single', member=0)]


def summary(group, policies=None, columns=('gold',), **figure):
  figure = FIGURE | figure
  names = [*columns, 'peak', 'peak_step', 'drop', 'gold_above', 'win_rate',
           'win_rate_sd']
  return results.summary(
      group, policies or group, figure, columns, names)


class SummaryTest(parameterized.TestCase):

  def check(self, row, **expected):
    for name, (value, error) in expected.items():
      np.testing.assert_allclose(
          [row[name], row[f'{name}_se']], [value, error], atol=1e-12,
          err_msg=name)

  def test_members_before_seeds(self):
    # Last: 2 and 6, where a mean over policies would be 10 / 3. Peaks: 3
    # after 10 rollouts and 6 after 20, where the members' own are 4, 3 and 6.
    # The s.e. of two numbers is half their distance.
    self.check(summary(MEMBERS), gold=(4., 2.), peak=(4.5, 1.5),
               peak_step=(15., 5.), drop=(.5, .5))

  def test_groups(self):
    others = [policy(0, noise=.25), policy(0), policy(1)]
    actual = results.groups([*MEMBERS, *others], ('method',))
    self.assertEqual(actual, [MEMBERS, others[:1], others[1:]])
    apart = results.groups(MEMBERS, ('method', 'member'))
    self.assertEqual(apart, [[MEMBERS[0], MEMBERS[2]], [MEMBERS[1]]])

  def test_one_seed_keeps_its_error_over_prompts(self):
    self.check(summary([policy(3, [0., 2., 1.])]), gold=(1., .1),
               peak=(2., .1), drop=(1., NAN))

  def test_one_point(self):
    self.check(summary([policy(0, [1.]), policy(1, [2.])]), gold=(1.5, .5),
               peak=(1.5, .5), peak_step=(0., 0.), drop=(0., 0.))

  def test_unknown_columns_are_nan(self):
    group = [policy(0, [NAN, NAN]), policy(1, [NAN, NAN])]
    row = summary(group, columns=('gold', 'rule'), baseline=SINGLE)
    self.assertTrue(all(math.isnan(value) for value in row.values()), row)

  def test_above_is_paired(self):
    group = [policy(0, [5.]), policy(1, [9.]), policy(2, [50.])]
    noisy = [policy(seed, [99.], method='single', noise=.25)
             for seed in (0, 1)]
    # 5 - 2 and 9 - 6.5; seed 2 has no single model without noise.
    base = [*MEMBERS[:2], policy(1, [6.5], method='single')]
    row = summary(group, [*group, *noisy, *base], baseline=SINGLE)
    self.check(row, gold_above=(2.75, .25))
    self.check(summary(base, [*group, *noisy, *base], baseline=SINGLE),
               gold_above=(0., 0.))

  def test_gold_is_not_measured(self):
    group = [policy(0, [1.]), policy(1, [2.])]
    self.assertEqual(results.measured(group), {'step', 'gold', 'gold_se'})
    for one in group:
      del one.evaluation['gold'], one.evaluation['gold_se']
    self.assertEqual(results.measured(group), {'step'})
    self.assertEmpty(results.measured([]))
    row = results.measure(group[:1], group, FIGURE, ('step',))
    self.assertEqual(list(row), ['step'])
    self.assertEqual(row['step'][0], 0.)

  def test_training_columns(self):
    group = [policy(seed, training={
        'step': np.arange(3.), 'score': np.array([0., 9., seed])})
             for seed in (0, 1)]
    self.check(summary(group, columns=('gold', 'score')), score=(.5, .5))


class CurveTest(parameterized.TestCase):

  def test_by_hand(self):
    actual = results.curve(MEMBERS, ('step', 'gold'))
    np.testing.assert_allclose(actual['step'], [0, 10, 20])
    np.testing.assert_allclose(actual['gold'], [0, 2, 4])
    np.testing.assert_allclose(actual['gold_se'], [0, 1, 2])

  def test_one_seed_has_no_band(self):
    actual = results.curve(MEMBERS[:1], ('gold',))
    np.testing.assert_array_equal(actual['gold'], [0, 4, 1])
    np.testing.assert_array_equal(actual['gold_se'], [NAN] * 3)

  def test_as_long_as_the_shortest(self):
    actual = results.curve(
        [policy(0, [1., 2., 3.]), policy(1, [3., 4.])], ('gold',))
    np.testing.assert_array_equal(actual['gold'], [2, 3])

  def test_limit_of_the_mean(self):
    # Mean 12.2, KL 148.84: kept, though one seed is beyond 150; then 13.5,
    # and nothing after it, though it comes back.
    group = [policy(0, range(5), sqrt_kl=[0, 10, 12, 13, 5]),
             policy(1, range(5), sqrt_kl=[0, 10, 12.4, 14, 5])]
    actual = results.curve(group, ('sqrt_kl', 'gold'), limit_kl=150.)
    np.testing.assert_allclose(actual['sqrt_kl'], [0, 10, 12.2])
    np.testing.assert_allclose(actual['gold'], [0, 1, 2])
    self.assertLen(results.curve(group, ('gold',))['gold'], 5)

  def test_limit_without_kl(self):
    actual = results.curve(MEMBERS, ('gold',), limit_kl=150.)
    np.testing.assert_allclose(actual['gold'], [0, 2, 4])

  def test_smooth(self):
    np.testing.assert_allclose(
        results.smooth(np.array([NAN, 2., 4., NAN, 9., 1.]), 2),
        [NAN, 2., 3., 4., 9., 5.])
    np.testing.assert_allclose(
        results.smooth(np.array([1., 2., 6.]), 10), [1., 1.5, 3.])


class WinRatesTest(parameterized.TestCase):
  FIGURE = FIGURE | {'kind': 'win_rates', 'against': SINGLE}

  def setUp(self):
    super().setUp()
    # Against the first: two wins, a tie, a loss; against the other: all.
    self.mine = policy(0, final=[1., 1., 1., 1.])
    self.single = [policy(0, final=[0., 0., 1., 2.], method='single'),
                   policy(0, final=[0., 0., 0., 0.], method='single')]

  def test_by_hand(self):
    other = [policy(1, final=[9.] * 4, method='single'),
             policy(0, final=[9.] * 4, method='single', noise=.25)]
    row, = results.win_rate_rows(
        self.mine, [self.mine, *self.single, *other], self.FIGURE)
    # .625 and 1: their mean, and .375 / root 2.
    self.assertEqual(row['opponents'], 2)
    self.assertAlmostEqual(row['win_rate'], .8125)
    self.assertAlmostEqual(row['win_rate_sd'], .375 / 2**.5)

  def test_what_a_file_says_of_them(self):
    rates = {'opponents': 2, 'win_rate': .75, 'win_rate_sd': .1}
    mine = dataclasses.replace(self.mine, rates=rates)
    self.assertEqual(results.win_rate_rows(
        mine, [mine, *self.single], self.FIGURE), [rates])

  def test_over_seeds(self):
    seeds = [policy(1, final=[0.]), policy(1, final=[1.], method='single'),
             policy(1, final=[1.], method='single')]
    row = summary([self.mine, seeds[0]], [self.mine, *self.single, *seeds],
                  **self.FIGURE)
    self.assertAlmostEqual(row['win_rate'], .8125 / 2)  # .8125 and 0
    self.assertAlmostEqual(row['win_rate_se'], .8125 / 2)
    # Of the opponents of a seed, 0 in the second; not over seeds.
    self.assertAlmostEqual(row['win_rate_sd'], .375 / 2**.5 / 2)

  def test_nothing_of_those_it_is_against(self):
    policies = [self.mine, *self.single]
    self.assertEmpty(results.win_rate_rows(
        self.single[0], policies, self.FIGURE))
    self.assertTrue(math.isnan(
        summary(self.single, policies, **self.FIGURE)['win_rate']))

  @parameterized.parameters([[]], [[policy(
      0, final=[NAN] * 4, method='single')]])
  def test_unknown_is_nan(self, others):
    row, = results.win_rate_rows(
        self.mine, [self.mine, *others], self.FIGURE)
    self.assertEqual(row['opponents'], len(others))
    self.assertTrue(math.isnan(row['win_rate']))

  def test_other_prompts(self):
    other = policy(0, final=[0.] * 4, prompts=list('abce'), method='single')
    with self.assertRaisesRegex(
        errors.CheckpointError, 'seed/mean/final.jsonl answers other prompts '
        'than seed/single/final.jsonl; make both again'):
      results.win_rate_rows(
          self.mine, [self.mine, other], self.FIGURE)


class ReadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.directory_of = lambda name: self.directory / name
    (self.directory / 'a').mkdir()
    self.write('evaluation', [{'step': 0, 'gold': None},
                              {'step': 4, 'gold': 1.5, 'rule': 2}])

  def write(self, name, rows):
    (self.directory / 'a' / f'{name}.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows))

  def read(self, **figure):
    one, = results.read(
        self, [{'stage': 'a', 'seed': 3, 'run': 'r', 'labels': {'x': 1}}],
        {'kind': 'table', **figure})
    return one

  def test_null_and_absent_are_nan(self):
    one = self.read()
    self.assertEqual((one.seed, one.run, one.labels), (3, 'r', {'x': 1}))
    np.testing.assert_array_equal(one.evaluation['gold'], [NAN, 1.5])
    np.testing.assert_array_equal(one.evaluation['rule'], [NAN, 2])
    self.assertEmpty(one.training)

  def test_training(self):
    self.write('metrics', [{'step': i, 'a': float(i)} for i in (0, 5, 10)])
    one = self.read(kind='curves', source='training', y=('a', 'b'), window=2)
    np.testing.assert_array_equal(one.training['step'], [0, 5, 10])
    np.testing.assert_array_equal(one.training['a'], [0, 2.5, 7.5])
    np.testing.assert_array_equal(one.training['b'], [NAN] * 3)

  def test_final(self):
    self.write('final', [{'prompt': 'p', 'gold': 1.}, {'prompt': 'q'}])
    one = self.read(kind='win_rates')
    self.assertEqual(one.prompts, ['p', 'q'])
    np.testing.assert_array_equal(one.gold, [1., NAN])

  @parameterized.parameters(None, '', '{"step": 1}\n{"st', '\xff\x00')
  def test_damaged(self, text):
    path = self.directory / 'a' / 'evaluation.jsonl'
    path.unlink()
    if text is not None:
      path.write_bytes(text.encode('latin1'))
    with self.assertRaisesRegex(
        errors.CheckpointError,
        'cannot read .*a/evaluation.jsonl: .*; restore it, or .* --redo=a$'):
      self.read()


if __name__ == '__main__':
  absltest.main()
