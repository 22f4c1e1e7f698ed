r"""Policies trained online, by any method, against any reward models.

  sft ---------+--> gold --> pairs --> proxies --> policies --> report
  trunk (SFT) -+       \__________________|________/
                        \--> samples --> scores (of best-of-n)

Figures 4 to 14 of Coste et al. 2024, and those of Ahmadian et al. 2024 and
Zhu et al. 2023. A config lists conditions, which differ in the reward models,
and runs, which differ in how a policy is optimised against them; each run is
a change of the node `online`, and each is made for every seed. Best-of-n is
one of them: it trains nothing, and reads of the node only `condition` and, of
`reward`, `aggregate`, `standardize` and `weight`.
"""

import functools
import importlib.util

from rlhf_jax import errors
from rlhf_jax import train
from rlhf_jax.data import load as load_lib
from rlhf_jax.models import pretrained
from rlhf_jax.rewards import programmatic
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import best_of_n_policy
from rlhf_jax.stages import online_policy
from rlhf_jax.stages import policy_report
from rlhf_jax.stages import samples
from rlhf_jax.stages import scores
from rlhf_jax.stages import win_rates
from rlhf_jax.storage import files
from rlhf_jax.studies import checks

final = checks.report_name
# Of a seed, beside which each condition has a directory.
STAGES = ('sft', 'trunk', 'gold', 'pairs', 'samples', 'logs', 'policies')
# Arguments that belong to a name or kind, so that a run replaces them whole.
OPEN = ('arguments', 'aggregate', 'components', 'functions', 'labels')
BEST_OF_N = 'best_of_n'  # an `algorithm` that trains nothing


def merge(base: dict, changes: dict, where: str) -> dict:
  """`base` with nested changes.

  Raises:
    ConfigError: naming a field that `base` does not have.
  """
  merged = dict(base)
  for name, value in changes.items():
    if name not in base:
      raise errors.ConfigError(f'config.{where}.{name} is no field; there are '
                               f'{", ".join(sorted(base))}')
    if isinstance(base[name], dict) and name not in OPEN:
      if not isinstance(value, dict):
        raise errors.ConfigError(f'config.{where}.{name} is {value!r}; give '
                                 'changes of its fields')
      value = merge(base[name], value, f'{where}.{name}')
    merged[name] = value
  return merged


def make_conditions(config: dict) -> dict[str, dict]:
  """The `proxy` node and `label_noise` of each condition."""
  base = {'label_noise': 0.0, **config['proxy']}
  return {name: merge(base, changes, f'conditions.{name}')
          for name, changes in config['conditions'].items()}


def make_runs(config: dict) -> dict[str, dict]:
  """What each run is, labels included."""
  base = {'labels': {}, **config['online']}
  return {name: merge(base, changes, f'runs.{name}')
          for name, changes in config['runs'].items()}


def inputs(config: dict) -> dict:
  """As `checks.inputs`, with the models of conditions and reward functions."""
  found = checks.inputs(config)
  for name, proxy in make_conditions(config).items():
    if proxy['model'] != config['proxy']['model']:
      found[f'conditions.{name}.model'] = pretrained.fingerprint(proxy['model'])
  for run in make_runs(config).values():
    found |= function_inputs(run['reward']['functions'])
  return {field: value for field, value in found.items() if value}


def function_inputs(nodes: dict[str, dict]) -> dict[str, str]:
  """SHA-256 of the modules of reward functions, but for our own."""
  modules = {node['function'].partition(':')[0] for node in nodes.values()}
  return {f'reward.functions.{module}': files.fingerprint(
      importlib.util.find_spec(module).origin, ())
          for module in sorted(modules) if not module.startswith('rlhf_jax.')}


