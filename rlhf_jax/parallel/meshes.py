"""A mesh over the devices there are; what is split over which of its axes.

  member  members of an ensemble; whatever has none is split by rows there
  data    rows (prompts); between slices or nodes, too
  fsdp    rows; parameters lie in parts, and are gathered where they are used
  tensor  heads, and features within a layer; parameters too

The mesh in use is that of `jax.set_mesh`; without one everything is on one
device. Under `jax.pmap` and `jax.shard_map` devices belong to the caller, and
there is none in use either.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import Mesh

from rlhf_jax import errors

AXES = ('member', 'data', 'fsdp', 'tensor')  # outermost first
ROWS = ('member', 'data', 'fsdp')


def make(shape: Mapping[str, int] | None = None,
         devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of a study, with all of AXES.

  Args:
    shape: size of each axis, 1 where it is not said; -1, of one axis, is what
      is left; by default all devices are on 'data'. 'dcn' is the number of
      slices or nodes, over which 'data' is cut, so that only gradients pass
      between them.
    devices: default `jax.devices()`.

  Raises:
    TopologyError: an axis is unknown or below 1, two are -1, or the sizes do
      not multiply to the number of devices; no device is left idle in silence.
  """
  devices = list(devices if devices is not None else jax.devices())
  shape = shape or {'data': -1}
  sizes, groups = _sizes(shape, len(devices)), shape.get('dcn', 1)
  data = AXES.index('data')
  if groups == 1:
    grid = mesh_utils.create_device_mesh(
        sizes, devices, allow_split_physical_axes=True)
  else:
    inner = [n // (groups if i == data else 1) for i, n in enumerate(sizes)]
    outer = [groups if i == data else 1 for i in range(len(sizes))]
    try:
      grid = mesh_utils.create_hybrid_device_mesh(
          inner, outer, devices, allow_split_physical_axes=True,
          process_is_granule=not hasattr(devices[0], 'slice_index'))
    except ValueError as error:
      raise errors.TopologyError(
          f'mesh dcn {groups} does not fit the devices: '
          f'{errors.first_line(error)}; change config.mesh') from None
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _check(shape):
  """TopologyError for an axis that is none, or has no size."""
  for name, size in shape.items():
    if name not in (*AXES, 'dcn'):
      raise errors.TopologyError(
          f'config.mesh has an axis {name!r}; there are '
          f'{", ".join((*AXES, "dcn"))}')
    if size < 1 and (size != -1 or name == 'dcn'):
      raise errors.TopologyError(
          f'mesh {name} is {size}; give a number of devices >= 1, or -1, of '
          'one axis, for what is left')
  free = [name for name, size in shape.items() if size == -1]
  if len(free) > 1:
    raise errors.TopologyError(
        f'mesh {" and ".join(free)} are -1, which one axis alone may be; '
        'change config.mesh')


def _sizes(shape: Mapping[str, int], count: int) -> list[int]:
  """The size of each of AXES over `count` devices."""
  shape = dict(shape)
  _check(shape)
  groups = shape.pop('dcn', 1)
  size = math.prod(n for n in shape.values() if n != -1)
  product = ' x '.join(f'{name} {n}' for name, n in shape.items())
  if -1 in shape.values() and count % size == 0:
    shape = {name: count // size if n == -1 else n
             for name, n in shape.items()}
    size = count
  if size != count:
    raise errors.TopologyError(
        f'mesh {product} = {size} but there are {count} devices; '
        'change config.mesh or the number of visible devices')
  sizes = [shape.get(name, 1) for name in AXES]
  data = sizes[AXES.index('data')]
  if data % groups:
    raise errors.TopologyError(
        f'mesh data {data} is not divisible by dcn {groups}, the '
        'number of slices or nodes; change config.mesh')
  return sizes


def planned(shape: Mapping[str, int], count: int | None = None
            ) -> AbstractMesh:
  """The mesh of a config without devices.

  Args:
    shape: of `make`.
    count: of devices; None: not known, and an axis of -1 counts as 1.

  Raises:
    TopologyError: an axis is unknown, or the sizes do not multiply to `count`.
  """
  if count is not None:
    return AbstractMesh(tuple(_sizes(shape, count)), AXES)
  _check(shape)
  return AbstractMesh(tuple(max(shape.get(name, 1), 1) for name in AXES), AXES)


def in_use() -> AbstractMesh | None:
  """The mesh of `jax.set_mesh`; None without one, under pmap and shard_map."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != AXES or (
      AxisType.Manual in mesh.axis_types):
    return None
  return mesh


def on_one_cpu() -> bool:
  """Whether a program runs on one CPU alone, where other forms are faster.

  Matrices [N, D], or else activations are transposed for each gradient of a
  weight; heads before tokens, and layers without a loop, which would copy all
  that it keeps; members one after the other, since its products of many small
  matrices are slower than as many products. Over several devices these forms
  would move activations. A plan, which has no mesh in use, must not start a
  backend.
  """
  mesh = in_use()
  return (mesh is not None and mesh.size == 1
          and jax.default_backend() == 'cpu')


def devices_in_use() -> Mesh | None:
  """The same with its devices; not inside a program."""
  return in_use() and jax.sharding.get_mesh()


def check_heads(config: Any, mesh: Mesh | AbstractMesh):
  """TopologyError where 'tensor' does not divide the heads of a decoder."""
  size = mesh.shape['tensor']
  for name in ('num_heads', 'num_kv_heads'):
    if getattr(config, name) % size:
      raise errors.TopologyError(
          f'{name} {getattr(config, name)} is not divisible by tensor {size};'
          ' change config.mesh')


def parts(axes: str | tuple[str, ...] | None, mesh: Mesh) -> int:
  """Into how many parts these axes of a mesh cut."""
  axes = axes if isinstance(axes, tuple) else (axes,) if axes else ()
  return math.prod(mesh.shape[name] for name in axes)


def row_parts(mesh: Mesh | None = None, *, members: int = 1) -> int:
  """Into how many parts the rows of a batch are cut; 1 without a mesh.

  Args:
    mesh: default the mesh in use.
    members: E, of an ensemble that reads them.
  """
  mesh = mesh or in_use()
  return 1 if mesh is None else parts(rows_beside(members, mesh), mesh)


def splits(members: int, mesh: Mesh) -> bool:
  """Whether the axis 'member' cuts E members; TopologyError if it cannot."""
  size = mesh.shape['member']
  if members > 1 and members % size:
    raise errors.TopologyError(
        f'{members} members are not divisible by member {size}; change '
        'config.mesh or num_members')
  return members > 1 and size > 1


def rows_beside(members: int, mesh: Mesh) -> tuple[str, ...]:
  """The axes that split the rows of each of E members; 0 or 1: of all rows."""
  return ROWS[1:] if splits(members, mesh) else ROWS
