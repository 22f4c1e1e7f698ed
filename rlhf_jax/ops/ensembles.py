"""Conservative aggregation over an ensemble of reward models.

Coste et al. 2024, https://arxiv.org/abs/2310.02743, eq. 3 to 5. Variance is
the population's, as in the paper and its best-of-n code; its PPO code uses
ddof = 1, a penalty 1.25 times larger with five members.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

KINDS = ('mean', 'worst_case', 'uncertainty_weighted', 'single')


def _members(member_scores: jax.Array) -> jax.Array:
  """Checks E >= 1 and returns float32 without gradient."""
  chex.assert_type(member_scores, float)
  if member_scores.ndim < 1 or member_scores.shape[0] < 1:
    raise ValueError('member_scores needs a leading axis of at least one '
                     f'ensemble member, got shape {member_scores.shape}.')
  return jax.lax.stop_gradient(member_scores.astype(jnp.float32))


def variance(member_scores: jax.Array, *, ddof: int = 0) -> jax.Array:
  """Variance over members; 0 for a single member under either `ddof`.

  Args:
    member_scores: float[E, ...], E >= 1.
    ddof: 0 divides by E, 1 by E - 1.

  Returns:
    f32[...], in score units squared.

  Raises:
    ValueError: if E is 0 or `ddof` is neither 0 nor 1.
  """
  if ddof not in (0, 1):
    raise ValueError(f'ddof must be 0 or 1, got {ddof}.')
  scores = _members(member_scores)
  if scores.shape[0] == 1:
    return jnp.zeros(scores.shape[1:], jnp.float32)
  # From one of them, so that members who agree have no variance at all.
  return jnp.var(scores - scores[:1], axis=0, ddof=ddof)


def aggregate(member_scores: jax.Array, *, kind: str = 'mean',
              uncertainty_coef: float = 0.5, member: int = 0,
              ddof: int = 0) -> jax.Array:
  """One score from many: eq. 3 (mean), 4 (minimum), 5 (mean - coef * var).

  Members should be on one scale first: the minimum follows the member with
  the lowest offset, and the variance grows with the square of the scale.

  Args:
    member_scores: float[E, ...], E >= 1.
    kind: 'mean', 'worst_case', 'uncertainty_weighted', or 'single'.
    uncertainty_coef: >= 0, per score unit; 0 means 0. (The paper's code turns
      0 into 1.) Read by 'uncertainty_weighted' only.
    member: which one 'single' returns, in [0, E).
    ddof: of the variance, 0 or 1.

  Returns:
    f32[...], without gradient.

  Raises:
    ValueError: if E is 0 or any other argument is out of range.
  """
  scores = _members(member_scores)
  if kind not in KINDS:
    raise ValueError(f'kind must be one of {KINDS}, got {kind!r}.')
  if not uncertainty_coef >= 0:
    raise ValueError(f'uncertainty_coef must be >= 0, got {uncertainty_coef}.')
  if member not in range(scores.shape[0]):
    raise ValueError(
        f'member must be in [0, {scores.shape[0]}), got {member}.')
  if ddof not in (0, 1):
    raise ValueError(f'ddof must be 0 or 1, got {ddof}.')
  if kind == 'mean':
    return scores.mean(axis=0)
  if kind == 'worst_case':
    return scores.min(axis=0)
  if kind == 'single':
    return scores[member]
  spread = variance(scores, ddof=ddof)
  if isinstance(scores, np.ndarray):  # on the host, without more programs
    spread = np.asarray(spread)
  return scores.mean(axis=0) - uncertainty_coef * spread