def check_conditions(config: dict, conditions: dict):
  """Raises ConfigError for reward models that could not be trained."""
  for name, proxy in conditions.items():
    if name in STAGES or name.startswith('trunk_'):
      raise errors.ConfigError(f'config.conditions.{name} has the name of a '
                               'stage; choose another')
    noise = proxy['label_noise']
    if not 0 <= noise <= 1:
      raise errors.ConfigError(f'config.conditions.{name}.label_noise is '
                               f'{noise}; shares lie in [0, 1]')
    proxy = {k: v for k, v in proxy.items() if k != 'label_noise'}
    try:
      checks.check({**config, 'proxy': proxy})
    except errors.ConfigError as error:
      raise errors.ConfigError(
          f'config.conditions.{name}: {error}') from None


def check_samples(config: dict):
  """Raises ConfigError for what the samples of best-of-n would fail at."""
  require, drawn = checks.requirement(config), config['best_of_n']
  for name, least in (('num_samples', 2), ('samples_per_call', 1),
                      ('shard_prompts', 1)):
    require(drawn[name] >= least, f'best_of_n.{name}', f'give at least {least}')
  require(drawn['num_samples'] % min(
      drawn['samples_per_call'], drawn['num_samples']) == 0,
          'best_of_n.num_samples', 'give a multiple of '
          f'best_of_n.samples_per_call {drawn["samples_per_call"]}')


def _check_best_of_n(where: str, run: dict, require):
  """Refuses what best-of-n would not do, though the run asks for it."""
  reward, kl = run['reward'], run['kl']
  for field, wrong in (
      ('reward.noise', reward['noise']),
      ('reward.functions', reward['functions']),
      ('reward.eos.penalty', reward['eos']['penalty'] is not None),
      ('reward.eos.value', reward['eos']['value'] is not None),
      ('kl.coef', kl['coef']), ('kl.target', kl['target'] is not None)):
    require(not wrong, f'{where}.{field}', "algorithm='best_of_n' takes the "
            "ensemble's highest score as it is; leave this out")


def check_run(where: str, run: dict, conditions: dict, num_eval_prompts: int):
  """Raises ConfigError for what the stage of a run would fail at.

  Args:
    where: of the run in the config, such as 'runs.ppo'.
    run: of `make_runs`.
    conditions: of `make_conditions`.
    num_eval_prompts: of the data.
  """
  require = checks.requirement(functools.reduce(
      lambda node, name: {name: node}, reversed(where.split('.')), run))
  require(run['condition'] in conditions, f'{where}.condition',
          f'there are {", ".join(conditions)}')
  proxy = conditions[run['condition']]
  reward, rollout, updates = run['reward'], run['rollout'], run['updates']
  checks.check_aggregate(f'{where}.reward.aggregate', reward['aggregate'],
                         proxy['num_members'])
  if _is_best_of_n(run):
    return _check_best_of_n(where, run, require)
  require(isinstance(reward['functions'], dict), f'{where}.reward.functions',
          'give {name: {function, weight}}')
  target = run['kl']['target']
  require(target is None or target > 0, f'{where}.kl.target',
          'give None or more than 0 nats')
  require(run['kl']['horizon'] > 0, f'{where}.kl.horizon', 'give more than 0')
  checks.try_to_make(where, _make_row, run)
  checks.try_to_make(f'{where}.optimizer', functools.partial(
      train.optimizer, num_steps=1), run['optimizer'])
  for field, value in (
      ('num_steps', run['num_steps']),
      *((f'rollout.{k}', rollout[k]) for k in ('batch_size', 'samples')),
      *((f'updates.{k}', updates[k]) for k in (
          'num_epochs', 'num_minibatches', 'repeats', 'num_microbatches')),
      *((f'evaluation.{k}', run['evaluation'][k])
        for k in ('every', 'num_prompts'))):
    require(isinstance(value, int) and value >= 1, f'{where}.{field}',
            'give at least 1')
  require(run['evaluation']['num_prompts'] <= num_eval_prompts,
          f'{where}.evaluation.num_prompts',
          f'there are data.num_eval_prompts {num_eval_prompts}')
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
  require(rollout['top_k'] >= 0, f'{where}.rollout.top_k', 'give 0 or more')
  require(reward['noise'] >= 0, f'{where}.reward.noise', 'give 0 or more')
  require(reward['scale'] in (None, 'running', 'first'),
          f'{where}.reward.scale', "None, 'running' or 'first'")
  require(reward['clip'] is None or reward['clip'] > 0,
          f'{where}.reward.clip', 'give None or more than 0')
  require(run['value']['trunk'] in ('shared', 'separate', 'reward'),
          f'{where}.value.trunk', "'shared', 'separate' or 'reward'")
  if reward['functions']:
    checks.try_to_make(
        f'{where}.reward.functions_pool', functools.partial(
            programmatic.check, reward['functions']), reward['functions_pool'])


