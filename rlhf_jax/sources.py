"""Where batches come from: (step, state, frozen) -> Batch.

An offline source ignores the state; an online one samples with it. That is
the whole difference between the two kinds of algorithm.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

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


def online(
    prompts: np.ndarray,
    prompt_lengths: np.ndarray,
    sampler: Callable[..., types.Batch],
    annotators: Callable[
        [types.Batch, types.TrainState, types.Frozen], types.Batch],
    *,
    batch_size: int,
    seed: int,
) -> Source:
  """Samples responses with the current policy and annotates them.

  Args:
    prompts: i32[N, P], right-padded.
    prompt_lengths: i32[N].
    sampler: (params, prompts, prompt_lengths, key) -> Batch.
    annotators: (batch, state, frozen) -> Batch, usually `annotate.chain`.
    batch_size: prompts a rollout.
    seed: of the order of the prompts; the noise of the samples comes from
      `state.key`.
  """
  def source(step, state, frozen):
    at = order.indices(seed, step, batch_size, len(prompts))
    batch = sampler(state.params, prompts[at], prompt_lengths[at],
                    jax.random.split(state.key)[1])  # [0]: next step
    return annotators(batch, state, frozen)

  return source
