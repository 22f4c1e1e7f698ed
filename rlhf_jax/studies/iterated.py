"""RLHF in rounds: new pairs, new reward models, the same policy goes on.

  sft ---------+--> gold --> [pairs --> proxies --> policy] --> ... --> report
  trunk (SFT) -+                ^____________________|

The loop of Christiano et al. 2017, https://arxiv.org/abs/1706.03741, and the
online data collection of Ziegler et al. 2019,
https://arxiv.org/abs/1909.08593: in every round the policy answers prompts
that have had no label yet, the gold model compares its answers, reward models
are trained from the start on all labels so far, and the policy goes on against
them. The reference of the KL stays the SFT policy, whose held-out responses
also validate and standardise the reward models of every round.

With `collect` 'initial', the SFT policy answers in every round: as many
labels for the same prompts, none of them about what the policy has become.
"""

import functools

from rlhf_jax import errors
from rlhf_jax.data import load as load_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import online_policy
from rlhf_jax.stages import policy_report
from rlhf_jax.studies import checks
from rlhf_jax.studies import online

inputs = checks.inputs
final = checks.report_name
COLLECT = ('current', 'initial')  # who answers after the first round


def labels_per_round(config: dict) -> int:
  """Training pairs of each round; the prompts held out are beside them."""
  return (config['data']['num_pair_prompts'] - config['proxy']['held_out']
          ) // config['rounds']


def _runs(config: dict) -> list[tuple[str, int]]:
  return [(collect, number) for collect in config['collect']
          for number in range(config['rounds'])]


def _labels(collect: str, number: int) -> dict:
  return {'collect': collect, 'round': number}


def _check(config: dict):
  """Raises ConfigError for what would fail later, naming the field."""
  checks.check(config)
  require, proxy = checks.requirement(config), config['proxy']
  require(isinstance(config['rounds'], int) and config['rounds'] >= 1,
          'rounds', 'give at least 1')
  require(config['collect'] and set(config['collect']) <= set(COLLECT)
          and len(set(config['collect'])) == len(config['collect']), 'collect',
          f'give one or both of {", ".join(COLLECT)}')
  require(0 <= config['label_noise'] <= 1, 'label_noise',
          'shares lie in [0, 1]')
  require(proxy['num_pairs'] is None, 'proxy.num_pairs',
          'every label is used; lower data.num_pair_prompts instead')
  require(labels_per_round(config) >= proxy['batch_size'], 'rounds',
          f'leaves {labels_per_round(config)} pairs to each, fewer than '
          f'proxy.batch_size {proxy["batch_size"]}; lower one of them')
  if config['online']['algorithm'] == online.BEST_OF_N:
    raise errors.ConfigError("config.online.algorithm is 'best_of_n', which "
                             'trains no policy to go on with')
  online.check_run('online', {**config['online'], 'condition': 'proxy'},
                   {'proxy': proxy}, config['data']['num_eval_prompts'])
  policy_report.check(config['figure'],
                      [_labels(*run) for run in _runs(config)])


def _add_round(config: dict, made: checks.Seed, here: str, number: int,
               pairs: list[str], current: str | None, answers: str | None
               ) -> str:
  """Adds one round, its pairs to `pairs`; the stage of its policy.

  Args:
    config: of the study.
    made: the stages so far.
    here: where the stages of the round are.
    number: of the round, from 0.
    pairs: stages of all rounds so far.
    current: stage of the policy that goes on; None: the SFT policy.
    answers: stage of the policy that is labelled; None: the SFT policy.
  """
  proxy, count = config['proxy'], labels_per_round(config)
  held_out = proxy['held_out']  # of the first round
  pairs.append(made.add_pairs(
      f'{here}/pairs', force_eos=config['force_eos'], sampled_from=answers,
      first=held_out + number * count if number else 0,
      num_pairs=count if number else held_out + count))
  proxies = made.add_proxies(
      f'{here}/proxies', proxy, pairs=list(pairs), trunks=made.trunks,
      label_noise=config['label_noise'])
  shared = {k: v for k, v in made.shared.items() if k != 'sampler'}
  return made.add(
      f'{here}/policy', online_policy.run, **shared, **config['online'],
      pairs=pairs[0], proxies=proxies, proxy_model=proxy['model'],
      num_members=proxy['num_members'], sampler=config['sampler'],
      start=current, part=number, training=config['training'])


def _seed_stages(config: dict, data: dict, seed: int
                 ) -> tuple[list[run_lib.Stage], dict[tuple[str, int], str]]:
  """The stages of one seed, and that of each policy.

  The first round is the same whoever answers in the others, and is taken over
  by its recipe, not run again.
  """
  made, policies = checks.Seed(config, data, seed), {}
  for collect in config['collect']:
    pairs, current = [], None
    for number in range(config['rounds']):
      current = policies[collect, number] = _add_round(
          config, made, f'{collect}/round_{number}', number, pairs, current,
          current if collect == 'current' else None)
  return made.stages, policies


def plan(config: dict) -> list[run_lib.Stage]:
  """The stages of all seeds and the report.

  Raises:
    ConfigError: a field is out of range; nothing has been touched.
    DataError: a file it names is missing or malformed.
  """
  _check(config)
  data = checks.data_config(config)
  load_lib.check(data)
  checks.check_tokens(config, data)
  checks.check_gold(config, data)
  config = checks.absolute(config)
  stages, made = [], []
  for seed in config['seeds']:
    of_seed, policies = _seed_stages(config, data, seed)
    stages += of_seed
    made += [{'stage': policies[run], 'seed': seed,
              'run': f'{run[0]}_{run[1]}', 'labels': _labels(*run)}
             for run in _runs(config)]
  stages.append(run_lib.Stage(final(config), functools.partial(
      policy_report.run, policies=made, stages=[s.name for s in stages],
      title=config['title'], figure=config['figure'])))
  return stages
