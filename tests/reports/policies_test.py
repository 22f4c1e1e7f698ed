"""Tests for rlhf_jax.reports.policies, on hand-written stages."""

import json
import math

from absl.testing import absltest
import numpy as np
from reports import written

from rlhf_jax.reports import style


class PoliciesTest(written.ReportTestCase):

  def test_summary(self):
    self.report(kind='curves', columns=('gold', 'rule'),
                baseline={'method': 'single'})
    single, mean = self.rows('summary')
    # Members first: 0, 3, 2 and 0, 1, 6.
    expected = {'gold': 4, 'gold_se': 2, 'peak': 4.5, 'peak_se': 1.5,
                'drop': .5, 'drop_se': .5, 'peak_step': 15, 'gold_above': 0}
    for name, value in expected.items():
      self.assertAlmostEqual(float(single[name]), value, msg=name)
    self.assertEqual([single[k] for k in ('run', 'method', 'seeds', 'members',
                                          'rule', 'rule_above')],
                     ['single_0 (+1)', 'single', '2', '2', 'nan', 'nan'])
    self.assertNotIn('member', single)
    # 5 - 2 and 7 - 6.
    expected = {'gold': 6, 'gold_se': 1, 'gold_above': 2, 'gold_above_se': 1}
    for name, value in expected.items():
      self.assertAlmostEqual(float(mean[name]), value, msg=name)
    text = (self.context.directory / 'summary.md').read_text().splitlines()
    self.assertRegex(text[0], r'\| run +\| seeds \| members \| gold +\| rule ')
    self.assertRegex(text[3], r'\| mean +\| 2 +\| 1 +\| 6.000 \+- 1.000 \| - ')
    self.assertIn('one standard error over seeds', self.context.shown)
    self.assertIn('less single model of the same', self.context.shown)
    self.assertIn('| 2.000 +- 1.000 ', self.context.shown)

  def test_curves(self):
    kwargs = self.drawn('curves', kind='curves', limit_kl=150.)
    self.assertEqual((kwargs['x'], kwargs['y']), ('sqrt_kl', ('gold', 'proxy')))
    # At equal KL, up to 150 nats; of seeds that are 3, 2 and 1, 6 at the end.
    end = 150**.5
    share = (end - 8) / 8
    for line, (at_8, last) in {
        'single model (mean of members)': (2, (4 + 4 * share) / 2),
        'ensemble mean': (3.5, (7 + 5 * share) / 2)}.items():
      x, gold = zip(*[(row['sqrt_kl'], row['gold']) for row in kwargs['rows']
                      if row['line'] == line and 'end' not in row])
      self.assertEqual((x[0], gold[0]), (0, 0))
      self.assertAlmostEqual(np.interp(8, x, gold), at_8, delta=.05)
      self.assertAlmostEqual(x[-1], end)
      self.assertAlmostEqual(gold[-1], last)
    self.assertEqual(
        [(row['line'], *row['gold']) for row in kwargs['seeds']],  # to 150 nats
        [('single model (mean of members)', 0, 3),
         ('single model (mean of members)', 0, 1),
         ('ensemble mean', 0, 3), ('ensemble mean', 0, 4)])
    self.assertEqual(
        [(row['line'], row['sqrt_kl'], row['gold'], row['gold_se'])
         for row in kwargs['rows'] if 'end' in row],
        [('single model (mean of members)', 16, 4, 2),
         ('ensemble mean', 16, 6, 1)])
    self.assertEqual(kwargs['note'], 'mean of 2 seeds +- one standard error '
                     'over them; thin: single seeds; points: the end of '
                     'training; a mean ends where its first seed does')

  def test_members_of_seeds_are_thin(self):
    """Member 0 of one seed has nothing in common with that of another."""
    kwargs = self.drawn('curves', kind='curves', x='step', y=('gold',),
                        line=('method', 'member'))
    self.assertEqual(
        [(row['line'], *row['gold']) for row in kwargs['seeds']],
        [('single model (mean of members)', *gold)
         for gold in ((0, 4, 1), (0, 1, 5), (0, 2, 3), (0, 1, 7))]
        + [('ensemble mean', 0, 3, 5), ('ensemble mean', 0, 4, 7)])
    self.assertEqual([row['gold'] for row in kwargs['rows']],
                     [0, 2, 4, 0, 3.5, 6])
    self.assertIn('thin: single models of single seeds', kwargs['note'])
    kwargs = self.drawn(
        'curves', [one for one in self.policies if one['seed'] == 0],
        kind='curves', x='step', line=('method', 'member'))
    self.assertEqual(
        list(dict.fromkeys(row['line'] for row in kwargs['rows'])),
        ['single model, member 0', 'single model, member 1', 'ensemble mean'])

  def test_one_seed_has_no_thin_lines(self):
    kwargs = self.drawn(
        'curves', [one for one in self.policies if one['seed'] == 0],
        kind='curves', x='step')
    self.assertEmpty(kwargs['seeds'])
    self.assertIn('one seed', kwargs['note'])

  def test_a_table_is_drawn_in_the_order_of_methods(self):
    for policy in self.policies:
      policy['labels'] = {
          'single_0': {'data': 'up', 'method': 'RLOO, k=4'},
          'single_1': {'method': 'PPO'},
          'mean': {'data': 'down', 'method': 'RLOO, k=4'}}[policy['run']]
    kwargs = self.drawn('bars', kind='table')
    self.assertEqual(
        [(row['x'], row['colour']) for row in kwargs['rows']],
        [('PPO', style.METHODS['PPO']),
         ('RLOO, k=4, up', style.METHODS['RLOO, k=4']),
         ('RLOO, k=4, down', style.METHODS['RLOO, k=4'])])

  def test_panels_and_lines_are_in_the_order_of_their_numbers(self):
    numbers = {'single_0': (.25, 4), 'single_1': (.25, 3), 'mean': (0., 5)}
    for policy in self.policies:
      noise, members = numbers[policy['run']]
      policy['labels'] = {'method': 'mean', 'label_noise': noise,
                          'num_members': members}
    kwargs = self.drawn('bars', kind='final', x='method',
                        panel=('label_noise',), line=('num_members',))
    self.assertEqual([row['panel'] for row in kwargs['rows']], [
        'label noise 0', 'label noise 0.25', 'label noise 0.25'])
    self.assertEqual([row['line'] for row in kwargs['rows']], [
        'ensemble members 5', 'ensemble members 3', 'ensemble members 4'])

  def test_the_judge_has_the_last_word(self):
    directory = self.context.directory_of('win_rates')
    directory.mkdir()
    (directory / 'win_rates.csv').write_text('run,seed,win_rate\n' + ''.join(
        f'{policy["run"]},{policy["seed"]},{.5 + .1 * i}\n'
        for i, policy in enumerate(self.policies)))
    kwargs = self.drawn('bars', judged='win_rates', kind='table',
                        columns=('win_rate',), baseline={'method': 'single'})
    self.assertEqual(kwargs['y'], ('win_rate',))
    for row, value in zip(kwargs['rows'], (.65, .95), strict=True):
      self.assertAlmostEqual(row['win_rate'], value)
    self.assertEqual([row['win_rate'] for row in self.rows('results')[:3]],
                     ['', '', '0.5'])
    self.assertAlmostEqual(
        float(self.rows('summary')[1]['win_rate_above']), .3)

  def test_everywhere(self):
    for policy in self.policies:
      policy['labels'] = {'method': policy['run'], 'family': {
          'single_0': 'a', 'single_1': 'b'}.get(policy['run'])}
    kwargs = self.drawn(
        'curves', kind='curves', x='step', y=('gold',), panel=('family',),
        everywhere={'method': 'mean'}, x_name='optimizer steps')
    self.assertEqual(
        [(row['panel'], row['line'], row['gold']) for row in kwargs['rows']],
        [*((panel, 'ensemble mean', gold) for panel in 'ab'
           for gold in (0, 3.5, 6)),  # which has a place of its own
         ('a', 'single 0', 0), ('a', 'single 0', 2.5), ('a', 'single 0', 3),
         ('b', 'single 1', 0), ('b', 'single 1', 1.5), ('b', 'single 1', 5)])
    self.assertEqual(kwargs['x_name'], 'optimizer steps')

  def test_training_curves(self):
    kwargs = self.drawn(
        'curves', kind='curves', source='training', x='step',
        y=('rollout/score',), window=2, line=('method', 'member'))
    single = 'single model (mean of members)'
    self.assertEqual(
        [(row['line'], row['step'], row['rollout/score'])
         for row in kwargs['rows']],
        [(single, 0, 0), (single, 1, 1), (single, 2, 3),
         ('ensemble mean', 0, 0),
         ('ensemble mean', 1, 1.75), ('ensemble mean', 2, 4.75)])
    self.assertEqual(self.rows('training')[1], {
        'seed': '0', 'run': 'single_0', 'method': 'single', 'member': '0',
        'step': '1.0', 'rollout/score': '2.0'})
    self.assertEqual(self.rows('summary')[2]['rollout/score'], '4.75')

  def test_final(self):
    for policy in self.policies:
      policy['labels'] = {'kl_coef': {'single_0': .1, 'single_1': 0.}.get(
          policy['run'])}
    kwargs = self.drawn('points', kind='final', x='kl_coef', line=())
    self.assertEqual(kwargs['x'], 'KL coefficient')
    self.assertEqual([(row['x'], row['gold']) for row in kwargs['rows']],
                     [(.1, 3), (0., 5), (None, 6)])
    for policy in self.policies:
      policy['labels'] = {'method': policy['run'], 'deep': True}
    kwargs = self.drawn('bars', kind='final', x='method', line=('deep',))
    self.assertEqual([(row['x'], row['line']) for row in kwargs['rows']], [
        ('ensemble mean', 'deep True'), ('single 0', 'deep True'),
        ('single 1', 'deep True')])

  def test_win_rates(self):
    kwargs = self.drawn('bars', kind='win_rates', against={'method': 'single'})
    row, = kwargs['rows']
    self.assertEqual((row['x'], row['panel']), ('ensemble mean', ''))
    self.assertEqual(kwargs['note'], 'mean of 2 seeds; errors: standard '
                     'deviation over those that it is against')
    # Seed 0, prompt by prompt: tie, loss, win and tie, win, win.
    # Seed 1: tie, win, win and tie, win, tie.
    rates = [.5, 2.5 / 3, 2.5 / 3, 2 / 3]
    self.assertAlmostEqual(row['win_rate'], sum(rates) / 4)
    spread = (abs(rates[0] - rates[1]) + abs(rates[2] - rates[3])) / 2
    self.assertAlmostEqual(row['win_rate_se'], spread / 2**.5)
    rows = self.rows('win_rates')
    self.assertEqual([(r['seed'], r['run'], r['opponents']) for r in rows],
                     [('0', 'mean', '2'), ('1', 'mean', '2')])
    self.assertAlmostEqual(float(rows[0]['win_rate']), 2 / 3)
    summary = self.rows('summary')
    self.assertTrue(math.isnan(float(summary[0]['win_rate'])))
    # Over seeds 2 / 3 and 3 / 4.
    self.assertAlmostEqual(float(summary[1]['win_rate_se']), 1 / 24)

  def ungold(self):
    """Takes the gold scores and the rule out of every file."""
    for policy in self.policies:
      directory = self.context.directory_of(policy['stage'])
      for name in ('evaluation', 'final'):
        rows = map(json.loads, (directory / f'{name}.jsonl').read_text(
            ).splitlines())
        self.write(policy['stage'], name, [
            {k: v for k, v in row.items()
             if k not in ('gold', 'gold_se', 'rule')} for row in rows])

  def test_without_gold(self):
    self.ungold()
    kwargs = self.drawn('curves', kind='curves', baseline={'method': 'single'})
    self.assertEqual(kwargs['y'], ('proxy',))
    self.assertEqual([tuple(row['proxy']) for row in kwargs['seeds']],
                     [(.5, 1.5, 2.5)] * 4)
    single, _ = self.rows('summary')
    columns = ('proxy', 'kl_k1', 'length')
    self.assertEqual(
        [name for name in single if not name.endswith('_se')],
        ['run', 'method', 'seeds', 'members', *columns,
         *(f'{name}_above' for name in columns)])
    text = (self.context.directory / 'summary.md').read_text()
    self.assertEqual(
        [cell.strip() for cell in text.splitlines()[0].split('|')[1:-1]],
        ['run', 'seeds', 'members', *columns, 'proxy_above'])
    self.assertNotIn(' - ', text + self.context.shown)
    self.assertIn('| 2.500 +- 0.000 | 0.000 +- 0.000 ', self.context.shown)
    self.assertNotIn('gold', self.rows('results')[0])

  def test_without_gold_bars_and_points(self):
    self.ungold()
    for what, figure, y in (
        ('bars', {'kind': 'table'}, ('proxy',)),
        ('bars', {'kind': 'table', 'columns': ('gold', 'length')},
         ('length',)),
        ('bars', {'kind': 'final', 'x': 'method', 'line': ()}, ('proxy',))):
      kwargs = self.drawn(what, **figure)
      self.assertEqual(kwargs['y'], y)
      for row in kwargs['rows']:
        self.assertTrue(math.isfinite(row[y[0]]), row)

  def test_the_page_has_a_drop_beside_gold_alone(self):
    for columns in (('proxy',), ('proxy', 'gold')):
      self.report(kind='table', columns=columns)
      head = (self.context.directory / 'summary.md').read_text().split('\n')[0]
      self.assertEqual('| drop' in head, 'gold' in columns)
      self.assertIn('drop', self.rows('summary')[0])

  def test_gold_of_some(self):
    for policy in self.policies[-2:]:
      self.write(policy['stage'], 'evaluation', [{'step': 0, 'proxy': 1.}])
    self.report(kind='table', columns=('proxy', 'gold'))
    single, mean = self.rows('summary')
    self.assertEqual((single['gold'], mean['gold'], mean['drop']),
                     ('4.0', 'nan', 'nan'))


if __name__ == '__main__':
  absltest.main()
