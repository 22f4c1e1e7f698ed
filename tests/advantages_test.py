"""Tests for rlhf_jax.ops.advantages."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import advantages


def _gae_twin(rewards, values, mask, discount, gae_lambda):
  """GAE of one row in float64, as a sum over later steps."""
  steps = np.flatnonzero(mask)
  reward, value = rewards[steps], values[steps]
  delta = reward + discount * np.append(value[1:], 0) - value
  out = np.zeros(len(mask))
  for i, t in enumerate(steps):
    powers = (discount * gae_lambda) ** np.arange(len(steps) - i)
    out[t] = np.sum(powers * delta[i:])
  return out, np.where(mask, out + values, 0)


def _rollout(seed=0, b=3, k=2, t=6):
  rng = np.random.default_rng(seed)
  f = lambda *shape: rng.normal(size=shape).astype(np.float32)
  mask = rng.random((b, k, t)) < 0.7
  mask[0, 0] = False
  return f(b, k), f(b, k, t), f(b, k, t), mask


class GaeTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 6.1] delta = -.03 + .6 - .5, .02 + .8 - .6, 1.49 - .8 =
      # .07, .22, .69; then A_1 = .22 + .95 * .69, A_0 = .07 + .95 * A_1.
      ('zero', 0., [.07, .22, .69]),
      ('default', .95, [.901725, .8755, .69]),
      ('monte_carlo', 1., [.98, .91, .69]))
  def test_by_hand(self, gae_lambda, expected):
    rewards = np.float32([-.03, .02, 1.49, np.nan])
    values = np.float32([.5, .6, .8, np.nan])
    mask = np.array([True, True, True, False])
    fn = self.variant(
        lambda *x: advantages.gae(*x, gae_lambda=gae_lambda))
    out, returns = fn(rewards, values, mask)
    np.testing.assert_allclose(out, [*expected, 0], atol=1e-6)
    np.testing.assert_allclose(
        returns, [*(np.add(expected, values[:3])), 0], atol=1e-6)

  @parameterized.parameters((1., .95), (.9, .5), (.9, 1.), (1., 0.))
  def test_twin_with_gaps(self, discount, gae_lambda):
    _, rewards, values, mask = _rollout()
    out, returns = advantages.gae(
        rewards, values, mask, discount=discount, gae_lambda=gae_lambda)
    for i in np.ndindex(3, 2):
      expected = _gae_twin(
          rewards[i], values[i], mask[i], discount, gae_lambda)
      np.testing.assert_allclose(out[i], expected[0], atol=1e-5)
      np.testing.assert_allclose(returns[i], expected[1], atol=1e-5)

  def test_lambda_one_is_return_less_value(self):
    _, rewards, values, mask = _rollout()
    _, returns = advantages.gae(rewards, values, mask, gae_lambda=1.0)
    later = np.cumsum(np.where(mask, rewards, 0)[..., ::-1], -1)[..., ::-1]
    np.testing.assert_allclose(returns, np.where(mask, later, 0), atol=1e-5)

  def test_has_no_gradient(self):
    _, rewards, values, mask = _rollout()
    grads = jax.grad(
        lambda r, v: sum(x.sum() for x in advantages.gae(r, v, mask)),
        (0, 1))(rewards, values)
    for grad in grads:
      np.testing.assert_array_equal(grad, 0)

  @parameterized.parameters(('discount', 1.5), ('gae_lambda', -.5))
  def test_rejects(self, name, value):
    with self.assertRaisesRegex(ValueError, f'{name}.*{value}'):
      advantages.gae(*_rollout()[1:], **{name: value})

  def test_rejects_shapes(self):
    _, rewards, values, mask = _rollout()
    with self.assertRaises(AssertionError):
      advantages.gae(rewards, values[..., :-1], mask)


class BaselineTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 7.2] 1 - 11/3, 2 - 10/3, 3 - 9/3, 6 - 6/3.
      ([1, 2, 3, 6], [-2.666667, -1.333333, 0, 4]),
      ([1, 4], [-3, 3]),
      ([[1, 2, 3], [4, 5, 6]], [[-1.5, 0, 1.5], [-1.5, 0, 1.5]]))
  def test_leave_one_out_by_hand(self, scores, expected):
    out = self.variant(advantages.leave_one_out)(np.float32(scores))
    np.testing.assert_allclose(out, expected, atol=1e-6)

  def test_leave_one_out_identities(self):
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    out = advantages.leave_one_out(scores)
    np.testing.assert_allclose(out.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(
        out, 4 / 3 * (scores - scores.mean(1, keepdims=True)), atol=1e-6)
    np.testing.assert_allclose(
        advantages.leave_one_out(scores + 7), out, atol=1e-5)
    equal = advantages.leave_one_out(np.full((2, 3), .1, np.float32))
    np.testing.assert_array_equal(equal, 0)
    with self.assertRaisesRegex(ValueError, 'K = 1'):
      advantages.leave_one_out(scores[:, :1])

  @parameterized.parameters(2, 3)
  def test_leave_one_out_is_unbiased(self, k):
    """Mean over all K-tuples of the estimate is the gradient of E[R]."""
    logits, payoff = np.float32([.3, -.5, .9]), np.float32([1., 4., -2.])
    tuples = np.array(list(itertools.product(range(3), repeat=k)))
    logp = jax.nn.log_softmax(logits)
    chance = np.exp(np.asarray(logp)[tuples].sum(axis=1))

    def expected_estimate(logits):
      logprobs = jax.nn.log_softmax(logits)[tuples]
      baselined = advantages.leave_one_out(payoff[tuples])
      return jnp.sum(chance * (baselined * logprobs).mean(axis=1))

    exact = jax.grad(lambda x: jnp.sum(jax.nn.softmax(x) * payoff))(logits)
    np.testing.assert_allclose(
        jax.grad(expected_estimate)(logits), exact, atol=1e-5)

  def test_group_normalize_by_hand(self):
    # Mean 3, deviations -2, -1, 0, 3, variance 14 / 3 with ddof 1.
    scores = np.float32([[1, 2, 3, 6]])
    centered = np.array([[-2., -1, 0, 3]])
    np.testing.assert_allclose(
        advantages.group_normalize(scores),
        centered / (np.sqrt(14 / 3) + 1e-4), rtol=1e-6)
    np.testing.assert_allclose(
        advantages.group_normalize(scores, scale=False), centered, rtol=1e-6)
    np.testing.assert_allclose(
        advantages.group_normalize(scores, epsilon=1.),
        centered / (np.sqrt(14 / 3) + 1), rtol=1e-6)

  def test_group_normalize_degenerate(self):
    for shape in ((2, 1), (2, 3)):
      scores = np.full(shape, .1, np.float32)
      for epsilon in (0., 1e-4):
        np.testing.assert_array_equal(
            advantages.group_normalize(scores, epsilon=epsilon), 0)
    with self.assertRaisesRegex(ValueError, 'epsilon.*-1'):
      advantages.group_normalize(scores, epsilon=-1.)

  @chex.variants(with_jit=True, without_jit=True)
  def test_moving_average_by_hand(self):
    # [Ex 7.1] baseline .5 from before; (4 * .5 + 1 + .2) / 6 = .533333.
    fn = self.variant(advantages.moving_average)
    baseline, mean, count = fn(.5, 4, np.float32([1, .2]))
    self.assertEqual(baseline, .5)
    self.assertAlmostEqual(float(mean), .533333, 6)
    self.assertEqual(count, 6)

  def test_moving_average_over_steps(self):
    scores = np.random.default_rng(0).normal(size=(50, 8)) + 100
    mean, count = jnp.float32(jnp.nan), jnp.int32(0)
    for step, row in enumerate(scores.astype(np.float32)):
      baseline, mean, count = advantages.moving_average(mean, count, row)
      seen = scores[:step].mean() if step else 0
      np.testing.assert_allclose(baseline, seen, rtol=1e-6)
    self.assertEqual(count, 400)

  def test_has_no_gradient(self):
    scores = np.float32([[1, 2, 4]])
    for fn in (advantages.leave_one_out, advantages.group_normalize,
               lambda x: advantages.moving_average(0., 1, x)[1]):
      grad = jax.grad(lambda x, fn=fn: jnp.sum(fn(x)**2))(scores)
      np.testing.assert_array_equal(grad, 0)


class ShapedRewardTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 5.3] d = .3, -.2, .1: -.03, .02, 1.5 - .01; sum 1.48.
    scores = np.float32([[1.5]])
    logprobs = np.float32([[[np.nan, -.7, -1.2, -.9, np.nan]]])
    ref = np.float32([[[np.nan, -1., -1., -1., np.nan]]])
    mask = np.array([[[False, True, True, True, False]]])
    shaped = self.variant(
        lambda *x: advantages.shape_rewards(*x, kl_coef=.1))(
            scores, logprobs, ref, mask)
    total = self.variant(lambda *x: advantages.kl_scores(*x, kl_coef=.1))(
        scores, logprobs, ref, mask)
    np.testing.assert_allclose(
        shaped, [[[0, -.03, .02, 1.49, 0]]], atol=1e-6)
    np.testing.assert_allclose(total, [[1.48]], atol=1e-6)

  def test_sum_identity_and_empty_rows(self):
    arrays = _rollout()
    mask = arrays[-1]
    shaped = advantages.shape_rewards(*arrays, kl_coef=.2)
    total = advantages.kl_scores(*arrays, kl_coef=.2)
    valid = mask.any(-1)
    np.testing.assert_allclose(
        shaped.sum(-1)[valid], total[valid], atol=1e-5)
    np.testing.assert_array_equal(shaped[~mask], 0)
    self.assertFalse(valid.all())

  def test_has_no_gradient_and_takes_bfloat16(self):
    *arrays, mask = _rollout()
    for fn in (advantages.shape_rewards, advantages.kl_scores):
      grads = jax.grad(lambda *x, fn=fn: fn(*x, mask, kl_coef=.1).sum(),
                       (0, 1, 2))(*arrays)
      for grad in grads:
        np.testing.assert_array_equal(grad, 0)
      low = [x.astype(jnp.bfloat16) for x in arrays]
      self.assertEqual(fn(*low, mask, kl_coef=.1).dtype, jnp.float32)

  def test_rejects(self):
    scores, logprobs, ref, mask = _rollout()
    with self.assertRaisesRegex(ValueError, 'kl_coef.*-1'):
      advantages.kl_scores(scores, logprobs, ref, mask, kl_coef=-1.)
    with self.assertRaises(AssertionError):
      advantages.shape_rewards(scores[:, 0], logprobs, ref, mask, kl_coef=.1)


if __name__ == '__main__':
  absltest.main()
