"""What a paper claims of an experiment, and what a workdir says of it.

A workdir does not know which config it is of; the experiment is found by the
title of its figure, whose beginning, 'Coste et al. 2024, figure 4', is that of
the config's docstring, or which stands in the file; or it is named.
"""

import ast
from collections.abc import Sequence
import pathlib
import re
from typing import Any

from rlhf_jax import errors
from rlhf_jax.reports import contrasts
from rlhf_jax.reports import page_study
from rlhf_jax.reports import verdicts
from rlhf_jax.storage import files

CONTRASTS = 'contrasts.jsonl'


def experiment(study: page_study.Study, root: pathlib.Path
               ) -> list[pathlib.Path]:
  """The config files below `root` that a study may be of.

  Results are of the file that their directory is named after.
  """
  if not study.config:
    path = study.directory.absolute()
    own = path.parent.parent / f'{path.name}.py'
    return [own] if path.parent.name == 'results' and own.is_file() else []
  title = study.config.get('title', '')
  return [path for path in sorted(root.glob('*/*.py'))
          if title in _texts(path)
          or (_item(title) and _item(title) == _item(_head(path)))]


def _item(title: str) -> str:
  """Paper and figure that a title begins with; '' where it does not."""
  head, colon, _ = title.partition(': ')
  return re.sub(r' \(.*?\)', '', head) if colon else ''


def _head(path: pathlib.Path) -> str:
  """The beginning of the docstring of a config; '' where it cannot be read."""
  try:
    return paragraphs(path)['Title']
  except errors.DataError:
    return ''


def _texts(path: pathlib.Path) -> set[str]:
  """All strings of a config file; its docstring apart."""
  try:
    tree = ast.parse(path.read_bytes())
  except (OSError, SyntaxError, ValueError):
    return set()
  return {node.value for node in ast.walk(tree)
          if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def docstring(path: pathlib.Path) -> str:
  """That of a config, which is not imported; '' where it has none.

  Raises:
    DataError: the file cannot be read.
  """
  try:
    return ast.get_docstring(ast.parse(path.read_bytes())) or ''
  except (OSError, SyntaxError, ValueError) as error:
    raise errors.DataError(
        f'{path}: cannot be read: {errors.first_line(error)}') from None


def paragraphs(path: pathlib.Path) -> dict[str, str]:
  """What the docstring of a config says, by the words before its colons.

  Its title by 'Title'.

  Raises:
    DataError: the file cannot be read.
  """
  doc = docstring(path)
  parts = {'Title': ' '.join(doc.partition('\n\n')[0].split())}
  for name, text in re.findall(
      r'^([A-Z]\w+):\s+(.*?)(?=^[A-Z]\w+:\s|^\s*$|\Z)', doc,
      re.MULTILINE | re.DOTALL):
    parts[name] = ' '.join(text.split())
  return parts


def rows(study: page_study.Study, path: pathlib.Path) -> list[dict[str, Any]]:
  """The contrasts of an experiment: a line of `verdicts.row` for each.

  With 'told', the word that the results beside the config have, and without
  interval or word of the study's own where it has no such results yet.

  Args:
    study: whose results are read.
    path: of the config file.

  Raises:
    UserError: the contrasts are damaged.
  """
  source = path.parent / CONTRASTS
  if not source.is_file():
    return []
  lines = []
  for fields in files.read_jsonl(source):
    contrast = contrasts.Contrast(**fields)
    if not _is_of(contrast.figure, path, study):
      continue
    theirs = verdicts.row(contrast, path.parent / 'results')
    try:
      own = verdicts.row(contrast, path.parent / 'results',
                         own=study.report or study.directory)
    except errors.DataError:  # without these runs, as at size smoke
      own = theirs | {'mean': '', 'low': '', 'high': '', 'seeds': 0,
                      'word': 'not in this study'}
    lines.append(own | {'told': theirs['word'], 'margin': contrast.margin})
  return lines


def _is_of(figure: str, path: pathlib.Path, study: page_study.Study) -> bool:
  """Whether a contrast is of these results: fig3_content is of fig3 too."""
  if not study.config:
    return figure == study.directory.absolute().name
  return figure == path.stem


def differences(studies: Sequence[page_study.Study]) -> list[tuple]:
  """(field, value in each study) of the configs, where they differ."""
  flat = [_flat(study.config) for study in studies if study.config]
  if len(flat) < 2:
    return []
  return [(key, *(repr(one.get(key)) if key in one else '' for one in flat))
          for key in sorted({key for one in flat for key in one})
          if len({repr(one.get(key)) for one in flat}) > 1]


def _flat(node: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(node, dict) or not node:
    return {prefix.removesuffix('.'): node}
  flat = {}
  for key, value in node.items():
    flat |= _flat(value, f'{prefix}{key}.')
  return flat
