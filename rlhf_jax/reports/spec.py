"""What a study of policies is asked to draw, checked before it trains.

A run is one setting of a study, trained with every seed, and known by its
labels. A figure is a config node: its 'kind', and fields of `KINDS` and
`SHARED`.

  x: of 'curves' one of `X_AXES`; of 'final' a label: numbers make lines over a
    spaced axis, anything else bars.
  y: columns of an evaluation; of 'training', of metrics.jsonl; of 'final' also
    'peak', 'peak_step', 'drop' and '<column>_above'.
  line, panel: labels whose values make a line, and a panel.
  limit_kl: nats; curves end where they exceed it (Coste et al. 2024: 150), in
    the figure only.
  source: 'evaluation', or 'training', smoothed over the last `window` logged
    rollouts.
  everywhere: labels of the runs whose lines are drawn in every panel.
  x_name: what the axis of `x` is called; None: as ever.
  against: labels of the runs that win rates are against.
  components: whose distributions are drawn, a panel for each (Baheti et al.
    2024, Fig. 5).
  logs: the logs of the study whose responses are drawn, a violin for each of
    their groups.
  runs: labels of the runs whose last responses are drawn; None: all.
  columns: shown in the table.
  baseline: labels of the runs whose last values are subtracted in
    '<column>_above', seed by seed.
  paired_by: labels in which a run agrees with its baseline, or with those it
    is against; the labels of `panel` where it is None.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf_jax import errors
from rlhf_jax.reports import results
from rlhf_jax.reports import style

REQUIRED = object()
SHARED = {'columns': ('gold', 'proxy', 'rule', 'kl_k1', 'length'),
          'baseline': None, 'paired_by': None}
# The fields of each kind of figure; what one is without them. Of `columns` and
# `y` those that are measured, see `restrict`.
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
DERIVED = ('peak', 'peak_step', 'drop')  # from the curve of the gold score
LABELS = ('line', 'panel', 'paired_by')
RESERVED = ('seed', 'seeds', 'run', 'members', 'time')
# Columns that a study may lack: why, and what gives them.
OPTIONAL = {
    'proxy': 'no reward measures the policies of this study; leave it out, or '
             'give the components of one',
    'gold': 'no policy of this study is measured by a gold model; leave it '
            'out, or let a component, a condition or the judge use one',
    'rule': 'the data of this study has no rule; leave it out, or train on '
            'the reviews of config.data.world, which have one',
    'win_rate': 'no judge compares the policies of this study; leave it out, '
                'or give config.judge.against',
}


def origin(column: str) -> str | None:
  """The column of `OPTIONAL` that a column is or comes from, if any."""
  base = column.removesuffix('_above')
  if base in DERIVED or base.startswith('gold_split_'):
    return 'gold'
  if base.startswith('proxy_split_'):
    return 'proxy'
  return base if base in OPTIONAL else None


def available(column: str, columns: Collection[str] | None) -> bool:
  """Whether a study that measures `columns` may have this one.

  Args:
    column: of an evaluation or of the summary.
    columns: those of `OPTIONAL` that are measured, and any others; None: not
      known yet, everything may be.
  """
  return columns is None or origin(column) in (None, *columns)


def restrict(figure: Mapping, columns: Collection[str] | None) -> dict:
  """A figure whose `columns` and `y` are those that are measured.

  Where that leaves nothing, the proxy score, or the KL without a reward.

  Args:
    figure: fields, with their defaults.
    columns: as for `available`.
  """
  last = 'proxy' if available('proxy', columns) else 'kl_k1'
  of_training = figure.get('source') == 'training'
  shown = {name: tuple(
      column for column in figure[name] if available(column, columns)
      ) or (last,)
           for name in ('columns', *('y',) * (not of_training))
           if name in figure}
  return {**figure, **shown}


def check(figure: Mapping, labels: Sequence[Mapping], *,
          logs: Sequence[str] = (), components: Sequence[str] | None = None,
          columns: Collection[str] | None = None) -> dict:
  """Checks what a report is to draw, before anything is trained.

  Args:
    figure: 'kind' and some of its fields.
    labels: of each run, once, not for each seed.
    logs: names of the logs of the study.
    components: names of its components; None where they are not known yet.
    columns: those of `OPTIONAL` that every policy of the study will have; None
      where they are not known yet.

  Returns:
    The figure with every field. Where `columns` and `y` were not asked for,
    they are without what the study will not have.

  Raises:
    ConfigError: naming the field.
  """
  kind = figure.get('kind')
  _require(kind in KINDS, 'kind', kind, f'there are {", ".join(KINDS)}')
  _require(kind != 'win_rates' or available('gold', columns), 'kind', kind,
           f'they are those of gold scores, and {OPTIONAL["gold"]}')
  figure = _complete(figure, columns)
  _check_labels(labels)
  _check_columns(figure, components, columns)
  _check_runs(figure, labels)
  if kind == 'distributions':
    _check_distributions(figure, logs, components)
  return figure


def _complete(figure: Mapping, columns: Collection[str] | None) -> dict:
  """The figure with every field, lists as lists of names."""
  kind = figure['kind']
  fields = KINDS[kind] | SHARED
  for name in figure:
    _require(name == 'kind' or name in fields, name, figure[name],
             f'{kind!r} has {", ".join(fields)}')
  figure = {**restrict(fields, columns), **figure}
  for name, value in figure.items():
    _require(value is not REQUIRED, name, 'absent', f'{kind!r} needs it')
  if figure['paired_by'] is None:
    figure['paired_by'] = figure.get('panel', ())
  for name in ('y', 'columns', 'components', 'logs', *LABELS):
    value = figure.get(name, ())
    _require(isinstance(value, list | tuple)
             and all(isinstance(x, str) for x in value), name, value,
             "give a list of names, such as ('gold',)")
  return figure


def _require(ok: bool, field: str, value: Any, what: str):
  """ConfigError with the field, its value and what to do, unless `ok`."""
  if not ok:
    raise errors.ConfigError(f'config.figure.{field} is {value!r}; {what}')


def _of_evaluation(column: str, components: Sequence[str] | None = None
                   ) -> bool:
  """Whether an evaluation may have this column."""
  if components is not None and column.startswith('component_'):
    return column.removeprefix('component_') in components
  return style.column_name(column) is not None


def _check_labels(labels: Sequence[Mapping]):
  """Refuses labels that would be taken for a column, or cannot be written."""
  for one in labels:
    for name, value in one.items():
      if _of_evaluation(name.removesuffix('_se')) or name in RESERVED:
        raise errors.ConfigError(f'a run has the label {name!r}, which names '
                                 'a column of results.csv; rename the label')
      if not isinstance(value, str | int | float | None):
        raise errors.ConfigError(f'a run has the label {name!r}: {value!r}; '
                                 'give text or a number')


def _check_columns(figure: Mapping, components: Sequence[str] | None,
                   columns: Collection[str] | None):
  """Refuses axes and columns that no evaluation has."""
  source = figure.get('source', 'evaluation')
  _require(source in X_AXES, 'source', source,
           f'there are {", ".join(X_AXES)}')
  free = figure.get('y', ()) if source == 'training' else ()
  for field in ('columns', 'y'):
    names = figure.get(field, figure['columns'])
    _require(len(names) > 0, field, names, 'give at least one')
    extra = {*free, *(derived(figure) if figure['kind'] == 'final'
                      and field == 'y' else ())}
    choice = [name for name in (*style.AXES, *sorted(extra))
              if available(name, columns)] + _open(components)
    for name in names:
      _require(name in free or available(name, columns), field, names,
               f'{name!r} is not there: {OPTIONAL.get(origin(name))}')
      _require(_of_evaluation(name, components) or name in extra, field,
               names, f'there is no {name!r}; there are {", ".join(choice)}')
  if figure['kind'] == 'curves':
    _check_curves(figure)


def _check_curves(figure: Mapping):
  """Refuses what cannot be drawn over the axis of curves."""
  source = figure['source']
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
  listed = figure['components']
  _require(len(listed) > 0, 'components', listed, 'give at least one')
  for field, names in (('components', components), ('logs', logs)):
    for name in figure[field]:
      _require(names is None or name in names, field, figure[field],
               f'there is no {name!r}; there are '
               f'{", ".join(names or ()) or "none"}')


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
  shown = [name for name in names if name != 'member']
  drawn = labels
  for field in ('baseline', 'against', 'everywhere', 'runs'):
    if figure.get(field) is None:
      continue
    chosen = _chosen(figure, field, labels)
    if field in ('baseline', 'against'):
      _distinct(chosen, figure['paired_by'], shown,
                f'config.figure.{field} matches several runs that are not '
                'members of one ensemble', f'{field} or paired_by')
    elif field == 'everywhere':
      _check_everywhere(figure, labels, chosen)
    else:
      drawn = chosen
  if len({tuple(sorted(one.items())) for one in labels}) < len(labels):
    raise errors.ConfigError('two runs have the same labels; give each run '
                             'labels of its own, for example member')
  if figure['kind'] in ('curves', 'final', 'distributions'):
    _distinct(drawn, apart(figure), shown, 'several runs make one line of '
              'config.figure', 'line or panel')
  if figure['kind'] == 'win_rates':
    rest = [one for one in labels
            if not results.matches(one, dict(figure['against']))]
    _require(len(rest) > 0, 'against', dict(figure['against']),
             'every run has these labels; add one to compare with them')
    _distinct(rest, apart(figure), shown, 'several runs make one bar of '
              'config.figure', 'line or panel')


def _chosen(figure: Mapping, field: str, labels: Sequence[Mapping]
            ) -> list[Mapping]:
  """The runs that have the labels of a field, at least one."""
  selection = figure[field]
  _require(isinstance(selection, Mapping) and selection, field, selection,
           "give labels, such as {'method': 'single'}")
  chosen = [one for one in labels if results.matches(one, dict(selection))]
  _require(len(chosen) > 0, field, dict(selection), 'no run has these labels')
  return chosen


def _check_everywhere(figure: Mapping, labels: Sequence[Mapping],
                      chosen: Sequence[Mapping]):
  """Refuses lines that would meet another of their name in a panel."""
  rest = [one for one in labels if one not in chosen]
  _require(len(rest) > 0, 'everywhere', dict(figure['everywhere']),
           'every run has these labels; name those of some')
  cell = lambda one: results.pick(one, figure['line'])
  panel = lambda one: results.pick(one, figure['panel'])
  for one in chosen:
    _require(all(cell(one) != cell(other) for other in rest)
             and all(panel(one) == panel(other) for other in chosen
                     if cell(one) == cell(other)),
             'everywhere', dict(figure['everywhere']),
             'these lines have the name of others in a panel; add to it, or '
             'to line')


def _distinct(labels: Sequence[Mapping], cell: Sequence[str],
              names: Sequence[str], what: str, where: str):
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
