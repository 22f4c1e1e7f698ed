"""Tests for rlhf_jax.data.readers."""

import dataclasses
import gzip
import json
import os
import pathlib
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax.data import readers
from rlhf_jax.data import tables

_ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(
    os.environ.get('RLHF_JAX_SHARED', _ROOT.parent / 'shared')
)
GOOD = b'{"instruction": "i", "output": "o"}'


def _row(**fields):
  return json.dumps({'instruction': 'i', 'output': 'o', **fields}).encode()


def _pair(chosen=' yes', rejected=' no', prompt='\n\nHuman: q\n\nAssistant:'):
  return json.dumps(
      {'chosen': prompt + chosen, 'rejected': prompt + rejected}
  ).encode()


class FileTestCase(parameterized.TestCase):

  def directory(self):
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    return pathlib.Path(directory.name)

  def write(self, content, name='rows.jsonl'):
    path = self.directory() / name
    path.write_bytes(content)
    return path

  def error(self, path, read=readers.read_alpaca, **kwargs):
    with self.assertRaises(errors.DataError) as caught:
      read(path, **kwargs)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertIn(str(path), message)
    return message


class FileFaultsTest(FileTestCase):

  def test_missing_file(self):
    self.assertIn('no such file', self.error('/nowhere/rows.jsonl'))

  def test_directory(self):
    self.assertIn('is a directory', self.error(self.directory()))

  def test_pipe_does_not_hang(self):
    path = self.directory() / 'pipe.jsonl'
    os.mkfifo(path)
    self.assertIn('not a regular file', self.error(path))

  def test_unknown_suffix(self):
    self.assertIn('.jsonl.gz', self.error(self.write(GOOD, 'rows.txt')))

  @parameterized.parameters(
      (b'', 'rows.jsonl'), (b'\n \r\n\n', 'rows.jsonl'),
      (b'\xef\xbb\xbf', 'rows.jsonl'), (b' ', 'rows.json'),
      (b'[]', 'rows.json'), (gzip.compress(b''), 'rows.jsonl.gz'),
  )
  def test_empty_file(self, content, name):
    self.assertIn('is empty', self.error(self.write(content, name)))

  @parameterized.named_parameters(
      ('not_gzip', GOOD),
      ('cut', gzip.compress(os.urandom(10_000))[:5_000]),
      ('flipped', gzip.compress(GOOD)[:-8] + b'\0' * 8),
      ('garbage_inside', gzip.compress(b'')[:10] + b'\xff' * 50),
  )
  def test_unreadable_gzip(self, content):
    path = self.write(content, 'rows.jsonl.gz')
    self.assertIn('unreadable gzip', self.error(path, max_bad_rows=99))

  def test_decompression_bomb(self):
    content = gzip.compress(b'x' * 40 * 2**20)
    started = time.perf_counter()
    message = self.error(self.write(content, 'rows.jsonl.gz'))
    self.assertIn('times its size', message)
    self.assertLess(time.perf_counter() - started, 10)

  def test_array_that_is_no_array(self):
    path = self.write(b'"instruction"', 'rows.json')
    self.assertIn('one array, got str', self.error(path))

  def test_malformed_array_names_the_line(self):
    path = self.write(b'[' + GOOD + b',\n{"instruction": ]', 'rows.json')
    self.assertIn('malformed JSON at line 2 column', self.error(path))

  def test_invalid_utf8_in_array_names_the_byte(self):
    path = self.write(b'\xef\xbb\xbf["\xff"]', 'rows.json')
    self.assertIn('invalid UTF-8 at byte 5', self.error(path))

  def test_negative_max_bad_rows(self):
    with self.assertRaisesRegex(ValueError, 'max_bad_rows.*-1'):
      readers.read_alpaca(self.write(GOOD), max_bad_rows=-1)


