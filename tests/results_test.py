"""No number in a README that a results file does not hold."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

TABLES = sorted(str(path.relative_to(worlds.ROOT)) for path in
                (worlds.ROOT / 'experiments').glob('*/results/*/summary.md'))


class ResultsTest(parameterized.TestCase):

  @parameterized.parameters(TABLES)
  def test_the_readme_shows_the_table(self, table):
    path = worlds.ROOT / table
    readme = (path.parents[2] / 'README.md').read_text()
    self.assertIn(path.read_text().strip(), readme)

  def test_the_front_page_quotes_it(self):
    table = worlds.ROOT / f'{worlds.COSTE}/results/fig3_long_tail/summary.md'
    readme = (worlds.ROOT / 'README.md').read_text()
    quoted = [line for line in readme.splitlines() if line.startswith(
        ('| as sampled', '| forced'))]
    self.assertLen(quoted, 4)
    self.assertContainsSubset(quoted, table.read_text().splitlines())

  @parameterized.parameters(TABLES)
  def test_the_table_is_that_of_its_numbers(self, table):
    self.check((worlds.ROOT / table).parent)

  @parameterized.parameters(f'{worlds.COSTE}/fig4_ppo.py',
                            f'{worlds.AHMADIAN}/fig2_methods.py')
  def test_so_are_those_of_smokes(self, config):
    self.check(worlds.smoke(config)[0] / 'report_seeds_0')

  def check(self, folder: pathlib.Path):
    """Recomputes summary.csv from results.csv, seed by seed."""
    summary, rows = (worlds.rows(folder / f'{name}.csv')
                     for name in ('summary', 'results'))
    for line in summary:
      if 'EOS' in line:
        end, of_seeds = 'final', self.best_of_n(line, rows)
      else:
        end = list(line)[list(line).index('members') + 1]
        end = 'gold' if 'gold' in line else end
        of_seeds = self.policies(line, rows, end)
      checked = {end: [curve[-1] for curve in of_seeds]}
      if end in ('final', 'gold'):  # of which the drop is
        checked['drop'] = [max(curve) - curve[-1] for curve in of_seeds]
      self.assertEqual(int(line['seeds']), len(of_seeds))
      for name, values in checked.items():
        self.assertAlmostEqual(float(line[name]), np.mean(values), places=5)
        if len(values) > 1:
          self.assertAlmostEqual(
              float(line[f'{name}_se']),
              np.std(values, ddof=1) / len(values) ** 0.5, places=5)

  def best_of_n(self, line, rows) -> list[list[float]]:
    """The gold curve of each seed."""
    eos = str(line['EOS'] == 'forced')
    noise = float(line['noise'].rstrip('%')) / 100
    return [[float(r['gold']) for r in sorted(
        (r for r in rows if r['seed'] == seed and r['force_eos'] == eos
         and abs(float(r['label_noise']) - noise) < 1e-6
         and r['method'] == line['method']), key=lambda r: int(r['n']))]
            for seed in sorted({row['seed'] for row in rows})]

  def policies(self, line, rows, column) -> list[list[float]]:
    """The curve of each seed, a mean over members."""
    names = list(line)
    labels = names[1:names.index('seeds')]  # after 'run'
    mine = [r for r in rows if all(r[k] == line[k] for k in labels)]
    self.assertLen({r.get('member') for r in mine}, int(line['members']))
    steps = sorted({int(r['step']) for r in mine})
    return [[np.mean([float(r[column]) for r in mine
                      if (r['seed'], int(r['step'])) == (seed, step)])
             for step in steps] for seed in sorted({r['seed'] for r in mine})]


if __name__ == '__main__':
  absltest.main()
