"""AI feedback: pairs of samples, labelled by a judge and not by a gold model.

The RL half of constitutional AI (Bai et al. 2022,
https://arxiv.org/abs/2212.08073; named in the RLHF notes): a language model is
asked which of two responses keeps to a principle better. In the shape of
`stages.pairs`, so that reward models, and policies by way of a log, learn from
either.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax.evaluation import judging
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.reports import comparisons
from rlhf_jax.storage import files

NEEDS, READS = ('reference',), ('policy',)


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        force_eos: bool, sampler: Mapping[str, Any], judge: Mapping[str, Any]
        ) -> dict:
  """Samples and asks; `pairs.npz` then holds tokens, mask, gold_scores.

  Both orders are asked about; `gold_scores` f32[N, 2] are the share of the
  answers for either response, no preference counting half. Pairs of which a
  judge thinks as much of both, or says the first in both orders, are left out:
  they have no label. Answers are kept in answers.jsonl, and an interrupted
  stage goes on with them.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`: `policy` answers.
    force_eos: see `sampling.sample`.
    sampler: of `rows.Draw`.
    judge: of `comparisons.make_judge`; 'instructions' of 'http' hold the
      principle.

  Raises:
    ConfigError: the endpoint or the function refuses.
    RewardError: it does not answer, or decides on fewer than two pairs.
  """
  world = artifacts.World(context, data, seed, upstream)
  tokens, mask = rows_lib.sample_rows(
      world, world.policy, world.corpus.pair_prompts,
      streams.key(seed, 'feedback'),
      rows_lib.Draw(num_samples=2, sampler=sampler, force_eos=force_eos))
  prompts, responses = texts_lib.decode(world.corpus.tokenizer, tokens, mask)
  choices = comparisons.choices(context, comparisons.Pairs(
      {'stage': context.directory.name, 'run': 'feedback', 'seed': seed},
      prompts[::2], responses[::2], responses[1::2], None, {}), judge,
      comparisons.Answers(context.directory / 'answers.jsonl', judge))
  first = judging.preference(*choices)
  clear = first != .5
  if clear.sum() < 2:
    raise errors.RewardError(
        f'the judge decides on {clear.sum()} of {len(clear)} pairs of samples; '
        'give it other instructions, or samples that differ more')
  files.save_arrays(
      context.directory / 'pairs.npz', tokens=tokens[clear], mask=mask[clear],
      gold_scores=np.stack([first, 1 - first], axis=1)[clear].astype(
          np.float32))
  return {'pairs': int(clear.sum()), 'undecided': float(1 - clear.mean()),
          'first_preferred': float((first[clear] > .5).mean()),
          'response_tokens': float(mask.sum(axis=-1).mean())}
