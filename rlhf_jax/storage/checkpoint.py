"""Durable files: verified checkpoints, arrays and JSON, never half-written.

Orbax commits a step atomically, but a flipped bit restores silently and
another dtype is silently cast. So every step carries a SHA-256 per leaf in
the same commit, and a step is used only if every leaf verifies. Readers see
an old file or a new one, never a part of one. No pickle anywhere.

Of several processes each writes and reads its parts. A leaf's SHA-256 is that
of the whole leaf, gathered one at a time, so that a step may be restored by
another number of processes or onto another mesh.
"""

import contextlib
import importlib.metadata
import logging
import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.parallel import processes
from rlhf_jax.parallel import sharding
from rlhf_jax.storage import files
from rlhf_jax.storage import noise
from rlhf_jax.storage import patience

# Of the meta item, whose 'sha256' rule must never change. 1 had typed keys.
FORMAT = 2
# What `jax.random` calls the keys of a dtype.
_KEYS = {'key<fry>': 'threefry2x32', 'key<rbg>': 'rbg',
         'key<urbg>': 'unsafe_rbg'}
_PART = 2**20  # bytes
_logger = logging.getLogger(__name__)

Restored = tuple[int, types.Params, Any, dict]


class _DamagedError(Exception):
  """A step that cannot be trusted; the previous one is tried."""


class Checkpointer:
  """Saves and restores steps of one directory; a returned save is durable.

  Use it as a context manager or call `close`. Of several processes all open
  it, save and restore together.
  """

  def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
    """Opens the directory, and creates it where it is missing.

    Args:
      directory: holds one subdirectory per step, and nothing else.
      keep: how many of the newest steps to keep.

    Raises:
      CheckpointError: if the directory cannot be created or written.
      ConfigError: of `patience.seconds`.
    """
    import orbax.checkpoint as ocp

    self._patience = patience.seconds()
    if keep < 1:
      raise ValueError(f'keep must be >= 1, got {keep}')
    self.directory = pathlib.Path(directory).absolute()
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      processes.from_owner(self._drop_empty)
      self._manager = ocp.CheckpointManager(
          self.directory,
          options=ocp.CheckpointManagerOptions(
              enable_async_checkpointing=False,
              cleanup_tmp_directories=True,
              preservation_policy=ocp.checkpoint_managers.LatestN(keep),
          ),
          item_handlers={
              'params': _handler(), 'training': _handler(),
              'meta': ocp.JsonCheckpointHandler()},
      )
    except OSError as error:
      raise errors.CheckpointError(
          f'cannot use {self.directory} for checkpoints: {error.strerror}; '
          'choose another --workdir'
      ) from error

  def __enter__(self) -> 'Checkpointer':
    return self

  def __exit__(self, *unused_exc):
    self.close()

  def close(self):
    self._manager.close()

  def save(
      self,
      step: int,
      params: types.Params,
      training: Any = None,
      meta: dict | None = None,
  ):
    """Commits one step, all items at once.

    Args:
      step: newer than every step saved before.
      params: pytree of arrays.
      training: pytree of whatever else training needs: optimizer state,
        typed PRNG keys, step.
      meta: JSON values; non-finite floats become null.

    Raises:
      NumericsError: a float leaf is not finite; nothing is written.
      CheckpointError: the step is not new, or could not be written.
    """
    import orbax.checkpoint as ocp

    items = {'params': params}
    if training is not None:
      items['training'] = training
    manifest = {name: _manifest(name, tree) for name, tree in items.items()}
    record = {
        'format': FORMAT,
        'environment': _environment(),
        'meta': meta or {},
        'items': manifest,
    }
    record = files.jsonable(record)
    record['sha256'] = files.digest(record)
    arguments = {k: ocp.args.PyTreeSave(jax.tree.map(_raw, v))
                 for k, v in items.items()}
    arguments['meta'] = ocp.args.JsonSave(record)
    path = self.directory / str(step)
    try:
      # First what is logged of the steps before it, which none logs again.
      with patience.limited(path, self._patience):
        processes.from_owner(lambda: files.sync_files(self.directory.parent))
        with noise.quiet():
          saved = self._manager.save(
              step, args=ocp.args.Composite(**arguments))
        processes.from_owner(lambda: files.sync_tree(path))
    except Exception as error:  # orbax and tensorstore raise anything
      size = sum(x.nbytes for x in jax.tree.leaves(items) if hasattr(x, 'size'))
      raise errors.CheckpointError(
          f'cannot save {path} ({size} bytes needed): {noise.reason(error)}; '
          'free space or choose another --workdir; older steps are intact'
      ) from error
    if not saved:  # orbax declines silently
      raise errors.CheckpointError(
          f'step {step} was not saved: {self.directory} holds step '
          f'{self._manager.latest_step()} already'
      )

  def restore_latest(
      self,
      abstract_params: types.Params,
      abstract_training: Any = None,
      *,
      strict: bool = False,
  ) -> Restored | None:
    """Restores the newest step that verifies, onto the abstract's shardings.

    Damaged steps are reported, and renamed to `<step>.damaged` so that they
    can be saved again.

    Args:
      abstract_params: arrays or `jax.ShapeDtypeStruct`s.
      abstract_training: likewise; None leaves the training state alone.
      strict: whether a damaged step is an error, though an older one verifies.

    Returns:
      (step, params, training or None, meta); None if there is no step.

    Raises:
      CheckpointError: steps exist and none verifies, or shapes, dtypes or
        names differ from the abstract ones, or the format is newer.
    """
    abstract = {'params': abstract_params}
    if abstract_training is not None:
      abstract['training'] = abstract_training
      self._check_space(abstract)
    newest = _restore_newest(self.directory, abstract, strict)
    if newest is None:
      return None
    step, trees, record = newest
    damaged = [s for s in _steps(self.directory) if s > step]
    processes.from_owner(lambda: self._set_aside(damaged))
    if damaged:
      self._manager.reload()
    if abstract_training is not None:
      then, now = record['environment'], _environment()
      changed = [f'{k} {then.get(k)} -> {now[k]}' for k in now
                 if then.get(k) != now[k]]
      if changed:
        _logger.warning('going on, but not bitwise: %s', ', '.join(changed))
    return step, trees['params'], trees.get('training'), record['meta']

  def _check_space(self, abstract: dict[str, Any]):
    """Says before the first step, and not hours later, that space is short."""
    needed = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(abstract)
                 if hasattr(x, 'dtype'))
    free = shutil.disk_usage(self.directory).free
    if free < 3 * needed and not processes.index():
      _logger.warning(
          'space is short: %s has %d kB free, and a checkpoint takes %d kB; '
          'free some, or choose another --workdir', self.directory,
          free >> 10, needed >> 10)

  def _drop_empty(self):
    """Orbax takes an empty directory for a step, and refuses older saves."""
    for step in _steps(self.directory):
      with contextlib.suppress(OSError):
        (self.directory / str(step)).rmdir()

  def _set_aside(self, steps: list[int]):
    for step in steps:
      target = self.directory / f'{step}.damaged'
      shutil.rmtree(target, ignore_errors=True)
      with contextlib.suppress(OSError):  # then `save` will say so
        (self.directory / str(step)).rename(target)


