"""One policy trained online by one row of the algorithm table.

Prompts are answered by the current policy, the answers scored by a reward
model, an ensemble of them or functions of their texts, and the policy is
updated one or more times on each such rollout. Every method runs through
here; what differs is the row and its arguments.
"""

import contextlib
import functools
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import policy as policy_lib
from rlhf_jax import sampling
from rlhf_jax import sharding
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import from_models
from rlhf_jax.annotators import running
from rlhf_jax.evaluation import monitor
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.pipeline import policies
from rlhf_jax.pipeline import rewarding
from rlhf_jax.rewards import programmatic
from rlhf_jax.storage import files

MODELS = ('scores', 'ref_logprobs', 'old_values')  # read parameters
KL_NODES = ('kl_scores', 'kl_rewards')


def make_row(algorithm: str, arguments: dict[str, dict],
             kl: dict[str, Any]) -> algorithms.Algorithm:
  """The row of a run, with the run's own arguments and KL coefficient.

  Args:
    algorithm: a key of `algorithms.ALGORITHMS` whose source is 'prompts'.
    arguments: of `Algorithm.replace`; {'drop': True} takes an annotator out.
    kl: 'coef', None for the row's own in that place; 'place' 'reward' or
      'loss'; 'target' and 'horizon' of the adaptive controller, target None
      for a fixed coefficient.

  Raises:
    ValueError: an argument is unknown or does not fit the algorithm.
  """
  if algorithm not in algorithms.ALGORITHMS:
    raise ValueError(f'algorithm is {algorithm!r}; there are '
                     f'{", ".join(names())}.')
  row = algorithms.ALGORITHMS[algorithm]
  if 'scores' in arguments:
    raise ValueError("arguments of 'scores' are given as reward.aggregate.")
  if row.source != 'prompts' or row.objective is None:
    raise ValueError(f'algorithm {algorithm!r} does not sample; there are '
                     f'{", ".join(names())}.')
  dropped = [k for k, v in arguments.items() if v.get('drop')]
  row = row.replace(**{k: v for k, v in arguments.items() if k not in dropped})
  for name in dropped:
    if name in (*MODELS, *KL_NODES):
      raise ValueError(f'{row.title} needs {name!r}, which cannot be dropped.')
  row = row.without(*dropped)
  shaped = [node['name'] for node in row.annotators
            if node['name'] in KL_NODES]
  if kl['place'] not in ('reward', 'loss'):
    raise ValueError(f"kl.place is {kl['place']!r}; 'reward' or 'loss'.")
  if kl['place'] == 'loss':
    own = kl['coef'] if kl['coef'] is not None else row.objective.get('kl_coef')
    if own is None:
      raise ValueError(f'{row.title} has no KL in the loss; set kl.coef.')
    row = row.replace(**{row.objective['name']: {'kl_coef': own}},
                      **{name: {'kl_coef': 0.} for name in shaped})
  elif kl['coef'] is not None:
    if not shaped:
      raise ValueError(f'{row.title} has no KL in the reward; leave kl.coef '
                       "or set kl.place='loss'.")
    row = row.replace(**{name: {'kl_coef': kl['coef']} for name in shaped})
  _check_coefficients(row)
  return row


def _check_coefficients(row):
  """At most one KL to the reference, and none below 0."""
  found = [node['kl_coef'] for node in (*row.annotators, row.objective)
           if node.get('kl_coef')]
  if len(found) > 1:
    raise ValueError(f'{row.title} has a KL coefficient in the reward and in '
                     f'the loss, {found}; set one of them to 0.')
  if any(not coefficient > 0 for coefficient in found):
    raise ValueError(f'a KL coefficient is {found[0]}; give 0 or more.')


def names() -> list[str]:
  """The algorithms that a policy can be trained by here."""
  return [name for name, row in algorithms.ALGORITHMS.items()
          if row.source == 'prompts' and row.objective is not None]


