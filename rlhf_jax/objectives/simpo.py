"""Simple preference optimisation: the policy's own mean log-probability.

Meng, Xia and Chen 2024, https://arxiv.org/abs/2405.14734, eq. 6:

  r(y) = beta / |y| * log pi(y | x)
  loss = -log sigmoid(r(y_chosen) - r(y_rejected) - margin)

There is no reference. |y| counts the EOS, as all sums over tokens here do. The
margin is the paper's gamma, in reward units. The paper searches beta in
[2.0, 2.5] and gamma in [0.3, 1.6]; the row of the algorithm table takes 2 and
1.
"""

import chex
import jax
from jax import nn
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked


def simpo_loss(
    logprobs: jax.Array,
    mask: jax.Array,
    *,
    beta: float,
    margin: float,
) -> types.LossOutput:
  """Logistic loss on the gap between two mean log-probabilities.

  Args:
    logprobs: float[B, 2, T], policy log-probability of each token, in nats;
      index 0 of the second axis is the chosen response, 1 the rejected one.
    mask: bool[B, 2, T], true on response tokens.
    beta: reward units per nat of mean log-probability, > 0.
    margin: reward units that the chosen response should be ahead, >= 0.

  Returns:
    LossOutput with unit = pair: every array is f32[B]. A pair with an empty
    response has weight 0. The accuracy is that of r, without the margin.

  Raises:
    ValueError: if `beta` or `margin` is out of range.
    AssertionError: if shapes or dtypes disagree, or K != 2.
  """
  if not beta > 0:
    raise ValueError(f'beta must be > 0, got {beta}.')
  if not margin >= 0:
    raise ValueError(f'margin must be >= 0, got {margin}.')
  chex.assert_shape(logprobs, (None, 2, None))
  chex.assert_equal_shape([logprobs, mask])
  chex.assert_type([logprobs, mask], [float, bool])
  rewards = beta * masked.masked_mean(
      logprobs.astype(jnp.float32), mask, axis=-1)  # [B, 2]
  gap = rewards[:, 0] - rewards[:, 1]
  return types.LossOutput(
      loss=-nn.log_sigmoid(gap - margin),
      weight=mask.any(axis=-1).all(axis=-1).astype(jnp.float32),
      metrics={
          'reward/chosen': rewards[:, 0],
          'reward/rejected': rewards[:, 1],
          'reward/margin': gap,
          'reward/accuracy': (gap > 0).astype(jnp.float32),
      },
  )


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `simpo_loss` to a batch (K = 2)."""
  if out.logprobs is None:
    raise ValueError('out.logprobs is None: not the output of a policy.')
  return simpo_loss(out.logprobs, batch.mask, **kwargs)
