"""What a claim compares: a statistic of runs less that of others, by seed.

`verdicts` has the words for it.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.evaluation import statistics

EXPECTS = ('more', 'less', 'equal', 'no_less')
STATISTICS = ('value', 'growth', 'drop', 'fall')
KINDS = ('confirmatory', 'exploratory')


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
      last value over the first ('growth'), the highest value less the last
      ('drop'), or the value at a step less the last ('fall', see `since`). A
      highest value is above its expectation, and by more the more the values
      vary: to compare runs that vary differently, take a fall.
    since: the step of a 'fall'.
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
    note: what a reader has to know of it, such as that the rule was changed
      after its seeds had run.
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
  since: int | None = None
  at: Mapping[str, Any] | None = None
  expects: str = 'more'
  margin: float = 0.0
  effect: float | None = None
  table: str = 'results'
  kind: str = 'exploratory'
  num_seeds: int | None = None
  note: str = ''

  def __post_init__(self):
    for field, known in (('expects', EXPECTS), ('kind', KINDS),
                         ('statistic', STATISTICS)):
      if getattr(self, field) not in known:
        raise errors.ConfigError(
            f'{self.claim}: {field} is {getattr(self, field)!r}; there are '
            f'{", ".join(known)}')
    if (self.since is None) == (self.statistic == 'fall'):
      raise errors.ConfigError(
          f'{self.claim}: since is {self.since!r} and the statistic '
          f'{self.statistic!r}; a fall, and no other, is since a step')
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
            f'{self.column}, peak less last', 'fall':
            f'{self.column}, at step {self.since} less last'}[self.statistic]
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


def values(rows: Iterable[Mapping[str, str]], contrast: Contrast,
           less_rows: Iterable[Mapping[str, str]] | None = None
           ) -> dict[str, float]:
  """The contrast in each seed that has both of its sides.

  It is NaN where a run cannot be compared, see `Contrast.at`.

  Several runs of one side in a seed, such as the members of an ensemble, each
  alone, count by their mean; their drop is that of their mean curve, as in the
  figures.

  Args:
    rows: of the results' table, in the order of each run.
    contrast: see there.
    less_rows: of the table of its `less_figure`.

  Raises:
    DataError: a side has no rows, or a column or step is not there.
  """
  rows = list(rows)
  first = _side(rows, contrast, contrast.first)
  less = (dict.fromkeys(first, contrast.reference) if contrast.less is None
          else _side(rows if less_rows is None else list(less_rows), contrast,
                     contrast.less))
  return {seed: first[seed] - less[seed] for seed in first if seed in less}


def _side(rows, contrast: Contrast, where: Mapping[str, str]
          ) -> dict[str, float]:
  runs: dict[str, dict[str, list[Mapping[str, str]]]] = {}  # by seed and name
  try:
    for row in rows:
      if all(row[name] == text for name, text in where.items()):
        # Without a column `run`, what else tells runs apart.
        run = row.get('run') or ' '.join(
            row.get(name) or '' for name in ('method', 'member'))
        runs.setdefault(row['seed'], {}).setdefault(run, []).append(row)
    sides = {seed: _of_runs([*x.values()], contrast)
             for seed, x in runs.items()}
  except KeyError as error:
    raise errors.DataError(f'{contrast.claim}: {contrast.figure} has no column '
                           f'{error}') from None
  if not sides:
    raise errors.DataError(
        f'{contrast.claim}: {contrast.figure} has no row of {dict(where)}')
  return sides


def _of_runs(runs: list[list[Mapping[str, str]]], contrast: Contrast) -> float:
  """Of the runs of one side in one seed; NaN if one cannot be compared."""
  if contrast.statistic != 'drop':
    return float(np.mean([_statistic(rows, contrast) for rows in runs]))
  if len({len(rows) for rows in runs}) > 1:
    raise errors.DataError(
        f'{contrast.claim}: {contrast.figure} has runs of different lengths '
        f'in seed {runs[0][0]["seed"]}, of which there is no mean curve')
  curve = np.mean([_numbers(rows, contrast.column) for rows in runs], axis=0)
  return float(curve.max() - curve[-1])


def _numbers(rows: list[Mapping[str, str]], column: str) -> np.ndarray:
  return np.array([float(row[column] or 'nan') for row in rows])


def _statistic(rows: list[Mapping[str, str]], contrast: Contrast) -> float:
  """Of one run in one seed, but for its drop; NaN if it has none."""
  column = _numbers(rows, contrast.column)
  if contrast.statistic == 'growth':
    return column[-1] / column[0]
  if contrast.statistic == 'fall':
    first = np.flatnonzero(_numbers(rows, 'step') == contrast.since)
    if not first.size:
      raise errors.DataError(f'{contrast.claim}: {contrast.figure} has no step '
                             f'{contrast.since} in a run')
    return column[first[0]] - column[-1]
  if contrast.at is None:
    return column[-1]
  along = _numbers(rows, contrast.at['column'])
  kept = statistics.furthest(along)
  along, column = along[kept], column[kept]
  low, high = contrast.at['from'], contrast.at['to']
  # What leaps over the range is not known in it: the straight line from where
  # it begins lies below a reward that rises ever slower.
  if along[-1] < high or not np.any((low <= along) & (along <= high)):
    return math.nan
  grid = np.linspace(low, high, 41)
  return float(np.interp(grid, along, column).mean())