class BadRowsTest(FileTestCase):

  @parameterized.named_parameters(
      ('malformed', b'{"instruction": "a" "b"}', 'malformed JSON at column 21'),
      ('not_an_object', b'[1]', 'must be a JSON object, got list'),
      ('missing_output', b'{"instruction": "i"}', "'output' is missing"),
      ('missing_instruction', b'{"output": ""}', "'instruction' is missing"),
      ('number', _row(output=3), "'output' must be a string, got int"),
      ('null', _row(output=None), "'output' must be a string, got NoneType"),
      ('input_list', _row(input=['x']), "'input' must be a string, got list"),
      ('blank', _row(instruction=' \n'), "'instruction' is blank"),
      ('surrogate', _row(output='a\ud800'), "'output' has a lone surrogate"),
      ('deep', b'[' * 200_000, 'nested too deeply'),
      ('digits', b'{"x": ' + b'9' * 5000 + b'}', 'malformed JSON: Exceeds'),
      ('invalid_utf8', b'{"a": "\xff"}', 'invalid UTF-8 at byte 43 of'),
      ('cut_character', '{"a": "é'.encode()[:-1], 'invalid UTF-8 at byte 43'),
  )
  def test_reported_then_allowed(self, line, reason):
    path = self.write(GOOD + b'\n' + line + b'\n' + GOOD + b'\n')
    message = self.error(path)
    self.assertIn('1 bad rows of 3, 0 allowed', message)
    self.assertIn(f'{path}:2: ', message)
    self.assertIn(reason, message)
    read = readers.read_alpaca(path, max_bad_rows=1)
    self.assertLen(read.rows, 2)
    self.assertLen(read.bad, 1)
    self.assertStartsWith(read.bad[0], f'{path}:2: ')

  def test_last_line_cut(self):
    path = self.write(GOOD + b'\n' + GOOD[:-5])
    message = self.error(path)
    self.assertIn(':2: malformed JSON', message)
    self.assertIn('the last line is cut', message)
    self.assertNotIn('is cut', self.error(self.write(b'{\n' + GOOD)))

  @parameterized.parameters('rows.jsonl', 'rows.jsonl.gz')
  def test_overlong_line(self, name):
    padding = os.urandom(200).hex()
    content = b'\n'.join([_row(output=padding), GOOD, _row(output=padding)])
    if name.endswith('gz'):
      content = gzip.compress(content)
    path = self.write(content, name)
    with mock.patch.object(tables, 'MAX_LINE_BYTES', 100):
      self.assertIn(f'{path}:1: is over 100 bytes', self.error(path))
      read = readers.read_alpaca(path, max_bad_rows=2)
    self.assertLen(read.rows, 1)
    self.assertEndsWith(read.bad[1], ':3: is over 100 bytes')

  def test_cap_is_16_megabytes(self):
    room = 16 * 2**20 - len(_row(output=''))
    read = readers.read_alpaca(self.write(_row(output='x' * room)))
    self.assertLen(read.rows[0].output, room)
    path = self.write(_row(output='x' * (room + 1)))
    self.assertIn('is over 16777216 bytes', self.error(path))

  def test_first_ten_and_the_total(self):
    path = self.write(GOOD + b'\n' + b'{\n' * 14)
    message = self.error(path, max_bad_rows=13)
    self.assertIn('14 bad rows of 15, 13 allowed', message)
    self.assertIn(f'{path}:11: ', message)
    self.assertNotIn(f'{path}:12: ', message)
    self.assertIn('and 4 more', message)
    self.assertLen(readers.read_alpaca(path, max_bad_rows=14).bad, 14)

  def test_bad_row_of_an_array(self):
    path = self.write(b'[' + GOOD + b', 7]', 'rows.json')
    self.assertIn(f'{path}:row 2: must be a JSON object', self.error(path))

  def test_nothing_usable(self):
    path = self.write(b'{\n' + _row(output='') + b'\n')
    message = self.error(path, max_bad_rows=5)
    self.assertIn('no usable row of 2: 1 bad, 1 empty', message)


