"""Reductions that ignore padding.

Padding may hold anything, NaN included. It is replaced *before* the
arithmetic, because 0 * NaN would come back through the gradient.
Accumulation and results are at least float32.
"""

import chex
import jax
import jax.numpy as jnp


def _clean(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns `x` in at least float32, 0 where `mask` is false."""
  chex.assert_equal_shape([x, mask])
  chex.assert_type(mask, bool)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  return jnp.where(mask, x, 0).astype(dtype)


def clean(mask: jax.Array, **arrays: jax.Array | None) -> list[jax.Array]:
  """Each named array in float32, 0 where `mask` is false.

  Args:
    mask: bool[...].
    **arrays: float, the shape of `mask`.

  Returns:
    f32 arrays, in the order given.

  Raises:
    ValueError: naming an array that is None.
    AssertionError: if shapes or dtypes disagree.
  """
  chex.assert_type(mask, bool, custom_message='The mask is to be bool.')
  present: list[jax.Array] = []
  for name, x in arrays.items():
    if x is None:
      raise ValueError(f'{name} is None: no model or annotator filled it.')
    chex.assert_equal_shape(
        [x, mask], custom_message=f'{name} is to have the shape of its mask.')
    chex.assert_type(x, float, custom_message=f'{name} is to be floating.')
    present.append(x)
  return [jnp.where(mask, x, 0).astype(jnp.float32) for x in present]


def masked_sum(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
  """Sum of `x` where `mask` is true; 0 where nothing is.

  Args:
    x: array of any shape and real dtype.
    mask: bool, the shape of `x`.
    axis: int, tuple of ints, or None for all axes.

  Returns:
    f32, the shape of `x` without `axis`.

  Raises:
    AssertionError: if the shapes differ or `mask` is not bool.
  """
  return jnp.sum(_clean(x, mask), axis=axis)


def masked_mean(x: jax.Array, mask: jax.Array, axis=None) -> jax.Array:
  """Mean of `x` where `mask` is true; 0, with zero gradient, where nothing is.

  Arguments, result and errors are those of `masked_sum`.
  """
  count = jnp.sum(mask, axis=axis)
  return masked_sum(x, mask, axis) / jnp.maximum(count, 1)


def whiten(x: jax.Array, mask: jax.Array, *, shift_mean: bool = True,
           ddof: int = 0) -> jax.Array:
  """Scales the masked entries, all axes together, to unit variance.

  objectives.md 6.2; epsilon is 1e-8, added to the variance. It is a statistic
  over the batch, so it belongs in an annotator, never in a loss.

  Args:
    x: array of any shape and real dtype.
    mask: bool, the shape of `x`.
    shift_mean: false keeps the mean (lm-human and TRL whiten rewards so).
    ddof: 0 divides by the count, 1 by the count less one.

  Returns:
    f32, the shape of `x`, 0 where `mask` is false. A single entry has no
    variance under either `ddof` and whitens to 0 (or to itself, unshifted).

  Raises:
    ValueError: if `ddof` is neither 0 nor 1.
    AssertionError: if the shapes differ or `mask` is not bool.
  """
  if ddof not in (0, 1):
    raise ValueError(f'ddof must be 0 or 1, got {ddof}.')
  x = _clean(x, mask)
  origin = first(x, mask)  # values that are all equal have no variance at all
  distance = x - origin
  shift = masked_mean(distance, mask)
  mean, centered = origin + shift, distance - shift
  variance = masked_sum(centered**2, mask) / jnp.maximum(mask.sum() - ddof, 1)
  scaled = centered * jax.lax.rsqrt(variance + 1e-8)
  return jnp.where(mask, scaled if shift_mean else scaled + mean, 0)


def first(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Value f32[] of `x` at the first true position; 0 where there is none.

  Distances to it are exact where all values are equal, which distances to
  their mean are not: a sum of many rounds.

  Args:
    x: real[...].
    mask: bool, the shape of `x`.
  """
  return _clean(x, mask).ravel()[jnp.argmax(mask)]


def is_last(mask: jax.Array) -> jax.Array:
  """bool[..., T], true at the last true position of each row of `mask`."""
  remaining = jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1]
  return mask & (remaining == 1)


def last(x: jax.Array, mask: jax.Array) -> jax.Array:
  """Value of `x` at the last true position of each row; 0 where there is none.

  Args:
    x: real[..., T].
    mask: bool[..., T].

  Returns:
    f32[...].

  Raises:
    AssertionError: if the shapes differ or `mask` is not bool.
  """
  return masked_sum(x, is_last(mask), axis=-1)