def initial_kl_coef(row: algorithms.Algorithm) -> float:
  """The KL coefficient that a row begins with; 0 where it has none."""
  nodes = [*row.annotators, row.objective]
  return next((n['kl_coef'] for n in nodes if n.get('kl_coef')), 0.)


def make_nodes(row: algorithms.Algorithm, reward: dict[str, Any],
               kl: dict[str, Any], eos_id: int) -> list[dict[str, Any]]:
  """All annotators of a run, in order: scores, reference, values, the row's.

  Args:
    row: of `make_row`.
    reward: 'aggregate', 'weight', 'noise', 'clip', 'eos', 'scale' of
      the config.
    kl: of the config.
    eos_id: of the tokenizer.
  """
  nodes = [{'name': 'scores', 'weight': reward['weight'],
            **reward['aggregate']}]
  if reward['noise']:
    nodes.append({'name': 'noise', 'sigma': reward['noise']})
  if reward['scale'] is not None:
    nodes.append({'name': 'scale_scores', 'kind': reward['scale']})
  if reward['clip'] is not None:
    nodes.append({'name': 'clip_scores', 'limit': reward['clip']})
  nodes += [{'name': 'missing_eos', 'eos_id': eos_id, how: reward['eos'][how]}
            for how in ('penalty', 'value') if reward['eos'][how] is not None]
  # The reference is read in every method, so that its KL is known.
  nodes.append({'name': 'ref_logprobs'})
  nodes += [dict(node) for node in row.annotators
            if node['name'] not in ('scores', 'ref_logprobs')]
  if kl['target'] is not None:
    # After the penalty, before responses are left out: those count too.
    at = max(i for i, node in enumerate(nodes)
             if node['name'] in (*KL_NODES, 'ref_logprobs'))
    nodes.insert(at + 1, {'name': 'adapt_kl_coef', 'target': kl['target'],
                          'horizon': kl['horizon']})
  return nodes


class _Programs(NamedTuple):
  """The compiled parts of a run; equal for runs that differ in a seed."""

  sampler: Any
  annotated: Any
  updates: Any
  tx: Any


@functools.lru_cache(maxsize=8)
def _programs(config, value_config, reward_config, tokens, spec) -> _Programs:
  """Compiles what (hashable) configs and `spec`, in JSON, describe."""
  spec = json.loads(spec)
  eos_id, pad_id, vocab_size, max_new_tokens = tokens
  drawn, optimizer = spec['rollout'], spec['optimizer']
  row = make_row(spec['algorithm'], spec['arguments'], spec['kl'])
  nodes = make_nodes(row, spec['reward'], spec['kl'], eos_id)
  temperature = drawn['temperature']

  @jax.jit
  def sampler(params, prompts, prompt_lengths, key, row_ids):
    return sampling.sample(
        config, params, prompts, prompt_lengths, key, row_ids=row_ids,
        num_samples=drawn['samples'], max_new_tokens=max_new_tokens,
        temperature=temperature, top_k=drawn['top_k'], top_p=drawn['top_p'],
        eos_id=eos_id, pad_id=pad_id, num_tokens=vocab_size)

  whole = lambda state, frozen: {**(frozen.base or {}), **state.params}
  if config.dtype != 'float32':  # the sampler's own are a hundredth off
    nodes.insert(0, {'name': 'old_logprobs'})
  annotators = chain_lib.chain(nodes, {
      'old_logprobs': lambda batch, state, frozen: from_models.old_logprobs(
          batch, config, whole(state, frozen), temperature=temperature),
      'scores': lambda batch, state, frozen, **kwargs: from_models.scores(
          batch, reward_config, frozen.reward, scale=frozen.reward_scale,
          **kwargs),
      'ref_logprobs': lambda batch, state, frozen: from_models.ref_logprobs(
          batch, config, frozen.reference, temperature=temperature),
      'old_values': lambda batch, state, frozen: from_models.old_values(
          batch, config, whole(state, frozen), value_config=value_config),
  })
  tx = train.optimizer(**optimizer)
  forward = functools.partial(
      policy_lib.forward, config, temperature=temperature,
      value_config=value_config)
  target = spec['updates'].pop('penalty_target')
  parts = spec['updates'].pop('num_microbatches')
  step = train.make_train_step(
      forward, row.bind(), tx, num_microbatches=parts,
      coefficients=_coefficients(row, target),
      dropout=bool(config.dropout or config.adapter_dropout))
  updates = train.make_updates(
      step, penalty_target=target, **spec['updates'])
  return _Programs(sampler, jax.jit(sources.rollout(annotators)),
                   jax.jit(updates, donate_argnums=0), tx)


