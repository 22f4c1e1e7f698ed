"""An ensemble of reward models, against one of TRL's after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import libraries
from benchmarks import measure
from rlhf_jax import train
from rlhf_jax.pipeline import learners
from rlhf_jax.rewards import models as reward_models

MEMBERS = 5


def _config(quick: bool):
  """Of 1M parameters each."""
  return libraries.llama(quick, width=128, layers=4, vocabulary=2048)


@functools.cache
def _params(config):
  return jax.jit(functools.partial(reward_models.init_members, config))(
      jax.random.split(jax.random.key(1), MEMBERS))


def _note(config, rows):
  each = sum(x.size for x in jax.tree.leaves(_params(config))) / MEMBERS
  return (f'{MEMBERS} of {each / 1e6:.2g}M parameters, '
          f'{" x ".join(map(str, rows.shape))} tokens')


def _member(config, i):
  """One of them, as a model of transformers."""
  return libraries.load(
      config, jax.tree.map(lambda x: x[i], _params(config)), reward=True)


def _step(config, data, members):
  """A function that trains all on the same pairs; of 0, the first alone."""
  learner = learners.learner(
      reward_models.forward, config, {'name': 'bradley_terry'},
      num_steps=1000, optimizer={'learning_rate': libraries.RATE},
      num_microbatches=1, members=members)
  key = jax.random.key(0)
  if members:
    key = jax.random.split(key, members)
    data = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (members, *x.shape)), data)
  # A copy, since the state is donated.
  params = jax.tree.map(
      lambda x: jnp.copy(x if members else x[0]), _params(config))
  state = [train.place_state(params, learner.tx, key, members=members)]

  def run():
    state[0], metrics = learner.step(state[0], data)
    jax.block_until_ready((state[0], metrics))
    return data.tokens.size

  return run


def together(quick: bool) -> measure.Case:
  """A step of all members, a member's part of it against a step of one."""
  config = _config(quick)
  data, _ = libraries.pairs(config, quick)
  return measure.Case(
      ours=_step(config, data, MEMBERS), peer=_step(config, data, 0),
      unit='tokens/s', note='ourselves with one member alone; '
      f'{_note(config, data.tokens)}, trained')


def trained(quick: bool) -> measure.Case:
  """A step of all members on the same pairs, against a loop over trainers."""
  config = _config(quick)
  data, texts = libraries.pairs(config, quick)
  examples = [dict(zip(('chosen_ids', 'rejected_ids'), one.tolist()))
              for one in data.tokens]
  steps = [libraries.steps('Reward', _member(config, i), texts, examples)
           for i in range(MEMBERS)]
  return measure.Case(
      ours=_step(config, data, MEMBERS),
      peer=lambda: sum(step() for step in steps), unit='tokens/s',
      note=f'TRL, one by one; {_note(config, data.tokens)}')


def scored(quick: bool) -> measure.Case:
  """All members score the same rows, against a loop over models."""
  import torch
  config = _config(quick)
  count, width = (4, 16) if quick else (64, 128)
  rows = libraries.tokens_of(config, count, width)
  params, mask = _params(config), np.ones(rows.shape, bool)
  models = [_member(config, i).eval() for i in range(MEMBERS)]
  same = torch.tensor(rows.astype(np.int64))

  def ours():
    return MEMBERS * rows.size if reward_models.score_rows(
        config, params, rows, mask).shape == (MEMBERS, count) else 0

  def peer():
    with torch.no_grad():
      for model in models:
        model(same)
    return MEMBERS * rows.size

  return measure.Case(
      ours=ours, peer=peer, unit='tokens/s',
      note=f'transformers, one by one; {_note(config, rows)}')
