"""What a study of policies is asked to draw, checked before it trains.

A run is one setting of a study, trained with every seed, and known by its
labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax import errors
from rlhf_jax.reports import panels
from rlhf_jax.reports import results

REQUIRED = object()
SHARED = {'columns': ('gold', 'proxy', 'rule', 'kl_k1', 'length'),
          'baseline': None, 'paired_by': None}
# The fields of each kind of figure; what one is without them.
KINDS = {
    'curves': {'x': 'sqrt_kl', 'y': ('gold', 'proxy'), 'line': ('method',),
               'panel': (), 'limit_kl': None, 'source': 'evaluation',
               'window': 10, 'everywhere': None, 'x_name': None},
    'final': {'x': REQUIRED, 'y': ('gold',), 'line': ('method',),
              'panel': ()},
    'table': {},
    'win_rates': {'against': REQUIRED, 'line': ('method',), 'panel': ()},
    'distributions': {'components': REQUIRED, 'logs': (), 'runs': None,
                      'line': ('method',)},
}
X_AXES = {'evaluation': ('sqrt_kl', 'kl_k1', 'step', 'updates', 'samples',
                         'epoch'),
          'training': ('step',)}
DERIVED = ('peak', 'peak_step', 'drop')
LABELS = ('line', 'panel', 'paired_by')
RESERVED = ('seed', 'seeds', 'run', 'members', 'time')


def check(figure: Mapping, labels: Sequence[Mapping], *,
          logs: Sequence[str] = (), components: Sequence[str] | None = None
          ) -> dict:
  """Checks what a report is to draw, before anything is trained.

  Args:
    figure: 'kind' and fields of `KINDS` and `SHARED`:
      x: of 'curves' one of `X_AXES`; of 'final' a label: numbers make lines
        over a spaced axis, anything else bars.
      y: columns of an evaluation; of 'training', of metrics.jsonl; of 'final'
        also 'peak', 'peak_step', 'drop' and '<column>_above'.
      line, panel: labels whose values make a line, and a panel.
      limit_kl: nats; curves end where they exceed it (Coste et al. 2024: 150),
        in the figure only.
      source: 'evaluation', or 'training', smoothed over the last `window`
        logged rollouts.
      everywhere: labels of the runs whose lines are drawn in every panel.
      x_name: what the axis of `x` is called; None: as ever.
      against: labels of the runs that win rates are against.
      components: whose distributions are drawn, a panel for each (Baheti et
        al. 2024, Fig. 5).
      logs: the logs of the study whose responses are drawn, a violin for each
        of their groups.
      runs: labels of the runs whose last responses are drawn; None: all.
      columns: shown in the table.
      baseline: labels of the runs whose last values are subtracted in
        '<column>_above', seed by seed.
      paired_by: labels in which a run agrees with its baseline, or with those
        it is against; the labels of `panel` where it is None.
    labels: of each run, once, not for each seed.
    logs: names of the logs of the study.
    components: names of its components; None where they are not known yet.

  Returns:
    The figure with every field.

  Raises:
    ConfigError: naming the field.
  """
  kind = figure.get('kind')
  _require(kind in KINDS, 'kind', kind, f'there are {", ".join(KINDS)}')
  fields = KINDS[kind] | SHARED
  for name in figure:
    _require(name == 'kind' or name in fields, name, figure[name],
             f'{kind!r} has {", ".join(fields)}')
  figure = {**fields, **figure}
  for name, value in figure.items():
    _require(value is not REQUIRED, name, 'absent', f'{kind!r} needs it')
  if figure['paired_by'] is None:
    figure['paired_by'] = figure.get('panel', ())
  for name in ('y', 'columns', 'components', 'logs', *LABELS):
    value = figure.get(name, ())
    _require(isinstance(value, list | tuple)
             and all(isinstance(x, str) for x in value), name, value,
             "give a list of names, such as ('gold',)")
  _check_labels(labels)
  _check_columns(figure, components)
  _check_runs(figure, labels)
  if kind == 'distributions':
    _check_distributions(figure, logs, components)
  return figure


def _require(ok: bool, field: str, value: Any, what: str):
  if not ok:
    raise errors.ConfigError(f'config.figure.{field} is {value!r}; {what}')


def _known(column: str, components: Sequence[str] | None = None) -> bool:
  """Whether an evaluation may have this column."""
  if components is not None and column.startswith('component_'):
    return column.removeprefix('component_') in components
  return panels.column_name(column) is not None


def _check_labels(labels: Sequence[Mapping]):
  for one in labels:
    for name, value in one.items():
      if _known(name.removesuffix('_se')) or name in RESERVED:
        raise errors.ConfigError(f'a run has the label {name!r}, which names '
                                 'a column of results.csv; rename the label')
      if not isinstance(value, str | int | float | None):
        raise errors.ConfigError(f'a run has the label {name!r}: {value!r}; '
                                 'give text or a number')


def _check_columns(figure: Mapping, components: Sequence[str] | None):
  """Refuses axes and columns that no evaluation has."""
  source = figure.get('source', 'evaluation')
  free = figure.get('y', ()) if source == 'training' else ()
  _require(source in X_AXES, 'source', source,
           f'there are {", ".join(X_AXES)}')
  for field in ('columns', 'y'):
    given = figure.get(field, figure['columns'])
    _require(len(given) > 0, field, given, 'give at least one')
    extra = {*free, *(derived(figure) if figure['kind'] == 'final'
                      and field == 'y' else ())}
    for name in given:
      _require(_known(name, components) or name in extra, field, given,
               f'there is no {name!r}; there are ' + ', '.join(
                   [*panels.AXES, *sorted(extra), *_open(components)]))
  if figure['kind'] != 'curves':
    return
  _require(figure['x'] in X_AXES[source], 'x', figure['x'],
           f'source {source!r} has {", ".join(X_AXES[source])}')
  limit, window, name = (
      figure[field] for field in ('limit_kl', 'window', 'x_name'))
  _require(name is None or isinstance(name, str), 'x_name', name,
           'give text, or None')
  _require(limit is None or source == 'evaluation', 'limit_kl', limit,
           "only curves with source 'evaluation' know their KL; give None")
  _require(limit is None or (isinstance(limit, int | float) and limit > 0),
           'limit_kl', limit, 'give nats above 0, or None')
  _require(isinstance(window, int) and window > 0, 'window', window,
           'give logged rollouts, at least 1')


def _open(components: Sequence[str] | None) -> list[str]:
  """Columns that are named by what a study has."""
  return [f'component_{name}' for name in (
      ['<name>'] if components is None else components)] + [
          'gold_split_<split>', 'proxy_split_<split>']


def _check_distributions(figure: Mapping, logs: Sequence[str],
                         components: Sequence[str] | None):
  """Refuses components and logs that the study does not have."""
  wanted = figure['components']
  _require(len(wanted) > 0, 'components', wanted, 'give at least one')
  for field, known in (('components', components), ('logs', logs)):
    for name in figure[field]:
      _require(known is None or name in known, field, figure[field],
               f'there is no {name!r}; there are '
               f'{", ".join(known or ()) or "none"}')


def _check_runs(figure: Mapping, labels: Sequence[Mapping]):
  """Refuses figures in which two runs would be taken for one."""
  names = list(dict.fromkeys(name for one in labels for name in one))
  used = {field: figure.get(field, ()) for field in LABELS}
  if figure['kind'] == 'final':
    used['x'] = (figure['x'],)
  for field, value in used.items():
    for name in value:
      _require(name in names, field, figure[field],
               f'no run has the label {name!r}; there are {", ".join(names)}')
  cell, drawn = apart(figure), labels
  shown = [name for name in names if name != 'member']
  for field in ('baseline', 'against', 'everywhere', 'runs'):
    wanted = figure.get(field)
    if wanted is None:
      continue
    _require(isinstance(wanted, Mapping) and wanted, field, wanted,
             "give labels, such as {'method': 'single'}")
    found = [one for one in labels if results.matches(one, dict(wanted))]
    _require(len(found) > 0, field, dict(wanted), 'no run has these labels')
    if field in ('baseline', 'against'):
      _distinct(found, figure['paired_by'], shown,
                f'config.figure.{field} matches several runs that are not '
                'members of one ensemble', f'{field} or paired_by')
    elif field == 'everywhere':
      _check_everywhere(figure, labels, found)
    else:
      drawn = found
  if len({tuple(sorted(one.items())) for one in labels}) < len(labels):
    raise errors.ConfigError('two runs have the same labels; give each run '
                             'labels of its own, for example member')
  if figure['kind'] in ('curves', 'final', 'distributions'):
    _distinct(drawn, cell, shown, 'several runs make one line of '
              'config.figure', 'line or panel')
  if figure['kind'] == 'win_rates':
    rest = [one for one in labels
            if not results.matches(one, dict(figure['against']))]
    _require(len(rest) > 0, 'against', dict(figure['against']),
             'every run has these labels; add one to compare with them')
    _distinct(rest, cell, shown, 'several runs make one bar of '
              'config.figure', 'line or panel')


def _check_everywhere(figure, labels, found):
  """Refuses lines that would meet another of their name in a panel."""
  rest = [one for one in labels if one not in found]
  _require(len(rest) > 0, 'everywhere', dict(figure['everywhere']),
           'every run has these labels; name those of some')
  cell = lambda one: results.pick(one, figure['line'])
  panel = lambda one: results.pick(one, figure['panel'])
  for one in found:
    _require(all(cell(one) != cell(other) for other in rest)
             and all(panel(one) == panel(other) for other in found
                     if cell(one) == cell(other)),
             'everywhere', dict(figure['everywhere']),
             'these lines have the name of others in a panel; add to it, or '
             'to line')


def _distinct(labels, cell, names, what, where):
  """Refuses runs that agree in the labels `cell` and differ in `names`."""
  first = {}
  for one in labels:
    other = first.setdefault(tuple(one.get(name) for name in cell), one)
    differ = [name for name in names if one.get(name) != other.get(name)]
    if differ:
      raise errors.ConfigError(
          f'{what}: they differ in {", ".join(differ)}; add that to {where}')


def apart(figure: Mapping) -> tuple[str, ...]:
  """The labels by which a figure tells runs apart."""
  x = (figure['x'],) if figure['kind'] == 'final' else ()
  return (*figure.get('line', ()), *figure.get('panel', ()), *x)


def derived(figure: Mapping) -> tuple[str, ...]:
  """The columns of the summary that no evaluation has."""
  if not figure['baseline']:
    return DERIVED
  return (*DERIVED, *(f'{name}_above' for name in figure['columns']))
