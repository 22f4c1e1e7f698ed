"""Figures of how rewards are distributed, a violin for each log or policy."""

from collections.abc import Mapping, Sequence
import os
from typing import Any

import numpy as np

from rlhf_jax.reports import panels as panels_lib
from rlhf_jax.reports import style


def draw(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *,
         title: str, x_name: str, note: str = ''):
  """Draws distributions, one above the other, a panel for each component.

  In the manner of Baheti et al. 2024, Fig. 5. A violin reaches from the least
  value to the largest; the bar in it holds the middle half, the stroke is the
  median and the point the mean.

  Args:
    rows: each with 'panel', 'x' (text), 'values' (f[N], finite, N >= 1) and
      'logged', whether they were given and not sampled: those are grey.
    path: of the PNG, written whole or not at all.
    title: above the panels.
    x_name: what the values are.
    note: see `panels.save`.
  """
  panels, at = panels_lib.unique(rows, 'panel'), panels_lib.unique(rows, 'x')
  grey = {row['x']: '0.6' for row in rows if row['logged']}
  colours = style.colours([x for x in at if x not in grey]) | grey
  figure, axes = panels_lib.canvas(
      1, panels, height=max(2.0, 0.8 + 0.42 * len(at)))
  for axis, panel in zip(axes[0], panels):
    for row in rows:
      if row['panel'] == panel:
        _violin(axis, at.index(row['x']), row['values'], colours[row['x']])
    axis.set_yticks(range(len(at)), at, fontsize=9)
    axis.set_xlabel(x_name)
    axis.tick_params(labelbottom=True)
  axes[0, 0].set_ylim(len(at) - 0.4, -0.6)  # the first on top
  panels_lib.save(figure, {}, (), path, title, note)


def _violin(axis, where: float, values: np.ndarray, colour):
  """One distribution, lying."""
  if np.ptp(values) > 1e-6:  # a single value has no density
    body, = axis.violinplot(
        [values], [where], orientation='horizontal', widths=0.85,
        showextrema=False)['bodies']
    body.set(facecolor=colour, alpha=0.45, linewidth=0)
  low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
  axis.plot([low, high], [where, where], color=colour, linewidth=4,
            solid_capstyle='butt')
  axis.plot(median, where, color='0.1', marker='|', markersize=9)
  axis.plot(np.mean(values), where, color='0.1', marker='o', markersize=3)
