"""Bradley-Terry reward modelling on pairs.

objectives.md 2.1 and 2.2 (Christiano et al. 2017,
https://arxiv.org/abs/1706.03741, eq. 1), with d = score_first - score_second
and p = P(first wins), 1 for a plain label:

  loss = p softplus(-(d - margin)) + (1 - p) softplus(d + margin)

so that whichever response is preferred has to win by the margin. The other
terms are off by default: score_l2 / 2 * (r_first^2 + r_second^2), as
Open-Assistant's RMLoss, and center_coef * (r_first + r_second)^2, as TRL.
"""

import chex
import jax
from jax import nn
import jax.numpy as jnp

from rlhf_jax import types


def bradley_terry_loss(
    scores: jax.Array,
    *,
    margin: jax.Array | float | None = None,
    target: jax.Array | None = None,
    score_l2: float = 0.0,
    center_coef: float = 0.0,
) -> types.LossOutput:
  """Logistic loss on the gap between the two scores of a pair.

  Args:
    scores: float[B, 2]; the first of each pair is the chosen response.
    margin: by how much the preferred one has to win, float or f32[B].
    target: float[B], probability that the first one wins, in [0, 1]. None: 1.
    score_l2: >= 0, pulls both scores to 0.
    center_coef: >= 0, pulls their sum to 0.

  Returns:
    LossOutput with unit = pair: every array is f32[B]. A tie counts as wrong.

  Raises:
    ValueError: if `score_l2` or `center_coef` is negative.
    AssertionError: if shapes or dtypes disagree.
  """
  if score_l2 < 0:
    raise ValueError(f'score_l2 must be >= 0, got {score_l2}.')
  if center_coef < 0:
    raise ValueError(f'center_coef must be >= 0, got {center_coef}.')
  chex.assert_shape(scores, (None, 2))
  chex.assert_type(scores, float)
  scores = scores.astype(jnp.float32)
  first, second = scores[:, 0], scores[:, 1]
  pairs = first.shape
  margin = jnp.asarray(0.0 if margin is None else margin, jnp.float32)
  target = jnp.asarray(
      jnp.ones(pairs) if target is None else target, jnp.float32)
  chex.assert_shape(target, pairs)
  if margin.ndim:
    chex.assert_shape(margin, pairs)
  margin, target = jax.lax.stop_gradient((margin, target))

  gap = first - second  # [B]
  loss = target * nn.softplus(margin - gap)
  loss += (1 - target) * nn.softplus(margin + gap)
  loss += score_l2 * 0.5 * (first**2 + second**2)
  loss += center_coef * (first + second)**2

  return types.LossOutput(
      loss=loss,
      weight=jnp.ones(pairs, jnp.float32),
      metrics={
          'reward/accuracy': (gap * (target - 0.5) > 0).astype(jnp.float32),
          'reward/margin': gap,
      },
  )


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `bradley_terry_loss` to a preference batch (K = 2).

  `batch.targets[:, 0]`, where present, is the probability that the first
  response wins. A pair with an empty response has weight 0.
  """
  chex.assert_rank(batch.mask, 3)
  valid = batch.mask.any(axis=-1).all(axis=-1)  # [B]
  # Padding may hold NaN, whose gradient a weight of 0 would not stop.
  clean = lambda x: jnp.where(valid[:, None], x, 0)
  if batch.targets is not None:
    chex.assert_equal_shape([out.scores, batch.targets])
    kwargs['target'] = clean(batch.targets)[:, 0]
  loss = bradley_terry_loss(clean(out.scores), **kwargs)
  return loss.replace(weight=valid.astype(jnp.float32))
