"""What studies of policies refuse in their conditions, rewards and runs."""

from collections.abc import Collection, Mapping
import functools
import time

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.data import coders
from rlhf_jax.data import load as load_lib
from rlhf_jax.pipeline import offline_data
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import online_checks
from rlhf_jax.pipeline import policies
from rlhf_jax.pipeline import reward_directory
from rlhf_jax.pipeline import unpaired
from rlhf_jax.reports import comparisons
from rlhf_jax.rewards import nodes as reward_nodes
from rlhf_jax.rewards import programmatic
from rlhf_jax.studies import checks
from rlhf_jax.studies import labels
from rlhf_jax.studies import nodes
from rlhf_jax.studies import trees

# What leaves the score of a model as it is.
UNTOUCHED = {field: reward_nodes.KINDS['proxy'][field]
             for field in ('squash', 'scale', 'range')}


def check_conditions(config: Mapping, conditions: Mapping[str, Mapping],
                     data: Mapping):
  """Raises ConfigError for names that meet those of stages, and for pairs.

  Args:
    config: of the study.
    conditions: of `nodes.conditions`.
    data: of `nodes.data_config`.
  """
  nodes.requirement(config)(config['pairs'] in labels.PAIRS, 'pairs',
                            f'there are {", ".join(labels.PAIRS)}')
  if config['pairs'] == 'judge':
    _check_feedback(config, conditions)
  if labels.learns_from(config, conditions, 'preferences'):
    nodes.requirement(config)(
        load_lib.num_preferences(data) > 0, 'pairs', 'and the data has no '
        'chosen and rejected responses; give config.data.preferences, or pairs '
        'as config.data.logged.path')
  for name, node in conditions.items():
    if (name.partition('_features')[0] in nodes.STAGES
        or name.startswith('trunk_')):
      raise errors.ConfigError(f'config.conditions.{name} has the name of a '
                               'stage; choose another')
    if node['path'] is not None:
      _check_tokens(f'config.conditions.{name}.path', node['path'], data)


def _check_tokens(where: str, rewards: str, data: Mapping):
  """ConfigError for reward models that read other tokens than the policy.

  Whatever tokenizer the data has no name for is compared where they are read.
  """
  named = reward_directory.tokenizer(rewards)
  coder = coders.named_tokenizer(data)
  if coder is None or named['tokenizer'] == data['tokenizer']:
    return
  own = coders.named_tokenizer(named)
  token = own.differs_from(coder)
  if token is not None:
    raise errors.ConfigError(
        f'{where}: {rewards} has another id for the token {token!r} than '
        f'{data["tokenizer"]}, which the policy reads; train both with one '
        'tokenizer')


def _check_feedback(config: Mapping, conditions: Mapping[str, Mapping]):
  """ConfigError for a judge that cannot be made, or labels that it lacks."""
  judge = config['feedback']
  trees.check_mapping('feedback', judge, "{'kind': 'http' or 'function', ...}")
  if judge.get('kind') == 'gold':
    raise errors.ConfigError("config.feedback.kind is 'gold'; that is "
                             "config.pairs='samples'")
  try:
    comparisons.make_judge(judge, {}, time.sleep)
  except errors.ConfigError as error:
    raise errors.ConfigError(f'config.feedback: {error}') from None
  for name, node in conditions.items():
    nodes.requirement(nodes.at(f'conditions.{name}', node))(
        not node['label_noise'], f'conditions.{name}.label_noise',
        'a judge errs by itself; give 0')


def check_components(where: str, components: Mapping[str, Mapping],
                     pool: Mapping, roles: Collection[str], data: Mapping):
  """Raises ConfigError for a reward that a study cannot compute.

  Args:
    where: of the components in the config, such as 'runs.ppo.reward'.
    components: of `rewards.nodes`.
    pool: of `programmatic.Functions`.
    roles: that the study has stages for.
    data: of `nodes.data_config`.
  """
  nodes.check_kinds(f'{where}.components', components)
  try:
    components = reward_nodes.check(components)
  except errors.ConfigError as error:
    raise errors.ConfigError(f'config.{where}.components: {error}') from None
  for role, name in reward_nodes.roles(components).items():
    if role not in roles:
      kind = components[name]['kind']
      raise errors.ConfigError(
          f'config.{where}.components.{name} has kind {kind!r}, which reads '
          f'{role!r}, and this study has none; '
          + {'proxies': 'name one of config.conditions',
             'log': 'give it to a study of kind offline, which has logs'}.get(
                 role, 'give data that a gold model can learn from'))
  for name, node in components.items():
    lack = _lack(node, data)
    if lack:
      raise errors.ConfigError(f'config.{where}.components.{name} has kind '
                               f'{node["kind"]!r}, which {lack}')
  functions = reward_nodes.functions(components)
  if functions:
    checks.try_to_make('pool', functools.partial(
        programmatic.check, functions), pool)


