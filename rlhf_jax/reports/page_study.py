"""What a workdir says of its study, whatever state it is in.

Nothing here asks for a complete study: what cannot be read is said in
`Study.notes`, and all the rest is there. A directory of results alone, such as
those under `experiments/`, counts as a study of which only that is left.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.reports import redraw
from rlhf_jax.reports import results
from rlhf_jax.runner import status as status_lib
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

RESULTS = 'results.csv'
_SHOWN = 4  # numbers of a stage in its line


@dataclasses.dataclass(frozen=True)
class Stage:
  """One stage, as far as it has come."""

  name: str
  directory: pathlib.Path
  state: str  # complete, running, begun, damaged
  seconds: float | None
  numbers: dict[str, float]  # of its result, a few
  recipe: str
  versions: dict[str, str]  # of Python and libraries
  code: str  # digest of the modules that it ran


@dataclasses.dataclass(frozen=True)
class Study:
  """What is known of one workdir."""

  directory: pathlib.Path
  name: str  # short, and of no other study on the page
  config: dict[str, Any]  # {} of results alone
  status: dict[str, Any]  # of `status.read`
  stages: list[Stage]
  policies: list[results.Policy]
  rows: list[dict]  # of the table of a complete study, or []
  report: pathlib.Path | None  # where its tables and its PNG are
  notes: list[str]  # what is absent or cannot be read

  @property
  def state(self) -> str:
    """In a word: complete, running, failed, interrupted, killed, empty, ..."""
    absent = 'not started' if self.config else 'results only'
    return self.status.get('state') or absent


class Across:
  """What a report asks of its study, whose stages may be incomplete."""

  def __init__(self, workdir: pathlib.Path):
    self._workdir = workdir

  def directory_of(self, name: str) -> pathlib.Path:
    return self._workdir / name

  def result_of(self, name: str) -> dict:
    """CheckpointError unless the stage is complete."""
    record = workdirs.read_record(self._workdir / name)
    if record is None:
      raise errors.CheckpointError(f'{name} is not complete')
    return record['result']


def read(workdirs_: Sequence[pathlib.Path]) -> list[Study]:
  """The studies of workdirs, each by a name of its own.

  Raises:
    DataError: one of them holds neither a study nor results.
    ConfigError: one was made by an older version.
    CheckpointError: the config of one is damaged.
  """
  names = [path.absolute().name for path in workdirs_]
  return [_study(path, name if names.count(name) == 1 else str(path))
          for path, name in zip(workdirs_, names)]


def _study(directory: pathlib.Path, name: str) -> Study:
  if (directory / workdirs.CONFIG).is_file():
    return _of_workdir(directory, name)
  if (directory / RESULTS).is_file():
    rows = redraw.table(directory / RESULTS)
    return Study(directory, name, {}, {}, _logged_stages(directory),
                 _of_table(directory, rows), rows, directory, [
                     'Results alone: there is no config, no sample and no '
                     'recipe beside them.'])
  if directory.is_dir() and not any(directory.iterdir()):
    return Study(directory, name, {}, {'state': 'empty'}, [], [], [], None, [
        'The directory is empty: no command has run in it.'])
  what = (f'it holds neither a study (no {workdirs.CONFIG}) nor results (no '
          f'{RESULTS})' if directory.is_dir() else
          'there is no such directory')
  raise errors.DataError(
      f'{directory}: {what}; give the --workdir of rlhf-jax run or train')


def _of_workdir(directory: pathlib.Path, name: str) -> Study:
  workdirs.check_layout(directory)
  config, notes = files.read_object(directory / workdirs.CONFIG), []
  try:
    status = status_lib.read(directory)
  except errors.UserError as error:
    status, notes = {}, [str(error)]
  stages = list(_stages(directory, status, notes))
  report = next((stage.directory for stage in reversed(stages)
                 if (stage.directory / RESULTS).is_file()
                 and stage.state == 'complete'), None)
  rows = [] if report is None else redraw.table(report / RESULTS)
  policies = _policies(config, stages, notes)
  policies = policies or _of_table(directory, rows)
  if not stages:
    notes.append('No stage has begun yet.')
  elif report is None:
    notes.append('The study is not complete: there is no table and no figure '
                 'of it yet, and what is drawn is what there is so far.')
  return Study(directory, name, config, status, stages, policies, rows, report,
               notes)


def _stages(workdir: pathlib.Path, status: Mapping, notes: list[str]
            ) -> Iterator[Stage]:
  """Those that have begun, in the order in which they ended."""
  paths = []
  for root, below, names in os.walk(workdir):
    below[:] = sorted(name for name in below if not name.startswith('.'))
    if {workdirs.RESULT, workdirs.BEGUN} & {*names}:
      below.clear()
      paths.append(pathlib.Path(root))
  ended = lambda path: next(
      ((i, file.stat().st_mtime) for i, file in enumerate(
          (path / workdirs.RESULT, path / workdirs.BEGUN)) if file.exists()),
      (2, 0.0))
  for path in sorted(paths, key=ended):
    name = path.relative_to(workdir).as_posix()
    running = (status.get('state') == 'running'
               and status.get('stage') == name)
    try:
      record = workdirs.read_record(path)
      state = 'complete' if record else 'running' if running else 'begun'
    except errors.UserError as error:
      record, state = None, 'damaged'
      notes.append(str(error))
    yield _stage(name, path, state, record)


def _stage(name: str, path: pathlib.Path, state: str, record: dict | None
           ) -> Stage:
  record = record or workdirs.read_begun(path) or {}
  code = record.get('code') or {}
  return Stage(
      name, path, state, record.get('seconds'),
      _numbers(record.get('result') or {}), record.get('recipe') or '',
      {k: v for k, v in code.items() if '.' in str(v) or k == 'python'},
      files.digest(code) if code else '')


def _numbers(result: Mapping) -> dict[str, float]:
  """The first numbers of a result."""
  numbers = {key: value for key, value in result.items()
             if isinstance(value, int | float) and '/' not in key}
  return dict(list(numbers.items())[:_SHOWN])


def _logged_stages(directory: pathlib.Path) -> list[Stage]:
  """Those of stages.jsonl, beside results alone."""
  path = directory / 'stages.jsonl'
  rows = results.read_rows(path) if path.exists() else []
  return [Stage(row['stage'], directory, 'complete', row['stage_seconds'],
                _numbers({k: v for k, v in row.items()
                          if k not in ('stage', 'stage_seconds')}), '', {}, '')
          for row in rows]


def _policies(config: Mapping, stages: Sequence[Stage], notes: list[str]
              ) -> list[results.Policy]:
  """All that were evaluated at least once, by the labels of their runs."""
  policies, runs = [], config.get('runs') or {}
  for stage in stages:
    path = stage.directory / 'evaluation.jsonl'
    if not path.is_file():
      continue
    seed, _, rest = stage.name.partition('/')
    run = rest.removeprefix('policies/')
    labels = (runs.get(run) or {}).get('labels') or {'run': run}
    try:
      rows = _whole_rows(path)
    except (OSError, ValueError) as error:
      notes.append(f'cannot read {path}: {errors.first_line(error)}')
      continue
    if rows and seed.removeprefix('seed_').isdigit():
      policies.append(_policy(
          stage.directory, int(seed.removeprefix('seed_')), run, labels, rows))
  return policies


def _of_table(directory: pathlib.Path, rows: Sequence[Mapping]
              ) -> list[results.Policy]:
  """The policies of results.csv; none of best-of-n, which has no runs."""
  if not redraw.has_policies(rows):
    return []
  return redraw.policies(directory, rows)


def _whole_rows(path: pathlib.Path) -> list[dict]:
  """JSON lines; the last one may be half written."""
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.endswith('\n')]


def _policy(directory, seed, run, labels, rows) -> results.Policy:
  names = dict.fromkeys(name for row in rows for name, value in row.items()
                        if isinstance(value, int | float | None))
  return results.Policy(
      directory, seed, run, dict(labels), rows, {
          name: np.array([row.get(name) for row in rows], np.float64)
          for name in names}, {}, [], np.zeros(0))
