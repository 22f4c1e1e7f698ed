"""Reward-model overoptimization under best-of-n (Coste et al. 2024, Fig. 3).

  sft ----------+--> gold --> pairs --> proxies --> best_of_n --> report
  trunk (SFT) --|              |           ^          ^
                +--------------+--> samples + scores -+

The policy, the trunk and the gold model are shared by all conditions of a
seed; pairs and samples by all noise levels of one kind of ending.
"""

from rlhf_jax import errors
from rlhf_jax.stages import best_of_n
from rlhf_jax.stages import report
from rlhf_jax.stages import samples
from rlhf_jax.stages import scores
from rlhf_jax.studies import checks
from rlhf_jax.studies import nodes
from rlhf_jax.studies import plan
from rlhf_jax.studies import seed as seed_lib


def describe(config: dict) -> plan.Study:
  """Curves of every condition, a method a line."""
  return plan.Study(
      check=lambda data: _check(config), proxies={'proxy': config['proxy']},
      reads_gold=True, of_seed=lambda seed: _seed_stages(config, seed),
      report=report, arguments=lambda shown: {'runs': shown})


def _check(config: dict):
  """Raises ConfigError for what would fail later, naming the field."""
  checks.check_shares(config, 'label_noise')
  checks.check_values(config, 'force_eos')
  nodes.requirement(config)(
      all(isinstance(x, bool) for x in config['force_eos']), 'force_eos',
      'give True, False or both')
  checks.check_samples(config)
  checks.check_samples_pairs(config)
  for name, method in config['best_of_n']['methods'].items():
    if name.startswith('single') or '__' in name:  # in with_single, curves.npz
      raise errors.ConfigError(
          f'config.best_of_n.methods.{name}: names that begin with single are '
          'those of the members, and __ parts columns; choose another')
    checks.check_aggregate(f'best_of_n.methods.{name}', method,
                           config['proxy']['num_members'])


def _seed_stages(config: dict, seed: seed_lib.Seed) -> plan.Shown:
  """Adds the stages of a seed, and says what they show."""
  sizes = {k: v for k, v in config['best_of_n'].items()
           if k in ('samples_per_call', 'shard_prompts')}
  lines = []
  for force_eos in config['force_eos']:
    ending = 'forced_eos' if force_eos else 'as_sampled'
    pairs = seed.add_pairs(f'{ending}/pairs', force_eos=force_eos)
    upstream = {'samples': seed.add(
        f'{ending}/samples', samples,
        {'reference': seed.reference, 'gold': seed.gold}, **seed.texts,
        force_eos=force_eos, sampler=config['sampler'], call=sizes,
        num_samples=config['best_of_n']['num_samples'])}
    upstream['features'] = seed.add_features(
        'samples', upstream['samples'], config['proxy'])
    for noise in config['label_noise']:
      here = f'{ending}/noise_{noise:.12g}'
      upstream['proxies'] = seed.add_proxies(
          f'{here}/proxies', config['proxy'], pairs=pairs, label_noise=noise)
      upstream['scores'] = seed.add(f'{here}/scores', scores, upstream)
      stage = seed.add(
          f'{here}/best_of_n', best_of_n, upstream,
          methods=config['best_of_n']['methods'],
          standardize=config['best_of_n']['standardize'])
      lines.append({'stage': stage, 'force_eos': force_eos,
                    'label_noise': noise})
  return lines
