"""Slowly moving targets, and sampling by Q values, as ILQL has them.

Snell et al. 2023, https://arxiv.org/abs/2206.11871; objectives.md 8.6.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from rlhf_jax import types


def polyak(targets: types.Params, online: types.Params, *,
           rate: float) -> types.Params:
  """rate * online + (1 - rate) * targets.

  Args:
    targets: pytree of float arrays. In bfloat16 a small rate moves nothing.
    online: pytree of the same structure, shapes and dtypes.
    rate: weight of the *online* net, in (0, 1]; 1 copies it.

  Returns:
    The new targets.

  Raises:
    ValueError: if `rate` is out of range.
    AssertionError: if the trees disagree.
  """
  if not 0 < rate <= 1:
    raise ValueError(f'rate must be in (0, 1], got {rate}.')
  chex.assert_trees_all_equal_shapes_and_dtypes(targets, online)
  return optax.incremental_update(online, targets, rate)


def polyak_every(targets: types.Params, online: types.Params,
                 step: jax.Array | int, *, rate: float,
                 every: int) -> types.Params:
  """`polyak` on each step that is a multiple of `every`, else `targets`.

  Args:
    targets: see `polyak`.
    online: see `polyak`; after the update.
    step: i32[], optimizer steps taken, this one included, so 1 at first.
    rate: see `polyak`.
    every: steps between two moves, >= 1.

  Returns:
    The new targets.

  Raises:
    ValueError: if `rate` or `every` is out of range.
    AssertionError: if the trees disagree.
  """
  if every < 1:
    raise ValueError(f'every must be >= 1, got {every}.')
  moved = polyak(targets, online, rate=rate)
  return optax.periodic_update(moved, targets, step, every)


def shift_logits(logits: jax.Array, target_q_values: tuple[jax.Array, ...],
                 values: jax.Array, *, beta: float) -> jax.Array:
  """log_softmax(logits) + beta * (min_i Q'_i - V), to sample from.

  It comes before top-k and the temperature, as in trlX.

  Args:
    logits: float[..., V] of the language model; -inf forbids a token.
    target_q_values: one float[..., V] per Q head, under its targets.
    values: float[...], of the state.
    beta: nats per unit of value, >= 0; 0 is the language model.

  Returns:
    f32[..., V], not normalised.

  Raises:
    ValueError: if `beta` is negative, or there is no Q head.
    AssertionError: if shapes or dtypes disagree.
  """
  if not beta >= 0:
    raise ValueError(f'beta must be >= 0, got {beta}.')
  if not len(target_q_values):
    raise ValueError('target_q_values must hold at least one head, got none.')
  chex.assert_equal_shape([logits, *target_q_values])
  chex.assert_equal_shape([logits[..., 0], values])
  arrays = [logits, *target_q_values, values]
  chex.assert_type(arrays, [float] * len(arrays))
  smallest = jnp.min(jnp.stack(target_q_values), axis=0).astype(jnp.float32)
  advantage = smallest - values.astype(jnp.float32)[..., None]
  return jax.nn.log_softmax(logits.astype(jnp.float32)) + beta * advantage
