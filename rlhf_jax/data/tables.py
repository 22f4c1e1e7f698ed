"""Entries of data files, each with the place where it stands.

  .json          an array, or objects one a line
  .jsonl         a JSON value a line
  .csv           RFC 4180, the first line names the columns; all are strings
  .tsv           the same with tabs, and nothing is quoted
  .parquet       through the `datasets` library
  a directory    of data files as on the Hugging Face hub, its README's
                 configs obeyed, or one that `datasets` saved to disk

Text is UTF-8, and each of the first four may also be .gz. It is parsed here
and not by `datasets`, because an error has to name its line. Directories are
resolved by `datasets`, offline; code in them is never run.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import csv
import gzip
import json
import os
import pathlib
from typing import Any
import zlib

from rlhf_jax import errors
from rlhf_jax.data import hub

MAX_LINE_BYTES = 16 * 2**20
MAX_GZIP_RATIO = 200  # text compresses 3 to 20 times; a bomb, 1000 times
_SUFFIXES = ('.json', '.jsonl', '.csv', '.tsv')
_BOM = b'\xef\xbb\xbf'
_DIALECTS = {
    '.csv': dict(strict=True),
    '.tsv': dict(delimiter='\t', quoting=csv.QUOTE_NONE, strict=True),
}


class BadRowError(Exception):
  """Why this row cannot be used."""


def entries(
    path: str | os.PathLike,
    *,
    split: str | None = None,
    columns: Sequence[str] = (),
) -> Iterator[tuple[str, Any]]:
  """Yields ('file:line' or 'file:row N', JSON value or BadRowError).

  The line is the one that an entry starts on. Blank lines are passed over.

  Args:
    path: a file or directory, see the module.
    split: which split of a directory; may be left out if there is but one.
    columns: what the first line of a CSV or TSV file has to name. If it does
      not, it is data, and these are all columns that there are.

  Raises:
    DataError: the file as a whole cannot be used.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.DataError(f'{path}: there is no such file')
  if path.is_dir() and hub.is_saved(path):
    for number, row in enumerate(hub.saved(path, split), 1):
      yield f'{path}:row {number}', row
  elif path.is_dir():
    for file in hub.data_files(path, split):
      yield from _file(file, columns)
  elif split is not None:
    raise errors.DataError(
        f'{path}: a file has no splits, got split={split!r}; leave it out')
  else:
    yield from _file(path, columns)


def _file(path: pathlib.Path, columns: Sequence[str]
          ) -> Iterator[tuple[str, Any]]:
  if not path.is_file():  # a pipe would hang
    raise errors.DataError(f'{path}: is not a regular file')
  name = path.name.lower()
  suffix = pathlib.Path(name.removesuffix('.gz')).suffix
  if name.endswith('.parquet'):
    placed = ((f'row {number}', row)
              for number, row in enumerate(_sized(path), 1))
  elif suffix not in _SUFFIXES:
    raise errors.DataError(
        f'{path}: must end in {", ".join(_SUFFIXES)}, each with or without '
        '.gz (as .jsonl.gz), or in .parquet')
  elif suffix in _DIALECTS:
    placed = _table(path, _DIALECTS[suffix], columns)
  else:
    placed = (_array if suffix == '.json' else _json_lines)(path)
  try:
    for where, entry in placed:
      yield f'{path}:{where}', entry
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise errors.DataError(f'{path}: unreadable gzip: {error}') from error
  except OSError as error:
    raise errors.DataError(
        f'{path}: cannot be read: {error.strerror or error}'
    ) from error


def _open(path: pathlib.Path):
  """The bytes of a text file, and how many there may be."""
  opener = gzip.open if path.name.lower().endswith('.gz') else open
  return (opener(path, 'rb'),
          MAX_LINE_BYTES + MAX_GZIP_RATIO * path.stat().st_size)


