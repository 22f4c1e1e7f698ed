"""How reward models learn: held-out loss and accuracy by epoch.

  sft, trunk, gold --> pairs --> reward models of each condition --> report

Coste et al. 2024, figure 15. The conditions of a config differ in the reward
models, as in the study `online`; no policy is trained.
"""

import functools

from rlhf_jax import study
from rlhf_jax.data import corpus
from rlhf_jax.stages import policy_report
from rlhf_jax.studies import common
from rlhf_jax.studies import online

final = common.report_name


def inputs(config: dict) -> dict:
  """As those of the study `online`, which has runs beside conditions."""
  return online.inputs({**config, 'online': {}, 'runs': {}})


def plan(config: dict) -> list[study.Stage]:
  """The stages of all seeds and the report.

  Raises:
    ConfigError: a field is out of range; nothing has been touched.
    DataError: a file it names is missing or malformed.
  """
  config = common.absolute(config)
  common.check(config)
  common.requirement(config)(
      config['conditions'], 'conditions', 'give at least one')
  conditions = online.make_conditions(config)
  online.check_conditions(config, conditions)
  policy_report.check(config['figure'], [{'condition': name}
                                         for name in conditions])
  data = common.data_config(config)
  corpus.check(data)
  for proxy in conditions.values():
    common.check_tokens({**config, 'proxy': proxy}, data)
  common.check_gold(config, data)
  stages, made = [], []
  for seed in config['seeds']:
    of_seed = common.Seed(config, data, seed)
    pairs = of_seed.add_pairs('pairs', force_eos=config['force_eos'])
    for name, proxy in online.add_conditions(
        config, of_seed, conditions, pairs, validate=True).items():
      made.append({'stage': proxy, 'seed': seed, 'run': name,
                   'labels': {'condition': name}})
    stages += of_seed.stages
  stages.append(study.Stage(final(config), functools.partial(
      policy_report.run, policies=made, stages=[s.name for s in stages],
      title=config['title'], figure=config['figure'])))
  return stages
