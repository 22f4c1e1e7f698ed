"""How one row of the algorithm table trains a policy that samples.

A `Method` is all that the compiled programs of a run depend on. It is plain
and hashable, so that runs which differ in a seed, or in the size of a
coefficient, share their programs.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

from flax.core import FrozenDict
import jax
import jax.numpy as jnp

from rlhf_jax import algorithms
from rlhf_jax import policy as policy_lib
from rlhf_jax import sampling
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import running
from rlhf_jax.models import transformer
from rlhf_jax.ops import nucleus
from rlhf_jax.parallel import meshes
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import learners
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import online_models
from rlhf_jax.pipeline import rewarding

SOURCES = ('prompts',)
# Read parameters.
MODELS = ('scores', 'ref_logprobs', 'old_values', online_models.MASK)
KL_NODES = ('kl_scores', 'kl_rewards')


def names() -> list[str]:
  """The algorithms that a policy can be trained by here."""
  return methods.names(*SOURCES)


def make_row(algorithm: str, arguments: Mapping[str, Mapping],
             kl: Mapping[str, Any], objective: str | None = None
             ) -> algorithms.Algorithm:
  """The row of a run, with the run's own arguments and KL coefficient.

  Args:
    algorithm: one of `names`.
    arguments: of `Algorithm.adapt`.
    kl: 'coef', None for the row's own in that place; 'place' 'reward' or
      'loss'; 'target' and 'horizon' of the adaptive controller, target None
      for a fixed coefficient.
    objective: see `methods.get`.

  Raises:
    ValueError: an argument is unknown or does not fit the algorithm.
  """
  if 'scores' in arguments:
    raise ValueError("arguments of 'scores' are given as reward.components.")
  row = methods.get(algorithm, arguments, SOURCES, objective)
  for name in (*MODELS, *KL_NODES, 'best_first'):
    if arguments.get(name, {}).get('drop'):
      raise ValueError(f'{row.title} needs {name!r}, which cannot be dropped.')
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


def of_run(run: Mapping[str, Any], kl: Mapping[str, Any] | None = None
           ) -> algorithms.Algorithm:
  """`make_row` of the node `online`, perhaps with another `kl`."""
  return make_row(run['algorithm'], run['arguments'], kl or run['kl'],
                  run.get('objective'))


def _check_coefficients(row):
  """At most one KL to the reference, and none below 0."""
  coefficients = [node['kl_coef'] for node in (*row.annotators, row.objective)
                  if node.get('kl_coef')]
  if len(coefficients) > 1:
    raise ValueError(f'{row.title} has a KL coefficient in the reward and in '
                     f'the loss, {coefficients}; set one of them to 0.')
  if any(not x > 0 for x in coefficients):
    raise ValueError(f'a KL coefficient is {coefficients[0]}; give 0 or more.')


def initial_kl_coef(row: algorithms.Algorithm) -> float:
  """The KL coefficient that a row begins with; 0 where it has none."""
  nodes = [*row.annotators, row.objective]
  return next((n['kl_coef'] for n in nodes if n.get('kl_coef')), 0.)


def make_nodes(row: algorithms.Algorithm, reward: Mapping[str, Any],
               kl: Mapping[str, Any], eos_id: int | tuple[int, ...]
               ) -> list[dict[str, Any]]:
  """All annotators of a run, in order: scores, reference, values, the row's.

  Args:
    row: of `make_row`.
    reward: of the config: 'components' of `rewards.nodes`, and what acts on
      their sum, 'noise', 'scale', 'clip' and 'eos'.
    kl: of the config.
    eos_id: of the tokenizer.
  """
  nodes = rewarding.nodes_of_models(reward['components'])
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


class Tokens(NamedTuple):
  """What a sampler knows of the tokenizer, and how far it may go."""

  eos_id: tuple[int, ...]
  pad_id: int
  num_tokens: int
  max_new_tokens: int


@dataclasses.dataclass(frozen=True)
class Method:
  """What the programs of a run depend on, and nothing else."""

  row: algorithms.Algorithm  # a KL coefficient stands for any that is not 0
  nodes: tuple[FrozenDict, ...]  # of `make_nodes`
  config: transformer.Config
  value_config: transformer.Config | None  # of a trunk of its own
  reward_configs: FrozenDict  # by kind of component
  tokens: Tokens
  rollout: FrozenDict  # samples, temperature, top_k, top_p, min_new_tokens
  updates: FrozenDict
  optimizer: FrozenDict  # with the number of updates as `num_steps`


def coefficients(row: algorithms.Algorithm, penalty_target: float | None
                 ) -> tuple[str, ...]:
  """What an objective is given from the statistics."""
  return (('kl_coef',) * bool(row.objective.get('kl_coef'))
          + ('kl_penalty_coef',) * (penalty_target is not None))


def updates_per_rollout(run: Mapping[str, Any]) -> int:
  """Optimizer steps on one rollout."""
  updates = run['updates']
  return (updates['num_epochs'] * updates['num_minibatches']
          * updates['repeats'])


def make(run: Mapping[str, Any], world: artifacts.World,
         config: transformer.Config, reward_configs: Mapping[str, Any],
         value_config: transformer.Config | None) -> Method:
  """The method of a run.

  Args:
    run: node `online` of the config.
    world: its corpus has the tokenizer.
    config: shape of the policy.
    reward_configs: of `rewarding.frozen_models`.
    value_config: shape of a value trunk of its own.
  """
  coder = world.corpus.tokenizer
  kl = dict(run['kl'])
  if kl['coef']:  # what matters to a program is whether there is one
    kl['coef'] = 1.0
  row = of_run(run, kl)
  nodes = make_nodes(row, run['reward'], kl, coder.eos_ids)
  if config.dtype != 'float32':  # the sampler's own are a hundredth off
    nodes.insert(0, {'name': 'old_logprobs'})
  rollout = {k: v for k, v in run['rollout'].items()
             if k not in ('batch_size', 'chunk_size', 'resample')}
  steps = run['num_steps'] * updates_per_rollout(run)
  return Method(
      row=row, nodes=tuple(map(algorithms.node, nodes)), config=config,
      value_config=value_config, reward_configs=FrozenDict(reward_configs),
      tokens=Tokens(coder.eos_ids, coder.pad_id, coder.vocab_size,
                    world.corpus.max_response_length),
      rollout=FrozenDict(rollout), updates=FrozenDict(run['updates']),
      optimizer=FrozenDict(run['optimizer'], num_steps=steps))


class Programs(NamedTuple):
  """The compiled parts of a run."""

  sampler: Any
  annotated: Any
  varied: Any  # of `sources.varied`; compiled where it is called
  updates: Any
  tx: Any


@functools.lru_cache(maxsize=8)
def programs(method: Method) -> Programs:
  """Compiles what a method describes; the same for the same method."""
  annotators = chain_lib.chain(method.nodes, online_models.annotators(method))
  sampler, *learning = _of_policy(dataclasses.replace(
      method, nodes=(), reward_configs=FrozenDict()))
  return Programs(sampler, jax.jit(sources.rollout(annotators)),
                  jax.jit(sources.varied(annotators)), *learning)


@functools.lru_cache(maxsize=8)
def _of_policy(method: Method) -> tuple[Any, ...]:
  """What draws, what learns and its optimizer, whatever the rewards are."""
  rollout, tokens, config = method.rollout, method.tokens, method.config
  temperature, mask = rollout['temperature'], online_models.mask(method.row)

  def draw(params, prompts, prompt_lengths, key, row_ids, stops=None,
           guide=None):
    if guide is not None:
      guide = nucleus.Guide(guide, mask['top_p'])
    return sampling.sample(
        config, params, prompts, prompt_lengths, key, row_ids=row_ids,
        stops=stops, guide=guide,
        num_samples=rollout['samples'], temperature=temperature,
        top_k=rollout['top_k'], top_p=rollout['top_p'],
        min_new_tokens=rollout['min_new_tokens'], **tokens._asdict())

  compiled = jax.jit(draw)

  def sampler(*inputs, **options):
    # On one CPU `draw` cuts rows itself, into programs that run at once.
    return (draw if meshes.on_one_cpu() else compiled)(*inputs, **options)

  tx, updates = train.optimizer(**method.optimizer), dict(method.updates)
  forward = functools.partial(
      policy_lib.forward, config, temperature=temperature,
      value_config=method.value_config)
  step = train.make_train_step(
      online_models.within(forward, mask['top_p']) if mask else forward,
      method.row.bind(), tx, num_microbatches=updates.pop('num_microbatches'),
      coefficients=coefficients(method.row, updates['penalty_target']),
      dropout=bool(config.dropout or config.adapter_dropout))
  learn = train.make_updates(step, **updates)
  if mask:
    learn = online_models.renewing(
        learn, mask['every'] * updates_per_rollout({'updates': method.updates}))
  return sampler, learners.of_rollouts(learn), tx


def statistics(run: Mapping[str, Any], nodes: list[Mapping]) -> dict[str, Any]:
  """What the state begins with; coefficients are data, not program.

  Args:
    run: node `online` of the config.
    nodes: of its `Method`.
  """
  row = of_run(run)
  coefficient = initial_kl_coef(row)
  start = running.init(nodes, kl_coef=coefficient)
  if coefficient:
    start['kl_coef'] = jnp.float32(coefficient)
  if run['updates']['penalty_target'] is not None:
    start['kl_penalty_coef'] = jnp.float32(row.objective['kl_penalty_coef'])
  return start
