"""The directory of a study: one owner, one config, verified results.

  workdir/lock                 names the process that owns it, and is locked
                               for as long as that lives
  workdir/config.json          what the stages were built from
  workdir/<stage>/begun.json   of a stage that is not complete: its recipe
  workdir/<stage>/result.json  written last: the stage is complete. With its
                               recipe, and a digest of every file beside it
"""

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import fnmatch
import json
import os
import pathlib
import shutil
import socket
import time

from rlhf_jax import errors
from rlhf_jax.storage import files

CONFIG, LOG = 'config.json', 'log.txt'
RESULT, BEGUN = 'result.json', 'begun.json'
# Of what is in a workdir. It changes when an older version of this package
# would have made the same study otherwise, from other streams of randomness
# say, or a config has other fields, so that nothing of two versions is mixed.
LAYOUT = 9
_ARRAYS = 'd'  # what Orbax calls the directory of a checkpoint's arrays
_ABSENT = '(absent)'
_DIGEST = 'sha256'


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Owns the workdir; the kernel frees the lock of a killed process.

  Raises:
    CheckpointError: it cannot be created or written, or its lock or its log
      is a link.
    WorkdirLockedError: another process owns it.
  """
  with contextlib.ExitStack() as stack:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      # Not truncated before it is ours: it names the owner.
      lock = stack.enter_context(files.open_appending(workdir / 'lock'))
      # Besides, since the file may be deleted while it is held.
      itself = os.open(workdir, os.O_RDONLY | os.O_DIRECTORY)
      stack.callback(os.close, itself)
    except OSError as error:
      raise errors.CheckpointError(
          f'cannot use {workdir} as a workdir: {error.filename}: '
          f'{error.strerror}; choose another --workdir') from error
    try:
      _lock(lock.fileno())
      _lock_directory(itself)
    except BlockingIOError as error:
      lock.seek(0)
      owner = ' '.join(lock.read(200).decode(errors='replace').split())
      raise errors.WorkdirLockedError(
          f'{workdir} is in use by {owner or "another process"}; wait for it, '
          'stop it, or choose another --workdir') from error
    if (workdir / LOG).is_symlink():
      raise errors.CheckpointError(
          f'{workdir / LOG} is a link, which is not followed; remove it')
    lock.truncate(0)
    lock.write(f'pid {os.getpid()} on {socket.gethostname()}\n'.encode())
    files.sweep(workdir)
    yield


def _lock(descriptor: int):
  """Holds a file; BlockingIOError if another process does, and still does.

  Who only asks whether somebody holds it, does so for an instant.
  """
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    time.sleep(.1)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lock_directory(descriptor: int):
  """Holds a directory itself; BlockingIOError if another process does."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise
  except OSError:  # not on NFS, which wants to write to what it locks
    pass


def is_owned(workdir: pathlib.Path) -> bool:
  """Whether a process owns it, now."""
  try:
    descriptor = os.open(workdir / 'lock', os.O_RDONLY | os.O_NONBLOCK)
  except OSError:
    return False
  try:
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  finally:
    os.close(descriptor)
  return False


def check_config(
    workdir: pathlib.Path, config: dict, safe_keys: Sequence[str]
) -> list[str]:
  """Writes the config, or compares it with the one that was written.

  Args:
    workdir: where it is.
    config: JSON values.
    safe_keys: fnmatch patterns of dotted keys that may change.

  Returns:
    What has changed, each as 'key: old -> new', and is written.

  Raises:
    ConfigError: another key has changed; nothing is written.
  """
  path, config = workdir / CONFIG, config | {'layout': LAYOUT}
  if not path.exists():
    _write_config(path, config)
    return []
  old, new = _flatten(read_config(workdir)), _flatten(config)
  changed = {
      key: f'{key}: {old.get(key, _ABSENT)} -> {new.get(key, _ABSENT)}'
      for key in sorted(old.keys() | new.keys())
      if old.get(key, _ABSENT) != new.get(key, _ABSENT)
  }
  unsafe = [text for key, text in changed.items()
            if not any(fnmatch.fnmatchcase(key, p) for p in safe_keys)]
  if unsafe:
    more = f' and {len(unsafe) - 8} more' if len(unsafe) > 8 else ''
    raise errors.ConfigError(
        f'the config differs from {path}: {", ".join(unsafe[:8])}{more}; '
        'undo the change or choose another --workdir')
  if changed:
    _write_config(path, config)
  return list(changed.values())


def _write_config(path: pathlib.Path, config: dict):
  config = files.jsonable(config)
  files.write_json(path, config | {_DIGEST: files.digest(config)})