def _is_best_of_n(run: dict) -> bool:
  return run['algorithm'] == BEST_OF_N


def _make_row(algorithm, arguments, reward, kl, rollout, updates, **unused):
  for name, node in arguments.items():
    if not isinstance(node, dict):
      raise ValueError(f'arguments.{name} is {node!r}; give arguments by name.')
  row = online_policy.make_row(algorithm, arguments, kl)
  if kl['target'] is not None and not online_policy.initial_kl_coef(row) > 0:
    raise ValueError('kl.target adapts a coefficient, which must begin above '
                     '0; set kl.coef')
  if row.samples.startswith('k >=') and rollout['samples'] < 2:
    raise ValueError(f'{row.title} needs rollout.samples >= 2')
  if row.samples == '1' and rollout['samples'] != 1:
    raise ValueError(f'{row.title} takes rollout.samples=1')
  online_policy.try_out(row, reward, kl, updates, rollout['samples'])


def _check(config: dict) -> tuple[dict, dict]:
  """The conditions and the runs, checked."""
  checks.check(config)
  require = checks.requirement(config)
  for field in ('conditions', 'runs'):
    require(config[field], field, 'give at least one')
  conditions, runs = make_conditions(config), make_runs(config)
  check_conditions(config, conditions)
  held_out = config['data']['num_eval_prompts']
  for name, run in runs.items():
    check_run(f'runs.{name}', run, conditions, held_out)
  if any(map(_is_best_of_n, runs.values())):
    check_samples(config)
  policy_report.check(config['figure'], [run['labels'] for run in
                                         runs.values()])
  return conditions, runs


def _best_of_n_stages(config, made, runs, given):
  """Samples, scores and curves of the runs that ask for them: their stages."""
  asked = {name: run for name, run in runs.items() if _is_best_of_n(run)}
  if not asked:
    return {}
  drawn = made.add('samples', samples.run, force_eos=config['force_eos'],
                   **config['best_of_n'], **made.shared)
  known, stages = {}, {}
  for name, run in asked.items():
    condition = run['condition']
    proxies, proxy = given['proxies'][condition], given['conditions'][condition]
    if condition not in known:
      known[condition] = made.add(
          f'{condition}/scores', scores.run, samples=drawn, proxies=proxies,
          model=proxy['model'], num_members=proxy['num_members'])
    reward = {k: run['reward'][k]
              for k in ('aggregate', 'weight', 'standardize')}
    stages[name] = made.add(
        f'policies/{name}', best_of_n_policy.run, pairs=given['pairs'],
        policy=made.shared['policy'], scores=known[condition],
        proxies=proxies, **reward)
  return stages


