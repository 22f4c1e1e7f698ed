"""Words for what results say of a paper's claim: computed, never typed.

A claim is a contrast: a statistic of some runs less that of others, in each
seed. Its word comes from the interval of Student's t over seeds, by one rule:

  holds                  the interval lies on the paper's side of 0, and of the
                         margin where the claim has one; of a claim that one is
                         no less than another, above -margin. The size of the
                         paper's effect is not asked for
  excluded               the paper's direction, or its size where the claim has
                         one, lies outside of the interval
  equivalent within m    of a claim that both are alike: the interval lies
                         within +-m
  no effect beyond m     of a claim that they differ, the same: against it
  unresolved             none of these; with the seeds that would do at the
                         deviation seen
  not yet run            no seed has, or fewer than were fixed beforehand: a
                         word before the last one would depend on when one looks
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np
from scipy import stats

from rlhf_jax import errors
from rlhf_jax.storage import files

EXPECTS = ('more', 'less', 'equal', 'no_less')
STATISTICS = ('value', 'growth', 'drop')
KINDS = ('confirmatory', 'exploratory')
_MOST_SEEDS = 999  # that are worth naming


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
  """A claim, and what of the results decides it.

  Attributes:
    claim: in words.
    paper: what it says, in its own numbers.
    figure: directory of the results.
    first: {column: text} of the rows of the runs that the claim is of.
    less: of those that they are compared with; None: with `reference`.
    less_figure: directory of the results that `less` is of; None: `figure`.
    reference: a number, such as the win rate of chance, of which the effect is
      counted from 0 all the same.
    column: what is compared.
    statistic: of a run, in the order of its rows: its 'value' (see `at`), the
      last value over the first ('growth'), or the highest value less the last
      ('drop').
    at: {'column', 'from', 'to'}: the mean over that range of another column,
      which the run is interpolated along; a run that ends before it, or has no
      row within it, has none. None: the last value.
    expects: that the contrast is 'more' or 'less' than 0, 'equal' to it, or
      'no_less'.
    margin: beyond which it has to lie, or within; of 'no_less', how far below
      0 it may.
    effect: the paper's, in the same unit, where it can be said.
    table: of the results, without .csv.
    kind: whether it was fixed before its seeds were run.
    num_seeds: that were fixed with it; None: as many as there are.
    command: that makes the results.
  """

  claim: str
  paper: str
  figure: str
  first: Mapping[str, str]
  column: str
  command: str
  less: Mapping[str, str] | None = None
  less_figure: str | None = None
  reference: float = 0.0
  statistic: str = 'value'
  at: Mapping[str, Any] | None = None
  expects: str = 'more'
  margin: float = 0.0
  effect: float | None = None
  table: str = 'results'
  kind: str = 'exploratory'
  num_seeds: int | None = None

  def __post_init__(self):
    for field, known in (('expects', EXPECTS), ('kind', KINDS),
                         ('statistic', STATISTICS)):
      if getattr(self, field) not in known:
        raise errors.ConfigError(
            f'{self.claim}: {field} is {getattr(self, field)!r}; there are '
            f'{", ".join(known)}')
    if self.reference and self.less is not None:
      raise errors.ConfigError(
          f'{self.claim}: it is compared with {dict(self.less)} and with '
          f'{self.reference}; give one of both')
    if self.less_figure and self.less is None:
      raise errors.ConfigError(
          f'{self.claim}: less_figure is {self.less_figure!r} without less, '
          'which says what of it is compared')
    if self.margin < 0 or (
        self.expects in ('equal', 'no_less') and not self.margin):
      raise errors.ConfigError(
          f'{self.claim}: margin is {self.margin}; give one above 0, within '
          'which results count as equal')

  def describe(self) -> str:
    """The contrast in words: which runs, which column, where."""
    runs = _named(self.first)
    if self.less is not None:
      runs += ' less ' + _named(self.less)
    if self.less_figure:
      runs += f' of {self.less_figure}'
    reference = f' less {self.reference:g}' if self.reference else ''
    where = 'at the end' if self.at is None else (
        f'at {self.at["column"]} {self.at["from"]:g} to {self.at["to"]:g}')
    what = {'value': f'{self.column} {where}', 'growth':
            f'{self.column}, last over first', 'drop':
            f'{self.column}, peak less last'}[self.statistic]
    return f'{runs}: {what}{reference}'


def _named(labels: Mapping[str, str]) -> str:
  """Runs by their labels, those of conditions in words."""
  words = []
  for name, text in labels.items():
    if name == 'force_eos':
      text = 'EOS forced' if text == 'True' else 'EOS as sampled'
    elif name == 'label_noise':
      text = f'{100 * float(text):g} % noise'
    words.append(text)
  return ' '.join(words)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
  """Mean and the ends of its 95 % t interval; (-inf, inf) for fewer than two.

  Args:
    values: one of each seed.
  """
  values = np.asarray(values, float)
  mean, count = float(values.mean()), len(values)
  if count < 2:
    return mean, -math.inf, math.inf
  half = float(_half(values.std(ddof=1), count))
  return mean, mean - half, mean + half


def _half(deviation: float, counts: int | np.ndarray) -> np.ndarray:
  """Half of a 95 % interval over so many seeds."""
  return stats.t.ppf(.975, counts - 1) * deviation / np.sqrt(counts)


def word(values: Sequence[float], *, expects: str = 'more',
         margin: float = 0.0, effect: float | None = None) -> str:
  """The word for a contrast, by the rule above.

  Args:
    values: of the contrast, one of each seed.
    expects: see `Contrast`.
    margin: likewise.
    effect: likewise.
  """
  values = np.asarray(values, float)
  if expects == 'less':
    values, effect = -values, None if effect is None else -effect
  mean, low, high = interval(values)
  least = -margin if expects == 'no_less' else margin
  if expects == 'equal':
    if low > margin or high < -margin:
      return 'excluded'
  elif low > least:
    return 'holds'
  elif high < (min(least, 0.0) if effect is None else effect):
    return 'excluded'
  if margin and -margin <= low and high <= margin:
    return (f'equivalent within {margin:g}' if expects == 'equal' else
            f'no effect beyond {margin:g}')
  target = margin - abs(mean) if expects == 'equal' else abs(mean - least)
  return 'unresolved' + _enough(values, target)


def _enough(values: np.ndarray, target: float) -> str:
  """How many seeds would bring the interval within a distance of its mean."""
  if len(values) < 2:
    return ', one seed'
  counts = np.arange(len(values) + 1, _MOST_SEEDS + 1)
  close = np.flatnonzero(_half(values.std(ddof=1), counts) < target)
  return (f', {counts[close[0]]} seeds would do' if close.size
          else f', more than {_MOST_SEEDS} seeds')


def values(rows: Iterable[Mapping[str, str]], contrast: Contrast,
           less_rows: Iterable[Mapping[str, str]] | None = None
           ) -> dict[str, float]:
  """The contrast in each seed that has both of its sides.

  It is NaN where a run cannot be compared, see `Contrast.at`.

  Several runs of one side in a seed, such as the members of an ensemble, each
  alone, count by their mean.

  Args:
    rows: of the results' table, in the order of each run.
    contrast: see there.
    less_rows: of the table of its `less_figure`.

  Raises:
    DataError: a side has no rows, or a column is not there.
  """
  rows = list(rows)
  first = _side(rows, contrast, contrast.first)
  less = (dict.fromkeys(first, contrast.reference) if contrast.less is None
          else _side(rows if less_rows is None else list(less_rows), contrast,
                     contrast.less))
  return {seed: first[seed] - less[seed] for seed in first if seed in less}


def _side(rows, contrast: Contrast, where: Mapping[str, str]
          ) -> dict[str, float]:
  runs: dict[tuple[str, str], list[Mapping[str, str]]] = {}
  try:
    for row in rows:
      if all(row[name] == text for name, text in where.items()):
        # Without a column `run`, what else tells runs apart.
        run = row.get('run') or ' '.join(
            row.get(name) or '' for name in ('method', 'member'))
        runs.setdefault((row['seed'], run), []).append(row)
    lists: dict[str, list[float]] = {}
    for (seed, _), lines in runs.items():
      lists.setdefault(seed, []).append(_statistic(lines, contrast))
  except KeyError as error:
    raise errors.DataError(f'{contrast.claim}: {contrast.figure} has no column '
                           f'{error}') from None
  if not lists:
    raise errors.DataError(
        f'{contrast.claim}: {contrast.figure} has no row of {dict(where)}')
  return {seed: float(np.mean(x)) for seed, x in lists.items()}


def _statistic(rows: list[Mapping[str, str]], contrast: Contrast) -> float:
  """Of one run in one seed; NaN if it has none."""
  number = lambda name: np.array([float(row[name] or 'nan') for row in rows])
  column = number(contrast.column)
  if contrast.statistic == 'growth':
    return column[-1] / column[0]
  if contrast.statistic == 'drop':
    return column.max() - column[-1]
  if contrast.at is None:
    return column[-1]
  # Along the furthest that the run has come: a KL may go back.
  along = np.maximum.accumulate(number(contrast.at['column']))
  low, high = contrast.at['from'], contrast.at['to']
  # What leaps over the range is not known in it: the straight line from where
  # it begins lies below a reward that rises ever slower.
  if along[-1] < high or not np.any((low <= along) & (along <= high)):
    return math.nan
  grid = np.linspace(low, high, 41)
  return float(np.interp(grid, along, column).mean())


def row(contrast: Contrast, results: pathlib.Path, *,
        own: pathlib.Path | None = None) -> dict[str, Any]:
  """A line of verdicts.csv.

  Args:
    contrast: see there.
    results: directory of the results of a paper.
    own: directory of the tables of its figure, where they are elsewhere.

  Raises:
    DataError: the results have no such rows or columns.
  """
  table = f'{contrast.table}.csv'
  paths = [(own or results / contrast.figure) / table]
  if contrast.less_figure:
    paths.append(results / contrast.less_figure / table)
  run = all(path.exists() for path in paths)
  numbers = {}
  if run:
    first, *less = (_table(path, contrast) for path in paths)
    numbers = values(first, contrast, *less)
  count, fixed = len(numbers), contrast.num_seeds or 0
  numbers = [x for x in numbers.values() if not math.isnan(x)]
  ends = '', '', ''
  if not run:
    verdict = 'not yet run'
  elif count < fixed:
    verdict = f'not yet run, {fixed - count} seeds are left'
  elif not numbers:  # no run was where the claim is about
    verdict = 'not comparable'
  else:
    ends = tuple(f'{x:.3f}' for x in interval(numbers))
    verdict = word(numbers, expects=contrast.expects,
                   margin=contrast.margin,
                   effect=None if contrast.effect is None
                   else contrast.effect - contrast.reference)
    if len(numbers) < count:
      verdict += f', by the {len(numbers)} of {count} seeds that are there'
  return {'claim': contrast.claim, 'paper': contrast.paper,
          'contrast': contrast.describe(), 'statistic': contrast.statistic,
          'margin': contrast.margin, 'seeds': len(numbers),
          **dict(zip(('mean', 'low', 'high'), ends)), 'word': verdict,
          'kind': contrast.kind, 'command': contrast.command}


def _table(path: pathlib.Path, contrast: Contrast) -> list[dict[str, str]]:
  """The rows of a table of results, as text."""
  try:
    return files.read_csv(path)
  except errors.CheckpointError as error:
    raise errors.DataError(f'{contrast.claim}: {error}') from None
