"""The lines at the bottom of a terminal that say how far a study is.

rich lays them out. They stand below the cursor, which stays where output goes
on, so that whatever prints - a library in C, another progress bar, the shell
once this process was killed - prints where it would without them, over lines
that are drawn again. (`rich.live` leaves the cursor below its lines, which
output that it does not catch then breaks, and catches it by taking over
stdout.) There is no state of the terminal to restore but to erase them.
"""

from collections.abc import Iterator
import contextlib
import os
import sys
import threading
import time
from typing import Any

from rlhf_jax.parallel import processes
from rlhf_jax.runner import bars
from rlhf_jax.runner import progress as progress_lib

_INTERVAL = 0.5  # seconds between two drawings
_ERASE = '\x1b[J'  # what is right of the cursor and below
# Of the columns of metrics.jsonl and evaluation.jsonl, what is shown.
_NUMBERS = {
    'metrics': {'train/loss': 'loss', 'reward/accuracy': 'accuracy',
                'rollout/reward': 'reward', 'rollout/kl_k1': 'KL'},
    'evaluation': {'gold': 'gold', 'proxy': 'reward', 'kl_k1': 'KL'}}


def is_terminal(stream: Any) -> bool:
  """Whether lines can be drawn there: it moves its cursor and has a width."""
  try:
    return (stream.isatty()
            and os.environ.get('TERM', 'dumb') not in ('dumb', 'unknown')
            and os.get_terminal_size(stream.fileno()).columns > 0)
  except (AttributeError, OSError, ValueError):
    return False


class Screen:
  """Draws how far a study is, while it is entered and where it can."""

  def __init__(self, progress: progress_lib.Progress):
    """Draws nothing yet."""
    self._progress = progress
    self._lock = threading.RLock()  # again: what is collected may warn
    self._end = threading.Event()
    self._descriptor = -1

  def __enter__(self) -> 'Screen':
    if not processes.index() and is_terminal(sys.stderr):
      self._descriptor = sys.stderr.fileno()
      self._progress.is_shown = True
      self._streams = sys.stdout, sys.stderr
      sys.stdout, sys.stderr = (x and _Above(x, self._erasing)
                                for x in self._streams)
      self._thread = threading.Thread(target=self._draw_often, daemon=True)
      self._thread.start()
    return self

  def __exit__(self, *unused_exc):
    if self._descriptor >= 0:
      self._end.set()
      self._thread.join()
      self.leave()
      sys.stdout, sys.stderr = self._streams
      self._progress.is_shown = False

  def leave(self):
    """Erases what is drawn, for good."""
    self._end.set()
    is_ours = self._lock.acquire(timeout=0.2)  # a terminal may hang
    self._write(_ERASE)
    if is_ours:
      self._lock.release()

  @contextlib.contextmanager
  def _erasing(self) -> Iterator[None]:
    """Within, something is printed."""
    with self._lock:
      self._write(_ERASE)
      yield

  def _draw_often(self):
    # Only here is it needed, and only where there is a terminal.
    from rich import console as console_lib

    console = console_lib.Console(file=self._streams[1], highlight=False)
    while not self._end.wait(_INTERVAL):
      with self._lock, contextlib.suppress(OSError):
        size = os.get_terminal_size(self._descriptor)
        console.size = size
        with console.capture() as capture:
          console.print(page(self._progress))
        rows = capture.get().rstrip('\n').split('\n')
        if len(rows) < size.lines and not self._end.is_set():
          self._write(_below(rows))

  def _write(self, text: str):
    """Not through a buffer, which a terminal that is gone would leave full."""
    if self._descriptor >= 0:
      with contextlib.suppress(OSError):
        os.write(self._descriptor, text.encode())


def _below(rows: list[str]) -> str:
  """What draws rows below the cursor, and brings it back to its column.

  Room is made first, by lines that go down and scroll; thus the place that the
  terminal remembers is the right one.
  """
  count = len(rows)
  return (_ERASE + '\x1bD' * count + f'\x1b[{count}A' + '\x1b7\r\n'
          + '\r\n'.join(rows) + '\x1b8')


class _Above:
  """A stream whose text goes where lines were drawn, once they are erased."""

  def __init__(self, stream: Any, erasing: Any):
    self._stream, self._erasing = stream, erasing

  def write(self, text: str) -> int:
    with self._erasing():
      return self._stream.write(text)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


def page(progress: progress_lib.Progress) -> Any:
  """What is drawn, for rich: the study, the loop, the numbers, what is next."""
  from rich import console
  from rich import progress_bar
  from rich import table
  from rich import text

  line = lambda words, style='': text.Text(
      words, style=style, no_wrap=True, overflow='ellipsis')
  grid = table.Table.grid(padding=(0, 2), expand=True)
  grid.add_column(max_width=24, no_wrap=True, overflow='ellipsis')
  grid.add_column(ratio=1)
  grid.add_column(no_wrap=True, overflow='ellipsis')
  number, total = progress.number, len(progress.names)
  grid.add_row(f'stage {number} of {total}',
               progress_bar.ProgressBar(total, max(number - 1, 0)),
               _left(progress.seconds_left() if number else None))
  bar = progress.bar
  if bar is not None:
    grid.add_row(line(bar.name), progress_bar.ProgressBar(bar.total, bar.count),
                 f'{bar.count}/{bar.total}, {_left(bar.seconds_left())}')
  age = bars.clock(time.monotonic() - progress.start)
  lines = [line(f'{progress.stage}, for {age}' if number else '', 'bold'),
           grid, *map(line, _numbers(progress.rows))]
  if later := progress.later():
    lines.append(line(f'then {", ".join(later[:3])}' + (
        f' and {len(later) - 3} more' if later[3:] else ''), 'dim'))
  return console.Group(*lines)


def _left(seconds: float | None) -> str:
  return 'time left unknown' if seconds is None else (
      f'about {bars.clock(seconds)} left')


def _numbers(rows: dict) -> Iterator[str]:
  """A line for each file of metrics that has any of the columns."""
  for file, names in _NUMBERS.items():
    row = rows.get(file, {})
    shown = [f'{short} {row[name]:.4g}' for name, short in names.items()
             if isinstance(row.get(name), int | float)]
    if shown:
      what = 'evaluation at step' if file == 'evaluation' else 'step'
      yield f'{what} {row["step"]}: {"  ".join(shown)}'
