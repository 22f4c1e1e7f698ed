"""The tables and the figure of a study of policies.

`spec` says what can be drawn, `results` how members and seeds are averaged.
"""

from collections.abc import Mapping, Sequence
import math
import os
from typing import Any

from rlhf_jax.reports import equal_kl
from rlhf_jax.reports import figures
from rlhf_jax.reports import panels
from rlhf_jax.reports import results
from rlhf_jax.reports import spec
from rlhf_jax.reports import style

Groups = Sequence[Sequence[results.Policy]]
DIGITS = 3
_HEAD = ('run', 'seeds', 'members')  # what names a row of a table


def _joined(policies: Sequence[results.Policy],
            parts: Sequence[Sequence[Mapping]]) -> list[dict]:
  """The rows of each policy with its seed, run and labels; None if absent."""
  labels = dict.fromkeys(name for p in policies for name in p.labels)
  columns = dict.fromkeys(name for rows in parts for row in rows
                          for name in row)
  return [{'seed': policy.seed, 'run': policy.run,
           **results.pick(policy.labels, labels),
           **results.pick(row, columns)}
          for policy, rows in zip(policies, parts) for row in rows]


def _training_rows(policy: results.Policy) -> list[dict]:
  return [dict(zip(policy.training, map(float, values)))
          for values in zip(*policy.training.values())]


def tables(policies: Sequence[results.Policy], figure: Mapping
           ) -> dict[str, list[dict]]:
  """The rows of each CSV file that is about single policies, by its name.

  Args:
    policies: of all runs and seeds.
    figure: checked.

  Returns:
    'results': one row for each evaluation; with the figure of a source
    'training' also 'training', the smoothed curves; with 'win_rates' those of
    each policy.
  """
  rows = {'results': _joined(policies, [p.rows for p in policies])}
  if figure.get('source') == 'training':
    rows['training'] = _joined(
        policies, [_training_rows(p) for p in policies])
  if figure['kind'] == 'win_rates':
    rows['win_rates'] = _joined(policies, [
        results.win_rate_rows(p, policies, figure) for p in policies])
  return rows


def _columns(figure: Mapping) -> list[str]:
  """What is measured of each policy."""
  derived = spec.derived(figure)
  return list(dict.fromkeys(
      name for name in (*figure['columns'], *figure.get('y', ()))
      if name not in derived))


def _names(figure: Mapping, measured: set[str]) -> list[str]:
  """The numbers in a row of the summary, where evaluations have `measured`."""
  columns = _columns(figure)
  names = [*columns, *(name for name in spec.DERIVED
                       if spec.available(name, measured))]
  if figure['baseline']:
    names += [f'{name}_above' for name in columns]
  if figure['kind'] == 'win_rates':
    names += ['win_rate', 'win_rate_sd']
  return names


def summary(groups: Groups, policies: Sequence[results.Policy],
            figure: Mapping) -> list[dict]:
  """A row for each group, over its seeds.

  Args:
    groups: policies that are averaged.
    policies: of all runs and seeds.
    figure: checked and restricted to what is measured.

  Returns:
    'run' (the first, and how many more are averaged), the labels, 'seeds' and
    'members', how many, and of each number of `results.measure` that the
    figure asks for, its mean and '<name>_se'. Without a gold score there is
    no 'peak', 'peak_step' and 'drop'.
  """
  columns = _columns(figure)
  names = _names(figure, results.measured(policies))
  labels = dict.fromkeys(
      name for p in policies for name in p.labels
      if name != 'member' or name in spec.apart(figure))
  rows = []
  for group in groups:
    seeds = results.by_seed(group)
    runs = list(dict.fromkeys(policy.run for policy in group))
    rows.append({
        'run': f'{runs[0]} (+{len(runs) - 1})' if runs[1:] else runs[0],
        **results.pick(group[0].labels, labels),
        'seeds': len(seeds), 'members': max(len(seed) for seed in seeds),
        **results.summary(group, policies, figure, columns, names)})
  return rows


def _present(rows: Sequence[Mapping], names: Sequence[str]) -> list[str]:
  """Those numbers that a summary has."""
  return [name for name in names if f'{name}_se' in rows[0]]


