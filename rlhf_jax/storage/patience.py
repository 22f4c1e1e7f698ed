"""An end for saves that a file system does not answer.

A call that hangs in the kernel, of a network file system that is gone, is
interrupted by nothing: not by an exception, not by Ctrl-C. A job that waits in
it costs its devices until somebody looks.
"""

from collections.abc import Iterator
import contextlib
import math
import os
import pathlib
import sys
import threading

from rlhf_jax import errors

VARIABLE = 'RLHF_JAX_SAVE_TIMEOUT'  # seconds of one save, in the environment
_DEFAULT = 1800.0


def seconds() -> float:
  """How long a save may take.

  Raises:
    ConfigError: the environment says no number above 0.
  """
  text = os.environ.get(VARIABLE, str(_DEFAULT))
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 < value < threading.TIMEOUT_MAX:
    raise errors.ConfigError(
        f'{VARIABLE} is {text!r} in the environment; give seconds above 0')
  return value


@contextlib.contextmanager
def limited(path: pathlib.Path, most: float) -> Iterator[None]:
  """Within, something is saved there; after too long, the program ends.

  It ends from another thread, with exit code 4 and the last step that was
  saved; of several processes the others then miss a peer.

  Args:
    path: for the message.
    most: seconds.
  """
  timer = threading.Timer(most, _give_up, [path, most])
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()


def _give_up(path: pathlib.Path, most: float):
  error = errors.CheckpointError(
      f'{path} is not saved after {most:g} s: its file system does not '
      'answer. Run the same command again when it does, or give more seconds '
      f'in {VARIABLE}; older steps are intact')
  print(errors.last_line(error), file=sys.stderr, flush=True)
  os._exit(error.exit_code)
