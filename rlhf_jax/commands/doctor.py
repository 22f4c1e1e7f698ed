"""Checks your model, tokenizer, data, reward and config, before a run.

  rlhf-jax doctor --algorithm=ppo --data=prompts.jsonl --model=models/mine \\
      --reward=module:function
  rlhf-jax doctor --config=mine.py:laptop

Flags are those of `train` or of `run`. Each line is pass, warn or fail, with
the remedy; a fail is exit code 2. All of the data is encoded, the model reads
and writes a few rows of it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax.commands import launch
from rlhf_jax.commands import studies
from rlhf_jax.doctor import findings
from rlhf_jax.doctor import models
from rlhf_jax.doctor import rewards
from rlhf_jax.doctor import texts
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.models import pretrained
from rlhf_jax.parallel import meshes
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import online_methods
from rlhf_jax.studies import memory
from rlhf_jax.studies import nodes
from rlhf_jax.studies import plan


def run(argv: list[str]):
  """Parses and checks.

  Args:
    argv: name of the command, and flags.

  Raises:
    ConfigError: a check fails.
    UserError: of whatever kind; the study could not be planned.
  """
  config, lines, _ = studies.configure(argv, __doc__)
  for line in lines:
    print(line)
  failed = []
  for one in check(config):
    print(one.line(), flush=True)
    if one.state == 'fail':
      failed.append(one.check)
  if failed:
    raise errors.ConfigError(
        f'{len(failed)} checks fail: {", ".join(failed)}; each line above says '
        'what to do')


def check(config: dict) -> Iterable[findings.Finding]:
  """Everything that is found, as it is found.

  Args:
    config: of a study.

  Raises:
    UserError: the study could not be planned.
  """
  stages = plan.plan(config)
  yield findings.Finding('pass', 'plan', f'{len(stages)} stages')
  launch.prepare()
  config, data = nodes.absolute(config), nodes.data_config(config)
  seed = config['seeds'][0]
  corpus, some = texts.check(data, seed)
  yield from some
  runs = _runs(config)
  with jax.set_mesh(meshes.make()):
    yield from _of_models(config, corpus, seed, runs)
  machine = memory.machine('here')
  uses = memory.uses(config, stages, machine.count)
  worst = max(uses, key=lambda use: use.peak)
  try:
    memory.check(uses, machine)
    fits, remedy = True, ''
  except errors.TopologyError as error:
    fits, remedy = False, str(error)
  yield findings.judge(
      'memory', f'{worst.stage} needs {worst.peak / 2**30:.2f} GiB of a device',
      fail=not fits, remedy=remedy)


def _runs(config: Mapping[str, Any]) -> dict[str, dict]:
  """The runs of a study that has any."""
  if 'runs' not in config:
    return {}
  return (nodes.offline_runs(config) if config['study'] == 'offline'
          else nodes.online_runs(config))


def _of_models(config, corpus, seed: int, runs) -> Iterable[findings.Finding]:
  """What the policy, its sampler and its rewards say on a few rows."""
  heads_alone = pretrained.is_frozen(config['proxy']['model'])
  part = 'policy' if runs or heads_alone else 'proxy'
  model = pretrained.init(
      config[part]['model'], corpus.tokenizer.vocab_size,
      streams.key(seed, 'sft', 'policy', 'weights'))
  sampler = dict(config['sampler'])
  online = [run for run in runs.values()
            if run['algorithm'] in online_methods.names()]
  temperature = sampler['temperature']
  if online:
    rollout = online[0]['rollout']
    sampler = {name: rollout[name] for name in sampler}
    temperature = rollout['temperature']
    yield findings.judge(
        'temperatures', f'rollouts {temperature:g}, evaluations '
        f'{config["sampler"]["temperature"]:g}',
        warn=temperature != config['sampler']['temperature'],
        remedy='evaluations measure another distribution than is trained; set '
        'config.sampler.temperature and rollout.temperature alike')
  batch, some = models.check_sampler(
      model, corpus, sampler, temperature, seed)
  yield from some
  yield from models.check_step(model, batch, seed)
  tokens, mask = (np.asarray(x)[:, 0] for x in (batch.tokens, batch.mask))
  prompts, responses = texts_lib.decode(corpus.tokenizer, tokens, mask)
  for run in runs.values():
    yield from _of_rewards(config, run, tokens, mask, prompts, responses)


def _of_rewards(config, run, tokens, mask, prompts, responses
                ) -> Iterable[findings.Finding]:
  """What is found of one run's reward."""
  samples = run['algorithm'] in online_methods.names()
  components = (run['reward'] if samples
                else nodes.logs(config)[run['log']])['components']
  total, some = rewards.check(components, config['pool'], tokens, mask,
                              prompts, responses)
  yield from some
  if samples:
    if total is not None and len(total):
      yield from rewards.check_critic(total, run, _value_clip(run))
  elif offline_methods.needs_values(offline_methods.make_row(run)):
    yield from rewards.check_values(components)


def _value_clip(run: Mapping[str, Any]) -> float | None:
  """Of a run whose objective has one."""
  row = algorithms.ALGORITHMS[run['algorithm']]
  if row.objective is None or row.objective['name'] != 'ppo':
    return None
  objective = {**row.objective, **run['arguments'].get('ppo', {})}
  return objective.get('value_clip', 0.2)
