"""Tests for rlhf_jax.commands.figures."""

import json
import pathlib
import shutil

from absl.testing import absltest
import own_data
import worlds

from rlhf_jax.commands import figures
from rlhf_jax.commands import verdicts


class FiguresTest(absltest.TestCase):

  def test_all_results_have_a_config(self):
    """But for those of files that are not here."""
    for paper in verdicts.papers(worlds.ROOT / 'experiments'):
      named = figures.configs(paper)
      for path in paper.glob('results/*/figure.png'):
        if not path.parent.name.endswith('_real'):
          self.assertIn(path.parent.name, named)
    coste = worlds.ROOT / worlds.COSTE
    self.assertEndsWith(figures.configs(coste)['fig3_long_tail'],
                        'fig3_best_of_n.py:laptop,world=long_tail')

  def test_options_that_no_contrast_names(self):
    paper = worlds.folder()
    (paper / 'fig1.py').write_text(
        '"""Sizes: :laptop,noise=0.3 or :laptop,noise=1,members=2."""\n')
    contrast = dict(figure='quiet', command='x --config=a/fig1.py:laptop,n=1')
    (paper / verdicts.CONTRASTS).write_text(json.dumps(contrast))
    named = {name: config.removeprefix(f'{paper}/')
             for name, config in figures.configs(paper).items()}
    self.assertEqual(named, {
        'fig1': 'fig1.py:laptop', 'quiet': 'fig1.py:laptop,n=1',
        'fig1_noise_03': 'fig1.py:laptop,noise=0.3',
        'fig1_noise_1_members_2': 'fig1.py:laptop,noise=1,members=2'})

  def test_one_is_drawn_again(self):
    folder = worlds.folder() / 'experiments'
    paper = 'zhu2023_advantage_induced_policy_alignment'
    shutil.copytree(worlds.ROOT / 'experiments' / paper, folder / paper)
    shutil.copy(worlds.ROOT / 'experiments/zhu2023.py', folder)
    kept = folder / paper / 'results/fig7_apa_lambda/figure.png'
    drawn = kept.read_bytes()
    kept.write_bytes(b'')
    printed = own_data.succeed('figures', 'fig7', f'--directory={folder}')
    self.assertEqual(printed.strip(), str(kept))
    self.assertEqual(kept.read_bytes(), drawn)

  def test_studies_of_one_config_are_drawn_together(self):
    folder = worlds.folder() / 'experiments'
    coste = pathlib.Path(worlds.COSTE).name
    shutil.copytree(
        worlds.ROOT / worlds.COSTE, folder / coste,
        ignore=lambda _, names: [name for name in names if name[3:4].isdigit()
                                 and not name.startswith('fig8')])
    shutil.copy(worlds.ROOT / 'experiments/coste2024.py', folder)
    # One is asked for, and the others are of the picture all the same.
    kept = folder / coste / 'results/fig8_model_size/best_of_n.png'
    drawn = kept.read_bytes()
    kept.unlink()
    printed = own_data.succeed('figures', 'best_of_n_small',
                               f'--directory={folder}')
    self.assertEqual(printed.split(), [
        str(folder / coste / 'results' / 'fig8_model_size_best_of_n_small'
            / 'figure.png'), str(kept)])
    self.assertEqual(kept.read_bytes(), drawn)

  def test_no_experiments(self):
    code, _, err = own_data.run('figures', f'--directory={worlds.folder()}')
    self.assertEqual(code, 3)
    self.assertIn('contrasts.jsonl in it; experiments stand in the', err)


if __name__ == '__main__':
  absltest.main()
