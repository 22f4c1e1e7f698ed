"""What a trunk that nobody trains says of responses, once for all its heads.

Reward models that are heads on frozen features are trained, and score, in no
time; what takes it is reading the responses. Conditions of one kind of
responses share that.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rlhf_jax.parallel import processes
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

NEEDS, READS = ('reference',), ('pairs', 'samples')


def run(context, *, upstream: Mapping[str, Any], model: Mapping[str, Any]
        ) -> dict:
  """Reads pairs, or samples shard by shard, and goes on where it was left.

  Of each of their files with tokens [..., T] one of the same name then holds
  `features` f32[..., D], see `rewards.models.features`.

  Args:
    context: of the stage.
    upstream: stages by role, see `artifacts`: either `pairs` or `samples`.
    model: of `models.pretrained`, of which nothing is trained.
  """
  role, pattern = (('pairs', 'pairs.npz') if 'pairs' in upstream else
                   ('samples', 'shard_*.npz'))
  coder = artifacts.read_tokenizer(context.directory_of(upstream['reference']))
  config, _, base = reward_parts.start(
      model, coder.vocab_size, jax.random.key(0))
  paths = sorted(context.directory_of(upstream[role]).glob(pattern))
  count = 0
  with context.progress(len(paths), 0, 'features') as bar:
    for path in paths:
      arrays = files.load_arrays(path)
      tokens, mask = arrays['tokens'].astype(np.int32), arrays['mask']
      count += mask[..., 0].size
      target = context.directory / path.name
      if not processes.from_owner(target.exists):
        files.save_arrays(
            target, owner=context.key, features=reward_models.read_rows(
                config, base['base'], tokens, mask,
                poll=lambda name=path.name: context.stop.check(name)))
      bar.update(1)
  return {'responses': count}