def _lack(node: Mapping, data: Mapping) -> str | None:
  """What a component needs and the data cannot give, and what to do."""
  kind = node['kind']
  if kind == 'file' and data['name'] != 'logged':
    return ('reads a number of logged responses, and these texts have none; '
            'give config.data.logged.path, a file with the column '
            f'{node["column"]!r}')
  if kind == 'file' and node['column'] != data.get('target'):
    return ('scores new responses by what the gold model has learned; set '
            f'config.data.logged.target to {node["column"]!r}, its column')
  if kind == 'file' and nodes.has_rule(data):
    return ('scores new responses by the gold model, which learns the rule of '
            "the small world in this task; use kind 'gold', or give "
            'config.data.logged.path')
  if kind == 'exact_match' and not load_lib.has_references(data):
    return ('compares with right answers, and these texts have none; give '
            "config.data.logged.path, or prompts with a column 'reference'")
  return None


def check_online(where: str, run: Mapping, conditions: Mapping[str, Mapping],
                 data: Mapping):
  """Raises ConfigError for what the stage of an online run would fail at.

  Args:
    where: of the run in the config, such as 'runs.ppo'.
    run: of `nodes.online_runs`.
    conditions: of `nodes.conditions`.
    data: of `nodes.data_config`.
  """
  require = nodes.requirement(nodes.at(where, run))
  components = run['reward']['components']
  require(components, f'{where}.reward.components',
          "give at least one, {name: {'kind': ...}}")
  if nodes.reads_proxies(run):
    require(run['condition'] in conditions, f'{where}.condition',
            'its reward models are of a condition; there are '
            f'{", ".join(conditions) or "none"}')
    for name, node in components.items():
      if node.get('kind') == 'proxy':
        checks.check_aggregate(
            f'{where}.reward.components.{name}.aggregate',
            node.get('aggregate', {'kind': 'mean'}),
            conditions[run['condition']]['num_members'])
  if nodes.is_best_of_n(run):
    return _check_best_of_n(where, run, require)
  _check_numbers(where, run, require)
  checks.check_least(f'{where}.rollout', run['rollout'], data)
  _check_evaluation(where, run, data['num_eval_prompts'], require)
  checks.try_to_make(where, lambda: online_checks.check(run), {})
  checks.try_to_make(f'{where}.optimizer', functools.partial(
      train.optimizer, num_steps=1), run['optimizer'])


def _check_numbers(where, run, require):
  reward, rollout, updates = run['reward'], run['rollout'], run['updates']
  target = run['kl']['target']
  require(target is None or target > 0, f'{where}.kl.target',
          'give None or more than 0 nats')
  require(run['kl']['horizon'] > 0, f'{where}.kl.horizon', 'give more than 0')
  for field, value in (
      ('num_steps', run['num_steps']),
      *((f'rollout.{k}', rollout[k]) for k in ('batch_size', 'samples')),
      *((f'updates.{k}', updates[k]) for k in (
          'num_epochs', 'num_minibatches', 'repeats', 'num_microbatches'))):
    require(isinstance(value, int) and value >= 1, f'{where}.{field}',
            'give at least 1')
  size, chunk = rollout['batch_size'], rollout['chunk_size']
  require(chunk is None or (chunk >= 1 and size % chunk == 0),
          f'{where}.rollout.chunk_size',
          f'must divide rollout.batch_size {size}')
  parts = updates['num_minibatches'] * updates['num_microbatches']
  require(size % parts == 0, f'{where}.updates.num_minibatches',
          f'times num_microbatches must divide rollout.batch_size {size}')
  require(rollout['temperature'] > 0, f'{where}.rollout.temperature',
          'a policy must explore; give more than 0')
  require(0 < rollout['top_p'] <= 1, f'{where}.rollout.top_p', 'in (0, 1]')
  for field in ('top_k', 'resample'):
    require(rollout[field] >= 0, f'{where}.rollout.{field}', 'give 0 or more')
  require(reward['noise'] >= 0, f'{where}.reward.noise', 'give 0 or more')
  require(reward['scale'] in (None, 'running', 'first'),
          f'{where}.reward.scale', "None, 'running' or 'first'")
  require(reward['clip'] is None or reward['clip'] > 0,
          f'{where}.reward.clip', 'give None or more than 0')
  require(run['value']['trunk'] in policies.TRUNKS,
          f'{where}.value.trunk', "'shared', 'separate' or 'reward'")


