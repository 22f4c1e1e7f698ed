"""The gold reward model, which stands in for the human.

In the small world it is regressed on the rule, over clean, damaged and
sampled texts, so that it knows what is wrong with a text as well as what is
said in it. On real data it is regressed on a score that logged responses
have, votes or a probability, or else learns from human preferences.
"""

import functools

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import objectives
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.evaluation import statistics
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import models as reward_models


def _rule_rows(corpus, sampled, seed, held_out):
  """Texts and their standardised rule scores: training batch, held-out.

  A held-out text may be a damaged copy of a training text, so the correlation
  on it says that the rule is fitted, not that it generalises.
  """
  clean = corpus.demonstrations.tokens[:, 0], corpus.demonstrations.mask[:, 0]
  damaged = corpus.world.corrupt(*clean, seed=seed)
  tokens, mask = (np.concatenate(x) for x in zip(clean, damaged, sampled))
  order = np.random.Generator(np.random.Philox(seed)).permutation(len(tokens))
  tokens, mask = tokens[order], mask[order]
  targets = corpus.world.rule(tokens, mask)
  targets = (targets - targets.mean()) / targets.std()
  rows = types.Batch(tokens=tokens[:, None], mask=mask[:, None],
                     targets=targets[:, None].astype(np.float32))
  return (jax.tree.map(lambda x: x[held_out:], rows),
          jax.tree.map(lambda x: x[:held_out], rows))


def _log_rows(corpus, seed, held_out):
  """Logged responses and their standardised scores: training, held-out, scale.

  Whole examples are held out, in all at least `held_out` responses, so that
  no example has responses on both sides.
  """
  log, target = corpus.log, corpus.log_target
  if target not in log.scores:
    raise errors.ConfigError(
        f'config.data.target is {target!r}; the log has '
        f'{", ".join(sorted(log.scores)) or "no scores"}')
  scores = log.scores[target]
  present = log.mask.any(axis=-1) & np.isfinite(scores)  # [N, K]
  known = scores[present].astype(np.float64)
  if len(np.unique(known)) < 2:
    raise errors.DataError(
        f'the {len(known)} logged responses that have {target!r} do not '
        'differ in it; choose another config.data.target')
  mean, std = float(known.mean()), float(known.std())
  order = np.random.Generator(np.random.Philox(seed)).permutation(len(scores))
  count = np.cumsum(present[order].sum(axis=1))
  cut = np.searchsorted(count, held_out) + 1

  def rows(examples):
    at = present[examples]
    take = lambda x: x[examples][at][:, None]
    return types.Batch(
        tokens=take(log.tokens), mask=take(log.mask),
        targets=((take(scores) - mean) / std).astype(np.float32))
  return (rows(order[cut:]), rows(order[:cut]),
          {'target_mean': mean, 'target_std': std})


def _preference_rows(corpus, seed, held_out):
  rows = corpus.preferences
  order = np.random.Generator(np.random.Philox(seed)).permutation(
      len(rows.tokens))
  return (jax.tree.map(lambda x: x[order[held_out:]], rows),
          jax.tree.map(lambda x: x[order[:held_out]], rows))


def _quality(config, params, rows) -> dict[str, float]:
  """Correlation with the target, or accuracy on pairs, on held-out rows."""
  stacked = jax.tree.map(lambda x: x[None], params)
  scores = reward_models.score_rows(config, stacked, rows.tokens, rows.mask)[0]
  if rows.targets is None:
    return {'accuracy': float(statistics.pair_accuracy(scores))}
  correlation = np.corrcoef(scores[:, 0], rows.targets[:, 0])[0, 1]
  return {'correlation': float(correlation)}


def run(context, *, seed: int, data: dict, model: dict, num_steps: int,
        batch_size: int, optimizer: dict, policy: str, policy_model: dict,
        sampler: dict, held_out: int = 512, num_microbatches: int = 1,
        training: dict | None = None) -> dict:
  """Trains the gold model; `checkpoints` then holds its parameters.

  Where it is regressed on a score of the log, `target_mean` and `target_std`
  of the result say in which units: its own times `target_std`, plus
  `target_mean`, are those of the score.

  Args:
    context: of the stage.
    seed: of the initialisation, the samples and the data order.
    data: config node of the corpus.
    model: node of `models.pretrained`.
    num_steps: optimizer steps.
    batch_size: texts or pairs a step.
    optimizer: of `train.optimizer`.
    policy: stage that holds the SFT policy.
    policy_model: its shape.
    sampler: temperature, top_k, top_p of the texts it is trained on.
    held_out: rows kept for validation; of a log at least so many.
    num_microbatches: see `train.make_train_step`.
    training: save_every and log_every of `fit_lib.fit`.
  """
  corpus = artifacts.load_corpus(context, data, seed, policy)
  vocab_size = corpus.tokenizer.vocab_size
  init_key, key = jax.random.split(jax.random.key(seed + 1))
  config, trunk, scale = pretrained.config(model, vocab_size), None, {}
  if pretrained.source(model) is not None:
    trunk = pretrained.init(model, vocab_size, init_key).trainable
  if corpus.world is not None:
    shape, params = artifacts.load_policy(
        context, policy, policy_model, vocab_size)
    chunk, texts = 64, len(corpus.demonstrations.tokens)
    # Eight responses to each of as many prompts as make one text for each
    # demonstration, in whole chunks.
    sampled = rows_lib.sample_rows(
        context, corpus, shape, params, jax.random.key(seed),
        num_prompts=-(-(texts // 8) // chunk) * chunk, num_samples=8,
        chunk_size=chunk, **sampler)
    sampled = [x.reshape(-1, x.shape[-1]) for x in sampled]
    rows, validation = _rule_rows(corpus, sampled, seed, held_out)
    objective = objectives.get('value_regression')
  elif corpus.log_target is not None:
    rows, validation, scale = _log_rows(corpus, seed, held_out)
    objective = objectives.get('value_regression')
  else:
    rows, validation = _preference_rows(corpus, seed, held_out)
    objective = objectives.get('bradley_terry')
  if len(rows.tokens) < batch_size:
    raise errors.ConfigError(
        f'config.gold.held_out is {held_out}, which leaves {len(rows.tokens)} '
        f'rows to train on, and batch_size is {batch_size}; lower it')
  tx = train.optimizer(num_steps=num_steps, **optimizer)
  state = train.init_state(
      reward_models.init(config, init_key, trunk=trunk), tx, key)
  step_fn = train.make_train_step(
      functools.partial(reward_models.forward, config), objective, tx,
      num_microbatches=num_microbatches)
  state, last = fit_lib.fit(
      context, state, sources.offline(rows, batch_size=batch_size, seed=seed),
      jax.jit(step_fn, donate_argnums=0), num_steps=num_steps,
      **(training or {}), tokens_per_step=int(batch_size * np.mean(
          rows.mask.any(axis=1).sum(axis=-1))))
  artifacts.write_model(context, 'reward', model, corpus.tokenizer)
  return {**_quality(config, state.params, validation), **scale, **last}
