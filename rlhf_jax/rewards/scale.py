"""The one standardisation of reward models' scores.

Reward models agree only up to a shift and a scale, and the minimum over
members that are not aligned follows the lowest (objectives.md 2.8, 3.1).
"""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import moments


def standardize(member_scores: jax.Array | np.ndarray,
                scale: Mapping[str, jax.Array | np.ndarray]
                ) -> jax.Array | np.ndarray:
  """Scores of each member in deviations from its mean.

  Args:
    member_scores: float[E, ...].
    scale: 'mean' and 'std', f32[E], of each member on held-out responses. Of
      a member whose deviation is 0 only the mean is taken off.

  Returns:
    f32[E, ...] of JAX arrays; f64[E, ...] of NumPy's.

  Raises:
    AssertionError: if `scale` is not of E members.
  """
  mean, std = scale['mean'], scale['std']
  chex.assert_shape([mean, std], member_scores.shape[:1])
  align = lambda x: x.reshape(-1, *[1] * (member_scores.ndim - 1))
  if isinstance(member_scores, np.ndarray):
    mean, std = (align(np.asarray(x, np.float64)) for x in (mean, std))
    return (member_scores - mean) / np.where(std == 0, 1, std)
  return moments.normalize(
      member_scores, align(jnp.asarray(mean)), align(jnp.asarray(std)))


def of_members(member_scores: np.ndarray) -> dict[str, np.ndarray]:
  """The scale of members, f[E] each, from their scores [E, ...]."""
  rows = member_scores.reshape(len(member_scores), -1)
  return {'mean': rows.mean(axis=1), 'std': rows.std(axis=1)}


def single(mean: float, std: float) -> dict[str, np.ndarray]:
  """The scale of one model, E = 1, from its mean and deviation."""
  return {'mean': np.array([mean]), 'std': np.array([std])}


def unit(mean: float, std: float) -> dict[str, np.ndarray]:
  """The scale that takes standardised scores back: x * std + mean, E = 1."""
  return single(-mean / std, 1 / std)
