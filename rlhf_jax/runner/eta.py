"""When a study will have ended, by what stages like those left have taken."""

from collections.abc import Hashable, Iterable, Iterator, Mapping
import re
from typing import NamedTuple


class Kind(NamedTuple):
  """What is known of a stage before it runs."""

  name: str  # such as 'seed_0/policies/ppo'
  function: Hashable  # that it runs


def _alike(kind: Kind) -> Iterator[tuple]:
  """What it has in common with stages that take as long, the best first.

  It is itself with another seed, or of that name in another condition, or
  another run in the same folder, as policies are.
  """
  name = '/'.join(part for part in kind.name.split('/')
                  if not re.fullmatch(r'seed_\d+', part))
  folder, _, last = name.rpartition('/')
  yield 'seed', name
  yield 'condition', last, kind.function
  if folder:
    yield 'run', folder, kind.function


def seconds_left(later: Iterable[Kind], seconds: Mapping[Kind, float], *,
                 running: Kind | None = None, age: float = 0.0,
                 of_loop: float | None = None) -> float | None:
  """Seconds until a study ends; None where there is no ground for a number.

  Args:
    later: stages that are yet to run.
    seconds: that stages have taken, in this run or in one before.
    running: the stage that runs now.
    age: seconds that it has run for.
    of_loop: seconds that its loop will take yet, if that can be told.
  """
  seconds = dict(seconds)
  if running is not None and of_loop is not None:
    seconds[running] = age + of_loop
  grounds = {}
  for kind, value in seconds.items():
    for common in _alike(kind):
      grounds.setdefault(common, []).append(value)

  def estimate(kind):
    if kind in seconds:
      return seconds[kind]
    values = next((grounds[x] for x in _alike(kind) if x in grounds), None)
    return values and sum(values) / len(values)

  now = [] if running is None else [estimate(running)]
  parts = [*now, *map(estimate, later)]
  if None in parts:
    return None
  return sum(parts) - sum(min(age, whole) for whole in now)
