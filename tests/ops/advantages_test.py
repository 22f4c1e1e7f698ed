"""Tests for rlhf_jax.ops.advantages."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.ops import advantages
from rlhf_jax.ops import masked


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


_gae = jax.jit(advantages.gae, static_argnames=('discount', 'gae_lambda'))


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
  @twin.few
  @twin.randomised
  def test_twin_with_gaps(self, discount, gae_lambda, seed):
    _, rewards, values, mask = _rollout(seed)
    out, returns = _gae(
        rewards, values, mask, discount=discount, gae_lambda=gae_lambda)
    for i in np.ndindex(3, 2):
      expected = _gae_twin(
          rewards[i], values[i], mask[i], discount, gae_lambda)
      np.testing.assert_allclose(out[i], expected[0], atol=1e-5)
      np.testing.assert_allclose(returns[i], expected[1], atol=1e-5)

  def test_exponents_and_discount_by_hand(self):
    # Trap 15. One reward at the end: powers .5^(T-1-t), where the printed sum
    # has .5^(T-1) = .25 throughout. With discount .5 and lambda 0, A_0 =
    # 0 + .5 * 4 - 2 and A_1 = 1 - 4.
    mask = np.ones(3, bool)
    out, _ = _gae(np.float32([0, 0, 1]), np.zeros(3, np.float32), mask,
                  gae_lambda=.5)
    np.testing.assert_array_equal(out, [.25, .5, 1])
    out, returns = _gae(np.float32([0, 1]), np.float32([2, 4]), mask[:2],
                        discount=.5, gae_lambda=0.)
    np.testing.assert_array_equal(out, [0, -3])
    np.testing.assert_array_equal(returns, [2, 1])

  def test_score_lands_on_the_last_token(self):
    # [Ex 6.7] No values: the advantage of the EOS is the score. trlX's slot,
    # two steps later, leaves .95^2 = .9025 of it.
    mask = np.array([[[True, True, False, False]]])
    zeros = np.zeros(mask.shape, np.float32)
    rewards = advantages.shape_rewards(
        np.ones((1, 1), np.float32), zeros, zeros, mask, kl_coef=.1)
    out, _ = advantages.gae(rewards, zeros, mask)
    np.testing.assert_allclose(out, [[[.95, 1, 0, 0]]], rtol=1e-6)
    late, _ = advantages.gae(
        zeros + np.float32([0, 0, 0, 1]), zeros, ~mask | mask)
    self.assertAlmostEqual(float(late[0, 0, 1]), .9025, 6)

  def test_value_after_the_last_token_is_not_read(self):
    # [Ex 6.8] V = .2, .3 and .9 after the EOS: A_1 = 1 - .3, A_0 = .1 +
    # .95 * .7. TRL's slot, one step later, gives .76025 and .695.
    rewards, values = np.float32([0, 1, 0]), np.float32([.2, .3, .9])
    mask = np.array([True, True, False])
    out, _ = _gae(rewards, values, mask)
    np.testing.assert_allclose(out, [.765, .7, 0], rtol=1e-6)
    late, _ = _gae(np.float32([0, 0, 1]), values, ~mask | mask)
    np.testing.assert_allclose(late[:2], [.76025, .695], rtol=1e-6)

  def test_padding_is_inert(self):
    _, rewards, values, mask = _rollout()
    clean = _gae(rewards, values, mask)
    for junk in (7, np.nan, np.inf):
      chex.assert_trees_all_equal(clean, _gae(
          np.where(mask, rewards, junk), np.where(mask, values, junk), mask))

  def test_returns_are_not_whitened(self):
    # [Ex 6.1], [Ex 6.2] G = A + V = 1.401725, 1.4755, 1.49 of the raw A,
    # which whitening turns into .841672, .563384, -1.405056.
    values, mask = np.float32([.5, .6, .8]), np.ones(3, bool)
    out, returns = _gae(np.float32([-.03, .02, 1.49]), values, mask)
    np.testing.assert_allclose(returns, [1.401725, 1.4755, 1.49], rtol=1e-6)
    np.testing.assert_allclose(
        masked.whiten(out, mask), [.841672, .563384, -1.405056], atol=1e-5)

  def test_takes_bfloat16(self):
    _, rewards, values, mask = _rollout()
    low = [x.astype(jnp.bfloat16) for x in (rewards, values)]
    chex.assert_type(_gae(*low, mask), jnp.float32)

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
    # Trap 12: an integer buffer would turn a reward of .7 into 0.
    for args in ((rewards, values[..., :-1], mask),
                 (rewards.astype(int), values, mask),
                 (rewards, values, mask.astype(np.float32))):
      with self.assertRaises(AssertionError):
        advantages.gae(*args)


class BaselineTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 7.2] 1 - 11/3, 2 - 10/3, 3 - 9/3, 6 - 6/3.
      ([1, 2, 3, 6], [-2.666667, -1.333333, 0, 4]),
      # [Ex 7.6] Noise that the samples share changes nothing.
      ([8, 9, 10, 13], [-2.666667, -1.333333, 0, 4]),
      ([1, 4], [-3, 3]),
      ([[1, 2, 3], [4, 5, 6]], [[-1.5, 0, 1.5], [-1.5, 0, 1.5]]))
  def test_leave_one_out_by_hand(self, scores, expected):
    out = self.variant(advantages.leave_one_out)(np.float32(scores))
    np.testing.assert_allclose(out, expected, atol=1e-6)

  @parameterized.parameters(
      ('leave_one_out', {}), ('group_normalize', {}),
      ('group_normalize', {'scale': False}))
  @twin.few
  @twin.randomised
  def test_twin(self, name, kwargs, seed):
    scores = np.random.default_rng(seed).normal(size=(3, 4))
    out = jax.jit(functools.partial(getattr(advantages, name), **kwargs))(
        np.float32(scores))
    for row, mine in zip(scores, np.asarray(out)):
      if name == 'leave_one_out':
        expected = [x - np.mean(np.delete(row, i)) for i, x in enumerate(row)]
      else:
        expected = row - row.mean()
        if kwargs.get('scale', True):
          expected = expected / (np.std(row, ddof=1) + 1e-4)
      np.testing.assert_allclose(mine, expected, atol=1e-5)

  def test_whole_scores_are_not_truncated(self):
    # Trap 12: integer scores count as numbers, in float32.
    scores = np.array([[1, 2]])
    np.testing.assert_array_equal(
        advantages.leave_one_out(scores), np.float32([[-1, 1]]))
    np.testing.assert_allclose(
        advantages.group_normalize(scores, epsilon=0.), [[-.5**.5, .5**.5]],
        rtol=1e-6)
    baseline, mean, _ = advantages.moving_average(0, 0, scores)
    chex.assert_type([baseline, mean], jnp.float32)
    self.assertEqual(mean, 1.5)

  def test_takes_bfloat16(self):
    # Means of 1, 2 and 5 are thirds, which bfloat16 rounds by 2^-9.
    scores = jnp.array([[1, 2, 5]], jnp.bfloat16)
    _, mean, _ = advantages.moving_average(0., 0, scores)
    out = (advantages.leave_one_out(scores),
           advantages.group_normalize(scores, scale=False), mean)
    chex.assert_type([*out], jnp.float32)
    for x, expected in zip(out, (
        [[-2.5, -1, 3.5]], [[-5 / 3, -2 / 3, 7 / 3]], 8 / 3)):
      np.testing.assert_allclose(x, expected, rtol=1e-6)

  def test_leave_one_out_identities(self):
    scores = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    out = advantages.leave_one_out(scores)
    np.testing.assert_allclose(out.sum(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(
        out, 4 / 3 * (scores - scores.mean(1, keepdims=True)), atol=1e-6)
    np.testing.assert_allclose(
        advantages.leave_one_out(scores + 7), out, atol=1e-5)
    # Trap 14: not scaled by the deviation of the group.
    np.testing.assert_allclose(
        advantages.leave_one_out(10 * scores), 10 * out, rtol=1e-5)
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
        jax.jit(jax.grad(expected_estimate))(logits), exact, atol=1e-5)

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

  @chex.variants(with_jit=True, without_jit=True)
  def test_decaying_average_by_hand(self):
    # The first mean, .6, starts it, whatever was there; then .9 * .6 + .1 * 2
    # = .74, in batches of any size.
    fn = self.variant(
        lambda *x: advantages.moving_average(*x, ema_decay=.9))
    state = jnp.float32(jnp.nan), jnp.int32(0)
    for scores, expected in (([1, .2], (0, .6, 2)), ([2], (.6, .74, 3)),
                             ([0] * 5, (.74, .666, 8))):
      baseline, *state = fn(*state, np.float32(scores))
      np.testing.assert_allclose((baseline, *state), expected, rtol=1e-6)

  def test_decaying_average_forgets(self):
    mean, count = 0., 0
    for step in range(60):
      _, mean, count = advantages.moving_average(
          mean, count, np.full(4, step < 30, np.float32), ema_decay=.5)
    self.assertLess(mean, 1e-6)  # where the mean of all is .5

  @parameterized.parameters(1., -.1)
  def test_rejects_decay(self, decay):
    with self.assertRaisesRegex(ValueError, f'ema_decay.*{decay}'):
      advantages.moving_average(0., 0, np.ones(2, np.float32),
                                ema_decay=decay)

  def test_has_no_gradient(self):
    scores = np.float32([[1, 2, 4]])
    for fn in (advantages.leave_one_out, advantages.group_normalize,
               lambda x: advantages.moving_average(0., 1, x)[1],
               lambda x: advantages.moving_average(
                   0., 1, x, ema_decay=.5)[1]):
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
    for args in ((scores[:, 0], logprobs, ref, mask),
                 (scores.astype(int), logprobs, ref, mask),  # trap 12
                 (scores, logprobs, ref[..., 1:], mask),
                 (scores, logprobs, ref, mask.astype(np.float32))):
      with self.assertRaises(AssertionError):
        advantages.shape_rewards(*args, kl_coef=.1)


if __name__ == '__main__':
  absltest.main()
