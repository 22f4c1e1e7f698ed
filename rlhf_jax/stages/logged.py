"""The logged responses that offline methods learn from, with their rewards.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2; objectives.md
9. They are the pairs that the reward models of the study learn from, or those
of a file. All offline methods of a seed read the same responses and rewards,
and validate on the same examples.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import log_rows
from rlhf_jax.pipeline import rewarding
from rlhf_jax.storage import files

NEEDS, READS = ('reference',), ('gold', 'pairs', 'proxies')


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        node: Mapping[str, Any], label_noise: float, pool: Mapping[str, Any]
        ) -> dict:
  """Scores the log; `logged.npz` then holds N examples of K responses.

  In a seeded order, the `num_validation` examples that no policy learns from
  last: tokens, mask [N, K, T]; group i32[N, K], an index into `groups` of the
  result, -1 where there is no response; example i64[N], where it was in the
  source; scores f32[N, K], the weighted sum of the components; raw_scores
  f32[N, K], the same sum before they are squashed; value_<component> f32[N,
  K]. The scores of a missing response are 0.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`.
    node: 'source', 'pairs' (of that stage, the one of higher gold score as
      'chosen' before the 'rejected' one) or 'corpus' (the log of the corpus);
      'num_validation' examples, with clean labels, of 'pairs' the first; and
      'components' of `rewards.nodes`.
    label_noise: exact share of the training pairs whose labels are flipped,
      those that `stages.proxies` flips if its `held_out` is
      `num_validation`.
    pool: of `programmatic.Functions`.

  Returns:
    Beside `source`, counts and `groups`, of the training examples alone:
    `flipped`; `agreement`, the share of two responses of an example of which
    the first has the higher score; `unfinished`, the share without EOS;
    `score_mean` and mean_<component>. `upper` is the largest score that there
    can be.

  Raises:
    ConfigError: an argument is out of range, or the corpus has no log.
    RewardError: a component gives no usable value, see `components`.
  """
  world = artifacts.World(context, data, seed, upstream)
  coder, num_validation = world.corpus.tokenizer, node['num_validation']
  log, at, flipped = log_rows.load(
      world, seed, node['source'], label_noise, num_validation)
  with rewarding.bind(world, node['components'], pool,
                      log=(log.tokens, log.mask)) as rewards:
    arrays = log_rows.score(rewards, log, coder)
    upper = rewards.upper
  arrays |= {'tokens': log.tokens, 'mask': log.mask, 'group': log.group,
             'example': np.arange(len(at))}
  arrays = {name: x[at] for name, x in arrays.items()}
  files.save_arrays(context.directory / 'logged.npz', **arrays)

  training = {k: x[:len(at) - num_validation] for k, x in arrays.items()}
  present = training['mask'].any(axis=-1)
  finished = coder.finished(training['tokens'], training['mask'])[present]
  mean = lambda name: float(training[name][present].mean())
  return {
      'source': node['source'], 'examples': len(at),
      'num_validation': num_validation,
      'responses': int(arrays['mask'].any(axis=-1).sum()),
      'groups': list(log.groups), 'flipped': flipped,
      'agreement': log_rows.agreement(training['scores'], present),
      'unfinished': float(1 - finished.mean()), 'upper': upper,
      'score_mean': mean('scores')} | {
          f'mean_{name}': mean(f'value_{name}')
          for name in node['components']}
