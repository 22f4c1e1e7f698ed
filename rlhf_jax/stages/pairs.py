"""Preference pairs: two responses of a policy to each prompt, gold scores.

The labels are not made here: every ensemble of a study flips its own share of
them (`stages.proxies`), and the texts and their gold scores are shared.
"""

from collections.abc import Mapping
from typing import Any

from rlhf_jax import streams
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.storage import files

NEEDS, READS = ('reference', 'gold'), ('policy',)


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        force_eos: bool, sampler: Mapping[str, Any], first: int = 0,
        num_pairs: int | None = None) -> dict:
  """Samples and scores; `pairs.npz` then holds tokens, mask, gold_scores.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`: `policy` answers.
    force_eos: see `sampling.sample`.
    sampler: of `rows.Draw`.
    first: the pair prompt that is answered first; its number is part of the
      name of the samples' stream.
    num_pairs: prompts answered from there on; None: all.
  """
  world = artifacts.World(context, data, seed, upstream)
  prompts = world.corpus.pair_prompts
  at = slice(first, None if num_pairs is None else first + num_pairs)
  tokens, mask = rows_lib.sample_rows(
      world, world.policy,
      corpus_lib.Prompts(prompts.tokens[at], prompts.lengths[at]),
      streams.key(seed, 'pairs', first),
      rows_lib.Draw(num_samples=2, sampler=sampler, force_eos=force_eos))
  scores = world.gold.scores(tokens, mask, poll=lambda: context.stop.check(
      f'the start of {context.directory.name}'))[0]
  files.save_arrays(context.directory / 'pairs.npz', tokens=tokens, mask=mask,
                    gold_scores=scores)
  finished = world.corpus.tokenizer.finished(tokens, mask)
  return {'pairs': len(tokens), 'unfinished': float(1 - finished.mean()),
          'gold_mean': float(scores.mean()), 'gold_std': float(scores.std()),
          'response_tokens': float(mask.sum(axis=-1).mean())}
