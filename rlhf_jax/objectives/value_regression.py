"""Regression of one number per response, by squared error.

How a gold reward model is fitted to known scores. The squared error is not
halved.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked


def value_regression_loss(values: jax.Array,
                          targets: jax.Array) -> types.LossOutput:
  """Squared error, (value - target)^2.

  Args:
    values: float[B, K], predictions.
    targets: float[B, K], detached.

  Returns:
    LossOutput with unit = sequence: every array is f32[B, K].

  Raises:
    AssertionError: if shapes or dtypes disagree.
  """
  chex.assert_rank(values, 2)
  chex.assert_equal_shape([values, targets])
  chex.assert_type([values, targets], [float, float])
  targets = jax.lax.stop_gradient(targets).astype(jnp.float32)
  error = values.astype(jnp.float32) - targets
  return types.LossOutput(
      loss=error**2,
      weight=jnp.ones_like(error),
      metrics={'regression/absolute_error': jnp.abs(error)},
  )


def objective(out, batch) -> types.LossOutput:
  """Regresses `out.scores` on `batch.targets`; empty responses weigh 0."""
  chex.assert_rank(batch.mask, 3)
  chex.assert_type(batch.mask, bool)
  valid = batch.mask.any(axis=-1)  # [B, K]
  # Padding may hold NaN, whose gradient a weight of 0 would not stop.
  scores, targets = masked.clean(
      valid, scores=out.scores, targets=batch.targets)
  loss = value_regression_loss(scores, targets)
  return loss.replace(weight=valid.astype(jnp.float32))
