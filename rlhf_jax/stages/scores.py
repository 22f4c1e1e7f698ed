"""What every member of an ensemble thinks of every sample, once.

Best-of-n by any aggregate of the members needs no more than this.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.parallel import processes
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

NEEDS, READS = ('samples', 'proxies'), ('features',)


def run(context, *, upstream: Mapping[str, Any]) -> dict:
  """Scores the N responses to each of B prompts, shard by shard.

  `scores.npz` then holds members f32[E, B, N], as they are; gold f32[B, N];
  where there is a rule, rule [B, N]; unfinished [B, N], 1 of one that its
  budget has cut off; and length f32[B, N], tokens with the EOS.

  Args:
    context: of the stage.
    upstream: stages by role, see `artifacts`; `features` of the samples, where
      the reward models are heads on frozen ones.
  """
  proxies = context.directory_of(upstream['proxies'])
  ensemble = artifacts.restore_rewards(
      proxies, with_base='features' not in upstream)
  parts = []
  for path in sorted(
      context.directory_of(upstream['samples']).glob('shard_*.npz')):
    context.stop.check(f'the start of {context.directory.name}')
    arrays = files.load_arrays(path)
    tokens, mask = arrays.pop('tokens').astype(np.int32), arrays.pop('mask')
    arrays['gold'] = arrays.pop('gold_scores')
    if 'features' in upstream:
      states = files.load_arrays(
          context.directory_of(upstream['features']) / path.name)['features']
      members = reward_models.score_features(ensemble.params, states)
    else:
      members = ensemble.scores(tokens, mask, standardize=False)
    arrays['members'] = np.moveaxis(processes.whole(members), 0, 1)
    arrays['length'] = mask.sum(axis=-1).astype(np.float32)
    parts.append(arrays)
  scores = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  scores['members'] = np.moveaxis(scores['members'], 1, 0)
  files.save_arrays(context.directory / 'scores.npz', **scores)
  return {'responses': scores['gold'].size, 'members': ensemble.num_members}
