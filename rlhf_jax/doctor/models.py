"""Checks of a model on a few rows: sampler and trainer, batch, reference.

A reference is what the policy is when training begins. That a run trains from
there, and not the reference, is tried by one optimizer step.
"""

from collections.abc import Callable, Iterable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.doctor import findings
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer

ROWS, TOKENS = 4, 16  # that are looked at
Step = Callable[..., tuple[types.TrainState, Any]]  # (state, batch, base)


def merged(model: pretrained.Model) -> types.Params:
  """What runs before anything is trained, adapters merged: the reference."""
  return transformer.frozen(model.config, pretrained.finish(model))


def check_sampler(model: pretrained.Model, corpus: corpus_lib.Corpus,
                  sampler: dict[str, Any], temperature: float, seed: int
                  ) -> tuple[types.Batch, list[findings.Finding]]:
  """Samples, and compares the sampler with the trainer and the reference.

  Args:
    model: of the policy.
    corpus: with prompts.
    sampler: temperature, top_k, top_p of the rollouts.
    temperature: at which the trainer computes log-probabilities.
    seed: of the samples.

  Returns:
    The samples [B, 1, T], and what was found.
  """
  coder, prompts = corpus.tokenizer, corpus.eval_prompts
  params = types.with_base(model.base, model.trainable)
  batch = sampling.sample(
      model.config, params, prompts.tokens[:ROWS], prompts.lengths[:ROWS],
      jax.random.key(seed), num_samples=1,
      max_new_tokens=min(TOKENS, corpus.max_response_length),
      eos_id=coder.eos_ids, pad_id=coder.pad_id, num_tokens=coder.vocab_size,
      **sampler)
  forward = jax.jit(functools.partial(
      policy.forward, model.config, temperature=temperature))
  logprobs = forward(params, batch).logprobs
  reference = jax.jit(functools.partial(
      policy.forward, model.config.replace(adapter_dropout=0.0),
      temperature=temperature))(merged(model), batch).logprobs
  gap = lambda x, y: float(jnp.where(batch.mask, jnp.abs(x - y), 0).max())
  apart, kl = gap(logprobs, batch.old_logprobs), gap(logprobs, reference)
  most = 1e-3 if model.config.dtype == 'float32' else 0.1
  return batch, [
      findings.judge(
          'ratio at step 0', f'sampler and trainer differ by at most '
          f'{apart:.2g} nats a token', fail=apart > most, remedy='give '
          'sampler and trainer one temperature, and no top_k or top_p that '
          'the trainer does not see'),
      findings.judge(
          'KL at step 0', f'policy and reference differ by at most {kl:.2g} '
          'nats a token', fail=kl > most, remedy='the reference is not what '
          'the policy starts from; train with dropout 0, or look at lora and '
          'quantize')]


def check_step(model: pretrained.Model, batch: types.Batch, seed: int,
               make: Callable[..., Step] = train.make_train_step
               ) -> Iterable[findings.Finding]:
  """One step on samples: what changes, and what must not.

  Args:
    model: of the policy.
    batch: [B, 1, T], as `check_sampler` has sampled it.
    seed: of the state.
    make: of the step.
  """
  tx = train.optimizer(learning_rate=1e-3, num_steps=2, schedule='constant')
  step = lambda parts: jax.jit(make(
      functools.partial(policy.forward, model.config),
      objectives.get('sft', aggregate='token'), tx, num_microbatches=parts))
  # Its own arrays: what is compared must not be what is trained.
  state = lambda: train.place_state(
      jax.tree.map(jnp.copy, model.trainable), tx, jax.random.key(seed))
  reference = merged(model)
  # Copies: what is read of a CPU's array may be the array itself.
  copied = lambda: jax.tree.map(
      lambda x: np.array(x, copy=True), (reference, model.base))
  before = copied()
  trained, metrics = step(1)(state(), batch, model.base)
  same = all(map(np.array_equal, *map(jax.tree.leaves, (before, copied()))))
  moved = max(float(jnp.abs(x - y).max()) for x, y in zip(
      jax.tree.leaves(trained.params), jax.tree.leaves(model.trainable)))
  yield findings.judge(
      'reference', 'a step moves the policy by up to '
      f'{moved:.2g} and the reference {"not at all" if same else "too"}',
      fail=not same or not moved > 0, remedy='the policy and the reference '
      'share arrays, or nothing is trained: give each its own, and look at '
      'lora and trainable_layers')
  loss = float(metrics['train/loss'])
  wide = jax.tree.map(lambda x: np.pad(
      x, ((0, 0), (0, 0), (0, 8))), types.Batch(batch.tokens, batch.mask))
  for what, parts, rows in (('padding', 1, wide), ('micro-batches', 2, batch)):
    other = float(step(parts)(state(), types.Batch(
        rows.tokens, rows.mask), model.base)[1]['train/loss'])
    yield findings.judge(
        f'invariance to {what}', f'loss {loss:.6g} and {other:.6g}',
        fail=not abs(other - loss) <= 1e-3 * max(1.0, abs(loss)),
        remedy='a bug of rlhf_jax or of a model of your own; report it')

