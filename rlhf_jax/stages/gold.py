"""The gold reward model, which stands in for the human.

In the small world it is regressed on the rule, over clean, damaged and
sampled texts, so that it knows what is wrong with a text as well as what is
said in it. On real data it learns from human preferences.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import rewards
from rlhf_jax import sampling
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.models import transformer
from rlhf_jax.stages import common


def _samples(corpus, config, params, key, num_prompts):
  """Eight responses of the policy to each of some prompts, [N, T]."""
  draw = functools.partial(
      sampling.sample, config, params, num_samples=8,
      max_new_tokens=corpus.max_response_length,
      eos_id=corpus.tokenizer.eos_id, pad_id=corpus.tokenizer.pad_id)
  rows = [], []
  for start in range(0, num_prompts, 64):
    at = np.arange(start, start + 64) % len(corpus.pair_prompts.tokens)
    prompts = corpus.pair_prompts
    batch = draw(prompts.tokens[at], prompts.lengths[at], key,
                 row_ids=jnp.arange(start, start + 64))
    for kept, x in zip(rows, (batch.tokens, batch.mask)):
      kept.append(np.asarray(x).reshape(-1, x.shape[-1]))
  return tuple(map(np.concatenate, rows))


def _rule_rows(corpus, config, params, seed, held_out):
  """Texts and their standardised rule scores: training batch, held-out."""
  clean = corpus.demonstrations.tokens[:, 0], corpus.demonstrations.mask[:, 0]
  damaged = corpus.world.corrupt(*clean, seed=seed)
  sampled = _samples(corpus, config, params, jax.random.key(seed),
                     len(clean[0]) // 8)
  tokens, mask = (np.concatenate(x) for x in zip(clean, damaged, sampled))
  order = np.random.Generator(np.random.Philox(seed)).permutation(len(tokens))
  tokens, mask = tokens[order], mask[order]
  targets = corpus.world.rule(tokens, mask)
  targets = (targets - targets.mean()) / targets.std()
  rows = types.Batch(tokens=tokens[:, None], mask=mask[:, None],
                     targets=targets[:, None].astype(np.float32))
  return (jax.tree.map(lambda x: x[held_out:], rows),
          jax.tree.map(lambda x: x[:held_out], rows))


def _preference_rows(corpus, seed, held_out):
  rows = corpus.preferences
  order = np.random.Generator(np.random.Philox(seed)).permutation(
      len(rows.tokens))
  return (jax.tree.map(lambda x: x[order[held_out:]], rows),
          jax.tree.map(lambda x: x[order[:held_out]], rows))


def _quality(config, params, rows) -> dict[str, float]:
  """Correlation with the rule, or accuracy on pairs, on held-out rows."""
  flat = lambda x: np.asarray(x).reshape(-1, x.shape[-1])
  stacked = jax.tree.map(lambda x: x[None], params)
  scores = rewards.score_rows(
      config, stacked, flat(rows.tokens), flat(rows.mask))[0]
  if rows.targets is None:
    chosen, rejected = scores.reshape(-1, 2).T
    return {'accuracy': float(np.mean(chosen > rejected))}
  return {'correlation': float(np.corrcoef(scores, rows.targets[:, 0])[0, 1])}


def run(context, *, seed: int, data: dict, model: dict, num_steps: int,
        batch_size: int, optimizer: dict, policy: str, policy_model: dict,
        held_out: int = 512, warm_start: str | None = None,
        training: dict | None = None) -> dict:
  """Trains the gold model; `checkpoints` then holds its parameters.

  Args:
    context: of the stage.
    seed: of the initialisation, the samples and the data order.
    data: config node of the corpus.
    model: of `transformer.make_config`, without the vocabulary.
    num_steps: optimizer steps.
    batch_size: texts or pairs a step.
    optimizer: of `train.optimizer`.
    policy: stage that holds the SFT policy.
    policy_model: its shape.
    held_out: rows kept for validation.
    warm_start: stage whose SFT trunk of the same shape to start from.
    training: save_every and log_every of `common.fit`.
  """
  corpus = corpus_lib.load(data, seed)
  vocab_size = corpus.tokenizer.vocab_size
  config = transformer.make_config(vocab_size=vocab_size, **model)
  if corpus.world is not None:
    shape = transformer.make_config(vocab_size=vocab_size, **policy_model)
    rows, validation = _rule_rows(
        corpus, shape, common.load_policy(context, policy, shape), seed,
        held_out)
    objective = objectives.get('value_regression')
  else:
    rows, validation = _preference_rows(corpus, seed, held_out)
    objective = objectives.get('bradley_terry')
  if len(rows.tokens) < batch_size:
    raise errors.ConfigError(
        f'config.gold.held_out is {held_out}, which leaves {len(rows.tokens)} '
        f'rows to train on, and batch_size is {batch_size}; lower it')
  trunk = (common.load_policy(context, warm_start, config)
           if warm_start else None)
  init_key, key = jax.random.split(jax.random.key(seed + 1))
  tx = train.optimizer(num_steps=num_steps, **optimizer)
  state = train.init_state(
      rewards.init(config, init_key, trunk=trunk), tx, key)
  step_fn = train.make_train_step(
      functools.partial(rewards.forward, config), objective, tx)
  state, last = common.fit(
      context, state, sources.offline(rows, batch_size=batch_size, seed=seed),
      jax.jit(step_fn, donate_argnums=0), num_steps=num_steps,
      **(training or {}), tokens_per_step=int(batch_size * np.mean(
          rows.mask.any(axis=1).sum(axis=-1))))
  return {**_quality(config, state.params, validation), **last}
