"""Which fields the config of a study has: all of its template's, and no other.

A misspelt field, or a shorter dict in the place of a longer one, would else
run with a default, or fail in the middle of a study.
"""

from collections.abc import Mapping

from rlhf_jax import errors
from rlhf_jax.configs import templates
from rlhf_jax.studies import trees

# Whose fields go by a name or a kind, so that whoever reads them checks them.
OPEN = (*trees.OPEN, 'runs', 'conditions', 'logs', 'figure', 'feedback',
        'world', 'model', 'methods')


def check(config: Mapping):
  """Raises ConfigError for a field too many, too few or of another type."""
  fields = templates.get(config['study'])
  if fields is not None:
    _check(fields, config, '')


def _check(fields: Mapping, config: Mapping, where: str):
  """The same of a node, and of those in it."""
  trees.check_mapping(where.rstrip('.'), config, 'its fields')
  for name in config:
    if name not in fields:
      raise errors.ConfigError(f'config.{where}{name} is no field; '
                               f'{errors.nearest(str(name), fields)}')
  missing = [name for name in fields if name not in config]
  if missing:
    raise errors.ConfigError(
        f'config.{where}{missing[0]} is missing; change fields one by one, as '
        f'in config.{where}{missing[0]} = {fields[missing[0]]!r}, and not all '
        'of them at once by a dict')
  for name, value in fields.items():
    if isinstance(value, Mapping) and name not in OPEN:
      _check(value, config[name], f'{where}{name}.')
    else:
      trees.check_type(where + name, config[name], value)
