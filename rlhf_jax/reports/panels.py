"""Figures of policies: panels of curves, of points, bars and violins."""

from collections.abc import Mapping, Sequence
import os
import textwrap
from typing import Any

import numpy as np

from rlhf_jax.reports import style
from rlhf_jax.storage import files
from rlhf_jax.storage.files import Row


def _unique(rows: Sequence[Row], key: str) -> list:
  return list(dict.fromkeys(row[key] for row in rows))


def _canvas(num_rows: int, panels: Sequence[str], *, height: float = 3.3,
            **shared):
  """A figure and its axes [num_rows, panels], each `height` inches high.

  A single row is folded after four panels; what its axes share, all share.
  """
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt
  shared, columns = {'sharey': 'row'} | shared, len(panels)
  if num_rows == 1:
    shared, columns = dict.fromkeys(shared, True), min(len(panels), 4)
  lines = num_rows * -(-len(panels) // columns)
  figure, axes = plt.subplots(
      lines, columns, squeeze=False,
      figsize=(1.5 + 4.6 * columns, 1.1 + height * lines), **shared)
  count = num_rows * len(panels)
  for axis in axes.flat[count:]:
    axis.remove()
  axes = axes.flatten()[:count].reshape(num_rows, len(panels))
  for axis in axes.flat:
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[['top', 'right']].set_visible(False)
  for axis, panel in zip(axes[0], panels):
    axis.set_title(panel, fontsize=10)
  return figure, axes


def save(figure, handles: Mapping[str, Any], order: Sequence[str],
         path: str | os.PathLike, title: str, note: str = ''):
  """Puts the title above, one legend and a note below, and writes the PNG.

  Args:
    figure: of matplotlib.
    handles: of the legend, by name.
    order: of the names; what is not among them is left out.
    path: of the PNG, written whole or not at all.
    title: above all.
    note: what error bars, bands and thin lines are.
  """
  from matplotlib import pyplot as plt
  width, height = figure.get_size_inches()
  handles = {name: handles[name] for name in order if name and name in handles}
  foot = 0.22 if note else 0.0  # inches
  bottom = foot / height
  if handles:
    widest = 0.6 + 0.068 * max(len(name) for name in handles)  # inches
    ncol = int(np.clip(width / widest, 1, min(len(handles), 4)))
    legend = 0.1 + 0.21 * -(-len(handles) // ncol)
    total = height + legend + foot
    figure.set_size_inches(width, total)
    bottom = (legend + foot) / total
    figure.legend(handles.values(), handles.keys(), loc='lower center',
                  ncol=ncol, frameon=False, fontsize=9,
                  bbox_to_anchor=(0.5, foot / total))
  if note:
    figure.text(0.5, 0.06 / figure.get_size_inches()[1], note, fontsize=8,
                color='0.35', ha='center', va='bottom')
  figure.suptitle(textwrap.fill(title, int(width / 0.09)), fontsize=11)
  figure.tight_layout(rect=(0, bottom, 1, 1))
  with files.replacing(path) as stream:
    figure.savefig(stream, dpi=150, format='png')
  plt.close(figure)


def thin_lines(axis, rows: Sequence[Mapping[str, Any]], y: str, colours):
  """Those of single seeds: rows with 'line', 'x' f[P] and columns f[P]."""
  for row in rows:
    axis.plot(row['x'], row[y], color=colours[row['line']], linewidth=0.6,
              alpha=0.4)


def align(lefts: Sequence[Any], rights: Sequence[Any]):
  """Gives the axes of each side one range, and both sides their 0 in one place.

  Args:
    lefts: axes.
    rights: their twins.
  """
  ends = []
  for side in (lefts, rights):
    lows, highs = zip(*(axis.get_ylim() for axis in side))
    ends.append((min(*lows, 0.0), max(*highs, 0.0) or 1.0))
  share = max(-low / high for low, high in ends)
  for side, (_, high) in zip((lefts, rights), ends):
    for axis in side:
      axis.set_ylim(-share * high, high)


def _track(axis, rows: Sequence[Row], x: str, y: str, colours, *,
           dashed: bool) -> dict[str, Any]:
  """One column in one panel; returns the lines by name."""
  handles = {}
  for name, colour in colours.items():
    part = [row for row in rows if row['line'] == name]
    if not part:
      continue
    at, mean, error = np.array(
        [[row[x], row[y], row[f'{y}_se']] for row in part], np.float64).T
    handles[name], = axis.plot(
        at, mean, color=colour, linewidth=1.0 if dashed else 1.8,
        linestyle='--' if dashed else '-', marker='o' if len(at) < 2 else '',
        markersize=4)
    axis.fill_between(at, mean - np.nan_to_num(error),
                      mean + np.nan_to_num(error), color=colour, linewidth=0,
                      alpha=0.08 if dashed else 0.15)
  return handles


def curves(rows: Sequence[Row], path: str | os.PathLike, *, title: str,
           x: str, y: Sequence[str], x_name: str | None = None,
           seeds: Sequence[Mapping[str, Any]] = (), note: str = ''):
  """Draws columns over `x`: a line for each name, a panel for each condition.

  Where both are asked for, gold is solid on the left axis and proxy dashed on
  the right, in the manner of Coste et al. 2024, Fig. 4, with their zeros at one
  height; any other column has a row of panels of its own. Bands are one
  standard error. Many lines, few of them in a panel, get a legend in each.

  Args:
    rows: points in order, each with 'panel', 'line', `x`, and for each column
      `<y>` and `<y>_se`; NaN is left out.
    path: of the PNG, written whole or not at all.
    title: above the panels.
    x: column of the common axis.
    y: columns.
    x_name: what that axis is called, where not as ever.
    seeds: lines of single seeds, drawn thin and not for a proxy that is
      dashed, each with 'panel', 'line', 'x' f[P] and columns f[P].
    note: see `save`.
  """
  twin = {'gold', 'proxy'} <= set(y)
  tracks = [name for name in y if not (twin and name == 'proxy')]
  panels, apart = _unique(rows, 'panel'), style.colours_apart(rows)
  colours = apart or style.colours(_unique(rows, 'line'))
  figure, axes = _canvas(len(tracks), panels, sharex=True)
  handles, lefts, rights = {}, [], []
  for line, column in zip(axes, tracks):
    twinned = twin and column == 'gold'
    for axis, panel in zip(line, panels):
      part = [row for row in rows if row['panel'] == panel]
      thin_lines(axis, [row for row in seeds if row['panel'] == panel],
                 column, colours)
      drawn = _track(axis, part, x, column, colours, dashed=False)
      if apart is None:
        handles |= drawn
      elif column == tracks[0]:
        axis.legend(drawn.values(), drawn.keys(), fontsize=8, framealpha=0.6)
      if column == tracks[-1]:
        axis.set_xlabel(x_name or style.axis_name(x))
        axis.tick_params(labelbottom=True)  # a folded row has two last ones
      if axis.get_subplotspec().is_first_col():
        axis.set_ylabel(style.axis_name(column).replace(
            ' score', ' score (solid)' if twinned else ' score'))
      if not twinned:
        continue
      right = axis.twinx()
      right.spines['top'].set_visible(False)
      _track(right, part, x, 'proxy', colours, dashed=True)
      lefts.append(axis)
      rights.append(right)
      if axis.get_subplotspec().is_last_col() or panel == panels[-1]:
        right.set_ylabel('proxy score (dashed)')
  if rights:
    align(lefts, rights)
  save(figure, handles, colours, path, title, note)


def _spaced(axis, rows: Sequence[Row], at: Sequence[float], y: str,
            colours) -> dict[str, Any]:
  """Lines with error bars over numbers, side by side; by name."""
  handles = {}
  for i, (name, colour) in enumerate(colours.items()):
    part = {row['x']: row for row in rows if row['line'] == name}
    aside = 0.05 * (i - (len(colours) - 1) / 2)
    if None in part:
      handles[name] = axis.axhline(part[None][y], color=colour, linestyle=':',
                                   linewidth=1.8)
    there = [(at.index(x) + aside, row[y], row[f'{y}_se'])
             for x, row in sorted(part.items()) if x is not None]
    if there:
      where, mean, error = np.array(there, np.float64).T
      handles[name] = axis.errorbar(
          where, mean, np.nan_to_num(error), color=colour, marker='o',
          markersize=4, linewidth=1.6, elinewidth=1.0, capsize=2.5)
  axis.set_xticks(range(len(at)), [f'{value:g}' for value in at])
  return handles


def points(rows: Sequence[Row], path: str | os.PathLike, *, title: str,
           x: str, y: Sequence[str], note: str = ''):
  """Draws lines with error bars over numbers that are evenly spaced.

  Args:
    rows: each with 'panel', 'line', 'x' (a number, or None for a line that
      is dotted across), and for each column `<y>` and `<y>_se`; NaN is left
      out.
    path: of the PNG, written whole or not at all.
    title: above the panels.
    x: what the axis is called.
    y: columns, a row of panels each.
    note: see `save`.
  """
  panels = _unique(rows, 'panel')
  colours = style.colours(_unique(rows, 'line'))
  at = sorted(value for value in _unique(rows, 'x') if value is not None)
  figure, axes = _canvas(len(y), panels)
  handles = {}
  for line, column in zip(axes, y):
    for axis, panel in zip(line, panels):
      part = [row for row in rows if row['panel'] == panel]
      handles |= _spaced(axis, part, at, column, colours)
      axis.set_xlabel(x)
      if axis.get_subplotspec().is_first_col():
        axis.set_ylabel(style.axis_name(column))
  save(figure, handles, colours, path, title, note)


def bars(rows: Sequence[Row], path: str | os.PathLike, *, title: str,
         y: Sequence[str], chance: float | None = None, suffix: str = '',
         note: str = ''):
  """Draws bars with errors, a group of lines for each text 'x'.

  They lie, so that long names stand beside them.

  Args:
    rows: each with 'panel', 'line', 'x' (text), and for each column `<y>` and
      `<y>_se`; NaN is left out. A 'colour' that is not None is that of its
      bar, where there is one line.
    path: of the PNG, written whole or not at all.
    title: above the panels.
    y: columns, a row of panels each.
    chance: of columns that are shares, which have a line there and an axis
      from 0 to 1.
    suffix: added to the names of the columns.
    note: see `save`.
  """
  panels, at = _unique(rows, 'panel'), _unique(rows, 'x')
  colours = style.colours(_unique(rows, 'line'))
  own = lambda row: row.get('colour') or style.METHODS.get(row['x'])
  styled = len(colours) == 1 and all(map(own, rows))
  width = 0.8 / len(colours)
  figure, axes = _canvas(
      len(y), panels, sharex='row', sharey=True,
      height=max(2.0, 0.8 + 0.3 * len(at) * max(1.0, 0.6 * len(colours))))
  handles = {}
  for line, column in zip(axes, y):
    for axis, panel in zip(line, panels):
      for i, (name, colour) in enumerate(colours.items()):
        part = [row for row in rows
                if (row['panel'], row['line']) == (panel, name)]
        if not part:
          continue
        where, mean, error = np.array(
            [(at.index(r['x']), r[column], r[f'{column}_se']) for r in part],
            np.float64).T
        handles[name] = axis.barh(
            where + width * (i - (len(colours) - 1) / 2), mean, width,
            xerr=np.nan_to_num(error), capsize=2.5,
            error_kw={'elinewidth': 1.0},
            color=[*map(own, part)] if styled else colour)
      axis.axvline(0.0, color='0.2', linewidth=0.8)
      if chance is not None:
        axis.axvline(chance, color='0.2', linewidth=1.0, linestyle=':')
        axis.set_xlim(0, 1)
      axis.set_yticks(range(len(at)), at, fontsize=9)
      axis.set_xlabel(style.axis_name(column) + suffix)
      axis.tick_params(labelbottom=True)
  axes[0, 0].set_ylim(len(at) - 0.5, -0.5)  # the first on top
  save(figure, handles, colours, path, title, note)


def violins(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike, *,
            title: str, x_name: str):
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
  """
  panels, at = _unique(rows, 'panel'), _unique(rows, 'x')
  grey = {row['x']: '0.6' for row in rows if row['logged']}
  colours = style.colours([x for x in at if x not in grey]) | grey
  figure, axes = _canvas(1, panels, height=max(2.0, 0.8 + 0.42 * len(at)))
  for axis, panel in zip(axes[0], panels):
    for row in rows:
      if row['panel'] == panel:
        _violin(axis, at.index(row['x']), row['values'], colours[row['x']])
    axis.set_yticks(range(len(at)), at, fontsize=9)
    axis.set_xlabel(x_name)
    axis.tick_params(labelbottom=True)
  axes[0, 0].set_ylim(len(at) - 0.4, -0.6)  # the first on top
  save(figure, {}, (), path, title)


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
