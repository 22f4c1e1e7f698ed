"""Rewards by functions of texts that a user has written.

A config names a function as 'package.module:function', of any module that the
command could import. It runs as it is, with the rights of the user:

  function(prompts: list[str], responses: list[str]) -> list[float]

Higher is better; an array of one axis will do for the list. Functions run in
processes of their own, so that one that hangs can be killed and one that
crashes takes nothing with it. They speak JSON, never pickle, and import what
the functions do and `rewards.worker`, but not JAX.
"""

from collections.abc import Collection, Mapping, Sequence
import concurrent.futures
import contextlib
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.rewards import worker as worker_lib

_NAME = re.compile(r'[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*')
_START_SECONDS = 300.0  # to import what the functions need, such as a model
_MAX_BYTES = 2**24  # of an answer


def check(functions: Mapping[str, str], **pool):
  """Finds the functions, in a process that ends again; see `Functions`."""
  Functions(functions, **pool).close()


class Functions:
  """Named functions of texts, run by a pool of processes.

  Close it, or use it as a context manager; then no process is left. A pool
  that was closed, or whose processes have died, starts new ones when asked.
  """

  def __init__(self, functions: Mapping[str, str], *,
               timeout: float = 60.0, num_workers: int = 2,
               chunk_size: int = 16, drop: Collection[str] = ()):
    """Starts a first process, which imports the functions.

    Args:
      functions: 'package.module:function' by the names that `components` and
        messages use.
      timeout: seconds that one call of one function may take.
      num_workers: processes.
      chunk_size: responses in a call at most.
      drop: names of those that may give None, NaN or what float32 cannot
        hold, for responses that are then left out.

    Raises:
      ConfigError: a function cannot be imported or called.
      ValueError: if there is no function, or another argument is out of range.
    """
    if not functions:
      raise ValueError('functions must name at least one.')
    for name, value in (('timeout', timeout), ('num_workers', num_workers),
                        ('chunk_size', chunk_size)):
      if not value > 0:
        raise ValueError(f'{name} must be > 0, got {value}.')
    for name, function in functions.items():
      if not isinstance(function, str) or not _NAME.fullmatch(function):
        raise errors.ConfigError(
            f'reward function {name} is {function!r}; give it as '
            "'package.module:function'")
    self._functions = dict(functions)
    self._timeout, self._chunk_size = timeout, chunk_size
    self._num_workers, self._drop = num_workers, frozenset(drop)
    self._workers: list[_Worker] = []
    self._start(1)

  def __enter__(self) -> 'Functions':
    return self

  def __exit__(self, *unused_exc):
    self.close()

  def close(self):
    """Ends all processes, and those that they have started."""
    while self._workers:
      self._workers.pop().kill()

  def components(self, prompts: Sequence[str], responses: Sequence[str],
                 step: int) -> dict[str, np.ndarray]:
    """What each function gives, before weights.

    Args:
      prompts: N texts.
      responses: N texts.
      step: of the training, for messages.

    Returns:
      f32[N] for each name, in the order of the functions; finite, but NaN
      for what one of `drop` gives no number.

    Raises:
      RewardError: a function raised, was too slow, ended its process, or gave
        anything but one finite number for each response (see `drop`).
        Nothing it or another gave is returned, and all processes are ended.
      ValueError: if prompts and responses are not equally many.
    """
    if len(prompts) != len(responses):
      raise ValueError('prompts and responses must be equally many, got '
                       f'{len(prompts)} and {len(responses)}.')
    starts = range(0, len(prompts), self._chunk_size)
    jobs = [(name, start) for name in self._functions for start in starts]

    def run(worker, job):
      name, start = job
      rows = slice(start, start + self._chunk_size)
      return self._call(worker, name, prompts[rows], responses[rows],
                        f'step {step}', start)

    parts = self._map(run, jobs) if jobs else []
    scores = {name: [] for name in self._functions}
    for (name, _), values in zip(jobs, parts):
      scores[name] += values
    return {k: np.asarray(v, np.float32) for k, v in scores.items()}

  def _start(self, count: int):
    """Brings the pool to `count` processes that live."""
    for worker in [w for w in self._workers if not w.is_alive()]:
      self._workers.remove(worker)
      worker.kill()
    fresh = [_Worker() for _ in range(count - len(self._workers))]
    self._workers += fresh
    try:
      for worker in fresh:  # they import side by side
        worker.load(self._functions)
    except BaseException:
      self.close()
      raise

  def _map(self, run, jobs):
    """[run(worker, job)] in order; the first error ends everything."""
    self._start(self._num_workers)
    idle = queue.SimpleQueue()
    for worker in self._workers:
      idle.put(worker)

    def one(job):
      worker = idle.get()
      try:
        return run(worker, job)
      finally:
        idle.put(worker)

    # Threads, since all they do is wait for a process.
    with concurrent.futures.ThreadPoolExecutor(self._num_workers) as pool:
      futures = [pool.submit(one, job) for job in jobs]
      try:
        ready, _ = concurrent.futures.wait(
            futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        return [future.result() for future in futures if future in ready]
      except BaseException:
        for future in futures:
          future.cancel()
        self.close()  # so that no thread waits any longer
        raise

  def _call(self, worker, name, prompts, responses, where, start):
    try:
      answer = worker.ask({
          'name': name, 'prompts': list(prompts), 'responses': list(responses),
          'drop': name in self._drop}, self._timeout, dict)
    except TimeoutError:
      answer = {'error': f'did not return within {self._timeout:g} s and was '
                         'killed', 'hint': 'make it faster, give it more '
                         'time or smaller chunks'}
    except OSError:
      answer = {'error': f'ended its process ({worker.ending()})'}
    except (ValueError, RecursionError):
      answer = {'error': 'wrote to a descriptor that it has not opened, where '
                         'its values belong'}
    if 'values' in answer:
      return answer['values']
    last = start + len(prompts) - 1
    rows = f'rows {start}-{last}' if last > start else f'row {start}'
    if answer.get('row') is not None:
      rows = f'row {start + answer["row"]}'
    raise errors.RewardError(
        f'reward function {name} ({self._functions[name]}) '
        f'{answer["error"]} at {where}, {rows}; '
        f'{answer.get("hint", "correct it and run the same command again")}')


class _Worker:
  """A process of `rewards.worker`, and the way to speak to it."""

  def __init__(self):
    self._socket, theirs = socket.socketpair()
    self._received = bytearray()
    pipe, self._pipe = os.pipe()  # closed by whatever ends this process
    # The modules that can be imported here, in the same order.
    path = os.pathsep.join(p or os.getcwd() for p in sys.path)
    with theirs, open(pipe, 'rb'):
      self._process = subprocess.Popen(
          [sys.executable, '-P', '-m', worker_lib.__name__,
           str(theirs.fileno()), str(pipe)],
          env={**os.environ, 'PYTHONPATH': path},
          pass_fds=[theirs.fileno(), pipe],
          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
          start_new_session=True)  # no Ctrl-C; a group that can be killed

  def ask(self, request: Any, seconds: float, kind: Any) -> Any:
    """Sends JSON and waits for the answer, which is of a kind.

    Raises:
      TimeoutError: it does not come within `seconds`.
      OSError: it never will.
      ValueError: what comes is no such answer.
    """
    deadline = time.monotonic() + seconds
    self._socket.settimeout(seconds)
    self._socket.sendall(json.dumps(request).encode() + b'\n')
    while not self._received.endswith(b'\n'):
      left = deadline - time.monotonic()
      if left <= 0:
        raise TimeoutError
      self._socket.settimeout(left)
      received = self._socket.recv(2**20)
      if not received:
        raise ConnectionError
      self._received += received
      if len(self._received) > _MAX_BYTES:
        raise ValueError(f'more than {_MAX_BYTES} bytes')
    answer, self._received = self._received, bytearray()
    answer = json.loads(answer)
    if not isinstance(answer, kind):
      raise ValueError(f'a {type(answer).__name__}')
    return answer

  def load(self, functions: Mapping[str, str]):
    """Has it import the functions; ConfigError if it cannot."""
    try:
      answer = self.ask(functions, _START_SECONDS, str | None)
    except TimeoutError:
      answer = (f'reward functions {", ".join(functions.values())} could not '
                f'be imported within {_START_SECONDS:g} s')
    except OSError:
      answer = (f'reward functions {", ".join(functions.values())}: importing '
                f'them ended the process ({self.ending()})')
    except (ValueError, RecursionError):
      answer = (f'reward functions {", ".join(functions.values())}: importing '
                'them wrote to a descriptor that they have not opened')
    if answer is not None:
      raise errors.ConfigError(answer)

  def is_alive(self) -> bool:
    """Whether it waits for a request; it says nothing of itself."""
    self._socket.settimeout(0)
    try:
      self._socket.recv(1)
    except BlockingIOError:
      return True
    except OSError:
      pass
    return False

  def ending(self) -> str:
    """How a process that no longer answers has ended, in words."""
    try:
      code = self._process.wait(timeout=5)
    except subprocess.TimeoutExpired:
      return 'connection closed'
    if code < 0:
      return f'signal {signal.Signals(-code).name}'
    return f'exit code {code}'

  def kill(self):
    """Ends the process and all that it has started."""
    with contextlib.suppress(OSError):
      self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits
    if self._process.returncode is None:  # else the number may be another's
      with contextlib.suppress(ProcessLookupError):
        os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()
    self._socket.close()
    os.close(self._pipe)
