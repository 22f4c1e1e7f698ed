"""Who labels the pairs that the reward models of a study learn from."""

from collections.abc import Mapping

# What reward models learn from: samples that the gold model or a judge
# labels, or the pairs of the data.
PAIRS = ('samples', 'judge', 'preferences')


def trained(conditions: Mapping[str, Mapping]) -> dict[str, Mapping]:
  """Those whose reward models a study trains, by their place in a config."""
  return {f'conditions.{name}': node for name, node in conditions.items()
          if node['path'] is None}


def learns_from(config: dict, conditions: Mapping[str, Mapping],
                *sources: str) -> bool:
  """Whether reward models are trained, and on one of these `PAIRS`."""
  return config['pairs'] in sources and bool(trained(conditions))
