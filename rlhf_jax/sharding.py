"""A mesh over the devices there are, and where each array lives on it.

  member  members of an ensemble; whatever has none is split by rows there
  data    rows (prompts); between slices or nodes, too
  fsdp    rows; parameters lie in parts, and are gathered where they are used
  tensor  heads, and features within a layer; parameters too

Rows are split over all axes but 'tensor', parameters by `RULES`. The mesh in
use is that of `jax.set_mesh`; without one everything is on one device, and
the functions that place or constrain leave things as they are. Under
`jax.pmap` and `jax.shard_map` devices belong to the caller, and they do so too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import contextvars
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh
from jax.sharding import AxisType
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from rlhf_jax import errors
from rlhf_jax import processes

AXES = ('member', 'data', 'fsdp', 'tensor')  # outermost first
ROWS = ('member', 'data', 'fsdp')

# (regex, mesh axes of the LAST dimensions of a leaf). Those before, stacked
# layers or members, are in no rule, so that one serves layers/q/kernel
# [L, in, out], the same in an ensemble [E, L, in, out], in 'top_layers', in a
# value trunk and in the moments of an optimizer. The first match wins; a leaf
# that none matches is an error: a tensor that is silently replicated is a
# tensor that silently fills a device. The vocabulary is never split, since
# then looking up tokens would move activations.
Rules = Sequence[tuple[str, tuple[str | None, ...]]]
RULES: Rules = (
    (r'(^|/)(un)?embed$|(^|/)positions$', (None, 'fsdp')),  # [V, D], [P, D]
    (r'q_heads/\d+(/weight)?$|(^|/)targets/\d+(/weight)?$', (None, 'fsdp')),
    (r'adapter/.*/(q|k|v|gate|up)/a$', ('fsdp', None)),
    (r'adapter/.*/(q|k|v|gate|up)/b$', (None, 'tensor')),
    (r'adapter/.*/(o|down)/a$', ('tensor', None)),
    (r'adapter/.*/(o|down)/b$', (None, 'fsdp')),
    (r'(^|/)(q|k|v|gate|up|features)/kernel$', ('fsdp', 'tensor')),
    (r'(^|/)(o|down)/kernel$', ('tensor', 'fsdp')),
    (r'/kernel/(codes|absmax)$', ('fsdp',)),  # NF4, flattened
    (r'/kernel/(scale|offset)$', ()),
    (r'(^|/)(q|k|v|gate|up|features)/bias$', ('tensor',)),
    (r'(^|/)(o|down)/bias$|norm/(scale|bias)$|(^|/)unembed_bias$', ()),
    (r'(^|/)(\w*head|scalar)/weight$', ('tensor',)),  # of features, to one
    (r'(^|/)(\w*head|scalar|\d+)/bias$', ()),
    (r'(^|/)(query|attention/\w+/(kernel|bias))$', ()),  # of prompt values
    (r'(^|/)(count|step|key|statistics|reward_scale)(/|$)', ()),
)
# While the members of an ensemble are traced, those of ROWS that are left.
_row_axes = contextvars.ContextVar('rows', default=ROWS)


def make_mesh(shape: Mapping[str, int] | None = None,
              devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of a study, with all of AXES.

  Args:
    shape: size of each axis, 1 where it is not said; -1, of one axis, is what
      is left; by default all devices are on 'data'. 'dcn' is the number of
      slices or nodes, over which 'data' is cut, so that only gradients pass
      between them.
    devices: default `jax.devices()`.

  Raises:
    TopologyError: an axis is unknown, or the sizes do not multiply to the
      number of devices; no device is left idle in silence.
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


def _check_names(shape):
  for name in shape:
    if name not in (*AXES, 'dcn'):
      raise errors.TopologyError(
          f'config.mesh has an axis {name!r}; there are '
          f'{", ".join((*AXES, "dcn"))}')


def _sizes(shape: Mapping[str, int], count: int) -> list[int]:
  """The size of each of AXES over `count` devices."""
  shape = dict(shape)
  _check_names(shape)
  groups = shape.pop('dcn', 1)
  free = [name for name, n in shape.items() if n == -1]
  size = math.prod(n for n in shape.values() if n != -1)
  product = ' x '.join(f'{name} {n}' for name, n in shape.items())
  if len(free) == 1 and size > 0 and count % size == 0:
    shape[free[0]] = count // size
    size = count
  if size != count:
    raise errors.TopologyError(
        f'mesh {product} = {size} but there are {count} devices; '
        'change config.mesh or the number of visible devices')
  sizes = [shape.get(name, 1) for name in AXES]
  data = sizes[AXES.index('data')]
  if groups < 1 or data % groups:
    raise errors.TopologyError(
        f'mesh data {data} is not divisible by dcn {groups}, the '
        'number of slices or nodes; change config.mesh')
  return sizes


def planned_mesh(shape: Mapping[str, int], count: int | None = None
                 ) -> AbstractMesh:
  """The mesh of a config without devices.

  Args:
    shape: of `make_mesh`.
    count: of devices; None: not known, and an axis of -1 counts as 1.

  Raises:
    TopologyError: an axis is unknown, or the sizes do not multiply to `count`.
  """
  if count is not None:
    return AbstractMesh(tuple(_sizes(shape, count)), AXES)
  _check_names(shape)
  return AbstractMesh(tuple(max(shape.get(name, 1), 1) for name in AXES), AXES)


def mesh_in_use() -> AbstractMesh | None:
  """The mesh of `jax.set_mesh`; None without one, under pmap and shard_map."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != AXES or (
      AxisType.Manual in mesh.axis_types):
    return None
  return mesh


