"""Supervised fine-tuning of a decoder on the demonstrations."""

import functools

import jax
import numpy as np

from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib


def run(context, *, seed: int, data: dict, model: dict, num_steps: int,
        batch_size: int, optimizer: dict, num_microbatches: int = 1,
        aggregate: str = 'token', init_seed: int | None = None,
        training: dict | None = None) -> dict:
  """Trains a policy; `checkpoints` then holds what of it was trained.

  `artifacts.load_policy` puts the whole together again.

  Args:
    context: of the stage.
    seed: of the corpus.
    data: config node of the corpus.
    model: node of `models.pretrained`.
    num_steps: optimizer steps.
    batch_size: demonstrations a step.
    optimizer: of `train.optimizer`.
    num_microbatches: see `train.make_train_step`.
    aggregate: of the `sft` objective.
    init_seed: of the initialisation and of the data order; default `seed`.
    training: save_every and log_every of `fit_lib.fit`.
  """
  init_seed = seed if init_seed is None else init_seed
  corpus = load_lib.load(data, seed)
  tokenizer.check_ids(
      corpus.demonstrations.tokens, corpus.tokenizer.vocab_size)
  artifacts.write_model(context, 'policy', model, corpus.tokenizer)
  init_key, key = jax.random.split(jax.random.key(init_seed))
  tx = train.optimizer(num_steps=num_steps, **optimizer)
  made = pretrained.init(model, corpus.tokenizer.vocab_size, init_key)
  config = made.config
  state = train.init_state(made.trainable, tx, key)
  step_fn = train.make_train_step(
      functools.partial(policy.forward, config),
      objectives.get('sft', aggregate=aggregate), tx,
      num_microbatches=num_microbatches,
      dropout=bool(config.dropout or config.adapter_dropout))
  rows = corpus.demonstrations
  state, last = fit_lib.fit(
      context, state,
      sources.offline(rows, batch_size=batch_size, seed=init_seed),
      jax.jit(step_fn, donate_argnums=0), num_steps=num_steps,
      base=made.base, **(training or {}),
      tokens_per_step=int(batch_size * np.mean(rows.mask.sum(axis=-1))))
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  return {'loss': last.get('train/loss'), 'parameters': count(state.params),
          'frozen_parameters': count(made.base), **last,
          **corpus.summary, 'corpus': corpus.fingerprint()}
