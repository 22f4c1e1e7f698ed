"""Tests for rlhf_jax.commands.figures."""

import json
import shutil
from unittest import mock

from absl.testing import absltest
import own_data
import worlds

from rlhf_jax.commands import figures
from rlhf_jax.commands import verdicts
from rlhf_jax.storage import files


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

  def copy(self, paper, ignore=None):
    """The experiments of one paper alone; their results."""
    folder = worlds.folder() / 'experiments'
    paper = worlds.ROOT / paper
    shutil.copytree(paper, folder / paper.name, ignore=ignore)
    shared = f'{paper.name.partition("_")[0]}.py'
    shutil.copy(paper.parent / shared, folder)
    return folder, folder / paper.name / 'results'

  def test_one_is_drawn_again(self):
    for paper, name in ((worlds.ZHU, 'fig7_apa_lambda'),
                        (worlds.BAHETI, 'fig5_components')):
      folder, results = self.copy(paper)
      kept = results / name / 'figure.png'
      drawn = kept.read_bytes()
      kept.write_bytes(b'')
      printed = own_data.succeed('figures', name, f'--directory={folder}')
      self.assertEqual(printed.strip(), str(kept))
      self.assertEqual(kept.read_bytes(), drawn)

  def test_policies_of_several_configs_are_drawn_together(self):
    """What the docstring of one of them says, each read once."""
    folder, results = self.copy(worlds.ZHU)
    kept = results / 'fig4_model_size/by_width.png'
    drawn = kept.read_bytes()
    kept.unlink()
    with mock.patch.object(files, 'read_csv', wraps=files.read_csv) as read:
      printed = own_data.succeed('figures', 'fig3', f'--directory={folder}')
    own = ['fig3_apa_awr_ppo', 'fig3_apa_awr_ppo_seeds_10',
           'fig3_apa_awr_ppo_text', 'fig3_apa_awr_ppo_text_seeds_10']
    self.assertEqual(printed.split(), [
        *(str(results / name / 'figure.png') for name in own), str(kept)])
    self.assertEqual(kept.read_bytes(), drawn)
    self.assertCountEqual([call.args[0] for call in read.call_args_list], [
        results / name / 'results.csv' for name in (
            *own, 'fig4_model_size', 'fig4_model_size_small')])

  def test_studies_of_one_config_are_drawn_together(self):
    folder, results = self.copy(worlds.COSTE, lambda _, names: [
        name for name in names
        if name[3:4].isdigit() and not name.startswith('fig8')])
    # One is asked for, and the others are of the picture all the same.
    kept = results / 'fig8_model_size/best_of_n.png'
    drawn = kept.read_bytes()
    kept.unlink()
    printed = own_data.succeed('figures', 'best_of_n_small',
                               f'--directory={folder}')
    self.assertEqual(printed.split(), [
        str(results / 'fig8_model_size_best_of_n_small/figure.png'),
        str(kept)])
    self.assertEqual(kept.read_bytes(), drawn)

  def test_no_experiments(self):
    code, _, err = own_data.run('figures', f'--directory={worlds.folder()}')
    self.assertEqual(code, 3)
    self.assertIn('contrasts.jsonl in it; experiments stand in the', err)


if __name__ == '__main__':
  absltest.main()