def page(rows: Sequence[Mapping], figure: Mapping) -> str:
  """The part of a summary that fits a page, in Markdown: summary.md.

  Args:
    rows: of `summary`.
    figure: as for `summary`.
  """
  columns = _columns(figure)
  above = [f'{name}_above' for name in dict.fromkeys(
      ('gold', *figure.get('y', ()))) if name in columns]
  extra = ['drop' * ('gold' in columns), *above, 'win_rate', 'win_rate_sd']
  return figures.table(
      rows, dict.fromkeys([*columns, *_present(rows, extra)]), _HEAD,
      digits=DIGITS)


def message(rows: Sequence[Mapping], figure: Mapping) -> str:
  """The few numbers that the command prints, and what their errors are over.

  Args:
    rows: of `summary`.
    figure: as for `summary`.
  """
  columns = _columns(figure)
  above = [f'{name}_above' for name in columns]
  names = [columns[0], *_present(rows, ['drop', *above])][:4]
  names += _present(rows, ['win_rate', 'win_rate_sd'])
  over = 'seeds' if max(row['seeds'] for row in rows) > 1 else 'prompts'
  text = f'At the end of training, +- one standard error over {over}.'
  if figure['baseline']:
    text += (f'\n_above: less {style.name_of(figure["baseline"])} of the '
             'same seed.')
  return f'\n{text}\n\n{figures.table(rows, names, _HEAD, digits=DIGITS)}\n'


def _places(groups: Groups, rows: Sequence[Mapping], figure: Mapping
            ) -> list[dict[str, str]]:
  """The panel and the line of each group."""
  labels = lambda group, field: results.pick(
      group[0].labels, figure.get(field, ()))
  lines = [style.name_of(labels(group, 'line')) for group in groups]
  # A line may run over members at one point and an ensemble at another.
  mixed = {line for line, row in zip(lines, rows) if row['members'] == 1}
  return [{'panel': style.name_of(labels(group, 'panel')),
           'line': style.name_of(labels(group, 'line'),
                                 of_members=line not in mixed)}
          for group, line in zip(groups, lines)]


def _points(groups: Groups, places: Sequence[Mapping], figure: Mapping, *,
            each: bool) -> dict[str, list[dict]]:
  """The rows of all curves with their ends, and the lines of single seeds.

  Those of `everywhere` are in every panel.

  Args:
    groups: policies that are averaged.
    places: the panel and the line of each.
    figure: of 'curves'.
    each: whether a thin line is that of a policy, and not of a seed.
  """
  everywhere = [bool(figure['everywhere']) and results.matches(
      group[0].labels, figure['everywhere']) for group in groups]
  all_panels = dict.fromkeys(
      place['panel'] for place, anywhere in zip(places, everywhere)
      if not anywhere)
  parts = {'rows': [], 'seeds': []}
  names, limit = (figure['x'], *figure['y']), figure['limit_kl']
  at_equal_kl = figure['x'] in equal_kl.AXES
  for group, place, anywhere in zip(groups, places, everywhere):
    ends = []
    if at_equal_kl:
      points = equal_kl.along(group, names, limit_kl=limit)
      ends = [equal_kl.ends(group, names) | {'end': True}]
    else:
      points = results.curve(group, names, source=figure['source'],
                             limit_kl=limit)
    thin = equal_kl.tracks(
        [[policy] for policy in group] if each else results.by_seed(group),
        names, source=figure['source'],
        limit_kl=limit if at_equal_kl else None)
    for panel in all_panels if anywhere else (place['panel'],):
      at = place | {'panel': panel}
      parts['rows'] += [at | dict(zip(points, values))
                        for values in zip(*points.values())]
      parts['rows'] += [at | end for end in ends]
      parts['seeds'] += [line | at for line in thin if len(thin) > 1]
  return parts


def _seeds(rows: Sequence[Mapping]) -> str:
  """Over how many seeds the groups of a figure are means."""
  counts = sorted({row['seeds'] for row in rows})
  if counts == [1]:
    return 'one seed'
  count = '-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))
  return f'mean of {count} seeds'


def _note(rows: Sequence[Mapping], figure: Mapping, *, each: bool = False
          ) -> str:
  """What the errors of a figure are over, and what else it shows."""
  text = _seeds(rows)
  alone = text == 'one seed'
  text += ('; +- one standard error over prompts, where it is known'
           if alone else ' +- one standard error over them')
  if figure['kind'] == 'curves':
    text += ('; thin: single models of single seeds' if each else
             '; thin: single seeds' * (not alone))
    text += ('; points: the end of training; a mean ends where its first seed '
             'does') * (figure['x'] in equal_kl.AXES)
  return text


