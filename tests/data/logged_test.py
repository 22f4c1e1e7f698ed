"""Tests for rlhf_jax.data.logged."""

import collections
import csv
import gzip
import io
import json
import os
import pathlib
import statistics
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import datasets

from rlhf_jax import errors
from rlhf_jax.data import logged
from rlhf_jax.data import readers

_ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(
    os.environ.get('RLHF_JAX_SHARED', _ROOT.parent / 'shared')
)
HH_SCORED = {
    'prefix': [['<|prompter|>q', '<|assistant|>a', '<|prompter|>r',
                '<|assistant|>']] * 2,
    'suffix': ['yes', 'no'],
    'reward': [-1.5, 0.25],
    'meta': {'path': '../raw/helpful-base/dev.jsonl', 'line_num': 3},
}
ROW = {'prompt': 'p', 'response': 'a', 'reward': 0.5}


class LoggedTestCase(parameterized.TestCase):

  def write(self, entries, name='log.jsonl'):
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    path = pathlib.Path(directory.name) / name
    if isinstance(entries, bytes):
      path.write_bytes(entries)
    elif name.endswith('.parquet'):
      datasets.Dataset.from_list(entries).to_parquet(str(path))
    elif name.endswith('.csv'):
      text = io.StringIO()
      writer = csv.DictWriter(text, list(entries[0]))
      writer.writeheader()
      writer.writerows(entries)
      path.write_text(text.getvalue())
    else:
      path.write_text('\n'.join(map(json.dumps, entries)))
    return path

  def read(self, kind, *entries, name='log.jsonl', **options):
    return logged.read(self.write(entries, name), kind, **options)

  def rows(self, kind, *entries, **kwargs):
    return self.read(kind, *entries, **kwargs).rows


class ReadTest(LoggedTestCase):

  def test_same_from_every_file(self):
    entries = [ROW, {**ROW, 'response': 'b', 'reward': -2.0}]
    want = self.rows('rows', *entries)
    self.assertEqual(want[1].scores, (('reward', -2.0),))
    for name in ('log.csv', 'log.parquet'):
      self.assertEqual(self.rows('rows', *entries, name=name), want)
    packed = gzip.compress('\n'.join(map(json.dumps, entries)).encode())
    path = self.write(packed, 'log.jsonl.gz')
    self.assertEqual(logged.read(path, 'rows').rows, want)

  def test_counts(self):
    read = self.read(
        'rows', {**ROW, 'response': ' '}, ROW, {**ROW, 'reward': 'x'}, ROW,
        {'prompt': '', 'response': ''}, max_bad_rows=1)
    self.assertLen(read.rows, 2)
    self.assertEqual([row.example for row in read.rows], [0, 1])
    self.assertEqual((read.empty, read.duplicates, read.skipped), (2, 1, 0))
    (bad,) = read.bad
    self.assertRegex(bad, r"log.jsonl:3: field 'reward' must be a number")

  def test_bad_rows_are_named(self):
    path = self.write([ROW, {'prompt': 'p'}, 7])
    with self.assertRaises(errors.DataError) as caught:
      logged.read(path, 'rows', max_bad_rows=1)
    message = str(caught.exception)
    self.assertIn('2 bad rows of 3, 1 allowed', message)
    self.assertIn(f"{path}:2: field 'response' is missing", message)
    self.assertIn(f'{path}:3: must be a JSON object, got int', message)

  def test_nothing_usable(self):
    with self.assertRaisesRegex(
        errors.DataError, 'no usable response: 0 bad, 0 empty and 1 blank'):
      self.read('rows', {**ROW, 'response': ''})

  def test_blank_response_leaves_the_others(self):
    read = self.read('hh_scored', {**HH_SCORED, 'suffix': [' ', 'no']})
    self.assertEqual([(row.group, row.example) for row in read.rows],
                     [('rejected', 0)])
    self.assertEqual(read.empty, 1)

  def test_rows_of_one_prompt_best_first(self):
    rows = self.rows(
        'rows', {**ROW, 'prompt_id': 7}, {**ROW, 'response': 'b'},
        {**ROW, 'response': 'c', 'reward': 1, 'prompt_id': 7})
    self.assertEqual([(row.response, row.example) for row in rows],
                     [('c', 0), ('a', 0), ('b', 1)])

  def test_one_id_of_two_prompts(self):
    with self.assertRaisesRegex(
        errors.DataError, "prompt_id '7' has two prompts, 'p' and 'q'"):
      self.read('rows', {**ROW, 'prompt_id': 7},
                {**ROW, 'prompt_id': 7, 'prompt': 'q'})

  def test_unknown_kind_and_option(self):
    with self.assertRaisesRegex(ValueError, "one of comet, .*got 'hf'"):
      self.read('hf', ROW)
    with self.assertRaisesRegex(ValueError, "options of kind 'hh': .*max_wor"):
      self.read('hh', ROW, max_words=3)
    with self.assertRaisesRegex(ValueError, 'columns of kind .* got answer'):
      self.read('rows', ROW, columns={'answer': 'response'})


