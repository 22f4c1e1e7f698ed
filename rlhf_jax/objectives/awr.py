"""Advantage-weighted regression (AWR).

Peng et al. 2019, https://arxiv.org/abs/1910.00177, as Zhu et al. 2023,
https://arxiv.org/abs/2306.02231, eq. 5 and 6, with the value loss of the
latter's code; objectives.md 8.2, 8.3 and 8.5. Of each token:

  policy = -exp(A / beta) * log pi
  loss = policy + value_coef * 1/2 (V - G)^2

`beta` is the paper's lambda, 1; its code has 2 on HH, and .1 diverges. The
weight is detached and there is no reference: what AWR stays close to is the
policy that sampled. The code whitens A (annotate it so). Neither paper nor
code of Zhu et al. limits the weight; we limit the exponent to 20, a guard
against overflow, and count how often.
"""

import math

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.objectives import ppo
from rlhf_jax.ops import masked
from rlhf_jax.ops import ratios


def awr_loss(
    logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    beta: float,
    max_weight: float | None = None,
) -> types.LossOutput:
  """Negative log-likelihood, weighted by exp(A / beta).

  Args:
    logprobs: float[B, K, T], current policy, in nats.
    advantages: float[B, K, T].
    mask: bool[B, K, T], true on response tokens.
    beta: advantage units, > 0; smaller trusts advantages more.
    max_weight: the largest weight, > 0; None leaves exp(20).

  Returns:
    LossOutput with unit = token: every array is f32[B, K, T].
    'policy/weight_clip_fraction' is 1 where the weight was limited.

  Raises:
    ValueError: if `beta` or `max_weight` is not positive or an array is
      missing.
    AssertionError: if shapes or dtypes disagree.
  """
  if not beta > 0:
    raise ValueError(f'beta must be > 0, got {beta}.')
  if max_weight is not None and not max_weight > 0:
    raise ValueError(f'max_weight must be > 0 or None, got {max_weight}.')
  chex.assert_rank(mask, 3)
  current, advantages = masked.clean(
      mask, logprobs=logprobs, advantages=advantages)
  largest = ratios.LARGEST
  if max_weight is not None:
    largest = min(largest, math.log(max_weight))
  exponent = jax.lax.stop_gradient(advantages) / beta
  weight = jnp.exp(jnp.minimum(exponent, largest))
  return types.LossOutput(
      loss=-weight * current,
      weight=mask.astype(jnp.float32),
      metrics={
          'policy/weight': weight,
          'policy/weight_clip_fraction': (
              exponent > largest).astype(jnp.float32),
      },
  )


def objective(out, batch, *, value_coef: float = 1.0,
              **kwargs) -> types.LossOutput:
  """Binds `awr_loss` and the value loss to a batch with token advantages.

  `value_coef` 0 reads no values and no returns; it is >= 0.
  """
  policy = awr_loss(out.logprobs, batch.advantages, batch.mask, **kwargs)
  return ppo.add_value_loss(
      policy, out, batch, value_coef=value_coef, value_clip=None)
