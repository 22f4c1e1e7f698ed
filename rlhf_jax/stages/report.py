"""The figure, the table and every number in them, over seeds and conditions."""

from collections.abc import Sequence
import math

import numpy as np

from rlhf_jax import evaluate
from rlhf_jax import figures
from rlhf_jax import files
from rlhf_jax.ops import best_of_n

WATCHED = ('gold', 'proxy', 'rule', 'unfinished', 'length')
COLUMNS = ('peak', 'final', 'drop', 'above_single')


def _curve_rows(context, run: dict) -> list[dict]:
  """One row for each method and n of one seed and condition."""
  arrays = files.load_arrays(
      context.directory_of(run['stage']) / 'curves.npz')
  ns = arrays.pop('ns').tolist()
  curves = {}
  for name, value in arrays.items():
    what, method = name.split('__')
    curves.setdefault(what, {})[method] = value
  curves = {what: evaluate.with_single(methods)
            for what, methods in curves.items() if what in WATCHED}
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
        row[what] = float(column.mean())
        row[f'{what}_se'] = float(evaluate.standard_error(column))
      rows.append(row)
  return rows


def _summary_rows(context, runs: Sequence[dict]) -> list[dict]:
  """Peak, final, drop and final above single, over seeds, by condition."""
  results = {}
  for run in runs:
    summary = context.result_of(run['stage'])['summary']
    results.setdefault((run['force_eos'], run['label_noise']),
                       []).append(summary)
  rows = []
  for (force_eos, noise), seeds in sorted(results.items()):
    for method in (m for m in seeds[0] if not m.startswith('single_')):
      row = {'EOS': 'forced' if force_eos else 'as sampled',
             'noise': f'{noise:.0%}', 'method': method, 'seeds': len(seeds)}
      for what in ('peak', 'final', 'drop'):
        row[what], row[f'{what}_se'] = figures.over_seeds(
            [(s[method][what], s[method][f'{what}_se']) for s in seeds])
      row['above_single'], row['above_single_se'] = figures.over_seeds(
          [(s[method]['final'] - s['single']['final'], math.nan)
           for s in seeds])
      row['falls_in'] = sum(s[method]['drop'] > 2 * s[method]['drop_se']
                            for s in seeds)
      rows.append(row)
  return rows


def run(context, *, runs: Sequence[dict], title: str) -> dict:
  """Writes results.csv, results.jsonl, summary.csv, summary.md, figure.png.

  Args:
    context: of the stage.
    runs: {'stage', 'seed', 'force_eos', 'label_noise'} of each condition.
    title: of the figure.
  """
  rows = [row for one in runs for row in _curve_rows(context, one)]
  summary = _summary_rows(context, runs)
  figures.write_csv(context.directory / 'results.csv', rows)
  figures.write_jsonl(context.directory / 'results.jsonl', rows)
  figures.write_csv(context.directory / 'summary.csv', summary)
  text = figures.table(summary, COLUMNS, ('EOS', 'noise', 'method', 'seeds',
                                          'falls_in'))
  files.write_text(context.directory / 'summary.md', text + '\n')
  figures.best_of_n(rows, context.directory / 'figure.png', title=title)
  print(f'\nGold score in standard deviations of all samples, +- one standard '
        f'error over {"seeds" if summary[0]["seeds"] > 1 else "prompts"};\n'
        'falls_in: seeds whose drop exceeds two standard errors over prompts.'
        f'\n\n{text}\n', flush=True)
  return {'figure': str(context.directory / 'figure.png'), 'rows': len(rows)}
