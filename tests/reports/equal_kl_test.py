"""Tests for rlhf_jax.reports.equal_kl, with numbers made by hand."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.reports import equal_kl
from rlhf_jax.reports import results


def policy(seed, sqrt_kl, gold):
  columns = {'sqrt_kl': np.array(sqrt_kl, float), 'gold': np.array(gold, float)}
  return results.Policy(
      directory=pathlib.Path('policy'), seed=seed, run='run', labels={},
      rows=[], evaluation=columns | {'kl_k1': columns['sqrt_kl']**2},
      training={}, prompts=[], gold=np.zeros(0))


class AlongTest(parameterized.TestCase):

  def test_seeds_are_compared_at_one_kl(self):
    """Not after as many steps: both are 2 sqrt(KL), one of them is faster."""
    group = [policy(0, [0, 1, 2], [0, 2, 4]), policy(1, [0, 4, 8], [0, 8, 16])]
    points = equal_kl.along(group, ('sqrt_kl', 'gold'))
    np.testing.assert_allclose(points['gold'], 2 * points['sqrt_kl'])
    np.testing.assert_allclose(points['gold_se'], 0, atol=1e-12)
    self.assertEqual(points['sqrt_kl'][-1], 2)  # where the first of them ends

  def test_mean_and_error(self):
    group = [policy(0, [0, 2], [0, 2]), policy(1, [0, 2], [0, 6])]
    points = equal_kl.along(group, ('sqrt_kl', 'gold'))
    np.testing.assert_allclose(points['gold'], 2 * points['sqrt_kl'])
    # Two numbers: half of their distance.
    np.testing.assert_allclose(points['gold_se'], points['sqrt_kl'])

  def test_a_kl_that_goes_back(self):
    """What is measured then is left out: it is no policy of the furthest KL."""
    group = [policy(0, [0, 2, 1, 1.5, 4], [0, 4, 9, 9, 8])]
    points = equal_kl.along(group, ('sqrt_kl', 'gold'))
    self.assertTrue((np.diff(points['sqrt_kl']) > 0).all())
    np.testing.assert_allclose(points['gold'], 2 * points['sqrt_kl'])
    line, = equal_kl.tracks([group], ('sqrt_kl', 'gold'))
    np.testing.assert_array_equal(line['sqrt_kl'], [0, 2, 4])
    np.testing.assert_array_equal(line['gold'], [0, 4, 8])

  def test_ends(self):
    """After training, wherever the KL is by then and past any limit."""
    group = [policy(0, [0, 4, 2], [0, 9, 3]), policy(1, [0, 8], [0, 7])]
    end = equal_kl.ends(group, ('sqrt_kl', 'gold'))
    self.assertEqual([*end], ['sqrt_kl', 'sqrt_kl_se', 'gold', 'gold_se'])
    np.testing.assert_allclose([*end.values()], [5., 3., 5., 2.])

  @parameterized.parameters(('sqrt_kl', 3.), ('kl_k1', 9.))
  def test_limit(self, x, end):
    group = [policy(seed, [0, 2, 4], [0, 2, 4]) for seed in (0, 1)]
    points = equal_kl.along(group, (x, 'gold'), limit_kl=9.)
    self.assertAlmostEqual(points[x][-1], end)
    for line in equal_kl.tracks([group], (x, 'gold'), limit_kl=9.):
      self.assertLen(line['gold'], 2)  # of three points; each is one policy

  def test_a_limit_leaves_the_first_point(self):
    line, = equal_kl.tracks(
        [[policy(0, [4, 5], [1, 2])]], ('sqrt_kl', 'gold'), limit_kl=9.)
    np.testing.assert_array_equal(line['gold'], [1])

  def test_one_point(self):
    points = equal_kl.along([policy(0, [0], [3])], ('sqrt_kl', 'gold'))
    np.testing.assert_array_equal(points['gold'], [3])


if __name__ == '__main__':
  absltest.main()
