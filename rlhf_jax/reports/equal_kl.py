"""Curves of policies at equal KL, and those of single seeds.

The papers compare policies at a KL, not after a number of steps: Coste et al.
2024, https://arxiv.org/abs/2310.02743, Fig. 4.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation import statistics
from rlhf_jax.reports import results

AXES = ('sqrt_kl', 'kl_k1')  # along which seeds can be compared
_GRID = 41  # points of a mean


def along(group: Sequence[results.Policy], names: Sequence[str], *,
          limit_kl: float | None = None) -> dict[str, np.ndarray]:
  """As `results.curve`, at equal KL in place of equal steps.

  Each seed is interpolated along the furthest that it has come, since a KL may
  go back; the mean ends where the first seed does, past which it would be one
  of other seeds.

  Args:
    group: as for `results.curve`.
    names: columns, the first of them one of `AXES`.
    limit_kl: nats, where the mean ends at the latest; None: nowhere.
  """
  x, *rest = names
  seeds = tracks(group, names)
  start = max(track[0] for track, _ in seeds)
  end = min(track[-1] for track, _ in seeds)
  if limit_kl is not None:
    end = min(end, limit_kl**.5 if x == 'sqrt_kl' else limit_kl)
  grid = np.linspace(start, max(start, end), _GRID if end > start else 1)
  points = {x: grid, f'{x}_se': np.full_like(grid, np.nan)}
  for name in rest:
    stack = np.stack([np.interp(grid, track, columns[name])
                      for track, columns in seeds])
    points[name] = stack.mean(axis=0)
    points[f'{name}_se'] = statistics.standard_error(stack)
  return points


def tracks(group: Sequence[results.Policy], names: Sequence[str],
           source: str = 'evaluation'
           ) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """Of each seed the first of `names`, never going back, and all columns.

  Args:
    group: as for `results.curve`.
    names: columns, means over members.
    source: as for `results.curve`.
  """
  seeds = [results.curves(members, names, source)
           for members in results.by_seed(group)]
  return [(np.maximum.accumulate(np.nan_to_num(seed[names[0]])), seed)
          for seed in seeds]
