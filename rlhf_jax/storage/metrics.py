"""Metrics as JSON lines, which never stop training."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import json
import logging
import math
import os
import pathlib
import time
from typing import Any

from rlhf_jax.parallel import processes
from rlhf_jax.storage import files

Follower = Callable[[Mapping[str, Any]], None]
_logger = logging.getLogger(__name__)


class MetricsWriter:
  """Appends one JSON object per `write` to a file.

  A line is on its way to the disk when `write` returns, so a killed process
  loses none. Write the metrics of a step before its checkpoint, and call
  `truncate` with the restored step: then each step occurs exactly once.
  A failing disk costs a warning and the line, never an exception.
  """

  def __init__(self, path: str | os.PathLike,
               followers: Sequence[Follower] = ()):
    """Opens `path` for appending and drops a line that a crash cut short.

    Args:
      path: of the file.
      followers: called with each row that is written; must not raise.
    """
    self.path = pathlib.Path(path)
    self._followers = followers
    self._warned = False
    self._file = None
    with self._surviving():
      self._cut(lambda line: line.endswith(b'\n'))

  def __enter__(self) -> 'MetricsWriter':
    return self

  def __exit__(self, *unused_exc):
    self.close()

  def close(self):
    if self._file is not None:
      with self._surviving():
        self._file.close()
      self._file = None

  def write(self, step: int, values: Mapping[str, Any]):
    """Appends {"step", "time", **values}.

    Args:
      step: optimizer steps taken.
      values: scalars; floats keep six digits, non-finite ones become null.

    Raises:
      TypeError: a value is not a scalar (a bug, hence not swallowed).
    """
    row = {'step': int(step), 'time': round(time.time(), 3)}
    row |= {name: _number(value) for name, value in values.items()}
    line = (json.dumps(row, allow_nan=False) + '\n').encode()
    with self._surviving():
      self._restore_if_deleted()
      descriptor = self._descriptor()
      size = os.fstat(descriptor).st_size
      try:
        self._append(line)
      except OSError:
        os.ftruncate(descriptor, size)  # no half line for readers
        raise
    for follow in self._followers:
      follow(row)

  def truncate(self, last_step: int):
    """Drops everything from the first line whose step is after `last_step`."""

    def keep(line):
      try:
        return json.loads(line)['step'] <= last_step
      except (ValueError, KeyError, TypeError):
        return False

    with self._surviving():
      self._cut(keep)

  def digest(self, before: int | None = None) -> str:
    """SHA-256 of what the lines say, but of what a clock has measured.

    Args:
      before: only of lines of earlier steps; None: of all.
    """
    rows = []
    with self._surviving():
      try:
        rows = [json.loads(line) for line in self._read().splitlines()]
        rows = [{k: v for k, v in row.items() if not _is_clock(k)}
                for row in rows if before is None or row['step'] < before]
      except (ValueError, LookupError, TypeError, AttributeError):
        rows = ['damaged']
    return files.digest(rows)

  def _descriptor(self) -> int:
    if self._file is None:
      # Unbuffered: a line is one system call, and nothing waits in memory.
      self._file = files.open_appending(self.path)
    return self._file.fileno()

  def _append(self, data: bytes):
    if self._file.write(data) != len(data):
      raise OSError('disk full')

  def _read(self) -> bytes:
    self._descriptor()
    self._file.seek(0)
    return self._file.read()

  def _cut(self, keep: Callable[[bytes], bool]):
    offset = 0
    for line in self._read().splitlines(keepends=True):
      if not keep(line):
        break
      offset += len(line)
    os.ftruncate(self._descriptor(), offset)

  def _restore_if_deleted(self):
    """Brings a deleted file back, whole: the open descriptor still has it."""
    if self._file is None or self.path.exists():
      return
    content, deleted = self._read(), self._file
    self._file = None
    try:
      self._descriptor()
      self._append(content)
      deleted.close()
    except OSError:
      self._file = self._file or deleted  # the directory may come back
      raise

  @contextlib.contextmanager
  def _surviving(self):
    try:
      yield
    except OSError as error:
      if not self._warned:
        self._warned = True
        _logger.warning('metrics are being lost: %s: %s', self.path, error)


def _is_clock(name: str) -> bool:
  return name == 'time' or 'second' in name


def _number(value: Any) -> int | float | None:
  if hasattr(value, 'item'):
    value = value.item()
  if isinstance(value, bool | int):
    return int(value)
  if not isinstance(value, float):
    raise TypeError(f'a metric must be a scalar, got {value!r}')
  return float(f'{value:.6g}') if math.isfinite(value) else None


class _Nowhere(MetricsWriter):
  """Of a process that does not own the workdir: nothing is written."""

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)

  def close(self):
    pass

  def write(self, step: int, values: Mapping[str, Any]):
    del step, values

  def truncate(self, last_step: int):
    del last_step


def open_writer(path: str | os.PathLike, followers: Sequence[Follower] = ()
                ) -> MetricsWriter:
  """A writer of the process that owns the workdir; elsewhere one of nothing."""
  return (_Nowhere(path) if processes.index()
          else MetricsWriter(path, followers))
