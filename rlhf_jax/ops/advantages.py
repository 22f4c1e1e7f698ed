"""Advantages, baselines and KL-shaped rewards. Nothing here has a gradient.

Axes: B prompts, K responses, T tokens; T is target-aligned (see `types`).
"""

import numbers

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


def _present(scores: jax.Array, mask: jax.Array | None):
  """Scores f32[..., K], 0 where absent, relative to the prompt's largest.

  A shift changes no advantage; this one makes equal scores give exactly 0.
  """
  if scores.ndim < 1:
    raise ValueError(f'scores must be [..., K], got shape {scores.shape}.')
  mask = jnp.ones(scores.shape, bool) if mask is None else mask
  chex.assert_equal_shape([scores, mask])
  chex.assert_type(mask, bool)
  scores = jnp.where(mask, _detach(scores), -jnp.inf)
  highest = scores.max(axis=-1, keepdims=True)
  return jnp.where(mask, scores - highest, 0), mask


def leave_one_out(scores: jax.Array,
                  mask: jax.Array | None = None) -> jax.Array:
  """Score less the mean of the other K - 1 samples of the same prompt.

  Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, section 2.3. The K
  samples must be independent draws from the current policy.

  Args:
    scores: real[..., K], K >= 2.
    mask: bool[..., K], false where a sample is missing and its score may be
      anything; it counts in no baseline. None: all are there.

  Returns:
    f32[..., K]; sums to 0 over K. 0 for a missing sample, and for one without
    another.

  Raises:
    ValueError: if K < 2, where there is no other sample.
    AssertionError: if `mask` has another shape or is not bool.
  """
  scores, mask = _present(scores, mask)
  if scores.shape[-1] < 2:
    raise ValueError('leave_one_out needs K >= 2 samples, got K = '
                     f'{scores.shape[-1]}.')
  count = mask.sum(axis=-1, keepdims=True)
  others = (scores.sum(axis=-1, keepdims=True) - scores) / jnp.maximum(
      count - 1, 1)
  return jnp.where(mask & (count > 1), scores - others, 0)


def group_normalize(scores: jax.Array, mask: jax.Array | None = None, *,
                    scale: bool = True, epsilon: float = 1e-4) -> jax.Array:
  """Score less the mean of its prompt, over the standard deviation.

  GRPO, Shao et al. 2024, https://arxiv.org/abs/2402.03300, section 4.1.2. The
  deviation has ddof = 1 and epsilon is added to it, as in TRL and tunix; the
  paper states neither.

  Args:
    scores: real[..., K].
    mask: as for `leave_one_out`.
    scale: false only centres (Dr. GRPO, https://arxiv.org/abs/2503.20783).
    epsilon: >= 0.

  Returns:
    f32[..., K]; 0 where K = 1 and for a missing sample.

  Raises:
    ValueError: if `epsilon` is negative.
    AssertionError: if `mask` has another shape or is not bool.
  """
  if not epsilon >= 0:
    raise ValueError(f'epsilon must be >= 0, got {epsilon}.')
  scores, mask = _present(scores, mask)
  count = mask.sum(axis=-1, keepdims=True)
  mean = scores.sum(axis=-1, keepdims=True) / jnp.maximum(count, 1)
  centered = jnp.where(mask, scores - mean, 0)
  if not scale:
    return centered
  variance = (centered**2).sum(-1, keepdims=True) / jnp.maximum(count - 1, 1)
  deviation = jnp.sqrt(variance) + epsilon
  # Compared with 0, so that a broken score stays NaN and is noticed.
  return jnp.where(deviation == 0, 0, centered / deviation)


def moving_average(
    mean: jax.Array, count: jax.Array, scores: jax.Array, *,
    mask: jax.Array | None = None, ema_decay: float | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Baseline = mean of all scores of *previous* steps; then adds these.

  Ahmadian et al. 2024, eq. 8. A baseline that saw the current scores would
  depend on the samples and bias the gradient.

  Args:
    mean: f32[], mean of all scores so far; any value while `count` is 0.
    count: i32[] or f32[], how many; 0 at the start.
    scores: real[...].
    mask: bool[...], the scores that are there; None: all. Without one the mean
      stays as it is.
    ema_decay: in [0, 1), share of the old mean that a step keeps: another
      baseline, which forgets. The first step's mean starts it. None weighs
      all scores alike, as the paper does.

  Returns:
    (baseline, mean, count), each a scalar; the first baseline is 0.

  Raises:
    ValueError: if `ema_decay` is out of range.
  """
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise ValueError(f'ema_decay must be in [0, 1), got {ema_decay}.')
  count = jnp.asarray(count)
  started = count > 0
  baseline = jnp.where(started, mean, 0).astype(jnp.float32)
  baseline, scores = _detach(baseline), _detach(scores)
  if mask is None:
    mask = jnp.ones(scores.shape, bool)
  added = mask.sum(dtype=count.dtype)
  total = count + added
  share = added / jnp.maximum(total, 1)
  if ema_decay is not None:
    share = jnp.where(started, 1 - ema_decay, 1) * (added > 0)
  # An update of the mean, not of a sum, which would lose digits in float32.
  step = masked.masked_mean(scores - baseline, mask)
  return baseline, baseline + step * share, total


def _penalty(scores, logprobs, ref_logprobs, mask, kl_coef):
  """kl_coef * k1, padding at 0, after the checks both callers share."""
  if isinstance(kl_coef, numbers.Real) and not float(kl_coef) >= 0:
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
