"""Importance ratios between two policies, and PPO's clipped surrogate.

Everywhere log_ratio = log pi - log pi_old of sampled tokens or responses, in
nats. Ratios and their KL estimates stop growing, and have no gradient, above
20 nats: a guard against overflow, not a part of any algorithm.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops import kl

ClipRatio = float | tuple[float, float] | None
LARGEST = kl.LARGEST  # nats of log-ratio


def ratio(log_ratio: jax.Array) -> jax.Array:
  """exp(log_ratio), the exponent limited to +-20 nats; f32, same shape."""
  log_ratio = log_ratio.astype(jnp.float32)
  return jnp.exp(jnp.clip(log_ratio, -LARGEST, LARGEST))


def approx_kl(log_ratio: jax.Array) -> jax.Array:
  """r - 1 - log r: k3 of KL(old || current) from samples of old.

  Args:
    log_ratio: float[...], in nats; it carries the gradient, r - 1.

  Returns:
    f32[...], in nats, >= 0; constant for log_ratio > 20.
  """
  return kl.estimate(jnp.zeros_like(log_ratio), log_ratio, kind='k3')


def interval(clip_ratio: ClipRatio) -> tuple[float, float]:
  """(1 - low, 1 + high), the lower bound first, or (0, inf) for None.

  Args:
    clip_ratio: half-width around 1, or a pair (low, high) of them. A low of 1
      or more never clips, because ratios are positive.

  Raises:
    ValueError: if a half-width is not positive.
  """
  if clip_ratio is None:
    return 0.0, float('inf')
  pair = clip_ratio if isinstance(clip_ratio, tuple | list) else (
      clip_ratio, clip_ratio)
  if len(pair) != 2 or not all(x > 0 for x in pair):
    raise ValueError(
        f'clip_ratio must be > 0, a pair (low, high) of such, or None, got '
        f'{clip_ratio}.')
  low, high = pair
  return 1 - low, 1 + high


def clipped_surrogate(
    log_ratio: jax.Array, advantages: jax.Array, clip_ratio: ClipRatio
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """PPO's objective, to *maximise*, elementwise: min(r A, clip(r) A).

  Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7. The minimum
  is taken after multiplying by A. (The RLHF notes print min(r, clip(r)) A,
  which reverses PPO wherever A < 0.)

  Args:
    log_ratio: float[...], in nats; it carries the gradient.
    advantages: f32[...], the shape of `log_ratio`, detached by the caller.
    clip_ratio: of `interval`; None does not clip.

  Returns:
    f32[...] and metrics of that shape: 'policy/clip_fraction' is 1 where the
    clipped term was smaller, 'policy/approx_kl' is that of `approx_kl`.

  Raises:
    ValueError: if `clip_ratio` is out of range.
    AssertionError: if the shapes differ.
  """
  low, high = interval(clip_ratio)
  chex.assert_equal_shape([log_ratio, advantages])
  rho = ratio(log_ratio)
  plain = rho * advantages
  clipped = jnp.clip(rho, low, high) * advantages
  return jnp.minimum(plain, clipped), {
      'policy/clip_fraction': (clipped < plain).astype(jnp.float32),
      'policy/approx_kl': approx_kl(log_ratio),
  }
