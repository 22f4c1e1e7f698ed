"""Configs as trees: changes that are merged, and values of the right type."""

from collections.abc import Mapping
import math
import numbers
from typing import Any

from rlhf_jax import errors

# Arguments that belong to a name or kind, so that a run replaces them whole.
OPEN = ('aggregate', 'arguments', 'components', 'judge', 'labels')
# Fields that may be None, whatever they are in the config; what they are like
# where they are not.
OPTIONAL = {
    'path': '', 'objective': '', 'model.name': '', 'model.attention': '',
    'model.trainable_layers': 1,
    'num_pairs': 1,
    'optimizer.clip_norm': 1.0, 'reward.clip': 1.0, 'reward.scale': '',
    'eos.penalty': 1.0, 'eos.value': 1.0, 'kl.coef': 1.0, 'kl.target': 1.0,
    'rollout.chunk_size': 1, 'updates.penalty_target': 1.0,
    'judge.against': '', 'judge.num_prompts': 1}
# The first of these that a value of the config is an instance of.
_TYPES = ((bool, 'True or False'), (numbers.Integral, 'an integer'),
          (numbers.Real, 'a number'), (str, 'text'),
          ((list, tuple), 'a list of values'), (Mapping, 'a dict'))


def merge(base: Mapping, changes: Any, where: str) -> dict:
  """`base` with nested changes.

  Args:
    base: the fields that there are. A change of one is of its type: an integer
      where it is one, any number for a number that is none; where it is None,
      whatever `OPTIONAL` says, or anything.
    changes: from the config.
    where: of the changes in the config.

  Raises:
    ConfigError: naming a field that `base` does not have, or that is of
      another type.
  """
  check_mapping(where, changes, 'changes of its fields')
  merged = dict(base)
  for name, value in changes.items():
    place = f'{where}.{name}'
    if name not in base:
      raise errors.ConfigError(f'config.{place} is no field; there are '
                               f'{", ".join(sorted(base))}')
    if isinstance(base[name], Mapping) and name not in OPEN:
      value = merge(base[name], value, place)
    else:
      check_type(place, value, base[name])
    merged[name] = value
  return merged


def check_mapping(where: str, value: Any, what: str):
  """ConfigError, which asks for `what`, unless a value has fields."""
  if not isinstance(value, Mapping):
    raise errors.ConfigError(f'config.{where} is {value!r}; give {what}')


def check_type(where: str, value: Any, base: Any):
  """ConfigError unless a value is of the type of what it takes the place of.

  Numbers are finite: what is none would spread.
  """
  if isinstance(value, numbers.Real) and not math.isfinite(value):
    raise errors.ConfigError(f'config.{where} is {value!r}; give a number')
  like = next((like for field, like in OPTIONAL.items()
               if f'.{where}'.endswith(f'.{field}')), None)
  optional = like is not None or base is None
  like = base if like is None else like
  if like is None or (optional and value is None):
    return
  kind, what = next(((kind, what) for kind, what in _TYPES
                     if isinstance(like, kind)), (object, ''))
  if not isinstance(value, kind) or (
      isinstance(value, bool) and not isinstance(like, bool)):
    raise errors.ConfigError(f'config.{where} is {value!r}; give {what}'
                             + (', or None' if optional else ''))
