"""How reward models learn: held-out loss and accuracy by epoch.

  sft, trunk, gold --> pairs --> reward models of each condition --> report

Coste et al. 2024, figure 15. The conditions of a config differ in the reward
models, as in the study `online`; no policy is trained.
"""

import functools

from rlhf_jax.data import load as load_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import policy_report
from rlhf_jax.studies import checks
from rlhf_jax.studies import online

final = checks.report_name


def inputs(config: dict) -> dict:
  """As those of the study `online`, which has runs beside conditions."""
  return online.inputs({**config, 'online': {}, 'runs': {}})


def plan(config: dict) -> list[run_lib.Stage]:
  """The stages of all seeds and the report.

  Raises:
    ConfigError: a field is out of range; nothing has been touched.
    DataError: a file it names is missing or malformed.
  """
  config = checks.absolute(config)
  checks.check(config)
  checks.requirement(config)(
      config['conditions'], 'conditions', 'give at least one')
  conditions = online.make_conditions(config)
  online.check_conditions(config, conditions)
  policy_report.check(config['figure'], [{'condition': name}
                                         for name in conditions])
  data = checks.data_config(config)
  load_lib.check(data)
  for proxy in conditions.values():
    checks.check_tokens({**config, 'proxy': proxy}, data)
  checks.check_gold(config, data)
  stages, made = [], []
  for seed in config['seeds']:
    of_seed = checks.Seed(config, data, seed)
    pairs = of_seed.add_pairs('pairs', force_eos=config['force_eos'])
    for name, proxy in online.add_conditions(
        config, of_seed, conditions, pairs, validate=True).items():
      made.append({'stage': proxy, 'seed': seed, 'run': name,
                   'labels': {'condition': name}})
    stages += of_seed.stages
  stages.append(run_lib.Stage(final(config), functools.partial(
      policy_report.run, policies=made, stages=[s.name for s in stages],
      title=config['title'], figure=config['figure'])))
  return stages
