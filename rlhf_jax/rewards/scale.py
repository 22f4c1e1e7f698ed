"""The one standardisation of reward models' scores.

Reward models agree only up to a shift and a scale, and the minimum over
members that are not aligned follows the lowest (objectives.md 2.8, 3.1).
"""

from collections.abc import Mapping

import chex
import jax
import numpy as np

from rlhf_jax.ops import moments


def standardize(member_scores: jax.Array,
                scale: Mapping[str, jax.Array]) -> jax.Array:
  """Scores of each member in deviations from its mean, f32[E, ...].

  The same program in training and in evaluation, under jit and on the host.

  Args:
    member_scores: float[E, ...].
    scale: 'mean' and 'std', f32[E], of each member on held-out responses. Of
      a member whose deviation is 0 only the mean is taken off.

  Raises:
    AssertionError: if `scale` is not of E members.
  """
  mean, std = scale['mean'], scale['std']
  chex.assert_shape([mean, std], member_scores.shape[:1])
  align = lambda x: x.reshape(-1, *[1] * (member_scores.ndim - 1))
  return moments.normalize(member_scores, align(mean), align(std))


def of_members(member_scores: np.ndarray) -> dict[str, np.ndarray]:
  """The scale of members, f[E] each, from their scores [E, ...]."""
  rows = member_scores.reshape(len(member_scores), -1)
  # From one of them: equal scores have no deviation, however large they are.
  distance = rows - rows[:, :1]
  return {'mean': rows[:, 0] + distance.mean(axis=1),
          'std': distance.std(axis=1)}


def single(mean: float, std: float) -> dict[str, np.ndarray]:
  """The scale of one model, E = 1, from its mean and deviation."""
  return {'mean': np.float32([mean]), 'std': np.float32([std])}


def unit(mean: float, std: float) -> dict[str, np.ndarray]:
  """The scale that takes standardised scores back: x * std + mean, E = 1."""
  return single(-mean / std, 1 / std)
