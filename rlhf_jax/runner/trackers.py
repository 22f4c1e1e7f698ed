"""Who else follows the metrics of a study: TensorBoard, Weights & Biases."""

from collections.abc import Callable, Mapping, Sequence
import importlib
import logging
import os
import pathlib
from typing import Any

from rlhf_jax import errors
from rlhf_jax.storage import metrics

FOLDER = 'tensorboard'  # of a workdir
_PATIENCE = 60.0  # seconds to send what a run of wandb has left
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


class WeightsAndBiases:
  """A follower that logs a run; like metrics, it stops no training.

  Nothing is sent: `wandb sync` does, or WANDB_MODE=online in the environment.
  A training that goes on does so in another run of the same name and group.
  """

  def __init__(self, workdir: pathlib.Path, name: str, config: Mapping):
    """Begins nothing yet.

    Args:
      workdir: whose folder wandb/ has the run, and whose name is its group.
      name: of the run.
      config: of the study, kept with the run.
    """
    self._workdir, self._name, self._config = workdir, name, config
    self._run = None
    self._failed = False

  def __call__(self, row: Mapping[str, Any]):
    """Logs a row; steps are a value of it, of which no order is asked."""
    def log():
      self._run = self._run or self._begin()
      self._run.log({k: v for k, v in row.items()
                     if k != 'time' and v is not None})
    if not self._failed:
      self._surviving(log)

  def finish(self):
    """Writes what is left."""
    run, self._run = self._run, None
    if run is not None and not self._failed:
      self._surviving(run.finish)

  def _surviving(self, action: Callable[[], None]):
    try:
      action()
    except Exception as error:  # whatever wandb raises
      self._failed = True
      _logger.warning('%s is no longer logged to wandb: %s', self._name,
                      errors.first_line(error))

  def _begin(self):
    import wandb

    variable = os.environ.get
    run = wandb.init(
        project=variable('WANDB_PROJECT', 'rlhf_jax'), group=self._workdir.name,
        name=self._name, config=dict(self._config), dir=str(self._workdir),
        mode=variable('WANDB_MODE', 'offline'), reinit='create_new',
        settings=wandb.Settings(
            silent=True, console='off', finish_timeout=_PATIENCE))
    run.define_metric('*', step_metric='step')
    return run


# The module that a tracker needs.
_NEEDS = {'tensorboard': 'tensorboardX', 'wandb': 'wandb'}


class Trackers:
  """Who follows the files of metrics of a study, stage by stage."""

  def __init__(self, workdir: pathlib.Path, names: Sequence[str],
               config: Mapping):
    """Writes nothing yet.

    Args:
      workdir: where they write, apart from the stages.
      names: of trackers, 'tensorboard', 'wandb', both or none.
      config: of the study.

    Raises:
      ConfigError: there is no such tracker, or it is not installed.
    """
    self._workdir, self._names, self._config = workdir, names, config
    self._stage, self._runs = None, []
    if 'wandb' in names:  # which would send reports of errors in any mode
      os.environ.setdefault('WANDB_ERROR_REPORTING', 'false')
    for name in names:
      if name not in _NEEDS:
        raise errors.ConfigError(
            f'--log_to={name}: there is only {" and ".join(_NEEDS)}')
      try:
        importlib.import_module(_NEEDS[name])
      except ImportError as error:
        raise errors.ConfigError(
            f'--log_to={name} needs {_NEEDS[name]}, which is not installed; '
            f"pip install 'rlhf_jax[{name}]'") from error

  def __call__(self, stage: str, file: str) -> list[metrics.Follower]:
    """Of a file of a stage; what followed the stage before is closed."""
    if stage != self._stage:
      self.close()
      self._stage = stage
    if file not in _FILES:
      return []
    followers: list[metrics.Follower] = []
    if 'tensorboard' in self._names:
      followers.append(TensorBoard(self._workdir / FOLDER / stage / file))
    if 'wandb' in self._names:
      self._runs.append(WeightsAndBiases(
          self._workdir, f'{stage}/{file}', self._config))
      followers += self._runs[-1:]
    return followers

  def close(self):
    """Ends the runs of the last stage."""
    for run in self._runs:
      run.finish()
    self._runs = []
