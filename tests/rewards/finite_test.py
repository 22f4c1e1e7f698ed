"""Tests for rlhf_jax.rewards.finite."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax.rewards import finite

LARGEST = np.finfo(np.float32).max


class FiniteTest(parameterized.TestCase):

  @parameterized.parameters(
      ([1, -2.5, 0],), (np.array([True, False, True]),),
      (jnp.float32([.5, 1, LARGEST]),), (np.array([-LARGEST, 0, 1e-300]),))
  def test_numbers_stay_what_they_are(self, scores):
    out = finite.finite(scores, 3, 'a judge', 'step 4')
    self.assertEqual(out.dtype, np.float64)
    np.testing.assert_array_equal(out, np.asarray(scores, np.float64))

  def test_of_no_responses(self):
    self.assertEqual(finite.finite([], 0, 'a judge', 'step 4').shape, (0,))

  @parameterized.parameters(
      ([0, np.nan, 1], 'a judge gave nan in row 1 (step 4; 1 of 3 '),
      ([0, 1, np.inf], 'a judge gave inf in row 2 (step 4; 1 of 3 '),
      ([-np.inf, np.nan, 1], 'a judge gave -inf in row 0 (step 4; 2 of 3 '),
      ([None, 0, 1], 'a judge gave nan in row 0 (step 4; 1 of 3 '),
      # Finite, but no longer as a float32 number.
      ([0, -1e39, 1], 'a judge gave -1e+39 in row 1 (step 4; 1 of 3 '))
  def test_which_is_no_number(self, scores, message):
    with self.assertRaises(errors.RewardError) as caught:
      finite.finite(scores, 3, 'a judge', 'step 4')
    self.assertEqual(
        str(caught.exception), f'{message}are not finite); mend it, train it '
        'again, or choose another')

  @parameterized.parameters(
      (np.zeros(2), r'\(2,\)'), (np.zeros((3, 1)), r'\(3, 1\)'),
      (0., r'\(\)'))
  def test_not_one_for_each(self, scores, shape):
    with self.assertRaisesRegex(
        errors.RewardError, f'^a judge gave scores of shape {shape} for 3 '
        r'responses \(step 4\); it has to give one number for each$'):
      finite.finite(scores, 3, 'a judge', 'step 4')


if __name__ == '__main__':
  absltest.main()
