"""Preference modelling with a language-modelling term.

Askell et al. 2021, https://arxiv.org/abs/2112.00861; objectives.md 2.5. One
trunk carries a scalar head r and a vocabulary head, both trained:

  loss = preference_coef * softplus(-(r_chosen - r_rejected))
         + lm_coef * NLL(chosen)

The RLHF notes print the second term as +beta E[log r'], which would *untrain*
the language model; we add the NLL, -log r'. They give no coefficients and no
norm: ours are 1, 1 and the mean over the tokens of the chosen response.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.objectives import bradley_terry
from rlhf_jax.objectives import sft

_NORMS = {'token': 'sequence_mean', 'sequence': 'sequence'}  # of `sft`


def preference_lm_loss(
    scores: jax.Array,
    logprobs: jax.Array,
    mask: jax.Array,
    *,
    preference_coef: float = 1.0,
    lm_coef: float = 1.0,
    aggregate: str = 'token',
) -> types.LossOutput:
  """Bradley-Terry loss of a pair plus the NLL of its chosen response.

  Args:
    scores: float[B, 2]; the first of each pair is the chosen response.
    logprobs: float[B, 2, T], in nats; only the chosen response's are read.
    mask: bool[B, 2, T], true on response tokens.
    preference_coef: >= 0, weight of the first term.
    lm_coef: >= 0, weight of the second term.
    aggregate: over the tokens of a chosen response, 'token' takes the mean of
      the NLL, 'sequence' the sum. The unit is a pair either way, so that with
      'token' every response counts alike, not every token of the batch.

  Returns:
    LossOutput with unit = pair: every array is f32[B]. A pair with an empty
    response has weight 0. 'lm/nll' is the NLL, so aggregated, in nats.

  Raises:
    ValueError: if a coefficient is negative or `aggregate` is unknown.
    AssertionError: if shapes or dtypes disagree, or K != 2.
  """
  if not preference_coef >= 0:
    raise ValueError(f'preference_coef must be >= 0, got {preference_coef}.')
  if not lm_coef >= 0:
    raise ValueError(f'lm_coef must be >= 0, got {lm_coef}.')
  if aggregate not in _NORMS:
    raise ValueError(
        f'aggregate must be one of {tuple(_NORMS)}, got {aggregate!r}.')
  chex.assert_shape(scores, (None, 2))
  chex.assert_shape([logprobs, mask], (scores.shape[0], 2, None))
  chex.assert_equal_shape([logprobs, mask])
  chex.assert_type(mask, bool)

  valid = mask.any(axis=-1).all(axis=-1)  # [B]
  # Padding may hold NaN, whose gradient a weight of 0 would not stop.
  preference = bradley_terry.bradley_terry_loss(
      jnp.where(valid[:, None], scores, 0))
  nll = sft.sft_loss(
      logprobs[:, :1], mask[:, :1], aggregate=_NORMS[aggregate]).loss[:, 0]
  return types.LossOutput(
      loss=preference_coef * preference.loss + lm_coef * nll,
      weight=valid.astype(jnp.float32),
      metrics={**preference.metrics, 'lm/nll': nll},
  )


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `preference_lm_loss` to a preference batch (K = 2)."""
  for name in ('scores', 'logprobs'):
    if getattr(out, name) is None:
      raise ValueError(f'out.{name} is None: both heads are needed.')
  return preference_lm_loss(out.scores, out.logprobs, batch.mask, **kwargs)
