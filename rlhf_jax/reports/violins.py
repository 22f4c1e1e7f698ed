"""Figures of how rewards are distributed, a violin for each log or policy.

What has few values has no density: there are discs in place of a violin.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import numpy as np

from rlhf_jax.reports import panels as panels_lib
from rlhf_jax.reports import style

FEW = 12  # values that are drawn one by one


def shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
  """Each value and its share; None where there are more than `FEW`.

  Args:
    values: f[N], N >= 1.
  """
  at, counts = np.unique(values, return_counts=True)
  return (at, counts / len(values)) if len(at) <= FEW else None


def draw(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *,
         title: str, x_name: str, note: str = ''):
  """Draws distributions, one above the other, a panel for each component.

  In the manner of Baheti et al. 2024, Fig. 5. A violin reaches from the least
  value to the largest; the bar in it holds the middle half, the stroke is the
  median and the point the mean. Where a panel has few values, discs have the
  area of their shares; where the values are not known, but some quantiles, a
  line reaches from the first to the last of these.

  Args:
    rows: each with 'panel', 'x' (text), 'logged', whether they were given and
      not sampled: those are grey, 'mean', 'quantiles' (f[5], the middle three
      quartiles), 'values' (f[N], finite, N >= 1, or None) and 'responses',
      how many it is of.
    path: of the PNG, written whole or not at all.
    title: above the panels.
    x_name: what the values are.
    note: see `panels.save`; how it is drawn is added.
  """
  panels, at = panels_lib.unique(rows, 'panel'), panels_lib.unique(rows, 'x')
  grey = {row['x']: '0.6' for row in rows if row['logged']}
  colours = style.colours([x for x in at if x not in grey]) | grey
  figure, axes = panels_lib.canvas(
      1, panels, height=max(2.0, 0.8 + 0.42 * len(at)))
  notes = dict.fromkeys(text for text in (note, 'point: mean') if text)
  for axis, panel in zip(axes[0], panels):
    part = [row for row in rows if row['panel'] == panel]
    known = all(row['values'] is not None for row in part)
    few = known and shares(np.concatenate([row['values'] for row in part]))
    for row in part:
      where, colour = at.index(row['x']), colours[row['x']]
      if few:
        _discs(axis, where, row['values'], colour)
      else:
        _spread(axis, where, row, colour)
      axis.plot(row['mean'], where, color='0.1', marker='o', markersize=3)
    notes |= dict.fromkeys(
        ['area of a disc: share of a value'] if few else ['bar: quartiles',
        'stroke: median', *['line: 5 to 95 %'] * (not known)])
    axis.set_yticks(range(len(at)), at, fontsize=9)
    axis.set_xlabel(x_name)
    axis.tick_params(labelbottom=True)
  axes[0, 0].set_ylim(len(at) - 0.4, -0.6)  # the first on top
  panels_lib.save(figure, {}, (), path, title, '; '.join(notes))


def _discs(axis, where: float, values: np.ndarray, colour):
  """One distribution of few values."""
  at, share = shares(values)
  axis.scatter(at, np.full(len(at), where), 320 * share, color=colour,
               alpha=0.6, linewidths=0)


def _spread(axis, where: float, row: Mapping[str, Any], colour):
  """One distribution, lying."""
  first, low, median, high, last = row['quantiles']
  if row['values'] is None:
    axis.plot([first, last], [where, where], color=colour, linewidth=1)
  elif np.ptp(row['values']) > 1e-6:  # a single value has no density
    body, = axis.violinplot(
        [row['values']], [where], orientation='horizontal', widths=0.85,
        showextrema=False, bw_method=row['responses']**-.2)['bodies']  # Scott's
    body.set(facecolor=colour, alpha=0.45, linewidth=0)
  axis.plot([low, high], [where, where], color=colour, linewidth=4,
            solid_capstyle='butt')
  axis.plot(median, where, color='0.1', marker='|', markersize=9)
