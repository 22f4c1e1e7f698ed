"""Reward-model overoptimization under best-of-n (Coste et al. 2024, Fig. 3).

  sft ----------+--> gold --> pairs --> proxies --> best_of_n --> report
  trunk (SFT) --|              |           ^           ^
                +--------------+--> samples -----------+

The policy, the trunk and the gold model are shared by all conditions of a
seed; pairs and samples by all noise levels of one kind of ending.
"""

import functools

from rlhf_jax.data import load as load_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import best_of_n
from rlhf_jax.stages import report
from rlhf_jax.stages import samples
from rlhf_jax.studies import checks

data_config = checks.data_config
inputs = checks.inputs
final = checks.report_name


def _check(config: dict):
  """Raises ConfigError for what would fail later, naming the field."""
  checks.check(config)
  checks.check_shares(config, 'label_noise')
  require, bon = checks.requirement(config), config['best_of_n']
  checks.check_values(config, 'force_eos')
  require(all(isinstance(x, bool) for x in config['force_eos']), 'force_eos',
          'give True, False or both')
  for name, least in (('num_samples', 2), ('samples_per_call', 1),
                      ('shard_prompts', 1)):
    require(bon[name] >= least, f'best_of_n.{name}', f'give at least {least}')
  require(bon['num_samples'] % min(bon['samples_per_call'], bon['num_samples'])
          == 0, 'best_of_n.num_samples', 'give a multiple of '
          f'best_of_n.samples_per_call {bon["samples_per_call"]}')
  for name, method in bon['methods'].items():
    checks.check_aggregate(f'best_of_n.methods.{name}', method,
                           config['proxy']['num_members'])


def _condition(force_eos: bool, noise: float | None = None) -> str:
  ending = 'forced_eos' if force_eos else 'as_sampled'
  return ending if noise is None else f'{ending}/noise_{noise:.12g}'


def _seed_stages(config: dict, data: dict, seed: int) -> list[run_lib.Stage]:
  """The stages of one seed, in order."""
  made, proxy = checks.Seed(config, data, seed), config['proxy']
  bon = dict(config['best_of_n'])
  methods, standardize = bon.pop('methods'), bon.pop('standardize')
  for force_eos in config['force_eos']:
    ending = _condition(force_eos)
    pairs = made.add_pairs(f'{ending}/pairs', force_eos=force_eos)
    drawn = made.add(f'{ending}/samples', samples.run, force_eos=force_eos,
                     **bon, **made.shared)
    for noise in config['label_noise']:
      here = _condition(force_eos, noise)
      proxies = made.add_proxies(f'{here}/proxies', proxy, pairs=pairs,
                                 trunks=made.trunks, label_noise=noise)
      made.add(f'{here}/best_of_n', best_of_n.run, samples=drawn,
               proxies=proxies, model=proxy['model'],
               num_members=proxy['num_members'], methods=methods,
               standardize=standardize)
  return made.stages


def plan(config: dict) -> list[run_lib.Stage]:
  """The stages of all seeds and the report.

  Raises:
    ConfigError: a field is out of range; nothing has been touched.
    DataError: a file it names is missing or malformed.
  """
  _check(config)
  data = data_config(config)
  load_lib.check(data)
  checks.check_tokens(config, data)
  checks.check_gold(config, data)
  config = checks.absolute(config)
  stages, runs = [], []
  for seed in config['seeds']:
    stages.extend(_seed_stages(config, data, seed))
    runs += [{'stage': f'seed_{seed}/{_condition(end, noise)}/best_of_n',
              'seed': seed, 'force_eos': end, 'label_noise': noise}
             for end in config['force_eos'] for noise in config['label_noise']]
  stages.append(run_lib.Stage(final(config), functools.partial(
      report.run, runs=runs, stages=[s.name for s in stages],
      title=config['title'])))
  return stages
