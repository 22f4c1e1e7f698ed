"""Tests for rlhf_jax.reports.figures."""

import math
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import matplotlib.image
import numpy as np

from rlhf_jax.reports import figures
from rlhf_jax.reports import style


def _rows(seeds=(0, 1), noises=(0., .25), ends=(False, True)):
  """Curves that rise and fall, as the report writes them."""
  rows = []
  for seed in seeds:
    for end in ends:
      for noise in noises:
        for level, method in enumerate(('single', 'single_0', 'mean')):
          for i, n in enumerate((1, 2, 4, 8)):
            rows.append({
                'seed': seed, 'force_eos': end, 'label_noise': noise,
                'method': method, 'n': n, 'sqrt_kl': i / 2.,
                'gold': i * (3 - i) + level + .1 * seed, 'gold_se': .1,
                'proxy': i + level + .1 * seed, 'proxy_se': math.nan})
  return rows


class TableTest(parameterized.TestCase):

  def test_text(self):
    rows = [{'method': 'mean', 'peak': .456, 'peak_se': .0123},
            {'method': 'worst_case', 'peak': -1.2, 'peak_se': math.nan}]
    self.assertEqual(figures.table(rows, ['peak'], ['method']), '\n'.join([
        '| method     | peak         |',
        '|------------|--------------|',
        '| mean       | 0.46 +- 0.01 |',
        '| worst_case | -1.20        |']))

  def test_digits(self):
    row = {'kl': .0414, 'kl_se': .0026}
    self.assertIn('| 0.041 +- 0.003 |', figures.table(
        [row], ['kl'], [], digits=3))

  def test_over_seeds(self):
    # One seed keeps its own error; several are compared with each other:
    # s.d. of 1, 2, 3 is 1, over the root of 3; their own errors play no part.
    self.assertEqual(figures.over_seeds([(1.5, .25)]), (1.5, .25))
    mean, error = figures.over_seeds([(1., 9.), (2., 9.), (3., 9.)])
    self.assertAlmostEqual(mean, 2.)
    self.assertAlmostEqual(error, 1 / 3**.5)

  def test_lines_average_over_seeds(self):
    rows = [r for r in _rows() if (r['force_eos'], r['label_noise']) == (
        True, .25)]
    x, mean, error = figures.lines(rows, 'mean', 'gold')
    np.testing.assert_allclose(x, [0, .5, 1, 1.5])
    # i * (3 - i) + 2, and .05 from the second seed's .1.
    np.testing.assert_allclose(mean, [2.05, 4.05, 4.05, 2.05])
    np.testing.assert_allclose(error, .05)  # .1 / root 2 / root 2
    _, _, error = figures.lines(
        [r for r in rows if r['seed'] == 0], 'mean', 'proxy')
    np.testing.assert_array_equal(error, 0)  # unknown: no band


class FigureTest(parameterized.TestCase):

  def test_whole_or_not_at_all(self):
    path = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()), 'figure.png')
    path.write_text('before')
    with self.assertRaises(KeyError):
      figures.best_of_n([*_rows(), {'method': 'mean'}], path, title='')
    self.assertEqual(path.read_text(), 'before')

  @parameterized.parameters((2, 2), (1, 1), (2, 1))
  def test_png(self, num_ends, num_noises):
    path = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()), 'figure.png')
    rows = _rows(noises=(0., .25)[:num_noises],
                 ends=(False, True)[:num_ends])
    figures.best_of_n(rows, path, title='A title')
    self.assertEqual([p.name for p in path.parent.iterdir()], ['figure.png'])
    image = matplotlib.image.imread(path)  # decodes, so checksums hold
    height, width = image.shape[:2]
    self.assertBetween(width, 500 * num_noises, 1200 * num_noises)
    self.assertBetween(height, 400 * num_ends, 900 * num_ends)
    ink = (image[..., :3] < .9).any(axis=-1)
    self.assertBetween(ink.mean(), .01, .5)
    for colour in ('single', 'mean'):  # both curves are there
      rgb = matplotlib.colors.to_rgb(style.STYLE[colour][0])
      near = np.abs(image[..., :3] - rgb).max(axis=-1) < .02
      self.assertGreater(near.sum(), 200 * num_ends * num_noises)
    ends = [ink[:, :width // 2].mean(), ink[:, width // 2:].mean()]
    self.assertGreater(min(ends), .01)

  def test_a_method_with_a_name_of_its_own_is_drawn(self):
    path = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()), 'figure.png')
    for name in ('uncertainty_weighted_2', 'mine'):
      rows = [row | {'method': name if row['method'] == 'mean' else
                     row['method']} for row in _rows()]
      figures.best_of_n(rows, path, title='A title')
      rgb = matplotlib.colors.to_rgb(style.of_aggregates([name])[name][0])
      image = matplotlib.image.imread(path)[100:-250, 160:-160]  # the panel
      near = np.abs(image[..., :3] - rgb).max(axis=-1) < .02
      self.assertGreater(near.sum(), 200, name)


if __name__ == '__main__':
  absltest.main()
