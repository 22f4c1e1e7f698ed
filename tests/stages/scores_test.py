"""Tests for rlhf_jax.stages.scores, on the finished study of figure 3."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from stages import figure_3
import worlds

from rlhf_jax import errors
from rlhf_jax.stages import scores
from rlhf_jax.storage import files

UPSTREAM = dict(samples='seed_0/as_sampled/samples',
                proxies='seed_0/as_sampled/noise_0.25/proxies')


class ScoresTest(parameterized.TestCase):

  @parameterized.parameters(*figure_3.CONDITIONS)
  def test_arrays(self, condition):
    samples = figure_3.shards(condition.split('/')[1])
    arrays = figure_3.arrays(condition, 'scores/scores.npz')
    self.assertCountEqual(
        arrays, ['members', 'gold', 'rule', 'unfinished', 'length'])
    np.testing.assert_array_equal(arrays['gold'], samples['gold_scores'])
    np.testing.assert_array_equal(arrays['rule'], samples['rule'])
    # As the members are, not standardised.
    np.testing.assert_allclose(
        arrays['members'], figure_3.members(condition, standardize=False),
        atol=1e-4)
    ended = (samples['mask'] & (samples['tokens'] == 2)).any(axis=-1)
    np.testing.assert_array_equal(arrays['unfinished'], 1. - ended)
    np.testing.assert_array_equal(
        arrays['length'], samples['mask'].sum(axis=-1))
    self.assertEqual(figure_3.result(f'{condition}/scores'),
                     {'responses': 4 * 32, 'members': 2})

  def test_eight_devices_say_what_one_says(self):
    context = figure_3.context(num_devices=8)
    with context.devices():
      scores.run(context, upstream=UPSTREAM)
    eight, one = (files.load_arrays(folder / 'scores.npz') for folder in (
        context.directory,
        figure_3.study() / 'seed_0/as_sampled/noise_0.25/scores'))
    np.testing.assert_allclose(eight['members'], one['members'], atol=1e-5)

  def test_asks_whether_to_stop(self):
    with self.assertRaises(errors.Interrupted):
      scores.run(figure_3.context(stop=worlds.Stop(-1)), upstream=UPSTREAM)


if __name__ == '__main__':
  absltest.main()
