"""Proximal policy optimisation and the token-level policy gradients around it.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7 (clip) and 8 (KL
penalty); objectives.md 6.3 to 6.6. Of each token, with r = pi / pi_old and A
detached, made and whitened by annotators:

  policy = -min(r A, clip(r, 1 - low, 1 + high) A) + coef * (r - 1 - log r)
  value = 1/2 max((V - G)^2, (clip(V, V_old +- value_clip) - G)^2)
  loss = policy + value_coef * value - entropy_coef * entropy
       + kl_coef * KL(pi, reference), unless that is in the rewards

  row               arguments; gae_lambda is the annotator's
  PPO               the defaults, gae_lambda=.95; value_coef is 1 in trlX, .1
                    in TRL and lm-human
  no clipping       clip_ratio=None, value_clip=None (Ahmadian et al. 2024)
  asymmetric clip   clip_ratio=(low, high)
  KL-penalty PPO    clip_ratio=None, kl_penalty_coef=1. or an adapted f32[]
  Vanilla PG        ratio='none', value_clip=None, gae_lambda=1
  actor-critic      ratio='none', value_clip=None, gae_lambda=0
  NLPO              PPO on logits restricted by ops.nucleus

The RLHF notes take the minimum before multiplying by A, and print the
actor-critic loss without its minus; we follow neither. Of their two KL
directions, the penalty is the PPO paper's KL(old || current).
"""

import numbers
from typing import Any

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import kl
from rlhf_jax.ops import masked
from rlhf_jax.ops import ratios

RATIOS = ('token', 'none')


def ppo_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_ratio: ratios.ClipRatio = 0.2,
    ratio: str = 'token',
    kl_penalty_coef: float | jax.Array = 0.0,
) -> types.LossOutput:
  """Policy loss with one advantage per token.

  Args:
    logprobs: float[B, K, T], current policy, in nats.
    old_logprobs: float[B, K, T], behaviour policy at sampling; not read, and
      may be None, with ratio='none' and kl_penalty_coef=0.
    advantages: float[B, K, T].
    mask: bool[B, K, T], true on response tokens.
    clip_ratio: half-width of the interval around 1, a pair (low, high) of
      them, or None; not read with ratio='none'.
    ratio: 'token', or 'none' for -A * log pi.
    kl_penalty_coef: advantage units per nat of KL(old || current), >= 0; f32[]
      when a controller adapts it.

  Returns:
    LossOutput with unit = token: every array is f32[B, K, T].

  Raises:
    ValueError: if an argument is unknown, out of range or missing.
    AssertionError: if shapes or dtypes disagree.
  """
  if ratio not in RATIOS:
    raise ValueError(f'ratio must be one of {RATIOS}, got {ratio!r}.')
  fixed = isinstance(kl_penalty_coef, numbers.Real)
  if fixed and not kl_penalty_coef >= 0:
    raise ValueError(f'kl_penalty_coef must be >= 0, got {kl_penalty_coef}.')
  chex.assert_rank(mask, 3)
  current, advantages = masked.clean(
      mask, logprobs=logprobs, advantages=advantages)
  advantages = jax.lax.stop_gradient(advantages)
  metrics: dict[str, jax.Array]
  log_ratio: Any
  loss, metrics, log_ratio = -advantages * current, {}, None
  penalized = not fixed or kl_penalty_coef > 0
  if ratio == 'token' or penalized:
    old, = masked.clean(mask, old_logprobs=old_logprobs)
    log_ratio = current - jax.lax.stop_gradient(old)
  if ratio == 'token':
    surrogate, metrics = ratios.clipped_surrogate(
        log_ratio, advantages, clip_ratio)
    loss = -surrogate
  if penalized:
    metrics['policy/approx_kl'] = ratios.approx_kl(log_ratio)
    loss += jax.lax.stop_gradient(kl_penalty_coef) * metrics['policy/approx_kl']
  return types.LossOutput(loss, mask.astype(jnp.float32), metrics)


