"""Tests for rlhf_jax.objectives.simpo."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import simpo

ROW = {'beta': 2., 'margin': 1.}  # of the algorithm table
CONTRACT = {'settings': [ROW, {'beta': 2.5, 'margin': 0.}]}


def _pair(chosen, rejected, lengths=(2, 3)):
  """One pair whose responses have these sums over so many tokens."""
  logprobs = np.full((1, 2, 4), np.nan, np.float32)
  for k, (total, length) in enumerate(zip((chosen, rejected), lengths)):
    logprobs[0, k, :length] = total / length
  return logprobs, np.arange(4)[None, None] < np.reshape(lengths, (1, 2, 1))


class SimpoLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # Rewards 2 * -2 / 2 = -2 and 2 * -4.5 / 3 = -3: log(1 + e^(1 - 1)).
      ('row', {}, .693147),
      ('no_margin', {'margin': 0.}, .313262),  # log(1 + e^-1)
      # Rewards -2.5 and -3.75: log(1 + e^-(1.25 - .5)).
      ('both', {'beta': 2.5, 'margin': .5}, .386871))
  def test_by_hand(self, kwargs, expected):
    fn = self.variant(functools.partial(
        simpo.simpo_loss, **{**ROW, **kwargs}))
    out = fn(*_pair(-2., -4.5))
    np.testing.assert_allclose(out.loss, [expected], rtol=1e-5)
    np.testing.assert_array_equal(out.weight, [1])

  def test_metrics_by_hand(self):
    metrics = simpo.simpo_loss(*_pair(-2., -4.5), **ROW).metrics
    for name, expected in (('chosen', -2), ('rejected', -3), ('margin', 1),
                           ('accuracy', 1)):
      np.testing.assert_allclose(metrics[f'reward/{name}'], [expected],
                                 rtol=1e-6)
    # The margin is no part of being right.
    behind = simpo.simpo_loss(*_pair(-2., -3.1), beta=2., margin=1.6)
    np.testing.assert_array_equal(behind.metrics['reward/accuracy'], [1])

  def test_gradient_by_hand(self):
    # sigmoid(0) = 1/2, times beta over the length.
    logprobs, mask = _pair(-2., -4.5)
    grad = jax.grad(
        lambda x: simpo.simpo_loss(x, mask, **ROW).loss.sum())(logprobs)
    np.testing.assert_allclose(
        grad, [[[-.5, -.5, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0]]], rtol=1e-5)

  def test_length_alone_changes_nothing(self):
    """A reward is of a mean, whatever the length."""
    losses = [simpo.simpo_loss(*_pair(-n, -1.5 * m, (n, m)), **ROW).loss
              for n, m in ((1, 1), (2, 3), (4, 1), (3, 4))]
    np.testing.assert_allclose(losses, np.full((4, 1), losses[0]), rtol=1e-6)

  @parameterized.parameters((2., 1.), (2.5, .3), (.5, 0.))
  @twin.few
  @twin.randomised
  def test_twin(self, beta, margin, seed):
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(size=(3, 2, 5)).astype(np.float32)
    mask = np.arange(5) < rng.integers(1, 5, size=(3, 2, 1))

    def reference(x):
      reward = [[beta * row[m].sum() / m.sum() for row, m in zip(*both)]
                for both in zip(x, mask)]
      return np.mean([np.log(1 + np.exp(margin - a + b)) for a, b in reward])

    twin.assert_equal(
        lambda x: twin.mean(simpo.simpo_loss(
            x, mask, beta=beta, margin=margin)), reference, logprobs)

  def test_extremes(self):
    # -log sigmoid(1 - 2e5), a sigmoid that float32 has not; and the other way.
    logprobs, mask = _pair(-1e5, -1., (1, 1))
    for sign, expected in ((1, 2e5 - 1), (-1, 0)):
      value, grad = jax.value_and_grad(lambda x, s=sign: simpo.simpo_loss(
          x[:, ::s], mask, **ROW).loss.sum())(logprobs)
      np.testing.assert_allclose(value, expected, rtol=1e-6)
      chex.assert_tree_all_finite(grad)

  def test_a_pair_with_an_empty_response_does_not_count(self):
    logprobs, mask = _pair(-2., -4.5)
    out = simpo.simpo_loss(
        logprobs, mask & (np.arange(2) < 1)[:, None], **ROW)
    np.testing.assert_array_equal(out.weight, [0])
    self.assertTrue(np.isfinite(out.loss).all())

  @parameterized.parameters(
      ({'beta': 0.}, 'beta'), ({'beta': -1.}, 'beta'),
      ({'margin': -.1}, 'margin'))
  def test_rejects(self, kwargs, name):
    with self.assertRaisesRegex(ValueError, f'{name} must be'):
      simpo.simpo_loss(*_pair(-2., -4.5), **{**ROW, **kwargs})

  def test_rejects_arrays(self):
    logprobs, mask = _pair(-2., -4.5)
    for bad in ((logprobs[:, :1], mask[:, :1]), (logprobs, mask[..., 1:]),
                (logprobs, mask.astype(np.float32)), (logprobs[0], mask[0])):
      with self.assertRaises(AssertionError):
        simpo.simpo_loss(*bad, **ROW)

  def test_objective(self):
    logprobs, mask = _pair(-2., -4.5)
    batch = types.Batch(tokens=jnp.zeros(mask.shape, jnp.int32), mask=mask)
    out = simpo.objective(types.PolicyOutput(logprobs=logprobs), batch,
                          beta=2.5, margin=.5)
    np.testing.assert_allclose(out.loss, [.386871], rtol=1e-5)
    with self.assertRaisesRegex(ValueError, 'logprobs is None'):
      simpo.objective(types.PolicyOutput(), batch, **ROW)


if __name__ == '__main__':
  absltest.main()
