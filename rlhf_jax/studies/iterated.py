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

from collections.abc import Mapping

from rlhf_jax import errors
from rlhf_jax.reports import spec
from rlhf_jax.stages import online_policy
from rlhf_jax.studies import checks
from rlhf_jax.studies import nodes
from rlhf_jax.studies import online
from rlhf_jax.studies import plan
from rlhf_jax.studies import run_checks
from rlhf_jax.studies import seed as seed_lib

COLLECT = ('current', 'initial')  # who answers after the first round


def labels_per_round(config: Mapping) -> int:
  """Training pairs of each round; the prompts held out are beside them."""
  return (config['data']['num_pair_prompts'] - config['proxy']['held_out']
          ) // config['rounds']


def _runs(config: Mapping) -> list[tuple[str, int]]:
  return [(collect, number) for collect in config['collect']
          for number in range(config['rounds'])]


def _labels(collect: str, number: int) -> dict:
  return {'collect': collect, 'round': number}


def describe(config: dict) -> plan.Study:
  """A line of the report for each round."""
  proxy = dict(config['proxy'], label_noise=config['label_noise'])

  def of_seed(seed):
    policies = _seed_stages(config, seed, proxy)
    return [{'stage': policies[run], 'run': f'{run[0]}_{run[1]}',
             'labels': _labels(*run)} for run in _runs(config)]

  return plan.Study(
      check=lambda data: _check(config, data, proxy),
      proxies={'proxy': config['proxy']}, reads_gold=True, of_seed=of_seed,
      arguments=lambda shown: {'policies': shown, 'figure': config['figure']})


def _check(config: dict, data: dict, proxy: Mapping):
  """Raises ConfigError for what would fail later, naming the field."""
  require = nodes.requirement(config)
  require(0 <= config['label_noise'] <= 1, 'label_noise',
          'shares lie in [0, 1]')
  require(isinstance(config['rounds'], int) and config['rounds'] >= 1,
          'rounds', 'give at least 1')
  require(config['collect'] and set(config['collect']) <= set(COLLECT)
          and len(set(config['collect'])) == len(config['collect']), 'collect',
          f'give one or both of {", ".join(COLLECT)}')
  checks.check_samples_pairs(config)
  require(proxy['num_pairs'] is None, 'proxy.num_pairs',
          'every label is used; lower data.num_pair_prompts instead')
  require(labels_per_round(config) >= proxy['batch_size'], 'rounds',
          f'leaves {labels_per_round(config)} pairs to each, fewer than '
          f'proxy.batch_size {proxy["batch_size"]}; lower one of them')
  run = {**config['online'], 'condition': 'proxy'}
  if nodes.is_best_of_n(run):
    raise errors.ConfigError("config.online.algorithm is 'best_of_n', which "
                             'trains no policy to go on with')
  run_checks.check_components(
      'online.reward', run['reward']['components'], config['pool'],
      {'gold', 'pairs', 'proxies'}, data)
  run_checks.check_online('online', run, {'proxy': proxy}, data)
  spec.check(config['figure'], [_labels(*run) for run in _runs(config)],
             columns=online.columns(config, data, reads_pairs=True))


def _seed_stages(config: dict, seed: seed_lib.Seed, proxy: Mapping
                 ) -> dict[tuple[str, int], str]:
  """Adds the stages of a seed; that of each policy.

  The first round is the same whoever answers in the others, and is taken over
  by its recipe, not run again.
  """
  policies = {}
  for collect in config['collect']:
    pairs, current = [], None
    for number in range(config['rounds']):
      current = policies[collect, number] = _add_round(
          config, seed, proxy, (collect, number), pairs, current)
  return policies


def _add_round(config: dict, seed: seed_lib.Seed, proxy: Mapping,
               name: tuple[str, int], pairs: list[str], current: str | None
               ) -> str:
  """Adds one round, its pairs to `pairs`; the stage of its policy.

  Args:
    config: of the study.
    seed: the stages so far.
    proxy: node of the reward models, with 'label_noise'.
    name: who answers, and the number of the round, from 0.
    pairs: stages of all rounds so far.
    current: stage of the policy that goes on; None: the SFT policy.
  """
  collect, number = name
  here, count = f'{collect}/round_{number}', labels_per_round(config)
  held_out = proxy['held_out']  # of the first round
  pairs.append(seed.add_pairs(
      f'{here}/pairs', force_eos=config['force_eos'],
      policy=current if collect == 'current' else None,
      first=held_out + number * count if number else 0,
      num_pairs=count if number else held_out + count))
  proxies = seed.add_proxies(
      f'{here}/proxies', proxy, pairs=list(pairs),
      label_noise=proxy['label_noise'])
  upstream = {'reference': seed.reference, 'policy': current, 'gold': seed.gold,
              'pairs': pairs[0], 'proxies': proxies}
  components = config['online']['reward']['components']
  return seed.add(
      f'{here}/policy', online_policy, upstream, **seed.texts, part=number,
      run=nodes.of_stage(config['online'], 'condition'),
      measure=online.measure(config, components), training=config['training'])
