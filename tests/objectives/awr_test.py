"""Tests for rlhf_jax.objectives.awr."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import awr
from rlhf_jax.objectives import ppo
from rlhf_jax.objectives import sft

CONTRACT = {'token_advantages': True, 'settings': [
    {'beta': 1.}, {'beta': .5, 'max_weight': 2., 'value_coef': 0.}]}

# [Ex 8.2] two tokens of one response, and padding.
LOGPROBS = np.float32([[[-1, -2, np.nan]]])
ADVANTAGES = np.float32([[[.05, -.03, np.nan]]])
MASK = np.isfinite(LOGPROBS)


def _inputs(seed=0, b=3, k=1, t=5):
  """(logprobs, advantages, mask); the first response is empty."""
  rng = np.random.default_rng(seed)
  logprobs = -rng.exponential(size=(b, k, t)).astype(np.float32)
  advantages = rng.normal(size=logprobs.shape).astype(np.float32)
  mask = np.arange(t) < rng.integers(1, t + 1, size=(b, k, 1))
  mask[0, 0] = False
  return logprobs, advantages, mask


@functools.partial(jax.jit, static_argnums=(3, 4))
def _loss(logprobs, advantages, mask, beta, max_weight=None):
  return twin.mean(awr.awr_loss(
      logprobs, advantages, mask, beta=beta, max_weight=max_weight))


def _twin(logprobs, advantages, mask, beta, max_weight):
  """Mean over tokens, one by one."""
  terms = []
  for i in zip(*np.nonzero(mask)):
    weight = np.exp(advantages[i] / beta)
    if max_weight is not None and weight > max_weight:
      weight = max_weight
    terms.append(-weight * logprobs[i])
  return np.mean(terms)


class AwrLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 8.2] e^.05 and e^-.03; e^.5 and e^-.3.
      ('paper', 1., [1.051271, .970446]), ('small', .1, [1.648721, .740818]))
  def test_by_hand(self, beta, weights):
    out = self.variant(lambda *x: awr.awr_loss(*x, beta=beta))(
        LOGPROBS, ADVANTAGES, MASK)
    np.testing.assert_allclose(
        out.metrics['policy/weight'][MASK], weights, rtol=1e-6)
    np.testing.assert_allclose(
        out.loss, [[[weights[0], 2 * weights[1], 0]]], rtol=1e-6)
    np.testing.assert_array_equal(out.weight, MASK)
    np.testing.assert_array_equal(
        out.metrics['policy/weight_clip_fraction'], 0)

  def test_loss_by_hand(self):
    # [Ex 8.2] (1.051271 + 2 * .970446) / 2.
    self.assertAlmostEqual(
        float(_loss(LOGPROBS, ADVANTAGES, MASK, 1.)), 1.496081, 6)
    grad = jax.grad(lambda x: _loss(x, ADVANTAGES, MASK, 1.))(LOGPROBS)
    np.testing.assert_allclose(
        grad, [[[-.525636, -.485223, 0]]], rtol=1e-5)

  @parameterized.parameters((1., None), (.5, None), (.5, 1.5), (2., .7))
  @twin.few
  @twin.randomised
  def test_twin(self, beta, max_weight, seed):
    logprobs, *rest = _inputs(seed)
    twin.assert_equal(lambda x: _loss(x, *rest, beta, max_weight),
                      lambda x: _twin(x, *rest, beta, max_weight), logprobs)

  def test_without_advantage_it_is_likelihood(self):
    # objectives.md, section 16.
    logprobs, a, mask = _inputs(1)
    out = awr.awr_loss(logprobs, 0 * a, mask, beta=.1)
    nll = sft.sft_loss(logprobs, mask)
    chex.assert_trees_all_equal(
        (out.loss, out.weight), (nll.loss, nll.weight))

  def test_weights_are_detached(self):
    logprobs, a, mask = _inputs()
    grad = jax.grad(lambda a: _loss(logprobs, a, mask, 1.))(a)
    np.testing.assert_array_equal(grad, 0)

  def test_a_shift_scales_the_loss(self):
    # Weights are not normalised: Z is taken for 1 (eq. 5).
    logprobs, a, mask = _inputs(2)
    np.testing.assert_allclose(
        _loss(logprobs, a + np.float32(.3), mask, .5),
        np.exp(.6) * _loss(logprobs, a, mask, .5), rtol=1e-5)

  def test_overflow_is_finite_and_counted(self):
    logprobs = -np.ones((1, 1, 4), np.float32)
    a = np.float32([[[19, 21, 1e4, -1e4]]])
    fn = lambda x: awr.awr_loss(x, a, logprobs < 0, beta=1.)
    out = fn(logprobs)
    np.testing.assert_allclose(
        out.loss[0, 0], np.exp([19, 20, 20, -np.inf]), rtol=1e-6)
    np.testing.assert_array_equal(
        out.metrics['policy/weight_clip_fraction'], [[[0, 1, 1, 0]]])
    chex.assert_tree_all_finite(
        jax.grad(lambda x: fn(x).loss.sum())(logprobs))

  def test_largest_weight(self):
    # e^1 > 2 > e^.5; a limit above e^20 does not lift that one.
    logprobs = -np.ones((1, 1, 2), np.float32)
    a, mask = np.float32([[[1, .5]]]), logprobs < 0
    out = awr.awr_loss(logprobs, a, mask, beta=1., max_weight=2.)
    np.testing.assert_allclose(
        out.metrics['policy/weight'], [[[2, np.exp(.5)]]], rtol=1e-6)
    np.testing.assert_array_equal(
        out.metrics['policy/weight_clip_fraction'], [[[1, 0]]])
    out = awr.awr_loss(logprobs, 100 * a, mask, beta=1., max_weight=1e30)
    np.testing.assert_allclose(out.loss, np.exp(20), rtol=1e-6)

  def test_tokens_count_alike(self):
    # Trap 28: a mean over tokens, however long the responses are.
    inputs = _inputs(3)
    flat = [x[inputs[2]].reshape(1, 1, -1) for x in inputs]
    np.testing.assert_allclose(
        _loss(*inputs, 1.), _loss(*flat, 1.), rtol=1e-5)

  @parameterized.parameters(
      ('beta', 0.), ('beta', -1.), ('max_weight', 0.), ('max_weight', -2.))
  def test_rejects(self, name, value):
    with self.assertRaisesRegex(ValueError, f'{name}.*{value}'):
      awr.awr_loss(*_inputs(), **{'beta': 1., name: value})

  def test_rejects_shapes_and_missing(self):
    twin.assert_checks_arrays(
        functools.partial(awr.awr_loss, beta=1.), _inputs(),
        ['logprobs', 'advantages'])


class ObjectiveTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    logprobs, a, mask = _inputs(3)
    values, returns, _ = _inputs(4)
    self.out = types.PolicyOutput(logprobs, values=values)
    self.batch = types.Batch(
        tokens=np.zeros(mask.shape, int), mask=mask, advantages=a,
        returns=returns)
    self.policy = awr.awr_loss(logprobs, a, mask, beta=.5, max_weight=2.)
    self.value = ppo.value_loss(values, None, returns, mask, value_clip=None)

  def test_total(self):
    # [Ex 8.3] is in apa_test: the value loss is the same.
    out = awr.objective(
        self.out, self.batch, beta=.5, max_weight=2., value_coef=.2)
    np.testing.assert_allclose(
        out.loss, self.policy.loss + .2 * self.value.loss, rtol=1e-6)
    chex.assert_trees_all_equal(out.metrics, {
        **self.policy.metrics, 'policy/loss': self.policy.loss,
        'value/loss': self.value.loss})
    np.testing.assert_array_equal(out.weight, self.batch.mask)
    chex.assert_trees_all_equal(
        awr.objective(self.out, self.batch, beta=.5),
        awr.objective(self.out, self.batch, beta=.5, max_weight=None,
                      value_coef=1.))

  def test_reads_what_it_needs(self):
    out = awr.objective(self.out.replace(values=None),
                        self.batch.replace(returns=None), beta=.5,
                        max_weight=2., value_coef=0.)
    chex.assert_trees_all_equal(out.loss, self.policy.loss)
    for name in ('advantages', 'returns'):
      with self.assertRaisesRegex(ValueError, f'{name} is None'):
        awr.objective(
            self.out, self.batch.replace(**{name: None}), beta=.5)
    for name in ('logprobs', 'values'):
      with self.assertRaisesRegex(ValueError, f'{name} is None'):
        awr.objective(self.out.replace(**{name: None}), self.batch, beta=.5)
    with self.assertRaisesRegex(ValueError, 'value_coef.*-1'):
      awr.objective(self.out, self.batch, beta=.5, value_coef=-1.)


if __name__ == '__main__':
  absltest.main()
