"""Tests for rlhf_jax.objectives.orpo."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import orpo
from rlhf_jax.objectives import sft

ROW = {'odds_coef': .1}  # of the algorithm table
CONTRACT = {'settings': [ROW, {'odds_coef': 0.}]}


def _pair(chosen, rejected, lengths=(2, 3)):
  """One pair whose tokens have these probabilities, over so many tokens."""
  logprobs = np.full((1, 2, 4), np.nan, np.float32)
  for k, (probability, length) in enumerate(zip((chosen, rejected), lengths)):
    logprobs[0, k, :length] = np.log(probability)
  return logprobs, np.arange(4)[None, None] < np.reshape(lengths, (1, 2, 1))


class OrpoLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # Odds 1 and 1/3, whose ratio is 3: log 2 + coef * log(1 + 1/3).
      ('row', {}, .721915), ('equal_parts', {'odds_coef': 1.}, .980829),
      ('likelihood_alone', {'odds_coef': 0.}, .693147))
  def test_by_hand(self, kwargs, expected):
    fn = self.variant(functools.partial(
        orpo.orpo_loss, **{**ROW, **kwargs}))
    out = fn(*_pair(.5, .25))
    np.testing.assert_allclose(out.loss, [expected], rtol=1e-5)
    np.testing.assert_array_equal(out.weight, [1])

  def test_metrics_by_hand(self):
    metrics = orpo.orpo_loss(*_pair(.5, .25), **ROW).metrics
    for name, expected in (
        ('policy/nll', np.log(2)), ('reward/chosen', 0),
        ('reward/rejected', -np.log(3)), ('reward/margin', np.log(3)),
        ('reward/accuracy', 1)):
      np.testing.assert_allclose(
          metrics[name], [expected], rtol=1e-5, atol=1e-6)
    wrong = orpo.orpo_loss(*_pair(.25, .5), **ROW)
    np.testing.assert_array_equal(wrong.metrics['reward/accuracy'], [0])

  def test_gradient_by_hand(self):
    # d log odds / d log P = 1 / (1 - P), 2 and 4/3; sigmoid(-log 3) = 1/4.
    logprobs, mask = _pair(.5, .25)
    grad = jax.grad(lambda x: orpo.orpo_loss(
        x, mask, odds_coef=1.).loss.sum())(logprobs)
    np.testing.assert_allclose(
        grad, [[[-.75, -.75, 0, 0], [1 / 9, 1 / 9, 1 / 9, 0]]], rtol=1e-5)

  def test_length_alone_changes_nothing(self):
    losses = [orpo.orpo_loss(*_pair(.5, .25, lengths), **ROW).loss
              for lengths in ((1, 1), (2, 3), (4, 1), (3, 4))]
    np.testing.assert_allclose(losses, np.full((4, 1), losses[0]), rtol=1e-6)

  def test_without_the_odds_it_is_cloning(self):
    logprobs, mask = _pair(.5, .25)
    np.testing.assert_array_equal(
        orpo.orpo_loss(logprobs, mask, odds_coef=0.).loss, sft.sft_loss(
            logprobs, mask, aggregate='sequence_mean').loss[:, 0])

  @parameterized.parameters(.1, 2.)
  @twin.few
  @twin.randomised
  def test_twin(self, odds_coef, seed):
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(size=(3, 2, 5)).astype(np.float32) - .05
    mask = np.arange(5) < rng.integers(1, 5, size=(3, 2, 1))

    def reference(x):
      total = 0
      for both, masks in zip(x, mask):
        chosen, rejected = (np.prod(np.exp(row[m]))**(1 / m.sum())
                            for row, m in zip(both, masks))
        ratio = chosen / (1 - chosen) / (rejected / (1 - rejected))
        total += np.log(1 / chosen) + odds_coef * np.log(1 + 1 / ratio)
      return total / len(x)

    twin.assert_equal(
        lambda x: twin.mean(orpo.orpo_loss(x, mask, odds_coef=odds_coef)),
        reference, logprobs)

  @parameterized.parameters(
      # Log odds log P - log(1 - P), of P that is 1 but for so much, and of
      # one that float32 does not hold.
      (-1e-6, 13.815511), (-1e-3, 6.907255), (-100., -100.), (-1e5, -1e5))
  def test_odds_of_extremes(self, mean, expected):
    logprobs, mask = np.full((1, 2, 1), mean, np.float32), np.ones(
        (1, 2, 1), bool)
    out = orpo.orpo_loss(logprobs, mask, **ROW)
    np.testing.assert_allclose(
        out.metrics['reward/chosen'], [expected], rtol=1e-6)
    np.testing.assert_allclose(
        out.loss, [-mean + .1 * np.log(2)], rtol=1e-6)

  def test_certainty_is_finite(self):
    mask = np.ones((1, 2, 1), bool)
    for means in ((0., -1.), (-1., 0.), (0., 0.), (-1e5, 0.), (0., -1e5)):
      value, grad = jax.value_and_grad(lambda x: orpo.orpo_loss(
          x, mask, **ROW).loss.sum())(np.float32(means).reshape(1, 2, 1))
      self.assertTrue(np.isfinite(value), means)
      chex.assert_tree_all_finite(grad)
      np.testing.assert_array_less(grad[0, 0], 0)  # of the likelihood

  def test_a_pair_with_an_empty_response_does_not_count(self):
    logprobs, mask = _pair(.5, .25)
    out = orpo.orpo_loss(
        logprobs, mask & (np.arange(2) < 1)[:, None], **ROW)
    np.testing.assert_array_equal(out.weight, [0])
    self.assertTrue(np.isfinite(out.loss).all())

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, 'odds_coef must be'):
      orpo.orpo_loss(*_pair(.5, .25), odds_coef=-.1)

  def test_rejects_arrays(self):
    logprobs, mask = _pair(.5, .25)
    for bad in ((logprobs[:, :1], mask[:, :1]), (logprobs, mask[..., 1:]),
                (logprobs, mask.astype(np.float32)), (logprobs[0], mask[0])):
      with self.assertRaises(AssertionError):
        orpo.orpo_loss(*bad, **ROW)

  def test_objective(self):
    logprobs, mask = _pair(.5, .25)
    batch = types.Batch(tokens=jnp.zeros(mask.shape, jnp.int32), mask=mask)
    out = orpo.objective(
        types.PolicyOutput(logprobs=logprobs), batch, odds_coef=1.)
    np.testing.assert_allclose(out.loss, [.980829], rtol=1e-5)
    with self.assertRaisesRegex(ValueError, 'logprobs is None'):
      orpo.objective(types.PolicyOutput(), batch, **ROW)


if __name__ == '__main__':
  absltest.main()
