"""Tests for rlhf_jax.data.rows."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.data import rows as rows_lib


class AssembleTest(parameterized.TestCase):

  def assemble(self, prompts, responses, p=3, r=2):
    return rows_lib.assemble(prompts, responses, max_prompt_length=p,
                             max_response_length=r, pad_id=9)

  def test_by_hand(self):
    rows = self.assemble([([1, 2], 0), ([1, 2, 3, 4], 1)], [[5], [6, 7, 8]])
    np.testing.assert_array_equal(rows.prompts, [[1, 2, 9], [1, 3, 4]])
    np.testing.assert_array_equal(rows.prompt_lengths, [2, 3])
    np.testing.assert_array_equal(
        rows.tokens, [[1, 2, 5, 9, 9], [1, 3, 4, 6, 7]])
    np.testing.assert_array_equal(
        rows.mask, np.array([[0, 0, 1, 0, 0], [0, 0, 0, 1, 1]], bool))
    self.assertEqual((rows.truncated_prompts, rows.truncated_responses), (1, 1))

  @parameterized.parameters(
      (0, [3, 4, 5]), (1, [1, 4, 5]), (2, [1, 2, 5]), (3, [1, 2, 3]),
      (5, [1, 2, 3]))  # what is to stay may itself be too long
  def test_what_stays_in_front(self, keep, want):
    rows = self.assemble([([1, 2, 3, 4, 5], keep)], [[6]])
    np.testing.assert_array_equal(rows.prompts, [want])

  def test_at_the_limit_nothing_is_cut(self):
    rows = self.assemble([([1, 2, 3], 0)], [[4, 5]])
    self.assertEqual((rows.truncated_prompts, rows.truncated_responses), (0, 0))
    np.testing.assert_array_equal(rows.tokens, [[1, 2, 3, 4, 5]])


if __name__ == '__main__':
  absltest.main()