class AlpacaTest(FileTestCase):

  @parameterized.parameters(
      '👩‍👩‍👧 emoji', 'שלום مرحبا', 'a\0b', 'a\u2028b\u2029c\x85d',
      ' \r\n x\t ', '\ufeffx',
  )
  def test_text_survives(self, text):
    row = {'instruction': 'i' + text, 'input': text, 'output': text + 'o'}
    want = readers.Demonstration('i' + text, text, text + 'o')
    for ascii_only in (True, False):
      line = json.dumps(row, ensure_ascii=ascii_only).encode()
      for name, content in (
          ('a.jsonl', line + b'\n' + line),
          ('a.jsonl', b'\xef\xbb\xbf' + line + b'\r\n\r\n' + line + b'\r\n'),
          ('a.jsonl.gz', gzip.compress(line + b'\n' + line + b'\n')),
          ('a.json', b'\xef\xbb\xbf[\r\n' + line + b',' + line + b']'),
      ):
        read = readers.read_alpaca(self.write(content, name))
        self.assertEqual(read.rows, [want, want])
        self.assertEqual(read.duplicates, 1)

  def test_input_is_optional(self):
    lines = [GOOD, _row(input=None), _row(input=''), _row(input='x')]
    rows = readers.read_alpaca(self.write(b'\n'.join(lines))).rows
    self.assertEqual([row.input for row in rows], ['', '', '', 'x'])

  def test_empty_outputs_are_dropped_and_counted(self):
    lines = [GOOD, _row(output=''), _row(output=' \n')]
    read = readers.read_alpaca(self.write(b'\n'.join(lines)))
    self.assertLen(read.rows, 1)
    self.assertEqual((read.empty, read.bad, read.duplicates), (2, [], 0))

  def test_dedup_removes_exactly_the_repeats(self):
    lines = [_row(output=x) for x in 'abacab']
    path = self.write(b'\n'.join(lines))
    kept = readers.read_alpaca(path)
    self.assertEqual(''.join(r.output for r in kept.rows), 'abacab')
    unique = readers.read_alpaca(path, dedup=True)
    self.assertEqual(''.join(r.output for r in unique.rows), 'abc')
    self.assertEqual((kept.duplicates, unique.duplicates), (3, 3))

  def test_csv_and_a_split_of_a_directory(self):
    path = self.write(b'instruction,output\ni,"o\no"\nj,\n,p\n', 'dev.csv')
    self.assertIn(f"{path}:5: field 'instruction' is blank", self.error(path))
    (path.parent / 'train.jsonl').write_bytes(GOOD)
    path.unlink()
    (path.parent / 'test.jsonl').write_bytes(GOOD + b'\n' + GOOD)
    self.assertIn('has the splits test, train', self.error(path.parent))
    read = readers.read_alpaca(path.parent, split='test')
    self.assertLen(read.rows, 2)

  def test_rows_are_frozen(self):
    row = readers.read_alpaca(self.write(GOOD)).rows[0]
    with self.assertRaises(dataclasses.FrozenInstanceError):
      row.output = 'other'

  def test_ten_thousand_rows_in_two_seconds(self):
    path = self.write(b'\n'.join(_row(input=str(i)) for i in range(10_000)))
    started = time.perf_counter()
    self.assertLen(readers.read_alpaca(path).rows, 10_000)
    self.assertLess(time.perf_counter() - started, 2)


