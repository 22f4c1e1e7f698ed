"""Tests for rlhf_jax.commands.report."""

import sys
from unittest import mock

from absl.testing import absltest
import own_data
import worlds
import written_study

from rlhf_jax.reports import page

ROOT = worlds.ROOT / 'experiments'


class ReportTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.enterContext(mock.patch.object(page, 'library', lambda: ''))

  def refused(self, code, *words):
    actual, _, err = own_data.run('report', *words)
    self.assertEqual(actual, code, err)
    self.assertEqual(err.count('\n'), 1, err)
    return err

  def test_a_page(self):
    workdir = written_study.write(worlds.folder() / 'study')
    output = worlds.folder() / 'page.html'
    said = own_data.succeed('report', workdir, f'--output={output}',
                            f'--directory={ROOT}', '--samples=10')
    self.assertIn('study: complete; 7 of 7 stages', said)
    self.assertEndsWith(said, f'{output}\n')
    text = output.read_text()
    self.assertLen(written_study.data_of(text)['samples']['study'], 10)
    self.assertIn('What differs from the paper.', text)
    own_data.succeed(
        'report', workdir, f'--output={output}', '--samples=0', '--experiment='
        f'{ROOT}/coste2024_reward_model_ensembles/fig5_ppo_without_kl.py')
    self.assertIn('figure 5: PPO', output.read_text())

  def test_a_title_of_several(self):
    folder = worlds.folder()
    workdir = written_study.write(
        folder / 'study', title='Paper, figure 1 (twice): RLOO')
    (folder / 'experiments/paper').mkdir(parents=True)
    for name in ('one', 'two'):
      (folder / f'experiments/paper/{name}.py').write_text(
          f'"""Paper, figure 1: {name}."""')
    output = folder / 'page.html'
    own_data.succeed('report', workdir, f'--output={output}',
                     f'--directory={folder / "experiments"}')
    self.assertIn('stands in several experiments', output.read_text())

  def test_mistakes(self):
    folder = worlds.folder()
    workdir = written_study.write(folder / 'study')
    output = f'--output={folder}/page.html'
    for code, words, part in (
        (2, (output,), 'give the workdirs'),
        (3, (folder / 'none', output), 'no such directory'),
        (3, (folder, output), 'neither a study'),
        (2, (workdir, f'--output={folder}'), 'name an HTML file'),
        (2, (workdir, f'--output={folder}/no/page.html'), 'name an HTML file'),
        (2, (workdir, output, '--experiment=none.py'), 'no such file'),
        (2, (workdir, output, '--samples=-1'), '--samples=-1')):
      self.assertIn(part, self.refused(code, *words), words)
    self.assertFalse((folder / 'page.html').exists())


class LibraryTest(absltest.TestCase):

  def test_without_it(self):
    page.library.cache_clear()
    with mock.patch.dict(sys.modules, {'plotly': None}):
      code, _, err = own_data.run('report', worlds.folder())
    self.assertEqual(code, 2)
    self.assertIn("pip install 'rlhf_jax[report]'", err)


if __name__ == '__main__':
  absltest.main()
