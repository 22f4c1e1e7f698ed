"""Programs that run at once, on the cores of one CPU.

XLA spreads the large operations of a program over the cores of a CPU and runs
each of the small ones on one of them. Where rows do not depend on each other,
several programs of fewer rows keep all cores busy: sampling of 64 rows took
.77 of the time with 8 million parameters and .5 with 230 thousand, on two.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import contextlib
import contextvars
import functools
import os
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_FEWEST = 16  # cells that are cut
_CELLS = 64  # of a part, where there are more than two parts
_PARTS = 8

# Contexts of jax, each of an option `jax_<name>`, that belong to a thread.
_CONTEXTS = (
    'default_prng_impl', 'threefry_partitionable', 'enable_x64',
    'default_matmul_precision', 'default_device', 'debug_nans', 'debug_infs',
    'disable_jit', 'log_compiles', 'numpy_dtype_promotion',
    'numpy_rank_promotion')


def on_host(*values: Any) -> bool:
  """Whether a call with these values is on one CPU, and not within a program.

  Args:
    *values: pytrees of arrays.
  """
  mesh, leaves = jax.sharding.get_abstract_mesh(), jax.tree.leaves(values)
  if jax.default_backend() != 'cpu' or (not mesh.empty and mesh.size > 1):
    return False
  # Arrays may be split without a mesh in use, or over one of other axes.
  return not any(isinstance(x, jax.core.Tracer) or (
      isinstance(x, jax.Array) and len(x.sharding.device_set) > 1)
                 for x in leaves)


def parts(rows: int, columns: int, *, most_columns: int = _PARTS
          ) -> tuple[int, int]:
  """Into how many parts rows, or columns, are worth cutting.

  By the shape alone, so that another number of cores gives the same numbers:
  two parts from 16 cells on and more from 192 on, of equal size; one where
  no such number divides rows or columns.

  Args:
    rows: B.
    columns: K, of each row.
    most_columns: parts of columns at most, each of which does again what the
      columns of a row share.

  Returns:
    (parts, 1), (1, parts) or (1, 1).
  """
  cells = rows * columns
  most = min(max(cells // _CELLS, 2), _PARTS) if cells >= _FEWEST else 1
  for number in range(most, 1, -1):
    if rows % number == 0:
      return number, 1
    if number <= most_columns and columns % number == 0:
      return 1, number
  return 1, 1


def in_parts(function: Callable[..., Any], *arrays: Any,
             parts: tuple[int, int]) -> Any:
  """A function of rows and columns, of its parts at once.

  Args:
    function: (arrays [B, ...] ..., array [K]) -> pytree of arrays [B, K, ...],
      of each cell a function of that alone.
    *arrays: its arguments.
    parts: see `parts`; of (1, 1) nothing is cut.

  Returns:
    What it returns, of all rows and columns.
  """
  if parts == (1, 1):
    return function(*arrays)
  *rows, columns = map(np.asarray, arrays)
  pieces = zip(*(np.split(x, parts[0]) for x in rows))
  calls = [functools.partial(_on_host, function, *piece, column)
           for piece in pieces for column in np.split(columns, parts[1])]
  axis = int(parts[1] > 1)
  return jax.tree.map(
      lambda *x: jnp.asarray(np.concatenate(x, axis)), *at_once(calls))


def _on_host(function, *arguments):
  return jax.tree.map(np.asarray, function(*arguments))


def at_once(calls: Sequence[Callable[[], Any]]) -> list[Any]:
  """What calls return, as many at a time as there are cores.

  One after the other within a transformation, such as `jax.vmap`, to whose
  thread the mesh belongs, and once the main thread has ended, after which
  Python starts no pools.

  Args:
    calls: each waits for its own program, or is NumPy's; they run under the
      mesh in use, the context variables and those contexts of jax that change
      numbers or raise errors.
  """
  try:
    mesh = jax.sharding.get_mesh()
  except ValueError:
    return [call() for call in calls]
  if len(calls) < 2 or not threading.main_thread().is_alive():
    return [call() for call in calls]
  contexts = _contexts()

  def within(call):
    with contextlib.ExitStack() as stack:
      for name, value in _contexts().items():
        if value != contexts[name]:
          stack.enter_context(getattr(jax, name)(contexts[name]))
      if not mesh.empty:
        stack.enter_context(jax.set_mesh(mesh))
      return call()

  variables = [contextvars.copy_context() for _ in calls]
  with concurrent.futures.ThreadPoolExecutor(_cores()) as pool:
    return list(pool.map(lambda own, call: own.run(within, call),
                         variables, calls))


def _contexts() -> dict[str, Any]:
  """The values that hold in this thread."""
  return {name: getattr(jax.config, f'jax_{name}') for name in _CONTEXTS}


def _cores() -> int:
  """Those that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
