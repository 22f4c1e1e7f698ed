r"""Policies trained online, by any method, against any rewards.

  sft ---------+--> gold --> pairs --> proxies --> policies --> report
  trunk (SFT) -+       \__________________|________/
                        \--> samples --> scores (of best-of-n)

Figures 4 to 14 of Coste et al. 2024, and those of Ahmadian et al. 2024 and
Zhu et al. 2023. A config lists conditions, which differ in the reward models,
and runs, which differ in how a policy is optimised against them; each run is
a change of the node `online`, and each is made for every seed. A run whose
reward has no component of kind 'proxy' needs no condition, and where nothing
reads a gold model there is none. Best-of-n trains nothing, and reads of the
node only `condition` and the one component of `reward`.
"""

from collections.abc import Mapping
import functools
from typing import Any

from rlhf_jax.reports import spec
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import best_of_n_policy
from rlhf_jax.stages import online_policy
from rlhf_jax.stages import samples
from rlhf_jax.stages import scores
from rlhf_jax.stages import win_rates
from rlhf_jax.studies import checks
from rlhf_jax.studies import labels
from rlhf_jax.studies import nodes
from rlhf_jax.studies import plan
from rlhf_jax.studies import run_checks
from rlhf_jax.studies import seed as seed_lib


def describe(config: dict) -> plan.Study:
  """A line of the report for each run."""
  conditions, runs = nodes.conditions(config), nodes.online_runs(config)
  used = {run['condition'] for run in runs.values()
          if nodes.reads_proxies(run)}
  used = {name: node for name, node in conditions.items() if name in used}
  components = [run['reward']['components'] for run in runs.values()]
  reads_gold = (labels.learns_from(config, used, 'samples')
                or nodes.reads_gold(config, components))
  reads_pairs = (labels.learns_from(config, used, 'samples', 'judge')
                 or nodes.compares_by_gold(config, components))

  def of_seed(seed):
    upstream, proxies = seed.cast(
        used, reads_gold=reads_gold, reads_pairs=reads_pairs)
    stages = _seed_stages(config, seed, runs, upstream, proxies)
    return [{'stage': stages[name], 'run': name, 'labels': run['labels']}
            for name, run in runs.items()]

  return plan.Study(
      check=lambda data: _check(config, data, conditions, runs, reads_pairs),
      proxies=labels.trained(used), reads_gold=reads_gold, of_seed=of_seed,
      judge=lambda shown: judge_stages(config, shown, runs),
      arguments=lambda shown: {'policies': shown, 'figure': config['figure']})


def _check(config, data, conditions, runs, reads_pairs):
  """Raises ConfigError for conditions and runs that would fail."""
  nodes.requirement(config)(config['runs'], 'runs', 'give at least one')
  run_checks.check_conditions(config, conditions, data)
  for name, run in runs.items():
    where = f'runs.{name}'
    run_checks.check_components(
        f'{where}.reward', run['reward']['components'], config['pool'],
        {'gold', 'pairs', 'proxies'}, data)
    run_checks.check_online(where, run, conditions, data)
  if any(map(nodes.is_best_of_n, runs.values())):
    checks.check_samples(config)
  spec.check(config['figure'], [run['labels'] for run in runs.values()],
             columns=columns(
                 config, data, reads_pairs and config['pairs'] != 'judge'))


def columns(config: Mapping, data: dict, reads_pairs: bool,
            rewards: bool = True) -> set[str]:
  """The columns that evaluations have beside those that all have.

  Args:
    config: of the study, for its judge.
    data: of `nodes.data_config`.
    reads_pairs: whether pairs are planned, in whose unit gold scores are.
    rewards: whether a reward measures all policies.
  """
  there = {'proxy': rewards, 'gold': reads_pairs,
           'rule': reads_pairs and nodes.has_rule(data),
           'win_rate': nodes.judge(config)['against'] is not None}
  return {name for name, is_there in there.items() if is_there}


def measure(config: dict, components: Mapping[str, Mapping]) -> dict[str, Any]:
  """By what the policies of a study are evaluated, see `policies.watch`."""
  return {'components': components, 'pool': config['pool'],
          'sampler': config['sampler']}


def _seed_stages(config, seed: seed_lib.Seed, runs, upstream, proxies
                 ) -> dict[str, str]:
  """Adds the stages of runs; that of each."""
  stages, shared = {}, {}
  for name, run in runs.items():
    roles = dict(upstream)
    if nodes.reads_proxies(run):
      roles['proxies'] = proxies[run['condition']]
    if nodes.is_best_of_n(run):
      roles['scores'] = _scores(config, seed, roles, run, shared)
      component, = reward_nodes.check(run['reward']['components']).values()
      stages[name] = seed.add(f'policies/{name}', best_of_n_policy, roles,
                              **seed.texts, proxy=component)
      continue
    stages[name] = seed.add(
        f'policies/{name}', online_policy, roles, **seed.texts, part=0,
        run=nodes.of_stage(run, 'condition'), training=config['training'],
        measure=measure(config, run['reward']['components']))
  return stages


def _scores(config, seed, roles, run, shared) -> str:
  """The stage that scores the samples by a condition, one for all its runs."""
  if 'samples' not in shared:
    call = dict(config['best_of_n'])
    shared['samples'] = seed.add(
        'samples', samples, roles, **seed.texts, sampler=config['sampler'],
        force_eos=config['force_eos'], num_samples=call.pop('num_samples'),
        call=call)
  condition = run['condition']
  if condition not in shared:
    shared[condition] = seed.add(
        f'{condition}/scores', scores,
        roles | {'samples': shared['samples']})
  return shared[condition]


def judge_stages(config: dict, shown: plan.Shown, runs: Mapping[str, Mapping]
                 ) -> list[run_lib.Stage]:
  """The stage that has policies judged, where the config asks for one.

  Args:
    config: of the study.
    shown: {'stage', 'seed', 'run', 'labels'} of each policy.
    runs: by name.
  """
  judge = nodes.judge(config)
  if judge['against'] is None:
    return []
  answered = [line for line in shown
              if not nodes.is_best_of_n(runs[line['run']])]
  fewest = min((runs[line['run']]['evaluation']['num_prompts']
                for line in answered), default=0)
  nodes.requirement(config)(
      judge['num_prompts'] is not None
      and 1 <= judge['num_prompts'] <= fewest, 'judge.num_prompts',
      f'give 1 to {fewest}, the prompts that every run answers')
  win_rates.check(answered, judge['against'], judge['judge'])
  name = plan.final(config).replace('report', 'win_rates', 1)
  return [run_lib.Stage(name, functools.partial(
      win_rates.run, policies=answered, **judge), alone=True)]
