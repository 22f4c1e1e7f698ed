"""Tests for rlhf_jax.reports.violins."""

from unittest import mock

from absl.testing import absltest
import numpy as np

from rlhf_jax.reports import panels
from rlhf_jax.reports import violins


class ViolinsTest(absltest.TestCase):

  def test_violins(self):
    values = np.linspace(0, 1, 9)**2
    given = [{'panel': panel, 'x': x, 'logged': x == 'log',
              'values': values * scale}
             for panel in ('fluent', 'safe')
             for x, scale in (('log', 1.), ('A-LOL', .5), ('constant', 0.))]
    given.pop()
    with mock.patch.object(panels, 'save') as save:
      violins.draw(given, '', title='', x_name='reward')
    figure = save.call_args.args[0]
    fluent, safe = figure.axes
    self.assertEqual([axis.get_title() for axis in figure.axes],
                     ['fluent', 'safe'])
    self.assertEqual([t.get_text() for t in fluent.get_yticklabels()],
                     ['log', 'A-LOL', 'constant'])
    self.assertEqual(safe.get_xlabel(), 'reward')
    self.assertGreater(*fluent.get_ylim())  # the first on top
    # No density of a single value, nothing where there are no values.
    self.assertLen(fluent.collections, 2)
    self.assertLen(fluent.get_lines(), 9)
    self.assertLen(safe.get_lines(), 6)
    quartiles, median, mean = fluent.get_lines()[3:6]
    np.testing.assert_allclose(quartiles.get_xdata(), [1 / 32, 9 / 32])
    np.testing.assert_array_equal(quartiles.get_ydata(), [1, 1])
    np.testing.assert_allclose(median.get_xdata(), [1 / 8])
    np.testing.assert_allclose(mean.get_xdata(), [204 / 64 / 9 / 2])
    self.assertEqual(fluent.get_lines()[0].get_color(), '0.6')
    self.assertNotEqual(quartiles.get_color(), '0.6')
    reach = fluent.collections[1].get_paths()[0].vertices
    np.testing.assert_allclose(
        [reach[:, 0].min(), reach[:, 0].max()], [0, .5], atol=1e-12)


if __name__ == '__main__':
  absltest.main()
