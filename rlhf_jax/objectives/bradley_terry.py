"""Bradley-Terry reward modelling on pairs.

objectives.md 2.1 and 2.2 (Christiano et al. 2017,
https://arxiv.org/abs/1706.03741, eq. 1), with d = score_first - score_second
and p = P(first wins), 1 for a plain label:

  loss = p softplus(-(d - margin)) + (1 - p) softplus(d + margin)

so that whichever response is preferred has to win by the margin. The other
terms are off by default: score_l2 / 2 * (r_first^2 + r_second^2), as
Open-Assistant's RMLoss, and center_coef * (r_first + r_second)^2, as TRL.

Christiano's scores are sums of step rewards: `trajectory_loss`. Two deviations
from print: the RLOO paper has softplus(-log d), undefined at d <= 0; Christiano
sums over the data set, where the train step takes the mean over pairs.
"""

import chex
import jax
from jax import nn
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import labels
from rlhf_jax.ops import masked


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
    LossOutput with unit = pair: every array is f32[B]. 'reward/margin' is the
    first score less the second, whatever the target. A tie of the scores
    counts as wrong, and so does every pair whose target is 0.5.

  Raises:
    ValueError: if `score_l2` or `center_coef` is negative, or a target is out
      of range (not checked under jit).
    AssertionError: if shapes or dtypes disagree.
  """
  if not score_l2 >= 0:
    raise ValueError(f'score_l2 must be >= 0, got {score_l2}.')
  if not center_coef >= 0:
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
  labels.check_share('target', target)
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


def trajectory_loss(
    step_rewards: jax.Array,
    mask: jax.Array,
    *,
    target: jax.Array | None = None,
) -> types.LossOutput:
  """Bradley-Terry loss on the sums, not means, of the rewards of each step.

  Args:
    step_rewards: float[B, 2, T], of two trajectories.
    mask: bool[B, 2, T], which steps were taken; without any, the sum is 0.
    target: float[B], mu_1, the probability that the first one wins, in [0, 1];
      0.5 where both are as good. None: 1.

  Returns:
    As `bradley_terry_loss`, but a pair without any step has weight 0.

  Raises:
    AssertionError: if shapes or dtypes disagree.
  """
  chex.assert_shape(step_rewards, (None, 2, None))
  chex.assert_type(step_rewards, float)
  scores = masked.masked_sum(step_rewards, mask, axis=-1)  # [B, 2]
  loss = bradley_terry_loss(scores, target=target)
  return loss.replace(weight=mask.any(axis=(-2, -1)).astype(jnp.float32))


def objective(out, batch, *, per_step: bool = False,
              **kwargs) -> types.LossOutput:
  """Binds `bradley_terry_loss` to a preference batch (K = 2).

  With `per_step` it binds `trajectory_loss` to `out.step_rewards` instead.
  `batch.targets[:, 0]`, where present, is the probability that the first
  response wins. A pair with an empty response has weight 0: a response has at
  least its EOS, so an empty one is padding.
  """
  chex.assert_shape(batch.mask, (None, 2, None))
  chex.assert_type(batch.mask, bool)
  present = batch.mask.any(axis=-1)  # [B, 2]
  valid = present & present.all(axis=-1, keepdims=True)
  # Padding may hold NaN, whose gradient a weight of 0 would not stop.
  if batch.targets is not None:
    targets, = masked.clean(valid, targets=batch.targets)
    kwargs['target'] = targets[:, 0]
  if per_step:
    step_rewards, = masked.clean(batch.mask, step_rewards=out.step_rewards)
    loss = trajectory_loss(step_rewards, batch.mask, **kwargs)
  else:
    scores, = masked.clean(valid, scores=out.scores)
    loss = bradley_terry_loss(scores, **kwargs)
  return loss.replace(weight=valid[:, 0].astype(jnp.float32))
