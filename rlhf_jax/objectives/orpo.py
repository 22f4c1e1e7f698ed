"""Odds-ratio preference optimisation: likelihood and odds, no reference.

Hong, Lee and Thorne 2024, https://arxiv.org/abs/2403.07691, eq. 3 to 7:

  log P(y) = mean over tokens of log pi(y_t | x, y_<t)
  log odds(y) = log P(y) - log(1 - P(y))
  loss = -log P(y_chosen)
         - odds_coef * log sigmoid(log odds(y_chosen) - log odds(y_rejected))

The paper's lambda is `odds_coef`. The likelihood is the paper's, of the
response, and every pair counts alike. Its official code (xfactlab/orpo) and
TRL take one mean over all tokens of a batch instead, those of the prompt
included (the code has a flag that leaves them out). The odds are the same.
"""

import chex
import jax
from jax import nn
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked

# P = 1 has no odds; this is the number of float32 before it.
_LARGEST = -float(jnp.finfo(jnp.float32).epsneg)  # of log P, in nats


def orpo_loss(
    logprobs: jax.Array,
    mask: jax.Array,
    *,
    odds_coef: float,
) -> types.LossOutput:
  """Likelihood of the chosen response, and a logistic loss on an odds ratio.

  Args:
    logprobs: float[B, 2, T], policy log-probability of each token, in nats;
      index 0 of the second axis is the chosen response, 1 the rejected one.
    mask: bool[B, 2, T], true on response tokens.
    odds_coef: weight of the odds ratio beside a nat of mean log-probability,
      >= 0.

  Returns:
    LossOutput with unit = pair: every array is f32[B], the loss in nats. A
    pair with an empty response has weight 0. The implicit reward is log odds,
    in nats; 'policy/nll' is the likelihood term. Where P would round to 1, at
    a mean log-probability above -6e-8, the odds are those of -6e-8, without
    gradient.

  Raises:
    ValueError: if `odds_coef` is out of range.
    AssertionError: if shapes or dtypes disagree, or K != 2.
  """
  if not odds_coef >= 0:
    raise ValueError(f'odds_coef must be >= 0, got {odds_coef}.')
  chex.assert_shape(logprobs, (None, 2, None))
  chex.assert_equal_shape([logprobs, mask])
  chex.assert_type([logprobs, mask], [float, bool])
  means = masked.masked_mean(logprobs, mask, axis=-1)  # f32[B, 2]
  certain = jnp.minimum(means, _LARGEST)
  # log(1 - P) by itself loses all digits where P is near 1.
  log_odds = certain - jnp.log(-jnp.expm1(certain))
  gap = log_odds[:, 0] - log_odds[:, 1]
  return types.LossOutput(
      loss=-means[:, 0] - odds_coef * nn.log_sigmoid(gap),
      weight=mask.any(axis=-1).all(axis=-1).astype(jnp.float32),
      metrics={
          'policy/nll': -means[:, 0],
          'reward/chosen': log_odds[:, 0],
          'reward/rejected': log_odds[:, 1],
          'reward/margin': gap,
          'reward/accuracy': (gap > 0).astype(jnp.float32),
      },
  )


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `orpo_loss` to a batch (K = 2)."""
  if out.logprobs is None:
    raise ValueError('out.logprobs is None: not the output of a policy.')
  return orpo_loss(out.logprobs, batch.mask, **kwargs)
