"""Supervised fine-tuning: negative log-likelihood of response tokens.

objectives.md 1.1. With aggregate='token' the train step's weighted mean is
L_tok = -sum(m * lp) / sum(m), with 'sequence' it is the mean over sequences
of -sum_t(m * lp), L_sum; A-LOL's code uses the latter.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked


def sft_loss(logprobs: jax.Array, mask: jax.Array, *,
             aggregate: str = 'token') -> types.LossOutput:
  """Negative log-likelihood.

  Args:
    logprobs: float[B, K, T], in nats.
    mask: bool[B, K, T], true on response tokens.
    aggregate: 'token' counts every token alike, 'sequence' every response.

  Returns:
    LossOutput with unit = token, f32[B, K, T], or unit = sequence, f32[B, K]
    (a sum over tokens), in nats.

  Raises:
    ValueError: if `aggregate` is unknown.
    AssertionError: if shapes or dtypes disagree.
  """
  if aggregate not in ('token', 'sequence'):
    raise ValueError(
        f"aggregate must be 'token' or 'sequence', got {aggregate!r}.")
  chex.assert_rank(logprobs, 3)
  chex.assert_equal_shape([logprobs, mask])
  chex.assert_type([logprobs, mask], [float, bool])

  if aggregate == 'token':
    loss = -jnp.where(mask, logprobs, 0).astype(jnp.float32)
    return types.LossOutput(loss, mask.astype(jnp.float32), {})
  loss = -masked.masked_sum(logprobs, mask, axis=-1)
  return types.LossOutput(loss, mask.any(axis=-1).astype(jnp.float32), {})


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `sft_loss` to the fields of a batch."""
  return sft_loss(out.logprobs, batch.mask, **kwargs)
