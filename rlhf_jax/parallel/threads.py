"""Programs that run at once, on the cores of one CPU.

XLA spreads the large operations of a program over the cores of a CPU and runs
each of the small ones on one of them. Where rows do not depend on each other,
several programs of fewer rows keep all cores busy: sampling of 64 rows took
.77 of the time with 8 million parameters and .5 with 230 thousand, on two.
"""

from collections.abc import Callable, Sequence
import concurrent.futures
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.parallel import meshes

_FEWEST = 16  # cells that are cut
_CELLS = 64  # of a part, where there are more than two parts
_PARTS = 8


def on_host(*values: Any) -> bool:
  """Whether a call with these values is on one CPU, and not within a program.

  Args:
    *values: pytrees of arrays.
  """
  mesh = meshes.in_use()
  return (jax.default_backend() == 'cpu' and (mesh is None or mesh.size == 1)
          and not any(isinstance(x, jax.core.Tracer)
                      for x in jax.tree.leaves(values)))


def parts(rows: int, columns: int) -> tuple[int, int]:
  """Into how many parts rows, or columns, are worth cutting.

  By the shape alone, so that another number of cores gives the same numbers:
  two parts from 16 cells on and more from 256 on, of equal size.

  Args:
    rows: B.
    columns: K, of each row.

  Returns:
    (parts, 1), (1, parts) or (1, 1).
  """
  cells = rows * columns
  most = min(max(cells // _CELLS, 2), _PARTS) if cells >= _FEWEST else 1
  for number in range(most, 1, -1):
    if rows % number == 0:
      return number, 1
    if columns % number == 0:
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

  Args:
    calls: each waits for its own program, or is NumPy's; they run under the
      mesh in use, and under no other context of jax.
  """
  mesh = meshes.devices_in_use()

  def run(call):
    if mesh is None:
      return call()
    with jax.set_mesh(mesh):
      return call()

  with concurrent.futures.ThreadPoolExecutor(_cores()) as pool:
    return list(pool.map(run, calls))


def _cores() -> int:
  """Those that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
