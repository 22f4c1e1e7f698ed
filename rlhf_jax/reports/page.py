"""One HTML page of studies that needs nothing but itself.

The plotting library, the style sheet and all data stand in the page, and its
content security policy forbids whatever does not: no request leaves it, and no
script runs but those whose SHA-256 it names, so that text of a sample is text.
"""

import base64
from collections.abc import Mapping, Sequence
import functools
import hashlib
import json
import pathlib
import time
from typing import Any

import jinja2
from scipy import stats

from rlhf_jax import __version__
from rlhf_jax import errors
from rlhf_jax.reports import page_claims
from rlhf_jax.reports import page_figures
from rlhf_jax.reports import page_samples
from rlhf_jax.reports import page_study
from rlhf_jax.storage import files

WEB = pathlib.Path(__file__).parent / 'web'
_SCRIPTS = ('curves.js', 'charts.js', 'samples.js')
_MOST_SEEDS = 200  # that have a quantile of Student's t


@functools.cache
def library() -> str:
  """The plotting library, plotly.js (MIT), as its Python package has it.

  Raises:
    ConfigError: it is not installed.
  """
  try:
    from plotly import offline
  except ImportError as error:
    raise errors.ConfigError(
        'a page needs plotly, which is not installed; pip install '
        "'rlhf_jax[report]'") from error
  return offline.get_plotlyjs()


def as_json(value: Any) -> str:
  """JSON that may stand in an HTML page, whatever its texts say.

  No `<` is left of which a tag could be made, and all that is not ASCII, such
  as the line separators U+2028 and U+2029, is escaped.
  """
  text = json.dumps(files.jsonable(value), allow_nan=False,
                    separators=(',', ':'))
  return text.replace('<', '\\u003c').replace('>', '\\u003e')


def write(path: pathlib.Path, studies: Sequence[page_study.Study], *,
          experiments: Sequence[pathlib.Path | None], most: int):
  """Writes the page; whole or not at all.

  Args:
    path: of the HTML file.
    studies: in the order in which they stand.
    experiments: the config file of each, where it is known.
    most: samples at most.

  Raises:
    ConfigError: the plotting library is not installed.
    CheckpointError: the file cannot be written.
  """
  files.write_text(path, text(studies, experiments, most))


def text(studies: Sequence[page_study.Study],
         experiments: Sequence[pathlib.Path | None], most: int) -> str:
  """The whole page; arguments and errors as for `write`."""
  scripts = [library(), *((WEB / name).read_text() for name in _SCRIPTS)]
  # What a browser makes of line ends, and what its digests are of.
  scripts = [script.replace('\r\n', '\n').replace('\r', '\n')
             for script in scripts]
  samples = page_samples.of_studies(studies, most)  # notes what is damaged
  shown = [_study(study, path) for study, path in zip(studies, experiments)]
  lines = [page_figures.lines(study) for study in studies]
  data = {
      'studies': [{'name': study.name, 'charts': one['charts']}
                  for study, one in zip(studies, shown)],
      'lines': lines, 'columns': page_figures.columns_of(lines),
      # Student's, of 95 %, for 2 seeds, 3 seeds, ...
      'quantiles': [round(float(stats.t.ppf(.975, n - 1)), 5)
                    for n in range(2, _MOST_SEEDS + 1)],
      'samples': samples}
  environment = jinja2.Environment(
      autoescape=True, trim_blocks=True,
      lstrip_blocks=True, loader=jinja2.FileSystemLoader(WEB))
  return environment.get_template('page.html').render(
      title=' and '.join(one['title'] for one in shown[:3]),
      studies=shown, scripts=scripts, digests=[_digest(x) for x in scripts],
      style=(WEB / 'page.css').read_text(), data=as_json(data),
      samples=samples, has_spread=bool(samples['spread']),
      has_lines=any(lines), differences=page_claims.differences(studies),
      configured=[study.name for study in studies if study.config],
      version=__version__,
      now=time.strftime('%Y-%m-%d %H:%M %Z'))


def _digest(script: str) -> str:
  """As a content security policy names a script."""
  return base64.b64encode(
      hashlib.sha256(script.encode()).digest()).decode()


def _study(study: page_study.Study, path: pathlib.Path | None
           ) -> dict[str, Any]:
  """What the template says of one."""
  charts, reason = page_figures.of_study(study)
  image, docstring, claims = page_figures.png(study), {}, []
  if path is not None:
    docstring = page_claims.paragraphs(path)
    claims = page_claims.rows(study, path)
  return {
      'name': study.name, 'state': study.state,
      'title': (study.config.get('title') or docstring.get('Title')
                or study.name),
      'directory': str(study.directory), 'status': study.status,
      'notes': study.notes, 'stages': study.stages, 'charts': charts,
      'reason': reason, 'experiment': None if path is None else str(path),
      'told': docstring, 'claims': claims, 'versions': _versions(study),
      'minutes': sum(stage.seconds or 0 for stage in study.stages) / 60,
      'seeds': sorted({policy.seed for policy in study.policies}
                      | {row['seed'] for row in study.rows if 'seed' in row}),
      'runs': len({policy.run for policy in study.policies}),
      'size': study.config.get('size'),
      'config': json.dumps(study.config, indent=1, sort_keys=True),
      'image': image and base64.b64encode(image).decode()}


def _versions(study: page_study.Study) -> dict[str, str]:
  """Of Python and libraries; all that stages were made with, if several."""
  versions: dict[str, list[str]] = {}
  for stage in study.stages:
    for name, version in stage.versions.items():
      if version not in versions.setdefault(name, []):
        versions[name].append(version)
  return {name: ', '.join(several) for name, several in versions.items()}


def summary(studies: Sequence[page_study.Study]) -> str:
  """What the command says of what it has written."""
  return '\n'.join(_line(study) for study in studies)


def _line(study: page_study.Study) -> str:
  complete = sum(stage.state == 'complete' for stage in study.stages)
  where: Mapping = study.status
  what = (f'{complete} of {len(study.stages)} stages that have begun are '
          'complete')
  if where.get('stage') and study.state != 'complete':
    what += f'; last in {where["stage"]}'
  return f'{study.name}: {study.state}; {what}'
