"""Words for what results say of a paper's claim: computed, never typed.

A claim is of a contrast, see `contrasts`. Its word comes from the interval of
Student's t over seeds, by one rule:

  holds                  the interval lies on the paper's side of 0, and of the
                         margin where the claim has one; of a claim that one is
                         no less than another, above -margin. The size of the
                         paper's effect is not asked for
  excluded               the paper's direction, or its size where the claim has
                         one, lies outside of the interval
  equivalent within m    of a claim that both are alike: the interval lies
                         within +-m
  no effect beyond m     of a claim that they differ, the same: against it
  unresolved             none of these; with the seeds that would do, in all, at
                         the mean and deviation seen
  not comparable         too few runs were where the claim is about, see
                         `contrasts.Contrast.at`
  not yet run            no seed has, or fewer than were fixed beforehand: a
                         word before the last one would depend on when one looks
"""

from collections.abc import Callable, Sequence
import functools
import math
import pathlib
from typing import Any

import numpy as np
from scipy import stats

from rlhf_jax import errors
from rlhf_jax.reports import contrasts
from rlhf_jax.storage import files

_MOST_SEEDS = 999  # that are worth naming
_FEWEST_SEEDS = 3  # that say something of all, where some cannot be compared


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
    expects: see `contrasts.Contrast`.
    margin: likewise.
    effect: likewise.
  """
  values = np.asarray(values, float)
  if expects == 'less':
    values, effect = -values, None if effect is None else -effect
  decide = functools.partial(_decided, expects=expects, margin=margin,
                             effect=effect)
  return decide(*interval(values)[1:]) or 'unresolved' + _enough(values, decide)


def _decided(low: float, high: float, *, expects: str, margin: float,
             effect: float | None) -> str:
  """The word for an interval, the paper's side of which is above; or ''."""
  least = _least(expects, margin)
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
  return ''


def _least(expects: str, margin: float) -> float:
  """What a contrast has to exceed."""
  return -margin if expects == 'no_less' else margin


def p_value(values: Sequence[float], *, expects: str = 'more',
            margin: float = 0.0) -> float:
  """The one-sided p of Student's t of a claim; NaN for fewer than two seeds.

  It is below .025 where the word is 'holds', or 'equivalent' of a claim that
  both are alike: of these the larger p, of either end of the margin.

  Args:
    values: of the contrast, one of each seed.
    expects: see `contrasts.Contrast`.
    margin: likewise.
  """
  values = np.asarray(values, float) * (-1 if expects == 'less' else 1)
  count = len(values)
  if count < 2:
    return math.nan
  mean, error = values.mean(), values.std(ddof=1) / math.sqrt(count)
  beyond = (margin - abs(mean) if expects == 'equal'
            else mean - _least(expects, margin))
  if not error:
    return float(beyond <= 0)
  return float(stats.t.sf(beyond / error, count - 1))


def _enough(values: np.ndarray, decide: Callable[[float, float], str]) -> str:
  """How many seeds there have to be in all for a word at this deviation.

  If they have this mean too: about one time in two they are not enough.
  """
  if len(values) < 2:
    return ', one seed'
  mean, counts = values.mean(), np.arange(len(values) + 1, _MOST_SEEDS + 1)
  for count, half in zip(counts, _half(values.std(ddof=1), counts)):
    if decide(mean - half, mean + half):
      return f', {count} seeds would do'
  return f', more than {_MOST_SEEDS} seeds'


def row(contrast: contrasts.Contrast, results: pathlib.Path, *,
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
    numbers = contrasts.values(first, contrast, *less)
  count, fixed = len(numbers), contrast.num_seeds or 0
  numbers = [x for x in numbers.values() if not math.isnan(x)]
  ends, p = ('', '', ''), math.nan
  if not run:
    verdict = 'not yet run'
  elif count < fixed:
    verdict = f'not yet run, {fixed - count} seeds are left'
  elif len(numbers) < min(count, max(_FEWEST_SEEDS, count // 2 + 1)):
    # Which runs are where the claim is about depends on how fast they move.
    verdict = 'not comparable' + (
        f', {len(numbers)} of {count} seeds are there' * bool(numbers))
  else:
    ends = tuple(f'{x:.3f}' for x in interval(numbers))
    claim = dict(expects=contrast.expects, margin=contrast.margin)
    p = p_value(numbers, **claim)
    verdict = word(numbers, **claim,
                   effect=None if contrast.effect is None
                   else contrast.effect - contrast.reference)
    if len(numbers) < count:
      verdict += f', by the {len(numbers)} of {count} seeds that are there'
  return {'claim': contrast.claim, 'paper': contrast.paper,
          'contrast': contrast.describe(), 'statistic': contrast.statistic,
          'margin': contrast.margin, 'seeds': len(numbers),
          **dict(zip(('mean', 'low', 'high'), ends)), 'word': verdict,
          'kind': contrast.kind, 'command': contrast.command,
          'p': '' if math.isnan(p) else f'{p:.3g}', 'note': contrast.note}


def _table(path: pathlib.Path, contrast: contrasts.Contrast
           ) -> list[dict[str, str]]:
  """The rows of a table of results, as text."""
  try:
    return files.read_csv(path)
  except errors.CheckpointError as error:
    raise errors.DataError(f'{contrast.claim}: {error}') from None
