"""Labels of preference pairs: noise, and scores from upvotes."""

import chex
import jax
import jax.numpy as jnp


def flip(key: jax.Array, labels: jax.Array, *, rate: float,
         exact: bool = True) -> jax.Array:
  """Flips the preferred index of a fraction of pairs.

  Coste et al. 2024, https://arxiv.org/abs/2310.02743, section 4.3 (rate 0.25)
  and appendix F.6 (0.35). For the training split only, once, so that all
  members of an ensemble see the same noise.

  Args:
    key: PRNG key.
    labels: bool[N] or int[N] in {0, 1}, index of the preferred response.
    rate: fraction flipped, in [0, 1].
    exact: true flips round(rate * N) labels drawn without replacement; false
      flips each independently with probability `rate`.

  Returns:
    The labels, same shape and dtype.

  Raises:
    ValueError: if `rate` is out of range.
    AssertionError: if `labels` is not one axis of bool or int.
  """
  if not 0 <= rate <= 1:
    raise ValueError(f'rate must be in [0, 1], got {rate}.')
  chex.assert_rank(labels, 1)
  if labels.dtype != bool:
    chex.assert_type(labels, int)
  size = labels.shape[0]
  if exact:
    chosen = jax.random.permutation(key, size) < round(rate * size)
  else:
    chosen = jax.random.bernoulli(key, rate, (size,))
  other = ~labels if labels.dtype == bool else 1 - labels
  return jnp.where(chosen, other, labels)


def upvote_score(upvotes: jax.Array, accepted: jax.Array) -> jax.Array:
  """Score of a StackExchange answer.

  Zhu et al. 2023, https://arxiv.org/abs/2306.02231, section 4.1: -1 without a
  positive number of upvotes, else round(log2(1 + upvotes)), half up, plus 1
  if accepted. (StackLLaMA gives 0 upvotes the score 0.)

  Args:
    upvotes: int[...].
    accepted: bool[...].

  Returns:
    f32[...].

  Raises:
    AssertionError: if shapes or dtypes disagree.
  """
  upvotes, accepted = jnp.asarray(upvotes), jnp.asarray(accepted)
  chex.assert_equal_shape([upvotes, accepted])
  chex.assert_type([upvotes, accepted], [int, bool])
  positive = jnp.maximum(upvotes, 0).astype(jnp.float32)
  score = jnp.floor(jnp.log2(1 + positive) + 0.5) + accepted
  return jnp.where(upvotes > 0, score, -1.0)
