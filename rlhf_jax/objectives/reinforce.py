"""REINFORCE on precomputed advantages: RLOO, GRPO and relatives.

Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, eq. 6 to 8 and section
2.3; objectives.md 7.1 and 7.2. A is detached and made by an annotator:

  ratio='none'      loss = -A * log pi
  ratio='sequence'  loss = -min(rho A, clip(rho) A), rho = exp(sum log pi/old)
  ratio='token'     the same for each token, rho_t = exp(log pi/old)

The minimum is taken after multiplying by A, as in PPO. TRL's RLOO has
ratio='sequence', clip_ratio=0.2; GRPO has ratio='token',
aggregate='sequence_mean'; Dr. GRPO has aggregate='constant'.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked

RATIOS = ('none', 'sequence', 'token')
AGGREGATES = ('sequence', 'token', 'sequence_mean', 'constant')
_LARGEST = 20.0  # nats of log-ratio; a guard against overflow, not a clip


def _check(ratio, clip_ratio, aggregate):
  if ratio not in RATIOS:
    raise ValueError(f'ratio must be one of {RATIOS}, got {ratio!r}.')
  if aggregate not in AGGREGATES:
    raise ValueError(
        f'aggregate must be one of {AGGREGATES}, got {aggregate!r}.')
  if ratio == 'sequence' and aggregate != 'sequence':
    raise ValueError("ratio='sequence' has one term per response, so aggregate "
                     f"must be 'sequence', got {aggregate!r}.")
  if clip_ratio is not None and clip_ratio <= 0:
    raise ValueError(f'clip_ratio must be > 0 or None, got {clip_ratio}.')
  if clip_ratio is not None and ratio == 'none':
    raise ValueError(f"clip_ratio={clip_ratio} needs a ratio, got 'none'.")


def _surrogate(log_ratio, advantages, clip_ratio):
  """PPO's objective (to maximise) and its metrics, elementwise."""
  ratio = jnp.exp(jnp.clip(log_ratio, -_LARGEST, _LARGEST))
  value = ratio * advantages
  clipped = value
  if clip_ratio is not None:
    clipped = jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio) * advantages
  return jnp.minimum(value, clipped), {
      'policy/clip_fraction': (clipped < value).astype(jnp.float32),
      'policy/approx_kl': ratio - 1 - log_ratio,  # k3 of KL(old || current)
  }


def _aggregate(terms, metrics, mask, aggregate):
  """LossOutput from terms to maximise, [B, K, T]."""
  if aggregate == 'token':
    return types.LossOutput(-terms, mask.astype(jnp.float32), metrics)
  loss = -masked.masked_sum(terms, mask, axis=-1)
  if aggregate == 'sequence_mean':
    loss = -masked.masked_mean(terms, mask, axis=-1)
  elif aggregate == 'constant':
    loss /= mask.shape[-1]
  metrics = {k: masked.masked_mean(x, mask, axis=-1)
             for k, x in metrics.items()}
  return types.LossOutput(
      loss, mask.any(axis=-1).astype(jnp.float32), metrics)


def reinforce_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    ratio: str = 'none',
    clip_ratio: float | None = None,
    aggregate: str = 'sequence',
) -> types.LossOutput:
  """Policy-gradient loss with one advantage per response.

  Args:
    logprobs: float[B, K, T], current policy, in nats.
    old_logprobs: float[B, K, T], behaviour policy at sampling; not read, and
      may be None, with ratio='none'.
    advantages: float[B, K], in score units.
    mask: bool[B, K, T], true on response tokens.
    ratio: importance weight, 'none', 'sequence' or 'token'.
    clip_ratio: half-width of the interval around 1, > 0. None: no clipping.
    aggregate: 'sequence' sums the tokens of a response, 'sequence_mean'
      divides that by its length, 'constant' by the padded length T, 'token'
      leaves the tokens to the train step's mean over all of them.

  Returns:
    LossOutput with unit = token, f32[B, K, T], for aggregate='token', else
    unit = sequence, f32[B, K].

  Raises:
    ValueError: if an argument is unknown or out of range, or has no meaning
      with the others.
    AssertionError: if shapes or dtypes disagree.
  """
  _check(ratio, clip_ratio, aggregate)
  chex.assert_rank([logprobs, advantages], [3, 2])
  chex.assert_equal_shape([logprobs, mask])
  chex.assert_equal_shape_prefix([logprobs, advantages], 2)
  chex.assert_type([logprobs, advantages, mask], [float, float, bool])

  valid = mask.any(axis=-1)  # [B, K]
  advantages = jnp.where(valid, advantages, 0).astype(jnp.float32)
  advantages = jax.lax.stop_gradient(advantages)
  per_token = jnp.where(mask, advantages[..., None], 0)
  current = jnp.where(mask, logprobs, 0).astype(jnp.float32)
  if ratio == 'none':
    terms, metrics = per_token * current, {}
  else:
    if old_logprobs is None:
      raise ValueError(f'old_logprobs is None, but ratio={ratio!r} reads it.')
    chex.assert_equal_shape([logprobs, old_logprobs])
    chex.assert_type(old_logprobs, float)
    old = jnp.where(mask, old_logprobs, 0).astype(jnp.float32)
    log_ratio = current - jax.lax.stop_gradient(old)
    if ratio == 'sequence':
      terms, metrics = _surrogate(log_ratio.sum(-1), advantages, clip_ratio)
      return types.LossOutput(-terms, valid.astype(jnp.float32), metrics)
    terms, metrics = _surrogate(log_ratio, per_token, clip_ratio)
  return _aggregate(terms, metrics, mask, aggregate)


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `reinforce_loss` to a batch with advantages [B, K]."""
  return reinforce_loss(out.logprobs, batch.old_logprobs, batch.advantages,
                        batch.mask, **kwargs)
