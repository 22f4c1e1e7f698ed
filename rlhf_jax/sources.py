"""Where batches come from: (step, state, frozen) -> Batch or Rollout.

An offline source ignores the state and gives a batch; an online one samples
with the state and gives a rollout, a batch with what was seen in making it.
That is the whole difference between the two kinds of algorithm.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import running
from rlhf_jax import sharding
from rlhf_jax import types
from rlhf_jax.data import order

Source = Callable[[int, types.TrainState, types.Frozen], types.Batch]


def offline(dataset: types.Batch, *, batch_size: int, seed: int) -> Source:
  """Batches of a data set in an order that is a function of seed and step.

  Args:
    dataset: numpy arrays, rows on the first axis; fields that are None stay
      None.
    batch_size: prompts a step.
    seed: of the order; one permutation each epoch.
  """
  rows = len(dataset.tokens)

  def source(step, state, frozen):
    del state, frozen
    at = order.indices(seed, step, batch_size, rows)
    return jax.tree.map(lambda x: x[at], dataset)

  return source


def offline_members(dataset: types.Batch, *, batch_size: int,
                    seeds: Sequence[int]) -> Source:
  """The same data in an order of its own for each member: leaves [E, B, ...].

  Coste et al. 2024, section 4.3: members share the data and differ in the
  initialisation of the head and in the order of the data.
  """
  members = [offline(dataset, batch_size=batch_size, seed=s) for s in seeds]

  def source(step, state, frozen):
    parts = [member(step, state, frozen) for member in members]
    return jax.tree.map(lambda *x: np.stack(x), *parts)

  return source


def rollout(annotators: Callable[..., Any]
            ) -> Callable[..., types.Rollout]:
  """(batch, state, frozen) -> Rollout, ready for jit, from `annotate.chain`.

  Its metrics are over all responses that were sampled, those too whose mask
  an annotator clears.
  """

  def annotated(batch, state, frozen):
    found, state = annotators(batch, state, frozen)
    return types.Rollout(
        batch=found, statistics=state.statistics or {},
        metrics=running.metrics(found.replace(mask=batch.mask)))

  return annotated


def online(
    prompts: np.ndarray,
    prompt_lengths: np.ndarray,
    sampler: Callable[..., types.Batch],
    annotated: Callable[..., types.Rollout],
    *,
    batch_size: int,
    seed: int,
    score: Callable[[int, types.Batch], np.ndarray] | None = None,
    chunk_size: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[[int, types.TrainState, types.Frozen], types.Rollout]:
  """Samples responses with the current policy and annotates them.

  The order of the prompts is a function of seed and step, the noise of the
  samples one of `state.key` and the place of a prompt in the rollout. So
  neither chunks nor devices change what is sampled.

  Args:
    prompts: i32[N, P], right-padded.
    prompt_lengths: i32[N].
    sampler: (params, prompts, prompt_lengths, key, row_ids) -> Batch; params
      are those of the state and, where there is one, of `frozen.base`.
    annotated: of `rollout`, usually jitted.
    batch_size: prompts a rollout.
    seed: of the order of the prompts.
    score: programmatic rewards, (step, batch) -> f32[B, K] on the host, which
      come into `batch.scores` before the annotators.
    chunk_size: prompts sampled at a time, a divisor of `batch_size`; None:
      all at once. Memory falls.
    mesh: over whose 'data' axis the prompts are split.

  Raises:
    ValueError: if `chunk_size` does not divide `batch_size`.
  """
  chunk_size = chunk_size or batch_size
  if chunk_size < 1 or batch_size % chunk_size:
    raise ValueError(f'chunk_size must divide batch_size {batch_size}, '
                     f'got {chunk_size}.')

  def source(step, state, frozen):
    at = order.indices(seed, step, batch_size, len(prompts))
    params = {**(frozen.base or {}), **state.params}
    key = jax.random.split(state.key)[1]  # [0]: next step
    parts = []
    for start in range(0, batch_size, chunk_size):
      rows = np.arange(start, start + chunk_size, dtype=np.int32)
      given = prompts[at[rows]], prompt_lengths[at[rows]], rows
      if mesh is not None:
        given = sharding.shard_batch(given, mesh)
      parts.append(sampler(params, *given[:2], key, given[2]))
    batch = parts[0] if len(parts) == 1 else jax.tree.map(
        lambda *x: jnp.concatenate(x), *parts)
    if score is not None:
      batch = batch.replace(scores=jnp.asarray(score(step, batch)))
    return annotated(batch, state, frozen)

  return source
