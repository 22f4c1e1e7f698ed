"""What each stage of a plan holds on one device, from shapes alone.

Bytes of parameters, of optimizer states and of caches are those of
`sharding.shardings`; what programs need beside them is of `estimates`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from rlhf_jax import train
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import online_methods
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.runner import run as run_lib
from rlhf_jax.studies import estimates
from rlhf_jax.studies import programs

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Use:
  """What one stage holds on one device, in bytes."""

  stage: str
  trained: int = 0  # parameters that it trains
  optimizer: int = 0  # moments, targets and counters beside them
  frozen: int = 0  # base, reference, reward models, as they are kept
  sampler: int = 0  # weights gathered for a call, and its cache
  activations: int = 0  # of its largest program; an estimate
  # That which decides, to be made on a mesh; None: not said.
  program: Callable[[], programs.Program] | None = dataclasses.field(
      default=None, compare=False)

  @property
  def peak(self) -> int:
    """The most at any time: gradients live beside what a step computes."""
    return self.trained + self.optimizer + self.frozen + max(
        self.trained + self.activations, self.sampler)


class _Model(NamedTuple):
  """What a stage leaves."""

  node: Mapping[str, Any]
  members: int = 0  # E of reward models; 0: a policy


class Planner:
  """Walks a plan; every stage reads the shapes of those before it."""

  def __init__(self, mesh: AbstractMesh, sizes: estimates.Sizes):
    self._mesh, self._sizes = mesh, sizes
    self._estimate = estimates.Estimates(mesh, sizes)
    self._models, self._uses = {}, {}

  def use(self, stage: run_lib.Stage) -> Use:
    """What a stage holds; nothing where it only reads and writes files."""
    kind = stage.run.func.__module__.rpartition('.')[2]
    told = stage.run.keywords
    if not hasattr(self, f'_use_{kind}'):
      return Use(stage.name)
    self._models[stage.name] = self._left(kind, told)
    # Stages of other seeds are alike, and shapes take a while to trace.
    said = json.dumps([kind, {k: v for k, v in told.items() if k not in (
        'seed', 'part', 'given', 'data')}, {
            role: self._models[name] for role, name in told['given'].items()
            if isinstance(name, str) and name in self._models}])
    if said not in self._uses:
      self._uses[said] = getattr(self, f'_use_{kind}')(stage.name, told)
    return dataclasses.replace(self._uses[said], stage=stage.name)

  def _left(self, kind, told):
    """The model that a stage leaves; None where it leaves none."""
    if kind in ('sft', 'gold', 'proxies'):
      members = {'sft': 0, 'gold': 1}.get(
          kind, told['node'].get('num_members'))
      return _Model(told['node']['model'], members)
    if kind in ('online_policy', 'offline_policy'):
      given = told['given']
      return self._models[given.get('policy') or given['reference']]
    return None

  # Stages.

  def _use_sft(self, name, told):
    node = told['node']
    config, trainable, base = pretrained.abstract(
        node['model'], self._sizes.vocab_size)
    trained, optimizer = self._state(trainable)
    base = base and _frozen(config, base)
    frozen = self._place(base or {})
    rows, parts = node['batch_size'], node['num_microbatches']
    return Use(
        name, trained, optimizer, frozen,
        activations=self._estimate.step(config, rows // parts),
        program=self._policy_step(config, trainable, base, rows, parts))

  def _use_gold(self, name, told):
    return self._rewards(name, told['node'], 1)

  def _use_proxies(self, name, told):
    return self._rewards(name, told['node'], told['node']['num_members'])

  def _rewards(self, name, node, members):
    config, params = self._shapes(_Model(node['model'], members))
    trained, optimizer = self._state(params, members)
    pairs, parts = node['batch_size'], node['num_microbatches']
    return Use(
        name, trained, optimizer, activations=self._estimate.step(
            config, 2 * pairs // parts, vocabulary=False, members=members),
        program=functools.partial(
            programs.reward_step, config, params, members=members, pairs=pairs,
            length=self._sizes.length, num_microbatches=parts))

  def _use_pairs(self, name, told):
    return self._sampling(name, told, rows_lib.CHUNK * 2)

  def _use_samples(self, name, told):
    return self._sampling(name, told, told['call']['samples_per_call'])

  def _use_prompt_value(self, name, told):
    return self._sampling(
        name, told, rows_lib.CHUNK * told['node']['num_samples'])

  def _use_logged(self, name, told):
    judges = [self._models.get(told['given'].get(role))
              for role in ('proxies', 'gold')]
    frozen, scoring = self._judged(judges, on_host=True)
    return Use(name, frozen=frozen, activations=scoring)

  def _sampling(self, name, told, rows):
    given = told['given']
    policy = self._models[given.get('policy') or given['reference']]
    config, params = self._policy(policy)
    more, scoring = self._judged(
        [self._models.get(given.get('gold'))], rows, on_host=True)
    return Use(
        name, frozen=self._place(params) + more, activations=scoring,
        sampler=self._estimate.sampler(
            config, sharding.device_bytes(params), rows),
        program=functools.partial(
            programs.sampler, config, params, prompts=rows, samples=1,
            prompt=self._sizes.prompt, new_tokens=self._sizes.response))

  def _use_scores(self, name, told):
    proxies = self._models[told['given']['proxies']]
    frozen, scoring = self._judged([proxies], on_host=True)
    config, params = self._shapes(proxies)
    return Use(
        name, frozen=frozen, activations=scoring, program=functools.partial(
            programs.scorer, config, _frozen(config, params),
            members=proxies.members, rows=reward_models.rows_per_chunk(
                config, proxies.members, self._sizes.length,
                reward_models.CHUNK), length=self._sizes.length))

  def _use_online_policy(self, name, told):
    given, run = told['given'], told['run']
    start = self._models[given.get('policy') or given['reference']]
    rollout, updates = run['rollout'], run['updates']
    chunk = (rollout['chunk_size'] or rollout['batch_size']) * rollout[
        'samples']
    step = (rollout['batch_size'] * rollout['samples']
            // updates['num_minibatches'] // updates['num_microbatches'])
    row = online_methods.make_row(run['algorithm'], run['arguments'], run['kl'])
    kinds = reward_nodes.kinds(
        run['reward']['components'] | told['measure']['components'])
    judges = [self._models.get(given.get(role)) for role in ('proxies', 'gold')
              if role == 'gold' or 'proxy' in kinds]
    return self._trained_policy(
        name, start, run['value'] if methods.has_values(row) else None,
        given, judges, step=step, chunk=chunk,
        together=rollout['batch_size'] * rollout['samples'])

  def _use_offline_policy(self, name, told):
    given, run = told['given'], told['run']
    start = self._models[given['reference']]
    row = offline_methods.make_row(run)
    responses = 2 if run['use'] == 'pairs' else 1
    step = run['batch_size'] * responses // run['num_microbatches']
    use = self._trained_policy(
        name, start, run['value'] if methods.has_values(row) else None,
        given, [self._models.get(given.get('gold'))], step=step,
        chunk=run['evaluation']['chunk_size'], together=step)
    if not methods.is_ilql(row):
      return use
    config = pretrained.config(start.node, self._sizes.vocab_size)
    q_heads = {'q_heads': jax.eval_shape(lambda: heads.init_q(
        jax.random.key(0), config.hidden_size, config.vocab_size,
        mlp=run['q']['mlp'], scale=run['q']['scale']))}
    trained, more = self._state(q_heads)
    return dataclasses.replace(  # their targets are as large as they are
        use, trained=use.trained + trained,
        optimizer=use.optimizer + more + trained)

  def _trained_policy(self, name, start, value, given, judges, *, step,
                      chunk, together):
    """A policy that is trained, evaluated and, online, sampled from.

    Args:
      name: of the stage.
      start: what it starts from.
      value: node of its value head; None without one.
      given: stages by role.
      judges: reward models.
      step: rows of one step.
      chunk: rows sampled at a time.
      together: rows that one program annotates.
    """
    config, trainable, base = pretrained.abstract(
        start.node, self._sizes.vocab_size)
    program = self._policy_step(
        config, trainable, base and _frozen(config, base), step)
    trainable, extra = self._with_value(trainable, config, value, given)
    trained, optimizer = self._state(trainable)
    more, scoring = self._judged(judges, together)
    # Under adapters the reference shares the base.
    _, reference = self._policy(start)
    batch = self._estimate.tokens(together) * 4 * 6  # its f32 fields
    return Use(
        name, trained, optimizer, self._place(reference) + more + batch,
        self._estimate.sampler(config, sharding.device_bytes(reference), chunk),
        max(self._estimate.step(config, step) + extra(step), scoring,
            self._estimate.score(config, together)), program)

  def _with_value(self, trainable, config, value, given):
    """Trained parameters with a value head; what its trunk's step needs."""
    if value is None:
      return trainable, lambda rows: 0
    shared, of_reward = value['trunk'] == 'shared', value['trunk'] == 'reward'
    if of_reward:
      proxies = self._models[given['proxies']]
      trunk_config, params = self._shapes(proxies)
      first = jax.tree.map(
          lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), params)
      return ({**trainable, 'value_head': first['head'],
               'value_trunk': first['trunk']}, lambda rows: self._estimate.step(
                   trunk_config, rows, vocabulary=False))
    trainable = {**trainable, 'value_head': jax.eval_shape(
        lambda: heads.init_scalar(
            jax.random.key(0), config.hidden_size, scale=value['scale'],
            mlp=value['mlp']))}
    if not shared:
      trainable['value_trunk'] = jax.eval_shape(
          heads.trunk, transformer.abstract(config))
    return trainable, lambda rows: 0 if shared else self._estimate.step(
        config, rows, vocabulary=False)

  # Models.

  def _shapes(self, model):
    """Config and parameters [E, ...] of reward models."""
    config = pretrained.config(model.node, self._sizes.vocab_size)
    return config, jax.eval_shape(lambda: reward_models.init_members(
        config, jax.random.split(jax.random.key(0), model.members)))

  def _policy(self, model):
    """Config, and parameters as they are kept frozen."""
    config, trainable, base = pretrained.abstract(
        model.node, self._sizes.vocab_size)
    return config, _frozen(config, {**(base or {}), **trainable})

  def _policy_step(self, config, trainable, base, rows, parts=1):
    return functools.partial(
        programs.policy_step, config, trainable, base, rows=rows,
        length=self._sizes.length, num_microbatches=parts)

  def _judged(self, models, rows=reward_models.CHUNK, *, on_host=False):
    """Bytes of frozen reward models, and what scoring `rows` needs.

    At once, or `on_host` in the chunks of `reward_models.score_rows`.
    """
    held, most = 0, 0
    for model in filter(None, models):
      config, params = self._shapes(model)
      held += self._place(_frozen(config, params), model.members)
      together = rows if not on_host else reward_models.rows_per_chunk(
          config, model.members, self._sizes.length, rows)
      most = max(most, self._estimate.score(
          config, together, vocabulary=False, members=model.members))
    return held, most

  def _place(self, tree: Any, members: int = 0) -> int:
    return sharding.device_bytes(
        sharding.abstract(tree, members=members, mesh=self._mesh))

  def _state(self, params: Any, members: int = 0) -> tuple[int, int]:
    """Bytes of trained parameters, and of the rest of their state."""
    tx = train.optimizer(learning_rate=1., num_steps=1)
    make = lambda p: train.init_state(p, tx, jax.random.key(0))
    state = jax.eval_shape(jax.vmap(make) if members else make, params)
    held = self._place(params, members)
    return held, self._place(state, members) - held


def _frozen(config, params):
  return jax.eval_shape(
      functools.partial(transformer.frozen, config), params)