def _handler():
  """Writes arrays; those that all devices hold by parts from `_PART` bytes on.

  Orbax would cut each of them for its devices, however small, which takes it
  longer than writing it.
  """
  import orbax.checkpoint as ocp

  kinds = ocp.type_handlers
  return ocp.PyTreeCheckpointHandler(
      type_handler_registry=kinds.create_type_handler_registry(
          *((kind, kinds.ScalarHandler()) for kind in (int, float, np.number)),
          (np.ndarray, kinds.NumpyHandler()),
          (jax.Array, kinds.ArrayHandler(
              min_slice_bytes_for_replica_parallel=_PART))))


def restore_params(
    directory: str | os.PathLike, abstract_params: types.Params
) -> types.Params:
  """Restores only the params of the newest step; read-only.

  Of a training that is complete an older one would be another model.

  Raises:
    CheckpointError: there is no step, or the newest is damaged or does not fit.
  """
  directory = pathlib.Path(directory).absolute()
  steps = _steps(directory)
  again = f'make it again with --redo={directory.parent.name}'
  if not steps:
    raise errors.CheckpointError(f'no checkpoint in {directory}; {again}')
  path = directory / str(steps[-1])
  try:
    return _read_step(path, {'params': abstract_params})[0]['params']
  except _DamagedError as error:
    raise errors.CheckpointError(
        f'{path} is damaged ({error}); {again}') from error


def _steps(directory: pathlib.Path) -> list[int]:
  """Steps on disk, oldest first; temporary and set-aside ones excluded."""
  if not directory.is_dir():
    return []
  return sorted(int(path.name) for path in directory.iterdir()
                if path.name.isdecimal() and path.is_dir())


def _restore_newest(
    directory: pathlib.Path, abstract: dict[str, Any], strict: bool
) -> tuple[int, dict[str, Any], dict] | None:
  steps = _steps(directory)
  for step in reversed(steps):
    try:
      return step, *_read_step(directory / str(step), abstract)
    except _DamagedError as error:
      if strict:
        raise errors.CheckpointError(
            f'{directory / str(step)} is damaged ({error}); without '
            '--strict_resume training goes on from the step before it'
        ) from error
      _logger.warning(
          'checkpoint step %d in %s is damaged (%s); trying the previous one',
          step, directory, error)
  if steps:
    raise errors.CheckpointError(
        f'none of the steps {steps} in {directory} verifies; restore a '
        f'backup, or make it again with --redo={directory.parent.name}'
    )
  return None


