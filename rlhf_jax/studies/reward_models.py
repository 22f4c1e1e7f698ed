"""How reward models learn: held-out loss and accuracy by epoch.

  sft, trunk, gold --> pairs --> reward models of each condition --> report

or, of the pairs in the data (config.pairs='preferences'),

  trunk, preferences --> reward models of each condition --> report

Coste et al. 2024, figure 15. The conditions of a config differ in the reward
models, as in the study `online`; no policy is trained.
"""

from rlhf_jax.reports import spec
from rlhf_jax.studies import labels
from rlhf_jax.studies import nodes
from rlhf_jax.studies import plan
from rlhf_jax.studies import run_checks


def describe(config: dict) -> plan.Study:
  """A line of the report for each condition."""
  conditions = {name: dict(node, validate=True)
                for name, node in nodes.conditions(config).items()}

  def check(data):
    nodes.requirement(config)(
        config['conditions'], 'conditions', 'give at least one')
    run_checks.check_conditions(config, conditions, data)
    spec.check(config['figure'], [{'condition': name} for name in conditions])

  def of_seed(seed):
    pairs = {'preferences': seed.add_preferences, 'judge': seed.add_feedback,
             'samples': lambda: seed.add_pairs(force_eos=config['force_eos'])
             }[config['pairs']]()
    return [{'stage': stage, 'run': name, 'labels': {'condition': name}}
            for name, stage in seed.add_conditions(conditions, pairs).items()]

  return plan.Study(
      check=check, of_seed=of_seed,
      reads_gold=labels.learns_from(config, conditions, 'samples'),
      proxies=labels.trained(conditions),
      arguments=lambda shown: {'policies': shown, 'figure': config['figure']})
