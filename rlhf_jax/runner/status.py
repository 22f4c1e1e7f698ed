"""workdir/status.json: the stage that runs, or how the last command ended."""

import os
import pathlib
import socket
import time
from typing import Any

from rlhf_jax import errors
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

NAME = 'status.json'


def now() -> str:
  """For people to read."""
  return time.strftime('%Y-%m-%dT%H:%M:%S%z')


class Status:
  """What a command that runs says of itself; CheckpointError if it cannot."""

  def __init__(self, workdir: pathlib.Path):
    self._path = workdir / NAME
    self._told = {'state': 'running', 'pid': os.getpid(),
                  'host': socket.gethostname(), 'started': now()}

  def write(self, **news: Any):
    """Writes it, with what is new."""
    self._told |= news | {'updated': now()}
    files.write_json(self._path, self._told)

  def at_once(self, code: int):
    """Of a second signal, which ends the process."""
    self.write(state='killed', exit_code=code, finished=now(),
               seconds_left=None,
               message='stopped at once, by a second signal')

  def ended(self, error: BaseException | None):
    """The last word; of an error, or of none."""
    end = {'state': 'complete', 'code': 'OK', 'exit_code': 0,
           'seconds_left': 0.0}
    if error is not None:
      user = isinstance(error, errors.UserError)
      end = {
          'state': 'interrupted' if isinstance(error, errors.Interrupted)
                   else 'failed',
          'code': error.code if user else 'BUG',
          'exit_code': error.exit_code if user else 1,
          'message': str(error) or type(error).__name__,
          'seconds_left': None,
      }
    self.write(**end, finished=now())


def read(workdir: pathlib.Path) -> dict:
  """What the last command has said of itself; 'killed' if it could not.

  Returns:
    {} if none was run. 'state' is 'running' only while its process lives.

  Raises:
    CheckpointError: it is damaged.
  """
  path = workdir / NAME
  if not path.exists():
    return {}
  status = files.read_json(path)
  if not isinstance(status, dict):
    raise errors.CheckpointError(
        f'{path} is damaged; the next command writes it again')
  if status.get('state') == 'running' and not workdirs.is_owned(workdir):
    status |= {'state': 'killed'}
  return status


def killed(workdir: pathlib.Path) -> str | None:
  """Who has left a status that says it runs, in words; of a workdir we own."""
  try:
    status = files.read_json(workdir / NAME)
    if status['state'] == 'running':
      where = f'in {status["stage"]}' if 'stage' in status else 'at its start'
      return f'pid {status["pid"]}, {where}'
  except (errors.UserError, LookupError, TypeError):
    pass  # none, or a damaged one, which is written anew
  return None
