"""Numbers that studies report, with their standard errors."""

from collections.abc import Sequence

import numpy as np


def standard_error(x: np.ndarray, axis: int = 0) -> np.ndarray:
  """Standard error of the mean along `axis` (ddof 1); NaN for one value."""
  x = np.asarray(x, np.float64)
  if x.shape[axis] < 2:
    return np.full(np.delete(x.shape, axis), np.nan)[()]
  return x.std(axis=axis, ddof=1) / np.sqrt(x.shape[axis])


def pair_accuracy(scores: np.ndarray) -> np.ndarray:
  """Share of pairs [..., N, 2] whose first score is higher; a tie is wrong."""
  return (scores[..., 0] > scores[..., 1]).mean(axis=-1)


def with_single(curves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adds 'single', prompt by prompt the mean of 'single_0', 'single_1', ...

  Coste et al. 2024 plot a single reward model as the mean over the members.
  """
  members = [v for k, v in curves.items() if k.startswith('single_')]
  return {'single': np.mean(members, axis=0), **curves}


def best_of_n_summary(
    ns: Sequence[int], gold: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
  """Peak, final value and drop of best-of-n curves, over prompts.

  Args:
    ns: the grid of n, ascending.
    gold: for each method the unbiased estimate f32[B, len(ns)].

  Returns:
    For each method, and for 'single' (the mean of the members): peak_n (where
    the mean curve is highest), peak, final, drop = peak - final, above_single
    = final - final of 'single', and the standard errors over prompts
    '<name>_se'. The drop is >= 0 by definition; its error takes the peak's
    place as given.
  """
  rows, gold = {}, with_single(gold)
  for name, curve in gold.items():
    curve = np.asarray(curve, np.float64)
    top = int(curve.mean(axis=0).argmax())
    parts = {'peak': curve[:, top], 'final': curve[:, -1],
             'drop': curve[:, top] - curve[:, -1],
             'above_single': curve[:, -1] - gold['single'][:, -1]}
    rows[name] = {'peak_n': int(ns[top])}
    for what, values in parts.items():
      rows[name][what] = float(values.mean())
      rows[name][f'{what}_se'] = float(standard_error(values))
  return rows
