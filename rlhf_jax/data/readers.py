"""Demonstrations and preferences from files of any kind `tables` reads.

A file is validated to its end before anything is returned, so that a bad
row stops a run in its first second and not in its third hour. Three kinds of
rows are told apart, and each is counted:

  bad        malformed, mistyped, or of no use; more than `max_bad_rows` of
             them is an error that lists the first ten
  empty      well-formed, but with nothing in the output or in a response, as
             generated data often has; always dropped
  duplicate  equal to an earlier row in every field; kept unless `dedup`

Fields other than those of the row type are ignored, `status` included.
"""

from collections.abc import Callable, Hashable, Sequence
import dataclasses
import os
import pathlib
from typing import Any

from rlhf_jax import errors
from rlhf_jax.data import fields
from rlhf_jax.data import tables

_LISTED = 10
_HUMAN = '\n\nHuman:'
_ASSISTANT = '\n\nAssistant:'


@dataclasses.dataclass(frozen=True)
class Demonstration:
  """An instruction, its optional input ('' if none), and an answer."""

  instruction: str
  input: str
  output: str


@dataclasses.dataclass(frozen=True)
class Preference:
  """Two responses to one prompt, as they are in the file."""

  prompt: str
  chosen: str
  rejected: str


@dataclasses.dataclass(frozen=True)
class Logged:
  """One response that somebody, or some model, gave to a prompt."""

  prompt: str  # as the prompt format takes it; a dialogue for HH
  response: str
  example: int  # rows of one example answer one prompt, best first
  group: str = ''  # such as 'chosen' or 'rejected', 'up' or 'down'
  input: str = ''  # second text of the format: knowledge, relation
  history: tuple[str, ...] = ()  # utterances before the prompt
  scores: tuple[tuple[str, float], ...] = ()  # named, finite
  split: str = ''  # part of the data, such as 'helpful-base'
  reference: str = ''  # the right answer, where there is one
  turns: tuple[tuple[str, str], ...] = ()  # (role, content) before the prompt


@dataclasses.dataclass(frozen=True)
class Read:
  """The rows of one file, in its order, and what is beside them."""

  rows: list[Any]  # Demonstration, Preference or Logged
  bad: list[str]  # 'file:line: reason', dropped
  empty: int  # rows dropped because an output or response was blank
  duplicates: int  # repeats of an earlier row; kept unless dedup was set
  skipped: int = 0  # responses that a kind of log leaves out by its rule


def read_alpaca(
    path: str | os.PathLike,
    *,
    max_bad_rows: int = 0,
    dedup: bool = False,
    split: str | None = None,
) -> Read:
  """Reads instruction, input (optional or null) and output.

  Args:
    path: JSON, JSON lines, CSV, TSV, parquet or a directory, see `tables`.
    max_bad_rows: how many bad rows to drop before it becomes an error.
    dedup: whether to drop repeats of an earlier row.
    split: which split of a directory that has several.

  Returns:
    A `Read` of `Demonstration`s, at least one.

  Raises:
    DataError: the file cannot be read, or has too many bad rows.
  """
  return collect(path, _demonstration, max_bad_rows=max_bad_rows,
                 dedup=dedup, split=split)


def read_hh(
    path: str | os.PathLike,
    *,
    max_bad_rows: int = 0,
    dedup: bool = False,
    split: str | None = None,
) -> Read:
  r"""Reads Anthropic HH pairs: two dialogues, chosen and rejected.

  The prompt is the longest text that both dialogues begin with and that ends
  with '\n\nAssistant:'. A handful of rows part ways before the last turn;
  their responses then hold the further turns, as the annotator saw them.

  Args:
    path: JSON, JSON lines, CSV, TSV, parquet or a directory, see `tables`.
    max_bad_rows: how many bad rows to drop before it becomes an error.
    dedup: whether to drop repeats of an earlier row.
    split: which split of a directory that has several.

  Returns:
    A `Read` of `Preference`s, at least one.

  Raises:
    DataError: the file cannot be read, or has too many bad rows.
  """
  return collect(path, _preference, max_bad_rows=max_bad_rows,
                 dedup=dedup, split=split)


