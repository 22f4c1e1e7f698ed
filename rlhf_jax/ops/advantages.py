"""Advantages, baselines and KL-shaped rewards. Nothing here has a gradient.

Axes: B prompts, K responses, T tokens; T is target-aligned (see `types`).
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops import kl
from rlhf_jax.ops import masked


def _detach(x: jax.Array) -> jax.Array:
  return jax.lax.stop_gradient(x.astype(jnp.float32))


def gae(rewards: jax.Array, values: jax.Array, mask: jax.Array, *,
        discount: float = 1.0,
        gae_lambda: float = 0.95) -> tuple[jax.Array, jax.Array]:
  """Generalised advantage estimation.

  Schulman et al. 2016, https://arxiv.org/abs/1506.02438, eq. 16:

    delta_t = r_t + discount * V_{t+1} - V_t
    A_t = delta_t + discount * gae_lambda * A_{t+1}

  Masked positions are skipped, so that the value after the last token is 0.

  Args:
    rewards: float[..., T].
    values: float[..., T], value of the state before emitting token t.
    mask: bool[..., T].
    discount: in [0, 1].
    gae_lambda: in [0, 1]; 1 is Monte Carlo return less value.

  Returns:
    (advantages, returns), each f32[..., T], 0 where `mask` is false. Returns
    are advantages + values and are made before any whitening.

  Raises:
    ValueError: if `discount` or `gae_lambda` is out of range.
    AssertionError: if shapes or dtypes disagree.
  """
  for name, value in (('discount', discount), ('gae_lambda', gae_lambda)):
    if not 0 <= value <= 1:
      raise ValueError(f'{name} must be in [0, 1], got {value}.')
  chex.assert_equal_shape([rewards, values, mask])
  chex.assert_type([rewards, values, mask], [float, float, bool])
  rewards, values = (
      _detach(jnp.where(mask, x, 0)) for x in (rewards, values))

  def step(carry, inputs):
    reward, value, valid = inputs
    next_advantage, next_value = carry
    delta = reward + discount * next_value - value
    advantage = delta + discount * gae_lambda * next_advantage
    carry = (jnp.where(valid, advantage, next_advantage),
             jnp.where(valid, value, next_value))
    return carry, advantage

  zeros = jnp.zeros(rewards.shape[:-1], jnp.float32)
  inputs = jax.tree.map(
      lambda x: jnp.moveaxis(x, -1, 0), (rewards, values, mask))
  _, advantages = jax.lax.scan(step, (zeros, zeros), inputs, reverse=True)
  advantages = jnp.where(mask, jnp.moveaxis(advantages, 0, -1), 0)
  return advantages, advantages + values


def leave_one_out(scores: jax.Array) -> jax.Array:
  """Score less the mean of the other K - 1 samples of the same prompt.

  Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, section 2.3. The K
  samples must be independent draws from the current policy.

  Args:
    scores: float[..., K], K >= 2.

  Returns:
    f32[..., K]; sums to 0 over K.

  Raises:
    ValueError: if K < 2, where there is no other sample.
  """
  count = scores.shape[-1]
  if count < 2:
    raise ValueError(f'leave_one_out needs K >= 2 samples, got K = {count}.')
  # A shift changes nothing; this one makes equal scores give exactly 0.
  scores = _detach(scores)
  scores -= scores[..., :1]
  others = (scores.sum(axis=-1, keepdims=True) - scores) / (count - 1)
  return scores - others


def group_normalize(scores: jax.Array, *, scale: bool = True,
                    epsilon: float = 1e-4) -> jax.Array:
  """Score less the mean of its prompt, over the standard deviation.

  GRPO, Shao et al. 2024, https://arxiv.org/abs/2402.03300, section 4.1.2. The
  deviation has ddof = 1 and epsilon is added to it, as in TRL and tunix; the
  paper states neither.

  Args:
    scores: float[..., K].
    scale: false only centres (Dr. GRPO, https://arxiv.org/abs/2503.20783).
    epsilon: >= 0.

  Returns:
    f32[..., K]; 0 where K = 1.

  Raises:
    ValueError: if `epsilon` is negative.
  """
  if epsilon < 0:
    raise ValueError(f'epsilon must be >= 0, got {epsilon}.')
  scores = _detach(scores)
  scores -= scores[..., :1]  # equal scores then centre to exactly 0
  centered = scores - scores.mean(axis=-1, keepdims=True)
  if not scale:
    return centered
  variance = (centered**2).sum(-1, keepdims=True) / max(scores.shape[-1] - 1, 1)
  deviation = jnp.sqrt(variance) + epsilon
  return jnp.where(deviation > 0, centered / deviation, 0)


def moving_average(
    mean: jax.Array, count: jax.Array, scores: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Baseline = mean of all scores of *previous* steps; then adds these.

  Ahmadian et al. 2024, eq. 8. A baseline that saw the current scores would
  depend on the samples and bias the gradient.

  Args:
    mean: f32[], mean of all scores so far; any value while `count` is 0.
    count: i32[], how many; 0 at the start.
    scores: float[...].

  Returns:
    (baseline, mean, count), each a scalar; the first baseline is 0.
  """
  baseline = jnp.where(jnp.asarray(count) > 0, mean, 0).astype(jnp.float32)
  baseline, scores = _detach(baseline), _detach(scores)
  total = count + scores.size
  # An update of the mean, not of a sum, which would lose digits in float32.
  mean = baseline + (scores.mean() - baseline) * (scores.size / total)
  return baseline, mean, total


def _penalty(scores, logprobs, ref_logprobs, mask, kl_coef):
  """kl_coef * k1, padding at 0, after the checks both callers share."""
  if isinstance(kl_coef, int | float) and kl_coef < 0:
    raise ValueError(f'kl_coef must be >= 0, got {kl_coef}.')
  chex.assert_rank([scores, mask], [2, 3])
  chex.assert_equal_shape([logprobs, ref_logprobs, mask])
  chex.assert_equal_shape_prefix([scores, mask], 2)
  chex.assert_type([scores, mask], [float, bool])
  log_ratio = jnp.where(mask, kl.estimate(logprobs, ref_logprobs), 0)
  return _detach(kl_coef * log_ratio)


def shape_rewards(scores: jax.Array, logprobs: jax.Array,
                  ref_logprobs: jax.Array, mask: jax.Array, *,
                  kl_coef: float) -> jax.Array:
  """Per-token rewards: a KL penalty on each, the score on the last.

  Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, eq. 2:
  r_t = -kl_coef * (log pi - log pi_ref)_t, plus the score where the response
  ends, EOS or not. Sums over T to `kl_scores`.

  Args:
    scores: float[B, K].
    logprobs: float[B, K, T] of the *rollout* policy, in nats.
    ref_logprobs: float[B, K, T], the same under the reference.
    mask: bool[B, K, T].
    kl_coef: score units per nat, >= 0; f32[] when a controller adapts it.

  Returns:
    f32[B, K, T], 0 where `mask` is false; an empty response has no reward.

  Raises:
    ValueError: if `kl_coef` is a negative number.
    AssertionError: if shapes or dtypes disagree.
  """
  penalty = _penalty(scores, logprobs, ref_logprobs, mask, kl_coef)
  score = jnp.where(masked.is_last(mask), _detach(scores)[..., None], 0)
  return score - penalty


def kl_scores(scores: jax.Array, logprobs: jax.Array, ref_logprobs: jax.Array,
              mask: jax.Array, *, kl_coef: float) -> jax.Array:
  """Scores less kl_coef times the sequence KL (k1), f32[B, K].

  Ahmadian et al. 2024, section 2: R = r - beta log(pi / pi_ref). Arguments
  and errors are those of `shape_rewards`.
  """
  penalty = _penalty(scores, logprobs, ref_logprobs, mask, kl_coef)
  return _detach(scores) - masked.masked_sum(penalty, mask, axis=-1)
