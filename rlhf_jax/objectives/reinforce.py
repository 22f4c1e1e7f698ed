"""REINFORCE on one precomputed advantage per response, and its family.

Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740, eq. 6 to 8 and section
2.3; objectives.md 7.1 and 7.2. A is detached and made by an annotator:

  ratio='none'           loss = -A * log pi
  ratio='token'          -min(rho A, clip(rho) A), rho_t = exp(log pi/old)
  ratio='sequence'       the same of a response, rho = exp(sum log pi/old)
  ratio='sequence_mean'  and rho = exp(mean log pi/old)

plus kl_coef times an estimate of KL to the reference, of each token. The
minimum is taken after multiplying by A, as in PPO. One row each:

  REINFORCE, RLOO  the defaults; A from moving_average or leave_one_out of
                   scores that hold the KL penalty (kl_scores)
  RLOO in TRL      ratio='sequence', clip_ratio=.2
  GRPO             ratio='token', clip_ratio=.2, aggregate='sequence_mean',
                   kl_coef=.04; https://arxiv.org/abs/2402.03300, eq. 3, 4;
                   it prints no clip_ratio
  Dr. GRPO         ratio='token', clip_ratio=.2, aggregate='constant',
                   constant_length=budget; https://arxiv.org/abs/2503.20783
  DAPO             ratio='token', clip_ratio=(.2, .28), aggregate='token';
                   https://arxiv.org/abs/2503.14476, eq. 8; the mean is over
                   all tokens of the batch, as in its code, not of a prompt
  GSPO             ratio='sequence_mean', clip_ratio=(3e-4, 4e-4);
                   https://arxiv.org/abs/2507.18071, eq. 5 to 7

A is group_normalize's in the last four, with scale=False in Dr. GRPO.
"""

import numbers

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import kl
from rlhf_jax.ops import masked
from rlhf_jax.ops import ratios

RATIOS = ('none', 'sequence', 'token', 'sequence_mean')
AGGREGATES = ('sequence', 'token', 'sequence_mean', 'constant')


def _check(ratio, clip_ratio, aggregate, kl_coef, kl_kind, constant_length):
  for name, value, known in (
      ('ratio', ratio, RATIOS), ('aggregate', aggregate, AGGREGATES),
      ('kl_kind', kl_kind, kl.KINDS)):
    if value not in known:
      raise ValueError(f'{name} must be one of {known}, got {value!r}.')
  if ratio in ('sequence', 'sequence_mean') and aggregate != 'sequence':
    raise ValueError(f'ratio={ratio!r} has one term per response, so aggregate '
                     f"must be 'sequence', got {aggregate!r}.")
  ratios.interval(clip_ratio)  # raises where it is out of range
  if clip_ratio is not None and ratio == 'none':
    raise ValueError(f"clip_ratio={clip_ratio} needs a ratio, got 'none'.")
  if isinstance(kl_coef, numbers.Real) and not float(kl_coef) >= 0:
    raise ValueError(f'kl_coef must be >= 0, got {kl_coef}.')
  if constant_length is not None and aggregate != 'constant':
    raise ValueError(f'constant_length={constant_length} needs '
                     f"aggregate='constant', got {aggregate!r}.")
  if constant_length is not None and not constant_length > 0:
    raise ValueError(f'constant_length must be > 0, got {constant_length}.')


def _reduce(x, mask, aggregate, constant_length=None):
  """One number per response, [B, K], from those of its tokens."""
  if aggregate == 'sequence_mean':
    return masked.masked_mean(x, mask, axis=-1)
  total = masked.masked_sum(x, mask, axis=-1)
  if aggregate == 'constant':
    total /= constant_length or mask.shape[-1]
  return total


def _per_response(metrics, mask):
  return {k: masked.masked_mean(x, mask, axis=-1) for k, x in metrics.items()}