def _devices_in_use() -> Mesh | None:
  """The same with its devices; not inside a program."""
  return mesh_in_use() and jax.sharding.get_mesh()


def check_heads(config: Any, mesh: Mesh | AbstractMesh):
  """TopologyError where 'tensor' does not divide the heads of a decoder."""
  parts = mesh.shape['tensor']
  for name in ('num_heads', 'num_kv_heads'):
    if getattr(config, name) % parts:
      raise errors.TopologyError(
          f'{name} {getattr(config, name)} is not divisible by tensor {parts};'
          ' change config.mesh')


def _parts(axes, mesh) -> int:
  """Into how many parts these axes of the mesh cut."""
  axes = axes if isinstance(axes, tuple) else (axes,) if axes else ()
  return math.prod(mesh.shape[name] for name in axes)


def row_parts(mesh: Mesh | None = None, *, members: int = 1) -> int:
  """Into how many parts the rows of a batch are cut; 1 without a mesh.

  Args:
    mesh: default the mesh in use.
    members: E, of an ensemble that reads them.
  """
  mesh = mesh or mesh_in_use()
  return 1 if mesh is None else _parts(_rows_beside(members, mesh), mesh)


def _splits(members: int, mesh: Mesh) -> bool:
  """Whether the axis 'member' cuts E members; TopologyError if it cannot."""
  parts = mesh.shape['member']
  if members > 1 and members % parts:
    raise errors.TopologyError(
        f'{members} members are not divisible by member {parts}; change '
        'config.mesh or num_members')
  return members > 1 and parts > 1


def _rows_beside(members: int, mesh: Mesh) -> tuple[str, ...]:
  return ROWS[1:] if _splits(members, mesh) else ROWS


# Parameters.


