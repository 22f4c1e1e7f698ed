"""Tests for rlhf_jax.stages.policy_report, on hand-written stages."""

import csv
import json
import math
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import matplotlib.image
import numpy as np

from rlhf_jax import errors
from rlhf_jax.reports import panels
from rlhf_jax.stages import policy_report
from rlhf_jax.storage import files

# Gold scores at three evaluations, by run and seed; 'single' has two members.
GOLD = {'single_0': [[0, 4, 1], [0, 1, 5]], 'single_1': [[0, 2, 3], [0, 1, 7]],
        'mean': [[0, 3, 5], [0, 4, 7]]}
LABELS = {'single_0': {'method': 'single', 'member': 0},
          'single_1': {'method': 'single', 'member': 1},
          'mean': {'method': 'mean'}}


class Context:

  def __init__(self, workdir):
    self.directory = pathlib.Path(workdir, 'report')
    self.directory.mkdir()
    self.directory_of = lambda name: pathlib.Path(workdir, name)
    self.result_of = lambda name: {'accuracy': .5, 'stage_of': name}
    self.seconds_of = lambda name: 2.5
    self.shown = ''

  def show(self, text):
    self.shown += text


class ReportTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.context = Context(workdir)
    self.policies = []
    for name, seeds in GOLD.items():
      for seed, gold in enumerate(seeds):
        stage = f'seed_{seed}/policies/{name}'
        self.policies.append({'stage': stage, 'seed': seed, 'run': name,
                              'labels': LABELS[name]})
        self.write(stage, 'evaluation', [
            {'step': 10 * i, 'time': 1., 'gold': float(x), 'gold_se': .1,
             'proxy': i + .5, 'proxy_se': .2, 'rule': None,
             'kl_k1': 60. * i, 'sqrt_kl': 8. * i, 'length': 20.}
            for i, x in enumerate(gold)])
        self.write(stage, 'metrics', [
            {'step': i, 'rollout/score': float(x)} for i, x in enumerate(gold)])
        self.write(stage, 'final', [
            {'prompt': i, 'gold': float(x)} for i, x in enumerate(gold)])

  def write(self, stage, name, rows):
    directory = self.context.directory_of(stage)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f'{name}.jsonl').write_text(
        ''.join(json.dumps(row) + '\n' for row in rows))

  def report(self, policies=None, **figure):
    return policy_report.run(
        self.context, policies=policies or self.policies,
        stages=['seed_0/sft'], title='A title', figure=figure)

  def rows(self, name):
    with open(self.context.directory / f'{name}.csv', newline='') as stream:
      return list(csv.DictReader(stream))

  def test_files(self):
    out = self.report(kind='curves', baseline={'method': 'single'})
    directory = self.context.directory
    self.assertEqual(out, {'figure': str(directory / 'figure.png'),
                           'rows': 18})
    self.assertCountEqual(
        [path.name for path in directory.iterdir()],
        ['results.csv', 'results.jsonl', 'summary.csv', 'summary.md',
         'stages.jsonl', 'figure.png'])
    rows = self.rows('results')
    self.assertLen(rows, 18)
    self.assertEqual(
        [rows[4][name] for name in ('seed', 'run', 'method', 'member', 'step',
                                    'gold', 'gold_se', 'rule')],
        ['1', 'single_0', 'single', '0', '10', '1.0', '0.1', ''])
    self.assertEqual(rows[-1]['member'], '')
    lines = (directory / 'results.jsonl').read_text().splitlines()
    self.assertEqual(list(map(str, json.loads(lines[4]).values())),
                     [value or 'None' for value in rows[4].values()])
    self.assertEqual(json.loads((directory / 'stages.jsonl').read_text()),
                     {'stage': 'seed_0/sft', 'stage_seconds': 2.5,
                      'accuracy': .5, 'stage_of': 'seed_0/sft'})
    image = matplotlib.image.imread(directory / 'figure.png')
    self.assertGreater((image[..., :3] < .9).any(axis=-1).mean(), .01)

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

  def drawn(self, what, policies=None, **figure):
    with mock.patch.object(panels, what) as draw:
      self.report(policies, **figure)
    draw.assert_called_once()
    return draw.call_args.kwargs

  def test_curves(self):
    given = self.drawn('curves', kind='curves', limit_kl=150.)
    self.assertEqual((given['x'], given['y']), ('sqrt_kl', ('gold', 'proxy')))
    self.assertEqual(
        [(row['line'], row['sqrt_kl'], row['gold'], row['gold_se'])
         for row in given['rows']],
        [('single model (mean of members)', 0, 0, 0),
         ('single model (mean of members)', 8, 2, 1),
         ('ensemble mean', 0, 0, 0), ('ensemble mean', 8, 3.5, .5)])

  def test_everywhere(self):
    for policy in self.policies:
      policy['labels'] = {'method': policy['run'], 'family': {
          'single_0': 'a', 'single_1': 'b'}.get(policy['run'])}
    given = self.drawn(
        'curves', kind='curves', x='step', y=('gold',), panel=('family',),
        everywhere={'method': 'mean'}, x_name='optimizer steps')
    self.assertEqual(
        [(row['panel'], row['line'], row['gold']) for row in given['rows']],
        [('a', 'single_0', 0), ('a', 'single_0', 2.5), ('a', 'single_0', 3),
         ('b', 'single_1', 0), ('b', 'single_1', 1.5), ('b', 'single_1', 5),
         *((panel, 'ensemble mean', gold) for panel in 'ab'
           for gold in (0, 3.5, 6))])
    self.assertEqual(given['x_name'], 'optimizer steps')

  def log(self, name, seed, values, group, groups, num_validation=0):
    directory = self.context.directory_of(f'seed_{seed}/{name}')
    directory.mkdir(parents=True)
    files.save_arrays(
        directory / 'logged.npz', group=np.array(group, np.int32),
        **{f'value_{key}': np.float32(x) for key, x in values.items()})
    self.results[f'seed_{seed}/{name}'] = {
        'groups': groups, 'num_validation': num_validation}
    return {'stage': f'seed_{seed}/{name}', 'seed': seed}

  def distributions(self, **figure):
    self.results = {}
    self.context.result_of = lambda name: self.results.get(name, {})
    logs = {'pairs': [
        self.log('pairs', 0, {'safe': [[1, .5], [.5, 0], [9, 9]]},
                 [[0, 1], [0, -1], [0, 1]], ['good', 'bad'], 1),
        self.log('pairs', 1, {'safe': [[0, .25]]}, [[0, 1]],
                 ['good', 'bad'])],
            'up': [self.log('up', 0, {'safe': [[.2], [.4]]}, [[1], [1]],
                            ['none', 'up'])]}
    for i, policy in enumerate(self.policies):
      self.write(policy['stage'], 'final', [
          {'prompt': 0, 'component_safe': i / 10, 'component_long': 1},
          {'prompt': 1, 'component_safe': 0., 'component_long': 0}])
    return policy_report.run(
        self.context, policies=self.policies, stages=['seed_0/sft'],
        title='A title', logs=logs, figure={
            'kind': 'distributions', 'components': ('safe',), **figure})

  def test_distributions(self):
    with mock.patch.object(panels, 'violins') as draw:
      self.distributions(logs=('pairs', 'up'))
    rows = {row['name']: row for row in self.rows('distributions')}
    # The response that is missing and the validation example are left out;
    # members of a seed are together, .0, 0 and .2, 0, then .1, 0 and .3, 0.
    expected = {
        'pairs, good (logged)': ([1., .5, 0.], [.75, 0.]),
        'pairs, bad (logged)': ([.5, .25], [.5, .25]),
        'up (logged)': ([.2, .4], None),
        'single model': ([0., 0., .2, 0., .1, 0., .3, 0.], [.05, .1]),
        'ensemble mean': ([.4, 0., .5, 0.], [.2, .25])}
    self.assertEqual(list(rows), list(expected))
    for given, (name, (values, means)) in zip(
        draw.call_args.args[0], expected.items(), strict=True):
      self.assertEqual((given['panel'], given['x'], given['logged']),
                       ('safe', name, 'logged' in name))
      np.testing.assert_allclose(given['values'], values, rtol=1e-6)
      row = rows[name]
      self.assertEqual((row['component'], int(row['responses'])),
                       ('safe', len(values)))
      mean, error = np.mean(means or values), np.std(
          means or values, ddof=1) / 2**.5
      for column, number in (('mean', mean), ('mean_se', error),
                             ('quantile_0.5', np.median(values)),
                             ('quantile_0.95', np.quantile(values, .95))):
        self.assertAlmostEqual(float(row[column]), number, 6, column)

  def test_distributions_of_some(self):
    self.distributions(logs=('up',), components=('safe',),
                       runs={'method': 'mean'}, columns=('gold',))
    self.assertEqual([row['name'] for row in self.rows('distributions')],
                     ['up (logged)', 'ensemble mean'])
    self.assertTrue((self.context.directory / 'figure.png').exists())
    self.assertLen(self.rows('summary'), 2)

  @parameterized.parameters(
      ((), "has 'warm', and .*final.jsonl has safe, long; name"),
      (('up',), "has 'warm', and .*logged.npz has safe; name"))
  def test_no_such_component(self, logs, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      self.distributions(components=('warm',), logs=logs)

  def test_training_curves(self):
    given = self.drawn(
        'curves', kind='curves', source='training', x='step',
        y=('rollout/score',), window=2, line=('method', 'member'))
    self.assertEqual(
        [(row['line'], row['step'], row['rollout/score'])
         for row in given['rows'][3:]],
        [('single model, member 1', 0, 0), ('single model, member 1', 1, .75),
         ('single model, member 1', 2, 3.25), ('ensemble mean', 0, 0),
         ('ensemble mean', 1, 1.75), ('ensemble mean', 2, 4.75)])
    self.assertEqual(self.rows('training')[1], {
        'seed': '0', 'run': 'single_0', 'method': 'single', 'member': '0',
        'step': '1.0', 'rollout/score': '2.0'})
    self.assertEqual(self.rows('summary')[2]['rollout/score'], '4.75')

  def test_final(self):
    for policy in self.policies:
      policy['labels'] = {'kl_coef': {'single_0': .1, 'single_1': 0.}.get(
          policy['run'])}
    given = self.drawn('points', kind='final', x='kl_coef', line=())
    self.assertEqual(given['x'], 'KL coefficient')
    self.assertEqual([(row['x'], row['gold']) for row in given['rows']],
                     [(.1, 3), (0., 5), (None, 6)])
    for policy in self.policies:
      policy['labels'] = {'method': policy['run'], 'deep': True}
    given = self.drawn('bars', kind='final', x='method', line=('deep',))
    self.assertEqual([(row['x'], row['line']) for row in given['rows']], [
        ('single_0', 'deep True'), ('single_1', 'deep True'),
        ('ensemble mean', 'deep True')])

  def test_win_rates(self):
    given = self.drawn('bars', kind='win_rates', against={'method': 'single'})
    row, = given['rows']
    self.assertEqual((row['x'], row['panel']), ('ensemble mean', ''))
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

  @parameterized.parameters(
      {'kind': 'curves'}, {'kind': 'table'},
      {'kind': 'curves', 'source': 'training', 'x': 'step', 'y': ('score',)},
      {'kind': 'win_rates', 'against': {'method': 'single'}})
  def test_one_seed_one_point_and_nothing_known(self, **figure):
    for policy in self.policies[::2]:
      for name in ('evaluation', 'metrics', 'final'):
        self.write(policy['stage'], name, [{'step': 0, 'prompt': 1}])
    self.report(self.policies[::2], **figure)
    self.assertTrue((self.context.directory / 'figure.png').exists())
    for row in self.rows('summary'):
      self.assertEqual((row['seeds'], row['gold']), ('1', 'nan'))
    self.assertIn('over prompts', self.context.shown)

  def test_refuses_before_it_reads(self):
    with self.assertRaisesRegex(errors.ConfigError, 'config.figure.kind'):
      self.report([{'run': 'a', 'labels': {}}], kind='pie')


if __name__ == '__main__':
  absltest.main()
