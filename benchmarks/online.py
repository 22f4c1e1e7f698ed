"""A step of RLOO, from prompts to parameters, against TRL's."""

import functools
import itertools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import libraries
from benchmarks import measure
from rlhf_jax import algorithms
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import chain
from rlhf_jax.annotators import from_models
from rlhf_jax.models import convert

SAMPLES, BETA = 4, .05


def score(tokens: jax.Array, mask: jax.Array) -> jax.Array:
  """The reward, f32[B, K]: which share of a response has an even id."""
  even = (tokens % 2 == 0) & mask
  return even.sum(axis=-1) / mask.sum(axis=-1).astype(jnp.float32)


def even(completion_ids, **unused):
  """The same, as TRL asks for it."""
  return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def annotations(config):
  """Ours of a rollout, jitted: (batch, state, frozen) -> Rollout."""
  nodes = [dict(node) | ({'kl_coef': BETA} if 'kl_coef' in node else {})
           for node in algorithms.ALGORITHMS['rloo'].annotators]
  return jax.jit(sources.rollout(chain.chain(nodes, {
      'scores': lambda batch, state, frozen: batch.replace(
          scores=score(batch.tokens, batch.mask)),
      'ref_logprobs': lambda batch, state, frozen: (
          from_models.ref_logprobs(batch, config, frozen.reference))})))


def trainer(config, params, reference, rows, width):
  """RLOOTrainer of the same settings, and a rollout's examples for it."""
  words = ['<pad>', 'a', '<eos>', *(
      f'w{i}' for i in range(libraries.FIRST, config.vocab_size))]
  texts = [' '.join(words[i] for i in row) for row in rows]
  model = libraries.load(config, params)
  with tempfile.TemporaryDirectory() as directory:
    convert.save(directory, config, reference)
    model.config._name_or_path = directory  # where it looks for its reference
    teacher = libraries.trainer(
        'RLOO', model, {'prompt': texts}, dict(
            per_device_train_batch_size=len(rows) * SAMPLES,
            num_generations=SAMPLES, max_completion_length=width, beta=BETA,
            temperature=1., top_k=0, top_p=1.), words, reward_funcs=even)
  teacher.model.train()
  return teacher, [{'prompt': x} for x in texts for _ in range(SAMPLES)]


def _ours(config, params, rows, width):
  """A function that does one step of ours, and counts the tokens drawn."""
  tx = train.optimizer(learning_rate=libraries.RATE, num_steps=1000)
  annotate = annotations(config)
  updates = jax.jit(train.make_updates(train.make_train_step(
      functools.partial(policy.forward, config),
      algorithms.ALGORITHMS['rloo'].bind(), tx)), donate_argnums=0)
  frozen = types.Frozen(reference=params)
  lengths = np.full(len(rows), rows.shape[1], np.int32)
  state = [train.place_state(
      jax.tree.map(jnp.copy, params), tx, jax.random.key(0)).replace(
          statistics={})]
  turns = itertools.count()

  def run():
    batch = sampling.sample(
        config, state[0].params, rows, lengths, jax.random.key(next(turns)),
        num_samples=SAMPLES, max_new_tokens=width, eos_id=libraries.EOS,
        pad_id=libraries.PAD)
    drawn = int(np.asarray(batch.mask).sum())
    state[0], metrics = updates(state[0], annotate(batch, state[0], frozen))
    jax.block_until_ready((state[0], metrics))
    return drawn

  return run


def _peer(config, params, rows, width):
  teacher, examples = trainer(config, params, params, rows, width)
  optimizer = teacher.create_optimizer()

  def run():
    batch = teacher._generate_and_score_completions(examples)
    libraries.update(teacher, optimizer, batch)
    return int(batch['completion_mask'].sum())

  return run


def rloo(quick: bool) -> measure.Case:
  """From prompts to parameters: sampled, rewarded, compared, learned from."""
  config = libraries.llama(quick)
  params = libraries.params_of(config)
  count, width = (2, 8) if quick else (8, 64)
  rows = libraries.tokens_of(config, count, width)
  size = sum(x.size for x in jax.tree.leaves(params))
  return measure.Case(
      ours=_ours(config, params, rows, width),
      peer=_peer(config, params, rows, width), unit='tokens/s',
      note=f'TRL; {size / 1e6:.2g}M parameters, {count} x {SAMPLES} x '
           f'({width} + {width}) tokens')
