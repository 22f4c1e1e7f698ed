"""What native code does that Python does not: panic, and talk on descriptor 2.

Rust's panics are no `Exception`, so that nobody catches them by accident, and
say at length where they come from before anyone could. A pattern in a
tokenizer.json can cause one, by a text that makes it try for ever.
"""

from collections.abc import Iterator
import contextlib
import os
import tempfile
import threading

_LOCK = threading.Lock()  # of descriptor 2, of which a process has one
_MOST = 2**16  # bytes that are passed on


@contextlib.contextmanager
def guarded() -> Iterator[None]:
  """RuntimeError, and no other word, in place of a panic within.

  What else is written to descriptor 2 meanwhile is passed on afterwards.
  """
  with _LOCK, tempfile.TemporaryFile() as noise:
    try:
      terminal = os.dup(2)
    except OSError:  # it is closed: there is nothing to guard
      terminal = None
    try:
      if terminal is not None:
        os.dup2(noise.fileno(), 2)
      yield
    except BaseException as error:
      if type(error).__name__ != 'PanicException':
        raise
      noise.truncate(0)
      raise RuntimeError(' '.join(str(error).split())[:200]) from None
    finally:
      if terminal is not None:
        os.dup2(terminal, 2)
        noise.seek(0)
        with contextlib.suppress(OSError):
          os.write(terminal, noise.read(_MOST))
        os.close(terminal)
