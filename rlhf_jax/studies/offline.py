r"""Policies trained on logged responses, and online ones beside them.

  sft --> gold --> pairs --> proxies --> logs --> prompt values --+
   |                                      |                       |
   +--------------------------------------+--> policies <---------+--> report

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, and figure 9 of Zhu et
al. 2023, https://arxiv.org/abs/2306.02231. A config lists logs, each with its
rewards, which are changes of the node `log`, and runs. A run of an algorithm
that samples is a change of the node `online`; all others are changes of
`offline` and name the log they learn from. Every policy is measured by the
rewards of its log, in the column `proxy` and its components. What nothing
reads, gold model, pairs, reward models or a log, is not made.
"""

from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import online_methods
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.stages import logged
from rlhf_jax.stages import offline_policy
from rlhf_jax.stages import online_policy
from rlhf_jax.stages import prompt_value
from rlhf_jax.studies import labels
from rlhf_jax.studies import nodes
from rlhf_jax.studies import offline_checks
from rlhf_jax.studies import online
from rlhf_jax.studies import plan
from rlhf_jax.studies import seed as seed_lib


def samples(run: dict) -> bool:
  """Whether the algorithm of a run is an online one."""
  return run['algorithm'] in online_methods.names()


def reads_values(run: dict) -> bool:
  """Whether a run needs the reference's values of the prompts."""
  return not samples(run) and offline_methods.needs_values(
      offline_methods.make_row(run))


def reads_proxies(log: dict) -> bool:
  """Whether the rewards of a log need the ensemble of its condition."""
  return 'proxy' in reward_nodes.kinds(log['components'])


def describe(config: dict) -> plan.Study:
  """A line of the report for each run."""
  conditions, runs = nodes.conditions(config), nodes.offline_runs(config)
  named = {run['log'] for run in runs.values()}
  logs = {name: log for name, log in nodes.logs(config).items()
          if name in named}
  used = {log['condition'] for log in logs.values() if reads_proxies(log)}
  used |= {run['condition'] for run in runs.values()
           if samples(run) and nodes.reads_proxies(run)}
  read = [log['components'] for log in logs.values()] + [
      run['reward']['components'] for run in runs.values() if samples(run)]
  used = {name: node for name, node in conditions.items() if name in used}
  of_samples = any(log['source'] == 'pairs' for log in logs.values())
  reads_pairs = (of_samples
                 or labels.learns_from(config, used, 'samples', 'judge')
                 or nodes.compares_by_gold(config, read))
  reads_gold = nodes.reads_gold(config, read) or (
      reads_pairs and config['pairs'] != 'judge')
  rows = {}

  def of_seed(seed):
    upstream, proxies = seed.cast(
        used, reads_gold=reads_gold, reads_pairs=reads_pairs)
    stages, of_logs = _seed_stages(config, seed, logs, runs, upstream, proxies)
    for name, stage in of_logs.items():
      rows.setdefault(name, []).append({'stage': stage, 'seed': seed.seed})
    return [{'stage': stages[name], 'run': name, 'labels': run['labels']}
            for name, run in runs.items()]

  return plan.Study(
      check=lambda data: offline_checks.check(
          config, data, conditions, logs, runs,
          online.columns(
              config, data, config['pairs'] != 'judge' and reads_pairs,
              rewards=all(log['components'] for log in logs.values()))),
      proxies=labels.trained(used), reads_gold=reads_gold, of_seed=of_seed,
      judge=lambda shown: online.judge_stages(config, shown, runs),
      arguments=lambda shown: {'policies': shown, 'logs': rows,
                               'figure': config['figure']})


def _seed_stages(config, seed: seed_lib.Seed, logs, runs, upstream, proxies
                 ) -> tuple[dict[str, str], dict[str, str]]:
  """Adds the stages of logs and runs; that of each run, and of each log."""
  of_logs = {}
  for name in dict.fromkeys(run['log'] for run in runs.values()):
    of_logs[name] = _log_stages(
        config, seed, name, logs[name], runs, upstream | (
            {'proxies': proxies[logs[name]['condition']]}
            if reads_proxies(logs[name]) else {}))
  stages = {}
  for name, run in runs.items():
    log, roles = logs[run['log']], of_logs[run['log']]
    shared = dict(seed.texts, training=config['training'],
                  measure=online.measure(config, log['components']))
    if samples(run):
      if nodes.reads_proxies(run):
        roles = roles | {'proxies': proxies[run['condition']]}
      stages[name] = seed.add(
          f'policies/{name}', online_policy, roles, **shared, part=0,
          run=nodes.of_stage(run, 'condition', 'log'))
      continue
    if not reads_values(run):
      roles = roles | {'values': None}
    stages[name] = seed.add(f'policies/{name}', offline_policy, roles,
                            **shared, run=nodes.of_stage(run, 'log'))
  return stages, {name: roles['log'] for name, roles in of_logs.items()}


def _log_stages(config, seed, name, log, runs, upstream) -> dict[str, str]:
  """Adds the stages of one log; the roles of what learns from it."""
  noise = 0.0
  if log['source'] == 'pairs' and log['condition'] in config['conditions']:
    noise = nodes.conditions(config)[log['condition']]['label_noise']
  rewards = {'pool': config['pool']}
  node = {k: log[k] for k in ('source', 'num_validation', 'components')}
  roles = upstream | {'log': seed.add(
      f'logs/{name}/logged', logged, upstream, **seed.texts, **rewards,
      node=node, label_noise=noise)}
  if any(reads_values(run) for run in runs.values() if run['log'] == name):
    roles['values'] = seed.add(
        f'logs/{name}/prompt_value', prompt_value, roles, **seed.texts,
        **rewards, node=log['value'], components=log['components'],
        training=config['training'])
  return roles
