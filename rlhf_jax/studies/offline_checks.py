"""What the study `offline` refuses before it touches a device."""

from collections.abc import Callable
import functools

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.data import logs as logs_lib
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import offline_data
from rlhf_jax.pipeline import policies
from rlhf_jax.pipeline import rewarding
from rlhf_jax.rewards import nodes as nodes_lib
from rlhf_jax.rewards import programmatic
from rlhf_jax.stages import logged
from rlhf_jax.stages import online_policy
from rlhf_jax.stages import policy_report
from rlhf_jax.stages import prompt_value
from rlhf_jax.studies import checks
from rlhf_jax.studies import online


def samples(run: dict) -> bool:
  """Whether the algorithm of a run is an online one."""
  return run['algorithm'] in online_policy.names()


def reads_values(run: dict) -> bool:
  """Whether a run needs the reference's values of the prompts."""
  return not samples(run) and offline_data.needs_values(offline_data.make_row(
      run['algorithm'], run['arguments'], filtered=run['filtered']))


def needs_values(log: str, runs: dict[str, dict]) -> bool:
  """Whether one of the runs on a log does."""
  return any(reads_values(run) for run in runs.values() if run['log'] == log)


def _of_components(where: str, check: Callable, log: dict):
  """Calls `check`; a ConfigError says whose components it refuses."""
  try:
    return check(log['components'])
  except errors.ConfigError as error:
    raise errors.ConfigError(f'config.{where}.components: {error}') from None


def _check_rewards(where: str, log: dict, data: dict, require):
  """Raises ConfigError for rewards that the study cannot compute."""
  for node in _of_components(where, nodes_lib.check, log).values():
    kind = node['kind']
    require(kind != 'file' or node['column'] == data.get('target'),
            f'{where}.components', "kind 'file' scores new responses by what "
            'the gold model has learned; set config.data.logged.target to its '
            'column')
    require(kind != 'file' or not checks.has_rule(data),
            f'{where}.components', 'the gold model of this task learns the '
            "rule of the small world; use kind 'gold', or give "
            'config.data.logged.path')
    require(kind != 'proxy' or data['name'] != 'logged',
            f'{where}.components', "kind 'proxy' learns from pairs of samples; "
            "use 'gold' or 'file', which learn from the logged responses")
    require(kind != 'exact_match' or log['source'] == 'corpus',
            f'{where}.components', 'samples have no right answer to match; '
            "give source='corpus'")


def check_log(name: str, log: dict, config: dict, conditions: dict,
              data: dict):
  """Raises ConfigError for what the stages of a log would fail at.

  Args:
    name: of the log.
    log: of `offline.make_logs`.
    config: of the study.
    conditions: of `online.make_conditions`.
    data: of `checks.data_config`.
  """
  where = f'logs.{name}'
  require = checks.requirement({'logs': {name: log}})
  require(log['source'] in logged.SOURCES, f'{where}.source',
          f'there are {", ".join(logged.SOURCES)}')
  require(log['source'] == 'pairs' or data['name'] == 'logged',
          f'{where}.source', 'give config.data.logged.kind, a corpus of '
          'logged responses')
  require(log['condition'] in conditions, f'{where}.condition',
          f'there are {", ".join(conditions)}')
  proxy = conditions[log['condition']]
  noise = proxy['label_noise']
  require(log['source'] == 'pairs' or not noise, f'{where}.condition',
          f'its label_noise is {noise}, which is of pairs alone; give 0')
  _check_rewards(where, log, data, require)
  most = (data['num_pair_prompts'] if log['source'] == 'pairs'
          else len(logs_lib.training(data))) - 1
  require(2 <= log['num_validation'] <= most, f'{where}.num_validation',
          f'give 2 to {most}, so that some examples are left to train on')
  require(not noise or 'proxy' not in rewarding.kinds(log['components'])
          or log['num_validation'] == proxy['held_out'],
          f'{where}.num_validation', 'the reward model and the log must have '
          f'the same labels; give proxy.held_out, {proxy["held_out"]}')
  _check_head(where, log, config, require)
  functions = nodes_lib.functions(log['components'])
  if functions:
    checks.try_to_make('pool', functools.partial(
        programmatic.check, functions), config['pool'])


def _check_head(where: str, log: dict, config: dict, require):
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


