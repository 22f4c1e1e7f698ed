r"""Policies trained on logged responses, and online ones beside them.

  sft --> gold --> pairs --> proxies --> logs --> prompt values --+
   |                                      |                       |
   +--------------------------------------+--> policies <---------+--> report

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, and figure 9 of Zhu et
al. 2023, https://arxiv.org/abs/2306.02231. A config lists logs, each with its
rewards, which are changes of the node `log`, and runs. A run of an algorithm
that samples is a change of the node `online`; all others are changes of
`offline` and name the log they learn from. Every policy is measured by the
rewards of its log, in the column `proxy` and its parts.
"""

import functools

from rlhf_jax.data import load as load_lib
from rlhf_jax.pipeline import rewarding
from rlhf_jax.rewards import nodes as nodes_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import logged
from rlhf_jax.stages import offline_policy
from rlhf_jax.stages import online_policy
from rlhf_jax.stages import policy_report
from rlhf_jax.stages import prompt_value
from rlhf_jax.studies import checks
from rlhf_jax.studies import offline_checks as checks
from rlhf_jax.studies import online

final = checks.report_name


def make_logs(config: dict) -> dict[str, dict]:
  """What each log is."""
  return {name: online.merge(config['log'], changes, f'logs.{name}')
          for name, changes in config['logs'].items()}


def make_runs(config: dict) -> dict[str, dict]:
  """What each run is, labels included."""
  made = {}
  for name, changes in config['runs'].items():
    algorithm = changes.get('algorithm', config['offline']['algorithm'])
    node = 'online' if algorithm in online_policy.names() else 'offline'
    # One that samples is compared by the rewards of a log too.
    base = {'labels': {}, 'log': config['offline']['log'], **config[node]}
    made[name] = online.merge(base, changes, f'runs.{name}')
  return made


def inputs(config: dict) -> dict:
  """As `checks.inputs`, with the modules of reward functions."""
  found = checks.inputs(config)
  for log in make_logs(config).values():
    found |= online.function_inputs(nodes_lib.functions(log['components']))
  for run in filter(checks.samples, make_runs(config).values()):
    found |= online.function_inputs(run['reward']['functions'])
  return found


def _check(config: dict, data: dict) -> tuple[dict, dict, dict]:
  """The conditions, the logs and the runs, checked."""
  checks.check(config)
  load_lib.check(data)
  for field in ('conditions', 'logs', 'runs'):
    checks.requirement(config)(config[field], field, 'give at least one')
  conditions = online.make_conditions(config)
  logs, runs = make_logs(config), make_runs(config)
  online.check_conditions(config, conditions)
  for name, log in logs.items():
    checks.check_log(name, log, config, conditions, data)
  for name, run in runs.items():
    checks.requirement({'runs': {name: run}})(
        run['log'] in logs, f'runs.{name}.log', f'there are {", ".join(logs)}')
    checks.check_run(name, run, logs[run['log']], conditions, data)
  checks.check_values(logs, runs)
  checks.check_figure(config, logs, runs)
  return conditions, logs, runs


def _log_stages(config, made, name, log, shared):
  """Adds the stages of one log: that of its rows, and that of its values."""
  given = {**made.shared, **shared, 'components': log['components'],
           'pool': config['pool']}
  given.pop('sampler')
  rows = made.add(
      f'logs/{name}/logged', logged.run, source=log['source'],
      label_noise=shared['label_noise'],
      num_validation=log['num_validation'],
      **{k: v for k, v in given.items() if k != 'label_noise'})
  given.pop('label_noise')
  values = lambda: made.add(
      f'logs/{name}/prompt_value', prompt_value.run, logged=rows, **given,
      **log['value'], training=config['training'])
  return rows, values


def _seed_stages(config, data, seed, conditions, logs, runs):
  """The stages of one seed, the stage of each run, and of each log."""
  made = checks.Seed(config, data, seed)
  pairs = made.add_pairs('pairs', force_eos=config['force_eos'])
  asked = dict.fromkeys(run['condition'] for run in runs.values()
                        if checks.samples(run))
  asked |= dict.fromkeys(
      log['condition'] for log in logs.values()
      if 'proxy' in rewarding.kinds(log['components']))
  proxies = online.add_conditions(
      config, made, {name: conditions[name] for name in asked}, pairs)

  def of_models(name):
    """The reward models of a condition, for the stages that read them."""
    return {'proxies': proxies[name], 'proxy_model': conditions[name]['model'],
            'num_members': conditions[name]['num_members']}

  def of_rewards(log):
    """Those that the rewards of a log are scored by."""
    asked = 'proxy' in rewarding.kinds(log['components'])
    return of_models(log['condition']) if asked else {}

  rows, values, stages = {}, {}, {}
  for name in dict.fromkeys(run['log'] for run in runs.values()):
    condition = logs[name]['condition']
    rows[name], add_values = _log_stages(config, made, name, logs[name], {
        'pairs': pairs, 'label_noise': conditions[condition]['label_noise'],
        **of_rewards(logs[name])})
    if checks.needs_values(name, runs):
      values[name] = add_values()
  for name, run in runs.items():
    log = logs[run['log']]
    given = {k: v for k, v in made.shared.items() if k != 'sampler'} | {
        'pairs': pairs, 'logged': rows[run['log']],
        'components': log['components'], 'sampler': config['sampler'],
        'training': config['training']}
    run = {k: v for k, v in run.items() if k not in ('labels', 'log')}
    if checks.samples(run):
      models = of_models(run.pop('condition'))
      stages[name] = made.add(f'policies/{name}', online_policy.run, **given,
                              **models, **run)
      continue
    if checks.reads_values(run):
      given['values'] = values[runs[name]['log']]
    stages[name] = made.add(
        f'policies/{name}', offline_policy.run, **given, **run,
        pool=config['pool'], **of_rewards(log))
  return made.stages, stages, rows


def plan(config: dict) -> list[run_lib.Stage]:
  """The stages of all seeds and the report.

  Raises:
    ConfigError: a field is out of range; nothing has been touched.
    DataError: a file it names is missing or malformed.
  """
  config = checks.absolute(config)
  data = checks.data_config(config)
  conditions, logs, runs = _check(config, data)
  checks.check_tokens(config, data)
  checks.check_gold(config, data)
  stages, made, rows = [], [], {}
  for seed in config['seeds']:
    of_seed, names, of_logs = _seed_stages(
        config, data, seed, conditions, logs, runs)
    stages += of_seed
    made += [{'stage': names[name], 'seed': seed, 'run': name,
              'labels': runs[name]['labels']} for name in runs]
    for name, stage in of_logs.items():
      rows.setdefault(name, []).append({'stage': stage, 'seed': seed})
  stages += online.judge_stages(config, made, runs)
  stages.append(run_lib.Stage(final(config), functools.partial(
      policy_report.run, policies=made, stages=[s.name for s in stages],
      title=config['title'], figure=config['figure'], logs=rows)))
  return stages
