"""Programs of a study by their shapes alone, to compile and look at."""

import dataclasses
import functools

import jax

from rlhf_jax import algorithms
from rlhf_jax import policy
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import from_models
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.studies import programs

TX = train.optimizer(learning_rate=1e-3, num_steps=10)
NAMES = ('updates', 'reward_step', 'sampler', 'annotators', 'scorer')


@dataclasses.dataclass(frozen=True)
class Programs:
  """Each of NAMES gives a program, placed on the mesh in use."""

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

  def batch(self, *names):
    return programs.batch(
        *names, shape=(self.prompts, self.samples, self.width))

  def updates(self):
    """PPO: two epochs of two minibatches of two microbatches."""
    step = train.make_train_step(
        functools.partial(policy.forward, self.config),
        algorithms.ALGORITHMS['ppo'].bind(), TX, num_microbatches=2)
    state = jax.eval_shape(
        lambda p: train.init_state(p, TX, jax.random.key(0)), self.policy())
    rollout = types.Rollout(self.batch(
        'tokens', 'mask', 'old_logprobs', 'old_values', 'advantages',
        'returns'), {}, {})
    return programs.Program(
        train.make_updates(step, num_epochs=2, num_minibatches=2),
        (sharding.abstract(state), rollout), donated=(0,))

  def annotators(self):
    """Reference, values and the ensemble, over a rollout."""
    config = self.config
    def annotate(batch, reference, params, members):
      batch = from_models.ref_logprobs(batch, config, reference)
      batch = from_models.old_values(batch, config, params)
      return from_models.scores(batch, config, members, kind='mean')
    return programs.Program(annotate, (
        self.batch('tokens', 'mask'),
        sharding.abstract(transformer.abstract(config)),
        sharding.abstract(self.policy()),
        sharding.abstract(self.ensemble(), members=self.members)))

  # Those of the package.

  def policy_step(self):
    return programs.policy_step(
        self.config, transformer.abstract(self.config), None,
        rows=self.prompts, length=self.width)

  def reward_step(self):
    return programs.reward_step(
        self.config, self.ensemble(), None, members=self.members,
        pairs=self.prompts, length=self.width,
        num_microbatches=self.microbatches)

  def sampler(self):
    return programs.sampler(
        self.config, transformer.abstract(self.config), prompts=self.prompts,
        samples=self.samples, prompt=self.prompt, new_tokens=self.new_tokens)

  def scorer(self):
    return programs.scorer(
        self.config, self.ensemble(), None, members=self.members,
        rows=self.prompts * self.samples, length=self.width)
