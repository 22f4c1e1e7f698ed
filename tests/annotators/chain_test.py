"""Tests for rlhf_jax.annotators.chain."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import running


def batch():
  """Two prompts, three responses of two tokens to each."""
  return types.Batch(
      tokens=jnp.zeros((2, 3, 3), jnp.int32),
      mask=jnp.ones((2, 3, 3), bool).at[..., 0].set(False),
      scores=jnp.array([[1., 4., 4.], [3., 0., -6.]]))


class ChainTest(absltest.TestCase):

  def test_runs_in_order_with_models_and_arguments(self):
    def double(batch, state, frozen, *, times):
      return batch.replace(
          scores=times * batch.scores + state.params + frozen)
    nodes = [{'name': 'double', 'times': 2}, {'name': 'leave_one_out'},
             {'name': 'keep_best'}]
    state = types.TrainState(step=0, params=10., opt_state=None, key=None)
    out, after = chain_lib.chain(nodes, {'double': double})(batch(), state, 1.)
    expected = arithmetic.keep_best(arithmetic.leave_one_out(
        batch().replace(scores=2 * batch().scores + 11)))
    np.testing.assert_array_equal(out.scores, expected.scores)
    np.testing.assert_array_equal(out.advantages, expected.advantages)
    np.testing.assert_array_equal(out.mask, expected.mask)
    self.assertIs(after, state)

  def test_the_state_goes_from_node_to_node(self):
    nodes = [{'name': 'clip_scores', 'limit': 3.},
             {'name': 'scale_scores', 'kind': 'first'},
             {'name': 'score'}, {'name': 'moving_average', 'decay': .5}]
    score = lambda batch, state, frozen: batch.replace(
        scores=batch.scores + state.statistics['score_moments'].count)
    state = types.TrainState(step=0, params=None, opt_state=None, key=None,
                             statistics=running.init(nodes))
    out, after = chain_lib.chain(nodes, {'score': score})(
        batch(), state, None)
    clipped = np.array([[1, 3, 3], [3, 0, -3]])
    expected = clipped / clipped.std(ddof=1) + 6
    np.testing.assert_allclose(out.scores, expected, rtol=1e-6)
    np.testing.assert_allclose(out.advantages, expected, rtol=1e-6)
    np.testing.assert_allclose(
        after.statistics['baseline']['mean'], expected.mean(), rtol=1e-6)
    self.assertEqual(state.statistics['baseline']['mean'], 0)  # as it was

  def test_a_bound_model_comes_before_ours(self):
    mine = lambda batch, state, frozen: batch.replace(scores=None)
    chain = chain_lib.chain([{'name': 'noise'}], {'noise': mine})
    self.assertIsNone(chain(batch(), None, None)[0].scores)

  def test_names_are_of_one_kind(self):
    self.assertNoCommonElements(arithmetic.ARITHMETIC, running.RUNNING)

  def test_unknown_name(self):
    with self.assertRaisesRegex(ValueError, "'gaee'.*gae, .*noise, .*scorer"):
      chain_lib.chain([{'name': 'gaee'}], {'scorer': None})
    with self.assertRaisesRegex(ValueError, "'scores'.*`models`"):
      chain_lib.chain([{'name': 'scores'}], {})

  def test_unknown_and_missing_arguments(self):
    with self.assertRaisesRegex(ValueError, "gae: .*'lam'"):
      chain_lib.chain([{'name': 'gae', 'lam': .9}], {})
    with self.assertRaisesRegex(ValueError, "kl_scores: .*'kl_coef'"):
      chain_lib.chain([{'name': 'kl_scores'}], {})
    with self.assertRaisesRegex(ValueError, "noise: .*'std'"):
      chain_lib.chain([{'name': 'noise', 'sigma': 1., 'std': 1.}], {})


class BeforeStepTest(absltest.TestCase):

  def test_which_are_for_each_step(self):
    nodes = algorithms.ALGORITHMS['kto'].annotators
    self.assertEqual(chain_lib.split(nodes), ([nodes[0]], [nodes[1]]))
    self.assertEqual(nodes[1]['name'], 'reference_point')
    nodes = algorithms.ALGORITHMS['ppo'].annotators
    self.assertEqual(chain_lib.split(nodes), ([*nodes], []))

  def test_annotators_read_the_state_and_base_of_the_step(self):
    def add(batch, state, frozen):
      return batch.replace(
          scores=batch.scores + state.params + (frozen.base or 0))

    def step(state, batch, base=None):
      return state, batch, base

    state = types.TrainState(step=0, params=10., opt_state=None, key=None)
    annotated = chain_lib.before_step(
        step, chain_lib.chain([{'name': 'add'}], {'add': add}))
    for base in (None, 100.):
      after, actual, given = annotated(
          state, batch(), *([] if base is None else [base]))
      self.assertIs(after, state)
      self.assertEqual(given, base)
      np.testing.assert_array_equal(
          actual.scores, batch().scores + 10 + (base or 0))


if __name__ == '__main__':
  absltest.main()
