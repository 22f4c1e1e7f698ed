"""Tests for rlhf_jax.data.tables and rlhf_jax.data.hub."""

import contextlib
import csv
import gzip
import io
import json
import logging
import pathlib
import socket
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import datasets
import pyarrow
from pyarrow import parquet

from rlhf_jax import errors
from rlhf_jax.data import tables

# Whatever a format could mistake for its own: quotes, breaks, a surrogate
# pair, a number, a word that pandas takes for nothing.
ROWS = [
    {'a': 'x', 'b': ' 1', 'c': 'NA'},
    {'a': 'he said "so", \'and\' left', 'b': '', 'c': 'null'},
    {'a': 'two\nlines, "quoted"', 'b': '1e3', 'c': '\ta'},
    {'a': 'שלום \U0001f469\u2028c\x85d', 'b': 'True', 'c': ' '},
]


def _lines(rows):
  return b''.join(json.dumps(row).encode() + b'\n' for row in rows)


def _csv(rows, **dialect):
  text = io.StringIO()
  writer = csv.DictWriter(text, list(rows[0]), **dialect)
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue().encode()


def _tsv(rows):
  return b''.join('\t'.join(row).encode() + b'\n'
                  for row in [rows[0], *(row.values() for row in rows)])


class TableTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.directory = pathlib.Path(directory.name)
    self.addCleanup(csv.field_size_limit, csv.field_size_limit())
    for name in ('connect', 'connect_ex'):
      offline = mock.patch.object(socket.socket, name, side_effect=OSError)
      self.addCleanup(self.enterContext(offline).assert_not_called)

  def write(self, content, name):
    path = self.directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path

  def entries(self, path, **kwargs):
    return [entry for _, entry in tables.entries(path, **kwargs)]

  def places(self, path, **kwargs):
    return [where.removeprefix(f'{path}:')
            for where, _ in tables.entries(path, **kwargs)]

  def error(self, path, **kwargs):
    with self.assertRaises(errors.DataError) as caught:
      list(tables.entries(path, **kwargs))
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertIn(str(path), message)
    return message

  def bad(self, path, **kwargs):
    return {where.removeprefix(f'{path}:'): str(entry)
            for where, entry in tables.entries(path, **kwargs)
            if isinstance(entry, tables.BadRowError)}

  def load(self, kind, path, **kwargs):
    """The rows of the library itself."""
    return list(datasets.load_dataset(
        kind, data_files=str(path), split='train', streaming=True,
        cache_dir=str(self.directory / 'cache'), **kwargs))


class SameAsDatasetsTest(TableTestCase):
  """What a well-formed file says, the `datasets` library says too."""

  @parameterized.parameters(
      ('rows.json', json.dumps(ROWS).encode()),
      ('rows.json', _lines(ROWS)),
      ('rows.jsonl', _lines(ROWS)),
      ('rows.jsonl', _lines(ROWS).replace(b'\n', b'\r\n\r\n')),
      ('rows.jsonl.gz', gzip.compress(_lines(ROWS))),
      ('rows.json.gz', gzip.compress(json.dumps(ROWS).encode())),
  )
  def test_json(self, name, content):
    path = self.write(content, name)
    self.assertEqual(self.entries(path), ROWS)
    self.assertEqual(self.load('json', path), ROWS)

  @parameterized.parameters(
      ('rows.csv', _csv(ROWS)),
      ('rows.csv', b'\xef\xbb\xbf' + _csv(ROWS, quoting=csv.QUOTE_ALL)),
      ('rows.csv.gz', gzip.compress(_csv(ROWS, lineterminator='\n'))),
  )
  def test_csv(self, name, content):
    path = self.write(content, name)
    strings = datasets.Features({key: datasets.Value('string')
                                 for key in ROWS[0]})
    self.assertEqual(self.entries(path), ROWS)
    self.assertEqual(
        self.load('csv', path, features=strings, keep_default_na=False), ROWS)

  def test_tsv_has_no_quotes(self):
    rows = [{'a': '"open', 'b': "it's 5\""}, {'a': '', 'b': 'a,b'}]
    path = self.write(_tsv(rows), 'rows.tsv')
    self.assertEqual(self.entries(path), rows)
    self.assertEqual(
        self.load('csv', path, sep='\t', quoting=csv.QUOTE_NONE,
                  keep_default_na=False), rows)

  def test_parquet(self):
    rows = [{**row, 'n': number, 'list': [{'t': row['a'], 's': 0.5}] * number}
            for number, row in enumerate(ROWS)]
    path = self.directory / 'rows[1]*.parquet'  # not a pattern
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    self.assertEqual(self.entries(path), rows)
    self.assertEqual(self.places(path), [f'row {n}' for n in range(1, 5)])