def value_loss(
    values: jax.Array,
    old_values: jax.Array | None,
    returns: jax.Array,
    mask: jax.Array,
    *,
    value_clip: float | None = 0.2,
) -> types.LossOutput:
  """Half the squared error of values, the larger of plain and clipped.

  Args:
    values: float[B, K, T], current values, in score units.
    old_values: float[B, K, T], values at sampling; not read, and may be None,
      with value_clip=None.
    returns: float[B, K, T], made from advantages before any whitening.
    mask: bool[B, K, T].
    value_clip: how far a value may move from its old one, in score units,
      > 0; None does not clip.

  Returns:
    LossOutput with unit = token: every array is f32[B, K, T].
    'value/clip_fraction' is 1 where the clipped error was larger.

  Raises:
    ValueError: if `value_clip` is not positive or an array is missing.
    AssertionError: if shapes or dtypes disagree.
  """
  if value_clip is not None and not value_clip > 0:
    raise ValueError(f'value_clip must be > 0 or None, got {value_clip}.')
  chex.assert_rank(mask, 3)
  current, returns = masked.clean(mask, values=values, returns=returns)
  returns = jax.lax.stop_gradient(returns)
  loss, metrics = 0.5 * (current - returns)**2, {}
  if value_clip is not None:
    old, = masked.clean(mask, old_values=old_values)
    old = jax.lax.stop_gradient(old)
    clipped = 0.5 * (
        jnp.clip(current, old - value_clip, old + value_clip) - returns)**2
    metrics['value/clip_fraction'] = (clipped > loss).astype(jnp.float32)
    loss = jnp.maximum(loss, clipped)
  return types.LossOutput(loss, mask.astype(jnp.float32), metrics)


def add_value_loss(policy: types.LossOutput, out, batch, *, value_coef: float,
                   value_clip: float | None) -> types.LossOutput:
  """Adds value_coef * `value_loss` to a token loss; at 0 it reads no value."""
  if not value_coef >= 0:
    raise ValueError(f'value_coef must be >= 0, got {value_coef}.')
  metrics = {**policy.metrics, 'policy/loss': policy.loss}
  if value_coef == 0:
    return policy.replace(metrics=metrics)
  value = value_loss(out.values, batch.old_values, batch.returns, batch.mask,
                     value_clip=value_clip)
  return policy.replace(
      loss=policy.loss + value_coef * value.loss,
      metrics={**metrics, **value.metrics, 'value/loss': value.loss})


def objective(out, batch, *, value_coef: float = 1.0,
              value_clip: float | None = 0.2, entropy_coef: float = 0.0,
              kl_coef: float | jax.Array = 0.0, kl_kind: str = 'k3',
              **kwargs) -> types.LossOutput:
  """Binds `ppo_loss` and `value_loss` to a batch with token advantages.

  `value_coef` 0 reads no values, `entropy_coef` 0 no entropy; both are >= 0.
  `kl_coef` and `kl_kind` are of `ops.kl.ref_penalty`, for a penalty towards
  the reference in the loss; where it is in the rewards, leave it 0.
  """
  if not entropy_coef >= 0:
    raise ValueError(f'entropy_coef must be >= 0, got {entropy_coef}.')
  policy = ppo_loss(out.logprobs, batch.old_logprobs, batch.advantages,
                    batch.mask, **kwargs)
  total = add_value_loss(
      policy, out, batch, value_coef=value_coef, value_clip=value_clip)
  penalty, ref_kl = kl.ref_penalty(
      jnp.where(batch.mask, out.logprobs, 0), batch.ref_logprobs, batch.mask,
      kl_coef=kl_coef, kind=kl_kind)
  total = total.replace(
      loss=total.loss + penalty, metrics={**total.metrics, **ref_kl})
  if entropy_coef == 0:
    return total
  entropy, = masked.clean(batch.mask, entropy=out.entropy)
  return total.replace(
      loss=total.loss - entropy_coef * entropy,
      metrics={**total.metrics, 'policy/entropy': entropy})
