"""Supervised fine-tuning: negative log-likelihood of response tokens.

objectives.md 1.1. The train step's weighted mean is, by `aggregate`:

  token          L_tok = -sum(m * lp) / sum(m)
  sequence       L_sum = -mean_b sum_t(m * lp), as in A-LOL's code
  sequence_mean  L_seq = -mean_b [sum_t(m * lp) / sum_t(m)]
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked

AGGREGATES = ('token', 'sequence', 'sequence_mean')


def sft_loss(logprobs: jax.Array, mask: jax.Array, *,
             aggregate: str = 'token') -> types.LossOutput:
  """Negative log-likelihood.

  Args:
    logprobs: float[B, K, T], in nats.
    mask: bool[B, K, T], true on response tokens.
    aggregate: 'token' counts every token alike, 'sequence' and 'sequence_mean'
      every response, by the sum or by the mean over its tokens.

  Returns:
    LossOutput with unit = token, f32[B, K, T], for aggregate='token', else
    unit = sequence, f32[B, K]; in nats.

  Raises:
    ValueError: if `aggregate` is unknown.
    AssertionError: if shapes or dtypes disagree.
  """
  if aggregate not in AGGREGATES:
    raise ValueError(
        f'aggregate must be one of {AGGREGATES}, got {aggregate!r}.')
  chex.assert_rank(logprobs, 3)
  chex.assert_equal_shape([logprobs, mask])
  chex.assert_type([logprobs, mask], [float, bool])

  if aggregate == 'token':
    loss = -jnp.where(mask, logprobs, 0).astype(jnp.float32)
    return types.LossOutput(loss, mask.astype(jnp.float32), {})
  reduce = masked.masked_sum if aggregate == 'sequence' else masked.masked_mean
  loss = -reduce(logprobs, mask, axis=-1)
  return types.LossOutput(loss, mask.any(axis=-1).astype(jnp.float32), {})


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `sft_loss` to the fields of a batch."""
  if out.logprobs is None:
    raise ValueError('out.logprobs is None: not the output of a policy.')
  return sft_loss(out.logprobs, batch.mask, **kwargs)
