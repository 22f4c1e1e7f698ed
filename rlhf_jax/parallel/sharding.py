"""Where each array lives on the mesh in use (`meshes`).

Rows are split over all axes but 'tensor', parameters by `RULES`. Without a
mesh in use the functions that place or constrain leave things as they are.
"""

from collections.abc import Callable, Iterator, Sequence
import contextvars
import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from rlhf_jax import errors
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import processes

# (regex, mesh axes of the LAST dimensions of a leaf). Those before, stacked
# layers or members, are in no rule, so that one serves layers/q/kernel
# [L, in, out], the same in an ensemble [E, L, in, out], in 'top_layers', in a
# value trunk and in the moments of an optimizer. The first match wins; a leaf
# that none matches is an error: what is silently replicated silently fills a
# device. The vocabulary is never split: looking up would move activations.
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
# While members of an ensemble are traced, those of meshes.ROWS that are left.
_row_axes = contextvars.ContextVar('rows', default=meshes.ROWS)


# Parameters.


def path_of(path) -> str:
  """The name of a leaf, such as 'params/layers/q/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def shardings(tree: Any, mesh: Mesh, *, members: int = 0,
              rules: Rules = RULES) -> Any:
  """Where each leaf of a tree lies, by the first rule that matches its name.

  Args:
    tree: of arrays or shapes.
    mesh: of `meshes.make`.
    members: E where every leaf is of an ensemble, [E, ...]; 0: of one model.
    rules: see `RULES`.

  Returns:
    A NamedSharding for each leaf.

  Raises:
    TopologyError: naming the leaf that no rule matches, or whose dimension an
      axis of the mesh does not divide.
  """
  lead = ('member',) if members and meshes.splits(members, mesh) else ()

  def place(path, leaf):
    name, shape = path_of(path), tuple(leaf.shape)
    axes = next((a for pattern, a in rules if re.search(pattern, name)), None)
    if axes is None or len(axes) + bool(members) > len(shape):
      raise errors.TopologyError(
          f'no sharding rule matches parameter {name} {shape}; add one to '
          'sharding.RULES')
    spec = [*lead, *[None] * (len(shape) - len(axes) - len(lead)), *axes]
    for size, axis in zip(shape, spec, strict=True):
      if size % meshes.parts(axis, mesh):
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
  mesh = meshes.devices_in_use()
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
  mesh = mesh or meshes.devices_in_use()
  if mesh is None:
    return tree
  return jax.tree.map(
      lambda x, where: jax.ShapeDtypeStruct(
          x.shape, x.dtype, sharding=where),
      tree, shardings(tree, mesh, members=members))


def born(make: Callable[..., Any], *args, static: tuple = (),
         members: int = 0) -> Any:
  """`make(*static, *args)`, of which no device holds more than its part.

  Args:
    make: traceable, of a module: what it makes again is not compiled again.
    *args: pytrees of arrays.
    static: first arguments, hashable.
    members: of `shardings`.
  """
  mesh, args, at = meshes.devices_in_use(), (*static, *args), len(static)
  compiled = lambda **how: jax.jit(make, static_argnums=range(at), **how)
  where = mesh and shardings(
      compiled().eval_shape(*args), mesh, members=members)
  return compiled(out_shardings=where)(*args)


def keep(tree: Any) -> Any:
  """Parameters or gradients inside a program, held where they lie.

  Else the compiler may move what a program returns, and the next call
  compiles again; and gradients would be summed as a whole on every device.
  """
  mesh = meshes.in_use()
  if mesh is None:
    return tree
  return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


# Rows and members.


def keep_rows(x: jax.Array, *axes: str | None) -> jax.Array:
  """An activation [B, ...] inside a program, its rows split over the mesh.

  Else the compiler splits features, and moves activations between devices.

  Args:
    x: [B, ...].
    *axes: of the mesh, for the dimensions after the first; default none.
  """
  mesh, rows = meshes.in_use(), _row_axes.get()
  if mesh is None or x.shape[0] % meshes.parts(rows, mesh):
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(rows, *axes))


def whole(x: jax.Array) -> jax.Array:
  """A parameter inside a program, gathered before it is read.

  For a table, whose rows are looked up and whose product with activations
  would else be summed over devices.
  """
  if meshes.in_use() is None:
    return x
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*[None] * x.ndim))


def gathered(params: Any) -> Any:
  """Parameters inside a program, gathered but for the axis 'tensor'.

  For a loop over tokens, which would gather them anew for each.
  """
  mesh = meshes.in_use()
  if mesh is None:
    return params
  only = [(pattern, tuple(axis if axis == 'tensor' else None for axis in axes))
          for pattern, axes in RULES]
  return jax.lax.with_sharding_constraint(
      params, shardings(params, mesh, rules=only))


def map_members(function: Callable, members: int) -> Callable:
  """A function of one member over all of an ensemble, in one program.

  By `jax.vmap`, split over the axis 'member'; on one CPU by `jax.lax.map`, a
  train step of which takes 1 / 1.4 of the time there, and scoring 1 / 1.6.

  Args:
    function: of one member; it is then given leaves [E, ...].
    members: E.
  """
  def mapped(*args):
    if meshes.on_one_cpu():
      return jax.lax.map(lambda one: function(*one), args)
    mesh = meshes.in_use()
    axes = meshes.ROWS if mesh is None else meshes.rows_beside(members, mesh)
    name = 'member' if axes != meshes.ROWS else None
    token = _row_axes.set(axes)
    try:
      return jax.vmap(function, spmd_axis_name=name)(*args)
    finally:
      _row_axes.reset(token)
  return mapped


def rows_sharding(members: int = 0) -> NamedSharding | None:
  """Where a batch lies on the mesh in use, see `shard_batch`; None without."""
  mesh = meshes.devices_in_use()
  if mesh is None:
    return None
  rows = meshes.rows_beside(members, mesh)
  lead = () if not members else (
      ('member',) if meshes.splits(members, mesh) else (None,))
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
    if leaf.shape[axis] % meshes.parts(rows, where.mesh):
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
    parts: into which a chunk will be split, of `meshes.row_parts`.

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
  for rows, count in chunks(len(arrays[0]), chunk_size, meshes.row_parts()):
    poll()
    chunk = shard_batch([x[rows] for x in arrays])
    parts.append(jax.tree.map(
        lambda x, count=count: x[:count], processes.whole(function(*chunk))))
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)
