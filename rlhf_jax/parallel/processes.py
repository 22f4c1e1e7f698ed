"""Several processes that run one program: who writes, and what all agree on.

Every process runs the same stages in the same order, on arrays that lie over
the devices of all of them. Process 0 owns the workdir and the world outside:
it alone writes files, prints, and asks reward functions and judges. Whatever a
host decides, such as to stop or to skip a stage, is agreed before it is acted
upon, since a process that goes another way leaves the others waiting.

All functions may be called by a single process, for which they do nothing.
"""

from collections.abc import Callable
import contextvars
import sys
from typing import Any

import numpy as np

from rlhf_jax import errors

# Within what only the owner does there is nobody to agree with.
_alone = contextvars.ContextVar('alone', default=False)


def count() -> int:
  """How many processes run this program."""
  return _place()[0]


def index() -> int:
  """The number of this one; 0 is the owner."""
  return _place()[1]


def _place() -> tuple[int, int]:
  # Files are read and written by programs that never import jax, which takes
  # a second; without it nothing has connected them.
  jax = sys.modules.get('jax')
  if jax is None or not jax.distributed.is_initialized():
    return 1, 0
  return jax.process_count(), jax.process_index()


def _gather(x: np.ndarray) -> np.ndarray:
  from jax.experimental import multihost_utils
  return multihost_utils.process_allgather(x)


def _several() -> bool:
  return count() > 1 and not _alone.get()


def any_of(flag: bool) -> bool:
  """Whether a flag is set in any process; all of them ask."""
  if not _several():
    return flag
  return bool(np.any(_gather(np.bool_(flag))))


def from_all(value: Any) -> list:
  """The value of every process, by number.

  Args:
    value: JSON values and NumPy arrays in dicts and lists.
  """
  if not _several():
    return [value]
  from flax import serialization
  data = np.frombuffer(
      serialization.msgpack_serialize({'value': value}), np.uint8)
  sizes = _gather(np.int32(len(data)))
  # A power of two, so that few programs are compiled.
  padded = np.zeros(max(1024, 1 << int(max(sizes) - 1).bit_length()), np.uint8)
  padded[:len(data)] = data
  rows = _gather(padded)
  return [serialization.msgpack_restore(row[:size].tobytes())['value']
          for row, size in zip(rows, sizes)]


def from_owner(function: Callable[[], Any]) -> Any:
  """What a function returns in process 0, or raises; the others do not call it.

  No process goes on before it has returned: what the owner has written until
  then is there.

  Args:
    function: () -> JSON values and NumPy arrays in dicts and lists. It runs no
      program over all devices.

  Raises:
    UserError: the function's, in every process.
    RuntimeError: the function has failed otherwise, in another process.
  """
  if not _several():
    return function()
  outcome, failure = None, None
  if index() == 0:
    token = _alone.set(True)
    try:
      outcome = {'value': function()}
    except BaseException as error:
      outcome = {'error': type(error).__name__, 'message': str(error)}
      failure = error
    finally:
      _alone.reset(token)
  outcome = from_all(outcome)[0]
  if failure is not None:
    raise failure
  if 'error' in outcome:
    kind = getattr(errors, outcome['error'], RuntimeError)
    raise kind(outcome['message'])
  return outcome['value']


def whole(tree: Any) -> Any:
  """Arrays of a tree on the host, whatever device of whatever process has them.

  Args:
    tree: of arrays; all processes ask for the same.
  """
  import jax
  from jax.experimental import multihost_utils

  def fetch(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable and (
        not x.is_fully_replicated):
      return multihost_utils.process_allgather(x, tiled=True)
    return jax.device_get(x)
  return jax.tree.map(fetch, tree)
