"""Tests for rlhf_jax.reports.violins."""

from unittest import mock

from absl.testing import absltest
import numpy as np

from rlhf_jax.reports import panels
from rlhf_jax.reports import violins


def row(panel, x, values, known=True):
  return {'panel': panel, 'x': x, 'logged': x == 'log', 'mean': np.mean(values),
          'quantiles': np.quantile(values, (.05, .25, .5, .75, .95)),
          'values': values if known else None, 'responses': len(values)}


def drawn(table):
  """The axes, and what is said below."""
  with mock.patch.object(panels, 'save') as save:
    violins.draw(table, '', title='', x_name='reward', note='said')
  return save.call_args.args[0].axes, save.call_args.args[-1]


class ViolinsTest(absltest.TestCase):

  def test_violins(self):
    values = np.linspace(0, 1, 17)**2
    table = [row(panel, x, values * scale)
             for panel in ('fluent', 'safe')
             for x, scale in (('log', 1.), ('A-LOL', .5), ('constant', 0.))]
    table.pop()
    axes, note = drawn(table)
    self.assertEqual(note, 'said; point: mean; bar: quartiles; stroke: median')
    fluent, safe = axes
    self.assertEqual([axis.get_title() for axis in axes], ['fluent', 'safe'])
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
    np.testing.assert_allclose(mean.get_xdata(), [values.mean() / 2])
    self.assertEqual(fluent.get_lines()[0].get_color(), '0.6')
    self.assertNotEqual(quartiles.get_color(), '0.6')
    reach = fluent.collections[1].get_paths()[0].vertices
    np.testing.assert_allclose(
        [reach[:, 0].min(), reach[:, 0].max()], [0, .5], atol=1e-12)

  def test_densities_are_as_fine_as_many_responses_allow(self):
    """Percentiles stand for all of them: the gap of two heaps stays open."""
    heaps = np.concatenate([np.linspace(0, .2, 50), np.linspace(.8, 1, 50)])
    (axis,), _ = drawn([row('safe', 'few', heaps), row(
        'safe', 'many', heaps) | {'responses': 100_000}])
    gaps = []
    for body in axis.collections:
      x, y = body.get_paths()[0].vertices.T
      gaps.append(np.ptp(y[abs(x - .5) < .02]) / np.ptp(y))
    self.assertGreater(gaps[0], .1)
    self.assertLess(gaps[1], .01)

  def test_few_values_are_discs(self):
    """As large as their shares; by panel, also where one has a single value."""
    few = np.repeat([0., .5, 1.], [1, 3, 16])
    (first, second), note = drawn([
        row('topic', 'log', few), row('topic', 'A-LOL', np.ones(20)),
        row('safe', 'log', few), row('safe', 'A-LOL', np.linspace(0, 1, 20))])
    self.assertLen(first.collections, 2)
    discs, one = first.collections
    np.testing.assert_allclose(
        discs.get_offsets(), [[0, 0], [.5, 0], [1, 0]])
    np.testing.assert_allclose(
        discs.get_sizes() / one.get_sizes(), [.05, .15, .8])
    np.testing.assert_allclose(one.get_offsets(), [[1, 1]])
    self.assertLen(first.get_lines(), 2)  # the means
    self.assertLen(second.get_lines(), 6)
    self.assertEqual(note, 'said; point: mean; area of a disc: share of a '
                     'value; bar: quartiles; stroke: median')

  def test_quantiles_alone(self):
    values = np.linspace(0, 1, 21)
    (axis,), note = drawn([row('safe', 'log', values, known=False)])
    self.assertEmpty(axis.collections)
    line, quartiles, *_ = axis.get_lines()
    np.testing.assert_allclose(line.get_xdata(), [.05, .95])
    np.testing.assert_allclose(quartiles.get_xdata(), [.25, .75])
    self.assertIn('line: 5 to 95 %', note)


if __name__ == '__main__':
  absltest.main()
