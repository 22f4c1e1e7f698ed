"""How far a loop is: how much of it is left, and lines that say so."""

from collections.abc import Callable
import contextlib
import datetime
import sys
import time

from rlhf_jax.parallel import processes

_INTERVAL = 30.0  # seconds between two words of a bar


def clock(seconds: float | None) -> str:
  """Such as 1:02:03; '?' if unknown."""
  return '?' if seconds is None else str(
      datetime.timedelta(seconds=int(seconds)))


class Bar:
  """Counts the turns of a loop, and says from time to time how far it is."""

  def __init__(self, total: int, count: int = 0, name: str = '',
               tell: Callable[['Bar'], None] | None = None):
    """Begins.

    Args:
      total: where the count ends.
      count: where it starts, after a resume.
      name: of the loop.
      tell: called at the beginning, then at most every 30 seconds, and at the
        end; None: prints a line to stderr.
    """
    self.total, self.count, self.name = total, count, name
    self._tell = tell or say
    self._start = self._last_word = time.monotonic()
    self._first = self._last = None  # (turns, when) of updates
    self._tell(self)

  def __enter__(self) -> 'Bar':
    return self

  def __exit__(self, *unused_exc):
    self._tell(self)

  def update(self, turns: int = 1):
    """Counts turns."""
    self.count += turns
    now = time.monotonic()
    self._last = self.count, now
    self._first = self._first or self._last
    if now - self._last_word >= _INTERVAL:
      self._last_word = now
      self._tell(self)

  def seconds_per_turn(self) -> float | None:
    """None until a turn was measured: the first one compiles programs."""
    first, last = self._first, self._last  # another thread may ask
    if first is None or first == last:
      return None
    (first, start), (last, end) = first, last
    return (end - start) / (last - first)

  def seconds_left(self) -> float | None:
    """Of the loop; None until there is a ground to say it."""
    if self.count >= self.total:
      return 0.0
    pace = self.seconds_per_turn()
    return None if pace is None else pace * (self.total - self.count)

  def line(self) -> str:
    """Such as 'sft:  50% 5/10 [0:00:05<0:00:05, 1.00it/s]'."""
    pace = self.seconds_per_turn()
    rate = '?it/s' if not pace else (
        f'{1 / pace:.2f}it/s' if pace < 1 else f'{pace:.2f}s/it')
    age = time.monotonic() - self._start
    return (f'{self.name}: {100 * self.count // max(self.total, 1):3d}% '
            f'{self.count}/{self.total} [{clock(age)}<'
            f'{clock(self.seconds_left())}, {rate}]')


def say(bar: Bar):
  """Prints the line of a bar to stderr, if it is there; of one process."""
  if sys.stderr is not None and not processes.index():
    with contextlib.suppress(OSError, ValueError):
      print(bar.line(), file=sys.stderr, flush=True)
