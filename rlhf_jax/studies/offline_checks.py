"""What the study `offline` refuses before it touches a device."""

from collections.abc import Collection, Mapping
import functools

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.data import logs as logs_lib
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import log_rows
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import online_methods
from rlhf_jax.pipeline import prompt_values
from rlhf_jax.reports import spec
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.studies import checks
from rlhf_jax.studies import labels
from rlhf_jax.studies import nodes
from rlhf_jax.studies import run_checks


def check(config: dict, data: dict, conditions: Mapping[str, Mapping],
          logs: Mapping[str, Mapping], runs: Mapping[str, Mapping],
          columns: Collection[str]):
  """Raises ConfigError for conditions, logs, runs or a figure that would fail.

  Args:
    config: of the study.
    data: of `nodes.data_config`.
    conditions: of `nodes.conditions`.
    logs: of `nodes.logs`, those that runs name.
    runs: of `nodes.offline_runs`.
    columns: that evaluations have beside those that all have.
  """
  for field in ('logs', 'runs'):
    nodes.requirement(config)(config[field], field, 'give at least one')
  run_checks.check_conditions(config, conditions, data)
  for name, log in logs.items():
    _check_log(f'logs.{name}', log, config, conditions, data)
  for name, run in runs.items():
    where = f'runs.{name}'
    nodes.requirement(nodes.at(where, run))(
        run['log'] in logs, f'{where}.log',
        f'there are {", ".join(config["logs"])}')
    _check_run(where, run, logs[run['log']], conditions, data, config)
    _check_reward(where, run, logs[run['log']])
  _check_values(logs, runs)
  _check_figure(config, logs, runs, columns)


def _check_log(where, log, config, conditions, data):
  """Raises ConfigError for what the stages of a log would fail at."""
  require = nodes.requirement(nodes.at(where, log))
  pairs = log['source'] == 'pairs'
  require(log['source'] in log_rows.SOURCES, f'{where}.source',
          f'there are {", ".join(log_rows.SOURCES)}')
  require(pairs or data['name'] == 'logged', f'{where}.source',
          'give config.data.logged.path, a corpus of logged responses')
  run_checks.check_components(where, log['components'], config['pool'], {
      'gold', 'pairs', 'proxies', 'log'}, data)
  dropping = reward_nodes.dropping(log['components'])
  require(not dropping, f'{where}.components', "what is logged is there: "
          "on_bad_reward='drop' is of runs that sample; give 'error'")
  kinds = reward_nodes.kinds(log['components'])
  require('proxy' not in kinds or data['name'] != 'logged'
          or not _samples_pairs(config, log, conditions),
          f'{where}.components', "kind 'proxy' learns from pairs of samples; "
          "use 'gold' or 'file', which learn from the logged responses, or set "
          "config.pairs to 'preferences'")
  require('exact_match' not in kinds or not pairs, f'{where}.components',
          "samples have no right answer to match; give source='corpus'")
  most = (data['num_pair_prompts'] if pairs
          else len(logs_lib.training(data))) - 1
  require(2 <= log['num_validation'] <= most, f'{where}.num_validation',
          f'give 2 to {most}, so that some examples are left to train on')
  _check_condition(where, log, conditions, require)
  _check_head(where, log, config, require)


def _samples_pairs(config, node, conditions) -> bool:
  """Whether the reward models of a log or run learn from pairs of samples."""
  name = node['condition']
  return name not in conditions or labels.learns_from(
      config, {name: conditions[name]}, 'samples')


def _check_condition(where, log, conditions, require):
  """The labels of a log are those of its condition, where it has one."""
  proxy = 'proxy' in reward_nodes.kinds(log['components'])
  if proxy or (log['source'] == 'pairs' and conditions):
    require(log['condition'] in conditions, f'{where}.condition',
            f'there are {", ".join(conditions) or "none"}')
  condition = conditions.get(log['condition'], {'label_noise': 0.0})
  noise = condition['label_noise']
  if not 0 <= noise <= 1:  # nobody may train reward models of the condition
    raise errors.ConfigError(
        f'config.conditions.{log["condition"]}.label_noise is {noise!r}; '
        'shares lie in [0, 1]')
  require(log['source'] == 'pairs' or not noise, f'{where}.condition',
          f'its label_noise is {noise}, which is of pairs alone; give 0')
  require(not noise or not proxy
          or log['num_validation'] == condition['held_out'],
          f'{where}.num_validation', 'the reward model and the log must have '
          f'the same labels; give proxy.held_out, {condition.get("held_out")}')
  for name, node in log['components'].items():
    if node.get('kind') == 'proxy':
      checks.check_aggregate(
          f'{where}.components.{name}.aggregate',
          node.get('aggregate', {'kind': 'mean'}), condition['num_members'])


