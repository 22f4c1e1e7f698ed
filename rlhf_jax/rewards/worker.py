"""The process in which reward functions of texts run; see `programmatic`.

It imports little, so that it starts in no time: nothing of this package but
`errors`. Whoever has started it writes lines of JSON to a socket, first the
names of the functions and then calls, and reads an answer to each.
"""

from collections.abc import Mapping
import contextlib
import fcntl
import importlib
import json
import math
import numbers
import os
import queue
import signal
import socket
import sys
import threading
from typing import Any

from rlhf_jax import errors

LARGEST = (2 - 2**-23) * 2.0**127  # of float32


class _UnusableError(Exception):
  """What is wrong with a result, and in which row, if it is in one."""


def _values(result: Any, count: int, drop: bool) -> list[float]:
  """The result of a function as numbers, one for each response.

  Args:
    result: of the function.
    count: responses.
    drop: whether None and what is not finite becomes NaN, and is no error.
  """
  if hasattr(result, 'tolist'):
    result = result.tolist()
  if not isinstance(result, list | tuple):
    raise _UnusableError(
        f'returned a {type(result).__name__}, not a list of numbers', None)
  if len(result) != count:
    raise _UnusableError(
        f'returned {len(result)} numbers for {count} responses', None)
  values = []
  for row, value in enumerate(result):
    if drop and value is None:
      value = math.nan
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
      text = ' '.join(repr(value).split())[:80]
      raise _UnusableError(
          f'returned {text}, a {type(value).__name__}, not a number', row)
    try:
      values.append(float(value))
    except OverflowError:  # an integer of hundreds of digits
      values.append(math.inf)
    if not abs(values[-1]) <= LARGEST:
      if drop:
        values[-1] = math.nan
        continue
      raise _UnusableError(
          f'returned {values[-1]:.3g}, not a finite float32 number', row)
  return values


def _answer(functions: Mapping[str, Any], request: dict) -> dict:
  """{'values'}, or what went wrong: {'error', 'row'}."""
  prompts, responses = request['prompts'], request['responses']
  count = len(prompts)
  function = functions[request['name']]
  try:
    result = function(prompts, responses)
    return {'values': _values(result, count, request['drop'])}
  except _UnusableError as error:
    what, row = error.args
    return {'error': what, 'row': row}
  except BaseException as error:  # SystemExit too
    where = getattr(function, '__module__', '')
    return {'error': f'raised {errors.of_user(error, where)}', 'row': None}


def _import(names: Mapping[str, str]) -> tuple[dict, str | None]:
  """The functions, or what is wrong with the first that is none."""
  functions = {}
  for name, target in names.items():
    module, _, attribute = target.partition(':')
    start = f'reward function {name} ({target}):'
    try:
      function = getattr(importlib.import_module(module), attribute)
    except BaseException as error:  # whatever the module runs into
      return {}, f'{start} {errors.first_line(error)}; correct it'
    if not callable(function):
      return {}, (f'{start} {attribute} is a {type(function).__name__}, which '
                  'cannot be called; name a function')
    functions[name] = function
  return functions, None


def _read(stream: Any, requests: queue.SimpleQueue):
  """Hands on lines; ends the process and its children with the parent."""
  for line in stream:
    requests.put(line)
  if os.getpgrp() == os.getpid():
    os.killpg(0, signal.SIGKILL)
  os._exit(1)


def _end_with(pipe: int):
  """Has the kernel kill the process and its children with the parent.

  A thread cannot, while a function holds the lock of the interpreter. Linux;
  elsewhere the thread of `_read` has to do.

  Args:
    pipe: its other end is the parent's, who never writes.
  """
  os.set_inheritable(pipe, False)
  if hasattr(fcntl, 'F_SETSIG'):
    group = os.getpgrp()
    fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(pipe, fcntl.F_SETOWN,
                -group if group == os.getpid() else os.getpid())
    flags = fcntl.fcntl(pipe, fcntl.F_GETFL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, flags | os.O_ASYNC)


def _serve(descriptor: int, pipe: int):
  """The process: names of functions, then calls; for each line, an answer."""
  _end_with(pipe)
  # Only the parent decides when to stop. Handlers of our own, since to ignore
  # a signal would be inherited by what a function starts.
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
  os.set_inheritable(descriptor, False)
  with contextlib.suppress(OSError):
    os.dup2(2, 1)  # what a function prints is no output of the command
  connection = socket.socket(fileno=descriptor)
  requests, functions = queue.SimpleQueue(), None
  threading.Thread(target=_read, daemon=True, args=(
      connection.makefile('rb'), requests)).start()
  while True:
    request = json.loads(requests.get())
    if functions is None:
      functions, answer = _import(request)
    else:
      answer = _answer(functions, request)
    connection.sendall(json.dumps(answer).encode() + b'\n')


if __name__ == '__main__':
  _serve(*map(int, sys.argv[1:]))
