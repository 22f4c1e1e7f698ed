"""Sampling probabilities of logged data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np


def priorities(advantages: jax.Array) -> jax.Array:
  """Probability of each row, max(A, 0) over its sum.

  Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2.2;
  objectives.md 9.9. Rows are drawn with replacement, and one without positive
  advantage never. (A loss that weights by A too has an effective weight of
  A^2, as the paper's.) Scores in place of advantages give R-LOL's priorities.

  Args:
    advantages: float[N], of the whole data set, in score units.

  Returns:
    f32[N], which sums to 1; 0 throughout if nothing is positive under jit.

  Raises:
    ValueError: if nothing is positive, so that there are no data, or something
      is not finite; not checked under jit.
    AssertionError: if `advantages` is not a vector of floats.
  """
  chex.assert_rank(advantages, 1)
  chex.assert_type(advantages, float)
  if not isinstance(advantages, jax.core.Tracer):
    if not np.all(np.isfinite(np.asarray(advantages, np.float32))):
      raise ValueError(f'advantages must be finite, got {advantages}.')
    if not np.any(np.asarray(advantages) > 0):
      raise ValueError(
          f'advantages: none of {advantages.size} is positive, so no data.')
  kept = jax.lax.stop_gradient(
      jnp.maximum(jnp.asarray(advantages, jnp.float32), 0))
  total = kept.sum()
  return jnp.where(total > 0, kept / jnp.where(total > 0, total, 1), 0)