class RealFilesTest(LoggedTestCase):

  def real(self, kind, name):
    path = SHARED / 'data' / name
    if not path.exists():
      self.skipTest(f'{path} is not here (set RLHF_JAX_SHARED)')
    read = logged.read(path, kind)
    self.assertEqual((read.bad, read.duplicates, read.skipped), ([], 0, 0))
    counts = collections.Counter(row.group for row in read.rows)
    return read, read.rows[-1].example + 1, counts

  def test_hh(self):
    read, examples, groups = self.real(
        'hh', 'preference/hh_harmless_base_test.jsonl.gz')
    self.assertEqual(examples, 2312)
    self.assertEqual(read.empty, 4)
    self.assertEqual(groups, {'chosen': 2308, 'rejected': 2312})

  def test_helpful_base(self):
    read, examples, groups = self.real(
        'hh_scored', 'preference/lolrl_hh_test_helpful_base.jsonl')
    self.assertEqual(examples, 2354)
    self.assertEqual(len(read.rows) + read.empty, 4708)
    self.assertEqual(groups, {'chosen': 2354, 'rejected': 2350})
    self.assertEqual({row.split for row in read.rows}, {'helpful-base'})
    pairs = collections.defaultdict(dict)
    for row in read.rows:
      pairs[row.example][row.group] = dict(row.scores)['reward']
    wins = [pair['chosen'] > pair['rejected'] for pair in pairs.values()
            if len(pair) == 2]
    self.assertAlmostEqual(statistics.mean(wins), 0.658, delta=0.001)

  def test_dev(self):
    read, examples, _ = self.real(
        'hh_scored', 'preference/lolrl_hh_dev_280.jsonl')
    self.assertEqual((examples, len(read.rows), read.empty), (280, 559, 1))
    splits = {row.example: row.split for row in read.rows}
    self.assertEqual(collections.Counter(splits.values()), {
        'helpful-rejection-sampled': 99, 'helpful-base': 72,
        'harmless-base': 64, 'helpful-online': 45})

  def test_scored_prompts_are_those_of_hh(self):
    read, _, _ = self.real(
        'hh_scored', 'preference/lolrl_hh_test_helpful_base.jsonl')
    for row in read.rows[::50]:
      pair = readers.split_pair({'chosen': row.prompt + ' x',
                                 'rejected': row.prompt + ' y'})
      self.assertEqual(pair.prompt, row.prompt)

  def test_gsm8k(self):
    name = 'instruction/gsm8k_{}.jsonl'
    read, examples, _ = self.real('gsm8k', name.format('test'))
    self.assertEqual((examples, len(read.rows)), (1319, 1319))
    answers = [row.reference for row in read.rows]
    read, examples, groups = self.real(
        'gsm8k', name.format('example_model_solutions'))
    self.assertEqual((examples, len(read.rows)), (1319, 4 * 1319))
    self.assertEqual(set(groups.values()), {1319})
    for row in read.rows:  # the file's verdicts are those of `final_answer`
      self.assertEqual(row.reference, answers[row.example])
      right = logged.final_answer(row.response) == row.reference
      self.assertEqual(dict(row.scores)['correct'], right)

  def test_comet(self):
    _, examples, groups = self.real(
        'comet', 'dialog/comet_atomic2020_bart_generations.jsonl')
    self.assertEqual(examples, 5000)
    self.assertEqual(groups, {'human': 21952, 'model': 45000})

  @parameterized.parameters(
      ('topical', 208, 789, {0.: 130, 1.: 47, None: 31}),
      ('wow', 200, 0, {0.: 122, 1.: 57, None: 21}),
  )
  def test_audit(self, name, examples, empty, faithful):
    read, got, _ = self.real(
        'grounded_dialogue', f'dialog/faithdial_audit_gold_{name}.csv')
    self.assertEqual((got, len(read.rows), read.empty),
                     (examples, examples, empty))
    self.assertEqual(faithful, collections.Counter(
        dict(row.scores).get('faithful') for row in read.rows))


if __name__ == '__main__':
  absltest.main()
