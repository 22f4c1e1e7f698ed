"""Decoders that read the same tokens side by side, each with its cache.

What a sampler keeps of the policy, and of the mask policy that guides it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding


class Model(NamedTuple):
  """A decoder as a loop over tokens reads it."""

  params: types.Params  # gathered once, and not for each token
  layers: list[dict[str, Any]]  # of `transformer.unstack`


class State(NamedTuple):
  """What a decoder has read."""

  hidden: jax.Array  # [B, D], of the last token, not normalised
  cache: Any  # of `transformer.make_cache`; or without its first axis, `of_one`


def prepare(config: transformer.Config, params: types.Params) -> Model:
  """A decoder for the functions below, to be made outside of the loop."""
  params = sharding.gathered(transformer.frozen(config, params))
  return Model(params, transformer.unstack(config, params))


def of_one(states: Sequence[State]) -> list[State]:
  """States of one row on a CPU, whose caches have no axis of rows.

  As a loop should carry them: with that axis XLA writes each token twice, and
  copies every layer's keys and values four times a token (jaxlib 0.10). Other
  states come back as they are.
  """
  if len(states[0].hidden) > 1 or not meshes.on_one_cpu():
    return list(states)
  return [state._replace(cache=jax.tree.map(lambda x: x[0], state.cache))
          for state in states]


def prefill(config: transformer.Config, models: Sequence[Model],
            prompts: jax.Array, prompt_lengths: jax.Array, *, num_slots: int,
            num_samples: int = 1) -> list[State]:
  """Runs the prompts.

  Args:
    config: shape of every decoder.
    models: of `prepare`.
    prompts: i32[B, P], right-padded.
    prompt_lengths: i32[B], >= 1.
    num_slots: of the caches.
    num_samples: K, copies of each row.

  Returns:
    The state of each decoder, rows [B * K], each row and its cache on one part
    of the mesh in use, its heads over the axis 'tensor'.
  """
  width = prompts.shape[1]
  slots = jnp.arange(num_slots)[None]
  real = slots < prompt_lengths[:, None]  # [B, S]
  mask = (slots <= jnp.arange(width)[:, None])[None] & real[:, None]
  positions = jnp.broadcast_to(jnp.arange(width), prompts.shape)
  repeat = lambda x: jnp.repeat(x, num_samples, axis=0)

  def state(model):
    cache = transformer.make_cache(config, len(prompts), num_slots)
    hidden, cache = transformer.extend(
        config, model.params, prompts, positions, mask, cache, 0,
        layers=model.layers)
    last = jnp.take_along_axis(
        hidden, (prompt_lengths - 1)[:, None, None], axis=1)[:, 0]
    return State(sharding.keep_rows(repeat(last)), jax.tree.map(
        lambda x: sharding.keep_rows(repeat(x), 'tensor'), cache))

  return [state(model) for model in models]


def finish(config: transformer.Config, models: Sequence[Model],
           states: Sequence[State]) -> list[jax.Array]:
  """The normalised hidden states [B, D] of the last token."""
  return [transformer.finish(config, model.params, state.hidden)
          for model, state in zip(models, states, strict=True)]


def extend(config: transformer.Config, models: Sequence[Model],
           states: Sequence[State], token: jax.Array, positions: jax.Array,
           mask: jax.Array, slot: jax.Array, key_positions: jax.Array
           ) -> list[State]:
  """The states after one more token.

  Args:
    config: shape of every decoder.
    models: of `prepare`.
    states: of `prefill`, or of `of_one`.
    token: i32[B].
    positions: i32[B], of the token.
    mask: bool[B, S], of the slots to be read.
    slot: of the token, i32[], or i32[B].
    key_positions: i32[B, S], of `transformer.extend`.
  """
  def read(model, state):
    alone = state.cache[0][0].ndim == 3
    cache = state.cache
    if alone:
      cache = jax.tree.map(lambda x: x[None], cache)
    hidden, cache = transformer.extend(
        config, model.params, token[:, None], positions[:, None],
        mask[:, None], cache, slot, layers=model.layers,
        key_positions=key_positions)
    if alone:
      cache = jax.tree.map(lambda x: x[0], cache)
    return State(hidden[:, 0], cache)

  return list(map(read, models, states))
