"""Curves of policies at equal KL, those of single seeds, and where they end.

The papers compare policies at a KL, not after a number of steps: Coste et al.
2024, https://arxiv.org/abs/2310.02743, Fig. 4.
"""

from collections.abc import Sequence

import numpy as np

from rlhf_jax.evaluation import statistics
from rlhf_jax.reports import figures
from rlhf_jax.reports import results

AXES = ('sqrt_kl', 'kl_k1')  # along which seeds can be compared
_GRID = 41  # points of a mean


def along(group: Sequence[results.Policy], names: Sequence[str], *,
          limit_kl: float | None = None) -> dict[str, np.ndarray]:
  """As `results.curve`, at equal KL in place of equal steps.

  The mean ends where the first seed does, past which it would be one of other
  seeds; `ends` says where they are after training.

  Args:
    group: as for `results.curve`.
    names: columns, the first of them one of `AXES`.
    limit_kl: nats, where the mean ends at the latest; None: nowhere.
  """
  x, *rest = names
  seeds = tracks(results.by_seed(group), names)
  start = max(seed[x][0] for seed in seeds)
  end = min(seed[x][-1] for seed in seeds)
  if limit_kl is not None:
    end = min(end, _limit(x, limit_kl))
  grid = np.linspace(start, max(start, end), _GRID if end > start else 1)
  points = {x: grid, f'{x}_se': np.full_like(grid, np.nan)}
  for name in rest:
    stack = np.stack([np.interp(grid, seed[x], seed[name]) for seed in seeds])
    points[name] = stack.mean(axis=0)
    points[f'{name}_se'] = statistics.standard_error(stack)
  return points


def tracks(parts: Sequence[Sequence[results.Policy]], names: Sequence[str], *,
           source: str = 'evaluation', limit_kl: float | None = None
           ) -> list[dict[str, np.ndarray]]:
  """Columns of each part where the first of `names` is beyond all before.

  A KL may go back. What is measured then is no policy of the furthest KL, and
  is left out.

  Args:
    parts: policies that are averaged, such as the members of a seed.
    names: columns, means over the policies of a part.
    source: as for `results.curve`.
    limit_kl: nats, beyond which points are left out, but for the first.
  """
  x, lines = names[0], []
  for members in parts:
    columns = results.curves(members, names, source)
    at = columns[x] = np.nan_to_num(columns[x])
    kept = statistics.furthest(at)
    if limit_kl is not None:
      kept[1:] &= at[1:] <= _limit(x, limit_kl)
    lines.append({name: columns[name][kept] for name in names})
  return lines


def _limit(x: str, limit_kl: float) -> float:
  return limit_kl**.5 if x == 'sqrt_kl' else limit_kl


def ends(group: Sequence[results.Policy], names: Sequence[str]
         ) -> dict[str, float]:
  """Where training ends: `<name>` and `<name>_se`, over the seeds.

  Args:
    group: as for `results.curve`.
    names: columns.
  """
  last = [{name: column[-1] for name, column in results.curves(
      members, names).items()} for members in results.by_seed(group)]
  point = {}
  for name in names:
    point[name], point[f'{name}_se'] = figures.over_seeds(
        [(seed[name], seed[f'{name}_se']) for seed in last])
  return point
