"""What each stage of a plan holds on one device, from shapes alone.

Bytes of parameters, of optimizer states and of frozen models are those of
`sharding.shardings`; what programs need beside them is of `estimates`.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
from typing import NamedTuple

import jax
from jax.sharding import AbstractMesh

from rlhf_jax.models import heads
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import offline_data
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import online_methods
from rlhf_jax.pipeline import online_models
from rlhf_jax.pipeline import prompt_values
from rlhf_jax.pipeline import reward_directory
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.rewards import parameters
from rlhf_jax.runner import run as run_lib
from rlhf_jax.studies import estimates
from rlhf_jax.studies import programs
from rlhf_jax.studies import shapes as shapes_lib

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


class _Log(NamedTuple):
  """What a stage `logged` leaves."""

  responses: int  # K, of an example at most


class _Rows(NamedTuple):
  """How many rows programs of a trained policy read, on all devices."""

  step: int  # of a microbatch
  batch: int  # that lie on the devices while they are learned from
  annotated: int  # that go through the initial policy at a time
  evaluated: int  # prompts that an evaluation answers at a time, once
  sampled: tuple[int, int] = (0, 0)  # prompts at a time, responses to each


class Planner:
  """Walks a plan; every stage reads the shapes of those before it."""

  def __init__(self, mesh: AbstractMesh, sizes: estimates.Sizes):
    self._sizes = sizes
    self._shapes = shapes_lib.Shapes(mesh, sizes.vocab_size)
    self._estimate = estimates.Estimates(mesh, sizes)
    self._left, self._uses = {}, {}

  def use(self, stage: run_lib.Stage) -> Use:
    """What a stage holds; nothing where it only reads and writes files."""
    kind = stage.run.func.__module__.rpartition('.')[2]
    arguments = stage.run.keywords
    if not hasattr(self, f'_use_{kind}'):
      return Use(stage.name)
    self._left[stage.name] = self._leaves(kind, arguments)
    # Stages of other seeds are alike, and shapes take a while to trace.
    key = json.dumps([kind, {k: v for k, v in arguments.items() if k not in (
        'seed', 'part', 'upstream', 'data')}, {
            role: self._left.get(name) if isinstance(name, str) else None
            for role, name in arguments['upstream'].items()}])
    if key not in self._uses:
      self._uses[key] = getattr(self, f'_use_{kind}')(stage.name, arguments)
    return dataclasses.replace(self._uses[key], stage=stage.name)

  def _leaves(self, kind, arguments):
    """The model or the log that a stage leaves; None where it leaves none."""
    if kind in ('sft', 'gold', 'proxies'):
      members = {'sft': 0, 'gold': 1}.get(
          kind, arguments['node'].get('num_members'))
      return shapes_lib.Model(arguments['node']['model'], members)
    if kind == 'loaded_rewards':
      return shapes_lib.Model(*reward_directory.shape(arguments['rewards']))
    if kind in ('online_policy', 'offline_policy'):
      return self._start(arguments['upstream'])
    if kind == 'logged':
      pairs = arguments['node']['source'] == 'pairs'
      return _Log(2 if pairs else arguments['data'].get('max_samples', 2))
    return None

  def _start(self, upstream):
    """The policy that goes on, or answers."""
    return self._left[upstream.get('policy') or upstream['reference']]

  # Stages.

  def _use_sft(self, name, arguments):
    node = arguments['node']
    model = self._shapes.parts(node['model'])
    trained, optimizer = self._shapes.state(model.trainable)
    rows, parts = node['batch_size'], node['num_microbatches']
    return Use(
        name, trained, optimizer, self._shapes.place(model.base or {}),
        activations=self._estimate.step(model.config, rows // parts),
        program=self._policy_step(model, rows, parts))

  def _use_gold(self, name, arguments):
    return self._rewards(name, arguments['node'], 1)

  def _use_proxies(self, name, arguments):
    node = arguments['node']
    use = self._rewards(name, node, node['num_members'])
    if 'features' in arguments['upstream']:  # which take the place of the base
      use = dataclasses.replace(use, frozen=0, activations=0, program=None)
    return use

  def _use_features(self, name, arguments):
    frozen, scoring = self._judged([
        shapes_lib.Model(arguments['model'], members=1)])
    return Use(name, frozen=frozen, activations=scoring)

  def _rewards(self, name, node, members):
    model = self._shapes.rewards(shapes_lib.Model(node['model'], members))
    config, own, base = model
    trained, optimizer = self._shapes.state(own, members)
    pairs, parts = node['batch_size'], node['num_microbatches']
    return Use(
        name, trained, optimizer, self._shapes.place(base or {}),
        activations=self._estimate.step(
            config, 2 * pairs // parts, vocabulary=False, members=members),
        program=functools.partial(
            programs.reward_step, *model, members=members, pairs=pairs,
            length=self._sizes.length, num_microbatches=parts))

  def _use_pairs(self, name, arguments):
    upstream = arguments['upstream']
    return self._sampling(
        name, upstream, self._judges(upstream, also=('gold',)),
        rows_lib.CHUNK, 2)

  def _use_samples(self, name, arguments):
    upstream = arguments['upstream']
    call = arguments['call']['samples_per_call']
    return self._sampling(  # of one prompt at a time, on each device
        name, upstream, self._judges(upstream, also=('gold',)), 1,
        min(call, arguments['num_samples']))

  def _use_prompt_value(self, name, arguments):
    upstream, node = arguments['upstream'], arguments['node']
    use = self._sampling(
        name, upstream, self._judges(upstream, arguments['components']),
        rows_lib.CHUNK, node['num_samples'])
    config, _ = self._shapes.policy(self._start(upstream).node)
    trained, optimizer = self._shapes.state({'head': jax.eval_shape(
        lambda: heads.init_prompt_value(
            jax.random.key(0), config.hidden_size,
            num_heads=node['num_heads']))})
    prompts = dataclasses.replace(  # no response is read
        self._estimate, sizes=self._sizes._replace(response=0))
    return dataclasses.replace(
        use, trained=trained, optimizer=optimizer, activations=max(
            use.activations,
            prompts.score(config, prompt_values.CHUNK, vocabulary=False),
            prompts.head_step(config, node['batch_size'])))

  def _use_logged(self, name, arguments):
    frozen, scoring = self._judged(self._judges(
        arguments['upstream'], arguments['node']['components']))
    return Use(name, frozen=frozen, activations=scoring)

  def _sampling(self, name, upstream, judges, prompts, samples):
    config, params = self._shapes.policy(self._start(upstream).node)
    more, scoring = self._judged(judges)
    return Use(
        name, frozen=self._shapes.place(params) + more, activations=scoring,
        sampler=self._estimate.sampler(
            config, sharding.device_bytes(params), prompts, samples),
        program=functools.partial(
            programs.sampler, config, params, samples=samples,
            prompts=self._estimate.filled(prompts), prompt=self._sizes.prompt,
            new_tokens=self._sizes.response))

  def _use_scores(self, name, arguments):
    proxies = self._left[arguments['upstream']['proxies']]
    config, own, base = self._shapes.rewards(proxies)
    if 'features' in arguments['upstream']:  # which take the place of the base
      return Use(name, frozen=self._shapes.place(own, proxies.members))
    frozen, scoring = self._judged([proxies])
    return Use(
        name, frozen=frozen, activations=scoring, program=functools.partial(
            programs.scorer, config, shapes_lib.frozen(config, own), base,
            members=proxies.members, rows=self._estimate.chunk(config, own),
            length=self._sizes.length))

  def _use_online_policy(self, name, arguments):
    upstream, run = arguments['upstream'], arguments['run']
    rollout, updates = run['rollout'], run['updates']
    parts = updates['num_minibatches'] * updates['num_microbatches']
    prompts, samples = rollout['batch_size'], rollout['samples']
    # Filled up as `sources.online` does.
    step = self._estimate.filled(-(-prompts // parts)) * samples
    row = online_methods.of_run(run)
    value = run['value'] if methods.has_values(row) else None
    reward = run['reward']['components']
    use = self._trained_policy(
        name, upstream, value, (reward, arguments['measure']['components']),
        _Rows(step, step * parts, step * parts, _evaluated(run), (
            rollout['chunk_size'] or prompts, samples)))
    # Within a program, and not in chunks from the host.
    _, scoring = self._judged(self._judges(upstream, reward), step * parts)
    use = dataclasses.replace(use, activations=max(use.activations, scoring))
    if online_models.mask(row) is None:
      return use
    # NLPO copies the policy, and samples and learns beside the copy.
    node = self._start(upstream).node
    model, (config, params) = self._shapes.parts(node), self._shapes.policy(
        node)
    sampler = self._estimate.sampler(
        config, sharding.device_bytes(params),
        rollout['chunk_size'] or prompts, samples)
    return dataclasses.replace(
        use, optimizer=use.optimizer + self._shapes.state(model.trainable)[0],
        sampler=max(use.sampler, 2 * sampler),
        activations=use.activations + self._estimate.guided(
            config, step * parts))

  def _use_offline_policy(self, name, arguments):
    upstream, run = arguments['upstream'], arguments['run']
    row = offline_methods.make_row(run)
    value = run['value'] if methods.has_values(row) else None
    # Of an example: that lie there, and that a step learns from.
    responses = learned = 1
    if row.source == 'unpaired':  # beside one to another prompt
      responses = 2
    if row.source in offline_data.PAIRED:  # of others, all that there are
      responses = learned = (2 if row.source == 'preferences'
                             else self._left[upstream['log']].responses)
    passes = any(methods.has(row, x) for x in ('ref_logprobs', 'old_values'))
    step, batch, annotated = map(self._estimate.filled, (
        run['batch_size'] // run['num_microbatches'], run['batch_size'],
        offline_data.CHUNK * passes))
    read = annotated * responses
    if row.source == 'unpaired':  # the reference point is of a whole batch
      read = max(read, batch)
    use = self._trained_policy(
        name, upstream, value, (arguments['measure']['components'],), _Rows(
            step * learned, batch * responses, read, _evaluated(run)))
    if not methods.is_ilql(row):
      return use
    config, _ = self._shapes.policy(self._start(upstream).node)
    q_heads = {'q_heads': jax.eval_shape(lambda: heads.init_q(
        jax.random.key(0), config.hidden_size, config.vocab_size,
        mlp=run['q']['mlp'], scale=run['q']['scale']))}
    trained, more = self._shapes.state(q_heads)
    return dataclasses.replace(  # their targets are as large as they are
        use, trained=use.trained + trained,
        optimizer=use.optimizer + more + trained)

  def _trained_policy(self, name, upstream, value, rewards, rows):
    """A policy that is trained, evaluated and, online, sampled from.

    Args:
      name: of the stage.
      upstream: stages by role.
      value: node of its value head; None without one.
      rewards: components, by which it is trained or evaluated.
      rows: that its programs read.
    """
    model, also = self._shapes.parts(self._start(upstream).node), ['gold']
    trainable, trunk, config = model.trainable, None, model.config
    if value is not None:
      if value['trunk'] == 'reward':
        also.append('proxies')
      added, trunk = self._shapes.value_head(
          config, value, self._left.get(upstream.get('proxies')))
      trainable = {**trainable, **added}
    trained, optimizer = self._shapes.state(trainable)
    held, scoring = self._judged(self._judges(upstream, *rewards, also=also))
    # Under adapters the reference shares the base.
    _, reference = self._shapes.policy(self._start(upstream).node)
    whole = sharding.device_bytes(reference)
    step = self._estimate.step(config, rows.step)
    if trunk is not None:
      step += self._estimate.step(trunk, rows.step, vocabulary=False)
    read = max(rows.annotated, rows.evaluated)
    batch = self._estimate.tokens(rows.batch) * 4 * 6  # its f32 fields
    return Use(
        name, trained, optimizer, self._shapes.place(reference) + held,
        max(self._estimate.sampler(config, whole, *drawn)
            for drawn in (rows.sampled, (rows.evaluated, 1))),
        batch + max(step, scoring, self._estimate.score(config, read)),
        self._policy_step(model, rows.step))

  def _policy_step(self, model, rows, parts=1):
    return functools.partial(
        programs.policy_step, *model, rows=rows, length=self._sizes.length,
        num_microbatches=parts)

  # Reward models.

  def _judges(self, upstream, *rewards, also=()):
    """The reward models that components of rewards read, and roles `also`."""
    roles = {*also}.union(*map(reward_nodes.roles, rewards))
    return [self._left[upstream[role]] for role in ('proxies', 'gold')
            if role in roles and self._left.get(upstream.get(role))]

  def _judged(self, models, rows=None):
    """Bytes of frozen reward models, and what scoring `rows` at once needs.

    None: in the chunks of `reward_models.score_rows`, from the host.
    """
    held, most = 0, 0
    for model in models:
      config, own, base = self._shapes.rewards(model)
      held += self._shapes.place(base or {}) + self._shapes.place(
          shapes_lib.frozen(config, own), model.members)
      most = max(most, self._estimate.score(
          config, rows or self._estimate.chunk(config, own), vocabulary=False,
          members=parameters.num_trunks(own)))
    return held, most


def _evaluated(run):
  """Prompts that an evaluation answers at a time."""
  node = run['evaluation']
  return min(node['num_prompts'], node['chunk_size'])
