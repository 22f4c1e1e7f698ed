"""Tests for rlhf_jax.commands.verdicts, and of what it has written."""

import shutil

from absl.testing import absltest
import own_data
import worlds

from rlhf_jax.commands import verdicts

ROOT = worlds.ROOT / 'experiments'


class VerdictsTest(absltest.TestCase):

  def test_what_stands_there_is_what_the_results_say(self):
    """The command would change nothing."""
    told = verdicts.texts(ROOT)
    self.assertLen(told, len(verdicts.papers(ROOT)) + 2)
    for path, text in told.items():
      self.assertEqual(path.read_text(), text, path)

  def test_claims_have_names_of_their_own(self):
    for paper in verdicts.papers(ROOT):
      rows = verdicts.rows(paper)
      self.assertNotEmpty(rows)
      self.assertLen({row['claim'] for row in rows}, len(rows))

  def test_other_results_are_other_words(self):
    folder = worlds.folder() / 'experiments'
    paper = 'zhu2023_advantage_induced_policy_alignment'
    shutil.copytree(ROOT / paper, folder / paper)
    shutil.copy(worlds.ROOT / 'README.md', folder.parent)
    (folder / paper / 'verdicts.csv').unlink()
    own_data.succeed('verdicts', f'--directory={folder}')
    written = (folder / paper / 'verdicts.csv').read_text()
    self.assertEqual(written, (ROOT / paper / 'verdicts.csv').read_text())
    path = folder / paper / 'results/fig9_offline/results.csv'
    lines = path.read_text().splitlines()
    awr = [line for line in lines if ',awr_1,' in line]
    path.write_text('\n'.join(
        line.replace(',ilql_4,', ',awr_1,') if ',ilql_4,' in line else
        line.replace(',awr_1,', ',ilql_4,') if line in awr else line
        for line in lines) + '\n')
    own_data.succeed('verdicts', f'--directory={folder}')
    words = {line.split(',')[0]: line for line in (
        folder / paper / 'verdicts.csv').read_text().splitlines()}
    self.assertIn(',excluded,', words['Figure 9: AWR above ILQL (shift 4)'])
    page = (folder / 'README.md').read_text()
    self.assertIn('| excluded |', page)

  def test_the_correction_for_their_number(self):
    """Benjamini and Hochberg: the largest k of m with p(k) <= k / m of it."""
    rows = [row for paper in verdicts.papers(ROOT)
            for row in verdicts.rows(paper) if row['p']]
    counts = []
    for some in (rows, [x for x in rows if x['kind'] == 'confirmatory']):
      ordered = sorted(float(row['p']) for row in some)
      most = max((p for k, p in enumerate(ordered, 1)
                  if p <= .025 * k / len(ordered)), default=-1)
      hold = [float(row['p']) <= most for row in some
              if row['word'].startswith('holds')]
      counts += [sum(hold), len(hold)]
    left, hold, fixed_left, fixed = counts
    self.assertIn(f'rate of 2.5 %, {left} of {hold} still hold; of those that '
                  f'were fixed beforehand, among themselves, {fixed_left} of '
                  f'{fixed}.', (worlds.ROOT / 'README.md').read_text())

  def test_no_experiments(self):
    code, _, err = own_data.run(
        'verdicts', f'--directory={worlds.folder()}')
    self.assertEqual(code, 3)
    self.assertIn('contrasts.jsonl in it; experiments stand in the', err)


if __name__ == '__main__':
  absltest.main()
