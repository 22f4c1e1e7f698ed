"""Responses of a policy to many prompts, for the stages that sample."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import artifacts

CHUNK = 256  # prompts sampled at a time


@dataclasses.dataclass(frozen=True)
class Draw:
  """How responses are drawn: `num_samples` to each prompt."""

  num_samples: int
  # temperature, top_k, top_p, min_new_tokens of `sampling.sample`
  sampler: Mapping[str, Any]
  force_eos: bool = False
  chunk_size: int = CHUNK


def sample_rows(world: artifacts.World, policy: artifacts.Policy,
                prompts: corpus_lib.Prompts, key: jax.Array, draw: Draw, *,
                num_prompts: int | None = None, first_row: int = 0
                ) -> tuple[np.ndarray, np.ndarray]:
  """Samples responses to prompts, and around again, over all devices.

  Args:
    world: of the stage; asked before every chunk whether to stop.
    policy: that answers.
    prompts: N of them.
    key: of the samples; a prompt's are a function of it and the place.
    draw: how.
    num_prompts: B, which may exceed N; None: N.
    first_row: place of the first prompt in the whole data set.

  Returns:
    tokens i32[B, K, T] and mask bool[B, K, T].
  """
  context, coder = world.context, world.corpus.tokenizer
  rows = np.arange(num_prompts or len(prompts.tokens))
  at, rows = rows % len(prompts.tokens), rows + first_row
  params = sharding.shard_params(policy.params)

  def sample(tokens, lengths, row_ids):
    batch = sampling.sample(
        policy.config, params, tokens, lengths, key,
        num_samples=draw.num_samples, row_ids=row_ids,
        max_new_tokens=world.corpus.max_response_length,
        eos_id=coder.eos_ids, pad_id=coder.pad_id, num_tokens=coder.vocab_size,
        stops=coder.stops, force_eos=draw.force_eos, **draw.sampler)
    return batch.tokens, batch.mask

  return sharding.map_rows(
      sample, prompts.tokens[at], prompts.lengths[at], rows,
      chunk_size=draw.chunk_size, poll=lambda: context.stop.check(
          f'the start of {context.directory.name}'))
