"""What a study says: to stdout, to its log, or to both."""

import contextlib
import pathlib

from rlhf_jax.parallel import processes
from rlhf_jax.runner import status
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files


def say(message: str):
  """Prints to stdout, which may be closed; of several processes, one."""
  if processes.index():
    return
  with contextlib.suppress(OSError, ValueError):
    print(message, flush=True)


def log(workdir: pathlib.Path, message: str):
  """Appends to the log of a study."""
  if processes.index():
    return
  with contextlib.suppress(OSError):
    with files.open_appending(workdir / workdirs.LOG) as stream:
      stream.write(f'{status.now()} {message}\n'.encode(errors='replace'))


def tell(workdir: pathlib.Path, message: str):
  """Both."""
  log(workdir, message)
  say(message)
