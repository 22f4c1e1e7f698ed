"""Advantage-Leftover Lunch (A-LOL) and its relatives, on logged responses.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, eq. 4 to 6; objectives.md
9.1 to 9.7. A response is one action, LP = sum_t log pi_t, L = LP - LP_ref:

  a_lol      max(A, 0) * clip(exp L) * -LP                          eq. 5
  ref_free   max(A, 0) * -LP
  sequence   max(A, 0) * sum_t clip(exp L_t) * -log pi_t
  kl         max(A, 0) * -LP + kl_coef * (LP - LP_ref)              eq. 6
  r_lol      R * clip(exp L) * -LP                                  eq. 4
  gold       R * sum_t max(pi_t, floor) * -log pi_t
  wbc        R * -LP

Weights are constants, so that a response outside the clip interval still has a
gradient: there is no minimum, unlike PPO. The paper prints 'sequence' and
'gold' as products over tokens; the gradient of a product's log is a sum, as in
its code. In eq. 6 grad ln (pi / pi_ref) is meant. On logged data the gradient
of that penalty knows no reference: it turns max(A, 0) into max(A, 0) - kl_coef
and pushes down what has less advantage. It is not that of KL(pi | pi_ref).
"""

from collections.abc import Callable
import functools
import numbers

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked
from rlhf_jax.ops import ratios

VARIANTS = ('a_lol', 'ref_free', 'sequence', 'kl')


def _prepare(mask, logprobs, **weights):
  """f32 `logprobs`, and the array [B, K] named, detached; 0 in padding."""
  chex.assert_rank(mask, 3)
  logprobs, = masked.clean(mask, logprobs=logprobs)
  values, = masked.clean(mask.any(axis=-1), **weights)
  return logprobs, jax.lax.stop_gradient(values)


def _log_ratio(logprobs, ref_logprobs, mask):
  """log pi - log pi_ref, f32[B, K, T], 0 in padding."""
  reference, = masked.clean(mask, ref_logprobs=ref_logprobs)
  return logprobs - jax.lax.stop_gradient(reference)


def _importance(log_ratio, clip_ratio):
  """Clipped exp(log_ratio), detached; the ratio itself and how often."""
  ratio = jax.lax.stop_gradient(ratios.ratio(log_ratio))
  clipped = jnp.clip(ratio, *ratios.interval(clip_ratio))
  return clipped, {
      'policy/ratio': ratio,
      'policy/clip_fraction': (clipped != ratio).astype(jnp.float32),
  }


def _output(loss, mask, metrics):
  return types.LossOutput(
      loss, mask.any(axis=-1).astype(jnp.float32), metrics)


def alol_loss(
    logprobs: jax.Array,
    ref_logprobs: jax.Array | None,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    variant: str = 'a_lol',
    clip_ratio: ratios.ClipRatio = 0.9,
    kl_coef: float = 0.0,
) -> types.LossOutput:
  """Likelihood weighted by positive advantage and importance.

  Args:
    logprobs: float[B, K, T], policy log-probability of each token, in nats.
    ref_logprobs: float[B, K, T], the same under the frozen reference; not
      read, and may be None, for 'ref_free'.
    advantages: float[B, K], R - V_ref(x), in score units; negative ones
      count as 0.
    mask: bool[B, K, T], true on response tokens.
    variant: 'a_lol', 'ref_free', 'sequence' (a ratio per token) or 'kl'.
    clip_ratio: half-width, > 0, of the interval of the ratio around 1, or a
      pair (low, high). None: no clipping, the default of the paper's
      generation script. Not read by 'ref_free' and 'kl'.
    kl_coef: score units per nat, >= 0, of 'kl' alone, which is 'ref_free'
      without it. Neither paper nor code has a value.

  Returns:
    LossOutput with unit = sequence: every array is f32[B, K]; a sum over
    tokens. Metrics of 'sequence' are means over the tokens of a response;
    'policy/ratio' is not clipped.

  Raises:
    ValueError: if an argument is unknown, out of range or has no meaning for
      the variant, or the reference is missing.
    AssertionError: if shapes or dtypes disagree.
  """
  if variant not in VARIANTS:
    raise ValueError(f'variant must be one of {VARIANTS}, got {variant!r}.')
  fixed = isinstance(kl_coef, numbers.Real)  # else f32[], of a controller
  if fixed and not kl_coef >= 0:
    raise ValueError(f'kl_coef must be >= 0, got {kl_coef}.')
  if variant != 'kl' and not (fixed and kl_coef == 0):
    raise ValueError(
        f"kl_coef={kl_coef} has a meaning for variant='kl' only, got "
        f'{variant!r}.')
  ratios.interval(clip_ratio)  # a bad one is an error for every variant
  logprobs, advantages = _prepare(mask, logprobs, advantages=advantages)
  kept = jnp.maximum(advantages, 0)
  metrics = {'advantage/positive': (advantages > 0).astype(jnp.float32)}
  loss = -kept * logprobs.sum(axis=-1)
  if variant == 'ref_free':
    return _output(loss, mask, metrics)

  log_ratio = _log_ratio(logprobs, ref_logprobs, mask)
  if variant == 'kl':
    return _output(loss + kl_coef * log_ratio.sum(axis=-1), mask, metrics)
  if variant == 'a_lol':
    weight, more = _importance(log_ratio.sum(axis=-1), clip_ratio)
    return _output(loss * weight, mask, metrics | more)
  weight, more = _importance(log_ratio, clip_ratio)
  # Masked after clipping: the weight of padding is exp(0), not 0.
  loss = -kept * masked.masked_sum(weight * logprobs, mask, axis=-1)
  more = {k: masked.masked_mean(x, mask, axis=-1) for k, x in more.items()}
  return _output(loss, mask, metrics | more)