def read_config(workdir: pathlib.Path) -> dict:
  """The config of a study, with the layout of its workdir.

  Raises:
    CheckpointError: it is missing or damaged, or somebody has edited it.
    ConfigError: an older version has made the study.
  """
  check_layout(workdir)
  config = files.read_json(workdir / CONFIG)
  expected = config.pop(_DIGEST, None)  # none of an earlier commit
  if expected is not None and files.digest(config) != expected:
    raise errors.CheckpointError(
        f'{workdir / CONFIG} is damaged, or was edited; delete it and give '
        'the command that made the study again, which refuses what does not '
        'fit')
  return config


def check_layout(workdir: pathlib.Path):
  """Raises ConfigError for a study that an older version has made."""
  config = files.read_json(workdir / CONFIG)
  layout = config.get('layout') if isinstance(config, dict) else None
  if layout != LAYOUT:
    raise errors.ConfigError(
        f'{workdir} was made by an older version of rlhf_jax (layout '
        f'{layout or 1}, this one has {LAYOUT}); start a new workdir')


def _flatten(config: dict, prefix: str = '') -> dict[str, str]:
  """Dotted keys to JSON text, in which 1 and true and '1' differ."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict) and value:
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = json.dumps(value, sort_keys=True)
  return flat


def begin(directory: pathlib.Path, record: dict):
  """Says what a stage that runs is made from, before it writes anything."""
  files.write_json(directory / BEGUN, record)


def read_begun(directory: pathlib.Path) -> dict | None:
  """What `begin` wrote; None if nothing that can be read is there."""
  try:
    record = files.read_json(directory / BEGUN)
  except errors.UserError:
    return None
  return record if isinstance(record, dict) else None


def write_record(directory: pathlib.Path, record: dict):
  """Completes a stage.

  Args:
    directory: of the stage, with everything that it has written.
    record: JSON values: 'result', 'seconds' and what it was made from.
  """
  record = files.jsonable(record | {'files': _digests(directory)})
  record[_DIGEST] = files.digest(record)
  files.write_json(directory / RESULT, record)
  (directory / BEGUN).unlink(missing_ok=True)


def read_record(directory: pathlib.Path) -> dict | None:
  """What `write_record` wrote, or None if the stage is not complete.

  Raises:
    CheckpointError: it is damaged.
  """
  path = directory / RESULT
  if not path.exists():
    return None
  record = files.read_json(path)
  try:
    expected = record.pop(_DIGEST)
    if (files.digest(record) == expected
        and {'result', 'seconds', 'files'} <= record.keys()):
      return record
  except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
    pass
  raise errors.CheckpointError(
      f'{path} is damaged; run the same command again, which makes the stage '
      'again')


def read_intact(directory: pathlib.Path) -> dict | None:
  """`read_record` of a stage whose files are as it has left them.

  Raises:
    CheckpointError: its record or one of its files is not.
  """
  record = read_record(directory)
  if record is None:
    return None
  today = _digests(directory)
  for name in sorted(record['files'].keys() | today.keys()):
    if record['files'].get(name) != today.get(name):
      what = ('is missing' if name not in today else
              'does not belong there' if name not in record['files'] else
              'is not as the stage left it')
      raise errors.CheckpointError(
          f'{directory / name} {what}; run the same command again, which makes '
          'the stage again')
  return record


def _digests(directory: pathlib.Path) -> dict[str, str]:
  """What is told of each file of a stage, but of its own records.

  Its SHA-256. Of the arrays of a checkpoint, which may be large, their size:
  they are verified where they are read, against digests that stand beside
  them in a file of the same checkpoint.
  """
  digests = {}
  # Checkpoints may lie on another disk, behind a link.
  for root, _, names in os.walk(directory, followlinks=True):
    for path in (pathlib.Path(root, name) for name in names):
      name = path.relative_to(directory).as_posix()
      if path.name.startswith('.') or name in (RESULT, BEGUN):
        continue
      digests[name] = (f'{path.stat().st_size} bytes'
                       if path.parent.name == _ARRAYS
                       else files.fingerprint(path))
  return digests


def set_aside(directory: pathlib.Path) -> pathlib.Path:
  """Moves what is in the way of a stage, in place of what was moved before.

  Returns:
    Where it is now, which nobody takes for a stage.

  Raises:
    CheckpointError: it cannot be moved.
  """
  target = directory.with_name(f'.{directory.name}.aside')
  try:
    shutil.rmtree(target, ignore_errors=True)
    directory.rename(target)
  except OSError as error:
    raise errors.CheckpointError(
        f'cannot move {directory} to {target}: {error.strerror}; move it '
        'yourself') from error
  return target
