"""Demonstrations and preferences from JSON and JSON lines files.

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

from collections.abc import Callable, Iterator
import dataclasses
import gzip
import json
import os
import pathlib
from typing import Any
import zlib

from rlhf_jax import errors

MAX_LINE_BYTES = 16 * 2**20
MAX_GZIP_RATIO = 200  # text compresses 3 to 20 times; a bomb, 1000 times
_LISTED = 10
_BOM = b'\xef\xbb\xbf'
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
class Read:
  """The rows of one file, in its order, and what was found beside them."""

  rows: list[Any]  # Demonstration or Preference
  bad: list[str]  # 'file:line: reason', dropped
  empty: int  # rows dropped because an output or response was blank
  duplicates: int  # repeats of an earlier row; kept unless dedup was set


class _BadRowError(Exception):
  """Why this row cannot be used."""


def read_alpaca(
    path: str | os.PathLike, *, max_bad_rows: int = 0, dedup: bool = False
) -> Read:
  """Reads instruction, input (optional or null) and output.

  Args:
    path: a JSON array (.json) or JSON lines (.jsonl, .jsonl.gz), in UTF-8.
    max_bad_rows: how many bad rows to drop before it becomes an error.
    dedup: whether to drop repeats of an earlier row.

  Returns:
    A `Read` of `Demonstration`s, at least one.

  Raises:
    DataError: the file cannot be read, or has too many bad rows.
  """
  return _read(path, _demonstration, max_bad_rows, dedup)


def read_hh(
    path: str | os.PathLike, *, max_bad_rows: int = 0, dedup: bool = False
) -> Read:
  r"""Reads Anthropic HH pairs: two dialogues, chosen and rejected.

  The prompt is the longest text that both dialogues begin with and that ends
  with '\n\nAssistant:'. A handful of rows part ways before the last turn;
  their responses then hold the further turns, as the annotator saw them.

  Args:
    path: JSON lines (.jsonl, .jsonl.gz) or a JSON array (.json), in UTF-8.
    max_bad_rows: how many bad rows to drop before it becomes an error.
    dedup: whether to drop repeats of an earlier row.

  Returns:
    A `Read` of `Preference`s, at least one.

  Raises:
    DataError: the file cannot be read, or has too many bad rows.
  """
  return _read(path, _preference, max_bad_rows, dedup)


def _demonstration(entry: dict) -> Demonstration | None:
  instruction = _text(entry, 'instruction')
  if not instruction.strip():
    raise _BadRowError("field 'instruction' is blank")
  no_input = entry.get('input') is None
  input_ = '' if no_input else _text(entry, 'input')
  output = _text(entry, 'output')
  if not output.strip():
    return None
  return Demonstration(instruction, input_, output)


def _preference(entry: dict) -> Preference | None:
  chosen = _text(entry, 'chosen')
  rejected = _text(entry, 'rejected')
  for name, dialogue in (('chosen', chosen), ('rejected', rejected)):
    if not dialogue.startswith(_HUMAN):
      raise _BadRowError(f'field {name!r} does not start with {_HUMAN!r}')
    if _ASSISTANT not in dialogue:
      raise _BadRowError(f'field {name!r} has no {_ASSISTANT!r} turn')
  common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - texts
  start = common.rfind(_ASSISTANT)
  if start < 0:
    raise _BadRowError('chosen and rejected share no prompt')
  start += len(_ASSISTANT)
  pair = Preference(chosen[:start], chosen[start:], rejected[start:])
  # White space at the ends does not survive the format. Such a pair would
  # cost log 2 for ever.
  if pair.chosen.strip() == pair.rejected.strip():
    raise _BadRowError('chosen and rejected are the same')
  if not pair.chosen.strip() or not pair.rejected.strip():
    return None
  return pair


def _text(entry: dict, name: str) -> str:
  if name not in entry:
    raise _BadRowError(f'field {name!r} is missing')
  value = entry[name]
  if not isinstance(value, str):
    kind = type(value).__name__
    raise _BadRowError(f'field {name!r} must be a string, got {kind}')
  try:
    value.encode()
  except UnicodeEncodeError:
    # JSON can spell half of a surrogate pair; no tokenizer can take it.
    raise _BadRowError(f'field {name!r} has a lone surrogate') from None
  return value


def _read(
    path: str | os.PathLike,
    parse: Callable[[dict], Any],
    max_bad_rows: int,
    dedup: bool,
) -> Read:
  """Parses every entry of the file, then judges the file as a whole."""
  if max_bad_rows < 0:
    raise ValueError(f'max_bad_rows must be >= 0, got {max_bad_rows}')
  path = pathlib.Path(path)
  rows, bad, seen = [], [], set()
  total = empty = duplicates = 0
  for where, entry in _entries(path):
    total += 1
    try:
      if isinstance(entry, _BadRowError):
        raise entry
      if not isinstance(entry, dict):
        kind = type(entry).__name__
        raise _BadRowError(f'must be a JSON object, got {kind}')
      row = parse(entry)
    except _BadRowError as error:
      bad.append(f'{path}:{where}: {error}')
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
    more = len(bad) - _LISTED
    listed = '; '.join(bad[:_LISTED]) + (f'; and {more} more' * (more > 0))
    raise errors.DataError(
        f'{path}: {len(bad)} bad rows of {total}, {max_bad_rows} allowed: '
        f'{listed} (fix them, or raise max_bad_rows to drop them)'
    )
  if not rows:
    raise errors.DataError(
        f'{path}: no usable row of {total}: {len(bad)} bad, {empty} empty'
    )
  return Read(rows, bad, empty, duplicates)


def _entries(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  """Yields ('line' or 'row N', JSON value or _BadRowError)."""
  if not path.exists():
    raise errors.DataError(f'{path}: there is no such file')
  if not path.is_file():  # a pipe would hang, a directory fail obscurely
    kind = 'a directory' if path.is_dir() else 'not a regular file'
    raise errors.DataError(f'{path}: is {kind}, expected a file')
  name = path.name.lower()
  if not name.endswith(('.json', '.jsonl', '.jsonl.gz')):
    raise errors.DataError(
        f'{path}: must end in .json, .jsonl or .jsonl.gz'
    )
  try:
    yield from _array(path) if name.endswith('.json') else _json_lines(path)
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise errors.DataError(f'{path}: unreadable gzip: {error}') from error
  except OSError as error:
    raise errors.DataError(
        f'{path}: cannot be read: {error.strerror or error}'
    ) from error


def _array(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  raw = path.read_bytes()
  if not raw.removeprefix(_BOM).strip():
    return
  try:
    entries = _parse(raw, 0)
  except _BadRowError as error:
    raise errors.DataError(f'{path}: {error}') from None
  if not isinstance(entries, list):
    kind = type(entries).__name__
    raise errors.DataError(
        f'{path}: a .json file must hold one array, got {kind}'
    )
  for number, entry in enumerate(entries, 1):
    yield f'row {number}', entry


def _json_lines(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  opener = gzip.open if path.name.lower().endswith('.gz') else open
  limit = MAX_LINE_BYTES + MAX_GZIP_RATIO * path.stat().st_size
  offset = number = 0
  with opener(path, 'rb') as file:
    # Files opened as bytes break at b'\n' alone; U+2028 stays in its line.
    while raw := file.readline(MAX_LINE_BYTES + 1):
      number += 1
      start, offset = offset, offset + len(raw)
      too_long = len(raw) > MAX_LINE_BYTES
      while too_long and not raw.endswith(b'\n') and offset <= limit:
        raw = file.readline(MAX_LINE_BYTES)
        if not raw:
          break
        offset += len(raw)
      if offset > limit:
        raise errors.DataError(
            f'{path}: unpacks to over {MAX_GZIP_RATIO} times its size'
        )
      if too_long:
        yield f'{number}', _BadRowError(f'is over {MAX_LINE_BYTES} bytes')
      elif raw.removeprefix(_BOM if number == 1 else b'').strip():
        try:
          yield f'{number}', _parse(raw, start)
        except _BadRowError as error:
          cut = '' if raw.endswith(b'\n') else ', the last line is cut'
          yield f'{number}', _BadRowError(f'{error}{cut}')


def _parse(raw: bytes, offset: int) -> Any:
  """Parses JSON in UTF-8 that starts `offset` bytes into its file."""
  if offset == 0 and raw.startswith(_BOM):
    raw, offset = raw[len(_BOM):], len(_BOM)
  try:
    return json.loads(raw.decode())
  except UnicodeDecodeError as error:
    raise _BadRowError(
        f'invalid UTF-8 at byte {offset + error.start} of the file'
    ) from None
  except json.JSONDecodeError as error:
    line = f'line {error.lineno} ' if error.lineno > 1 else ''
    raise _BadRowError(
        f'malformed JSON at {line}column {error.colno}: {error.msg}'
    ) from None
  except RecursionError:
    raise _BadRowError('malformed JSON: nested too deeply') from None
  except ValueError as error:  # an integer of over 4300 digits
    raise _BadRowError(f'malformed JSON: {error}') from None
