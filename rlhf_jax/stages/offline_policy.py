"""One policy trained on logged responses by one row of the algorithm table.

Every offline method runs through here: what differs is the row, which of the
responses it is given, and how they are drawn. Annotators see the whole data
set once, with the initial policy, before it is cut; the evaluation is that of
online methods.
"""

import functools
import json
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import policy as policy_lib
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.evaluation import monitor
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.ops import q_learning
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import offline_data
from rlhf_jax.pipeline import policies
from rlhf_jax.pipeline import rewarding
from rlhf_jax.storage import files


@functools.partial(jax.jit, static_argnames=('config', 'value_config'))
def _forward(config, value_config, params, tokens, mask):
  out = policy_lib.forward(config, params, types.Batch(tokens, mask),
                           value_config=value_config)
  return out.logprobs, out.values


class _Programs(NamedTuple):
  """The compiled parts of a run; equal for runs that differ in a seed."""

  step: Any
  tx: Any


@functools.lru_cache(maxsize=16)
def _programs(config, value_config, spec) -> _Programs:
  """Compiles what (hashable) configs and `spec`, in JSON, describe."""
  spec = json.loads(spec)
  row = offline_data.make_row(spec['algorithm'], spec['arguments'])
  tx = train.optimizer(**spec['optimizer'])
  q = spec['q']
  update_targets = None
  if offline_data.is_ilql(row):
    def update_targets(targets, params, step):
      return q_learning.polyak_every(
          targets, params['q_heads'], step, rate=q['rate'], every=q['every'])
  step = train.make_train_step(
      functools.partial(policy_lib.forward, config, value_config=value_config),
      row.bind(), tx, num_microbatches=spec['num_microbatches'],
      update_targets=update_targets,
      dropout=bool(config.dropout or config.adapter_dropout))
  return _Programs(jax.jit(step, donate_argnums=0), tx)


def _load(context, row, logged, values) -> tuple[dict, list[str]]:
  """The training examples of a log, and the names of its groups."""
  arrays = files.load_arrays(context.directory_of(logged) / 'logged.npz')
  result = context.result_of(logged)
  log = {name: arrays[name]
         for name in ('tokens', 'mask', 'group', 'scores', 'raw_scores')}
  if offline_data.needs_values(row):
    log['values'] = files.load_arrays(
        context.directory_of(values) / 'values.npz')['values']
  train_examples = len(log['tokens']) - result['num_validation']
  return {k: x[:train_examples] for k, x in log.items()}, result['groups']


def _source(dataset, priority, batch_size, seed) -> sources.Source:
  """Every response alike in each epoch, or drawn in proportion."""
  if priority == 'none':
    return sources.offline(dataset, batch_size=batch_size, seed=seed)
  weights = (dataset.advantages if priority == 'advantage'
             else dataset.scores)[:, 0]
  if not (weights > 0).any():
    raise errors.ConfigError(
        f'priority is {priority!r}, and none of {len(weights)} responses has '
        "one above 0; choose priority='none', or look at the rewards")
  return sources.prioritized(
      dataset, np.maximum(weights, 0), batch_size=batch_size, seed=seed)


