"""Reward modelling on more than two responses to a prompt.

objectives.md 2.6, 2.3 and 2.1, with r the scores of the responses present,
best first but for 'choice':

  plackett_luce  sum_{k<K} [logsumexp(r_k .. r_K) - r_k]; Zhu, Jiao and Jordan
                 2023, https://arxiv.org/abs/2301.11270
  choice         logsumexp(r) - r_choice; Ziegler et al. 2019,
                 https://arxiv.org/abs/1909.08593, eq. 1, there with K = 4
  pairwise       mean_{i<j} softplus(-(r_i - r_j)), as Open-Assistant's

All three are `bradley_terry` at K = 2. The RLHF notes print Ziegler's without
its minus, a likelihood to maximise; this is its negative. Ziegler's gain and
bias, which standardise the scores (`ops.moments.normalize`), are no part of it.
"""

import chex
import jax
from jax import nn
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked


def _clean(scores, mask):
  """Scores in float32, 0 where absent, and where they are present."""
  chex.assert_rank(scores, 2)
  chex.assert_type(scores, float)
  mask = jnp.ones(scores.shape, bool) if mask is None else mask
  chex.assert_equal_shape([scores, mask])
  chex.assert_type(mask, bool)
  return jnp.where(mask, scores, 0).astype(jnp.float32), mask


def _later(scores, mask):
  """r_j - r_i, f32[B, i, j], and where i < j are both present."""
  gaps = scores[:, None, :] - scores[:, :, None]
  both = mask[:, None, :] & mask[:, :, None]
  return gaps, both & jnp.triu(jnp.ones(both.shape, bool), 1)


def _accuracy(scores, best, mask):
  """f32[B], 1 where the one `best` scores above all others present."""
  top = jnp.sum(jnp.where(best, scores, 0), axis=-1)
  rival = jnp.max(jnp.where(mask & ~best, scores, -jnp.inf), axis=-1)
  return (top > rival).astype(jnp.float32)


def _ranking(loss, scores, mask):
  """LossOutput of prompts ranked best first."""
  gaps, pairs = _later(scores, mask)
  first = mask & (jnp.cumsum(mask, axis=-1) == 1)
  ordered = (gaps < 0).astype(jnp.float32)
  return types.LossOutput(
      loss=loss,
      weight=(mask.sum(axis=-1) > 1).astype(jnp.float32),
      metrics={
          'reward/accuracy': _accuracy(scores, first, mask),
          'reward/pair_accuracy': masked.masked_mean(ordered, pairs, (1, 2)),
      },
  )


def plackett_luce_loss(scores: jax.Array,
                       mask: jax.Array | None = None) -> types.LossOutput:
  """Negative log-likelihood of a whole ranking; a sum over its places.

  Args:
    scores: float[B, K], best first.
    mask: bool[B, K], which responses are present, in any places. None: all.

  Returns:
    LossOutput with unit = prompt: every array is f32[B]. The weight is 0 where
    fewer than two are present. 'reward/accuracy' is 1 where the best scores
    highest, 'reward/pair_accuracy' is the share of pairs in their order; ties
    count as wrong. (Without ties, Kendall's tau is twice the share less 1.)

  Raises:
    AssertionError: if shapes or dtypes disagree.
  """
  scores, mask = _clean(scores, mask)
  gaps, pairs = _later(scores, mask)
  # logsumexp(r) - r_k = logsumexp(r - r_k), without the cancellation. Each k
  # meets itself, so that no row is empty and an absent one adds log(1).
  meets = pairs | jnp.eye(scores.shape[1], dtype=bool)[None]
  terms = nn.logsumexp(jnp.where(meets, gaps, -jnp.inf), axis=-1)
  return _ranking(terms.sum(axis=-1), scores, mask)


def pairwise_loss(scores: jax.Array,
                  mask: jax.Array | None = None) -> types.LossOutput:
  """Bradley-Terry loss, the mean over all pairs of a ranking.

  Arguments, result and errors are those of `plackett_luce_loss`.
  """
  scores, mask = _clean(scores, mask)
  gaps, pairs = _later(scores, mask)
  loss = masked.masked_mean(nn.softplus(gaps), pairs, (1, 2))
  return _ranking(loss, scores, mask)


def choice_loss(scores: jax.Array, choice: jax.Array,
                mask: jax.Array | None = None) -> types.LossOutput:
  """Cross-entropy of the one response chosen out of K.

  Args:
    scores: float[B, K], in any order.
    choice: int[B], index of the chosen response. Under jit its range cannot be
      checked; the loss of a prompt whose choice is none of 0 .. K-1 is NaN.
    mask: bool[B, K], which responses were to choose from. None: all.

  Returns:
    LossOutput with unit = prompt: every array is f32[B]. The weight is 0 where
    fewer than two are present, or the chosen one is not. A tie counts as wrong.

  Raises:
    ValueError: if `choice` is out of range, outside of jit.
    AssertionError: if shapes or dtypes disagree.
  """
  scores, mask = _clean(scores, mask)
  size = scores.shape[1]
  chex.assert_shape(choice, scores.shape[:1])
  chex.assert_type(choice, int)
  wrong = (choice < 0) | (choice >= size)
  if not isinstance(wrong, jax.core.Tracer) and wrong.any():
    raise ValueError(f'choice must be in [0, {size}), got {choice}.')

  chosen = jnp.arange(size)[None] == choice[:, None]
  gaps = scores - jnp.where(chosen, scores, 0).sum(axis=-1, keepdims=True)
  loss = nn.logsumexp(jnp.where(mask | chosen, gaps, -jnp.inf), axis=-1)
  absent = (chosen & ~mask).any(axis=-1)
  return types.LossOutput(
      loss=jnp.where(wrong, jnp.nan, loss),
      weight=((mask.sum(axis=-1) > 1) & ~absent).astype(jnp.float32),
      metrics={'reward/accuracy': _accuracy(scores, chosen, mask)},
  )


def objective(out, batch, *, kind: str = 'plackett_luce') -> types.LossOutput:
  """Binds a loss to `out.scores`; an empty response is absent.

  With kind='plackett_luce' or 'pairwise' the responses of the batch come best
  first. With kind='choice' the chosen one has the largest of the prompt's
  `batch.targets` (one-hot); a prompt where none is above 0 has weight 0.
  """
  if kind not in ('plackett_luce', 'choice', 'pairwise'):
    raise ValueError("kind must be 'plackett_luce', 'choice' or 'pairwise', "
                     f'got {kind!r}.')
  chex.assert_rank(batch.mask, 3)
  chex.assert_type(batch.mask, bool)
  mask = batch.mask.any(axis=-1)  # [B, K]
  scores, = masked.clean(mask, scores=out.scores)
  if kind == 'plackett_luce':
    return plackett_luce_loss(scores, mask)
  if kind == 'pairwise':
    return pairwise_loss(scores, mask)
  labels, = masked.clean(mask, targets=batch.targets)
  mask = mask & (labels > 0).any(axis=-1, keepdims=True)
  return choice_loss(scores, labels.argmax(axis=-1), mask)
