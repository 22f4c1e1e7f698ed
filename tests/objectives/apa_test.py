"""Tests for rlhf_jax.objectives.apa."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import apa
from rlhf_jax.objectives import ppo
from rlhf_jax.ops import advantages as advantages_lib
from rlhf_jax.ops import masked

CONTRACT = {'token_advantages': True, 'settings': [
    {'beta': .1}, {'beta': 1., 'value_coef': 0.}]}

# [Ex 8.1] two tokens of one response, and padding.
LOGPROBS = np.float32([[[-1, -2, np.nan]]])
REF = np.float32([[[-1.2, -1.8, np.nan]]])
ADVANTAGES = np.float32([[[.05, -.03, np.nan]]])
MASK = np.isfinite(LOGPROBS)


def _inputs(seed=0, b=3, k=1, t=5):
  """(logprobs, ref, advantages, mask); the first response is empty."""
  rng = np.random.default_rng(seed)
  logprobs, ref = -rng.exponential(size=(2, b, k, t)).astype(np.float32)
  advantages = rng.normal(size=ref.shape).astype(np.float32)
  mask = np.arange(t) < rng.integers(1, t + 1, size=(b, k, 1))
  mask[0, 0] = False
  return logprobs, ref, advantages, mask


@jax.jit
def _loss(logprobs, ref, advantages, mask):
  return twin.mean(apa.apa_loss(logprobs, ref, advantages, mask, beta=.5))


def _twin(logprobs, ref, advantages, mask):
  """Mean over tokens, one by one, at beta = 1/2."""
  terms = [(logprobs[i] - (ref[i] + 2 * advantages[i]))**2
           for i in zip(*np.nonzero(mask))]
  return np.mean(terms)


class ApaLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 8.1] residuals .2 - .5 = -.3 and -.2 + .3 = .1: (.09 + .01) / 2.
    out = self.variant(lambda *x: apa.apa_loss(*x, beta=.1))(
        LOGPROBS, REF, ADVANTAGES, MASK)
    np.testing.assert_allclose(out.loss, [[[.09, .01, 0]]], atol=1e-6)
    np.testing.assert_array_equal(out.weight, MASK)
    np.testing.assert_allclose(
        out.metrics['policy/log_ratio'], [[[.2, -.2, 0]]], atol=1e-6)
    self.assertAlmostEqual(float(twin.mean(out)), .05, 6)

  def test_gradient_by_hand(self):
    # [Ex 8.1] 2 * residual / 2 tokens.
    grad = jax.grad(lambda x: twin.mean(
        apa.apa_loss(x, REF, ADVANTAGES, MASK, beta=.1)))(LOGPROBS)
    np.testing.assert_allclose(grad, [[[-.3, .1, 0]]], atol=1e-6)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    logprobs, *rest = _inputs(seed)
    twin.assert_equal(lambda x: _loss(x, *rest), lambda x: _twin(x, *rest),
                      logprobs)

  def test_optimum(self):
    # objectives.md, section 16: pi = pi_init * exp(A / beta), not
    # pi_init * exp(beta A) and not pi_init + A (trap 19).
    _, ref, a, mask = _inputs(1)
    value, grad = jax.value_and_grad(lambda x: _loss(x, ref, a, mask))(
        ref + a / np.float32(.5))
    self.assertAlmostEqual(float(value), 0, 10)
    np.testing.assert_allclose(grad, 0, atol=1e-6)

  def test_without_advantage_it_is_an_anchor(self):
    # A = 0 pulls towards pi_init; the gradient is 2 * log-ratio.
    logprobs, ref, a, mask = _inputs(2)
    out = [apa.apa_loss(logprobs, ref, 0 * a, mask, beta=beta)
           for beta in (.1, 10.)]
    chex.assert_trees_all_equal(*out)
    np.testing.assert_allclose(
        out[0].loss[mask], ((logprobs - ref)**2)[mask], rtol=1e-5)
    grad = jax.grad(lambda x: apa.apa_loss(
        x, ref, 0 * a, mask, beta=.1).loss.sum())(logprobs)
    np.testing.assert_allclose(
        grad[mask], 2 * (logprobs - ref)[mask], rtol=1e-5)

  def test_tokens_count_alike(self):
    # Trap 28: a mean over tokens, however long the responses are.
    inputs = _inputs(3)
    flat = [x[inputs[3]].reshape(1, 1, -1) for x in inputs]
    np.testing.assert_allclose(_loss(*inputs), _loss(*flat), rtol=1e-5)

  def test_only_logprobs_have_a_gradient(self):
    logprobs, ref, a, mask = _inputs()
    for grad in jax.grad(
        lambda ref, a: _loss(logprobs, ref, a, mask), (0, 1))(ref, a):
      np.testing.assert_array_equal(grad, 0)

  @parameterized.parameters(0., -.1)
  def test_rejects(self, beta):
    with self.assertRaisesRegex(ValueError, f'beta.*{beta}'):
      apa.apa_loss(*_inputs(), beta=beta)

  def test_rejects_shapes_and_missing(self):
    twin.assert_checks_arrays(
        functools.partial(apa.apa_loss, beta=1.), _inputs(),
        ['logprobs', 'ref_logprobs', 'advantages'])


class ObjectiveTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    logprobs, ref, a, mask = _inputs(3)
    values, returns, old, _ = _inputs(4)
    self.out = types.PolicyOutput(logprobs, values=values)
    self.batch = types.Batch(
        tokens=np.zeros(mask.shape, int), mask=mask, ref_logprobs=ref,
        old_logprobs=old, advantages=a, returns=returns)
    self.policy = apa.apa_loss(logprobs, ref, a, mask, beta=.3)
    self.value = ppo.value_loss(values, None, returns, mask, value_clip=None)

  def test_value_loss_by_hand(self):
    # [Ex 8.3] .5 * mean((V - G)^2), G = A + V_old of [Ex 6.1], where A is
    # whitened afterwards (trap 8) and nothing is clipped.
    rewards, old = np.float32([[[[-.03, .02, 1.49]]], [[[.5, .6, .8]]]])
    mask = np.ones((1, 1, 3), bool)
    a, returns = advantages_lib.gae(rewards, old, mask, gae_lambda=.95)
    batch = types.Batch(
        tokens=np.zeros((1, 1, 3), int), mask=mask, ref_logprobs=0 * old,
        advantages=masked.whiten(a, mask), returns=returns, old_values=old)
    out = types.PolicyOutput(0 * old, values=np.float32([[[1, 1.2, 1.6]]]))
    loss = apa.objective(out, batch, beta=1.)
    value = loss.metrics['value/loss']
    self.assertAlmostEqual(float(value.mean()), .041564, 6)
    # What the paper prints is the sum without the half.
    self.assertAlmostEqual(float(2 * value.sum()), .249383, 5)
    self.assertNotIn('value/clip_fraction', loss.metrics)
    np.testing.assert_allclose(
        loss.loss, loss.metrics['policy/loss'] + value, rtol=1e-6)

  def test_total(self):
    out = apa.objective(self.out, self.batch, beta=.3, value_coef=.2)
    np.testing.assert_allclose(
        out.loss, self.policy.loss + .2 * self.value.loss, rtol=1e-6)
    chex.assert_trees_all_equal(out.metrics, {
        **self.policy.metrics, 'policy/loss': self.policy.loss,
        'value/loss': self.value.loss})
    np.testing.assert_array_equal(out.weight, self.batch.mask)
    chex.assert_trees_all_equal(
        apa.objective(self.out, self.batch, beta=.3),
        apa.objective(self.out, self.batch, beta=.3, value_coef=1.))

  def test_anchor_is_the_reference(self):
    # Trap 19: not the policy that sampled.
    fn = lambda batch: apa.objective(self.out, batch, beta=.3)
    batch = self.batch.replace(old_logprobs=None)
    chex.assert_trees_all_equal(fn(self.batch), fn(batch))
    with self.assertRaisesRegex(ValueError, 'ref_logprobs is None'):
      fn(self.batch.replace(ref_logprobs=None))

  def test_reads_what_it_needs(self):
    out = apa.objective(self.out.replace(values=None),
                        self.batch.replace(returns=None), beta=.3,
                        value_coef=0.)
    chex.assert_trees_all_equal(out.loss, self.policy.loss)
    for name in ('advantages', 'returns'):
      with self.assertRaisesRegex(ValueError, f'{name} is None'):
        apa.objective(
            self.out, self.batch.replace(**{name: None}), beta=.3)
    for name in ('logprobs', 'values'):
      with self.assertRaisesRegex(ValueError, f'{name} is None'):
        apa.objective(self.out.replace(**{name: None}), self.batch, beta=.3)
    with self.assertRaisesRegex(ValueError, 'value_coef.*-1'):
      apa.objective(self.out, self.batch, beta=.3, value_coef=-1.)


if __name__ == '__main__':
  absltest.main()