def _rank(labels: Mapping[str, Any], figure: Mapping) -> tuple:
  """Where a group is drawn: by its method, and then by its numbers."""
  numbers = [labels.get(name) for field in ('panel', 'line')
             for name in figure.get(field, ())]
  return style.place(labels.get('method')), *(
      x if isinstance(x, int | float) else -math.inf for x in numbers)


def drawing(groups: Groups, rows: Sequence[Mapping], figure: Mapping
            ) -> tuple[str, dict[str, Any]]:
  """Which function of `panels` draws a figure, and what it is told.

  Args:
    groups: policies that are averaged.
    rows: of `summary`, one for each group.
    figure: of any kind but 'distributions', as for `summary`.
  """
  # Members of one number have nothing in common over seeds: each is thin.
  each = (figure['kind'] == 'curves' and 'member' in figure['line']
          and len({policy.seed for group in groups for policy in group}) > 1)
  if each:
    figure = {**figure, 'line': [x for x in figure['line'] if x != 'member']}
    groups = results.groups([policy for group in groups for policy in group],
                            spec.apart(figure))
    rows = [{'seeds': len({policy.seed for policy in group}),
             'members': len({policy.run for policy in group})}
            for group in groups]
  places = _places(groups, rows, figure)
  order = sorted(range(len(groups)), key=lambda i: _rank(
      groups[i][0].labels, figure))
  groups, rows, places = ([x[i] for i in order]
                          for x in (groups, rows, places))
  placed = [{**row, **place} for row, place in zip(rows, places)]
  note = {'note': _note(rows, figure, each=each)}
  if figure['kind'] == 'curves':
    return 'curves', dict(
        _points(groups, places, figure, each=each), x=figure['x'],
        y=figure['y'], x_name=figure['x_name'], **note)
  if figure['kind'] == 'table':
    return 'bars', dict(
        rows=[row | {'x': _title(group[0], groups), 'colour': style.colour_of(
            group[0].labels.get('method'))}
              for group, row in zip(groups, placed)],
        y=figure['columns'][:1], **note)
  if figure['kind'] == 'win_rates':
    return 'bars', dict(
        rows=[row | {'x': row['line'], 'line': '',
                     'win_rate_se': row['win_rate_sd']}
              for group, row in zip(groups, placed)
              if not results.matches(group[0].labels, figure['against'])],
        y=('win_rate',),
        suffix=f' against {style.name_of(figure["against"])}s',
        note=f'{_seeds(rows)}; errors: standard deviation over those that it '
        'is against')
  name, arguments = _final(groups, placed, figure)
  return name, arguments | note


def _title(policy: results.Policy, groups: Groups) -> str:
  """What a table calls a run: its method, and what tells it from others."""
  alike = [group[0].labels for group in groups if group[0] is not policy]
  names = sorted(policy.labels, key=lambda name: name != 'method')
  shown = {}
  for name in names:
    rest = [one for one in alike if one.get(name) == policy.labels[name]]
    if name == 'method' or len(rest) < len(alike):
      shown[name], alike = policy.labels[name], rest
  return policy.run if alike or not shown else style.name_of(shown)


def _final(groups: Groups, rows: Sequence[dict], figure: Mapping
           ) -> tuple[str, dict[str, Any]]:
  """Lines over a label where it is a number, else bars."""
  values = [group[0].labels.get(figure['x']) for group in groups]
  if all(isinstance(x, int | float | None) and not isinstance(x, bool)
         for x in values):
    return 'points', dict(
        rows=[row | {'x': x} for row, x in zip(rows, values)],
        x=style.label_name(figure['x']), y=figure['y'])
  return 'bars', dict(
      rows=[row | {'x': style.name_of({figure['x']: x})}
            for row, x in zip(rows, values)], y=figure['y'])


def draw(groups: Groups, rows: Sequence[Mapping], figure: Mapping,
         path: str | os.PathLike, *, title: str):
  """Draws what `drawing` says.

  Args:
    groups: see there.
    rows: likewise.
    figure: likewise.
    path: of the PNG, written whole or not at all.
    title: above the panels.
  """
  name, arguments = drawing(groups, rows, figure)
  getattr(panels, name)(path=path, title=title, **arguments)
