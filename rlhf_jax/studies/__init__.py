"""Studies: a config becomes an ordered list of named stages.

A module here has `describe(config) -> plan.Study`, what is its own; the way
from there to stages is the same for all of them, `plan.plan(config)`.
"""

import importlib

from rlhf_jax import errors


def get(name: str):
  """Returns the module of study `name`.

  Raises:
    ConfigError: there is no such study.
  """
  try:
    module = importlib.import_module(f'rlhf_jax.studies.{name}')
  except ModuleNotFoundError as error:
    if error.name != f'rlhf_jax.studies.{name}':
      raise
    module = None
  if not hasattr(module, 'describe'):
    raise errors.ConfigError(
        f'config.study is {name!r}, which is no study of rlhf_jax.studies')
  return module
