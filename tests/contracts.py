"""How each module in objectives/ is to be called, and a batch for it.

`CONTRACT` in tests/objectives/<name>_test.py says it:

  settings           hyper-parameters it needs, or that select another branch
  responses          K, by default 2
  token_advantages   whether advantages are [B, K, T], by default false
"""

import importlib.util
import pathlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import objectives
from rlhf_jax import types

B, T = 8, 7


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
  """(PolicyOutput, Batch) of B prompts, padded to T tokens.

  Responses are ragged; those of the second prompt and one of the third empty.
  """
  K = CONTRACTS[name].get('responses', 2)
  rng = np.random.default_rng(seed)
  f = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  logp = lambda: -jnp.exp(f(B, K, T))
  lengths = rng.integers(1, T, size=(B, K, 1))
  # The last response is missing, so that those before it still rank.
  lengths[1], lengths[2, -1] = 0, 0
  start = rng.integers(1, 3, size=(B, K, 1))  # t = 0 is never a target
  position = np.arange(T)
  mask = jnp.asarray((position >= start) & (position < start + lengths))
  token = CONTRACTS[name].get('token_advantages', False)
  heads = lambda make: (make(), make())
  out = types.PolicyOutput(
      logprobs=logp(), entropy=-logp(), values=f(B, K, T),
      step_rewards=f(B, K, T), scores=f(B, K),
      q_values=heads(lambda: f(B, K, T)), q_logprobs=heads(logp),
      target_q_values=heads(lambda: f(B, K, T)))
  batch = types.Batch(
      tokens=jnp.asarray(rng.integers(0, 9, size=(B, K, T))), mask=mask,
      scores=f(B, K), old_logprobs=out.logprobs + .3 * f(B, K, T),
      ref_logprobs=logp(), old_values=f(B, K, T), prompt_values=f(B),
      rewards=f(B, K, T), advantages=f(B, K, T) if token else f(B, K),
      returns=f(B, K, T), targets=jax.nn.sigmoid(f(B, K)),
      reference_points=jnp.abs(f(B, K)))
  return out, batch
