"""An ensemble of proxy reward models on noisy gold labels.

Coste et al. 2024, section 4.3: all members see the same pairs and the same
flipped labels; they differ in the initialisation of the head and in the order
of the data.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from rlhf_jax import sources
from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.evaluation import statistics
from rlhf_jax.models import pretrained
from rlhf_jax.parallel import processes
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import labelled_pairs
from rlhf_jax.pipeline import learners
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import scale as scale_lib
from rlhf_jax.storage import files

NEEDS, READS = ('pairs', 'trunks'), ('features',)


def run(context, *, seed: int, upstream: Mapping[str, Any],
        node: Mapping[str, Any], label_noise: float, validate: bool,
        training: Mapping[str, int]) -> dict:
  """Trains the members by one step of all.

  `checkpoints` then holds leaves [E, ...], and `scale.npz` each member's mean
  and standard deviation on the held-out responses. With `validate`, a line of
  `evaluation.jsonl` holds the epoch, the Bradley-Terry loss (nats) and the
  accuracy on the held-out pairs, means over members, and those of each,
  `loss_0` and so on.

  Args:
    context: of the stage.
    seed: of the study.
    upstream: stages by role, see `artifacts`: `pairs`, one or several;
      `trunks`, one shared by all members or one for each; `features` of these
      pairs, where nothing of a trunk is trained.
    node: 'model', the shape of a trunk, or of `models.pretrained` with what of
      it is trained beside the heads; 'num_members' E; 'num_epochs' over the
      training pairs; 'batch_size', pairs a step and member; 'optimizer' of
      `train.optimizer`; 'held_out', pairs kept with clean labels for
      validation, the first; 'num_pairs' used for training, the first of the
      others (Coste et al. 2024, figure 9), None: all; 'head_scale' of
      `rewards.models.init`; 'num_microbatches' of `train.make_train_step`;
      'packing' of `fit.Loop`.
    label_noise: exact share of the training labels of each stage that is
      flipped.
    validate: before training and after each epoch (Coste et al. 2024, figure
      15).
    training: save_every and log_every of `fit.Loop`.
  """
  trunk = context.directory_of(upstream['trunks'][0])
  coder = artifacts.read_tokenizer(trunk)
  features = upstream.get('features', ())
  rows, validation, flipped = labelled_pairs.load(
      context, upstream['pairs'], seed, label_noise, held_out=node['held_out'],
      num_pairs=node['num_pairs'], features=features)
  members, batch_size = node['num_members'], node['batch_size']
  num_steps = node['num_epochs'] * len(rows.tokens) // batch_size
  keys = lambda name: jnp.stack([
      streams.key(seed, 'proxies', name, member)
      for member in range(members)])
  config, params, base = _init(
      context, node, coder.vocab_size, keys('head'), upstream)
  learner = learners.learner(
      reward_models.forward, config, {'name': 'bradley_terry'},
      num_steps=num_steps, optimizer=node['optimizer'],
      num_microbatches=node['num_microbatches'], members=members)
  state, last = fit_lib.fit(
      context, train.place_state(
          params, learner.tx, keys('state'), members=members),
      sources.offline_members(rows, batch_size=batch_size, seeds=[
          streams.number(seed, 'proxies', 'order', member)
          for member in range(members)]),
      learner.step,
      loop=fit_lib.Loop(num_steps, num_microbatches=node['num_microbatches'],
                        packing=node['packing'] and not features, **training),
      frozen=types.Frozen(base=base),
      watch=_watch(config, base, rows, validation, batch_size)
      if validate else None)

  artifacts.write_model(context, 'reward', node['model'], coder,
                        num_members=node['num_members'],
                        texts=artifacts.read_model(trunk)['texts'])
  scores, _, accuracy = _quality(config, base, state.params, validation)
  files.save_arrays(
      context.directory / 'scale.npz', **scale_lib.of_members(scores))
  tokens = members * batch_size * 2 * rows.mask.sum(axis=-1).mean()
  return {'accuracy': float(accuracy.mean()),
          'accuracies': [float(a) for a in accuracy],
          'flipped': flipped, **fit_lib.rate(last, tokens * num_steps)}


def _init(context, node, vocab_size, keys, upstream) -> tuple[Any, ...]:
  """Members on one shared SFT trunk, each on one of its own, or on a base.

  Their config, what of them is trained, and what of them is not: None, all is,
  or the features stand for it.
  """
  model, base = node['model'], None
  if upstream.get('features'):
    config, starts = reward_parts.abstract(model, vocab_size, 0).config, [{}]
  elif pretrained.is_partial(model):
    config, trunk, base = reward_parts.start(model, vocab_size, keys[0])
    starts = [trunk]
  else:
    config = pretrained.config(model, vocab_size)
    starts = [artifacts.restore_policy(context.directory_of(name)).params
              for name in upstream['trunks']]
  return config, reward_parts.born(
      config, keys, starts, node['head_scale']), base


def _quality(config, base, params, validation: types.Batch
             ) -> tuple[np.ndarray, ...]:
  """Scores [E, N, 2] of held-out pairs; Bradley-Terry loss, accuracy [E]."""
  if validation.features is not None:
    scores = processes.whole(
        reward_models.score_features(params, validation.features))
  else:
    scores = reward_models.score_rows(
        config, types.with_base(base, params), validation.tokens,
        validation.mask)
  loss = np.logaddexp(0, scores[..., 1] - scores[..., 0]).mean(axis=-1)
  return scores, loss, statistics.pair_accuracy(scores)


def _watch(config, base, rows, validation, batch_size) -> fit_lib.Watch:
  """Validates after every epoch."""
  def evaluate(step, state):
    _, loss, accuracy = _quality(config, base, state.params, validation)
    row = {'epoch': step * batch_size / len(rows.tokens),
           'loss': loss.mean(), 'accuracy': accuracy.mean()}
    for member in range(len(loss)):
      row |= {f'loss_{member}': loss[member],
              f'accuracy_{member}': accuracy[member]}
    return row
  return fit_lib.Watch(evaluate, -(-len(rows.tokens) // batch_size))
