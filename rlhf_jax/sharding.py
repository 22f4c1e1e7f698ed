"""A mesh over the devices there are, and where each array lives on it.

Batches are split over the axis 'data'; parameters are placed by an ordered
list of (regex, PartitionSpec), the first match wins, and a leaf that no rule
names is an error: a tensor that is silently replicated is a tensor that
silently fills a device.
"""

from collections.abc import Callable, Iterator, Sequence
import math
import re
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from rlhf_jax import errors

Rules = Sequence[tuple[str, PartitionSpec]]
REPLICATED: Rules = ((r'.*', PartitionSpec()),)


def make_mesh(shape: dict[str, int] | None = None,
              devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh; by default all devices on one axis, 'data'.

  Args:
    shape: size of each named axis, for example {'data': 4, 'model': 2}; -1,
      of one axis, is what is left.
    devices: default `jax.devices()`.

  Raises:
    TopologyError: if the sizes do not multiply to the number of devices; no
      device is left idle in silence.
  """
  devices = list(devices if devices is not None else jax.devices())
  shape = dict(shape or {'data': -1})
  free = [name for name, n in shape.items() if n == -1]
  size = math.prod(n for n in shape.values() if n != -1)
  if len(free) == 1 and size > 0 and len(devices) % size == 0:
    shape[free[0]] = len(devices) // size
    size = len(devices)
  if size != len(devices):
    product = ' x '.join(f'{name} {n}' for name, n in shape.items())
    raise errors.TopologyError(
        f'mesh {product} = {size} but there are {len(devices)} devices; '
        'change config.mesh or the number of visible devices')
  return jax.make_mesh(tuple(shape.values()), tuple(shape), devices=devices,
                       axis_types=(AxisType.Auto,) * len(shape))


def shard_params(params: Any, mesh: Mesh, rules: Rules = REPLICATED) -> Any:
  """Places every leaf by the first rule whose regex its path contains.

  Raises:
    TopologyError: naming the leaf that no rule matches or whose dimension its
      mesh axis does not divide.
  """
  def place(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    spec = next((s for pattern, s in rules if re.search(pattern, name)), None)
    if spec is None:
      raise errors.TopologyError(
          f'no sharding rule matches parameter {name} {leaf.shape}')
    for size, axis in zip(leaf.shape, spec):
      names = axis if isinstance(axis, tuple) else (axis,) if axis else ()
      parts = math.prod(mesh.shape[n] for n in names)
      if size % parts:
        raise errors.TopologyError(
            f'parameter {name} {leaf.shape} cannot be split by {spec}: '
            f'{size} is not divisible by {parts}')
    return jax.device_put(leaf, NamedSharding(mesh, spec))

  return jax.tree_util.tree_map_with_path(place, params)


def shard_batch(batch: Any, mesh: Mesh, *, axis: int = 0) -> Any:
  """Splits axis `axis` of every leaf over the mesh axis 'data'.

  Args:
    batch: a pytree of arrays that share the size of `axis` (prompts).
    mesh: with an axis named 'data'.
    axis: which axis counts prompts; 1 for a batch with leading members.

  Raises:
    TopologyError: if the batch is not divisible by the number of shards.
  """
  parts = mesh.shape['data']
  spec = PartitionSpec(*[None] * axis, 'data')
  for leaf in jax.tree.leaves(batch):
    if leaf.shape[axis] % parts:
      raise errors.TopologyError(
          f'a batch of {leaf.shape[axis]} prompts is not divisible by data '
          f'{parts}; choose a batch size that is')
  return jax.device_put(batch, NamedSharding(mesh, spec))


def chunks(count: int, size: int, mesh: Mesh | None = None
           ) -> Iterator[tuple[np.ndarray, int]]:
  """Cuts `count` rows into chunks of one size, which all run one program.

  Args:
    count: rows.
    size: of a chunk at most; rounded up to what the mesh divides.
    mesh: over whose axis 'data' a chunk will be split; None: over none.

  Yields:
    (rows i64[S], how many of them count): the last chunk is filled up with
    rows that it has already.

  Raises:
    ValueError: `size` is below 1.
  """
  if size < 1:
    raise ValueError(f'chunk_size must be >= 1, got {size}.')
  parts = 1 if mesh is None else mesh.shape['data']
  size = -(-min(size, count) // parts) * parts
  for start in range(0, count, size):
    rows = np.arange(start, min(start + size, count))
    yield np.resize(rows, size), len(rows)


def map_rows(function: Callable, *arrays: np.ndarray, mesh: Mesh | None,
             chunk_size: int, poll: Callable[[], None] = lambda: None) -> Any:
  """`function` of many rows, chunk by chunk over the mesh, to the host.

  Args:
    function: (chunk of each array) -> pytree of arrays, rows on their first
      axis; each row's result is a function of that row alone.
    *arrays: [N, ...] each, on the host; N >= 1.
    mesh: of `make_mesh`; None: where the arrays of `function` are.
    chunk_size: rows at a time at most, see `chunks`.
    poll: called before every chunk; may raise, to stop.

  Returns:
    The results of all N rows, as NumPy arrays.
  """
  parts = []
  for rows, count in chunks(len(arrays[0]), chunk_size, mesh):
    poll()
    chunk = [x[rows] for x in arrays]
    if mesh is not None:
      chunk = shard_batch(chunk, mesh)
    parts.append(jax.tree.map(
        lambda x, count=count: x[:count], jax.device_get(function(*chunk))))
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)
