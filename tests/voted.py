"""A log whose votes count tokens, so that a gold model can learn them."""

import numpy as np

from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import reviews

P, T, K = 3, 8, 2  # tokens of a prompt, of a row; responses to each
CODER = reviews.Reviews().tokenizer


def log(count: int, seed: int = 0) -> corpus_lib.Log:
  """Votes are 100 for each token 7 and 200 for each 8, less 50.

  One response in five is missing, and one in five has no votes.
  """
  rng = np.random.default_rng(seed)
  tokens = rng.integers(5, 9, size=(count, K, T)).astype(np.int32)
  tokens[:, :, :P] = np.arange(count)[:, None, None] % 40 + 10
  length = rng.integers(2, T - P + 1, size=(count, K, 1))
  kind = rng.integers(5, size=(count, K))
  kind[:4] = [[2, 3], [2, 0], [1, 3], [2, 1]]
  mask = (np.arange(T) >= P) & (np.arange(T) < P + length)
  mask &= (kind != 0)[..., None]
  votes = (100. * (tokens == 7) + 200. * (tokens == 8)) * mask
  votes = votes.sum(axis=-1) - 50
  tokens = np.where(mask | (np.arange(T) < P), tokens, 0)
  return corpus_lib.Log(
      tokens=tokens, mask=mask, group=np.where(kind == 0, -1, 0),
      groups=('all',), scores={
          'votes': np.where(kind < 2, np.nan, votes).astype(np.float32),
          'constant': np.where(kind < 2, np.nan, .1).astype(np.float32)})


def corpus(rows: corpus_lib.Log, target: str | None = 'votes'
           ) -> corpus_lib.Corpus:
  """The corpus of a log, whose first responses are demonstrations."""
  prompts = corpus_lib.Prompts(
      rows.tokens[:, 0, :P], np.full(len(rows.tokens), P, np.int32))
  first = types.Batch(tokens=rows.tokens[:, :1], mask=rows.mask[:, :1])
  return corpus_lib.Corpus(
      tokenizer=CODER, demonstrations=first, pair_prompts=prompts,
      eval_prompts=prompts, max_response_length=T - P,
      preferences=types.Batch(tokens=rows.tokens, mask=rows.mask),
      log=rows, log_target=target)
