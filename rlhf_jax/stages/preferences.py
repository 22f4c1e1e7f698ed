"""Preference pairs that people, or a judge, have made: those of the data.

In the shape of `stages.pairs`, so that reward models learn from either.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax.data import load as load_lib
from rlhf_jax.pipeline import labelled_pairs
from rlhf_jax.storage import files

NEEDS, READS = (), ()


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any]) -> dict:
  """Writes `pairs.npz`: tokens, mask [N, 2, T], the chosen response first.

  `gold_scores` f32[N, 2] are 1 and 0, which orders them. Pairs of one prompt
  are neighbours, in a seeded order of the prompts, so that those held out from
  the front share at most one prompt with the others.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: empty; see `artifacts`.

  Raises:
    ConfigError: the corpus has no pairs.
  """
  del upstream
  corpus = load_lib.load(data, seed)
  rows = corpus.preferences
  if rows is None:
    raise errors.ConfigError(
        "config.pairs is 'preferences', and the data has no chosen and "
        'rejected responses; give pairs')
  for line in corpus.introduction():
    context.show(line)
  at = labelled_pairs.by_prompt(
      rows.tokens[:, 0], rows.mask[:, 0], streams.number(seed, 'preferences'))
  tokens, mask = rows.tokens[at], rows.mask[at]
  files.save_arrays(
      context.directory / 'pairs.npz', tokens=tokens, mask=mask,
      gold_scores=np.tile(np.float32([1, 0]), (len(at), 1)))
  return {'pairs': len(at), **corpus.summary,
          'response_tokens': float(mask.sum(axis=-1).mean())}
