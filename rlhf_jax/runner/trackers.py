"""Who else follows the metrics of a study: TensorBoard, by event files."""

from collections.abc import Callable, Mapping, Sequence
import importlib
import logging
import os
import pathlib
from typing import Any

from rlhf_jax import errors
from rlhf_jax.storage import metrics

FOLDER = 'tensorboard'  # of a workdir
_FILES = ('metrics', 'evaluation')  # updates.jsonl has a step several times
_logger = logging.getLogger(__name__)


class TensorBoard:
  """A follower that writes event files; like metrics, it stops no training."""

  def __init__(self, directory: pathlib.Path):
    """Writes nothing yet."""
    self._directory = directory
    self._events = None
    self._warned = False

  def __call__(self, row: Mapping[str, Any]):
    """Writes the numbers of a row, one of each name."""
    from tensorboardX.proto import summary_pb2

    values = [summary_pb2.Summary.Value(tag=name, simple_value=value)
              for name, value in row.items()
              if name not in ('step', 'time') and value is not None]
    try:
      self._write(row, summary=summary_pb2.Summary(value=values))
    except OSError as error:
      if not self._warned:
        self._warned = True
        _logger.warning('events are being lost: %s: %s', self._directory, error)

  def _write(self, row: Mapping[str, Any], **what: Any):
    # Not its SummaryWriter, whose thread dies of a full disk, and then waits.
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    event = lambda **what: self._events.write_event(event_pb2.Event(
        wall_time=row['time'], step=row['step'], **what))
    if self._events is None:
      self._directory.mkdir(parents=True, exist_ok=True)
      self._events = event_file_writer.EventsWriter(
          str(self._directory / 'events'), f'.{os.getpid()}')
      # Of what was written before, steps from here on do not count any more.
      event(session_log=event_pb2.SessionLog(
          status=event_pb2.SessionLog.START))
    event(**what)
    self._events.flush()


def of_study(workdir: pathlib.Path, names: Sequence[str]
             ) -> Callable[[str, str], list[metrics.Follower]]:
  """Who follows a file of metrics of a stage.

  Args:
    workdir: where event files go, apart from the stages.
    names: of trackers, 'tensorboard' or none.

  Raises:
    ConfigError: there is no such tracker, or it is not installed.
  """
  for name in names:
    if name != 'tensorboard':
      raise errors.ConfigError(
          f'--log_to={name}: there is only tensorboard')
    try:
      importlib.import_module('tensorboardX')
    except ImportError as error:
      raise errors.ConfigError(
          '--log_to=tensorboard needs tensorboardX, which is not installed; '
          "pip install 'rlhf_jax[tensorboard]'") from error

  def followers(stage, file):
    return ([TensorBoard(workdir / FOLDER / stage / file)]
            if names and file in _FILES else [])
  return followers