class HhTest(FileTestCase):

  def read_one(self, line):
    return readers.read_hh(self.write(line)).rows[0]

  def test_splits_at_the_last_turn(self):
    prompt = '\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:'
    row = self.read_one(_pair(' yes ', ' no', prompt))
    self.assertEqual(row, readers.Preference(prompt, ' yes ', ' no'))

  def test_responses_with_a_common_start(self):
    row = self.read_one(_pair(' I do', ' I do not'))
    self.assertEndsWith(row.prompt, '\n\nAssistant:')
    self.assertEqual((row.chosen, row.rejected), (' I do', ' I do not'))

  def test_prompts_that_part_ways(self):
    row = self.read_one(_pair(' b\n\nHuman: c\n\nAssistant: d', ' e'))
    self.assertEqual(row.prompt, '\n\nHuman: q\n\nAssistant:')
    self.assertEqual(row.chosen, ' b\n\nHuman: c\n\nAssistant: d')
    self.assertEqual(row.rejected, ' e')

  @parameterized.named_parameters(
      ('no_human', _pair(prompt='\n\nAssistant:'), 'does not start with'),
      ('no_turn', _pair(prompt='\n\nHuman: q'), "no '\\n\\nAssistant:' turn"),
      ('same', _pair(' yes', ' yes'), 'are the same'),
      ('same_but_space', _pair(' yes', ' yes \n'), 'are the same'),
      ('both_empty', _pair('', ' '), 'are the same'),
      ('number', b'{"chosen": 1, "rejected": ""}', 'must be a string, got int'),
      ('missing', b'{"chosen": "\\n\\nHuman:"}', "'rejected' is missing"),
      ('nothing_shared', json.dumps({
          'chosen': '\n\nHuman: a\n\nAssistant: x',
          'rejected': '\n\nHuman: b\n\nAssistant: y'}).encode(),
       'share no prompt'),
  )
  def test_bad_row(self, line, reason):
    path = self.write(_pair() + b'\n' + line)
    message = self.error(path, read=readers.read_hh)
    self.assertIn(f'{path}:2: ', message)
    self.assertIn(reason, message)
    self.assertLen(readers.read_hh(path, max_bad_rows=1).rows, 1)

  def test_empty_response_is_dropped_and_counted(self):
    read = readers.read_hh(self.write(_pair() + b'\n' + _pair(rejected=' ')))
    self.assertEqual((len(read.rows), read.empty, read.bad), (1, 1, []))


class RealFilesTest(FileTestCase):

  def real(self, name):
    path = SHARED / 'data' / name
    if not path.exists():
      self.skipTest(f'{path} is not here (set RLHF_JAX_SHARED)')
    return path

  def test_alpaca_array(self):
    read = readers.read_alpaca(self.real('instruction/alpaca_en_demo_999.json'))
    self.assertLen(read.rows, 999)
    self.assertEqual((read.bad, read.empty, read.duplicates), ([], 0, 14))

  def test_alpaca_lines_with_14_malformed(self):
    path = self.real('instruction/alpaca_libre_tasks_v2.jsonl')
    message = self.error(path)
    self.assertIn('14 bad rows of 2294, 0 allowed', message)
    self.assertIn('and 4 more', message)
    read = readers.read_alpaca(path, max_bad_rows=14)
    lines = [int(bad.split(':')[1]) for bad in read.bad]
    self.assertEqual(lines, [2279, *range(2281, 2292), 2293, 2294])
    self.assertTrue(all('malformed JSON' in bad for bad in read.bad))
    # The 51 have no output: their status is 'error' or 'too short'.
    self.assertLen(read.rows, 2294 - 14 - 51)
    self.assertEqual((read.empty, read.duplicates), (51, 3))

  def test_hh(self):
    read = readers.read_hh(
        self.real('preference/hh_harmless_base_test.jsonl.gz')
    )
    self.assertLen(read.rows, 2312 - 4)
    self.assertEqual((read.bad, read.empty, read.duplicates), ([], 4, 0))
    parted = sum('\n\nHuman:' in r.chosen + r.rejected for r in read.rows)
    self.assertLessEqual(parted, 5)
    for row in read.rows:
      self.assertEndsWith(row.prompt, '\n\nAssistant:')


if __name__ == '__main__':
  absltest.main()
