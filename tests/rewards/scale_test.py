"""Tests for rlhf_jax.rewards.scale: the one standardisation."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.rewards import scale as scale_lib

SCORES = np.float32([[[1, 3], [5, 7]], [[10, 10], [30, 30]]])  # [E, B, K]


class StandardizeTest(parameterized.TestCase):

  def test_by_hand(self):
    scale = {'mean': np.float32([4, 10]), 'std': np.float32([2, .5])}
    expected = [[[-1.5, -.5], [.5, 1.5]], [[0, 0], [40, 40]]]
    for function in (scale_lib.standardize, jax.jit(scale_lib.standardize)):
      scores = function(SCORES, scale)
      np.testing.assert_array_equal(scores, expected)
      self.assertEqual(scores.dtype, jnp.float32)

  def test_of_scores_that_do_not_differ_only_the_mean_is_taken_off(self):
    scale = {'mean': np.float32([4, 10]), 'std': np.float32([0, 5])}
    np.testing.assert_array_equal(
        scale_lib.standardize(SCORES, scale),
        [[[-3, -1], [1, 3]], [[0, 0], [4, 4]]])

  @parameterized.parameters((SCORES,), (SCORES[:, 0],), (SCORES[:, 0, 0],))
  def test_any_number_of_axes(self, scores):
    scale = {'mean': np.float32([1, 2]), 'std': np.float32([1, 4])}
    np.testing.assert_array_equal(
        scale_lib.standardize(scores, scale),
        np.stack([scores[0] - 1, (scores[1] - 2) / 4]))

  @parameterized.parameters(1, 3)
  def test_of_another_number_of_members(self, count):
    with self.assertRaises(AssertionError):
      scale_lib.standardize(SCORES, {
          'mean': np.zeros(count), 'std': np.ones(count)})


class ScaleTest(absltest.TestCase):

  def test_of_members(self):
    scale = scale_lib.of_members(SCORES)
    np.testing.assert_array_equal(scale['mean'], [4, 20])
    np.testing.assert_allclose(scale['std'], [5**.5, 10], rtol=1e-6)
    standard = np.asarray(scale_lib.standardize(SCORES, scale))
    np.testing.assert_allclose(standard.mean(axis=(1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(axis=(1, 2)), 1, rtol=1e-6)

  def test_equal_scores_have_no_deviation(self):
    for value in (.1, 3.3e3, 3.3e6):
      scale = scale_lib.of_members(np.full((2, 1000), value, np.float32))
      np.testing.assert_array_equal(scale['std'], 0)
      np.testing.assert_array_equal(scale['mean'], np.float32(value))

  def test_of_one_model(self):
    np.testing.assert_array_equal(
        scale_lib.standardize(SCORES[:1], scale_lib.single(3., 4.)),
        (SCORES[:1] - 3) / 4)

  def test_unit_takes_the_scale_back(self):
    np.testing.assert_allclose(
        scale_lib.standardize(SCORES[:1], scale_lib.unit(7., .5)),
        SCORES[:1] / 2 + 7, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
