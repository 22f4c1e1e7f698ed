"""One module per objective, each exposing `objective(out, batch, **kwargs)`.

Importing by name means that a new objective touches no table.
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
  available = sorted(module.name for module in pkgutil.iter_modules(__path__))
  if name not in available:
    raise ValueError(f'unknown objective {name!r}; available: '
                     f'{", ".join(available)}.')
  module = importlib.import_module(f'{__name__}.{name}')
  return functools.partial(module.objective, **kwargs)
