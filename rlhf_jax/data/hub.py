"""Parquet files and dataset directories, through the `datasets` library.

It is imported when needed and used offline: nothing is downloaded, no code of
a directory is run, and its cache goes to a temporary directory.
"""

from collections.abc import Iterable, Iterator
import contextlib
import glob
import json
import logging
import os
import pathlib
import tempfile
from typing import Any

from rlhf_jax import errors

_ROWS_AT_ONCE = 16  # since a text that is stored once may be in each of them
_ROW_BYTES = 16  # of one without content
_MAX_README_BYTES, _MAX_DEPTH = 2**22, 50


def parquet(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """Rows of a parquet file.

  Raises:
    DataError: it is none.
  """
  with _library() as (datasets, cache):
    def rows():
      yield from datasets.load_dataset(
          'parquet', data_files=glob.escape(str(path.absolute())),
          split='train', streaming=True, cache_dir=cache,
          batch_size=_ROWS_AT_ONCE)
    yield from _guarded(path, rows())


def parquet_bytes(path: pathlib.Path) -> int:
  """What a parquet file unpacks to at least, as its footer says.

  Raises:
    DataError: it is none.
  """
  def sizes():
    from pyarrow import parquet as parquet_lib

    metadata = parquet_lib.read_metadata(path)
    yield _ROW_BYTES * metadata.num_rows  # which may be nothing but a number
    for i in range(metadata.num_row_groups):
      group = metadata.row_group(i)
      yield sum(group.column(j).total_uncompressed_size
                for j in range(group.num_columns))
  return sum(_guarded(path, sizes()))


def is_saved(path: pathlib.Path) -> bool:
  """Whether `save_to_disk` wrote this directory."""
  return any((path / name).is_file()
             for name in ('dataset_dict.json', 'state.json'))


def saved(path: pathlib.Path, split: str | None) -> Iterator[dict[str, Any]]:
  """Rows of a directory that `save_to_disk` wrote.

  Raises:
    DataError: it is damaged, or the split is not there or not told.
  """
  with _library() as (datasets, _):
    def load():
      yield datasets.load_from_disk(str(path.absolute()))
    (table,) = _guarded(path, load())
    if isinstance(table, datasets.DatasetDict):
      table = table[_pick(path, split, table)]
    elif split is not None:
      _pick(path, split, [str(table.split)] if table.split else [])
    yield from _guarded(path, table)


def data_files(path: pathlib.Path, split: str | None) -> list[pathlib.Path]:
  """The data files of a directory as on the hub, in their order.

  Which they are is told by the configs of its README, else by their names:
  https://huggingface.co/docs/datasets/repository_structure.

  Raises:
    DataError: there are none, they are elsewhere, or the split is not there
      or not told.
  """
  if not any(file.is_file() for file in path.rglob('*')):
    raise errors.DataError(f'{path}: is a directory without a file')
  _refuse_addresses(path)
  root = path.absolute()
  with _library() as (datasets, cache):
    def resolve():
      yield datasets.load_dataset_builder(
          str(root), cache_dir=cache).config.data_files
    (splits,) = _guarded(path, resolve())
  splits = {str(name): names for name, names in splits.items()}
  files = []
  for name in splits[_pick(path, split, splits)]:
    file = pathlib.Path(os.path.normpath(name))
    if not file.is_relative_to(root):
      raise errors.DataError(
          f'{path}: its README names a file outside it: {name}')
    files.append(path / file.relative_to(root))
  return files


@contextlib.contextmanager
def _library():
  """(The `datasets` library, a folder for its cache), no word printed."""
  import datasets

  level = datasets.logging.get_verbosity()
  datasets.logging.set_verbosity(logging.CRITICAL)
  try:
    with tempfile.TemporaryDirectory() as cache:
      yield datasets, cache
  finally:
    datasets.logging.set_verbosity(level)


def _guarded(path: pathlib.Path, rows: Iterable) -> Iterator[Any]:
  """`rows`, with whatever `datasets` raises as a DataError."""
  try:
    yield from rows
  except Exception as error:
    reason = str(error).split('\n', 1)[0] or type(error).__name__
    raise errors.DataError(f'{path}: cannot be read: {reason}') from error


def _pick(path: pathlib.Path, split: str | None, splits: Iterable[str]
          ) -> str:
  names = sorted(splits)
  if split is None and len(names) == 1:
    return names[0]
  if split not in names:
    suffix = '' if split is None else f', not {split!r}'
    raise errors.DataError(
        f'{path}: has the splits {", ".join(names) or "(none)"}{suffix}; name '
        'one as split, or give one of its files')
  return split


def _check_yaml(text: str):
  """YAMLError for what would take longer than it has characters."""
  import yaml

  depth = 0
  for event in yaml.parse(text):
    depth += isinstance(event, yaml.CollectionStartEvent)
    depth -= isinstance(event, yaml.CollectionEndEvent)
    if depth > _MAX_DEPTH:
      raise yaml.YAMLError(f'it is nested more than {_MAX_DEPTH} times')
    if isinstance(event, yaml.AliasEvent):
      raise yaml.YAMLError('an alias, which may stand for ever more text')


def _refuse_addresses(path: pathlib.Path):
  """A README can name files on the network, which is never used."""
  import yaml

  for name in ('README.md', '.huggingface.yaml'):
    if not (path / name).is_file():
      continue
    with open(path / name, encoding='utf-8', errors='replace') as stream:
      text = stream.read(_MAX_README_BYTES + 1)
    if len(text) > _MAX_README_BYTES:
      raise errors.DataError(
          f'{path / name}: has over {_MAX_README_BYTES} characters; shorten it')
    if name == 'README.md':
      text = text.split('---', 2)[1] if text.startswith('---') else ''
    try:
      _check_yaml(text)
      configs = (yaml.safe_load(text) or {}).get('configs')
    except (yaml.YAMLError, AttributeError, RecursionError) as error:
      raise errors.DataError(
          f'{path / name}: malformed YAML: {str(error).splitlines()[0]}'
      ) from None
    if '://' in json.dumps(configs, default=str):
      raise errors.DataError(
          f'{path / name}: names data files at an address; download them '
          'first, or give one file of the directory')
