"""Tests for rlhf_jax.pipeline.picks."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

from rlhf_jax.pipeline import picks

MEMBERS = np.float32([[[1, 3], [5, 7]], [[10, 10], [30, 30]]])  # [E, B, N]
GOLD = np.float32([[1, 2], [3, 4]])


def stages(workdir):
  worlds.save(workdir, 'scores', {}, scores=dict(members=MEMBERS, gold=GOLD))
  worlds.save(workdir, 'proxies', {}, scale=dict(
      mean=np.float32([4, 10]), std=np.float32([2, .5])))


class GridTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (32, [1, 2, 4, 8, 16, 32]),
      (12, [1, 2, 4, 8, 12]))
  def test_powers_and_the_number_itself(self, count, grid):
    self.assertEqual(picks.grid(count), grid)


class LoadTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.context = worlds.Context(worlds.once('picks', stages))
    self.upstream = dict(scores='scores', proxies='proxies')

  def test_standardised_on_held_out_responses(self):
    arrays = picks.load(self.context, self.upstream, True)
    np.testing.assert_allclose(
        arrays['members'], [[[-1.5, -.5], [.5, 1.5]], [[0, 0], [40, 40]]])
    np.testing.assert_array_equal(arrays['gold'], GOLD)

  def test_as_they_are(self):
    arrays = picks.load(self.context, {'scores': 'scores'}, False)
    np.testing.assert_array_equal(arrays['members'], MEMBERS)
    np.testing.assert_array_equal(arrays['gold'], GOLD)


if __name__ == '__main__':
  absltest.main()
