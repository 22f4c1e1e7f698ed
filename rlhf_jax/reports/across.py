"""One figure of several studies of one kind, over what tells them apart.

Coste et al. 2024, https://arxiv.org/abs/2310.02743, draw the final gold score
of best-of-n over the size of the reward models, the pairs, the members and
lambda (figures 8, 9, 11 and 12), and the curves of single models by size and
by pairs (13); each point, or each curve, is a study of its own here. So is
each policy of Zhu et al. 2023, https://arxiv.org/abs/2306.02231, figures 3
and 4, which has panels of its own.
"""

from collections.abc import Mapping, Sequence
import os
from typing import Any

from rlhf_jax.reports import figures
from rlhf_jax.reports import panels
from rlhf_jax.reports import policies
from rlhf_jax.reports import redraw
from rlhf_jax.reports import style

# What studies of a kind may differ in, by the name of its axis.
FIELDS = {
    'best_of_n': {
        'width of the reward models':
            lambda config: config['proxy']['model']['hidden_size'],
        'pairs': lambda config: (config['data']['num_pair_prompts']
                                 - config['proxy']['held_out']),
        'ensemble members': lambda config: config['proxy']['num_members'],
    },
    'online': {
        'width of the policy':
            lambda config: config['policy']['model']['hidden_size'],
    },
}


def draw(studies: Sequence[redraw.Study], path: str | os.PathLike, *,
         title: str):
  """Draws the figures of policies side by side, or what best-of-n ends with.

  Those are final gold scores, or of single models alone their curves.

  Args:
    studies: two or more of one kind and label noise, which differ in at least
      one of its `FIELDS`; the first is the usual one. Policies that are
      trained otherwise than its are left out.
    path: of the PNG, written whole or not at all.
    title: above the panels.
  """
  if studies[0].config['study'] == 'online':
    name, arguments = _side_by_side(studies)
    getattr(panels, name)(path=path, title=title, **arguments)
  else:
    _best_of_n(studies, path, title=title)


def _side_by_side(studies: Sequence[redraw.Study]) -> tuple[str, dict]:
  """As `policies.drawing`, with a panel for each study."""
  field = differing(studies)[0]
  of = _fields(studies)[field]
  rows = {'rows': [], 'seeds': []}
  for study in sorted(_alike(studies), key=lambda one: of(one.config)):
    name, arguments = policies.drawing(*redraw.grouped(study))
    panel = {'panel': f'{field} {of(study.config)}'}
    for key in rows.keys() & arguments.keys():
      rows[key] += [row | panel for row in arguments[key]]
  return name, {key: rows.get(key, value) for key, value in arguments.items()}


def _best_of_n(studies: Sequence[redraw.Study], path: str | os.PathLike, *,
               title: str):
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


def differing(studies: Sequence[redraw.Study]) -> list[str]:
  """Those of their `FIELDS` of which the studies have several values."""
  return [name for name, of in _fields(studies).items()
          if len({of(study.config) for study in _alike(studies)}) > 1]


def _alike(studies: Sequence[redraw.Study]) -> list[redraw.Study]:
  """Those that train as the first does."""
  how = lambda study: [study.config.get(name) for name in ('online', 'runs')]
  return [study for study in studies if how(study) == how(studies[0])]


def _fields(studies: Sequence[redraw.Study]) -> Mapping[str, Any]:
  return FIELDS.get(studies[0].config['study'], {})


def _methods(config: Mapping[str, Any]) -> Mapping[str, Mapping]:
  return config['best_of_n']['methods']


def _coefs(config: Mapping[str, Any]) -> dict[str, float]:
  """The lambda of each uncertainty-weighted ensemble, by its name."""
  return {name: method['uncertainty_coef']
          for name, method in _methods(config).items()
          if method['kind'] == 'uncertainty_weighted'}


def _last(study: redraw.Study, name: str) -> dict[str, float]:
  """Gold score of the best of the most responses."""
  _, gold, error = figures.lines(study.rows, name, 'gold')
  return {'panel': '', 'gold': gold[-1], 'gold_se': error[-1]}


def _over_field(studies: Sequence[redraw.Study], field: str) -> list[dict]:
  """A line for each way to combine reward models."""
  of = _fields(studies)[field]
  return [_last(study, name) | {'line': label, 'x': of(study.config)}
          for study in studies for name, (_, label) in style.of_aggregates(
              row['method'] for row in study.rows).items()]


def _over_lambda(studies: Sequence[redraw.Study], field: str) -> list[dict]:
  """A line for each study; single models, which have no lambda, across."""
  label, of = style.STYLE['uncertainty_weighted'][1], _fields(studies)[field]
  rows = [_last(study, name) | {
      'line': f'{label}, {field} {of(study.config)}', 'x': coef}
          for study in studies
          for name, coef in _coefs(study.config).items()]
  return [_last(studies[0], 'single') | {
      'line': style.STYLE['single'][1], 'x': None}, *rows]


def _curves(studies: Sequence[redraw.Study]) -> list[dict]:
  """Those of single models: a panel for each field, a line for each value.

  A panel has the studies that are as the first in all other fields.
  """
  rows, fields = [], _fields(studies)
  for field in differing(studies):
    value = fields[field]
    others = [of for name, of in fields.items() if name != field]
    alike = [study for study in studies if all(
        of(study.config) == of(studies[0].config) for of in others)]
    for study in sorted(alike, key=lambda one: value(one.config)):
      columns = {what: figures.lines(study.rows, 'single', what)
                 for what in ('gold', 'proxy')}
      for i, x in enumerate(columns['gold'][0]):
        rows.append({'panel': field, 'sqrt_kl': x,
                     'line': f'{field} {value(study.config)}'} | {
                         key: value for what, (_, mean, error)
                         in columns.items() for key, value in
                         ((what, mean[i]), (f'{what}_se', error[i]))})
  return rows
