"""Two ways to do the same work, in turns: rates, ratios and their ranges."""

from collections.abc import Callable
import dataclasses
import resource
import time
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """The same work by us and by a peer; each call returns how much it did.

  Attributes:
    ours: does it once, to the end.
    peer: likewise.
    unit: of a rate, such as 'tokens/s'; or 's', of the time for one of it.
    note: which peer, which shapes.
    flops: that a unit of work needs; 0: no share of a limit is said.
    bytes: that it reads of memory; likewise.
  """

  ours: Callable[[], float]
  peer: Callable[[], float]
  unit: str
  note: str
  flops: float = 0.0
  bytes: float = 0.0


def _cpu() -> float:
  """Seconds of all threads, and of the processes that have ended."""
  ended = resource.getrusage(resource.RUSAGE_CHILDREN)
  return time.process_time() + ended.ru_utime + ended.ru_stime


def _spent(run: Callable[[], float]) -> tuple[float, float]:
  """Seconds by the wall and of all threads, for a unit of work."""
  wall, cpu = time.perf_counter(), _cpu()
  amount = run()
  return (time.perf_counter() - wall) / amount, (_cpu() - cpu) / amount


def in_turns(case: Case, repeats: int) -> np.ndarray:
  """f64[repeats, 2, 2]: seconds a unit, of (ours, peer), (wall, CPU).

  Each runs once before, to compile and to touch its memory; which is first
  alternates, so that neither always follows the other.
  """
  runs = case.ours, case.peer
  for run in runs:
    run()
  turns = np.empty((repeats, 2, 2))
  for turn in range(repeats):
    for i in (0, 1) if turn % 2 == 0 else (1, 0):
      turns[turn, i] = _spent(runs[i])
  return turns


def summary(turns: np.ndarray, unit: str) -> dict[str, Any]:
  """Medians and ranges; a ratio is that of one turn, above 1 where we win.

  Args:
    turns: of `in_turns`.
    unit: of the case.

  Returns:
    'ours' and 'peer' in that unit, 'ratio' by the wall and 'cpu_ratio' in CPU
    seconds; of all but the last also '<name>_range', lowest and highest.
  """
  shown = turns[:, :, 0] if unit == 's' else 1 / turns[:, :, 0]
  ratios = turns[:, 1] / turns[:, 0]  # [repeats, (wall, CPU)]
  values = {'ours': shown[:, 0], 'peer': shown[:, 1], 'ratio': ratios[:, 0]}
  line: dict[str, Any] = {}
  for name, x in values.items():
    line[name] = float(np.median(x))
    line[f'{name}_range'] = [float(x.min()), float(x.max())]
  return line | {'cpu_ratio': float(np.median(ratios[:, 1]))}


def shares(case: Case, line: dict[str, Any], limits: dict[str, float]) -> str:
  """Which part of what the machine can do both reach, in words; or ''.

  Args:
    case: whose `flops` and `bytes` count.
    line: of `summary`.
    limits: 'products' in FLOP/s and 'reading' in B/s, measured.
  """
  words = ''
  for need, limit in ((case.flops, 'products'), (case.bytes, 'reading')):
    if need:
      ours, peer = (line[x] * need / limits[limit] for x in ('ours', 'peer'))
      words += f'; {ours:.0%}, {peer:.0%} of {limit}'
  return words
