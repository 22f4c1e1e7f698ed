"""Tests for rlhf_jax.pipeline.online_models: the mask policy of NLPO."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import types
from rlhf_jax.pipeline import online_models


def updates(steps):
  """So many of `train.make_updates`, each of which adds 1 to all."""
  def learn(state, rollout, base=None):
    del rollout, base
    return state.replace(
        step=state.step + steps, params=jax.tree.map(
            lambda x: x + steps, state.params)), {'done': state.step}
  return learn


class MaskPolicyTest(parameterized.TestCase):

  @parameterized.parameters(
      # After the rollouts in which a multiple of `every` is reached.
      (3, 5, [0, 6, 6, 12, 15, 15]), (1, 2, [0, 2, 2, 4]),
      (4, 4, [4, 8, 12]), (4, 3, [4, 8, 12]), (7, 2, [7, 14]),
      (2, 20, [0] * 9 + [20, 20]))
  def test_renewed(self, steps, every, expected):
    learn = jax.jit(online_models.renewing(updates(steps), every))
    start = {'adapter': jnp.zeros(2), 'value_head': jnp.zeros(3)}
    state = types.TrainState(
        step=jnp.int32(0), params=start, opt_state=(), key=None,
        targets={'adapter': start['adapter']})
    actual = []
    for _ in expected:
      state, metrics = learn(state, None)
      self.assertEqual(state.targets.keys(), {'adapter'})
      self.assertEqual(int(metrics['done']) + steps, int(state.step))
      actual.append(float(state.targets['adapter'][0]))
    self.assertEqual(actual, expected)

  def test_takes_the_place_of_what_is_trained(self):
    """And lies on the same base."""
    def forward(params, batch, guide, **kwargs):
      return params, batch, guide, kwargs
    params = {'base': 1, 'adapter': 2, 'value_head': 3}
    out = online_models.within(forward, .7)(
        params, 'batch', {'adapter': 5}, dropout_key=4)
    self.assertEqual(out, (
        params, 'batch', ({'base': 1, 'adapter': 5, 'value_head': 3}, .7),
        {'dropout_key': 4}))

  def test_rows(self):
    rows = algorithms.ALGORITHMS
    self.assertEqual(online_models.mask(rows['nlpo']), {
        'name': 'nucleus', 'top_p': .9, 'every': 20})
    self.assertEqual(
        [name for name, row in rows.items() if online_models.mask(row)],
        ['nlpo'])

  @parameterized.parameters(
      (dict(top_p=0., every=1), 'top_p .*got 0.0'),
      (dict(top_p=1.1, every=1), 'top_p .*got 1.1'),
      (dict(top_p=.5, every=0), 'every .*got 0'),
      (dict(top_p=.5, every=1.5), 'every .*got 1.5'))
  def test_rejects(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      online_models.check_mask(None, **arguments)
    np.testing.assert_equal(online_models.check_mask(7, top_p=1., every=1), 7)


if __name__ == '__main__':
  absltest.main()
