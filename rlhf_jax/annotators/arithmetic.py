"""Annotators fill the optional fields of a batch: Batch -> Batch.

They run on the whole rollout, before it is cut into minibatches, so a
statistic over samples never depends on how the batch is split. Those that
remember earlier rollouts, or draw, are in `running`.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.annotators import running
from rlhf_jax.ops import advantages
from rlhf_jax.ops import endings
from rlhf_jax.ops import masked
from rlhf_jax.ops import moments


def standardize_scores(batch: types.Batch) -> types.Batch:
  """Scores to mean 0 and deviation 1 (ddof 1) over the whole batch.

  Zhu et al. 2023 normalise logged rewards over the data set (objectives.md
  2.8 and 8.6), so run it on the data set, before it is cut.
  """
  scores, = running.need(batch, 'scores')
  present = batch.mask.any(axis=-1)
  whole = moments.update(moments.init(), scores, present)
  return batch.replace(scores=moments.normalize(
      scores, whole.mean, moments.std(whole)))


def clip_scores(batch: types.Batch, *, limit: float) -> types.Batch:
  """Scores into [-limit, limit]; Coste et al. 2024 take 10."""
  if not limit > 0:
    raise ValueError(f'limit must be > 0, got {limit}.')
  scores, = running.need(batch, 'scores')
  return batch.replace(scores=jnp.clip(scores, -limit, limit))


def missing_eos(batch: types.Batch, *, eos_id: int | tuple[int, ...],
                penalty: float | None = None, value: float | None = None,
                stops: jax.Array | None = None) -> types.Batch:
  """Another score for responses that end without EOS, cut off by the budget.

  objectives.md 5.2. A missing response keeps what it has.

  Args:
    batch: tokens, mask and scores.
    eos_id: a response is finished if this, or one of these, is in it.
    penalty: subtracted from the score, >= 0; TRL takes 1.
    value: replaces the score; -1 in Ziegler et al. 2019.
    stops: of `endings.finished`; their strings end a response too.

  Raises:
    ValueError: unless exactly one of `penalty` and `value` is given.
  """
  if (penalty is None) == (value is None):
    raise ValueError('either penalty or value must be given, got penalty='
                     f'{penalty} and value={value}.')
  if penalty is not None and not penalty >= 0:
    raise ValueError(f'penalty must be >= 0, got {penalty}.')
  scores, = running.need(batch, 'scores')
  finished = endings.finished(batch.tokens, batch.mask, eos_id, stops)
  other = scores - penalty if value is None else value
  return batch.replace(scores=jnp.where(
      batch.mask.any(axis=-1) & ~finished, other, scores))


def gae(batch: types.Batch, *, discount: float = 1.0,
        gae_lambda: float = 0.95) -> types.Batch:
  """`advantages` and `returns`, f32[B, K, T], from rewards and old values."""
  advantage, returns = advantages.gae(
      *running.need(batch, 'rewards', 'old_values'), batch.mask,
      discount=discount, gae_lambda=gae_lambda)
  return batch.replace(advantages=advantage, returns=returns)


def whiten(batch: types.Batch, *, shift_mean: bool = True,
           ddof: int = 0) -> types.Batch:
  """Whitens token advantages over the whole rollout; returns stay as made."""
  return batch.replace(advantages=masked.whiten(
      *running.need(batch, 'advantages'), batch.mask, shift_mean=shift_mean,
      ddof=ddof))


def leave_one_out(batch: types.Batch) -> types.Batch:
  """Advantages f32[B, K] against the mean score of the other samples."""
  return batch.replace(advantages=advantages.leave_one_out(
      *running.need(batch, 'scores'), batch.mask.any(axis=-1)))


def group_normalize(batch: types.Batch, *, scale: bool = True,
                    epsilon: float = 1e-4) -> types.Batch:
  """Advantages f32[B, K] against the samples of the same prompt (GRPO)."""
  return batch.replace(advantages=advantages.group_normalize(
      *running.need(batch, 'scores'), batch.mask.any(axis=-1), scale=scale,
      epsilon=epsilon))


def prompt_advantages(batch: types.Batch) -> types.Batch:
  """Advantages f32[B, K]: the score less the reference's value of the prompt.

  Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2.2:
  A(x, y) = R(x, y) - V_ref(x).
  """
  scores, values = running.need(batch, 'scores', 'prompt_values')
  chex.assert_shape(values, scores.shape[:1])
  return batch.replace(
      advantages=jax.lax.stop_gradient(scores - values[:, None]))


def keep_positive(batch: types.Batch) -> types.Batch:
  """Clears the mask of responses whose advantage [B, K] is not positive.

  Baheti et al. 2024, section 2.2; about a third of their data (section 4.1).
  """
  advantage, = running.need(batch, 'advantages')
  chex.assert_shape(advantage, batch.mask.shape[:2])
  return batch.replace(mask=batch.mask & (advantage > 0)[..., None])


def keep_best(batch: types.Batch) -> types.Batch:
  """RAFT: clears the mask of all but the best-scored sample of each prompt.

  The first on ties; a missing sample is never the best.
  """
  scores, = running.need(batch, 'scores')
  chex.assert_shape(scores, batch.mask.shape[:2])
  best = jnp.argmax(
      jnp.where(batch.mask.any(axis=-1), scores, -jnp.inf), axis=1)
  chosen = jnp.arange(scores.shape[1])[None] == best[:, None]
  return batch.replace(mask=batch.mask & chosen[..., None])


def best_first(batch: types.Batch) -> types.Batch:
  """Puts the samples of each prompt in the order of their scores, best first.

  Guo et al. 2024, https://arxiv.org/abs/2402.04792, algorithm 1: of two
  samples of the policy the better is the chosen one. All fields move together.
  Of equal scores the sample that was drawn first stays first: such a pair says
  nothing, and its label is a coin that favours neither. A missing sample comes
  last.
  """
  scores, = running.need(batch, 'scores')
  chex.assert_shape(scores, batch.mask.shape[:2])
  order = jnp.argsort(
      jnp.where(batch.mask.any(axis=-1), -scores, jnp.inf), axis=1, stable=True)
  def take(x):
    return x if x.ndim == 1 else jnp.take_along_axis(
        x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
  members = batch.member_scores  # [E, B, K]
  if members is not None:
    members = jax.vmap(take)(members)
  return jax.tree.map(take, batch.replace(member_scores=None)).replace(
      member_scores=members)


# Those that read the batch alone, by the names that rows and configs use.
ARITHMETIC = {f.__name__: f for f in (
    standardize_scores, clip_scores, missing_eos, gae, whiten, leave_one_out,
    group_normalize, prompt_advantages, keep_positive, keep_best,
    best_first)}
