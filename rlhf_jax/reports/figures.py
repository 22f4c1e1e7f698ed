"""Tables, means over seeds, and the figure of best-of-n."""

from collections.abc import Iterable, Mapping, Sequence
import math
import os

import numpy as np

from rlhf_jax.evaluation import statistics
from rlhf_jax.reports import panels
from rlhf_jax.reports import style
from rlhf_jax.storage import files


def _value(mean: float, error: float, digits: int) -> str:
  if not math.isfinite(mean):
    return '-'
  if not math.isfinite(error):
    return f'{mean:.{digits}f}'
  return f'{mean:.{digits}f} +- {error:.{digits}f}'


def table(rows: Sequence[files.Row], columns: Iterable[str],
          labels: Sequence[str], digits: int = 2) -> str:
  """A Markdown table of `<column> +- <column>_se`, one line for each row.

  Args:
    rows: with the labels, the columns and their errors.
    columns: numbers to show.
    labels: what names a row.
    digits: after the point.
  """
  head = [*labels, *columns]
  lines = [head]
  for row in rows:
    cells = [str(row[name]) for name in labels]
    cells += [_value(row[c], row[f'{c}_se'], digits) for c in columns]
    lines.append(cells)
  width = [max(len(line[i]) for line in lines) for i in range(len(head))]
  text = ['| ' + ' | '.join(c.ljust(w) for c, w in zip(line, width)) + ' |'
          for line in lines]
  text.insert(1, '|' + '|'.join('-' * (w + 2) for w in width) + '|')
  return '\n'.join(text)


def over_seeds(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
  """(mean, s.e.) of per-seed (mean, s.e. over prompts).

  With one seed its own error over prompts is kept; with several, prompts are
  one of the things that differ between seeds, so only those are compared.
  """
  if len(values) == 1:
    return values[0]
  means = np.array([mean for mean, _ in values])
  return float(means.mean()), float(statistics.standard_error(means))


def lines(rows: Sequence[files.Row], method: str, what: str):
  """x, mean and error over seeds of one method in one panel, by n."""
  chosen = [r for r in rows if r['method'] == method]
  ns = sorted({r['n'] for r in chosen})
  at = lambda n: [r for r in chosen if r['n'] == n]
  points = [over_seeds([(r[what], r[f'{what}_se']) for r in at(n)])
            for n in ns]
  x = [at(n)[0]['sqrt_kl'] for n in ns]
  mean, error = np.array(points).T
  return np.array(x), mean, np.nan_to_num(error)


def _panel(axis, rows: Sequence[files.Row], title: str):
  """One condition: gold solid on the left axis, proxy dashed on the right."""
  right = axis.twinx()
  methods = style.of_aggregates(r['method'] for r in rows)
  for (colour, _), part in thin(rows, methods):
    axis.plot([r['sqrt_kl'] for r in part], [r['gold'] for r in part],
              color=colour, linewidth=0.6, alpha=0.3)
  for method, (colour, label) in methods.items():
    x, mean, error = lines(rows, method, 'gold')
    axis.plot(x, mean, color=colour, linewidth=1.8, label=label)
    axis.fill_between(x, mean - error, mean + error, color=colour, alpha=0.15,
                      linewidth=0)
    x, mean, error = lines(rows, method, 'proxy')
    right.plot(x, mean, color=colour, linewidth=1.0, linestyle='--')
    right.fill_between(x, mean - error, mean + error, color=colour, alpha=0.08,
                       linewidth=0)
  axis.set_title(title, fontsize=10)
  axis.grid(alpha=0.25)
  for side in (axis, right):
    side.spines['top'].set_visible(False)
  return right


def thin(rows: Sequence[files.Row], methods: Mapping[str, tuple[str, str]]
         ) -> list[tuple[tuple[str, str], list[files.Row]]]:
  """Colour with name, and rows, of each line of a single seed.

  With one seed these are its members; single models by themselves are shown by
  the members of each seed.

  Args:
    rows: of one condition.
    methods: of `style.of_aggregates`.
  """
  seeds = sorted({r['seed'] for r in rows})
  pick = lambda seed, name: [
      r for r in rows if (r['seed'], r['method']) == (seed, name)]
  if len(seeds) > 1 and len(methods) > 1:
    return [(look, pick(seed, name))
            for name, look in methods.items() for seed in seeds]
  members = sorted({r['method'] for r in rows
                    if r['method'].startswith('single_')})
  return [(style.STYLE['single'], pick(seed, name))
          for name in members for seed in seeds]


def note(rows: Sequence[files.Row]) -> str:
  """What bands and thin lines are."""
  count = len({r['seed'] for r in rows})
  if count == 1:
    return 'one seed; bands: one standard error over prompts; thin: members'
  several = len(style.of_aggregates(r['method'] for r in rows)) > 1
  return (f'mean of {count} seeds; bands: one standard error over them; '
          f'thin: {"single seeds" if several else "members of single seeds"}')


def best_of_n(rows: Sequence[files.Row], path: str | os.PathLike, *,
              title: str):
  """Draws gold and proxy scores against sqrt(KL), a panel for each condition.

  In the manner of Coste et al. 2024, Fig. 3. Bands are one standard error,
  over seeds where there are several, else over prompts; thin lines are the
  gold scores of single seeds, or of single members. Both axes have their zero
  at one height.

  Args:
    rows: as the report of the best-of-n study writes them.
    path: of the PNG, written whole or not at all.
    title: above the panels.
  """
  import matplotlib
  matplotlib.use('Agg')
  from matplotlib import pyplot as plt

  conditions = sorted({(r['force_eos'], r['label_noise']) for r in rows})
  ends = sorted({end for end, _ in conditions})
  noises = sorted({noise for _, noise in conditions})
  figure, axes = plt.subplots(
      len(ends), len(noises), squeeze=False, sharex=True, sharey=True,
      figsize=(1.5 + 4.6 * len(noises), 1.0 + 3.3 * len(ends)))
  rights = []
  for i, end in enumerate(ends):
    for j, noise in enumerate(noises):
      part = [r for r in rows
              if (r['force_eos'], r['label_noise']) == (end, noise)]
      name = 'every response ends in EOS' if end else 'as sampled'
      right = _panel(axes[i, j], part, f'{100 * noise:g}% label noise, {name}')
      rights.append(right)
      if i == len(ends) - 1:
        axes[i, j].set_xlabel(style.SQRT_KL)
      if j == 0:
        axes[i, j].set_ylabel('gold score (solid), s.d. of samples')
      if j == len(noises) - 1:
        right.set_ylabel('proxy score (dashed), s.d. of samples')
  panels.align([*axes.flat], rights)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  panels.save(figure, dict(zip(labels, handles)), labels, path, title,
              note(rows))
