"""Kahneman-Tversky optimisation: responses that were liked, or were not.

Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, eq. 8 (7, as TRL
counts):

  r(y) = log pi(y | x) - log pi_ref(y | x)
  loss = w_D * (1 - sigmoid(beta * (r(y) - z0)))    if y is liked
         w_U * (1 - sigmoid(beta * (z0 - r(y))))    if it is not

Log-ratios are sums over tokens, EOS included. The paper's lambda_D and
lambda_U are the weights. z0 is a statistic over a batch, and comes with it:
`ops.kl.reference_point`. The paper's code and TRL have one for each
micro-batch; here it is that of the whole batch, which no cut changes.
"""

import chex
import jax
from jax import nn
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked


def kto_loss(
    logprobs: jax.Array,
    ref_logprobs: jax.Array,
    reference_points: jax.Array,
    targets: jax.Array,
    mask: jax.Array,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> types.LossOutput:
  """What a response falls short of a gain, or of a loss, from z0 on.

  Args:
    logprobs: float[B, K, T], policy log-probability of each token, in nats.
    ref_logprobs: float[B, K, T], the same under the frozen reference.
    reference_points: float[B, K], z0, in nats, >= 0.
    targets: float[B, K], 1 where a response is liked, 0 where it is not; what
      is between them is a probability.
    mask: bool[B, K, T], true on response tokens.
    beta: reward units per nat of log-ratio, > 0.
    desirable_weight: most that a liked response can lose, >= 0. The two make
      up for unequal numbers of responses.
    undesirable_weight: the same of one that is not liked.

  Returns:
    LossOutput with unit = sequence: every array is f32[B, K]. An empty
    response has weight 0. The implicit reward is beta * r, and it is right
    where it is on its own side of beta * z0. As means are over all responses,
    'reward/liked' and 'reward/disliked' are 0 on the other side: to have a
    mean of one side, divide by 'reward/liked_share', or by what is left of 1.

  Raises:
    ValueError: if a number is out of range or an array is None.
    AssertionError: if shapes or dtypes disagree.
  """
  if not beta > 0:
    raise ValueError(f'beta must be > 0, got {beta}.')
  for name, value in dict(desirable_weight=desirable_weight,
                          undesirable_weight=undesirable_weight).items():
    if not value >= 0:
      raise ValueError(f'{name} must be >= 0, got {value}.')
  chex.assert_rank(mask, 3)
  present = mask.any(axis=-1)  # [B, K]
  logprobs, reference = masked.clean(
      mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
  fixed = masked.clean(
      present, reference_points=reference_points, targets=targets)
  reference, points, liked = jax.lax.stop_gradient((reference, *fixed))
  ratios = jnp.sum(logprobs - reference, axis=-1)  # [B, K]
  gaps = beta * (ratios - points)
  side = jnp.sign(liked - .5)
  return types.LossOutput(
      loss=(liked * desirable_weight * nn.sigmoid(-gaps)
            + (1 - liked) * undesirable_weight * nn.sigmoid(gaps)),
      weight=present.astype(jnp.float32),
      metrics={
          'reward/liked': liked * beta * ratios,
          'reward/disliked': (1 - liked) * beta * ratios,
          'reward/liked_share': liked,
          'reward/accuracy': (side * gaps > 0).astype(jnp.float32),
          'policy/reference_point': points,
      },
  )


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `kto_loss` to the fields of a batch."""
  return kto_loss(
      out.logprobs, batch.ref_logprobs, batch.reference_points, batch.targets,
      batch.mask, **kwargs)
