"""Tests for rlhf_jax.reports.redraw: the figure of a report, without it."""

import pathlib
import shutil

from absl.testing import absltest
import numpy as np
from reports import written

from rlhf_jax import errors
from rlhf_jax.reports import redraw

FIGURE = dict(kind='curves', x='sqrt_kl', y=('gold', 'proxy'),
              line=('method',))


class RedrawTest(written.ReportTestCase):

  def results(self):
    """What is kept beside a config, without the figure."""
    folder = self.context.directory.parent / 'kept'
    folder.mkdir()
    shutil.copy(self.context.directory / 'results.csv', folder)
    return folder

  def draw(self, folder, **figure):
    return redraw.draw(redraw.read(folder, dict(
        study='online', title='A title', figure=figure)))

  def test_it_is_the_same_picture(self):
    for figure in (FIGURE, dict(kind='table', columns=('gold',)),
                   dict(kind='final', x='method', line=()),
                   dict(kind='win_rates', against={'method': 'single'},
                        line=('method',))):
      self.report(**figure)
      drawn = (self.context.directory / 'figure.png').read_bytes()
      folder = self.results()
      if figure['kind'] == 'win_rates':
        shutil.copy(self.context.directory / 'win_rates.csv', folder)
      self.assertTrue(self.draw(folder, **figure))
      self.assertEqual((folder / 'figure.png').read_bytes(), drawn)
      shutil.rmtree(folder)

  def test_training_curves_and_what_a_judge_says(self):
    figure = dict(kind='curves', source='training', x='step',
                  y=('rollout/score',), window=2, line=('method', 'member'))
    self.report(**figure)
    folder = self.results()
    shutil.copy(self.context.directory / 'training.csv', folder)
    (folder / 'win_rates.csv').write_text('run,seed,win_rate\nmean,1,0.75\n')
    policies = redraw.policies(folder, redraw.table(folder / 'results.csv'))
    self.assertLen(policies, 6)
    mean = policies[-1]
    self.assertEqual((mean.run, mean.seed, mean.labels),
                     ('mean', 1, {'method': 'mean'}))
    self.assertEqual(policies[0].labels, {'method': 'single', 'member': 0})
    np.testing.assert_array_equal(mean.evaluation['gold'], [0, 4, 7])
    np.testing.assert_array_equal(
        mean.evaluation['win_rate'], [np.nan, np.nan, .75])
    self.assertTrue(np.isnan(mean.evaluation['rule']).all())
    np.testing.assert_array_equal(mean.training['rollout/score'], [0, 2, 5.5])
    self.assertTrue(self.draw(folder, **figure))

  def test_what_it_cannot(self):
    folder = self.context.directory
    self.report(kind='table')
    for figure in (dict(kind='win_rates', against={'method': 'single'}),
                   dict(kind='distributions', components=('safe',))):
      self.assertFalse(self.draw(folder, **figure))
    pathlib.Path(folder, 'results.csv').write_text('a,b\n1,2\n')
    with self.assertRaisesRegex(errors.DataError, 'no columns seed, run and'):
      self.draw(folder, kind='table')


if __name__ == '__main__':
  absltest.main()
