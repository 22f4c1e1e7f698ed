"""Figures drawn again from results.csv, without the policies that it is of.

So that all figures look alike, whenever their studies were run.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax import errors
from rlhf_jax.reports import distributions
from rlhf_jax.reports import figures
from rlhf_jax.reports import policies as policies_lib
from rlhf_jax.reports import results
from rlhf_jax.reports import spec
from rlhf_jax.storage import files

_FIRST = ('step', 'epoch')  # columns of evaluations, after those of labels


class Study(NamedTuple):
  """Results of a study: where they lie, its config, rows of results.csv."""

  directory: pathlib.Path
  config: Mapping[str, Any]
  rows: Sequence[files.Row]


def read(directory: pathlib.Path, config: Mapping[str, Any]) -> Study:
  """Reads results.csv.

  Raises:
    CheckpointError: it is missing or no text.
  """
  return Study(directory, config, table(directory / 'results.csv'))


def draw(study: Study) -> bool:
  """Draws figure.png of a directory of results; False where it cannot.

  Args:
    study: whose directory has training.csv, win_rates.csv or distributions.csv
      too, where its figure is of these.

  Raises:
    UserError: a file is damaged, or the figure is not of these runs.
  """
  directory, config, rows = study
  path, title = directory / 'figure.png', config['title']
  if config['study'] == 'best_of_n':
    figures.best_of_n([
        {name: math.nan if x is None else x for name, x in row.items()}
        for row in rows], path, title=title)
    return True
  kind = config['figure']['kind']
  if kind in ('distributions', 'win_rates') and not (
      directory / f'{kind}.csv').exists():
    return False
  if kind == 'distributions':
    distributions.draw(table(directory / f'{kind}.csv'), path, title=title)
  else:
    policies_lib.draw(*grouped(study), path, title=title)
  return True


def grouped(study: Study) -> tuple[list[list[results.Policy]], list[dict],
                                   dict[str, Any]]:
  """What `policies.drawing` asks for: groups, their summary and the figure.

  Raises:
    UserError: as `draw`.
  """
  trained = policies(study.directory, study.rows)
  figure = spec.check(study.config['figure'], [
      *{policy.run: policy.labels for policy in trained}.values()])
  figure = spec.restrict(figure, results.measured(trained))
  groups = results.groups(trained, spec.apart(figure))
  return groups, policies_lib.summary(groups, trained, figure), figure


def table(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a CSV file, numbers as numbers and nothing as None.

  Raises:
    CheckpointError: it is missing or no text.
  """
  return [{name: _value(text) for name, text in row.items()}
          for row in files.read_csv(path)]


def has_policies(rows: Sequence[Mapping[str, Any]]) -> bool:
  """Whether a table is one of policies; that of best-of-n has no runs."""
  return bool(rows) and {'seed', 'run'} <= rows[0].keys() and any(
      name in rows[0] for name in _FIRST)


def policies(directory: pathlib.Path, rows: Sequence[Mapping[str, Any]]
             ) -> list[results.Policy]:
  """The policies of a table, with all that it says of them.

  Args:
    directory: of the results.
    rows: of results.csv, by `table`.

  Raises:
    DataError: a column is missing.
  """
  if not has_policies(rows):
    raise errors.DataError(
        f'{directory / "results.csv"} has no columns seed, run and '
        f'{" or ".join(_FIRST)}; copy it from a report again')
  names = list(rows[0])
  first = min(names.index(name) for name in _FIRST if name in names)
  labels = names[names.index('run') + 1:first]
  training = _by_policy(directory / 'training.csv')
  rates = _by_policy(directory / 'win_rates.csv')
  trained = []
  for (seed, run), part in _grouped(rows).items():
    columns = _columns(part, names[first:])
    last = rates.get((seed, run))
    if last and 'win_rate' in last[0] and 'win_rate' not in columns:
      rate = np.full(len(part), np.nan)
      rate[-1] = last[0]['win_rate']
      columns['win_rate'] = rate
    own = training.get((seed, run), [])
    trained.append(results.Policy(
        directory, seed, run, {name: part[0][name] for name in labels
                               if part[0][name] is not None},
        [{name: row[name] for name in names[first:]} for row in part],
        columns, _columns(own, [
            name for name in (own[0] if own else ())
            if name not in ('seed', 'run', *labels)]), [], np.zeros(0),
        last and last[0]))
  return trained


def _by_policy(path: pathlib.Path) -> dict[tuple[int, str], list[dict]]:
  return _grouped(table(path)) if path.exists() else {}


def _grouped(rows) -> dict[tuple[int, str], list[dict]]:
  """Rows by seed and run, in order."""
  parts = {}
  for row in rows:
    parts.setdefault((row['seed'], row['run']), []).append(row)
  return parts


def _columns(rows, names) -> dict[str, np.ndarray]:
  """f64[rows] of each name whose values are numbers; NaN where it is empty."""
  return {name: np.array([row[name] for row in rows], np.float64)
          for name in names
          if not any(isinstance(row[name], str) for row in rows)}


def _value(text: str | None) -> Any:
  """A number or a truth value where it is one."""
  if not text:
    return None
  if text in ('True', 'False'):
    return text == 'True'
  for kind in (int, float):
    try:
      return kind(text)
    except ValueError:
      continue
  return text