def path_of(path) -> str:
  """The name of a leaf, such as 'params/layers/q/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def shardings(tree: Any, mesh: Mesh, *, members: int = 0,
              rules: Rules = RULES) -> Any:
  """Where each leaf of a tree lies, by the first rule that matches its name.

  Args:
    tree: of arrays or shapes.
    mesh: of `make_mesh`.
    members: E where every leaf is of an ensemble, [E, ...]; 0: of one model.
    rules: see `RULES`.

  Returns:
    A NamedSharding for each leaf.

  Raises:
    TopologyError: naming the leaf that no rule matches, or whose dimension an
      axis of the mesh does not divide.
  """
  lead = ('member',) if members and _splits(members, mesh) else ()

  def place(path, leaf):
    name, shape = path_of(path), tuple(leaf.shape)
    axes = next((a for pattern, a in rules if re.search(pattern, name)), None)
    if axes is None or len(axes) + bool(members) > len(shape):
      raise errors.TopologyError(
          f'no sharding rule matches parameter {name} {shape}; add one to '
          'sharding.RULES')
    spec = [*lead, *[None] * (len(shape) - len(axes) - len(lead)), *axes]
    for size, axis in zip(shape, spec, strict=True):
      if size % _parts(axis, mesh):
        raise errors.TopologyError(
            f'parameter {name} {shape} cannot be split: {size} is not '
            f'divisible by {axis} {mesh.shape[axis]}; change config.mesh')
    while spec and (spec[-1] is None or mesh.shape[spec[-1]] == 1):
      spec.pop()
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(place, tree)


def device_bytes(tree: Any) -> int:
  """Bytes that one device holds of arrays, or of shapes of `abstract`."""
  def size(x):
    shape = tuple(x.shape)
    if getattr(x, 'sharding', None) is not None:
      shape = x.sharding.shard_shape(shape)
    wide = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return math.prod(shape) * (8 if wide else x.dtype.itemsize)
  return sum(map(size, jax.tree.leaves(tree)))


def shard_params(params: Any, *, members: int = 0) -> Any:
  """Places parameters on the mesh in use, see `shardings`.

  Those that lie there already are not copied.
  """
  mesh = _devices_in_use()
  if mesh is None:
    return jax.device_put(params)
  return _put(params, shardings(params, mesh, members=members))


def _put(tree: Any, where: Any) -> Any:
  """Arrays of the host, or of the devices, onto the devices of all processes.

  Each process has the same arrays and hands over its part of them.
  """
  def put(x, where):
    if where.is_fully_addressable or isinstance(x, jax.Array):
      return jax.device_put(x, where)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda at: x[at])
  return jax.tree.map(put, tree, where)


def abstract(tree: Any, *, members: int = 0,
             mesh: Mesh | AbstractMesh | None = None) -> Any:
  """Shapes of a tree that say where its leaves lie.

  Args:
    tree: of arrays or shapes.
    members: of `shardings`.
    mesh: default the mesh in use; without one the tree comes back.
  """
  mesh = mesh or _devices_in_use()
  if mesh is None:
    return tree
  return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=where),
      tree, shardings(tree, mesh, members=members))


def born(make: Callable[..., Any], *args, members: int = 0) -> Any:
  """`make(*args)`, of which no device ever holds more than its part.

  Args:
    make: traceable; returns parameters or a state of them.
    *args: pytrees of arrays.
    members: of `shardings`.
  """
  mesh = _devices_in_use()
  where = mesh and shardings(
      jax.eval_shape(make, *args), mesh, members=members)
  return jax.jit(make, out_shardings=where)(*args)


def keep(tree: Any) -> Any:
  """Parameters or gradients inside a program, held where they lie.

  Else the compiler may move what a program returns, and the next call
  compiles again; and gradients would be summed as a whole on every device.
  """
  mesh = mesh_in_use()
  if mesh is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


# Rows and members.


def keep_rows(x: jax.Array, *axes: str | None) -> jax.Array:
  """An activation [B, ...] inside a program, its rows split over the mesh.

  Without it the compiler follows the parameters: it splits features and moves
  activations between all devices.

  Args:
    x: [B, ...].
    *axes: of the mesh, for the dimensions after the first; default none.
  """
  mesh, rows = mesh_in_use(), _row_axes.get()
  if mesh is None or x.shape[0] % _parts(rows, mesh):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, *axes))


def whole(x: jax.Array) -> jax.Array:
  """A parameter inside a program, gathered before it is read.

  For a table, whose rows are looked up and whose product with activations
  would else be summed over devices.
  """
  if mesh_in_use() is None:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * x.ndim))


def gathered(params: Any) -> Any:
  """Parameters inside a program, gathered but for the axis 'tensor'.

  For a loop over tokens, which would gather them anew for each.
  """
  mesh = mesh_in_use()
  if mesh is None:
    return params
  only = [(pattern, tuple(axis if axis == 'tensor' else None for axis in axes))
          for pattern, axes in RULES]
  return jax.lax.with_sharding_constraint(
      params, shardings(params, mesh, rules=only))


def vmap_members(function: Callable, members: int, in_axes: Any = 0
                 ) -> Callable:
  """`jax.vmap` over the members of an ensemble, split over the axis 'member'.

  Args:
    function: of one member.
    members: E.
    in_axes: of `jax.vmap`.
  """
  def mapped(*args):
    mesh = mesh_in_use()
    axes = ROWS if mesh is None else _rows_beside(members, mesh)
    split = axes != ROWS
    with _rows_are(axes):
      return jax.vmap(function, in_axes=in_axes,
                      spmd_axis_name='member' if split else None)(*args)
  return mapped


@contextlib.contextmanager
def _rows_are(axes):
  token = _row_axes.set(axes)
  try:
    yield
  finally:
    _row_axes.reset(token)


def rows_sharding(members: int = 0) -> NamedSharding | None:
  """Where a batch lies on the mesh in use, see `shard_batch`; None without."""
  mesh = _devices_in_use()
  if mesh is None:
    return None
  rows = _rows_beside(members, mesh)
  lead = () if not members else (
      ('member',) if _splits(members, mesh) else (None,))
  return NamedSharding(mesh, PartitionSpec(*lead, rows))


def shard_batch(batch: Any, *, members: int = 0) -> Any:
  """Splits the rows of a batch over the mesh in use.

  Args:
    batch: a pytree of arrays [B, ...]; [E, B, ...] with `members`.
    members: E, each with rows of its own; 0: there are none.

  Raises:
    TopologyError: the mesh does not divide the rows.
  """
  where = rows_sharding(members)
  if where is None:
    return batch
  rows, axis = where.spec[-1], len(where.spec) - 1
  for leaf in jax.tree.leaves(batch):
    if leaf.shape[axis] % _parts(rows, where.mesh):
      sizes = ' x '.join(f'{name} {where.mesh.shape[name]}' for name in rows)
      raise errors.TopologyError(
          f'a batch of {leaf.shape[axis]} prompts is not divisible by '
          f'{sizes}; choose a batch size that is')
  return _put(batch, jax.tree.map(lambda x: where, batch))


def pad_rows(batch: Any, multiple: int, *, axis: int = 0) -> Any:
  """Fills a batch up with rows of zeros, in which no response is there.

  A mask that is all false weighs nothing, so that neither losses nor
  statistics of a rollout see them.

  Args:
    batch: a pytree of NumPy arrays.
    multiple: of which the number of rows is to be one.
    axis: of the rows.
  """
  def pad(x):
    missing = -x.shape[axis] % multiple
    widths = [(0, missing if i == axis else 0) for i in range(x.ndim)]
    return np.pad(x, widths) if missing else x
  return jax.tree.map(pad, batch)


def chunks(count: int, size: int, parts: int = 1
           ) -> Iterator[tuple[np.ndarray, int]]:
  """Cuts `count` rows into chunks of one size, which all run one program.

  Args:
    count: rows.
    size: of a chunk at most; rounded up to a multiple of `parts`.
    parts: into which a chunk will be split, of `row_parts`.

  Yields:
    (rows i64[S], how many of them count): the last chunk is filled up with
    rows that it has already.

  Raises:
    ValueError: `size` is below 1.
  """
  if size < 1:
    raise ValueError(f'chunk_size must be >= 1, got {size}.')
  size = -(-min(size, count) // parts) * parts
  for start in range(0, count, size):
    rows = np.arange(start, min(start + size, count))
    yield np.resize(rows, size), len(rows)


def map_rows(function: Callable, *arrays: np.ndarray, chunk_size: int,
             poll: Callable[[], None] = lambda: None) -> Any:
  """`function` of many rows, chunk by chunk over the mesh, to the host.

  Args:
    function: (chunk of each array) -> pytree of arrays, rows on their first
      axis; each row's result is a function of that row alone.
    *arrays: [N, ...] each, on the host; N >= 1.
    chunk_size: rows at a time at most, see `chunks`.
    poll: called before every chunk; may raise, to stop.

  Returns:
    The results of all N rows, as NumPy arrays.
  """
  parts = []
  for rows, count in chunks(len(arrays[0]), chunk_size, row_parts()):
    poll()
    chunk = shard_batch([x[rows] for x in arrays])
    parts.append(jax.tree.map(
        lambda x, count=count: x[:count], processes.whole(function(*chunk))))
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)
