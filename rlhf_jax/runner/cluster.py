"""How the processes of a run meet, and how they end when one of them dies."""

from collections.abc import Iterator
import contextlib
import ctypes
import dataclasses
import os
import signal
import sys
import tempfile

import jax

from rlhf_jax import errors
from rlhf_jax.parallel import processes

_CONNECT, _LEAVE = 120, 15  # seconds to wait for the others
# Of the environments in which each process of a run finds the others.
_COUNTS = ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE')
_PODS = ('TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES')
# What a collective says that has lost its other end.
_BROKEN = ('Gloo', 'NCCL', 'coordination service')
_DEATH = ('another process of this run died or cannot be reached; its own '
          'output says why. Start all processes again to go on')


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The processes of a run, as flags give them; None: ask the environment.

  SLURM, Open MPI and GKE are seen without a flag; other environments that jax
  knows, such as TPU VMs, are asked where the coordinator is 'auto'.
  """

  coordinator: str | None = None  # host:port of process 0, or 'auto'
  num_processes: int | None = None
  process_id: int | None = None
  heartbeat: int = 15  # seconds of silence after which a process is dead

  def __post_init__(self):
    flags = (self.coordinator, self.num_processes, self.process_id)
    if self.coordinator == 'auto' and flags[1:] == (None, None):
      flags = (None, None, None)
    if any(x is not None for x in flags) and None in flags:
      raise errors.ConfigError(
          'give --coordinator=<host>:<port>, --num_processes and --process_id '
          'together, or none of them')
    if self.num_processes is not None and not (
        0 <= self.process_id < self.num_processes):
      raise errors.ConfigError(
          f'--process_id={self.process_id} is not in [0, '
          f'{self.num_processes}), the --num_processes')
    if self.heartbeat < 1:
      raise errors.ConfigError(
          f'--heartbeat={self.heartbeat} must be >= 1, in seconds')

  @property
  def several(self) -> bool:
    """Whether flags or the environment speak of several processes."""
    if self.coordinator == 'auto':
      return True
    if self.num_processes is not None:
      return self.num_processes > 1
    value = os.environ.get
    return (any(value(name, '1') not in ('', '1') for name in _COUNTS)
            or any(',' in value(name, '') for name in _PODS))


def supervise():
  """Goes on in a child; what kills it is one line and an exit code here.

  The libraries below jax end a process whose peer is lost, and leave Python
  no say. Call it before any device is touched.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  noise = tempfile.TemporaryFile()  # of libraries below Python
  parent, child = os.getpid(), os.fork()
  if child == 0:
    os.setpgid(0, 0)  # Ctrl-C comes once, from the parent
    # Linux: dies with its parent, whatever kills that.
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:
      os._exit(1)
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    # Collectives print to descriptor 1, on their own, whom they have met, and
    # a library that gives up, its stack to descriptor 2.
    sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1)
    sys.stderr = os.fdopen(os.dup(2), 'w', buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(noise.fileno(), 2)
    return
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, lambda number, _: os.kill(child, number))
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  noise.seek(0)
  message = noise.read().decode(errors='replace')
  if code == -signal.SIGABRT and any(x in message for x in _BROKEN):
    error = errors.LostProcessError(_DEATH)
    print(errors.last_line(error), file=sys.stderr, flush=True)
    code = error.exit_code
  elif code < 0:
    print(message, file=sys.stderr, flush=True)
  os._exit(code if code >= 0 else 128 - code)


def connect(cluster: Cluster):
  """Joins the other processes; call it before any device is touched.

  Raises:
    TopologyError: they are not there.
  """
  # Else it takes SIGTERM, at which a study saves and stops.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    address = None if cluster.coordinator == 'auto' else cluster.coordinator
    jax.distributed.initialize(
        address, cluster.num_processes, cluster.process_id,
        initialization_timeout=_CONNECT,
        heartbeat_timeout_seconds=cluster.heartbeat,
        shutdown_timeout_seconds=_LEAVE)
    jax.devices()
  except (RuntimeError, ValueError) as error:
    raise errors.TopologyError(
        'the processes of this run do not find each other '
        f'({errors.first_line(error)}); look at --coordinator, '
        '--num_processes and --process_id') from error


@contextlib.contextmanager
def losing() -> Iterator[None]:
  """LostProcessError for what the loss of a process breaks."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if processes.count() > 1 and any(x in str(error) for x in _BROKEN):
      raise errors.LostProcessError(_DEATH) from error
    raise
