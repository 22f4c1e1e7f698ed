"""Advantage-induced policy alignment (APA).

Zhu et al. 2023, https://arxiv.org/abs/2306.02231, eq. 8 and 9, and the value
loss of its code; objectives.md 8.1, 8.3 and 8.5. Of each token:

  policy = (log pi - log pi_init - A / beta)^2
  loss = policy + value_coef * 1/2 (V - G)^2

`beta` is the paper's lambda: its code multiplies A by 10, which is beta=.1,
and by 1 offline. pi_init is the frozen *initial* policy, the reference, not
the one that sampled; there is no importance ratio and no KL in the reward.
The code whitens A (annotate it so), the paper does not say so. The paper sums
(V - G)^2 without the half and leaves its weight open; we follow the code.
Online and on logged data the loss is the same.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.objectives import ppo
from rlhf_jax.ops import masked


def apa_loss(
    logprobs: jax.Array,
    ref_logprobs: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    beta: float,
) -> types.LossOutput:
  """Squared distance of the log-ratio to the reference from A / beta.

  Args:
    logprobs: float[B, K, T], current policy, in nats.
    ref_logprobs: float[B, K, T], the same under the initial policy.
    advantages: float[B, K, T].
    mask: bool[B, K, T], true on response tokens.
    beta: advantage units per nat of log-ratio, > 0; larger stays closer to
      the initial policy.

  Returns:
    LossOutput with unit = token: every array is f32[B, K, T].
    'policy/log_ratio' is log pi - log pi_init, in nats.

  Raises:
    ValueError: if `beta` is not positive or an array is missing.
    AssertionError: if shapes or dtypes disagree.
  """
  if not beta > 0:
    raise ValueError(f'beta must be > 0, got {beta}.')
  chex.assert_rank(mask, 3)
  current, *fixed = masked.clean(mask, logprobs=logprobs,
                              ref_logprobs=ref_logprobs, advantages=advantages)
  ref, advantages = jax.lax.stop_gradient(fixed)
  log_ratio = current - ref
  return types.LossOutput(
      loss=(log_ratio - advantages / beta)**2,
      weight=mask.astype(jnp.float32),
      metrics={'policy/log_ratio': log_ratio},
  )


def objective(out, batch, *, value_coef: float = 1.0,
              **kwargs) -> types.LossOutput:
  """Binds `apa_loss` and the value loss to a batch with token advantages.

  `value_coef` 0 reads no values and no returns; it is >= 0.
  """
  policy = apa_loss(out.logprobs, batch.ref_logprobs, batch.advantages,
                    batch.mask, **kwargs)
  return ppo.add_value_loss(
      policy, out, batch, value_coef=value_coef, value_clip=None)
