"""Tests for rlhf_jax.data.examples."""

import dataclasses
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax.data import examples as examples_lib
from rlhf_jax.data import formats
from rlhf_jax.data import kinds
from rlhf_jax.data import logged
from rlhf_jax.data import options
from rlhf_jax.data import readers
from rlhf_jax.data import tasks

SIZES = dict(num_pair_prompts=30, num_eval_prompts=3, max_prompt_length=40,
             max_response_length=30)
SEEDS = (0, 1, 2, 3, 10, 100, 1000, 1001)


def _options(**fields):
  return examples_lib.Options(**SIZES | fields)


def _task(**fields):
  return _options(**dict(task='comet', num_rows=30) | fields)


class OptionsTest(parameterized.TestCase):

  def test_kind_and_format(self):
    file = _options(path='a.jsonl', kind='rows')
    self.assertEqual((file.row_kind, file.source, file.prompt_format),
                     ('rows', 'a.jsonl', 'alpaca'))
    task = _task(format='hh')
    self.assertEqual((task.row_kind, task.source, task.prompt_format),
                     ('comet', 'comet', 'hh'))
    self.assertEqual(_task(kind='comet').row_kind, 'comet')

  def test_a_format_for_every_kind(self):
    for kind in kinds.KINDS.values():
      formats.get(kind.format)

  @parameterized.parameters(
      (dict(), 'either path or task, got None and None'),
      (dict(path='a', task='comet'), "path or task, got 'a' and 'comet'"),
      (dict(path='a', kind='poems'), "kind must be one of .*got 'poems'"),
      (dict(task='poems', num_rows=1), "task must be one of .*got 'poems'"),
      (dict(task='comet', kind='hh', num_rows=1), "kind must be that of task"),
      (dict(task='comet'), "num_rows must be given for task 'comet'"),
      (dict(path='a', kind='hh', num_rows=4), 'num_rows is of a task, got 4'),
      (dict(path='a', kind='hh', max_samples=0), 'max_samples must be >= 1'))
  def test_names_the_field(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      _options(**fields)

  def test_every_option_is_described(self):
    shared = len(dataclasses.fields(options.Texts))
    for field in dataclasses.fields(examples_lib.Options)[shared:]:
      self.assertIn(f'    {field.name}: ', examples_lib.Options.__doc__)


class ReadTest(absltest.TestCase):

  def test_a_task_has_a_stream_of_its_own(self):
    written = []
    with mock.patch.object(tasks, 'write', wraps=tasks.write) as write:
      for seed in SEEDS:
        examples_lib.read(_task(num_rows=31), seed)
      written = [call.kwargs['seed'] for call in write.call_args_list]
    self.assertEqual(written, [streams.number(seed, 'task') for seed in SEEDS])
    self.assertLen(set(written) | {
        streams.number(seed, 'split') for seed in SEEDS}, 2 * len(SEEDS))

  def test_a_file_is_read_once_for_all_seeds(self):
    path = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory())) / 'a.jsonl'
    path.write_text(''.join(json.dumps(dict(
        prompt=f'p{i}', answer='r', reward=i)) + '\n' for i in range(9)))
    options = _options(path=str(path), kind='rows', others=(
        ('columns', (('response', 'answer'),)),))
    with mock.patch.object(logged, 'read', wraps=logged.read) as read:
      rows = [examples_lib.read(options, seed).rows for seed in range(3)]
    self.assertEqual(read.call_count, 1)
    self.assertIs(rows[0], rows[2])
    self.assertEqual(rows[0][0].response, 'r')


class SplitTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    rows = [logged.Logged(f'p{i % 6}', f'r{i} {j}', i, input=str(i % 2))
            for i in range(18) for j in range(3)]
    self.enterContext(mock.patch.object(
        examples_lib, 'read',
        lambda options, seed: readers.Read(rows, [], 0, 0)))

  def test_examples_are_cut_to_the_best(self):
    training, held_out = examples_lib.split(_task(), 0)
    for part in (training, held_out):
      for example in part:
        numbers = {row.example for row in example}
        self.assertLen(numbers, 1)
        number, = numbers
        self.assertEqual([row.response for row in example],
                         [f'r{number} 0', f'r{number} 1'])

  def test_prompts_are_on_one_side(self):
    for seed in range(5):
      training, held_out = examples_lib.split(_task(), seed)
      asked = {example[0].prompt for example in held_out}
      self.assertLen(asked, 3)
      self.assertLen(held_out, 3)
      self.assertLen(training, 9)  # three prompts, each asked three times
      self.assertFalse(asked & {example[0].prompt for example in training})

  def test_too_few_prompts(self):
    examples_lib.split(_task(num_eval_prompts=5), 0)
    with self.assertRaisesRegex(errors.DataError, 'comet: 6 usable.* but 6'):
      examples_lib.split(_task(num_eval_prompts=6), 0)


class NamesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.rows = [logged.Logged('p', 'r', 0, 'b', scores=(('up', 1.),)),
                 logged.Logged('p', 'r', 0, 'a', scores=(('down', 1.),)),
                 logged.Logged('p', 'r', 1, 'b')]

  def test_sorted_once(self):
    self.assertEqual(examples_lib.groups(self.rows), ('a', 'b'))
    self.assertEqual(examples_lib.score_names(self.rows), ['down', 'up'])

  def test_check(self):
    for fields in ({}, dict(demonstrations=('b', 'x')), dict(target='up')):
      examples_lib.check_names(_task(**fields), self.rows)
    for fields, message in (
        (dict(demonstrations=('x',)), r"\(a, b\), got \('x',\)"),
        (dict(target='x'), r"\(down, up\), got 'x'")):
      with self.assertRaisesRegex(ValueError, message):
        examples_lib.check_names(_task(**fields), self.rows)
    with self.assertRaisesRegex(ValueError, 'it has none'):
      examples_lib.check_names(_task(target='up'), self.rows[2:])


class WriterTest(absltest.TestCase):

  def test_history(self):
    row = logged.Logged('p', 'r', 0, input='k', history=('h',))
    prompt, response = examples_lib.writer(
        _task(format='grounded_dialogue'))(row)
    self.assertEqual(
        [part for part in prompt if isinstance(part, str)],
        ['Knowledge: k', 'h', 'p'])
    self.assertEqual(response, 'r')
    with self.assertRaisesRegex(
        ValueError, "'alpaca' has no place for the history of 'p'"):
      examples_lib.writer(_task(format='alpaca'))(row)

  def test_input(self):
    row = logged.Logged('p', 'r', 0, input='k')
    self.assertIn('### Input:\nk', examples_lib.writer(
        _task(format='alpaca'))(row)[0])
    with self.assertRaisesRegex(ValueError, "no place for the input 'k'"):
      examples_lib.writer(_task(format='stack_exchange'))(row)


if __name__ == '__main__':
  absltest.main()
