"""The figure, the table and every number in them, of a study of policies.

`policy_figure` says what can be drawn, `policy_results` how members and seeds
are averaged.
"""

from collections.abc import Mapping, Sequence

from rlhf_jax.reports import distributions
from rlhf_jax.reports import figures
from rlhf_jax.reports import panels
from rlhf_jax.reports import results
from rlhf_jax.reports import spec
from rlhf_jax.storage import files

DIGITS = 3
check = spec.check  # what a study calls before it trains


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


def _name(group: Sequence[results.Policy]) -> str:
  """The run of a group, or the first and how many more are averaged."""
  runs = list(dict.fromkeys(policy.run for policy in group))
  return runs[0] if len(runs) == 1 else f'{runs[0]} (+{len(runs) - 1})'


def _columns(figure: Mapping) -> list[str]:
  """What is measured of each policy."""
  derived = spec.derived(figure)
  return list(dict.fromkeys(
      name for name in (*figure['columns'], *figure.get('y', ()))
      if name not in derived))


def _names(figure: Mapping, columns: Sequence[str]) -> list[str]:
  """What a row of the summary holds."""
  names = [*columns, *spec.DERIVED]
  if figure['baseline']:
    names += [f'{name}_above' for name in columns]
  if figure['kind'] == 'win_rates':
    names += ['win_rate', 'win_rate_sd']
  return names


def _shown(figure: Mapping) -> list[str]:
  """The part of `_names` that fits a page: summary.md."""
  columns = _columns(figure)
  above = [f'{name}_above' for name in dict.fromkeys(
      ('gold', *figure.get('y', ()))) if name in columns]
  known = _names(figure, columns)
  return [*columns] + [name for name in (
      'drop' * ('gold' in columns), *above, 'win_rate', 'win_rate_sd')
                       if name in known]


def _summary(groups: Sequence[Sequence[results.Policy]],
             policies: Sequence[results.Policy], figure: Mapping
             ) -> list[dict]:
  """A row for each group, over its seeds."""
  columns = _columns(figure)
  names = dict.fromkeys(
      name for p in policies for name in p.labels
      if name != 'member' or name in spec.apart(figure))
  rows = []
  for group in groups:
    seeds = results.by_seed(group)
    rows.append({
        'run': _name(group), **results.pick(group[0].labels, names),
        'seeds': len(seeds), 'members': max(len(seed) for seed in seeds),
        **results.summary(group, policies, figure, columns,
                          _names(figure, columns))})
  return rows


def _table(figure: Mapping, summary: Sequence[Mapping],
           names: Sequence[str]) -> str:
  head = ('run', 'seeds', 'members')
  return figures.table(summary, names, head, digits=DIGITS)


def _places(groups: Sequence[Sequence[results.Policy]],
            summary: Sequence[Mapping], figure: Mapping) -> list[dict]:
  """The panel and the line of each group."""
  name = lambda group, field: panels.name_of(
      results.pick(group[0].labels, figure.get(field, ())))
  lines = [name(group, 'line') for group in groups]
  # A line may run over members at one point and an ensemble at another.
  mixed = {line for line, row in zip(lines, summary) if row['members'] == 1}
  return [{'panel': name(group, 'panel'), 'line': panels.name_of(
      results.pick(group[0].labels, figure.get('line', ())),
      of_members=line not in mixed)} for group, line in zip(groups, lines)]


