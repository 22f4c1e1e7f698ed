"""One module per objective, each exposing `objective(out, batch, **kwargs)`.

Importing by name means that a new objective touches no table; a user's own is
named as 'package.module:function'.
"""

from collections.abc import Callable
import functools
import importlib
import pkgutil

from rlhf_jax import types


def get(name: str, **kwargs) -> Callable[..., types.LossOutput]:
  """Returns objective `name` with its hyper-parameters bound.

  Raises:
    ValueError: if there is no such objective.
  """
  if ':' in name:
    return functools.partial(_of_user(name), **kwargs)
  available = sorted(module.name for module in pkgutil.iter_modules(__path__))
  if name not in available:
    raise ValueError(f'unknown objective {name!r}; available: '
                     f'{", ".join(available)}.')
  module = importlib.import_module(f'{__name__}.{name}')
  return functools.partial(module.objective, **kwargs)


def _of_user(name: str) -> Callable[..., types.LossOutput]:
  """The function 'package.module:function'."""
  module, _, function = name.partition(':')
  try:
    return getattr(importlib.import_module(module), function)
  except (ImportError, AttributeError, ValueError) as error:
    raise ValueError(
        f'objective {name!r} cannot be imported ({error}); give it as '
        'package.module:function, with the module on PYTHONPATH or in the '
        'directory of the command') from error
