"""The finished smoke study of figure 3, and what its stages should have left.

Its numbers again by brute force, without the batching and the arithmetic of
the library.
"""

import functools
import math
import pathlib

import jax
import numpy as np
import worlds

from rlhf_jax.data import load as load_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files
from rlhf_jax.studies import nodes

NS = [1, 2, 4, 8, 16, 32]
ENDINGS = ('as_sampled', 'forced_eos')
NOISES = ('noise_0', 'noise_0.25')
CONDITIONS = [f'seed_0/{e}/{n}' for e in ENDINGS for n in NOISES]
METHODS = {
    'single_0': lambda m: m[0], 'single_1': lambda m: m[1],
    'mean': lambda m: m.mean(axis=0), 'worst_case': lambda m: m.min(axis=0),
    'uncertainty_weighted': lambda m: m.mean(axis=0) - .5 * m.var(axis=0)}


def study() -> pathlib.Path:
  return worlds.smoke()[0]


def context(**kwargs) -> worlds.Context:
  """Of a stage that reads the study."""
  return worlds.Context(study(), **kwargs)


def config() -> dict:
  return files.read_json(study() / 'config.json')


def corpus():
  return load_lib.load(nodes.data_config(config()), 0)


def arrays(*parts) -> dict[str, np.ndarray]:
  return files.load_arrays(study().joinpath(*parts))


def result(name: str) -> dict:
  return context().result_of(name)


def shards(ending: str) -> dict[str, np.ndarray]:
  """All samples of one kind of ending, [B, N, ...]."""
  parts = [files.load_arrays(path) for path in sorted(
      (study() / f'seed_0/{ending}/samples').glob('shard_*.npz'))]
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}


@functools.cache
def rewards(stage: str) -> reward_models.RewardModels:
  return artifacts.restore_rewards(study() / stage)


_score = jax.jit(reward_models.score_members, static_argnums=0)


def raw_scores(stage: str, tokens, mask) -> np.ndarray:
  """f64[E, ...] of the reward models of a stage, in one call."""
  model, flat = rewards(stage), lambda x: x.reshape(-1, x.shape[-1])
  out = _score(model.config, model.params, flat(tokens.astype(np.int32)),
               flat(mask))
  return np.asarray(out, np.float64).reshape(-1, *tokens.shape[:-1])


@functools.cache
def members(condition: str, standardize: bool = True) -> np.ndarray:
  """f64[E, B, N] of the samples, on the scale of held-out responses."""
  samples = shards(condition.split('/')[1])
  scores = raw_scores(
      f'{condition}/proxies', samples['tokens'], samples['mask'])
  if not standardize:
    return scores
  held = arrays(condition, 'proxies/scale.npz')
  return ((scores - held['mean'][:, None, None])
          / held['std'][:, None, None])


def estimate(proxy, values) -> np.ndarray:
  """[B, len(NS)] by the definition, with exact binomials."""
  count = proxy.shape[1]
  weights = np.array([[math.comb(i, n - 1) / math.comb(count, n)
                       for i in range(count)] for n in NS])
  order = np.argsort(proxy, axis=1)
  return np.take_along_axis(values, order, axis=1) @ weights.T
