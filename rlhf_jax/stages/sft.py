"""Supervised fine-tuning of a decoder on the demonstrations."""

import functools

import jax
import numpy as np

from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import tokenizer
from rlhf_jax.models import transformer
from rlhf_jax.stages import common


def run(context, *, seed: int, data: dict, model: dict, num_steps: int,
        batch_size: int, optimizer: dict, num_microbatches: int = 1,
        aggregate: str = 'token', init_seed: int | None = None,
        training: dict | None = None) -> dict:
  """Trains from scratch; `checkpoints` then holds the SFT parameters.

  Args:
    context: of the stage.
    seed: of the corpus.
    data: config node of the corpus.
    model: of `transformer.make_config`, without the vocabulary.
    num_steps: optimizer steps.
    batch_size: demonstrations a step.
    optimizer: of `train.optimizer`.
    num_microbatches: see `train.make_train_step`.
    aggregate: of the `sft` objective.
    init_seed: of the initialisation and of the data order; default `seed`.
    training: save_every and log_every of `common.fit`.
  """
  init_seed = seed if init_seed is None else init_seed
  corpus = corpus_lib.load(data, seed)
  tokenizer.check_ids(
      corpus.demonstrations.tokens, corpus.tokenizer.vocab_size)
  corpus.tokenizer.save(context.directory / 'tokenizer.json')
  config = transformer.make_config(
      vocab_size=corpus.tokenizer.vocab_size, **model)
  init_key, key = jax.random.split(jax.random.key(init_seed))
  tx = train.optimizer(num_steps=num_steps, **optimizer)
  state = train.init_state(transformer.init(config, init_key), tx, key)
  step_fn = train.make_train_step(
      functools.partial(policy.forward, config),
      objectives.get('sft', aggregate=aggregate), tx,
      num_microbatches=num_microbatches)
  rows = corpus.demonstrations
  state, last = common.fit(
      context, state,
      sources.offline(rows, batch_size=batch_size, seed=init_seed),
      jax.jit(step_fn, donate_argnums=0), num_steps=num_steps,
      **(training or {}),
      tokens_per_step=int(batch_size * np.mean(rows.mask.sum(axis=-1))))
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  return {'loss': last.get('train/loss'), 'parameters': parameters, **last,
          **corpus.summary, 'corpus': corpus.fingerprint()}
