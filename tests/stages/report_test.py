"""Tests for rlhf_jax.stages.report, on the finished study of figure 3."""

import math

from absl.testing import absltest
import matplotlib.image
import numpy as np
from stages import figure_3
import worlds

from rlhf_jax.storage import files


def condition(force_eos: bool, noise: float) -> str:
  return f'seed_0/{figure_3.ENDINGS[force_eos]}/noise_{noise:g}'


class ReportTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = figure_3.study() / 'report_seeds_0'
    self.rows = worlds.rows(self.directory / 'results.csv')

  def test_results_are_the_curves(self):
    self.assertLen(self.rows, 4 * 6 * 6)
    for row in self.rows:
      curves = figure_3.arrays(
          condition(row['force_eos'] == 'True', float(row['label_noise'])),
          'best_of_n/curves.npz')
      at = figure_3.NS.index(int(row['n']))
      members = ([row['method']] if row['method'] != 'single'
                 else ['single_0', 'single_1'])
      for what in ('gold', 'proxy', 'rule', 'unfinished', 'length'):
        values = np.mean([curves[f'{what}__{m}'][:, at] for m in members],
                         axis=0, dtype=np.float64)
        self.assertAlmostEqual(float(row[what]), values.mean(), 5)
        self.assertAlmostEqual(  # four prompts
            float(row[f'{what}_se']), values.std(ddof=1) / 2, 5)
      n = int(row['n'])
      self.assertAlmostEqual(
          float(row['sqrt_kl']), math.sqrt(math.log(n) - (n - 1) / n), 5)

  def test_jsonl_is_the_csv(self):
    lines = files.read_jsonl(self.directory / 'results.jsonl')
    self.assertEqual([{k: str(v) for k, v in line.items()} for line in lines],
                     self.rows)

  def test_table(self):
    """Every number of summary.md, again from the curves."""
    lines = (self.directory / 'summary.md').read_text().splitlines()
    head, _, *body = [[c.strip() for c in line.strip('|').split('|')]
                      for line in lines]
    self.assertLen(body, 16)
    for cells in body:
      row = dict(zip(head, cells, strict=True))
      curves = figure_3.arrays(
          condition(row['EOS'] == 'forced',
                    float(row['noise'].rstrip('%')) / 100),
          'best_of_n/curves.npz')
      for what in ('gold', 'rule', 'unfinished'):
        curves[f'{what}__single'] = (
            curves[f'{what}__single_0'] + curves[f'{what}__single_1']) / 2
      curve = curves[f'gold__{row["method"]}'].astype(np.float64)
      top = curve.mean(axis=0).argmax()
      last = {k: v[:, -1].astype(np.float64) for k, v in curves.items()
              if k != 'ns'}
      text = lambda x: f'{x.mean():.2f} +- {x.std(ddof=1) / 2:.2f}'
      drop = curve[:, top] - curve[:, -1]
      self.assertEqual(row['peak'], text(curve[:, top]))
      self.assertEqual(row['final'], text(curve[:, -1]))
      self.assertEqual(row['drop'], text(drop))
      self.assertEqual(
          row['above_single'], text(curve[:, -1] - last['gold__single']))
      for what in ('rule', 'unfinished'):
        self.assertEqual(row[what], text(last[f'{what}__{row["method"]}']))
      self.assertEqual(row['seeds_falling'], str(int(
          drop.mean() > drop.std(ddof=1))))  # 2 * s.d. / root 4
      self.assertEqual(row['seeds'], '1')

  def test_files(self):
    result = figure_3.result('report_seeds_0')
    self.assertEqual(result, {
        'figure': str(self.directory / 'figure.png'), 'rows': len(self.rows)})
    image = matplotlib.image.imread(result['figure'])
    self.assertGreater(image[..., :3].std(), .01)
    # The numbers of all stages before it, once each.
    lines = files.read_jsonl(self.directory / 'stages.jsonl')
    names = [line['stage'] for line in lines]
    self.assertCountEqual(names, set(names))
    self.assertContainsSubset(
        [f'{name}/best_of_n' for name in figure_3.CONDITIONS], names)
    for line in lines:  # by which stale ones are known
      self.assertEqual(line['recipe'], files.read_json(
          self.directory.parent / line['stage'] / 'result.json')['recipe'])


if __name__ == '__main__':
  absltest.main()
