"""Supervised fine-tuning of a decoder on the demonstrations."""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax import policy
from rlhf_jax import sources
from rlhf_jax import streams
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer
from rlhf_jax.models import pretrained
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import learners
from rlhf_jax.pipeline import policies

NEEDS, READS = (), ()


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        node: Mapping[str, Any], part: str, training: Mapping[str, int]
        ) -> dict:
  """Trains a policy; `checkpoints` then holds what of it was trained.

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: empty; see `artifacts`.
    node: 'model' of `models.pretrained`, 'num_steps' (0 keeps the model as it
      is, and reads no demonstration), 'batch_size' (demonstrations a step),
      'optimizer' of `train.optimizer`, 'num_microbatches' of
      `train.make_train_step`, 'packing' of `fit.Loop` and 'aggregate' of the
      objective `sft`.
    part: which of the policies of a seed: its weights and its order are its
      own.
    training: save_every and log_every of `fit.Loop`.
  """
  del upstream
  corpus = load_lib.load(data, seed)
  coder, rows = corpus.tokenizer, corpus.demonstrations
  tokenizer.check_ids(rows.tokens, coder.vocab_size)
  for line in corpus.introduction() if part == 'policy' else ():
    context.show(line)
  artifacts.write_model(context, 'policy', node['model'], coder,
                        texts=artifacts.texts_of(corpus))
  key = functools.partial(streams.key, seed, 'sft', part)
  model = pretrained.init(node['model'], coder.vocab_size, key('weights'))
  config, num_steps = model.config, node['num_steps']
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  sizes = {'parameters': count(model.trainable),
           'frozen_parameters': count(model.base)}
  texts = {**corpus.summary, 'corpus': corpus.fingerprint()}
  if not num_steps:
    policies.save_policy(context, 0, sharding.shard_params(model.trainable))
    return sizes | texts
  learner = learners.learner(
      policy.forward, config, {'name': 'sft', 'aggregate': node['aggregate']},
      num_steps=num_steps, optimizer=node['optimizer'],
      num_microbatches=node['num_microbatches'])
  _, last = fit_lib.fit(
      context, train.place_state(model.trainable, learner.tx, key('state')),
      sources.offline(rows, batch_size=node['batch_size'],
                      seed=streams.number(seed, 'sft', part, 'order')),
      learner.step,
      loop=fit_lib.Loop(num_steps, num_microbatches=node['num_microbatches'],
                        packing=node['packing'], **training),
      frozen=types.Frozen(base=model.base))
  tokens = node['batch_size'] * np.mean(rows.mask.sum(axis=-1))
  return {'loss': last.get('train/loss'), **sizes,
          **fit_lib.rate(last, tokens * num_steps), **texts}
