"""Tests for rlhf_jax.data.logs."""

import dataclasses
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import kinds
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import logged
from rlhf_jax.data import logs
from rlhf_jax.data import reviews
from rlhf_jax.data import task_rules
from rlhf_jax.data import tasks
from rlhf_jax.rewards import components

SHARED = pathlib.Path(__file__).resolve().parents[3] / 'shared/data'
SIZES = dict(num_pair_prompts=30, num_eval_prompts=3, max_prompt_length=40,
             max_response_length=30)


def _task(task, num_rows=60, **change):
  return dict(name='logged', kind=task, task=task, num_rows=num_rows,
              **SIZES) | change


def _texts(out, tokens, mask):
  """(prompt, response) of one row of tokens."""
  stop = mask.argmax() if mask.any() else len(tokens)
  return (out.tokenizer.decode(tokens[:stop]),
          out.tokenizer.decode(tokens[mask]))


class FileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.directory / 'data.jsonl'
    # Ten questions with three answers, one with a single one; one question is
    # asked twice.
    rows = [dict(prompt=f'what is {i % 10}', response=f'it is {i} {j}',
                 reward=10. * i - j, group='ab'[j % 2], prompt_id=i,
                 split='even odd'.split()[i % 2], reference=f'r{i % 10}')
            for i in range(11) for j in range(1 if i == 3 else 3)]
    self.path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    self.config = dict(name='logged', kind='rows', path=str(self.path),
                       vocab_size=300, **SIZES)

  def _forget(self):
    """The file has been written anew."""
    logged.read_once.cache_clear()
    load_lib._load.cache_clear()

  def _load(self, seed=0, **change):
    return load_lib.load(self.config | change, seed)

  def test_contents(self):
    out = self._load()
    log, decode = out.log, out.tokenizer.decode
    self.assertEqual(log.groups, ('a', 'b'))
    count = len(log.tokens)
    self.assertBetween(count, 7, 8)  # three of the ten prompts are held out
    self.assertEqual(log.tokens.shape, (count, 2, 70))
    self.assertEqual({k: (v.shape, v.dtype) for k, v in log.scores.items()},
                     {'reward': ((count, 2), np.float32)})
    self.assertEqual(log.group.dtype, np.int32)
    for n in range(count):
      prompt, first = _texts(out, log.tokens[n, 0], log.mask[n, 0])
      i = int(first.split()[2])
      self.assertIn(f'what is {i % 10}', prompt)
      self.assertEqual(log.references[n], f'r{i % 10}')
      for j in range(1 if i == 3 else 2):
        self.assertEqual(decode(log.tokens[n, j][log.mask[n, j]]),
                         f'it is {i} {j}')
        self.assertEqual(log.scores['reward'][n, j], 10 * i - j)
        self.assertEqual(log.group[n, j], j)
    self.assertIsNone(out.world)
    self.assertIsNone(out.preferences)
    self.assertEqual(out.summary['examples'], count)
    self.assertEqual(out.summary['responses'], (log.group >= 0).sum())
    self.assertEqual(out.summary['unfinished_responses'], 0)

  def test_right_answers_of_all_prompts_or_none(self):
    out = self._load(3)
    number = lambda row: out.tokenizer.decode(row).split('what is ')[1][0]
    self.assertLen(out.pair_references, 30)
    self.assertEqual(out.pair_references, tuple(
        f'r{number(row)}' for row in out.pair_prompts.tokens))
    self.assertEqual(out.eval_references, tuple(
        f'r{number(row)}' for row in out.eval_prompts.tokens))
    # One training prompt without an answer, and only the log has some.
    absent = out.pair_references[0]
    self.path.write_text(self.path.read_text().replace(
        f'"{absent}"', '""'))
    self._forget()
    other = self._load(3)
    self.assertIsNone(other.pair_references)
    self.assertEqual(other.eval_references, out.eval_references)
    self.assertEqual(
        set(other.log.references), {*out.log.references, ''} - {absent})
    self.assertEqual(other.fingerprint(), out.fingerprint())

  def test_only_prompts_that_are_asked_need_an_answer(self):
    out = self._load(3)
    absent = out.pair_references[-1]
    self.path.write_text(self.path.read_text().replace(
        f'"{absent}"', '""'))
    self._forget()
    few = self._load(3, num_pair_prompts=2)
    self.assertEqual(few.pair_references, out.log.references[:2])

  def test_format_and_example(self):
    out = self._load()
    self.assertEqual(out.format, 'alpaca')
    number = out.log.references[0][1:]
    self.assertRegex(out.example(), (
        rf"^'<bos>.*what is {number}\\n\\n### Response:it is {number} 0"
        r"<eos>'$"))
    out = self._load(format='open_assistant')
    self.assertEqual(out.format, 'open_assistant')
    self.assertRegex(out.example(), (
        r"^'<bos><\|prompter\|>what is \d<eos><\|assistant\|>it is \d+ 0"
        r"<eos>'$"))

  def test_a_missing_response_is_its_prompt(self):
    out = next(x for x in map(self._load, range(9))
               if (x.log.group < 0).any())
    log = out.log
    (n,), (k,) = np.nonzero(log.group < 0)
    self.assertEqual(k, 1)
    self.assertFalse(log.mask[n, 1].any())
    self.assertTrue(np.isnan(log.scores['reward'][n, 1]))
    start = log.mask[n, 0].argmax()
    np.testing.assert_array_equal(
        log.tokens[n, 1, :start], log.tokens[n, 0, :start])
    self.assertTrue((log.tokens[n, 1, start:] == out.tokenizer.pad_id).all())
    self.assertLen(log.tokens[log.mask.any(axis=-1)], out.summary['responses'])

  def test_held_out_prompts_are_in_no_log(self):
    for seed in range(4):
      out = self._load(seed)
      prompts = lambda rows: {tuple(row) for row in rows.tolist()}
      pad = out.tokenizer.pad_id
      log = out.log
      logged_ = prompts(np.where(
          np.cumsum(log.mask[:, 0], axis=-1) > 0, pad,
          log.tokens[:, 0])[:, :40])
      held_out = prompts(out.eval_prompts.tokens)
      self.assertLen(held_out, 3)
      self.assertLen(logged_, 7)
      self.assertFalse(held_out & logged_)
      self.assertEqual(prompts(out.pair_prompts.tokens), logged_)
      # The repeated prompt is on one side, with both of its examples.
      self.assertLen(log.tokens, 7 + any(
          'what is 0' in out.tokenizer.decode(row) for row in logged_))
      for row, text in zip(out.eval_demonstrations.tokens[:, 0],
                           out.eval_prompts.tokens):
        self.assertIn(out.tokenizer.decode(text), out.tokenizer.decode(row))
      self.assertEqual(out.eval_splits, tuple(
          'odd' if int(out.tokenizer.decode(row).split('what is ')[1][0]) % 2
          else 'even' for row in out.eval_prompts.tokens)
          if out.eval_splits else None)

  def test_one_split_is_none(self):
    self.path.write_text(self.path.read_text().replace('odd', 'even'))
    self.assertIsNone(self._load(17).eval_splits)

  @parameterized.parameters((None, 0), (('a',), 0), (('b',), 1))
  def test_demonstrations(self, groups, place):
    out = self._load(demonstrations=groups)
    texts = [_texts(out, *row)[1] for row in zip(
        out.demonstrations.tokens[:, 0], out.demonstrations.mask[:, 0])]
    log = out.log
    there = log.group[:, place] >= 0  # a single answer is of group a
    self.assertEqual(texts, [_texts(out, *row)[1] for row in zip(
        log.tokens[there, place], log.mask[there, place])])
    self.assertEqual(out.summary['demonstrations'], there.sum())

  def test_target_and_samples(self):
    out = self._load(target='reward', max_samples=3)
    self.assertEqual(out.log_target, 'reward')
    self.assertEqual(out.log.tokens.shape[1], 3)
    best = self._load(max_samples=1).log
    self.assertEqual(best.tokens.shape[1], 1)
    np.testing.assert_array_equal(
        best.scores['reward'], out.log.scores['reward'][:, :1])

  def test_preferences(self):
    text = self.path.read_text().replace('"b"', '"chosen"')
    self.path.write_text(text.replace('"a"', '"rejected"'))
    config = self.config | dict(max_samples=3)
    out = load_lib.load(config, 5)
    pairs, log = out.preferences, out.log
    both = (log.group >= 0).sum(axis=1) > 1
    self.assertEqual(log.groups, ('chosen', 'rejected'))
    np.testing.assert_array_equal(pairs.tokens, log.tokens[both][:, [1, 0]])
    np.testing.assert_array_equal(pairs.mask, log.mask[both][:, [1, 0]])
    self.assertEqual(logs.num_preferences(config, 5), both.sum())
    self.assertEqual(load_lib.num_preferences(config),
                     len(load_lib.load(config, 0).preferences.tokens))

  def test_the_fingerprint_is_of_the_log(self):
    out = self._load()
    log = out.log
    prints = [dataclasses.replace(
        out, log=dataclasses.replace(log, **change)).fingerprint()
        for change in ({}, dict(group=log.group + 1),
                       dict(tokens=log.tokens[::-1]),
                       dict(scores={'reward': log.scores['reward'] + 1}))]
    self.assertEqual(prints[0], out.fingerprint())
    self.assertLen(set(prints), 4)

  def test_columns_and_named_tokenizer(self):
    out = self._load(columns={'response': 'reference'})
    self.assertTrue(_texts(out, out.log.tokens[0, 0], out.log.mask[0, 0])[1]
                    .startswith('r'))
    path = self.directory / 'tokenizer.json'
    out.tokenizer.save(path)
    again = self._load(columns={'response': 'reference'},
                       tokenizer=str(path))
    np.testing.assert_array_equal(again.log.tokens, out.log.tokens)

  @parameterized.parameters(
      (dict(task='comet'), 'either path or task'),
      (dict(path=None), 'either path or task'),
      (dict(kind='poems'), "kind must be one of .*got 'poems'"),
      (dict(num_rows=4), 'num_rows is of a task'),
      (dict(max_samples=0), 'max_samples must be >= 1, got 0'),
      (dict(target='votes'), r"score of the log \(reward\), got 'votes'"),
      (dict(demonstrations=('c',)), r'groups of the log \(a, b\)'),
      (dict(format='comet'), 'needs the relation'),
      (dict(vocab_size=9), 'vocab_size must be >= 259'),
      (dict(max_response_length=0), 'max_response_length'),
      (dict(max_word=1), 'max_word'),
      (dict(num_pair_prompts=None), 'num_pair_prompts'))
  def test_check_names_the_field(self, change, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      load_lib.check(self.config | change)

  def test_check(self):
    load_lib.check(self.config | dict(target='reward', demonstrations=['b']))
    with self.assertRaisesRegex(errors.DataError, '10 usable prompts, but 10'):
      load_lib.check(self.config | dict(num_eval_prompts=10))
    with self.assertRaisesRegex(errors.DataError, 'no.jsonl: no such file'):
      load_lib.check(self.config | dict(path=str(self.directory / 'no.jsonl')))
    bad = self.directory / 'bad.jsonl'
    bad.write_text('{"prompt": 1}\n')
    with self.assertRaisesRegex(errors.DataError, 'bad.jsonl:1: '):
      load_lib.check(self.config | dict(path=str(bad)))

  def test_history_needs_a_place(self):
    with self.assertRaisesRegex(errors.ConfigError, 'place for the history'):
      load_lib.check(_task('grounded_dialogue', format='alpaca'))


class TaskTest(parameterized.TestCase):

  @parameterized.parameters(*tasks.SUFFIXES)
  def test_contents(self, task):
    config = _task(task)
    load_lib.check(config)
    out = load_lib.load(config, 1)
    self.assertLen(out.eval_prompts.tokens, 3)
    self.assertTrue(out.log.mask[:, 0].any(axis=-1).all())
    self.assertTrue(out.log.scores)
    again = logs.from_logged(seed=1, task=task, num_rows=60, **SIZES)
    self.assertEqual(again.fingerprint(), out.fingerprint())
    self.assertNotEqual(load_lib.load(config, 2).fingerprint(),
                        out.fingerprint())
    self.assertEqual(out.preferences is not None, task == 'hh_scored')
    self.assertEqual(out.log.references is not None, task == 'gsm8k')
    self.assertEqual(out.format, kinds.KINDS[task].format)
    self.assertIn('<eos>', out.example())

  def test_reddit_has_its_world(self):
    options = dict(num_adjectives=40, noise=0., damage=0.)
    out = load_lib.load(_task('reddit', **options), 3)
    log, rule = out.log, out.world.rule(out.log.tokens, out.log.mask)
    votes = log.scores['votes'][:, 0]
    up = log.group[:, 0] == log.groups.index('up')
    np.testing.assert_array_equal(up, votes > 0)
    # Without noise the votes are in the order of the rule.
    order = np.argsort(rule[:, 0], kind='stable')
    self.assertTrue((np.diff(votes[order]) >= 0).all())
    self.assertEqual(out.eval_splits, tuple(reviews.split_of(
        [out.tokenizer.decode(row) for row in out.eval_prompts.tokens])))
    self.assertEqual(out.tokenizer.vocab_size,
                     reviews.Reviews(num_adjectives=40).tokenizer.vocab_size)
    only = load_lib.load(_task('reddit', demonstrations=('up',), **options), 3)
    self.assertEqual(only.summary['demonstrations'], up.sum())
    self.assertEqual(only.summary['examples'], len(up))

  def test_rules_read_what_is_decoded(self):
    for task, rule, column in (
        ('comet', task_rules.valid_tail, 'p_valid_model'),
        ('grounded_dialogue', task_rules.faithful, 'faithful')):
      out = load_lib.load(_task(task, noise=.1) if task == 'comet' else
                        _task(task), 1)
      there = out.log.mask.any(axis=-1)
      texts = [_texts(out, *row) for row in zip(
          out.log.tokens[there], out.log.mask[there])]
      self.assertEqual(any('do you know' in text for text, _ in texts),
                       task == 'grounded_dialogue')  # of the history
      truth = np.array(rule(*zip(*texts)))
      score = out.log.scores[column][there]
      self.assertGreater(np.std(truth), .2)
      np.testing.assert_array_equal(truth[score > .5], 1)
      self.assertLess(truth[score <= .5].max(), 1)

  def test_right_answers(self):
    out = load_lib.load(_task('gsm8k', max_samples=4), 1)
    self.assertLen(out.pair_references, 30)
    for answer, tokens in zip(
        out.eval_references + out.pair_references,
        [*out.eval_prompts.tokens, *out.pair_prompts.tokens], strict=True):
      words = out.tokenizer.decode(tokens).split()
      a, b = (int(word) for word in words if word.isdigit())
      self.assertEqual(int(answer), a + b if 'gets' in words else a - b)
    other = load_lib.load(_task('comet'), 1)
    self.assertIsNone(other.eval_references)
    self.assertIsNone(other.pair_references)
    # Decoded, an answer is no line of its own any more.
    rows = [x.reshape(-1, x.shape[-1]) for x in (out.log.tokens, out.log.mask)]
    texts = [_texts(out, *row)[1] for row in zip(*rows)]
    self.assertNotIn('\n', ''.join(texts))
    with components.Components({'right': {
        'kind': 'exact_match', 'extract': 'final_answer'}}) as rewards:
      scored = rewards(*rows, texts, texts, references=np.repeat(
          out.log.references, 4).tolist())
    correct = out.log.scores['correct'].ravel()
    np.testing.assert_array_equal(scored.values['right'], correct)
    self.assertBetween(correct.mean(), .2, .8)

  @parameterized.parameters(
      (dict(num_rows=None), "num_rows must be given for task 'comet'"),
      (dict(kind='reddit'), "kind must be that of task 'comet'"),
      (dict(kind=None, task='poems'), "task must be one of .*got 'poems'"),
      (dict(damage=.1), 'options of comet: .*damage'))
  def test_errors(self, change, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      load_lib.check(_task('comet') | change)


class RealFilesTest(absltest.TestCase):

  def test_scored_pairs(self):
    path = SHARED / 'preference/lolrl_hh_dev_280.jsonl'
    if not path.exists():
      self.skipTest(f'{path} is not here')
    out = logs.from_logged(
        seed=0, kind='hh_scored', path=str(path), num_pair_prompts=100,
        num_eval_prompts=32, max_prompt_length=96, max_response_length=64,
        vocab_size=400)
    count = len(out.log.tokens)
    self.assertBetween(count, 240, 248)  # prompts that occur twice go together
    self.assertEqual(out.log.groups, ('chosen', 'rejected'))
    there = out.log.group >= 0  # one response of the file is blank
    both = there.all(axis=1)
    same = (out.log.tokens[:, 0] == out.log.tokens[:, 1]).all(axis=-1)
    self.assertEqual(out.summary['identical_pairs'], (both & same).sum())
    self.assertBetween((both & same).sum(), 1, 6)  # so short they are cut
    self.assertLen(out.preferences.tokens, (both & ~same).sum())
    np.testing.assert_array_equal(
        np.isfinite(out.log.scores['reward']), there)
    np.testing.assert_array_equal(out.log.mask.any(axis=-1), there)
    self.assertLessEqual(set(out.eval_splits), {
        'helpful-base', 'helpful-online', 'helpful-rejection-sampled',
        'harmless-base'})


if __name__ == '__main__':
  absltest.main()
