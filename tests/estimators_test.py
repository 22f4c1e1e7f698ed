"""Which estimators are unbiased, by enumeration on a tabular policy.

Responses have two of three tokens, so there are nine, and the expectation of
a gradient over samples is a finite sum. Nothing here is random but the tables.
"""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.objectives import ppo
from rlhf_jax.objectives import reinforce
from rlhf_jax.ops import advantages
from rlhf_jax.ops import kl

V, T, COEF = 3, 2, .3
RESPONSES = np.array(list(itertools.product(range(V), repeat=T)))  # [9, T]
MASK = np.ones((len(RESPONSES), T), bool)


def _table(seed):
  """Logits of the first token, and of the second after each first one."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(1 + V, V)), jnp.float32)


POLICY, REFERENCE, BEHAVIOUR = _table(0), _table(1), _table(2)
REWARD = jnp.asarray(np.random.default_rng(3).normal(size=9), jnp.float32)
# Any value of the two states of a response; a baseline need not be good.
ANY_VALUES = jnp.asarray(
    np.random.default_rng(4).normal(size=1 + V), jnp.float32)


def _token_logprobs(table):
  """f32[9, T] of every response."""
  logprobs = jax.nn.log_softmax(table)
  first, second = RESPONSES.T
  return jnp.stack([logprobs[0, first], logprobs[1 + first, second]], axis=-1)


def _probs(table):
  return jnp.exp(_token_logprobs(table).sum(-1))


def _states(values):
  """f32[9, T]: the value of the state before each token."""
  return jnp.stack([jnp.full(9, values[0]), values[1 + RESPONSES[:, 0]]], -1)


def _kl(table, other):
  """Exact KL(table || other) over responses."""
  return jnp.sum(_probs(table) * (
      _token_logprobs(table) - _token_logprobs(other)).sum(-1))


def _expected(loss, behaviour=POLICY):
  """Gradient of `loss` at POLICY, averaged over samples of `behaviour`.

  loss: token log-probabilities f32[9, 1, T] -> f32[9, ...], one row for each
  response.
  """
  weight = jax.lax.stop_gradient(_probs(behaviour))
  def total(table):
    rows = loss(_token_logprobs(table)[:, None])
    return jnp.sum(weight * rows.reshape(9, -1).sum(-1))
  return jax.grad(total)(POLICY)


def _expected_groups(make_advantages, count, **kwargs):
  """The same over every tuple of `count` independent samples of a prompt."""
  groups = np.array(list(itertools.product(range(9), repeat=count)))
  weight = jnp.prod(_probs(POLICY)[groups], axis=1)
  actual = make_advantages(REWARD[groups])
  def total(table):
    out = reinforce.reinforce_loss(
        _token_logprobs(table)[groups], _token_logprobs(POLICY)[groups],
        actual, np.ones((*groups.shape, T), bool), **kwargs)
    return jnp.sum(jax.lax.stop_gradient(weight) * out.loss.mean(1))
  return jax.grad(total)(POLICY)


def _reward_gradient(table=POLICY):
  """Exact gradient of -E[reward], what a loss should have."""
  return jax.grad(lambda x: -jnp.sum(_probs(x) * REWARD))(table)


def _regularised_gradient():
  """Exact gradient of -(E[reward] - COEF * KL(policy || reference))."""
  return jax.grad(lambda x: COEF * _kl(x, REFERENCE) - jnp.sum(
      _probs(x) * REWARD))(POLICY)


def _log_ratio(table=POLICY):
  return (_token_logprobs(table) - _token_logprobs(REFERENCE))[:, None]


assert_close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6)


def assert_far(a, b):
  distance = np.abs(np.asarray(a) - np.asarray(b)).max()
  np.testing.assert_array_less(.02, distance)


class SequenceTest(parameterized.TestCase):
  """One advantage for each response."""

  @parameterized.parameters(0., .7, -3.)
  def test_reinforce_is_unbiased_for_any_earlier_baseline(self, baseline):
    loss = lambda x: reinforce.reinforce_loss(
        x, None, (REWARD - baseline)[:, None], MASK[:, None]).loss
    assert_close(_expected(loss), _reward_gradient())

  def test_a_baseline_that_saw_the_sample_is_biased(self):
    loss = lambda x: reinforce.reinforce_loss(
        x, None, (REWARD - .5 * REWARD)[:, None], MASK[:, None]).loss
    assert_far(_expected(loss), _reward_gradient())

  @parameterized.parameters(2, 3)
  def test_leave_one_out_is_unbiased(self, count):
    assert_close(_expected_groups(advantages.leave_one_out, count),
                 _reward_gradient())

  @parameterized.parameters(2, 3)
  def test_centring_shrinks_and_scaling_is_biased(self, count):
    centre = lambda x: advantages.group_normalize(x, scale=False)
    assert_close(_expected_groups(centre, count),
                 (count - 1) / count * _reward_gradient())
    scaled = np.asarray(_expected_groups(advantages.group_normalize, count))
    exact = np.asarray(_reward_gradient())
    best = (scaled * exact).sum() / (exact**2).sum()
    assert_far(scaled, best * exact)  # not even in its direction

  def test_sequence_ratio_corrects_another_behaviour(self):
    old = _token_logprobs(BEHAVIOUR)[:, None]
    loss = lambda ratio: lambda x: reinforce.reinforce_loss(
        x, old, REWARD[:, None], MASK[:, None], ratio=ratio).loss
    assert_close(_expected(loss('sequence'), BEHAVIOUR), _reward_gradient())
    # Token ratios leave out those of the tokens before and after.
    assert_far(_expected(loss('token'), BEHAVIOUR), _reward_gradient())
    assert_far(_expected(loss('none'), BEHAVIOUR), _reward_gradient())

  def test_length_division_changes_the_objective(self):
    short = MASK.copy()
    short[RESPONSES[:, 0] == 0, 1] = False  # token 0 ends a response
    def loss(aggregate):
      return lambda x: reinforce.reinforce_loss(
          x, None, REWARD[:, None], short[:, None], aggregate=aggregate).loss
    whole, divided = _expected(loss('sequence')), _expected(
        loss('sequence_mean'))
    assert_far(divided * (whole * divided).sum() / (divided**2).sum(), whole)


class TokenTest(parameterized.TestCase):
  """Advantages of tokens, from rewards shaped by the KL."""

  def _advantages(self, values, gae_lambda):
    lp, ref = (_token_logprobs(x)[:, None] for x in (POLICY, REFERENCE))
    rewards = advantages.shape_rewards(
        REWARD[:, None], lp, ref, MASK[:, None], kl_coef=COEF)
    return advantages.gae(rewards, _states(values)[:, None], MASK[:, None],
                          gae_lambda=gae_lambda)[0]

  def _gradient(self, actual, **kwargs):
    old = _token_logprobs(POLICY)[:, None]
    return _expected(lambda x: ppo.ppo_loss(
        x, old, actual, MASK[:, None], **kwargs).loss)

  def _true_values(self):
    """E[sum of later rewards] in each state, by enumeration."""
    rewards = REWARD - COEF * _log_ratio()[:, 0, 1]
    first = RESPONSES[:, 0]
    second = jnp.stack([jnp.sum(jnp.where(
        first == i, jnp.exp(_token_logprobs(POLICY)[:, 1]) * rewards, 0))
                        for i in range(V)])
    probs = jax.nn.softmax(POLICY[0])
    penalty = COEF * (jax.nn.log_softmax(POLICY[0])
                      - jax.nn.log_softmax(REFERENCE[0]))
    start = jnp.sum(probs * (second - penalty))
    return jnp.concatenate([start[None], second])

  def test_vanilla_pg_is_unbiased_for_any_value(self):
    actual = self._advantages(ANY_VALUES, 1.)
    assert_close(self._gradient(actual, ratio='none'), _regularised_gradient())

  @parameterized.parameters(0., .95)
  def test_smaller_lambda_needs_the_true_value(self, gae_lambda):
    exact = self._advantages(self._true_values(), gae_lambda)
    assert_close(self._gradient(exact, ratio='none'), _regularised_gradient())
    rough = self._advantages(5 * ANY_VALUES, gae_lambda)
    assert_far(self._gradient(rough, ratio='none'), _regularised_gradient())

  def test_reward_less_value_is_not_an_advantage(self):
    # The RLHF notes call r_t - V(s_t) unbiased; it is where one token is all.
    rewards = jnp.zeros((9, 1, T)).at[:, 0, -1].set(REWARD)
    actual = rewards - _states(ANY_VALUES)[:, None]
    assert_far(self._gradient(actual, ratio='none'), _reward_gradient())
    last = lambda table: jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(
        table[0])) @ (jax.nn.softmax(table[1:]) * REWARD.reshape(V, V)))
    assert_close(self._gradient(actual, ratio='none')[1:],
                 -jax.grad(last)(POLICY)[1:])

  @parameterized.parameters(None, .2, ((.2, .3),))
  def test_ppo_at_ratio_one_is_vanilla_pg(self, clip_ratio):
    actual = self._advantages(ANY_VALUES, .95)
    assert_close(self._gradient(actual, clip_ratio=clip_ratio),
                 self._gradient(actual, ratio='none'))

  def test_kl_penalty_to_the_old_policy_starts_flat(self):
    actual = self._advantages(ANY_VALUES, 1.)
    assert_close(
        self._gradient(actual, clip_ratio=None, kl_penalty_coef=2.),
        self._gradient(actual, ratio='none'))


class KlTest(parameterized.TestCase):
  """Where the estimators of the KL go, and what their gradients are."""

  def _in_loss(self, kind, behaviour=POLICY):
    ref = _token_logprobs(REFERENCE)[:, None]
    return _expected(lambda x: kl.estimate(x, ref, kind=kind), behaviour)

  def test_values(self):
    exact = _kl(POLICY, REFERENCE)
    mean = lambda kind: jnp.sum(_probs(POLICY) * kl.estimate(
        _token_logprobs(POLICY), _token_logprobs(REFERENCE),
        kind=kind).sum(-1))
    assert_close(mean('k1'), exact)
    assert_close(mean('k3'), exact)
    assert_far(mean('k2'), exact)

  def test_k1_in_the_reward_is_exact(self):
    loss = lambda x: reinforce.reinforce_loss(
        x, None, advantages.kl_scores(
            REWARD[:, None], *(_token_logprobs(y)[:, None] for y in (
                POLICY, REFERENCE)), MASK[:, None], kl_coef=COEF),
        MASK[:, None]).loss
    assert_close(_expected(loss), _regularised_gradient())

  def test_k1_in_the_loss_has_no_gradient_at_all(self):
    assert_close(self._in_loss('k1'), 0)

  def _conditional(self, forward):
    """Gradient of the per-token KLs with the visited states held fixed.

    forward: KL(policy || reference), else KL(reference || policy).
    """
    states = jnp.concatenate(
        [jnp.ones(1), jax.nn.softmax(POLICY[0])])  # how often each is visited
    def total(table):
      mine, other = (jax.nn.log_softmax(x) for x in (table, REFERENCE))
      if not forward:
        mine, other = other, mine
      return jnp.sum(states * jnp.sum(jnp.exp(mine) * (mine - other), -1))
    return jax.grad(total)(POLICY)

  def test_k2_in_the_loss_is_exact_token_by_token(self):
    assert_close(self._in_loss('k2'), self._conditional(True))
    # It does not see that a token leads to other states.
    exact = jax.grad(lambda x: _kl(x, REFERENCE))(POLICY)
    assert_far(self._in_loss('k2')[0], exact[0])
    assert_close(self._in_loss('k2')[1:], exact[1:])  # after the last: none

  def test_k2_of_whole_responses_is_exact(self):
    ref = _token_logprobs(REFERENCE)[:, None]
    whole = _expected(lambda x: kl.estimate(
        x.sum(-1), ref.sum(-1), kind='k2'))
    assert_close(whole, jax.grad(lambda x: _kl(x, REFERENCE))(POLICY))

  def test_k3_in_the_loss_is_the_reverse_kl(self):
    # d k3 = (1 - pi_ref / pi) d log pi, whose mean is that of
    # -E_ref[log pi]: KL(ref || pi), not KL(pi || ref).
    assert_close(self._in_loss('k3'), self._conditional(False))
    assert_far(self._in_loss('k3'), self._conditional(True))

  def test_k3_in_the_reward_lacks_a_term(self):
    # d E_pi[k3] = E[k3 d log pi] + E[d k3]; for one token (the second, after
    # a given first one) the sum is exact and the first term alone is not.
    d = kl.estimate(_token_logprobs(POLICY), _token_logprobs(REFERENCE),
                    kind='k3')[:, 1]
    reward = _expected(lambda x: d[:, None] * x[..., 1])[1:]
    exact = self._conditional(True)[1:]
    assert_far(reward, exact)
    assert_close(reward + self._in_loss('k3')[1:], exact)


if __name__ == '__main__':
  absltest.main()
