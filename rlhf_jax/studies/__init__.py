"""Studies: a config becomes an ordered list of named stages.

A module here has

  plan(config) -> list[study.Stage]  checks the config, touches no device
  inputs(config) -> dict             what is read from outside, by content
  final(config) -> str               the stage whose result names the figure
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
  if not hasattr(module, 'plan'):
    raise errors.ConfigError(
        f'config.study is {name!r}, which is no study of rlhf_jax.studies')
  return module