def _check_head(where, log, config, require):
  """Raises ConfigError for a value head that could not be trained."""
  head = log['value']
  for field in ('num_samples', 'batch_size', 'num_steps', 'num_heads'):
    require(head[field] >= 1, f'{where}.value.{field}', 'give at least 1')
  require(head['temperature'] >= 0, f'{where}.value.temperature',
          'give 0 (greedy) or more')
  require(0 < head['held_out'] < 1, f'{where}.value.held_out',
          'a share of the validation prompts; give more than 0, less than 1')
  require(head['batch_size'] <= log['num_validation'] * (1 - head['held_out']),
          f'{where}.value.batch_size', 'more than there are validation prompts '
          f'to train on, of {where}.num_validation {log["num_validation"]}')
  width = pretrained.config(config['policy']['model'], 1).hidden_size
  require(width % head['num_heads'] == 0, f'{where}.value.num_heads',
          f'must divide the {width} features of the policy')
  checks.try_to_make(f'{where}.value.optimizer', functools.partial(
      train.optimizer, num_steps=1), head['optimizer'])


def _check_run(where, run, log, conditions, data, config):
  """Raises ConfigError for what the stage of a run would fail at."""
  require, held_out = (
      nodes.requirement(nodes.at(where, run)), data['num_eval_prompts'])
  if run['algorithm'] not in online_methods.names():
    run_checks.check_offline(where, run, held_out)
    run_checks.check_use(
        where, run, pairs=log['source'] == 'pairs',
        max_samples=data.get('max_samples', 2),
        groups=(logs_lib.group_names(data) if data['name'] == 'logged'
                else ()))
    return
  components = run['reward']['components']
  run_checks.check_components(
      f'{where}.reward', components, config['pool'],
      {'gold', 'pairs', 'proxies', 'log'}, data)
  require(not nodes.reads_proxies(run) or data['name'] != 'logged'
          or not _samples_pairs(config, run, conditions),
          f'{where}.algorithm', 'its reward model learns from pairs of '
          'samples, which a log has not; give it other components, take an '
          "offline algorithm, or set config.pairs to 'preferences'")
  run_checks.check_online(where, run, conditions, data)
  require('proxy' not in reward_nodes.kinds(log['components'])
          or not nodes.reads_proxies(run)
          or run['condition'] == log['condition'], f'{where}.condition',
          f'its log {run["log"]} measures by the reward models of '
          f'{log["condition"]!r}; take them')


def _check_reward(where, run, log):
  """Raises ConfigError for a run that learns from a reward without one."""
  if log['components'] or run['algorithm'] in online_methods.names():
    return
  row = offline_methods.make_row(run)
  if row.source in ('logged', 'rankings') or run['priority'] == 'reward':
    raise errors.ConfigError(
        f'config.logs.{run["log"]}.components is empty, and config.{where} '
        f"({row.title}) learns from a reward; give {{name: {{'kind': ...}}}}")


def _check_figure(config, logs, runs, columns):
  """Raises ConfigError for a figure that the runs cannot fill."""
  used = list(dict.fromkeys(run['log'] for run in runs.values()))
  # A column that one policy lacks would be missed when all are trained.
  shared = [name for name in logs[used[0]]['components']
            if all(name in logs[log]['components'] for log in used)]
  spec.check(config['figure'], [run['labels'] for run in runs.values()],
             logs=used, components=shared, columns=columns)


def _check_values(logs, runs):
  """Raises ConfigError for rewards that a value head cannot represent."""
  for name, log in logs.items():
    if any(offline_methods.needs_values(offline_methods.make_row(run))
           for run in runs.values() if run['log'] == name
           and run['algorithm'] not in online_methods.names()):
      try:
        prompt_values.check(log['components'])
      except errors.ConfigError as error:
        raise errors.ConfigError(
            f'config.logs.{name}.components: {error}') from None