def _coefficients(row, penalty_target) -> tuple[str, ...]:
  """What the objective is given from the statistics."""
  return (('kl_coef',) * bool(row.objective.get('kl_coef'))
          + ('kl_penalty_coef',) * (penalty_target is not None))


def try_out(row: algorithms.Algorithm, reward: dict[str, Any],
            kl: dict[str, Any], updates: dict[str, Any], samples: int):
  """Traces annotators and objective of a run on shapes; touches no device.

  Args:
    row: of `make_row`.
    reward: of `make_nodes`.
    kl: of `make_nodes`.
    updates: of `run`.
    samples: K.

  Raises:
    ValueError: an argument is unknown, missing or out of range.
  """
  target = updates['penalty_target']
  if target is not None:
    if not target > 0 or not row.objective.get('kl_penalty_coef'):
      raise ValueError('updates.penalty_target must be > 0 and needs the '
                       f'KL-penalty form of PPO, got {target} and {row.title}.')
    if updates['num_epochs'] * updates['repeats'] < 2:
      raise ValueError('updates.penalty_target sees how far a second update on '
                       'a minibatch has come; set updates.num_epochs >= 2.')
  chain = chain_lib.chain(nodes := make_nodes(row, reward, kl, 0), {
      'scores': lambda batch, *unused, **kwargs: batch.replace(
          scores=jnp.zeros(shape[:2]),
          member_scores=jnp.zeros((2, *shape[:2]))),
      'ref_logprobs': lambda batch, *unused: batch.replace(
          ref_logprobs=jnp.zeros(shape)),
      'old_values': lambda batch, *unused: batch.replace(
          old_values=jnp.zeros(shape))})
  shape = (2, samples, 4)

  def whole():
    zeros = jnp.zeros(shape)
    batch = types.Batch(tokens=jnp.zeros(shape, jnp.int32), old_logprobs=zeros,
                        mask=jnp.ones(shape, bool))
    state = types.TrainState(
        step=jnp.int32(0), params={}, opt_state=(), key=jax.random.key(0),
        statistics=_statistics(nodes, row, updates))
    batch, state = chain(batch, state, None)
    out = types.PolicyOutput(logprobs=zeros, entropy=zeros, values=zeros)
    return row.bind()(out, batch, **{
        name: state.statistics[name] for name in _coefficients(row, target)})

  try:
    jax.eval_shape(whole)
  except (AssertionError, AttributeError, KeyError) as error:
    raise ValueError(str(error).partition('\n')[0]) from error


def _functions(reward) -> programmatic.Functions | None:
  nodes = reward['functions']
  if not nodes:
    return None
  return programmatic.Functions(nodes, **reward['functions_pool'])


def _on_texts(functions, corpus):
  """Programmatic rewards of a batch, (step, batch) -> f32[B, K]."""
  def score(step, batch):
    tokens, mask = np.asarray(batch.tokens), np.asarray(batch.mask)
    prompts, responses = monitor.decode(corpus.tokenizer, tokens, mask)
    return functions.score(prompts, responses, step).reshape(mask.shape[:2])
  return score