def reinforce_loss(
    logprobs: jax.Array,
    old_logprobs: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    ratio: str = 'none',
    clip_ratio: ratios.ClipRatio = None,
    aggregate: str = 'sequence',
    ref_logprobs: jax.Array | None = None,
    kl_coef: float | jax.Array = 0.0,
    kl_kind: str = 'k3',
    constant_length: int | None = None,
) -> types.LossOutput:
  """Policy-gradient loss with one advantage per response.

  Args:
    logprobs: float[B, K, T], current policy, in nats.
    old_logprobs: float[B, K, T], behaviour policy at sampling; not read, and
      may be None, with ratio='none'.
    advantages: float[B, K], in score units.
    mask: bool[B, K, T], true on response tokens.
    ratio: importance weight: 'none', or of a 'token', of the 'sequence', or
      'sequence_mean', the geometric mean of its tokens'.
    clip_ratio: half-width of the interval around 1, > 0, or a pair (low,
      high) of them. None: no clipping.
    aggregate: 'sequence' sums the tokens of a response, 'sequence_mean'
      divides that by its length, 'constant' by `constant_length`, 'token'
      leaves the tokens to the train step's mean over all of them.
    ref_logprobs: float[B, K, T], frozen reference; read if kl_coef is not 0.
    kl_coef: advantage units per nat, >= 0; f32[] when a controller adapts it.
      The penalty is aggregated as the tokens are: summed with ratio=
      'sequence', averaged with 'sequence_mean'.
    kl_kind: of `ops.kl.estimate`. On the policy's own samples k3 has, on
      average, the gradient of KL(ref || pi), k2 that of KL(pi || ref), k1 none.
    constant_length: divisor of aggregate='constant', in tokens, > 0. The
      default is the padded T, which changes with the padding: give the budget
      of generation instead.

  Returns:
    LossOutput with unit = token, f32[B, K, T], for aggregate='token', else
    unit = sequence, f32[B, K]. 'policy/ref_kl' is per token.

  Raises:
    ValueError: if an argument is unknown, missing or out of range, or has no
      meaning with the others.
    AssertionError: if shapes or dtypes disagree.
  """
  _check(ratio, clip_ratio, aggregate, kl_coef, kl_kind, constant_length)
  chex.assert_rank(mask, 3)
  valid = mask.any(axis=-1)  # [B, K]
  current, = masked.clean(mask, logprobs=logprobs)
  advantages, = masked.clean(valid, advantages=advantages)
  advantages = jax.lax.stop_gradient(advantages)
  per_token = jnp.where(mask, advantages[..., None], 0)
  penalty, ref_kl = kl.ref_penalty(
      current, ref_logprobs, mask, kl_coef=kl_coef, kind=kl_kind)
  metrics: dict[str, jax.Array]
  terms, metrics = per_token * current, {}
  if ratio != 'none':
    old, = masked.clean(mask, old_logprobs=old_logprobs)
    log_ratio = current - jax.lax.stop_gradient(old)
  if ratio == 'token':
    terms, metrics = ratios.clipped_surrogate(log_ratio, per_token, clip_ratio)
  elif ratio != 'none':  # one term per response, reduced as `ratio` says
    terms, metrics = ratios.clipped_surrogate(
        _reduce(log_ratio, mask, ratio), advantages, clip_ratio)
    return types.LossOutput(
        _reduce(penalty, mask, ratio) - terms, valid.astype(jnp.float32),
        {**metrics, **_per_response(ref_kl, mask)})

  loss, metrics = penalty - terms, {**metrics, **ref_kl}
  if aggregate == 'token':
    return types.LossOutput(loss, mask.astype(jnp.float32), metrics)
  return types.LossOutput(
      _reduce(loss, mask, aggregate, constant_length),
      valid.astype(jnp.float32), _per_response(metrics, mask))


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `reinforce_loss` to a batch with advantages [B, K]."""
  return reinforce_loss(out.logprobs, batch.old_logprobs, batch.advantages,
                        batch.mask, ref_logprobs=batch.ref_logprobs, **kwargs)