def r_lol_loss(
    logprobs: jax.Array,
    ref_logprobs: jax.Array,
    scores: jax.Array,
    mask: jax.Array,
    *,
    clip_ratio: ratios.ClipRatio = 0.9,
) -> types.LossOutput:
  """A-LOL with the score in place of the advantage, and no clamp at 0.

  `scores` are float[B, K], in the paper in [0, 1]; a negative one makes its
  response less likely. All else is as in `alol_loss`.
  """
  logprobs, scores = _prepare(mask, logprobs, scores=scores)
  log_ratio = _log_ratio(logprobs, ref_logprobs, mask)
  weight, metrics = _importance(log_ratio.sum(axis=-1), clip_ratio)
  return _output(-scores * weight * logprobs.sum(axis=-1), mask, metrics)


def gold_loss(logprobs: jax.Array, scores: jax.Array, mask: jax.Array, *,
              floor: float = 0.1) -> types.LossOutput:
  """Reward GOLD: each token's weight is its own, detached, probability.

  Pang and He 2021, https://arxiv.org/abs/2009.07839, with one score for the
  response. `floor` is the paper's u, the smallest weight, in [0, 1]; 1 is
  `wbc_loss`. All else is as in `r_lol_loss`.
  """
  if not 0 <= floor <= 1:
    raise ValueError(f'floor must be in [0, 1], got {floor}.')
  logprobs, scores = _prepare(mask, logprobs, scores=scores)
  weight = jax.lax.stop_gradient(jnp.maximum(jnp.exp(logprobs), floor))
  loss = -scores * masked.masked_sum(weight * logprobs, mask, axis=-1)
  return _output(loss, mask, {})


def wbc_loss(logprobs: jax.Array, scores: jax.Array,
             mask: jax.Array) -> types.LossOutput:
  """Weighted behaviour cloning, likelihood times score: see `r_lol_loss`."""
  logprobs, scores = _prepare(mask, logprobs, scores=scores)
  return _output(-scores * logprobs.sum(axis=-1), mask, {})


def objective(out, batch, *, variant: str = 'a_lol',
              **kwargs) -> types.LossOutput:
  """Binds a batch with advantages [B, K], or with scores for the last three.

  `variant` is one of `alol_loss`, or 'r_lol', 'gold' or 'wbc'.
  """
  losses: dict[str, Callable[..., types.LossOutput]]
  losses = {x: functools.partial(alol_loss, variant=x) for x in VARIANTS}
  losses |= {'r_lol': r_lol_loss, 'gold': gold_loss, 'wbc': wbc_loss}
  if variant not in losses:
    raise ValueError(
        f'variant must be one of {tuple(losses)}, got {variant!r}.')
  name = 'advantages' if variant in VARIANTS else 'scores'
  reference = () if variant in ('gold', 'wbc') else (batch.ref_logprobs,)
  return losses[variant](
      out.logprobs, *reference, getattr(batch, name), batch.mask, **kwargs)
