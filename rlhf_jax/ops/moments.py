"""Mean and deviation of a stream of scores, and scores standardised by them.

Chan, Golub and LeVeque 1979, the parallel form of Welford's update: pieces of
any size give the moments of the whole, and nothing is squared before the mean
is taken off, which in float32 would lose the variance of scores around 1e4.
Reward models agree only up to a shift and a scale, so the members of an
ensemble are standardised on held-out samples before they are combined; trlX
divides rewards by a running deviation without centring them.
"""

from typing import Any

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import masked


@flax.struct.dataclass
class Moments:
  """Of the values so far; `jax.vmap` of `update` keeps one for each member."""

  count: jax.Array  # f32[], exact up to 2^24 values
  mean: jax.Array  # f32[], with the resolution of float32
  sum_squares: jax.Array  # f32[], of the deviations from the mean


def init() -> Moments:
  """The moments of no values."""
  return Moments(*jnp.zeros((3,), jnp.float32))


def update(moments: Moments, x: jax.Array,
           mask: jax.Array | None = None) -> Moments:
  """Adds values to the moments.

  Args:
    moments: of the values so far.
    x: real[...].
    mask: bool, the shape of `x`, true where a value counts; None: all do.

  Returns:
    The moments of all of them, without gradient.

  Raises:
    AssertionError: if the shapes differ or `mask` is not bool.
  """
  if mask is None:
    mask = jnp.ones(x.shape, bool)
  x = jax.lax.stop_gradient(x.astype(jnp.float32))
  added = jnp.sum(mask, dtype=jnp.float32)
  count = moments.count + added
  # Distances to the mean so far: small numbers keep their digits.
  center = jnp.where(
      moments.count > 0, moments.mean, masked.first(x, mask))
  distance = x - center
  shift = masked.masked_mean(distance, mask)
  share = added / jnp.maximum(count, 1)
  within = masked.masked_sum((distance - shift)**2, mask)
  between = shift**2 * moments.count * share
  return Moments(count, center + shift * share,
                 moments.sum_squares + within + between)


def std(moments: Moments, ddof: int = 1) -> jax.Array:
  """Standard deviation f32[]; 0 for one value or none, under either `ddof`.

  Args:
    moments: of `update`.
    ddof: 1 divides by the count less one, 0 by the count.

  Raises:
    ValueError: if `ddof` is neither 0 nor 1.
  """
  if ddof not in (0, 1):
    raise ValueError(f'ddof must be 0 or 1, got {ddof}.')
  return jnp.sqrt(moments.sum_squares / jnp.maximum(moments.count - ddof, 1))


def normalize(x: jax.Array, mean: jax.Array | float,
              std: jax.Array | float) -> jax.Array:
  """(x - mean) / std, in units of the deviation.

  Args:
    x: real[...], scores.
    mean: a number, or an array of the rank of `x`, as [E, 1] for [E, N]; 0
      divides without centring.
    std: likewise; where it is 0 the values are only centred.

  Returns:
    f32, the shape of `x`.

  Raises:
    ValueError: if a deviation is negative; not checked under jit.
    AssertionError: if the rank of `mean` or `std` is another.
  """
  # On the host by NumPy: the same numbers, and no programs to compile.
  host = not any(isinstance(y, jax.Array) for y in (x, mean, std))
  xp: Any = np if host else jnp
  mean, std = (xp.asarray(y, jnp.float32) for y in (mean, std))
  if not isinstance(std, jax.core.Tracer) and np.any(np.less(std, 0)):
    raise ValueError(f'std must be >= 0, got {np.min(np.asarray(std))}.')
  chex.assert_rank([mean, std], {0, x.ndim})
  return (x.astype(jnp.float32) - mean) / xp.where(
      std == 0, xp.float32(1), std)
