"""How each module in objectives/ is to be called, and a batch for it.

`CONTRACT` in tests/objectives/<name>_test.py says it:

  settings           hyper-parameters it needs, or that select another branch
  responses          K, by default 2
  token_advantages   whether advantages are [B, K, T], by default false
"""

import importlib.util
import pathlib
import pkgutil

from rlhf_jax import objectives
from rlhf_jax import testing

B, T = testing.B, testing.T


def _contract(name):
  path = pathlib.Path(__file__).with_name('objectives') / f'{name}_test.py'
  try:
    spec = importlib.util.spec_from_file_location(f'{name}_test', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONTRACT
  except (OSError, AttributeError) as error:
    raise ImportError(
        f'write tests/objectives/{name}_test.py with CONTRACT, as the '
        f'docstring of contracts.py says ({error})') from error


CONTRACTS = {module.name: _contract(module.name)
             for module in pkgutil.iter_modules(objectives.__path__)}
CASES = [
    (f'{name}_{i}', name, kwargs)
    for name, contract in CONTRACTS.items()
    for i, kwargs in enumerate(contract.get('settings', [{}]))
]


def example(name, seed=0):
  """(PolicyOutput, Batch) of `testing.example`, as an objective takes it."""
  contract = CONTRACTS[name]
  return testing.example(
      responses=contract.get('responses', 2), seed=seed,
      token_advantages=contract.get('token_advantages', False))