def run(context, *, seed: int, data: dict, policy: str, policy_model: dict,
        gold: str, gold_model: dict, pairs: str, proxies: str,
        proxy_model: dict, num_members: int, algorithm: str, arguments: dict,
        reward: dict, kl: dict, rollout: dict, updates: dict, value: dict,
        num_steps: int, optimizer: dict, evaluation: dict,
        sampler: dict, start: str | None = None, part: int = 0,
        training: dict | None = None, components: dict | None = None,
        logged: str | None = None) -> dict:
  """Trains, evaluates on the way, and writes what a report reads.

  `evaluation.jsonl` has a line for every evaluation, `metrics.jsonl` for
  logged rollouts, `updates.jsonl` for their optimizer steps, `texts/` samples
  of text, `final.jsonl` a line for every evaluation prompt after training.

  Args:
    context: of the stage.
    seed: of the prompts' order, the samples and the noise.
    data: config node of the corpus.
    policy: stage that holds the SFT policy, which is also the reference.
    policy_model: its shape.
    gold: stage that holds the gold reward model, read only to evaluate.
    gold_model: its shape.
    pairs: stage whose responses set the zero and the unit of gold scores.
    proxies: stage that holds the ensemble.
    proxy_model: shape of its trunk.
    num_members: E.
    algorithm: of `make_row`.
    arguments: of `make_row`.
    reward: of `make_nodes`; 'standardize' (members to mean 0, deviation 1 on
      held-out responses), 'functions' and 'functions_pool' of
      `programmatic.Functions`.
    kl: of `make_row`.
    rollout: 'batch_size' prompts with 'samples' responses each,
      'temperature', 'top_k', 'top_p', and 'chunk_size' of `sources.online`,
      which also bounds what is evaluated at a time.
    updates: 'num_epochs', 'num_minibatches', 'repeats', 'penalty_target' of
      `train.make_updates`, and 'num_microbatches'.
    value: of the head, 'mlp' and 'scale', and its 'trunk': 'shared' with the
      policy, 'separate' (a copy of the SFT policy's) or 'reward' (the first
      reward model's, head included).
    num_steps: rollouts.
    optimizer: of `train.optimizer`.
    evaluation: 'every' so many rollouts, on 'num_prompts', 'texts' of them
      kept.
    sampler: temperature, top_k, top_p of the evaluation.
    start: stage of a policy to go on from; None: the SFT policy.
    part: which of several trainings of one seed; each has prompts in an order
      of its own, and noise.
    training: save_every and log_every of `fit_lib.fit`.
    components: of `rewarding.build`, by which the policy is compared with
      those that learn offline, in place of what it maximises itself.
    logged: stage that holds the logged responses, for `components`.
  """
  corpus = artifacts.load_corpus(context, data, seed, policy)
  coder = corpus.tokenizer
  vocab_size = coder.vocab_size
  config, reference = artifacts.load_policy(
      context, policy, policy_model, vocab_size)
  reward_config = pretrained.config(proxy_model, vocab_size)
  members = artifacts.load_members(context, proxies, reward_config, num_members)
  scale = None
  if reward['standardize']:
    scale = files.load_arrays(context.directory_of(proxies) / 'scale.npz')
  key = jax.random.fold_in(jax.random.key(seed), 5)
  init_key, monitor_key, key = jax.random.split(key, 3)
  if part:  # evaluations stay comparable
    key = jax.random.fold_in(
        jax.random.fold_in(jax.random.key(seed), 6), part)

  made = artifacts.restore_trained(
      context.directory_of(start or policy), policy_model, vocab_size)
  row = make_row(algorithm, arguments, kl)
  trainable, value_config = made.trainable, None
  if any(node['name'] == 'old_values' for node in row.annotators):
    trainable, value_config = policies.add_value_head(
        trainable, value, config, init_key, reference=reference,
        reward=members, reward_config=reward_config)

  number = int(rollout['batch_size'] * rollout['samples'])
  per_rollout = (updates['num_epochs'] * updates['num_minibatches']
                 * updates['repeats'])
  spec = dict(
      algorithm=algorithm, arguments=arguments, updates=updates,
      # What matters to a program is whether there is a coefficient.
      kl=dict(kl, coef=kl['coef'] and 1.0),
      reward={k: v for k, v in reward.items() if 'functions' not in k},
      rollout={k: v for k, v in rollout.items()
               if k not in ('batch_size', 'chunk_size')},
      optimizer=dict(optimizer, num_steps=num_steps * per_rollout))
  programs = _programs(
      made.config, value_config, reward_config,
      (coder.eos_id, coder.pad_id, vocab_size, corpus.max_response_length),
      json.dumps(files.jsonable(spec), sort_keys=True))
  nodes = make_nodes(row, reward, kl, coder.eos_id)
  state = train.init_state(trainable, programs.tx, key).replace(
      statistics=_statistics(nodes, row, updates))
  gold_scale, rule_scale = artifacts.score_scales(context, corpus, pairs)
  artifacts.write_model(context, 'policy', policy_model, coder)

  with contextlib.ExitStack() as pools:
    functions = _functions(reward)
    if functions is not None:
      pools.callback(functions.close)
    named = components and pools.enter_context(rewarding.of_log(
        context, components, logged, reward['functions_pool'], corpus=corpus,
        gold=gold, gold_model=gold_model, pairs=pairs, proxies=proxies,
        proxy_model=proxy_model, num_members=num_members))
    watch = monitor.Monitor(
        components=named,
        config=made.config, reference=reference, reward_config=reward_config,
        reward=members, reward_scale=scale, aggregate=reward['aggregate'],
        weight=reward['weight'], functions=functions,
        gold_config=pretrained.config(gold_model, vocab_size),
        gold=artifacts.load_members(
            context, gold, pretrained.config(gold_model, vocab_size), None),
        gold_scale=gold_scale, rule_scale=rule_scale, corpus=corpus,
        num_prompts=evaluation['num_prompts'], sampler=sampler,
        key=monitor_key, chunk_size=rollout['chunk_size'] or 256)

    evaluate = policies.evaluator(
        context, watch, texts=evaluation['texts'], num_steps=num_steps,
        params=lambda state: {**(made.base or {}), **state.params},
        counts=lambda step: {'updates': step * per_rollout,
                             'samples': step * number})
    source = sources.online(
        corpus.pair_prompts.tokens, corpus.pair_prompts.lengths,
        programs.sampler, programs.annotated,
        batch_size=rollout['batch_size'], seed=seed + 2**32 * part,
        score=functions and _on_texts(functions, corpus),
        chunk_size=rollout['chunk_size'], mesh=sharding.make_mesh())
    state, last = fit_lib.fit(
        context, state, source, programs.updates, num_steps=num_steps,
        base=made.base, frozen=types.Frozen(
            reference=reference, reward=members, reward_scale=scale,
            base=made.base),
        evaluate=evaluate, evaluate_every=evaluation['every'],
        folder='training', **(training or {}))
    artifacts.save_policy(context, num_steps, state.params)
  rollouts = [json.loads(line) for line in (
      context.directory / 'metrics.jsonl').read_text().splitlines()]
  tokens = number * num_steps * np.mean(
      [row['rollout/length'] for row in rollouts])
  return {**last, 'rollouts': num_steps, 'updates': num_steps * per_rollout,
          'responses': num_steps * number,
          'responses_per_second': num_steps * number / last['seconds'],
          'tokens_per_second': float(tokens / last['seconds'])}


def _statistics(nodes, row, updates):
  """What the state begins with; coefficients are data, not program."""
  coefficient = initial_kl_coef(row)
  statistics = running.init(nodes, kl_coef=coefficient)
  if coefficient:
    statistics['kl_coef'] = jnp.float32(coefficient)
  if updates['penalty_target'] is not None:
    statistics['kl_penalty_coef'] = jnp.float32(
        row.objective['kl_penalty_coef'])
  return statistics
