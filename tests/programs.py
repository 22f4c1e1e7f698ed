"""The programs of a study by their shapes alone, to compile and look at."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp

from rlhf_jax import algorithms
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import sharding
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import from_models
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.rewards import models as reward_models

TX = train.optimizer(learning_rate=1e-3, num_steps=10)
KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all',
         'collective-permute')
NAMES = ('updates', 'reward_step', 'sampler', 'annotators', 'scorer')


def _key():
  return jax.eval_shape(lambda: jax.random.key(0))


@dataclasses.dataclass(frozen=True)
class Programs:
  """Each of NAMES gives a function and what it is called with, placed."""

  config: transformer.Config
  prompts: int = 64  # B
  samples: int = 2  # K
  prompt: int = 13  # tokens
  width: int = 29  # T, tokens of a row
  new_tokens: int = 11
  members: int = 4  # E
  microbatches: int = 1  # of a step of the ensemble

  def policy(self):
    return {**transformer.abstract(self.config), 'value_head': jax.eval_shape(
        lambda: heads.init_scalar(
            jax.random.key(0), self.config.hidden_size, mlp=True))}

  def ensemble(self):
    return jax.eval_shape(lambda: reward_models.init_members(
        self.config, jax.random.split(jax.random.key(0), self.members)))

  def rows(self, tree, members=0):
    where = sharding.rows_sharding(members)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=where), tree)

  def batch(self, *names, members=()):
    shape = (*members, self.prompts, self.samples, self.width)
    dtypes = {'tokens': jnp.int32, 'mask': bool}
    return types.Batch(**{name: jax.ShapeDtypeStruct(
        shape, dtypes.get(name, jnp.float32)) for name in names})

  def updates(self):
    """PPO: two epochs of two minibatches of two microbatches."""
    step = train.make_train_step(
        functools.partial(policy.forward, self.config),
        algorithms.ALGORITHMS['ppo'].bind(), TX, num_microbatches=2)
    state = jax.eval_shape(
        lambda p: train.init_state(p, TX, jax.random.key(0)), self.policy())
    rollout = types.Rollout(self.rows(self.batch(
        'tokens', 'mask', 'old_logprobs', 'old_values', 'advantages',
        'returns')), {}, {})
    return train.make_updates(step, num_epochs=2, num_minibatches=2), (
        sharding.abstract(state), rollout)

  def reward_step(self):
    """Of all members; each has pairs of its own."""
    members = self.members
    step = train.make_train_step(
        functools.partial(reward_models.forward, self.config),
        objectives.get('bradley_terry'), TX,
        num_microbatches=self.microbatches)
    state = jax.eval_shape(
        jax.vmap(lambda p, k: train.init_state(p, TX, k)), self.ensemble(),
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), members)))
    pairs = dataclasses.replace(self, samples=2).batch(
        'tokens', 'mask', members=(members,))
    return sharding.vmap_members(step, members), (
        sharding.abstract(state, members=members),
        self.rows(pairs, members=members))

  def sampler(self):
    def sample(params, prompts, lengths, key, row_ids):
      return sampling.sample(
          self.config, params, prompts, lengths, key, row_ids=row_ids,
          num_samples=self.samples, max_new_tokens=self.new_tokens, eos_id=0,
          pad_id=1)
    prompts = jax.ShapeDtypeStruct((self.prompts, self.prompt), jnp.int32)
    each = jax.ShapeDtypeStruct((self.prompts,), jnp.int32)
    prompts, lengths, row_ids = self.rows((prompts, each, each))
    return sample, (sharding.abstract(transformer.abstract(self.config)),
                    prompts, lengths, _key(), row_ids)

  def annotators(self):
    """Reference, values and the ensemble, over a rollout."""
    config = self.config
    def annotate(batch, reference, params, members):
      batch = from_models.ref_logprobs(batch, config, reference)
      batch = from_models.old_values(batch, config, params)
      return from_models.scores(batch, config, members, kind='mean')
    return annotate, (
        self.rows(self.batch('tokens', 'mask')),
        sharding.abstract(transformer.abstract(config)),
        sharding.abstract(self.policy()),
        sharding.abstract(self.ensemble(), members=self.members))

  def scorer(self):
    def score(members, tokens, mask):
      return reward_models.score_members(self.config, members, tokens, mask)
    some = self.batch('tokens', 'mask')
    return score, (sharding.abstract(self.ensemble(), members=self.members),
                   *self.rows((some.tokens, some.mask)))


def moved(hlo):
  """{(collective, shape of what it gives): how often}."""
  counts = collections.Counter()
  for line in hlo.splitlines():
    match = re.search(rf'= (.*?) ({"|".join(KINDS)})(?:-start)?\(', line)
    for shape in re.findall(r'\w+\[([\d,]*)\]', match[1]) if match else ():
      counts[match[2], tuple(map(int, filter(None, shape.split(','))))] += 1
  return counts
