"""The figure, the table and every number in them, over seeds and conditions."""

from collections.abc import Sequence
import math

import numpy as np

from rlhf_jax.evaluation import statistics
from rlhf_jax.ops import best_of_n
from rlhf_jax.reports import figures
from rlhf_jax.storage import files

WATCHED = ('gold', 'proxy', 'rule', 'unfinished', 'length')
COLUMNS = ('peak', 'final', 'drop', 'above_single', 'rule', 'unfinished')


def _curves(context, run: dict) -> tuple[list[int], dict]:
  """The grid of n, and curves[what][method] f32[B, len(ns)] of a condition."""
  arrays = files.load_arrays(
      context.directory_of(run['stage']) / 'curves.npz')
  ns, curves = arrays.pop('ns').tolist(), {}
  for name, value in arrays.items():
    what, method = name.split('__')
    curves.setdefault(what, {})[method] = value
  return ns, {what: statistics.with_single(curves[what])
              for what in WATCHED if what in curves}


def _curve_rows(run: dict, ns: Sequence[int], curves: dict) -> list[dict]:
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


def _summary(ns: Sequence[int], curves: dict) -> dict:
  """Of one seed and condition: gold, and what else the last picks are."""
  summary = statistics.best_of_n_summary(ns, {
      k: v for k, v in curves['gold'].items() if k != 'single'})
  for method, row in summary.items():
    for what in ('rule', 'unfinished'):
      last = curves.get(what, {}).get(method, np.full((2, 1), np.nan))[:, -1]
      row[what] = float(last.mean())
      row[f'{what}_se'] = float(statistics.standard_error(last))
  return summary


def _summary_rows(results: dict[tuple, list[dict]]) -> list[dict]:
  """A row for each condition and method, over its seeds."""
  rows = []
  for (force_eos, noise), seeds in sorted(results.items()):
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


def _stage_rows(context, stages: Sequence[str]) -> list[dict]:
  """Wall time and every number that a stage reports."""
  return [{'stage': name, 'stage_seconds': context.seconds_of(name),
           **context.result_of(name)} for name in stages]


def run(context, *, runs: Sequence[dict], stages: Sequence[str],
        title: str) -> dict:
  """Writes results.csv and .jsonl, summary.csv and .md, stages.jsonl and
  figure.png.

  Args:
    context: of the stage.
    runs: {'stage', 'seed', 'force_eos', 'label_noise'} of each condition.
    stages: all stages before this one, whose numbers are kept.
    title: of the figure.
  """
  rows, results = [], {}
  for one in runs:
    ns, curves = _curves(context, one)
    rows += _curve_rows(one, ns, curves)
    results.setdefault((one['force_eos'], one['label_noise']), []).append(
        _summary(ns, curves))
  summary = _summary_rows(results)
  files.write_csv(context.directory / 'results.csv', rows)
  files.write_jsonl(context.directory / 'results.jsonl', rows)
  files.write_csv(context.directory / 'summary.csv', summary)
  files.write_jsonl(context.directory / 'stages.jsonl',
                      _stage_rows(context, stages))
  text = figures.table(summary, COLUMNS, ('EOS', 'noise', 'method', 'seeds',
                                          'seeds_falling'))
  files.write_text(context.directory / 'summary.md', text + '\n')
  figures.best_of_n(rows, context.directory / 'figure.png', title=title)
  short = figures.table(
      summary, COLUMNS[:4], ('EOS', 'noise', 'method', 'seeds_falling'))
  context.show(
      f'\nGold score in standard deviations of all samples, +- one standard '
      f'error over {"seeds" if summary[0]["seeds"] > 1 else "prompts"};\n'
      'seeds_falling: those whose drop exceeds two standard errors over '
      f'prompts.\n\n{short}\n')
  return {'figure': str(context.directory / 'figure.png'), 'rows': len(rows)}