def _read_step(
    path: pathlib.Path, abstract: dict[str, Any]
) -> tuple[dict[str, Any], dict]:
  """Reads and verifies the items of one step that `abstract` names."""
  import orbax.checkpoint as ocp

  def read(name, argument):
    with noise.quiet(), ocp.Checkpointer(
        ocp.CompositeCheckpointHandler()) as reader:
      return reader.restore(path, ocp.args.Composite(**{name: argument}))[name]

  try:
    record = read('meta', ocp.args.JsonRestore())
    expected = record.pop('sha256')
  except Exception as error:  # truncated, deleted or no JSON: orbax varies
    raise _DamagedError(
        f'{path / "meta"}: {errors.first_line(error)}') from error
  if files.digest(record) != expected:
    raise _DamagedError(f'{path / "meta"}: SHA-256 differs')
  if record['format'] != FORMAT:
    newer = record['format'] > FORMAT
    raise errors.CheckpointError(
        f'{path} has checkpoint format {record["format"]}, '
        + (f'newer than {FORMAT}; upgrade rlhf_jax' if newer else
           f'older than {FORMAT}; start a new workdir'))
  trees = {}
  for name, tree in abstract.items():
    manifest = record['items'].get(name)
    _check_template(path, name, tree, manifest)
    argument = ocp.args.StandardRestore(jax.tree.map(_abstract, tree))
    try:
      trees[name] = jax.tree.map(_as, read(name, argument), tree)
    except Exception as error:  # as above
      raise _DamagedError(
          f'{path / name}: {errors.first_line(error)}') from error
    for leaf, entry in _entries(name, trees[name]).items():
      if entry != manifest[leaf]:
        raise _DamagedError(f'leaf {leaf}: SHA-256 differs')
  return trees, record


def _check_template(
    path: pathlib.Path, name: str, tree: Any, manifest: dict | None
):
  """Orbax would cast a dtype silently, so names and dtypes come first."""
  if manifest is None:
    raise errors.CheckpointError(f'{path} has no item {name!r}')
  expected = {leaf: _signature(x) for leaf, x in _leaves(name, tree).items()}
  problems = [f'{leaf} is missing' for leaf in expected if leaf not in manifest]
  problems += [f'{leaf} is unexpected' for leaf in manifest
               if leaf not in expected]
  for leaf in expected.keys() & manifest.keys():
    saved = {k: manifest[leaf][k] for k in ('dtype', 'shape')}
    if expected[leaf] != saved:
      problems.append(
          f'{leaf} is {saved["dtype"]}{saved["shape"]}, expected '
          f'{expected[leaf]["dtype"]}{expected[leaf]["shape"]}'
      )
  if problems:
    shown = '; '.join(sorted(problems)[:3])
    raise errors.CheckpointError(
        f'{path} does not fit: {shown} ({len(problems)} in all); '
        'is it from another model or algorithm?'
    )


def _leaves(name: str, tree: Any) -> dict[str, Any]:
  pairs = jax.tree_util.tree_leaves_with_path(tree)
  leaves = {
      f'{name}/{sharding.path_of(path)}': leaf
      for path, leaf in pairs
  }
  if len(leaves) != len(pairs):
    raise ValueError(f'two leaves of {name} have the same name')
  return leaves


def _signature(leaf: Any) -> dict[str, Any]:
  dtype = leaf.dtype if hasattr(leaf, 'dtype') else np.asarray(leaf).dtype
  return {'dtype': str(dtype), 'shape': list(np.shape(leaf))}


def _abstract(leaf: Any) -> Any:
  """What orbax should restore; without a sharding it would warn and guess."""
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return leaf
  where = leaf.sharding or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0])
  raw = jax.eval_shape(_raw, leaf)
  return jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=where)


def _is_key(leaf: Any) -> bool:
  return hasattr(leaf, 'dtype') and jnp.issubdtype(
      leaf.dtype, jax.dtypes.prng_key)


def _raw(leaf: Any) -> Any:
  """A typed key as its numbers, u32[..., 2]: orbax keeps those, on any mesh."""
  return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _as(leaf: Any, like: Any) -> Any:
  """What `_raw` made, with the type of an abstract leaf."""
  if not _is_key(like):
    return leaf
  return jax.random.wrap_key_data(leaf, impl=_KEYS[str(like.dtype)])


def _host(leaf: Any) -> np.ndarray:
  return np.asarray(processes.whole(_raw(leaf)))


def _entries(name: str, tree: Any) -> dict[str, dict]:
  return {leaf: _entry(x, _host(x)) for leaf, x in _leaves(name, tree).items()}


def _entry(leaf: Any, array: np.ndarray) -> dict[str, Any]:
  return {**_signature(leaf), 'sha256': files.array_digest(array)}


def _manifest(name: str, tree: Any) -> dict[str, dict]:
  entries = {}
  for leaf, x in _leaves(name, tree).items():
    array = _host(x)
    if jnp.issubdtype(array.dtype, jnp.inexact):
      if not np.isfinite(array).all():
        raise errors.NumericsError(
            f'{leaf} is not finite; the step is not saved, older ones stay')
    entries[leaf] = _entry(x, array)
  return entries


def _environment() -> dict[str, Any]:
  """What a bitwise resume needs to be the same."""
  names = ('jax', 'flax', 'optax')
  versions = {name: importlib.metadata.version(name) for name in names}
  return versions | {
      'platform': jax.default_backend(),
      'devices': jax.device_count(),
      'cores': len(os.sched_getaffinity(0)),
  }
