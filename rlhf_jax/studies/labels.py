"""Who labels the pairs that the reward models of a study learn from."""

from collections.abc import Mapping

# What reward models learn from: samples that the gold model or a judge
# labels, or the pairs of the data.
PAIRS = ('samples', 'judge', 'preferences')


def trained(conditions: Mapping[str, Mapping]) -> dict[str, Mapping]:
  """Those whose reward models a study trains, by their place in a config."""
  return {f'conditions.{name}': node for name, node in conditions.items()
          if node['path'] is None}


def learns_from_preferences(config: dict, conditions: Mapping[str, Mapping]
                            ) -> bool:
  """Whether reward models are trained, on the pairs of the data."""
  return config['pairs'] == 'preferences' and bool(trained(conditions))


def learns_from_judge(config: dict, conditions: Mapping[str, Mapping]) -> bool:
  """Whether they are, on pairs of samples that a judge labels."""
  return config['pairs'] == 'judge' and bool(trained(conditions))


def learns_from_gold(config: dict, conditions: Mapping[str, Mapping]) -> bool:
  """Whether they are, on pairs of samples that a gold model labels."""
  return config['pairs'] == 'samples' and bool(trained(conditions))
