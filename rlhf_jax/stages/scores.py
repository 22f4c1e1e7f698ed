"""What every member of an ensemble thinks of every sample, once.

Best-of-n by any aggregate of the members needs no more than this.
"""

from typing import Any

import numpy as np

from rlhf_jax import types
from rlhf_jax.data import load as load_lib
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files


def gather(context: Any, config: transformer.Config, params: types.Params,
           samples: str, eos_id: int) -> dict[str, np.ndarray]:
  """Scores the N responses to each of B prompts, shard by shard.

  Args:
    context: of the stage that asks.
    config: shape of the members' trunk.
    params: of the members, leaves [E, ...].
    samples: stage that holds the responses.
    eos_id: of the tokenizer.

  Returns:
    members f32[E, B, N], as they are; gold f32[B, N]; where there is a rule,
    rule [B, N]; unfinished [B, N], 1 without an EOS; length f32[B, N], tokens
    with the EOS.

  Raises:
    Interrupted: when asked to stop.
  """
  parts = []
  for path in sorted(context.directory_of(samples).glob('shard_*.npz')):
    context.stop.check(f'the start of {context.directory.name}')
    arrays = files.load_arrays(path)
    tokens, mask = arrays.pop('tokens').astype(np.int32), arrays.pop('mask')
    arrays['gold'] = arrays.pop('gold_scores')
    arrays['members'] = np.moveaxis(
        reward_models.score_rows(config, params, tokens, mask), 0, 1)
    arrays['length'] = mask.sum(axis=-1).astype(np.float32)
    arrays['unfinished'] = 1.0 - rows_lib.finished(tokens, mask, eos_id)
    parts.append(arrays)
  known = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  known['members'] = np.moveaxis(known['members'], 1, 0)
  return known


def standardized(context: Any, proxies: str, members: np.ndarray
                 ) -> np.ndarray:
  """Members [E, B, N] at mean 0 and deviation 1 on held-out responses.

  Args:
    context: of the stage that asks.
    proxies: stage that holds the ensemble.
    members: of `gather`.
  """
  scale = files.load_arrays(context.directory_of(proxies) / 'scale.npz')
  mean, std = (scale[name][:, None, None] for name in ('mean', 'std'))
  return (members - mean) / np.where(std == 0, 1, std)


def run(context, *, seed: int, data: dict, samples: str, proxies: str,
        model: dict, num_members: int) -> dict:
  """Writes `scores.npz`, the arrays of `gather`.

  Args:
    context: of the stage.
    seed: of the corpus.
    data: config node of the corpus.
    samples: stage that holds the responses.
    proxies: stage that holds the ensemble.
    model: shape of the proxies' trunk.
    num_members: E.
  """
  coder = load_lib.load(data, seed).tokenizer
  config = pretrained.config(model, coder.vocab_size)
  params = artifacts.load_members(context, proxies, config, num_members)
  known = gather(context, config, params, samples, coder.eos_id)
  files.save_arrays(context.directory / 'scores.npz', **known)
  return {'responses': known['gold'].size, 'members': num_members}
