"""One figure of several studies of best-of-n, over what tells them apart.

Coste et al. 2024, https://arxiv.org/abs/2310.02743, draw the final gold score
of best-of-n over the size of the reward models, the pairs, the members and
lambda (figures 8, 9, 11 and 12), and the curves of single models by size and
by pairs (13); each point, or each curve, is a study of its own here.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any, NamedTuple

from rlhf_jax.reports import figures
from rlhf_jax.reports import panels
from rlhf_jax.reports import style
from rlhf_jax.storage import files

# What studies may differ in, by the name of its axis.
FIELDS = {
    'width of the reward models':
        lambda config: config['proxy']['model']['hidden_size'],
    'pairs': lambda config: (config['data']['num_pair_prompts']
                             - config['proxy']['held_out']),
    'ensemble members': lambda config: config['proxy']['num_members'],
}


class Study(NamedTuple):
  """A study of best-of-n: its config, and the rows of its results.csv."""

  config: Mapping[str, Any]
  rows: Sequence[files.Row]


def draw(studies: Sequence[Study], path: str | os.PathLike, *, title: str):
  """Draws the final gold scores, or of single models alone their curves.

  Args:
    studies: two or more of one label noise, which differ in at least one of
      `FIELDS`; the first is the usual one.
    path: of the PNG, written whole or not at all.
    title: above the panels.
  """
  seeds = len({row['seed'] for row in studies[0].rows})
  note = f'mean of {seeds} seeds +- one standard error over them'
  if not _methods(studies[0].config):
    panels.curves(_curves(studies), path, title=title, x='sqrt_kl',
                  y=('gold', 'proxy'), x_name=style.SQRT_KL, note=note)
    return
  field = differing(studies)[0]
  if len(_coefs(studies[0].config)) > 1:
    rows, x = _over_lambda(studies, field), style.label_name('uncertainty_coef')
  else:
    rows, x = _over_field(studies, field), field
  panels.points(rows, path, title=title, x=x, y=('gold',), note=note)


def differing(studies: Sequence[Study]) -> list[str]:
  """Those of `FIELDS` of which the studies have several values."""
  return [name for name, of in FIELDS.items()
          if len({of(study.config) for study in studies}) > 1]


def _methods(config: Mapping[str, Any]) -> Mapping[str, Mapping]:
  return config['best_of_n']['methods']


def _coefs(config: Mapping[str, Any]) -> dict[str, float]:
  """The lambda of each uncertainty-weighted ensemble, by its name."""
  return {name: method['uncertainty_coef']
          for name, method in _methods(config).items()
          if method['kind'] == 'uncertainty_weighted'}


def _last(study: Study, name: str) -> dict[str, float]:
  """Gold score of the best of the most responses."""
  _, gold, error = figures.lines(study.rows, name, 'gold')
  return {'panel': '', 'gold': gold[-1], 'gold_se': error[-1]}


def _over_field(studies: Sequence[Study], field: str) -> list[dict]:
  """A line for each way to combine reward models."""
  return [_last(study, name) | {
      'line': label, 'x': FIELDS[field](study.config)}
          for study in studies for name, (_, label) in style.of_aggregates(
              row['method'] for row in study.rows).items()]


def _over_lambda(studies: Sequence[Study], field: str) -> list[dict]:
  """A line for each study; single models, which have no lambda, across."""
  label = style.STYLE['uncertainty_weighted'][1]
  rows = [_last(study, name) | {
      'line': f'{label}, {field} {FIELDS[field](study.config)}', 'x': coef}
          for study in studies
          for name, coef in _coefs(study.config).items()]
  return [_last(studies[0], 'single') | {
      'line': style.STYLE['single'][1], 'x': None}, *rows]


def _curves(studies: Sequence[Study]) -> list[dict]:
  """Those of single models: a panel for each field, a line for each value.

  A panel has the studies that are as the first in all other fields.
  """
  rows = []
  for field in differing(studies):
    others = [of for name, of in FIELDS.items() if name != field]
    alike = [study for study in studies if all(
        of(study.config) == of(studies[0].config) for of in others)]
    for study in sorted(alike, key=lambda one: FIELDS[field](one.config)):
      columns = {what: figures.lines(study.rows, 'single', what)
                 for what in ('gold', 'proxy')}
      for i, x in enumerate(columns['gold'][0]):
        rows.append({'panel': field, 'sqrt_kl': x,
                     'line': f'{field} {FIELDS[field](study.config)}'} | {
                         key: value for what, (_, mean, error)
                         in columns.items() for key, value in
                         ((what, mean[i]), (f'{what}_se', error[i]))})
  return rows
