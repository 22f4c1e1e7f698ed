"""The figures of a page, as what is drawn and not yet how.

A chart is {'title', 'x', 'y', 'right', 'series', 'kind'}, JSON values that
`web/charts.js` hands to the plotting library. The figure of a study is drawn
from the same rows as its PNG; curves by run and seed are drawn by the page
itself, which may ask for another column.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.reports import best_of_n
from rlhf_jax.reports import distributions
from rlhf_jax.reports import figures
from rlhf_jax.reports import page_study
from rlhf_jax.reports import policies as policies_lib
from rlhf_jax.reports import results
from rlhf_jax.reports import spec
from rlhf_jax.reports import style
from rlhf_jax.reports import violins
from rlhf_jax.storage import files

Chart = dict[str, Any]
_SIGNS = ((r'$\sqrt{\mathrm{KL}}$', '√KL'), ('nats$^{1/2}$', '√nats'),
          (r'$\lambda$', 'λ'), ('\n', ' '))
DIGITS = 5  # of numbers, which is more than a screen shows


def plain(text: str) -> str:
  """What an axis or a legend says, without LaTeX."""
  for old, new in _SIGNS:
    text = text.replace(old, new)
  return text


def numbers(values: Any) -> list[float | None]:
  """Of an array, a few digits; None where it is not finite."""
  return [float(f'{x:.{DIGITS}g}') if np.isfinite(x) else None
          for x in np.asarray(values, np.float64)]


def _colour(colour: Any) -> str:
  from matplotlib import colors
  return colors.to_hex(colour)


def _panels(rows: Sequence[Mapping]) -> dict[str, list[Mapping]]:
  parts: dict[str, list[Mapping]] = {}
  for row in rows:
    parts.setdefault(row['panel'], []).append(row)
  return parts


def _line(rows: Sequence[Mapping], x: str, y: str, name: str, colour: Any,
          **more) -> Chart:
  """A line with the band, or the bars, of its errors."""
  column = lambda key: np.array([row[key] for row in rows], np.float64)
  mean, error = column(y), np.nan_to_num(column(f'{y}_se'))
  return {'name': plain(name), 'colour': _colour(colour),
          'x': numbers(column(x)), 'y': numbers(mean),
          'low': numbers(mean - error), 'high': numbers(mean + error), **more}


def curves(rows, x: str, y: Sequence[str], x_name: str | None = None,
           seeds: Sequence[Mapping] = (), note: str = '') -> list[Chart]:
  """As `panels.curves`: a chart for each panel, and for each column of y."""
  twin = {'gold', 'proxy'} <= {*y}
  colours = style.colours_apart(rows) or style.colours(
      list(dict.fromkeys(row['line'] for row in rows)))
  charts = []
  for column in (name for name in y if not (twin and name == 'proxy')):
    for panel, part in _panels(rows).items():
      both = twin and column == 'gold'
      series = [{'name': plain(row['line']), 'thin': True,
                 'colour': _colour(colours[row['line']]),
                 'x': numbers(row[x]), 'y': numbers(row[column])}
                for row in seeds if row['panel'] == panel]
      for name, right in ((column, False), *((('proxy', True),) * both)):
        for line in dict.fromkeys(row['line'] for row in part):
          series.append(_line(
              [row for row in part if row['line'] == line
               and 'end' not in row], x, name, line, colours[line],
              dash=right, right=right))
        series += [_line([row], x, name, row['line'], colours[row['line']],
                         right=right, bars=True)
                   for row in part if 'end' in row]
      charts.append({
          'title': panel, 'kind': 'curves', 'x': plain(
              x_name or style.axis_name(x)), 'series': series,
          'y': plain(style.axis_name(column)) + ' (solid)' * both,
          'right': 'proxy score (dashed)' if both else None, 'note': note})
  return charts


def points(rows, x: str, y: Sequence[str], note: str = '') -> list[Chart]:
  """As `panels.points`: lines over the values of a label, evenly spaced."""
  colours = style.colours(list(dict.fromkeys(row['line'] for row in rows)))
  charts = []
  for column in y:
    for panel, part in _panels(rows).items():
      series = []
      for line, colour in colours.items():
        at = sorted((row for row in part if row['line'] == line
                     and row['x'] is not None), key=lambda row: row['x'])
        across = [row for row in part if row['line'] == line
                  and row['x'] is None]
        if at:
          one = _line(at, 'x', column, line, colour, bars=True)
          series.append(one | {'x': [f'{row["x"]:g}' for row in at]})
        for row in across:
          series.append({'name': line, 'colour': _colour(colour),
                         'across': numbers([row[column]])[0]})
      charts.append({
          'title': panel, 'kind': 'points', 'x': plain(x), 'series': series,
          'y': plain(style.axis_name(column)), 'right': None, 'note': note})
  return charts


def bars(rows, y: Sequence[str], suffix: str = '', note: str = ''
         ) -> list[Chart]:
  """As `panels.bars`: lying bars with their errors."""
  colours = style.colours(list(dict.fromkeys(row['line'] for row in rows)))
  alone = len(colours) == 1
  charts = []
  for column in y:
    for panel, part in _panels(rows).items():
      series = []
      for line, colour in colours.items():
        there = [row for row in part if row['line'] == line]
        values = [row[column] for row in there]
        series.append({
            'name': plain(line), 'y': [plain(row['x']) for row in there],
            'x': numbers(values),
            'error': numbers(np.nan_to_num(np.array(
                [row[f'{column}_se'] for row in there], np.float64))),
            'colour': [_colour(
                row.get('colour') or style.METHODS.get(row['x'], colour)
                if alone else colour) for row in there]})
      charts.append({
          'title': panel, 'kind': 'bars', 'x': plain(
              style.axis_name(column) + suffix), 'y': '', 'series': series,
          'right': None, 'chance': style.CHANCE.get(column), 'note': note})
  return charts


def spread(shown: Sequence[distributions.Distribution]) -> list[Chart]:
  """As `violins.draw`: how components are distributed."""
  names = list(dict.fromkeys(one.name for one in shown))
  colours = style.colours(names)
  parts: dict[str, list[distributions.Distribution]] = {}
  for one in shown:
    parts.setdefault(style.label_name(one.component), []).append(one)
  charts = []
  for panel, part in parts.items():
    values = [np.concatenate(one.seeds) for one in part]
    few = violins.shares(np.concatenate(values)) is not None
    series = [{
        'name': plain(one.name),
        'colour': '#999999' if one.logged else _colour(colours[one.name]),
        **(dict(zip(('x', 'share'), map(numbers, violins.shares(x)))) if few
           else {'x': numbers(x)})} for one, x in zip(part, values)]
    charts.append({
        'title': panel, 'kind': 'discs' if few else 'violins',
        'x': 'reward, in its range', 'y': '', 'series': series, 'right': None})
  return charts


def _best_of_n(rows: Sequence[Mapping]) -> list[Chart]:
  """As `figures.best_of_n`: a chart for each condition."""
  charts = []
  for end, noise in sorted({(r['force_eos'], r['label_noise']) for r in rows}):
    part = [r for r in rows
            if (r['force_eos'], r['label_noise']) == (end, noise)]
    methods = style.of_aggregates(r['method'] for r in part)
    series = [{'name': plain(label), 'colour': _colour(what), 'thin': True,
               'x': numbers([r['sqrt_kl'] for r in line]),
               'y': numbers([r['gold'] for r in line])}
              for (what, label), line in figures.thin(part, methods)]
    for name, (what, label) in methods.items():
      for column in ('gold', 'proxy'):
        x, mean, error = figures.lines(part, name, column)
        series.append({
            'name': plain(label), 'colour': _colour(what), 'x': numbers(x),
            'y': numbers(mean), 'low': numbers(mean - error),
            'high': numbers(mean + error),
            'dash': column == 'proxy', 'right': column == 'proxy'})
    charts.append({
        'title': f'{100 * noise:g} % label noise, ' + (
            'every response ends in EOS' if end else 'as sampled'),
        'kind': 'curves', 'x': plain(style.SQRT_KL), 'series': series,
        'y': 'gold score (solid), s.d. of samples',
        'right': 'proxy score (dashed)', 'note': figures.note(rows)})
  return charts


def of_study(study: page_study.Study) -> tuple[list[Chart], str]:
  """The charts of its figure, and why there are none, or fewer.

  Args:
    study: which may be incomplete: policies count that were evaluated.
  """
  if study.rows and 'force_eos' in study.rows[0]:
    return _best_of_n(study.rows), ''
  figure = study.config.get('figure')
  if not study.policies:
    return [], 'Nothing has been evaluated yet.'
  if not figure:
    return [], ''
  try:
    return _of_policies(study, figure), ''
  except errors.UserError as error:
    return [], f'It cannot be drawn from what there is: {error}.'


def _of_policies(study: page_study.Study, figure: Mapping) -> list[Chart]:
  labels = list({p.run: p.labels for p in study.policies}.values())
  logs: dict[str, list[dict]] = {}
  for stage in study.stages:
    part = stage.name.split('/')
    if part[1:2] == ['logs'] and part[-1] == 'logged':
      logs.setdefault(part[2], []).append(
          {'stage': stage.name, 'seed': part[0]})
  figure = spec.check(figure, labels, logs=list(logs))
  trained = study.policies
  if figure['kind'] == 'win_rates' or figure.get('source') == 'training':
    trained = results.read(page_study.Across(study.directory), [
        {'stage': p.directory.relative_to(study.directory).as_posix(),
         'seed': p.seed, 'run': p.run, 'labels': p.labels}
        for p in study.policies], figure)
  figure = spec.restrict(figure, results.measured(trained))
  groups = results.groups(trained, spec.apart(figure))
  if figure['kind'] == 'distributions':
    return spread(distributions.read(
        page_study.Across(study.directory), groups, logs, figure))
  summary = policies_lib.summary(groups, trained, figure)
  name, arguments = policies_lib.drawing(groups, summary, figure)
  return {'curves': curves, 'points': points, 'bars': bars}[name](**arguments)


def lines(study: page_study.Study) -> list[dict]:
  """The curves of each run, by seed, members averaged.

  Returns:
    {'name', 'colour', 'seeds': [{'seed', 'columns': {name: [...]}}]} of each
    line; `name` has the labels in which runs differ, but for those that each
    method has one value of, and `colour` is that of `style.colours`.
  """
  if not study.policies and study.rows and 'force_eos' in study.rows[0]:
    return _coloured(_best_of_n_lines(study.rows))
  groups = results.groups(study.policies, ())
  labels = [group[0].labels for group in groups]
  differ = [name for name in dict.fromkeys(n for one in labels for n in one)
            if _by_method(labels, name) > (
                1 if name == 'method' else _by_method(labels, 'method'))
            and name != 'member']
  differ.sort(key=lambda name: name != 'method')  # first
  shown = []
  for group in groups:
    name = style.name_of(results.pick(group[0].labels, differ)) or group[0].run
    seeds = []
    for members in results.by_seed(group):
      names = [n for n in members[0].evaluation
               if n not in ('time', 'seed') and not n.endswith('_se')]
      columns = results.curves(members, names)
      seeds.append({'seed': members[0].seed, 'columns': {
          n: numbers(columns[n]) for n in names
          if np.isfinite(columns[n]).any()}})
    shown.append({'name': name, 'seeds': seeds})
  return _coloured(shown)


def _by_method(labels: Sequence[Mapping], name: str) -> int:
  """How many values of a label there are, apart by method."""
  return len({(repr(one.get('method')), repr(one.get(name)))
              for one in labels})


def _coloured(lines_: Sequence[dict]) -> list[dict]:
  colours = style.colours([line['name'] for line in lines_])
  return [line | {'name': plain(line['name']),
                  'colour': _colour(colours[line['name']])}
          for line in lines_]


def _best_of_n_lines(rows: Sequence[Mapping]) -> list[dict]:
  """The same of best-of-n, by condition and method."""
  parts: dict[str, dict[int, list[Mapping]]] = {}
  for row in rows:
    if not row['method'].startswith('single_'):
      name = (f'{style.name_of({"method": row["method"]})}, '
              f'{100 * row["label_noise"]:g} % noise'
              + ', EOS forced' * bool(row['force_eos']))
      parts.setdefault(name, {}).setdefault(row['seed'], []).append(row)
  names = ('n', 'kl', 'sqrt_kl', *best_of_n.WATCHED)
  return [{'name': name, 'seeds': [
      {'seed': seed, 'columns': {
          what: numbers([row[what] for row in part]) for what in names
          if part[0][what] is not None}}
      for seed, part in seeds.items()]} for name, seeds in parts.items()]


def columns_of(studies: Sequence[list[dict]]) -> dict[str, str]:
  """Every column that any line has, and what an axis says of it."""
  names = dict.fromkeys(name for lines_ in studies for line in lines_
                        for seed in line['seeds'] for name in seed['columns'])
  extra = {'n': 'n, responses', 'kl': 'KL, nats'}
  return {name: extra.get(name) or plain(style.axis_name(name))
          for name in names}


def png(study: page_study.Study) -> bytes | None:
  """The figure as the study has drawn it, for papers."""
  path = None if study.report is None else study.report / 'figure.png'
  if path is None or not path.is_file():
    return None
  with files.open_regular(path) as stream:
    return stream.read()