def check_run(name: str, run: dict, log: dict, conditions: dict,
              data: dict):
  """Raises ConfigError for what the stage of a run would fail at.

  Args:
    name: of the run.
    run: of `offline.make_runs`.
    log: that it names.
    conditions: of `online.make_conditions`.
    data: of `checks.data_config`.
  """
  where, held_out = f'runs.{name}', data['num_eval_prompts']
  require = checks.requirement({'runs': {name: run}})
  if not samples(run):
    _check_offline(where, run, held_out, require)
    _check_use(where, run, log, data, require)
    return
  require(data['name'] != 'logged', f'{where}.algorithm', 'it samples, for a '
          'reward model that learns from pairs of samples; take an offline one')
  online.check_run(where, run, conditions, held_out)
  require('proxy' not in rewarding.kinds(log['components'])
          or run['condition'] == log['condition'], f'{where}.condition',
          f'its log {run["log"]} measures by the reward models of '
          f'{log["condition"]!r}; take them')


def _check_offline(where: str, run: dict, num_eval_prompts: int, require):
  for field, value in (
      *((k, run[k]) for k in ('batch_size', 'num_microbatches')),
      *((f'evaluation.{k}', run['evaluation'][k])
        for k in ('every', 'num_prompts'))):
    require(isinstance(value, int) and value >= 1, f'{where}.{field}',
            'give at least 1')
  require(isinstance(run['num_steps'], int) and run['num_steps'] >= 0,
          f'{where}.num_steps', 'give at least 0, which is the reference')
  require(run['batch_size'] % run['num_microbatches'] == 0,
          f'{where}.num_microbatches', 'must divide batch_size '
          f'{run["batch_size"]}')
  require(run['evaluation']['num_prompts'] <= num_eval_prompts,
          f'{where}.evaluation.num_prompts',
          f'there are data.num_eval_prompts {num_eval_prompts}')
  require(run['value']['trunk'] in policies.TRUNKS[:2],
          f'{where}.value.trunk', "'shared' or 'separate'")
  require(run['q']['shift'] >= 0, f'{where}.q.shift', 'give 0 or more')
  require(run['q']['top_k'] >= 0, f'{where}.q.top_k', 'give 0 (all) or more')
  require(run['q']['every'] >= 1, f'{where}.q.every', 'give at least 1')
  require(0 < run['q']['rate'] <= 1, f'{where}.q.rate', 'in (0, 1]')
  checks.try_to_make(where, _make_row, run)
  checks.try_to_make(f'{where}.optimizer', functools.partial(
      train.optimizer, num_steps=1), run['optimizer'])


def _make_row(algorithm, arguments, filtered, priority, **unused):
  for name, node in arguments.items():
    if not isinstance(node, dict):
      raise ValueError(f'arguments.{name} is {node!r}; give arguments by name.')
  row = offline_data.make_row(algorithm, arguments, filtered=filtered)
  offline_data.try_out(row, priority)


def _check_use(where: str, run: dict, log: dict, data: dict, require):
  """Raises ConfigError if a log has not the responses that a run uses."""
  row = offline_data.make_row(run['algorithm'], run['arguments'])
  pairs = log['source'] == 'pairs'
  known = (*offline_data.USES,
           *(offline_data.SIDES if pairs else logs_lib.group_names(data)))
  require(run['use'] in known, f'{where}.use', f'there are {", ".join(known)}')
  require(row.source not in offline_data.PAIRED or pairs
          or data['max_samples'] >= 2, f'{where}.algorithm', 'it compares '
          'responses; set config.data.logged.max_samples to 2 or more')


def check_figure(config: dict, logs: dict, runs: dict):
  """Raises ConfigError for a figure that the runs cannot fill."""
  used = list(dict.fromkeys(run['log'] for run in runs.values()))
  # A column that one policy lacks would be missed when all are trained.
  shared = [name for name in logs[used[0]]['components']
            if all(name in logs[log]['components'] for log in used)]
  policy_report.check(
      config['figure'], [run['labels'] for run in runs.values()],
      logs=used, components=shared)


def check_values(logs: dict, runs: dict):
  """Raises ConfigError for rewards that a value head cannot represent."""
  for name, log in logs.items():
    if needs_values(name, runs):
      _of_components(f'logs.{name}', prompt_value.check, log)