def run(context, *, seed: int, data: dict, policy: str, policy_model: dict,
        gold: str, gold_model: dict, pairs: str, components: dict,
        logged: str, algorithm: str, arguments: dict, use: str, filtered: bool,
        priority: str, batch_size: int, num_microbatches: int, num_steps: int,
        scale_steps: bool, optimizer: dict, value: dict, q: dict,
        evaluation: dict, sampler: dict, pool: dict,
        values: str | None = None, proxies: str | None = None,
        proxy_model: dict | None = None, num_members: int | None = None,
        training: dict | None = None) -> dict:
  """Trains, evaluates on the way, and writes what a report reads.

  The files are those of the stage `policy`, without `updates.jsonl`.

  Args:
    context: of the stage.
    seed: of the order of the examples, the heads and the evaluation.
    data: config node of the corpus.
    policy: stage that holds the SFT policy: where training starts, and the
      reference.
    policy_model: its shape.
    gold: stage that holds the gold reward model.
    gold_model: its shape.
    pairs: stage whose responses set the zero and the unit of gold scores.
    components: of `rewarding.build`, by which the policy is evaluated.
    logged: stage that holds the responses and their scores.
    algorithm: of `offline_data.make_row`.
    arguments: of `offline_data.make_row`.
    use: of `offline_data.select`.
    filtered: of `offline_data.make_row`.
    priority: how responses are drawn: 'none' (each once in every epoch), or
      with replacement in proportion to 'advantage' or 'reward' (objectives.md
      9.9).
    batch_size: examples a step.
    num_microbatches: see `train.make_train_step`.
    num_steps: optimizer steps.
    scale_steps: multiplies `num_steps` by the share of the responses that is
      left, as the code of Baheti et al. does, so that epochs stay equal.
    optimizer: of `train.optimizer`.
    value: of `policies.add_value_head`, where a row has values.
    q: of ILQL, 'mlp' and 'scale' of `heads.init_q`, 'rate' and 'every' of
      `q_learning.polyak_every`, and 'shift' and 'top_k' of its sampler.
    evaluation: 'every' so many steps, on 'num_prompts', 'texts' of them kept.
    sampler: temperature, top_k, top_p of the evaluation.
    pool: of `programmatic.Functions`.
    values: stage of `prompt_value`, where advantages are needed.
    proxies: stage that holds the reward models, where components read them.
    proxy_model: their shape.
    num_members: E.
    training: save_every and log_every of `fit_lib.fit`.
  """
  corpus = artifacts.load_corpus(context, data, seed, policy)
  vocab_size = corpus.tokenizer.vocab_size
  config, reference = artifacts.load_policy(
      context, policy, policy_model, vocab_size)
  made = artifacts.restore_trained(
      context.directory_of(policy), policy_model, vocab_size)
  row = offline_data.make_row(algorithm, arguments, filtered=filtered)
  head_key, q_key, monitor_key, key = jax.random.split(
      jax.random.fold_in(jax.random.key(seed), 8), 4)
  trainable, value_config, targets = made.trainable, None, None
  if offline_data.is_ilql(row) or any(
      node['name'] == 'old_values' for node in row.annotators):
    trainable, value_config = policies.add_value_head(
        trainable, value, config, head_key, reference=reference)
  if offline_data.is_ilql(row):
    targets = heads.init_q(q_key, config.hidden_size, config.vocab_size,
                           mlp=q['mlp'], scale=q['scale'])
    trainable = {**trainable, 'q_heads': targets}

  log, groups = _load(context, row, logged, values)
  given = offline_data.select(row, log, use, groups)
  initial = {**(made.base or {}), **trainable}
  dataset = offline_data.annotated(row, given, functools.partial(
      _forward, made.config, value_config, initial))
  kept = len(dataset.tokens) / len(given.tokens)
  if scale_steps:
    num_steps = math.ceil(num_steps * kept)
  spec = dict(algorithm=algorithm, arguments=arguments, q=q,
              num_microbatches=num_microbatches,
              optimizer=dict(optimizer, num_steps=num_steps))
  programs = _programs(made.config, value_config, json.dumps(
      files.jsonable(spec), sort_keys=True))
  state = train.init_state(trainable, programs.tx, key, targets)
  artifacts.write_model(context, 'policy', policy_model, corpus.tokenizer)

  def params(state):
    found = {**(made.base or {}), **state.params}
    return found | ({'target_q_heads': state.targets} if targets else {})

  gold_scale, rule_scale = artifacts.score_scales(context, corpus, pairs)
  gold_config = pretrained.config(gold_model, vocab_size)
  with rewarding.of_log(
      context, components, logged, pool, corpus=corpus, gold=gold,
      gold_model=gold_model, pairs=pairs, proxies=proxies,
      proxy_model=proxy_model, num_members=num_members) as named:
    watch = monitor.Monitor(
        config=made.config, reference=reference, reward_config=None,
        reward=None, reward_scale=None, aggregate={}, components=named,
        gold_config=gold_config,
        gold=artifacts.load_members(context, gold, gold_config, None),
        gold_scale=gold_scale, rule_scale=rule_scale, corpus=corpus,
        num_prompts=evaluation['num_prompts'], key=monitor_key,
        sampler=sampler | ({'top_k': q['top_k']} if targets else {}),
        value_shift=q['shift'] if targets else None)
    state, last = fit_lib.fit(
        context, state, _source(dataset, priority, batch_size, seed),
        programs.step, num_steps=num_steps, base=made.base,
        evaluate=policies.evaluator(
            context, watch, texts=evaluation['texts'], num_steps=num_steps,
            params=params, counts=lambda step: {
                'updates': step,
                'epoch': step * batch_size / len(dataset.tokens)}),
        evaluate_every=evaluation['every'], folder='training',
        tokens_per_step=int(
            batch_size * dataset.mask.sum(axis=(1, 2)).mean()),
        **(training or {}))
  artifacts.save_policy(context, num_steps, state.params)
  return {**last, 'updates': num_steps, 'examples': len(given.tokens),
          'filtered_share': 1 - kept,
          'epochs': num_steps * batch_size / len(dataset.tokens)}