def _check_evaluation(where, run, num_eval_prompts, require):
  evaluation = run['evaluation']
  for field, least in (('every', 1), ('num_prompts', 1), ('chunk_size', 1),
                       ('texts', 0)):
    value = evaluation[field]
    require(isinstance(value, int) and value >= least,
            f'{where}.evaluation.{field}', f'give at least {least}')
  require(evaluation['num_prompts'] <= num_eval_prompts,
          f'{where}.evaluation.num_prompts',
          f'there are data.num_eval_prompts {num_eval_prompts}')


def _check_best_of_n(where, run, require):
  """Refuses what best-of-n would not do, though the run asks for it."""
  reward, kl = run['reward'], run['kl']
  settings = [(f'reward.components.{name}.{field}', node[field] != neutral)
              for name, node in reward_nodes.check(reward['components']).items()
              for field, neutral in UNTOUCHED.items() if field in node]
  for field, wrong in (
      ('reward.components', list(reward_nodes.kinds(reward['components']))
       != ['proxy'] or len(reward['components']) != 1),
      *settings, ('reward.noise', reward['noise']),
      ('reward.scale', reward['scale'] is not None),
      ('reward.eos.penalty', reward['eos']['penalty'] is not None),
      ('reward.eos.value', reward['eos']['value'] is not None),
      ('kl.coef', kl['coef']), ('kl.target', kl['target'] is not None)):
    require(not wrong, f'{where}.{field}', "algorithm='best_of_n' takes the "
            "ensemble's highest score as it is; leave this out")


def check_offline(where: str, run: Mapping, num_eval_prompts: int):
  """Raises ConfigError for what the stage of an offline run would fail at.

  Args:
    where: of the run in the config.
    run: of `nodes.offline_runs`.
    num_eval_prompts: of the data.
  """
  require = nodes.requirement(nodes.at(where, run))
  for field in ('batch_size', 'num_microbatches'):
    require(isinstance(run[field], int) and run[field] >= 1,
            f'{where}.{field}', 'give at least 1')
  _check_evaluation(where, run, num_eval_prompts, require)
  require(isinstance(run['num_steps'], int) and run['num_steps'] >= 0,
          f'{where}.num_steps', 'give at least 0, which is the reference')
  require(run['batch_size'] % run['num_microbatches'] == 0,
          f'{where}.num_microbatches', 'must divide batch_size '
          f'{run["batch_size"]}')
  require(run['value']['trunk'] in policies.TRUNKS[:2],
          f'{where}.value.trunk', "'shared' or 'separate'")
  require(run['q']['shift'] >= 0, f'{where}.q.shift', 'give 0 or more')
  require(run['q']['top_k'] >= 0, f'{where}.q.top_k', 'give 0 (all) or more')
  require(run['q']['every'] >= 1, f'{where}.q.every', 'give at least 1')
  require(0 < run['q']['rate'] <= 1, f'{where}.q.rate', 'in (0, 1]')
  checks.try_to_make(where, lambda: offline_methods.check(run), {})
  checks.try_to_make(f'{where}.optimizer', functools.partial(
      train.optimizer, num_steps=1), run['optimizer'])


def check_use(where: str, run: Mapping, *, pairs: bool, max_samples: int,
              groups: Collection[str]):
  """Raises ConfigError if a log has not the responses that a run uses.

  Args:
    where: of the run in the config.
    run: of `nodes.offline_runs`.
    pairs: whether its log is of pairs of samples.
    max_samples: responses to each prompt.
    groups: names of the groups of the log.
  """
  require = nodes.requirement(nodes.at(where, run))
  usable = (*offline_data.USES, *(offline_data.SIDES if pairs else groups))
  require(run['use'] in usable, f'{where}.use',
          f'there are {", ".join(usable)}')
  row = offline_methods.make_row(run)
  require(row.source not in offline_data.PAIRED or pairs or max_samples >= 2,
          f'{where}.algorithm', 'it compares responses; set '
          'config.data.logged.max_samples to 2 or more')
  require(row.source != 'unpaired' or pairs or unpaired.sides([*groups]),
          f'{where}.algorithm', 'it learns from what is liked or disliked; '
          'give a log with the groups liked and disliked (kind unpaired), or '
          'chosen and rejected')
