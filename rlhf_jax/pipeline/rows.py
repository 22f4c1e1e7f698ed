"""Responses of a policy to many prompts, and whether they end."""

from typing import Any

import jax
import numpy as np

from rlhf_jax import sampling
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.models import transformer


def sample_rows(context: Any, corpus: corpus_lib.Corpus,
                config: transformer.Config, params: types.Params,
                key: jax.Array, *, num_prompts: int, num_samples: int,
                chunk_size: int, **sampler) -> tuple[np.ndarray, np.ndarray]:
  """Samples responses to the first pair prompts, and around again.

  Args:
    context: of the stage; asked before every chunk whether to stop.
    corpus: its `pair_prompts` are answered.
    config: shape of the policy.
    params: of the policy.
    key: of the samples.
    num_prompts: B.
    num_samples: K.
    chunk_size: prompts sampled at a time.
    **sampler: of `sampling.sample`.

  Returns:
    tokens i32[B, K, T] and mask bool[B, K, T].
  """
  prompts, parts = corpus.pair_prompts, []
  for start in range(0, num_prompts, chunk_size):
    context.stop.check(f'the start of {context.directory.name}')
    # The last chunk is filled up, so that it runs the same program.
    rows = np.arange(start, start + chunk_size)
    at = rows % len(prompts.tokens)
    batch = sampling.sample(
        config, params, prompts.tokens[at], prompts.lengths[at], key,
        num_samples=num_samples, max_new_tokens=corpus.max_response_length,
        eos_id=corpus.tokenizer.eos_id, pad_id=corpus.tokenizer.pad_id,
        num_tokens=corpus.tokenizer.vocab_size,
        row_ids=rows, **sampler)
    parts.append((np.asarray(batch.tokens), np.asarray(batch.mask)))
  tokens, mask = (np.concatenate(x)[:num_prompts] for x in zip(*parts))
  return tokens, mask


def finished(tokens: np.ndarray, mask: np.ndarray, eos_id: int) -> np.ndarray:
  """bool[...]: whether each response [..., T] ends in an EOS."""
  return (mask & (tokens == eos_id)).any(axis=-1)
