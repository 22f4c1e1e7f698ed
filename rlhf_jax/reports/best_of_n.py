"""The tables of best-of-n, over seeds and conditions.

A condition is a share of label noise, and whether every response ends in EOS.
`figures.best_of_n` draws its rows.
"""

from collections.abc import Mapping, Sequence
import math

import numpy as np

from rlhf_jax.evaluation import statistics
from rlhf_jax.ops import best_of_n
from rlhf_jax.reports import figures
from rlhf_jax.storage import files

# What is followed as the proxy is optimised; the last three where there is one.
WATCHED = ('gold', 'proxy', 'rule', 'unfinished', 'length')
COLUMNS = ('peak', 'final', 'drop', 'above_single', 'rule', 'unfinished')


def _read(context, run: Mapping) -> tuple[list[int], dict]:
  """The grid of n, and curves[what][method] f32[B, len(ns)] of a condition."""
  arrays = files.load_arrays(
      context.directory_of(run['stage']) / 'curves.npz')
  ns, curves = arrays.pop('ns').tolist(), {}
  for name, value in arrays.items():
    what, method = name.split('__')
    curves.setdefault(what, {})[method] = value
  return ns, {what: statistics.with_single(curves[what])
              for what in WATCHED if what in curves}


def _curve_rows(run: Mapping, ns: Sequence[int], curves: dict) -> list[dict]:
  """One row for each method and n of one seed and condition."""
  rows = []
  for method in curves['gold']:
    for i, n in enumerate(ns):
      divergence = float(best_of_n.kl(n))
      row = {'seed': run['seed'], 'force_eos': run['force_eos'],
             'label_noise': run['label_noise'], 'method': method, 'n': n,
             'kl': divergence, 'sqrt_kl': math.sqrt(max(divergence, 0.0))}
      for what in WATCHED:
        value = curves.get(what, {}).get(method)
        column = np.full(2, np.nan) if value is None else value[:, i]
        row[what] = round(float(column.mean()), 6)
        row[f'{what}_se'] = round(float(statistics.standard_error(column)), 6)
      rows.append(row)
  return rows


def _measure(ns: Sequence[int], curves: dict) -> dict[str, dict[str, float]]:
  """Of one seed and condition: gold, and what else the last picks are."""
  methods = statistics.best_of_n_summary(ns, {
      k: v for k, v in curves['gold'].items() if k != 'single'})
  for method, row in methods.items():
    for what in ('rule', 'unfinished'):
      last = curves.get(what, {}).get(method, np.full((2, 1), np.nan))[:, -1]
      row[what] = float(last.mean())
      row[f'{what}_se'] = float(statistics.standard_error(last))
  return methods


def _summary(conditions: Mapping[tuple, Sequence[dict]]) -> list[dict]:
  """A row for each condition and method, over its seeds."""
  rows = []
  for (force_eos, noise), seeds in sorted(conditions.items()):
    for method in (m for m in seeds[0] if not m.startswith('single_')):
      row = {'EOS': 'forced' if force_eos else 'as sampled',
             'noise': f'{100 * noise:g}%', 'method': method,
             'seeds': len(seeds)}
      for what in COLUMNS:
        row[what], row[f'{what}_se'] = figures.over_seeds(
            [(s[method][what], s[method][f'{what}_se']) for s in seeds])
      row['seeds_falling'] = sum(
          s[method]['drop'] > 2 * s[method]['drop_se'] for s in seeds)
      rows.append(row)
  return rows


def tables(context, runs: Sequence[Mapping]) -> tuple[list[dict], list[dict]]:
  """The rows of results.csv and of summary.csv.

  Args:
    context: of the stage that reads.
    runs: {'stage', 'seed', 'force_eos', 'label_noise'} of each condition.

  Returns:
    A row for each seed, condition, method and n: `WATCHED` and their errors
    over prompts. A row for each condition and method: `COLUMNS`, their errors
    over seeds, and how many seeds fall by more than two standard errors over
    prompts. NaN where a condition has no rule.

  Raises:
    CheckpointError: a stage is not complete, or its files are damaged.
  """
  rows, conditions = [], {}
  for run in runs:
    ns, curves = _read(context, run)
    rows += _curve_rows(run, ns, curves)
    conditions.setdefault((run['force_eos'], run['label_noise']), []).append(
        _measure(ns, curves))
  return rows, _summary(conditions)


def page(summary: Sequence[Mapping]) -> str:
  """The summary in Markdown, without a rule where there is none."""
  columns = [what for what in COLUMNS
             if any(math.isfinite(row[what]) for row in summary)]
  return figures.table(
      summary, columns, ('EOS', 'noise', 'method', 'seeds', 'seeds_falling'))


def message(summary: Sequence[Mapping]) -> str:
  """What the command prints of the summary."""
  table = figures.table(
      summary, COLUMNS[:4], ('EOS', 'noise', 'method', 'seeds_falling'))
  over = 'seeds' if summary[0]['seeds'] > 1 else 'prompts'
  return (f'\nGold score in standard deviations of all samples, +- one '
          f'standard error over {over};\n'
          'seeds_falling: those whose drop exceeds two standard errors over '
          f'prompts.\n\n{table}\n')
