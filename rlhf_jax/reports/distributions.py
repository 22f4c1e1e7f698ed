"""How the components of rewards are distributed, logged and trained.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, Fig. 5: each component of
the logged responses, group by group, beside that of the responses of policies
that were trained on them.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os

import numpy as np

from rlhf_jax import errors
from rlhf_jax.evaluation import statistics
from rlhf_jax.reports import figures
from rlhf_jax.reports import results
from rlhf_jax.reports import style
from rlhf_jax.reports import violins
from rlhf_jax.storage import files

PERCENTILES = [i / 100 for i in range(101)]
_SHOWN = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclasses.dataclass(frozen=True)
class Distribution:
  """One component of one group of responses."""

  component: str
  name: str  # of the group
  logged: bool
  seeds: list[np.ndarray]  # f64[N] of each seed, N >= 1


def read(context, groups: Sequence[Sequence[results.Policy]],
         logs: Mapping[str, Sequence[Mapping]], figure: Mapping
         ) -> list[Distribution]:
  """All that a figure shows, component by component.

  Args:
    context: of the stage.
    groups: policies that are averaged; members of a seed are pooled.
    logs: {'stage', 'seed'} of each log by name. Their validation examples,
      which no policy has learned from, are left out.
    figure: of kind 'distributions', checked.

  Raises:
    ConfigError: a stage has no such component.
    CheckpointError: a stage is not complete, or its files are damaged.
  """
  names = figure['components']
  parts = []
  for log in figure['logs']:
    parts += _of_log(context, log, logs[log], names,
                     alone=len(figure['logs']) == 1)
  for group in groups:
    labels = group[0].labels
    if figure['runs'] is None or results.matches(labels, figure['runs']):
      parts += _of_runs(
          group, style.name_of(results.pick(labels, figure['line'])), names)
  if not parts:
    raise errors.CheckpointError(
        f'the logs {", ".join(figure["logs"])} hold no response to draw')
  return sorted(parts, key=lambda one: names.index(one.component))


def _of_log(context, log: str, stages: Sequence[Mapping],
            names: Sequence[str], *, alone: bool) -> list[Distribution]:
  """Those of each group of a log; groups without a response are left out."""
  parts = {}
  for one in stages:
    result = context.result_of(one['stage'])
    path = context.directory_of(one['stage']) / 'logged.npz'
    arrays = files.load_arrays(path)
    used = slice(len(arrays['group']) - result['num_validation'])
    for name in names:
      values = _component(arrays, f'value_{name}', path)[used]
      for index, group in enumerate(result['groups']):
        rows = values[arrays['group'][used] == index]
        if rows.size:
          parts.setdefault((name, group), []).append(rows.astype(np.float64))
  several = len({group for _, group in parts}) > 1
  name_of = lambda group: (
      group if alone else f'{log}, {group}' if several else log)
  return [Distribution(name, f'{name_of(group)} (logged)', True, seeds)
          for (name, group), seeds in parts.items()]


def _of_runs(group: Sequence[results.Policy], line: str, names: Sequence[str]
             ) -> list[Distribution]:
  """Those of the last responses of policies."""
  parts = {name: [] for name in names}
  for members in results.by_seed(group):
    paths = [member.directory / 'final.jsonl' for member in members]
    rows = [(path, row) for path in paths for row in results.read_rows(path)]
    for name in names:
      parts[name].append(np.array([
          _component(row, f'component_{name}', path) for path, row in rows],
                                  np.float64))
  return [Distribution(name, line, False, seeds)
          for name, seeds in parts.items()]


def _component(columns: Mapping, column: str, path: os.PathLike):
  """A column of a file; ConfigError if it has none."""
  if column in columns:
    return columns[column]
  prefix = column.partition('_')[0] + '_'
  names = [name.removeprefix(prefix) for name in columns
           if name.startswith(prefix)]
  raise errors.ConfigError(
      f'config.figure.components has {column.removeprefix(prefix)!r}, and '
      f'{path} has {", ".join(names) or "no components"}; name those')


def table(parts: Sequence[Distribution]) -> list[dict]:
  """A row for each: percentiles of all seeds together, and the mean.

  Percentiles are values that occur, so that few values stay few. The error of
  the mean is over seeds, or over responses with one seed.
  """
  rows = []
  for one in parts:
    values = np.concatenate(one.seeds)
    mean, error = figures.over_seeds([
        (float(x.mean()), float(statistics.standard_error(x)))
        for x in one.seeds])
    rows.append({
        'component': one.component, 'name': one.name, 'logged': one.logged,
        'seeds': len(one.seeds), 'responses': len(values),
        'mean': mean, 'mean_se': error} | {
            _column(share): float(value) for share, value in zip(
                PERCENTILES, np.quantile(
                    values, PERCENTILES, method='inverted_cdf'))})
  return rows


def _column(share: float) -> str:
  return f'quantile_{share:g}'


def draw(rows: Sequence[files.Row], path: str | os.PathLike, *, title: str):
  """Draws the figure: a panel for each component.

  Args:
    rows: of `table`; of older ones, which have five quantiles, the violins are
      not known.
    path: of the PNG, written whole or not at all.
    title: above the panels.
  """
  seeds = max(row['seeds'] for row in rows)
  whole = all(_column(share) in rows[0] for share in PERCENTILES)
  pick = lambda row, at: np.array([row[_column(share)] for share in at])
  violins.draw(
      [{'panel': style.label_name(row['component']), 'x': row['name'],
        'logged': row['logged'], 'responses': row['responses'],
        'mean': row['mean'], 'quantiles': pick(row, _SHOWN),
        'values': pick(row, PERCENTILES) if whole else None}
       for row in rows], path, title=title, x_name='reward, in its range',
      note=f'responses of {seeds} seed{"s" * (seeds > 1)} together')
