"""Tests for rlhf_jax.data.tasks."""

import csv
import json
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.data import formats
from rlhf_jax.data import kinds
from rlhf_jax.data import reviews
from rlhf_jax.data import task_reviews
from rlhf_jax.data import task_rules
from rlhf_jax.data import tasks
from rlhf_jax.data import tokenizer


class TasksTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))

  def _path(self, task, name='data'):
    return self.directory / f'{name}{tasks.SUFFIXES[task]}'

  def _rows(self, task, num_rows, seed=0, **options):
    path = self._path(task)
    tasks.write(task, path, num_rows=num_rows, seed=seed, **options)
    with open(path, encoding='utf-8', newline='') as stream:
      if path.suffix == '.csv':
        return list(csv.DictReader(stream))
      return [json.loads(line) for line in stream]

  @parameterized.parameters(*tasks.SUFFIXES)
  def test_seeds(self, task):
    texts = []
    for i, seed in enumerate((0, 0, 1)):
      path = self._path(task, i)
      tasks.write(task, path, num_rows=20, seed=seed)
      texts.append(path.read_text())
    self.assertEqual(texts[0], texts[1])
    self.assertNotEqual(texts[0], texts[2])
    self.assertLen(self._rows(task, 7), 7)

  @parameterized.parameters(*tasks.SUFFIXES)
  def test_every_word_is_known(self, task):
    coder = tokenizer.Tokenizer.word_level(tasks.vocabulary(task))
    write = formats.get(kinds.KINDS[task].format)
    texts = {
        'reddit': lambda r: [write(r['parent_text'], r['text'])],
        'hh_scored': lambda r: [write(''.join(
            text.replace('<|prompter|>', '\n\nHuman: ').replace(
                '<|assistant|>', '\n\nAssistant: ') for text in turns),
            text) for turns, text in zip(r['prefix'], r['suffix'])],
        'stack_exchange': lambda r: [
            write(r['question'], a['text']) for a in r['answers']],
        'comet': lambda r: [write(r['head'], r['tail'], r['relation'])],
        'grounded_dialogue': lambda r: [
            write(r['history'][-1], text or '', r['knowledge'],
                  history=r['history'][:-1])
            for text in (r['response'], r['original_response'])],
        'gsm8k': lambda r: [write(r['question'], r['ground_truth'])] + [
            write(r['question'], v['solution']) for v in r.values()
            if isinstance(v, dict)],
    }[task]
    pairs = [pair for row in self._rows(task, 300) for pair in texts(row)]
    coder.encode_rows([p for p, _ in pairs], [r for _, r in pairs],
                      max_prompt_length=1, max_response_length=1)
    for text in (x for pair in pairs for part in pair for x in (
        [part] if isinstance(part, str) else part)):
      if isinstance(text, str):
        self.assertNotRegex(text, r'[{}]|  ')

  def test_reddit(self):
    rows = self._rows('reddit', 401, noise=.5)
    self.assertEqual(tuple(rows[0]), task_reviews.REDDIT)
    votes = np.array([int(row['score']) for row in rows])
    self.assertEqual((votes > 0).sum(), 201)  # the median is one of them
    self.assertGreaterEqual(np.abs(votes).min(), 6)
    # Heavy tails: the largest is many times the median of its side.
    self.assertGreater(votes.max(), 20 * np.median(votes[votes > 0]))
    self.assertEqual({row['ups'] for row in rows if row['ups'] != row['score']},
                     set())
    world = reviews.Reviews()
    encoded = world.tokenizer.encode_rows(
        [row['parent_text'] for row in rows], [row['text'] for row in rows],
        max_prompt_length=8, max_response_length=80)
    rule = world.rule(encoded.tokens, encoded.mask)
    agree = np.corrcoef(rule, np.sign(votes))[0, 1]
    self.assertBetween(agree, .5, .9)
    noisy = self._rows('reddit', 401, noise=3.)
    self.assertEqual([row['text'] for row in noisy],
                     [row['text'] for row in rows])
    signs = np.sign([int(row['score']) for row in noisy])
    self.assertLess(np.corrcoef(rule, signs)[0, 1], agree - .15)

  def test_damage(self):
    ends = lambda rate: np.mean([row['text'].endswith('.') for row in
                                 self._rows('reddit', 400, damage=rate)])
    self.assertEqual(ends(0.), 1.)
    self.assertBetween(ends(1.), .6, .8)  # a third is cut, some at a full stop
    texts = [row['text'] for row in self._rows('reddit', 400, damage=1.)]
    self.assertLess(np.mean(task_rules.fluent(texts, texts)), .5)

  def test_hh_scored(self):
    rows = self._rows('hh_scored', 600)
    self.assertEqual(set(rows[0]), {'prefix', 'suffix', 'reward', 'sft_index',
                                    'meta'})
    prefers = np.mean([row['reward'][0] > row['reward'][1] for row in rows])
    self.assertBetween(prefers, .6, .8)
    turns = {len(row['prefix'][0]) for row in rows}
    self.assertEqual(turns, {2, 4})
    for row in rows[:20]:
      self.assertEqual(row['prefix'][0], row['prefix'][1])
      self.assertEqual(row['prefix'][0][-1], '<|assistant|>')
      prompt = row['prefix'][0][-2].removeprefix('<|prompter|>')
      self.assertEqual(row['meta']['path'],
                       f'data/{reviews.split_of([prompt])[0]}/dev.jsonl')

  def test_answers_are_of_their_question(self):
    for row in self._rows('stack_exchange', 100, damage=0.):
      self.assertBetween(len(row['answers']), 2, 4)
      self.assertLessEqual(sum(a['selected'] for a in row['answers']), 1)
      for answer in row['answers']:
        others = {*reviews._THINGS} - {reviews.subject(row['question'])[0]}
        self.assertFalse(others & {*answer['text'].split()})
        self.assertGreaterEqual(answer['pm_score'], -1 + answer['selected'])

  def test_comet(self):
    rows = self._rows('comet', 2000, invalid=.4)
    valid = np.array([row['tail'] in task_rules.valid_tails(
        row['head'], row['relation']) for row in rows])
    self.assertBetween(1 - valid.mean(), .37, .43)
    score = np.array([row['p_valid_model'] for row in rows])
    self.assertTrue(((score > 0) & (score < 1)).all())
    self.assertGreater(((score > .5) == valid).mean(), .98)  # 3 deviations
    self.assertIn('none', {row['tail'] for row in rows})
    for share in (0., 1.):
      self.assertEqual({row['tail'] in task_rules.valid_tails(
          row['head'], row['relation'])
          for row in self._rows('comet', 300, invalid=share)}, {share == 0})

  def test_grounded_dialogue(self):
    rows = self._rows('grounded_dialogue', 800, edited=.7)
    true = lambda row, text: task_rules.faithful(
        [f'Knowledge: {row["knowledge"]} {" ".join(row["history"])}'],
        [text])[0]
    edited = [row for row in rows if row['original_response'] is not None]
    self.assertBetween(len(edited) / len(rows), .65, .75)
    self.assertEqual({true(row, row['response']) for row in rows}, {1.})
    for row in rows:
      said = true(row, row['original_response'] or row['response'])
      self.assertEqual({
          ('Entailment',): said == 1, ('Hallucination',): said == 0,
          ('Hallucination', 'Entailment'): 0 < said < 1,
          ('Generic',): said == 0}[tuple(row['BEGIN'])], True, row)
    self.assertEqual({len(row['history']) for row in rows}, {1, 3})

  def test_gsm8k(self):
    for row in self._rows('gsm8k', 100):
      right = row['ground_truth'].split('A: ')[1]
      held, sign, taken, _, result = (
          row['ground_truth'].split(' has ')[1].split()[:5])
      self.assertEqual(int(result), int(held) + int(sign + taken))
      self.assertEqual(result, right)
      for model in ('6b_finetuning', '6b_verification', '175b_finetuning',
                    '175b_verification'):
        self.assertEqual(
            row[model]['solution'].split('A: ')[1] == right,
            row[model]['is_correct'])

  @parameterized.parameters(
      ('poems', {}, 'task must be one of reddit, .*poems'),
      ('comet', dict(num_rows=0), 'num_rows must be >= 1, got 0'),
      ('comet', dict(invalid=1.5), r'invalid must be in \[0, 1\], got 1.5'),
      ('reddit', dict(noise=-1.), 'noise must be in'),
      ('reddit', dict(damage=2.), 'damage must be in'),
      ('comet', dict(damage=.1), 'options of comet: .*damage'))
  def test_errors(self, task, change, message):
    with self.assertRaisesRegex(ValueError, message):
      tasks.write(task, self.directory / 'data.jsonl',
                  **dict(num_rows=5, seed=0) | change)
    self.assertEmpty(list(self.directory.iterdir()))

  def test_vocabulary_of_an_unknown_task(self):
    with self.assertRaisesRegex(ValueError, "got 'poems'"):
      tasks.vocabulary('poems')

  def test_command(self):
    path, run = self._path('comet'), lambda *args: subprocess.run(
        [sys.executable, '-m', 'rlhf_jax.data.tasks', *args],
        env={'PYTHONPATH': ':'.join(sys.path)}, capture_output=True, text=True)
    self.assertEqual(run('comet', '--num_rows=3', '--seed=4',
                         str(path)).returncode, 0)
    text = path.read_text()
    tasks.write('comet', path, num_rows=3, seed=4)
    self.assertEqual(path.read_text(), text)
    failed = run('comet', '--num_rows=0', str(path))
    self.assertEqual(failed.returncode, 2)
    self.assertIn('num_rows must be >= 1, got 0', failed.stderr)


if __name__ == '__main__':
  absltest.main()