def _draw(context, groups: Sequence[Sequence[results.Policy]],
          summary: Sequence[Mapping], figure: Mapping, title: str):
  """Writes figure.png."""
  kind, rows = figure['kind'], []
  places = _places(groups, summary, figure)
  everywhere = lambda group: figure.get('everywhere') and results.matches(
      group[0].labels, figure['everywhere'])
  all_panels = dict.fromkeys(
      place['panel'] for group, place in zip(groups, places)
      if not everywhere(group))
  for group, row, place in zip(groups, summary, places):
    labels = group[0].labels
    if kind == 'curves':
      points = results.curve(
          group, (figure['x'], *figure['y']), source=figure['source'],
          limit_kl=figure['limit_kl'])
      rows += [place | {'panel': panel} | dict(zip(points, values))
               for panel in (all_panels if everywhere(group)
                             else (place['panel'],))
               for values in zip(*points.values())]
    elif kind == 'final':
      rows.append(row | place | {'x': labels.get(figure['x'])})
    elif kind == 'table':
      rows.append(row | place | {'x': row['run']})
    elif not results.matches(labels, figure['against']):
      rows.append({**row, 'panel': place['panel'], 'line': '',
                   'x': place['line'], 'win_rate_se': row['win_rate_sd']})
  shared = {'rows': rows, 'path': context.directory / 'figure.png',
            'title': title}
  if kind == 'curves':
    panels.curves(**shared, x=figure['x'], y=figure['y'],
                  x_name=figure['x_name'])
  elif kind == 'table':
    panels.bars(**shared, y=figure['columns'][:1])
  elif kind == 'win_rates':
    panels.bars(**shared, y=('win_rate',), reference=0.5, note=' against '
                f'{panels.name_of(figure["against"])}, mean and s.d.')
  elif all(isinstance(row['x'], int | float | None)
           and not isinstance(row['x'], bool) for row in rows):
    panels.points(**shared, x=panels.label_name(figure['x']), y=figure['y'])
  else:
    for row in rows:
      row['x'] = panels.name_of({figure['x']: row['x']})
    panels.bars(**shared, y=figure['y'])


def run(context, *, policies: Sequence[Mapping], stages: Sequence[str],
        title: str, figure: Mapping,
        logs: Mapping[str, Sequence[Mapping]] | None = None) -> dict:
  """Writes results.csv and .jsonl, summary.csv and .md, stages.jsonl and
  figure.png.

  A row of results.csv is one evaluation; one of summary.csv, of which
  summary.md shows the part that fits a page, a run, or the members of an
  ensemble, with the last value of each column, and its standard
  error over seeds; see `policy_results.measure` for the rest. With the figure
  of a source 'training', training.csv holds its smoothed curves, and with
  'win_rates', win_rates.csv those of each policy; with 'distributions',
  distributions.csv holds `distributions.table`.

  Args:
    context: of the stage.
    policies: {'stage', 'seed', 'run', 'labels'} of each.
    stages: all stages before this one, whose numbers are kept.
    title: of the figure.
    figure: see `spec.check`.
    logs: {'stage', 'seed'} of each log by name, as `stages.logged` writes
      them; read for 'distributions' only.

  Raises:
    ConfigError: the figure cannot be drawn from these runs.
    CheckpointError: a stage is not complete, or its files are damaged.
  """
  figure = check(figure, list(
      {one['run']: one['labels'] for one in policies}.values()),
                 logs=list(logs or {}))
  found = results.read(context, policies, figure)
  groups = results.groups(found, spec.apart(figure))
  summary = _summary(groups, found, figure)
  write = lambda name, rows: files.write_csv(
      context.directory / f'{name}.csv', rows)
  rows = _joined(found, [policy.rows for policy in found])
  write('results', rows)
  files.write_jsonl(context.directory / 'results.jsonl', rows)
  write('summary', summary)
  if figure.get('source') == 'training':
    write('training', _joined(found, [_training_rows(p) for p in found]))
  if figure['kind'] == 'win_rates':
    write('win_rates', _joined(found, [
        results.win_rate_rows(p, found, figure) for p in found]))
  files.write_jsonl(context.directory / 'stages.jsonl', [
      {'stage': name, 'stage_seconds': context.seconds_of(name),
       **context.result_of(name)} for name in stages])
  files.write_text(context.directory / 'summary.md',
                   _table(figure, summary, _shown(figure)) + '\n')
  if figure['kind'] == 'distributions':
    shown = distributions.read(context, groups, logs or {}, figure)
    write('distributions', distributions.table(shown))
    distributions.draw(
        shown, context.directory / 'figure.png', title=title)
  else:
    _draw(context, groups, summary, figure, title)
  names = _names(figure, _columns(figure))
  short = [names[0], 'drop', *(n for n in names if n.endswith('_above'))][:4]
  short += [name for name in ('win_rate', 'win_rate_sd') if name in names]
  over = 'seeds' if max(row['seeds'] for row in summary) > 1 else 'prompts'
  text = f'At the end of training, +- one standard error over {over}.'
  if figure['baseline']:
    text += (f'\n_above: less {panels.name_of(figure["baseline"])} of the '
             'same seed.')
  context.show(f'\n{text}\n\n{_table(figure, summary, short)}\n')
  return {'figure': str(context.directory / 'figure.png'), 'rows': len(rows)}
