"""Logged responses, with what is said of each, from files of any kind.

`kinds` has what there is, and finds the kind of a file by its columns. Files
are those of `tables`. As with `readers`, a file is validated to its end before
anything is returned, and every bad entry is named by its line. A blank
response is dropped and counted as empty, the others of its example stay; a
response that a kind leaves out by its own rule is counted as skipped.
"""

from collections.abc import Callable, Hashable, Mapping
import dataclasses
import functools
import inspect
import os
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import kinds
from rlhf_jax.data import log_kinds
from rlhf_jax.data import readers
from rlhf_jax.data import tables

Logged = readers.Logged

KINDS = kinds.KINDS
final_answer = log_kinds.final_answer

_COLUMNS = {'comet': ('head', 'relation', 'tail')}  # ATOMIC has no header
_BEST_FIRST = {'stack_exchange': ('score', 'votes'), 'rows': ('reward',),
               'ranked': ('helpfulness',)}


def kind_of(path: str | os.PathLike, *, split: str | None = None,
            columns: Mapping[str, str] | None = None,
            advice: str = '--config.data.logged.kind says which it is, '
            '--config.data.logged.columns.<name>=<column> what a column is '
            'called') -> str:
  """The kind of a file, by the columns of its first good entry.

  Args:
    path: a file or directory that `tables` reads.
    split: which split of a directory that has several.
    columns: of `read`.
    advice: what a user may do where no kind has its columns.

  Raises:
    DataError: the file cannot be read, or no kind has its columns; the message
      says which are near.
  """
  for where, entry in tables.entries(path, split=split):
    if not isinstance(entry, dict) or not any(entry.values()):
      continue
    try:
      return kinds.detect(kinds.renamed(entry, columns or {}))
    except tables.BadRowError as error:
      raise errors.DataError(f'{where}: {error}') from None
    except ValueError as error:
      raise errors.DataError(f'{where}: {error}; {advice}') from None
  raise errors.DataError(f'{path}: no entry with columns is in it')


def read(
    path: str | os.PathLike,
    kind: str | None = None,
    *,
    max_bad_rows: int = 0,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
    **options: Any,
) -> readers.Read:
  """Reads a log of responses.

  Args:
    path: a file or directory that `tables` reads.
    kind: one of `kinds.KINDS`; None: `kind_of` the file.
    max_bad_rows: how many bad entries to drop before it becomes an error.
    split: which split of a directory that has several.
    columns: what columns are called in the file, by the name that the kind
      has for them; one that is named has to be there.
    **options: keyword arguments of the function of that kind.

  Returns:
    A `Read` of `Logged`, at least one, grouped by example, the best response
    first; examples are numbered from 0 in the order of the file. `empty`
    counts blank responses and entries without any, `duplicates` repeated
    entries.

  Raises:
    DataError: the file cannot be read, has too many bad entries, or none
      that can be used.
    ValueError: if kind, a column or an option is unknown.
  """
  if kind is None:
    kind = kind_of(path, split=split, columns=columns)
  entries = readers.collect(
      path, _parser(kind, columns or {}, options), max_bad_rows=max_bad_rows,
      split=split, columns=_COLUMNS.get(kind, ()))
  every = [(key, row) for number, group in enumerate(entries.rows)
           for key, row in _keyed(number, group)]
  present = [(key, row) for key, row in every if row is not None]
  filled = [(key, row) for key, row in present
            if row.response.strip() or not kinds.KINDS[kind].answers]
  if not filled:
    raise errors.DataError(
        f'{path}: no usable response: {len(entries.bad)} bad, '
        f'{entries.empty} empty and {len(every)} blank or left out')
  return dataclasses.replace(
      entries,
      rows=_ordered(path, filled, _BEST_FIRST.get(kind, ())),
      empty=entries.empty + len(present) - len(filled),
      skipped=len(every) - len(present),
  )


@functools.lru_cache(maxsize=4)
def read_once(path: str, kind: str, max_bad_rows: int,
              others: tuple[tuple[str, Any], ...]) -> readers.Read:
  """`read`, kept for whoever asks for the same file next.

  Args:
    path: see `read`.
    kind: likewise.
    max_bad_rows: likewise.
    others: further arguments of `read`, of `arguments_of`.
  """
  return read(path, kind, max_bad_rows=max_bad_rows,
              **{k: dict(v) if k == 'columns' else v for k, v in others})


def arguments_of(columns: tuple[tuple[str, str], ...] = (),
                 split: str | None = None) -> tuple[tuple[str, Any], ...]:
  """Columns and a split as `read_once` takes them: those that are said."""
  return tuple((name, value) for name, value in (
      ('columns', tuple(sorted(columns))), ('split', split)) if value)


def _parser(kind: str, columns: Mapping[str, str], options: dict[str, Any]
            ) -> Callable[[dict], tuple[Logged | None, ...] | None]:
  if kind not in kinds.KINDS:
    raise ValueError(
        f'kind must be one of {", ".join(sorted(kinds.KINDS))}, got {kind!r}')
  kinds.check_columns(kind, columns)
  function = functools.partial(kinds.KINDS[kind].read, **options)
  try:
    inspect.signature(kinds.KINDS[kind].read).bind({}, **options)
  except TypeError as error:
    raise ValueError(f'options of kind {kind!r}: {error}') from None

  def parse(entry):
    # Spreadsheets end in such lines; nothing is wrong with them.
    if not any(value or value == 0 for value in entry.values()):
      return None
    try:
      responses = function(kinds.renamed(entry, columns))
    except tables.BadRowError as error:
      message = str(error)
      for name, column in columns.items():  # as the file has it
        message = message.replace(f'field {name!r}', f'field {column!r}')
      raise tables.BadRowError(message) from None
    return tuple(responses) if responses else None

  return parse


def _keyed(number: int, group: tuple[Logged | None, ...]):
  """(key of the example, response); a string names one of the whole file."""
  for row in group:
    whole = row is not None and isinstance(row.example, str)
    key = row.example if whole else (number, row and row.example)
    yield key, row


def _ordered(path: str | os.PathLike, keyed: list[tuple[Hashable, Logged]],
             best_first: tuple[str, ...]) -> list[Logged]:
  """Numbers the examples and sorts each of them."""
  numbers = {}
  prompts = {}
  rows = []
  for key, row in keyed:
    rows.append(dataclasses.replace(
        row, example=numbers.setdefault(key, len(numbers))))
    if prompts.setdefault(key, row.prompt) != row.prompt:
      raise errors.DataError(
          f'{path}: prompt_id {key!r} has two prompts, {prompts[key][:40]!r} '
          f'and {row.prompt[:40]!r}')
  if 'votes' in best_first:
    rows = _with_scores(rows)

  def place(row):
    scores = dict(row.scores)
    return row.example, *(-scores.get(name, 0) for name in best_first)

  return sorted(rows, key=place)


def _with_scores(rows: list[Logged]) -> list[Logged]:
  """Adds the score of Zhu et al. 2023 where there are votes."""
  # Here, so that files of other kinds are read, or refused, without jax.
  from rlhf_jax.ops import labels

  votes = np.array([dict(row.scores).get('votes', 0) for row in rows], int)
  accepted = np.array([row.group == 'accepted' for row in rows])
  scores = np.asarray(labels.upvote_score(votes, accepted)).tolist()
  return [
      dataclasses.replace(row, scores=(*row.scores, ('score', score)))
      if 'votes' in dict(row.scores) else row
      for row, score in zip(rows, scores)
  ]