def add_conditions(config: dict, made: checks.Seed, conditions: dict,
                   pairs: str, **changes) -> dict[str, str]:
  """Adds the reward models of each condition; their stages.

  Args:
    config: of the study.
    made: the stages so far.
    conditions: of `make_conditions`.
    pairs: stage that holds the pairs.
    **changes: of every `proxy` node.
  """
  proxies, trunks = {}, {}
  parts = lambda x: ('model', 'sft', 'trunk') + (
      ('num_members',) * (x['trunk'] == 'member'))
  same = lambda a, b: all(a[k] == b[k] for k in parts(a))
  for name, condition in conditions.items():
    proxy = dict(condition, **changes)
    noise = proxy.pop('label_noise')
    known = [k for k in trunks if same(conditions[k], proxy)]
    if same(config['proxy'], proxy) and proxy['trunk'] == 'shared':
      trunks[name] = made.trunks
    elif known:
      trunks[name] = trunks[known[0]]
    else:
      trunks[name] = made.add_trunks(proxy, prefix=f'{name}/')
    proxies[name] = made.add_proxies(
        f'{name}/proxies', proxy, pairs=pairs, trunks=trunks[name],
        label_noise=noise)
  return proxies


def _seed_stages(config, data, seed, conditions, runs):
  """The stages of one seed, and the stage of each run."""
  made = checks.Seed(config, data, seed)
  pairs = made.add_pairs('pairs', force_eos=config['force_eos'])
  used = dict.fromkeys(run['condition'] for run in runs.values())
  proxies = add_conditions(
      config, made, {name: conditions[name] for name in used}, pairs)
  given = {'pairs': pairs, 'proxies': proxies, 'conditions': conditions}
  stages = _best_of_n_stages(config, made, runs, given)
  shared = {k: v for k, v in made.shared.items() if k != 'sampler'}
  for name, run in runs.items():
    if name in stages:
      continue
    run = {k: v for k, v in run.items() if k not in ('labels', 'condition')}
    condition = runs[name]['condition']
    proxy = conditions[condition]
    stages[name] = made.add(
        f'policies/{name}', online_policy.run, **shared, **run, pairs=pairs,
        proxies=proxies[condition], proxy_model=proxy['model'],
        num_members=proxy['num_members'], sampler=config['sampler'],
        training=config['training'])
  return made.stages, stages


def judge_stages(config: dict, made: list[dict], runs: dict
                 ) -> list[run_lib.Stage]:
  """The stage that has policies judged, where the config asks for one.

  Args:
    config: of the study.
    made: {'stage', 'seed', 'run', 'labels'} of each policy.
    runs: of `make_runs`.
  """
  judge = dict(config['judge'])
  if judge['against'] is None:
    return []
  answered = [one for one in made if not _is_best_of_n(runs[one['run']])]
  fewest = min((runs[one['run']]['evaluation']['num_prompts']
                for one in answered), default=0)
  checks.requirement(config)(
      judge['num_prompts'] is not None
      and 1 <= judge['num_prompts'] <= fewest, 'judge.num_prompts',
      f'give 1 to {fewest}, the prompts that every run answers')
  win_rates.check(answered, judge['against'], judge['judge'])
  name = final(config).replace('report', 'win_rates', 1)
  return [run_lib.Stage(name, functools.partial(
      win_rates.run, policies=answered, **judge))]


def plan(config: dict) -> list[run_lib.Stage]:
  """The stages of all seeds and the report.

  Raises:
    ConfigError: a field is out of range; nothing has been touched.
    DataError: a file it names is missing or malformed.
  """
  config = checks.absolute(config)
  conditions, runs = _check(config)
  data = checks.data_config(config)
  load_lib.check(data)
  for proxy in conditions.values():
    checks.check_tokens({**config, 'proxy': proxy}, data)
  checks.check_gold(config, data)
  stages, made = [], []
  for seed in config['seeds']:
    of_seed, names = _seed_stages(config, data, seed, conditions, runs)
    stages += of_seed
    made += [{'stage': names[name], 'seed': seed, 'run': name,
              'labels': runs[name]['labels']} for name in runs]
  stages += judge_stages(config, made, runs)
  stages.append(run_lib.Stage(final(config), functools.partial(
      policy_report.run, policies=made, stages=[s.name for s in stages],
      title=config['title'], figure=config['figure'])))
  return stages
