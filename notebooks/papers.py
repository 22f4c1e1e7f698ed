"""What the notebooks of the papers share: results, intervals and verdicts."""

from collections.abc import Sequence
import csv
import pathlib

import numpy as np
from scipy import stats

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / 'experiments'


def _rows(path: pathlib.Path, command: str) -> list[dict[str, str]]:
  if not path.exists():
    raise FileNotFoundError(
        f'{path.relative_to(ROOT)} is not there. This makes it: {command}')
  with open(path, newline='') as stream:
    return list(csv.DictReader(stream))


def results(paper: str, figure: str) -> list[dict[str, str]]:
  """The rows of results.csv of a figure.

  Args:
    paper: a folder of experiments/.
    figure: a config in it, without .py.

  Raises:
    FileNotFoundError: they are missing; says which command makes them.
  """
  return _rows(
      EXPERIMENTS / paper / 'results' / figure / 'results.csv',
      f'rlhf-jax run --config=experiments/{paper}/{figure}.py:laptop '
      f'--workdir=runs/{figure}, whose report is copied to '
      f'experiments/{paper}/results/{figure}')


def verdicts(paper: str, words: str = '') -> str:
  """A Markdown table of what the results say of each claim.

  Args:
    paper: a folder of experiments/.
    words: what the claim has to begin with.
  """
  rows = _rows(EXPERIMENTS / paper / 'verdicts.csv', 'rlhf-jax verdicts')
  lines = ['| claim | paper | ours, 95 % interval over seeds | word |',
           '|---|---|---|---|']
  for row in rows:
    if row['claim'].startswith(words):
      ours = ('-' if not row['mean'] else
              f"{row['mean']} [{row['low']}, {row['high']}]")
      lines.append(f"| {row['claim']} | {row['paper']} | {ours} | "
                   f"**{row['word']}** |")
  return '\n'.join(lines)


def curve(rows: Sequence[dict[str, str]], x: str, y: str
          ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Mean over seeds of `y` at each `x`, and half of its 95 % interval.

  A member of an ensemble counts as part of its seed. x is the mean over what
  stands at the same place of each seed.
  """
  seeds = {}
  for row in rows:
    seeds.setdefault(row['seed'], {}).setdefault(
        float(row.get('n') or row['step']), []).append(
            (float(row[x]), float(row[y])))
  places = sorted(set.intersection(*({*of} for of in seeds.values())))
  values = np.array([[np.mean(of[place], axis=0) for place in places]
                     for of in seeds.values()])  # [seeds, places, 2]
  mean, count = values.mean(axis=0), len(values)
  half = np.zeros(len(places))
  if count > 1:
    half = (values[..., 1].std(axis=0, ddof=1) / count ** .5
            * stats.t.ppf(.975, count - 1))
  return mean[:, 0], mean[:, 1], half


def draw(axis, rows: Sequence[dict[str, str]], x: str, y: str, line: str, *,
         label: str = '{}', band: bool = True, **style):
  """A curve with its interval for each value of the column `line`.

  Args:
    axis: of matplotlib.
    rows: of `results`.
    x: column of the abscissa.
    y: column of the ordinate.
    line: column that names a curve.
    label: what the legend says, with {} for the name.
    band: whether the interval is shown.
    **style: of the curves.
  """
  for i, name in enumerate(dict.fromkeys(row[line] for row in rows)):
    at, mean, half = curve([r for r in rows if r[line] == name], x, y)
    axis.plot(at, mean, color=f'C{i}', label=label.format(name), **style)
    if band:
      axis.fill_between(at, mean - half, mean + half, color=f'C{i}', alpha=.12)
  axis.set(xlabel=x, ylabel=y)
