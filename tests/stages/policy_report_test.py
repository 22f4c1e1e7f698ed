"""Tests for rlhf_jax.stages.policy_report, on hand-written stages."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import matplotlib.image
from reports import written

from rlhf_jax import errors


class ReportTest(written.ReportTestCase):

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
                      'recipe': 'recipe of seed_0/sft',
                      'accuracy': .5, 'stage_of': 'seed_0/sft'})
    image = matplotlib.image.imread(directory / 'figure.png')
    self.assertGreater((image[..., :3] < .9).any(axis=-1).mean(), .01)

  @parameterized.parameters(
      {'kind': 'curves'}, {'kind': 'table'},
      {'kind': 'curves', 'source': 'training', 'x': 'step', 'y': ('score',)},
      {'kind': 'win_rates', 'against': {'method': 'single'}})
  def test_one_seed_one_point_and_nothing_known(self, **figure):
    for policy in self.policies[::2]:
      for name in ('evaluation', 'metrics', 'final'):
        self.write(policy['stage'], name, [
            {'step': 0, 'prompt': 1, 'gold': None}])
    self.report(self.policies[::2], **figure)
    self.assertTrue((self.context.directory / 'figure.png').exists())
    for row in self.rows('summary'):
      self.assertEqual((row['seeds'], row['gold']), ('1', 'nan'))
    self.assertIn('over prompts', self.context.shown)

  @parameterized.parameters(
      {'kind': 'curves'}, {'kind': 'table'},
      {'kind': 'curves', 'source': 'training', 'x': 'step', 'y': ('score',)},
      {'kind': 'win_rates', 'against': {'method': 'single'}})
  def test_one_seed_one_point_without_gold(self, **figure):
    for policy in self.policies[::2]:
      for name in ('evaluation', 'metrics', 'final'):
        self.write(policy['stage'], name, [{'step': 0, 'prompt': 1}])
    self.report(self.policies[::2], **figure)
    self.assertTrue((self.context.directory / 'figure.png').exists())
    for row in self.rows('summary'):
      self.assertNoCommonElements(row, ('gold', 'peak', 'drop', 'rule'))

  def test_refuses_before_it_reads(self):
    with self.assertRaisesRegex(errors.ConfigError, 'config.figure.kind'):
      self.report([{'run': 'a', 'labels': {}}], kind='pie')


if __name__ == '__main__':
  absltest.main()
