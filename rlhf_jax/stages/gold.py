"""The gold reward model, which stands in for the human.

In the small world it is regressed on the rule, over clean, damaged and
sampled texts, so that it knows what is wrong with a text as well as what is
said in it. On real data it is regressed on a score that logged responses
have, votes or a probability, or else learns from human preferences.
"""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax import sources
from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.evaluation import statistics
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import gold_rows
from rlhf_jax.pipeline import learners
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import parameters

NEEDS, READS = ('reference',), ()


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        node: Mapping[str, Any], sampler: Mapping[str, Any],
        training: Mapping[str, int]) -> dict:
  """Trains the gold model; `checkpoints` then holds its parameters.

  Where it is regressed on a score of the log, `target_mean` and `target_std`
  of the result say in which units: its own times `target_std`, plus
  `target_mean`, are those of the score.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`.
    node: 'model' of `models.pretrained`, with what of it is trained beside the
      head; 'num_steps', 'batch_size' (texts or pairs a step), 'optimizer' of
      `train.optimizer`, 'num_microbatches' of `train.make_train_step`,
      'packing' of `fit.Loop`, and 'held_out', rows kept for validation; of a
      log at least so many.
    sampler: of `rows.Draw`, for the texts it is trained on.
    training: save_every and log_every of `fit.Loop`.
  """
  world = artifacts.World(context, data, seed, upstream)
  coder, batch_size = world.corpus.tokenizer, node['batch_size']
  key = functools.partial(streams.key, seed, 'gold')
  split = gold_rows.split(world, seed, node['held_out'], sampler)
  count = len(split.training.tokens)
  if count < batch_size:
    raise errors.ConfigError(
        f'config.gold.held_out is {node["held_out"]}, which leaves {count} '
        f'rows to train on, and batch_size is {batch_size}; lower it')
  config, trunk, base = _start(node['model'], coder.vocab_size, key('weights'))
  num_steps = node['num_steps']
  learner = learners.learner(
      reward_models.forward, config, {'name': split.objective},
      num_steps=num_steps, optimizer=node['optimizer'],
      num_microbatches=node['num_microbatches'])
  state, last = fit_lib.fit(
      context, train.place_state(
          reward_models.born(config, key('weights'), trunk), learner.tx,
          key('state')),
      sources.offline(split.training, batch_size=batch_size,
                      seed=streams.number(seed, 'gold', 'order')),
      learner.step,
      loop=fit_lib.Loop(num_steps, num_microbatches=node['num_microbatches'],
                        packing=node['packing'], **training),
      frozen=types.Frozen(base=base))
  artifacts.write_model(context, 'reward', node['model'], coder,
                        texts=artifacts.texts_of(world.corpus))
  tokens = batch_size * np.mean(
      split.training.mask.any(axis=1).sum(axis=-1))
  return {**_quality(config, types.with_base(base, state.params),
                     split.validation),
          **split.scale, **fit_lib.rate(last, tokens * num_steps)}


def _start(node, vocab_size, key) -> pretrained.Model:
  """The trunk; its `trainable` is None where nothing is loaded."""
  if pretrained.source(node) is None:
    return pretrained.Model(pretrained.config(node, vocab_size), None, None)
  return reward_parts.start(node, vocab_size, key)


def _quality(config, params, rows: types.Batch) -> dict[str, float]:
  """Correlation with the target, or accuracy on pairs, on held-out rows."""
  scores = reward_models.score_rows(
      config, parameters.alone(params), rows.tokens, rows.mask)[0]
  if rows.targets is None:
    return {'accuracy': float(statistics.pair_accuracy(scores))}
  correlation = np.corrcoef(scores[:, 0], rows.targets[:, 0])[0, 1]
  return {'correlation': float(correlation)}
