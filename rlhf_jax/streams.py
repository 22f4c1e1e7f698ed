"""Randomness by name: every stream of a study is a hash of its seed and names.

Nothing adds to a seed or numbers a key, so that two streams cannot meet by
arithmetic, and a stage that draws once more moves no other. Who asks for the
same names gets the same stream, on purpose: the policies of a seed are
evaluated with the same noise, and two ensembles flip the same labels.
"""

import hashlib
import json

import jax
import numpy as np

# What a step of training draws from the key of its state. The order counts.
CHILDREN = ('next', 'sampler', 'dropout', 'noise', 'minibatches')


def number(seed: int, *names: str | int) -> int:
  """An integer in [0, 2**64): the seed of a generator or of an order.

  Args:
    seed: of the study.
    *names: what is drawn, from the whole to the part, such as 'proxies',
      'order', 3 (of a member).

  Raises:
    TypeError: a name is neither text nor an integer, or there is none.
  """
  for part in (seed, *names):
    if isinstance(part, bool) or not isinstance(part, str | int | np.integer):
      raise TypeError(f'a stream is named by text and integers, not {part!r}')
  if not names:
    raise TypeError('a stream needs a name beside its seed')
  text = json.dumps([int(x) if isinstance(x, np.integer) else x
                     for x in (seed, *names)])
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def key(seed: int, *names: str | int) -> jax.Array:
  """A typed JAX key; arguments and errors are those of `number`."""
  bits = number(seed, *names)
  return jax.random.wrap_key_data(
      np.array([bits >> 32, bits & 0xffffffff], np.uint32),  # type: ignore
      impl='threefry2x32')


def child(parent: jax.Array, name: str) -> jax.Array:
  """The key that one of `CHILDREN` draws with, in the step of a `parent`.

  Raises:
    ValueError: there is no such child.
  """
  return jax.random.fold_in(parent, CHILDREN.index(name))
