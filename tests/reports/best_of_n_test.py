"""Tests for rlhf_jax.reports.best_of_n, with curves written by hand."""

import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.reports import best_of_n
from rlhf_jax.storage import files

# Gold scores of two prompts at n = 1, 2, 4: of two members, and of the mean.
GOLD = {'single_0': [[0, 2, 1], [0, 4, 1]], 'single_1': [[0, 0, 1], [0, 2, 1]],
        'mean': [[0, 1, 3], [0, 3, 3]]}


class BestOfNTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.directory_of = lambda name: self.workdir / name

  def run_of(self, seed, shift=0., rule=None, noise=.25):
    """The curves of one seed and condition, `shift` higher at the end."""
    stage = f'{seed}_{noise}'
    (self.workdir / stage).mkdir()
    gold = {name: np.add(x, [0, 0, shift]) for name, x in GOLD.items()}
    curves = {f'gold__{name}': x for name, x in gold.items()}
    curves |= {f'proxy__{name}': x + 1 for name, x in gold.items()}
    if rule is not None:
      curves |= {f'rule__{name}': x * 0 + rule for name, x in gold.items()}
    files.save_arrays(
        self.workdir / stage / 'curves.npz', ns=np.array([1, 2, 4]),
        **{name: np.float32(x) for name, x in curves.items()})
    return {'stage': stage, 'seed': seed, 'force_eos': False,
            'label_noise': noise}

  def test_by_hand(self):
    rows, summary = best_of_n.tables(
        self, [self.run_of(0, rule=2.), self.run_of(1, shift=1., rule=4.)])
    # Four curves at three points of each seed.
    self.assertLen(rows, 24)
    row = next(row for row in rows if (row['seed'], row['method'], row['n'])
               == (0, 'single', 2))
    # The members' means are 1 and 3: 2, with an error of 1.
    for name, value in (('gold', 2), ('gold_se', 1), ('proxy', 3),
                        ('rule', 2), ('rule_se', 0),
                        ('kl', math.log(2) - .5)):
      self.assertAlmostEqual(row[name], value, places=6, msg=name)
    self.assertTrue(math.isnan(row['length']))
    single, mean = summary
    # Of single: peak 2 of either seed, then 1 and 2; of mean 3 and 4.
    for row, values in (
        (single, {'peak': 2, 'peak_se': 0, 'final': 1.5, 'final_se': .5,
                  'drop': .5, 'above_single': 0, 'seeds_falling': 0}),
        (mean, {'peak': 3.5, 'final': 3.5, 'drop': 0, 'above_single': 2,
                'above_single_se': 0, 'rule': 3, 'rule_se': 1, 'seeds': 2})):
      for name, value in values.items():
        self.assertAlmostEqual(row[name], value, places=6, msg=name)
    self.assertEqual((mean['EOS'], mean['noise']), ('as sampled', '25%'))

  @parameterized.parameters(None, 2.)
  def test_page_has_a_rule_where_there_is_one(self, rule):
    _, summary = best_of_n.tables(self, [
        self.run_of(0), self.run_of(0, rule=rule, noise=0.)])
    text = best_of_n.page(summary)
    head = [cell.strip() for cell in text.splitlines()[0].split('|')]
    self.assertEqual('rule' in head, rule is not None)
    self.assertNotIn('unfinished', head)
    self.assertIn('above_single', head)
    self.assertEqual(' - ' in text, rule is not None)  # of the other condition
    self.assertIn('error over prompts', best_of_n.message(summary))


if __name__ == '__main__':
  absltest.main()