class PlacesTest(TableTestCase):

  def test_of_lines_and_items(self):
    rows = self.write(b'{"a": 1}\n\n{"a": 2}\n', 'rows.jsonl')
    self.assertEqual(self.places(rows), ['1', '3'])
    self.assertEqual(self.places(self.write(b'[1,\n2]', 'rows.json')),
                     ['row 1', 'row 2'])
    named = self.write(rows.read_bytes(), 'lines.json')
    self.assertEqual(self.places(named), ['1', '3'])
    one = self.write(b'{"a": 1}\n', 'one.json')
    self.assertEqual(self.places(one), ['row 1'])

  def test_of_records_that_go_over_lines(self):
    path = self.write(b'a,b\n1,"x\ny\n"\n\n2,z\r\n3,"w\n"', 'rows.csv')
    self.assertEqual(self.places(path), ['2', '6', '7'])
    self.assertEqual([row['b'] for row in self.entries(path)],
                     ['x\ny\n', 'z', 'w\n'])


class CsvFaultsTest(TableTestCase):

  @parameterized.named_parameters(
      ('short', b'5', 'has 1 fields, expected 2: a, b'),
      ('long', b'5,6,7', 'has 3 fields, expected 2: a, b'),
      ('after_quote', b'"5"x,6', 'malformed CSV: '),
      ('invalid_utf8', b'5,"\n\xff"', 'invalid UTF-8 at byte 12 of the file'),
      ('carriage_return', b'5\r6,7', 'malformed CSV: '),
  )
  def test_one_bad_record(self, record, reason):
    path = self.write(b'a,b\n1,2\n' + record + b'\n3,4\n', 'rows.csv')
    (where, message), = self.bad(path).items()
    self.assertEqual(where, '3')
    self.assertIn(reason, message)
    self.assertEqual(self.entries(path)[-1], {'a': '3', 'b': '4'})

  def test_cut_within_quotes(self):
    path = self.write(b'a,b\n1,2\n3,"4', 'rows.csv')
    self.assertIn('unexpected end of data', self.bad(path)['3'])

  def test_overlong_line(self):
    path = self.write(b'a,b\n1,' + b'x' * 200 + b'\n3,4\n', 'rows.csv')
    with mock.patch.object(tables, 'MAX_LINE_BYTES', 100):
      self.assertEqual(self.bad(path), {'2': 'is over 100 bytes'})

  def test_long_field(self):  # Python's own limit is 131072
    path = self.write(b'a\n' + b'x' * 200_000, 'rows.csv')
    self.assertLen(self.entries(path)[0]['a'], 200_000)

  def test_column_named_twice(self):
    path = self.write(b'a,b,a\n1,2,3\n', 'rows.csv')
    self.assertIn("once, got 'a' twice", self.error(path))

  def test_columns_of_a_file_without_a_header(self):
    rows = [{'h': 'x', 't': 'y'}]
    bare = self.write(b'x\ty\n', 'bare.tsv')
    headed = self.write(b't\tu\th\ny\t\tx\n', 'headed.tsv')
    self.assertEqual(self.entries(bare, columns=('h', 't')), rows)
    self.assertEqual(self.entries(headed, columns=('h', 't')),
                     [{'t': 'y', 'u': '', 'h': 'x'}])
    self.assertEqual(self.entries(bare), [])


