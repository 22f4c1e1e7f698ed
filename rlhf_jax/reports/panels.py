"""Figures of policies: panels of curves, of points and bars."""

from collections.abc import Mapping, Sequence
import os
import textwrap
from typing import Any

import numpy as np

from rlhf_jax.reports import style
from rlhf_jax.storage import files
from rlhf_jax.storage.files import Row


def unique(rows: Sequence[Row], key: str) -> list:
  """The values that rows have, in their order."""
  return list(dict.fromkeys(row[key] for row in rows))


def canvas(num_rows: int, panels: Sequence[str], *, height: float = 3.3,
            **shared):
  """A figure and its axes [num_rows, panels], each `height` inches high.

  A single row is folded after three panels; what its axes share, all share.
  """
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt
  shared, columns = {'sharey': 'row'} | shared, len(panels)
  if num_rows == 1:
    shared, columns = dict.fromkeys(shared, True), min(len(panels), 3)
  lines = num_rows * -(-len(panels) // columns)
  figure, axes = plt.subplots(
      lines, columns, squeeze=False,
      figsize=(1.5 + (4.6 if columns < 3 else 3.6) * columns,
               1.1 + height * lines), **shared)
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
  note = textwrap.fill(note, int(width / 0.062))
  foot = 0.1 + 0.13 * len(note.splitlines()) if note else 0.0  # inches
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


def thin_lines(axis, rows: Sequence[Mapping[str, Any]], x: str, y: str,
               colours):
  """Those of single seeds: rows with 'line' and columns f[P]."""
  for row in rows:
    axis.plot(row[x], row[y], color=colours[row['line']], linewidth=0.6,
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
    _mark(axis, [row for row in part if 'end' in row], x, y, colour,
          filled=not dashed)
    part = [row for row in part if 'end' not in row]
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


def _mark(axis, rows: Sequence[Row], x: str, y: str, colour, *, filled: bool):
  """Points with the errors of both columns."""
  for row in rows:
    axis.errorbar(
        row[x], row[y], np.nan_to_num(row[f'{y}_se']),
        np.nan_to_num(row[f'{x}_se']), color=colour, marker='o', markersize=4,
        markerfacecolor=colour if filled else 'white', elinewidth=0.8)


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
      `<y>` and `<y>_se`; NaN is left out. One with 'end' is a point beside
      its line, with `<x>_se`.
    path: of the PNG, written whole or not at all.
    title: above the panels.
    x: column of the common axis.
    y: columns.
    x_name: what that axis is called, where not as ever.
    seeds: lines of single seeds, drawn thin and not for a proxy that is
      dashed, each with 'panel', 'line' and columns f[P].
    note: see `save`.
  """
  twin = {'gold', 'proxy'} <= set(y)
  tracks = [name for name in y if not (twin and name == 'proxy')]
  panels, apart = unique(rows, 'panel'), style.colours_apart(rows)
  colours = apart or style.colours(unique(rows, 'line'))
  figure, axes = canvas(len(tracks), panels, sharex=True)
  handles, lefts, rights = {}, [], []
  for line, column in zip(axes, tracks):
    twinned = twin and column == 'gold'
    for axis, panel in zip(line, panels):
      part, thin = ([row for row in some if row['panel'] == panel]
                    for some in (rows, seeds))
      thin_lines(axis, thin, x, column, colours)
      lines = _track(axis, part, x, column, colours, dashed=False)
      if apart is None:
        handles |= lines
      elif column == tracks[-1]:
        axis.legend(lines.values(), lines.keys(), fontsize=8, ncol=2,
                    loc='upper center', bbox_to_anchor=(0.5, -0.17),
                    frameon=False)
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
      mean, error = part[None][y], np.nan_to_num(part[None][f'{y}_se'])
      handles[name] = axis.axhline(mean, color=colour, linestyle=':',
                                   linewidth=1.8)
      axis.axhspan(mean - error, mean + error, color=colour, alpha=0.12,
                   linewidth=0)
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
  panels = unique(rows, 'panel')
  colours = style.colours(unique(rows, 'line'))
  at = sorted(value for value in unique(rows, 'x') if value is not None)
  figure, axes = canvas(len(y), panels)
  handles = {}
  for line, column in zip(axes, y):
    for axis, panel in zip(line, panels):
      part = [row for row in rows if row['panel'] == panel]
      handles |= _spaced(axis, part, at, column, colours)
      axis.set_xlabel(x)
      if axis.get_subplotspec().is_first_col():
        axis.set_ylabel(style.axis_name(column))
  save(figure, handles, colours, path, title, note)


def _beside(rows: Sequence[Row], at: Sequence[str], lines: Sequence[str]
            ) -> dict[tuple[str, str], float]:
  """Where the bar of a line at a text is, around the place of that text."""
  places = {}
  for i, x in enumerate(at):
    there = [line for line in lines if any(
        (row['line'], row['x']) == (line, x) for row in rows)]
    for k, line in enumerate(there):
      places[line, x] = i + 0.8 / len(lines) * (k - (len(there) - 1) / 2)
  return places


def bars(rows: Sequence[Row], path: str | os.PathLike, *, title: str,
         y: Sequence[str], suffix: str = '', note: str = ''):
  """Draws bars with errors, a group of lines for each text 'x'.

  They lie, so that long names stand beside them. Shares have an axis from 0 to
  1, with a line at chance.

  Args:
    rows: each with 'panel', 'line', 'x' (text), and for each column `<y>` and
      `<y>_se`; NaN is left out. A 'colour' that is not None is that of its
      bar, where there is one line.
    path: of the PNG, written whole or not at all.
    title: above the panels.
    y: columns, a row of panels each.
    suffix: added to the names of the columns.
    note: see `save`.
  """
  panels, at = unique(rows, 'panel'), unique(rows, 'x')
  colours = style.colours(unique(rows, 'line'))
  own = lambda row: row.get('colour') or style.METHODS.get(row['x'])
  styled = len(colours) == 1 and all(map(own, rows))
  width = 0.8 / len(colours)
  figure, axes = canvas(
      len(y), panels, sharex='row', sharey=True,
      height=max(2.0, 0.8 + 0.3 * len(at) * max(1.0, 0.6 * len(colours))))
  handles = {}
  for line, column in zip(axes, y):
    for axis, panel in zip(line, panels):
      places = _beside(
          [row for row in rows if row['panel'] == panel], at, [*colours])
      for name, colour in colours.items():
        part = [row for row in rows
                if (row['panel'], row['line']) == (panel, name)]
        if not part:
          continue
        where, mean, error = np.array(
            [(places[name, r['x']], r[column], r[f'{column}_se'])
             for r in part], np.float64).T
        handles[name] = axis.barh(
            where, mean, width, xerr=np.nan_to_num(error), capsize=2.5,
            error_kw={'elinewidth': 1.0},
            color=[*map(own, part)] if styled else colour)
      axis.axvline(0.0, color='0.2', linewidth=0.8)
      if column in style.CHANCE:
        axis.axvline(style.CHANCE[column], color='0.2', linewidth=1.0,
                     linestyle=':')
        axis.set_xlim(0, 1)
      axis.set_yticks(range(len(at)), at, fontsize=9)
      axis.set_xlabel(style.axis_name(column) + suffix)
      axis.tick_params(labelbottom=True)
  axes[0, 0].set_ylim(len(at) - 0.5, -0.5)  # the first on top
  save(figure, handles, colours, path, title, note)
