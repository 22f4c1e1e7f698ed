"""SIGTERM, SIGHUP and Ctrl-C ask a study to save and stop."""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import threading

from rlhf_jax import errors
from rlhf_jax.parallel import processes

_AGREE_EVERY = 8  # steps of several processes
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopSignal:
  """The first signal asks to stop, the second exits at once.

  They are SIGTERM, SIGINT and, as of a terminal that is closed, SIGHUP, unless
  that is ignored, as under nohup.
  """

  def __init__(self, at_once: Callable[[int], None] = lambda code: None):
    """Listens to nothing yet.

    Args:
      at_once: told the exit code, in a thread, before a second signal ends the
        process; has a second.
    """
    self._event = threading.Event()
    self._seen = False
    self._at_once = at_once

  def requested(self, step: int = 0) -> bool:
    """Whether to save and stop; poll it in every loop.

    Args:
      step: of a loop. Of several processes, which must stop together, all are
        asked at every eighth.
    """
    if processes.count() > 1 and step % _AGREE_EVERY:
      return False
    return processes.any_of(self._event.is_set())

  def check(self, where: str):
    """Call after saving.

    Args:
      where: what was saved last, such as 'shard 4'.

    Raises:
      Interrupted: a signal came.
    """
    if self.requested():
      self.stop(where)

  def stop(self, where: str):
    """Raises Interrupted, with what was saved last."""
    raise errors.Interrupted(f'saved at {where}; run the same command to go on')

  @contextlib.contextmanager
  def installed(self) -> Iterator['StopSignal']:
    """Handles the signals within; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
      yield self
      return
    # Python runs handlers between bytecodes, so a long compilation would
    # delay them; the wake-up descriptor is written by C at once.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    thread = threading.Thread(target=self._watch, args=(reader,), daemon=True)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, self._handle)
                for number in _SIGNALS if number != signal.SIGHUP
                or signal.getsignal(number) != signal.SIG_IGN}
    thread.start()
    try:
      yield self
    finally:
      for number, handler in previous.items():
        signal.signal(number, handler)
      signal.set_wakeup_fd(previous_fd)
      os.close(writer)
      thread.join()
      os.close(reader)

  def _handle(self, unused_number, unused_frame):
    self._event.set()

  def _watch(self, reader: int):
    while received := os.read(reader, 1):
      if received[0] not in _SIGNALS:
        continue
      if self._seen:
        code = 128 + received[0]
        # Of its own, since a disk may hang.
        last = threading.Thread(target=self._at_once, args=[code], daemon=True)
        last.start()
        last.join(1)
        os._exit(code)
      self._seen = True
      self._event.set()
      with contextlib.suppress(OSError):
        os.write(2, b'rlhf_jax: stopping after the next save; once more to '
                    b'stop at once\n')