def _demonstration(entry: dict) -> Demonstration | None:
  instruction = fields.filled(entry, 'instruction')
  input_ = fields.optional(entry, 'input')
  output = fields.text(entry, 'output')
  if not output.strip():
    return None
  return Demonstration(instruction, input_, output)


def _preference(entry: dict) -> Preference | None:
  pair = split_pair(entry)
  blank = not pair.chosen.strip() or not pair.rejected.strip()
  return None if blank else pair


def split_pair(entry: dict) -> Preference:
  """An Anthropic HH pair as prompt and responses, blank ones too.

  Args:
    entry: with the dialogues 'chosen' and 'rejected', see `read_hh`.

  Raises:
    BadRowError: it is none.
  """
  chosen = fields.text(entry, 'chosen')
  rejected = fields.text(entry, 'rejected')
  for name, dialogue in (('chosen', chosen), ('rejected', rejected)):
    if not dialogue.startswith(_HUMAN):
      raise tables.BadRowError(f'field {name!r} does not start with {_HUMAN!r}')
    if _ASSISTANT not in dialogue:
      raise tables.BadRowError(f'field {name!r} has no {_ASSISTANT!r} turn')
  common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - texts
  start = common.rfind(_ASSISTANT)
  if start < 0:
    raise tables.BadRowError('chosen and rejected share no prompt')
  start += len(_ASSISTANT)
  pair = Preference(chosen[:start], chosen[start:], rejected[start:])
  # White space at the ends does not survive the format. Such a pair would
  # cost log 2 for ever.
  if pair.chosen.strip() == pair.rejected.strip():
    raise tables.BadRowError('chosen and rejected are the same')
  return pair


def collect(
    path: str | os.PathLike,
    parse: Callable[[dict], Hashable | None],
    *,
    max_bad_rows: int = 0,
    dedup: bool = False,
    split: str | None = None,
    columns: Sequence[str] = (),
) -> Read:
  """Parses every entry of the file, then judges the file as a whole.

  Args:
    path: see `tables`.
    parse: entry -> row, None if it is empty; raises BadRowError.
    max_bad_rows: how many bad rows to drop before it becomes an error.
    dedup: whether to drop repeats of an earlier row.
    split: as of `tables.entries`.
    columns: as of `tables.entries`.

  Raises:
    DataError: the file cannot be read, or has too many bad rows.
    ValueError: if max_bad_rows is negative.
  """
  if max_bad_rows < 0:
    raise ValueError(f'max_bad_rows must be >= 0, got {max_bad_rows}')
  path = pathlib.Path(path)
  rows, bad, seen = [], [], set()
  total = empty = duplicates = 0
  for where, entry in tables.entries(path, split=split, columns=columns):
    total += 1
    try:
      row = _parsed(entry, parse)
    except tables.BadRowError as error:
      bad.append(f'{where}: {error}')
      continue
    if row is None:
      empty += 1
      continue
    repeated = row in seen
    duplicates += repeated
    if not (dedup and repeated):
      rows.append(row)
    seen.add(row)
  if not total:
    raise errors.DataError(f'{path}: the file is empty')
  if len(bad) > max_bad_rows:
    raise errors.DataError(
        f'{path}: {len(bad)} bad rows of {total}, {max_bad_rows} allowed: '
        f'{_listed(bad)} (fix them, or drop them: --max_bad_rows={len(bad)} '
        'of train, config.data.logged.max_bad_rows or files.max_bad_rows)'
    )
  if not rows:
    raise errors.DataError(
        f'{path}: no usable row of {total}: {len(bad)} bad, {empty} empty'
    )
  return Read(rows, bad, empty, duplicates)


def _parsed(entry: Any, parse: Callable[[dict], Hashable | None]
            ) -> Hashable | None:
  """The row of one entry of `tables`; BadRowError if it is none."""
  if isinstance(entry, tables.BadRowError):
    raise entry
  if not isinstance(entry, dict):
    kind = type(entry).__name__
    raise tables.BadRowError(f'must be a JSON object, got {kind}')
  return parse(entry)


def _listed(bad: Sequence[str]) -> str:
  """The first reasons, and how many more there are."""
  more = len(bad) - _LISTED
  return '; '.join(bad[:_LISTED]) + (f'; and {more} more' if more > 0 else '')