class WholeFilesTest(TableTestCase):

  @parameterized.parameters('rows.jsonl.gz', 'rows.json.gz', 'rows.csv.gz')
  def test_decompression_bomb(self, name):
    path = self.write(gzip.compress(b'x' * 2**20), name)
    with mock.patch.object(tables, 'MAX_LINE_BYTES', 100):
      self.assertIn('over 200 times its size', self.error(path))

  @parameterized.parameters('rows.txt', 'rows.parquet.gz', 'rows.gz', 'jsonl')
  def test_unknown_suffix(self, name):
    self.assertIn('must end in .json,', self.error(self.write(b'', name)))

  def test_split_of_a_file(self):
    message = self.error(self.write(b'[]', 'rows.json'), split='train')
    self.assertIn("no splits, got split='train'", message)

  def test_damaged_parquet(self):
    path = self.directory / 'rows.parquet'
    datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    whole = path.read_bytes()
    for content in (b'', whole[:-20], whole[:40] + whole[-40:]):
      path.write_bytes(content)
      self.assertIn('cannot be read', self.error(path))

  @parameterized.parameters(
      (lambda: [None] * 3_000_000, 'rows of nothing'),
      (lambda: ['a' * 2**25], 'one text'),
      (lambda: ['a' * 2**20] * 2**9, 'a text that is stored once'))
  def test_parquet_that_unpacks_to_too_much(self, column, what):
    path = self.directory / 'rows.parquet'
    parquet.write_table(
        pyarrow.table({'a': column()}), path, compression='zstd')
    self.assertLess(path.stat().st_size, 2**20 // 50)
    if what != 'a text that is stored once':  # its footer says it
      self.enter_context(mock.patch.object(
          tables.hub, 'parquet', side_effect=AssertionError))
    self.assertIn('over 200 times its size', self.error(path))

  def test_many_columns(self):
    """A header is checked in a time that grows as it does, and so is a row."""
    names = [f'c{i}' for i in range(20_000)]
    text = f'{",".join(names)}\n{",".join(names)}\n1,2\n'.encode()
    began = time.monotonic()
    whole, short = [entry for _, entry in tables.entries(
        self.write(text, 'wide.csv'))]
    self.assertEqual(list(whole), names)
    self.assertEqual(
        str(short), f'has 2 fields, expected 20000: {", ".join(names[:20])} '
        'and 19980 more')
    message = self.error(self.write(text.replace(b',', b',x,'), 'twice.csv'))
    self.assertIn("got 'x' twice", message)
    self.assertLess(time.monotonic() - began, 3)

  def test_directory_called_parquet(self):
    (self.directory / 'rows.parquet').mkdir()
    message = self.error(self.directory / 'rows.parquet')
    self.assertIn('a directory without a file', message)


class DirectoryTest(TableTestCase):

  def hub(self, readme=b'---\nlicense: mit\n---\nText.\n'):
    self.write(readme, 'hub/README.md')
    self.write(_lines(ROWS[:2]), 'hub/data/train-00000-of-00002.jsonl')
    self.write(b'\n' + _lines(ROWS[2:]), 'hub/data/train-00001-of-00002.jsonl')
    self.write(_lines(ROWS[:1]), 'hub/data/test-00000-of-00001.jsonl')
    return self.directory / 'hub'

  def test_split_names_its_files_and_lines(self):
    path = self.hub()
    self.assertEqual(self.entries(path, split='train'), ROWS)
    self.assertEqual(self.entries(path, split='test'), ROWS[:1])
    places = [where for where, _ in tables.entries(path, split='train')]
    self.assertEqual(
        places[2], f'{path / "data/train-00001-of-00002.jsonl"}:2')
    with contextlib.chdir(self.directory):
      self.assertEqual(
          next(tables.entries('hub', split='test'))[0],
          'hub/data/test-00000-of-00001.jsonl:1')

  def test_split_has_to_be_told_if_there_are_several(self):
    path = self.hub()
    self.assertIn('has the splits test, train; name one', self.error(path))
    self.assertIn("test, train, not 'dev'", self.error(path, split='dev'))
    for name in ('data/train-00000-of-00002', 'data/train-00001-of-00002'):
      (path / f'{name}.jsonl').unlink()
    self.assertEqual(self.entries(path), ROWS[:1])

  def test_readme_says_which_files(self):
    readme = (b'---\nconfigs:\n- config_name: only\n  data_files:\n'
              b'  - split: dev\n    path: data/test*\n---\n')
    self.assertEqual(self.entries(self.hub(readme)), ROWS[:1])

  @parameterized.parameters(
      ('README.md', b'---\nconfigs:\n- config_name: a\n  data_files: %s\n---'),
      ('.huggingface.yaml', b'configs:\n- config_name: a\n  data_files: %s'),
  )
  def test_files_elsewhere_are_refused(self, name, text):
    path = self.hub()
    self.write(_lines(ROWS), 'out.jsonl')
    self.write(text % b'https://example.com/a.jsonl', f'hub/{name}')
    self.assertIn('at an address', self.error(path))
    self.write(text % b'../out.jsonl', f'hub/{name}')
    self.assertIn('outside it', self.error(path))

  def test_malformed_readme(self):
    path = self.hub(b'---\n{"\n---\n')
    self.assertIn('README.md: malformed YAML', self.error(path))

  @parameterized.parameters(
      (b'---\na: &a [1]\nb: &b [*a, *a]\nconfigs: [*b, *b]\n---\n', 'an alias'),
      (b'---\nconfigs: ' + b'[' * 10**3 + b'\n---\n', 'more than 50'),
      (b'---\n' + b'#' * 2**22 + b'\n---\n', 'shorten it'))
  def test_readme_that_would_be_read_for_ever(self, readme, message):
    self.assertIn(message, self.error(self.hub(readme)))

  def test_code_is_not_run(self):
    path = self.hub()
    canary = self.directory / 'canary'
    self.write(f'open({str(canary)!r}, "w")'.encode(), 'hub/hub.py')
    self.assertIn('scripts are no longer supported', self.error(path))
    self.assertFalse(canary.exists())

  def test_parquet_in_a_directory(self):
    (self.directory / 'hub').mkdir()
    path = self.directory / 'hub/train.parquet'
    datasets.Dataset.from_list(ROWS).to_parquet(str(path))
    self.assertEqual(self.entries(self.directory / 'hub'), ROWS)

  def test_saved_to_disk(self):
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(self.directory / 'one'))
    self.assertEqual(self.entries(self.directory / 'one'), ROWS)
    self.assertEqual(self.places(self.directory / 'one')[3], 'row 4')
    both = datasets.DatasetDict({'train': table, 'test': table.select([2])})
    both.save_to_disk(str(self.directory / 'two'))
    self.assertEqual(
        self.entries(self.directory / 'two', split='test'), ROWS[2:3])
    self.assertIn('test, train', self.error(self.directory / 'two'))
    for file in (self.directory / 'one').glob('*.arrow'):
      file.write_bytes(b'')
    self.assertIn('cannot be read', self.error(self.directory / 'one'))

  def test_says_nothing_and_leaves_the_library_as_it_was(self):
    path = self.write(b'', 'rows.parquet')
    level = datasets.logging.get_verbosity()
    told = mock.Mock(level=logging.DEBUG)
    logger = logging.getLogger('datasets')
    logger.addHandler(told)
    self.addCleanup(logger.removeHandler, told)
    self.error(path)
    told.handle.assert_not_called()
    self.assertEqual(datasets.logging.get_verbosity(), level)


if __name__ == '__main__':
  absltest.main()
