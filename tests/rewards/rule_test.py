"""Tests for rlhf_jax.rewards.rule."""

from unittest import mock

from absl.testing import absltest
import numpy as np

from rlhf_jax.rewards import rule as rule_lib
from rlhf_jax.rewards import scale

TOKENS = np.arange(12).reshape(2, 2, 3)
MASK = TOKENS % 2 == 0


class RuleTest(absltest.TestCase):

  def test_scores(self):
    rule = rule_lib.Rule(lambda tokens, mask: (
        tokens * mask).sum(axis=-1).astype(np.float32))
    poll = mock.Mock()
    np.testing.assert_array_equal(
        rule.scores(TOKENS, MASK, poll=poll), [[[2, 4], [14, 10]]])
    poll.assert_called_once_with()
    rule = rule._replace(scale=scale.single(4., 2.))
    np.testing.assert_array_equal(
        rule.scores(TOKENS, MASK), [[[-1, 0], [5, 3]]])
    np.testing.assert_array_equal(
        rule.scores(TOKENS, MASK, standardize=False), [[[2, 4], [14, 10]]])


if __name__ == '__main__':
  absltest.main()