def _sized(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Rows of a Parquet file, in which a text is stored once for many rows."""
  budget = MAX_LINE_BYTES + MAX_GZIP_RATIO * path.stat().st_size
  if hub.parquet_bytes(path) > budget:
    raise _bomb(path)
  for row in hub.parquet(path):
    budget -= _size(row)
    if budget < 0:
      raise _bomb(path)
    yield row


def _size(value: Any) -> int:
  """Bytes that a value of a row takes, roughly."""
  if isinstance(value, dict | list):
    return 8 + sum(map(_size, value.values() if isinstance(
        value, dict) else value))
  return len(value) if isinstance(value, str | bytes) else 8


def _bomb(path: pathlib.Path) -> errors.DataError:
  return errors.DataError(
      f'{path}: unpacks to over {MAX_GZIP_RATIO} times its size')


def _lines(path: pathlib.Path) -> Iterator[tuple[int, int, bytes | None]]:
  """Yields (number, offset in bytes, line), None for one over the limit."""
  stream, limit = _open(path)
  offset = number = 0
  with stream:
    # Files opened as bytes break at b'\n' alone; U+2028 stays in its line.
    while raw := stream.readline(MAX_LINE_BYTES + 1):
      number += 1
      start, offset = offset, offset + len(raw)
      too_long = len(raw) > MAX_LINE_BYTES
      while too_long and not raw.endswith(b'\n') and offset <= limit:
        raw = stream.readline(MAX_LINE_BYTES)
        if not raw:
          break
        offset += len(raw)
      if offset > limit:
        raise _bomb(path)
      yield number, start, None if too_long else raw


def _too_long() -> BadRowError:
  return BadRowError(f'is over {MAX_LINE_BYTES} bytes')


def _array(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  stream, limit = _open(path)
  with stream:
    raw = stream.read(limit + 1)
  if len(raw) > limit:
    raise _bomb(path)
  text = raw.removeprefix(_BOM).strip()
  if not text:
    return
  first, *others = text.split(b'\n', 1)
  if others and first.startswith(b'{') and first.rstrip().endswith(b'}'):
    yield from _json_lines(path)  # so named on the hub, and elsewhere
    return
  try:
    values = _parse(raw, 0)
  except BadRowError as error:
    raise errors.DataError(f'{path}: {error}') from None
  if isinstance(values, dict):  # one line of JSON lines
    values = [values]
  if not isinstance(values, list):
    kind = type(values).__name__
    raise errors.DataError(
        f'{path}: a .json file must hold JSON lines or one array, got {kind}'
    )
  for number, value in enumerate(values, 1):
    yield f'row {number}', value


def _json_lines(path: pathlib.Path) -> Iterator[tuple[str, Any]]:
  for number, start, raw in _lines(path):
    if raw is None:
      yield f'{number}', _too_long()
    elif raw.removeprefix(_BOM if number == 1 else b'').strip():
      try:
        yield f'{number}', _parse(raw, start)
      except BadRowError as error:
        cut = '' if raw.endswith(b'\n') else ', the last line is cut'
        yield f'{number}', BadRowError(f'{error}{cut}')


def _decode(raw: bytes, offset: int) -> tuple[str, int]:
  """Text that starts `offset` bytes into its file, and where it does."""
  if offset == 0 and raw.startswith(_BOM):
    raw, offset = raw[len(_BOM):], len(_BOM)
  try:
    return raw.decode(), offset
  except UnicodeDecodeError as error:
    raise BadRowError(
        f'invalid UTF-8 at byte {offset + error.start} of the file'
    ) from None


def _parse(raw: bytes, offset: int) -> Any:
  """Parses JSON in UTF-8 that starts `offset` bytes into its file."""
  try:
    return json.loads(_decode(raw, offset)[0])
  except json.JSONDecodeError as error:
    line = f'line {error.lineno} ' if error.lineno > 1 else ''
    raise BadRowError(
        f'malformed JSON at {line}column {error.colno}: {error.msg}'
    ) from None
  except RecursionError:
    raise BadRowError('malformed JSON: nested too deeply') from None
  except ValueError as error:  # an integer of over 4300 digits
    raise BadRowError(f'malformed JSON: {error}') from None


def _table(path: pathlib.Path, dialect: Mapping[str, Any],
           columns: Sequence[str]) -> Iterator[tuple[str, Any]]:
  """Records of a CSV or TSV file; one may go over several lines."""
  faults = {}
  # For the whole process; the default of 128 KiB is short for a document.
  csv.field_size_limit(MAX_LINE_BYTES)
  reader = csv.reader(_texts(path, faults), **dialect)
  names = []
  while True:
    line = reader.line_num + 1
    try:
      record = next(reader, None)
      if record is None:
        return
      for number in range(line, reader.line_num + 1):
        if number in faults:
          raise faults[number]
      if not record:
        continue
      if not names:
        has_header = set(columns) <= set(record)
        names = _header(path, record) if has_header else list(columns)
        if has_header:
          continue
      if len(record) != len(names):
        raise BadRowError(
            f'has {len(record)} fields, expected {len(names)}: '
            f'{_listed([name[:80] for name in names])}')
      yield f'{line}', dict(zip(names, record))
    except csv.Error as error:
      yield f'{line}', BadRowError(f'malformed CSV: {error}')
    except BadRowError as error:
      yield f'{line}', error


def _texts(path: pathlib.Path, faults: dict[int, BadRowError]
           ) -> Iterator[str]:
  """Decoded lines; of those that cannot be, `faults` keeps the reason."""
  for number, start, raw in _lines(path):
    try:
      if raw is None:
        raise _too_long()
      yield _decode(raw, start)[0]
    except BadRowError as error:
      faults[number] = error
      # Its quotes still tell where the record ends.
      yield (raw or b'').decode(errors='replace')


def _listed(names: Sequence[str]) -> str:
  """The first names, for one message of each of many rows."""
  more = f' and {len(names) - 20} more' if len(names) > 20 else ''
  return f'{", ".join(names[:20])}{more}'


def _header(path: pathlib.Path, record: list[str]) -> list[str]:
  counts = collections.Counter(record)
  twice = sorted(name for name, count in counts.items() if count > 1)
  if twice:
    raise errors.DataError(
        f'{path}: the first line must name each column once, got '
        f'{_listed([repr(name[:80]) for name in twice])} twice')
  return record
