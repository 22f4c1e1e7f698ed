"""Tests for rlhf_jax.sources."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax import sources
from rlhf_jax import types
from rlhf_jax.data import order

ROWS = 10


def _dataset():
  tokens = np.arange(ROWS * 6).reshape(ROWS, 2, 3)
  return types.Batch(tokens=tokens, mask=tokens % 2 == 0,
                     gold_scores=tokens[..., 0] / 7)


def _state(seed=0, params=3.):
  return types.TrainState(step=0, params=params, opt_state=None,
                          key=jax.random.key(seed))


class OfflineTest(parameterized.TestCase):

  @parameterized.parameters(3, 10, 16)
  def test_order_is_that_of_order_indices(self, batch_size):
    data = _dataset()
    source = sources.offline(data, batch_size=batch_size, seed=4)
    for step in (0, 5, 1):
      batch = source(step, None, None)
      at = order.indices(4, step, batch_size, ROWS)
      for field in ('tokens', 'mask', 'gold_scores'):
        np.testing.assert_array_equal(
            getattr(batch, field), getattr(data, field)[at])
      self.assertIsNone(batch.scores)

  def test_members_have_orders_of_their_own(self):
    data = _dataset()
    source = sources.offline_members(data, batch_size=5, seeds=[7, 8, 9])
    steps = [source(step, None, None) for step in range(2)]
    self.assertEqual(steps[0].tokens.shape, (3, 5, 2, 3))
    rows = np.concatenate([s.tokens[:, :, 0, 0] for s in steps], 1) // 6
    for member, seed in zip(rows, (7, 8, 9)):
      np.testing.assert_array_equal(np.sort(member), np.arange(ROWS))
      np.testing.assert_array_equal(member, order.indices(seed, 0, ROWS, ROWS))
    self.assertLen({tuple(r) for r in rows}, 3)
    for i in range(3):
      at = rows[i, 5:]
      np.testing.assert_array_equal(
          steps[1].gold_scores[i], data.gold_scores[at])


class OnlineTest(absltest.TestCase):

  def _source(self):
    prompts = np.arange(ROWS * 2).reshape(ROWS, 2)
    calls = []

    def sampler(params, prompts, lengths, key):
      calls.append(key)
      noise = np.asarray(jax.random.uniform(key, (3, 2, 1)))
      return types.Batch(
          tokens=np.broadcast_to(prompts[:, None], (3, 2, 2)),
          mask=np.broadcast_to(lengths[:, None, None], (3, 2, 2)),
          old_logprobs=noise * params)

    annotate = lambda batch, state, frozen: batch.replace(
        scores=batch.old_logprobs[..., 0] + frozen.reward,
        gold_scores=state.params)
    return sources.online(prompts, np.arange(ROWS) + 1, sampler, annotate,
                          batch_size=3, seed=2), calls

  def test_prompts_come_in_order_with_their_lengths(self):
    source, _ = self._source()
    frozen = types.Frozen(reward=10.)
    for step in (0, 1, 6):
      batch = source(step, _state(), frozen)
      at = order.indices(2, step, 3, ROWS)
      np.testing.assert_array_equal(batch.tokens[:, 0, 0], at * 2)
      np.testing.assert_array_equal(batch.mask[:, 1, 1], at + 1)
      np.testing.assert_allclose(batch.scores - batch.old_logprobs[..., 0], 10)
      self.assertEqual(batch.gold_scores, _state().params)

  def test_samples_with_the_parameters_and_the_key_of_the_state(self):
    source, _ = self._source()
    frozen = types.Frozen(reward=0.)
    draw = lambda *args: source(0, _state(*args), frozen).scores
    np.testing.assert_array_equal(draw(0), draw(0))
    self.assertGreater(np.abs(draw(0) - draw(1)).min(), 1e-4)
    np.testing.assert_allclose(draw(0, 6.), 2 * draw(0, 3.), rtol=1e-6)

  def test_no_key_is_used_twice(self):
    source, calls = self._source()
    state, used = _state(), []
    for step in range(4):
      used.append(tuple(jax.random.key_data(state.key).tolist()))
      source(step, state, types.Frozen(reward=0.))
      # As the train step does.
      state = state.replace(key=jax.random.split(state.key)[0])
    used += [tuple(jax.random.key_data(key).tolist()) for key in calls]
    self.assertLen(set(used), 8)


if __name__ == '__main__':
  absltest.main()
