"""Tests for rlhf_jax.data.corpus."""

import dataclasses
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import formats
from rlhf_jax.data import tokenizer as tokenizer_lib

WORDS = 'say it again well now'.split()  # ids from 3; BOS is 1, EOS is 2


def _corpus(**changes) -> corpus_lib.Corpus:
  """One demonstration, two pair prompts, one evaluation prompt, and a log."""
  rows = np.array([[[1, 3, 4, 5, 2, 0]]], np.int32)
  mask = np.array([[[0, 0, 0, 1, 1, 0]]], bool)
  prompts = corpus_lib.Prompts(np.array([[1, 3], [1, 4]], np.int32),
                               np.array([2, 2], np.int32))
  held_out = corpus_lib.Prompts(np.array([[1, 6]], np.int32),
                                np.array([2], np.int32))
  log = corpus_lib.Log(
      tokens=rows, mask=mask, group=np.array([[0]], np.int32),
      groups=('a',), scores={'reward': np.array([[.5]], np.float32)})
  return corpus_lib.Corpus(**dict(
      tokenizer=tokenizer_lib.Tokenizer.word_level(WORDS),
      demonstrations=types.Batch(tokens=rows, mask=mask),
      pair_prompts=prompts, eval_prompts=held_out, max_response_length=2,
      preferences=types.Batch(tokens=np.repeat(rows, 2, axis=1),
                              mask=np.repeat(mask, 2, axis=1)),
      log=log) | changes)


class CorpusTest(parameterized.TestCase):

  def test_fingerprint_covers_what_is_trained_on(self):
    corpus = _corpus()
    batch = lambda rows: types.Batch(tokens=rows.tokens + 1, mask=rows.mask)
    more = lambda prompts: dataclasses.replace(
        prompts, tokens=prompts.tokens + 1)
    log = lambda **changes: dataclasses.replace(corpus.log, **changes)
    digests = [_corpus(**change).fingerprint() for change in (
        {}, dict(demonstrations=batch(corpus.demonstrations)),
        dict(pair_prompts=more(corpus.pair_prompts)),
        dict(eval_prompts=more(corpus.eval_prompts)),
        dict(preferences=batch(corpus.preferences)), dict(preferences=None),
        dict(log=None), dict(log=log(tokens=corpus.log.tokens + 1)),
        dict(log=log(mask=~corpus.log.mask)),
        dict(log=log(group=corpus.log.group + 1)),
        dict(log=log(scores={'reward': corpus.log.scores['reward'] + 1})))]
    self.assertLen(set(digests), len(digests))
    self.assertEqual(digests[0], corpus.fingerprint())

  @parameterized.parameters(
      dict(eval_demonstrations=types.Batch(
          tokens=np.zeros((1, 1, 6), np.int32), mask=np.ones((1, 1, 6), bool))),
      dict(pair_references=('1', '2')), dict(eval_references=('3',)),
      dict(format='alpaca'), dict(eval_splits=('a',)),
      dict(log_target='reward'), dict(summary={'demonstrations': 1}))
  def test_fingerprint_of_nothing_else(self, **change):
    self.assertEqual(_corpus(**change).fingerprint(), _corpus().fingerprint())

  def test_example_spells_control_tokens(self):
    self.assertEqual(_corpus().example(), "'<bos> say it again <eos>'")

  @parameterized.parameters((2, ' i'), (4, ' it '),  # cut: without EOS
                            (5, ' it <eos>'), (9, ' it <eos>'))
  def test_example_is_one_line_without_padding(self, length, response):
    coder = tokenizer_lib.Tokenizer.train_bpe(
        [], vocab_size=260, control=['<|assistant|>'])
    rows = coder.encode_rows(
        [('a\nb', formats.Special('<|assistant|>'))], [' it '],
        max_prompt_length=5, max_response_length=length)
    corpus = _corpus(tokenizer=coder, demonstrations=corpus_lib.single(rows))
    self.assertEqual(
        corpus.example(), rf"'<bos>a\nb<|assistant|>{response}'")

  def test_example_shows_padding_that_is_eos_once(self):
    coder = tokenizer_lib.Tokenizer.train_bpe([], vocab_size=259)
    path = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory())) / 'tokenizer.json'
    coder.save(path)
    coder = tokenizer_lib.Tokenizer.from_file(path, pad='<eos>')
    rows = coder.encode_rows(['a'], ['b'], max_prompt_length=4,
                             max_response_length=4)
    corpus = _corpus(tokenizer=coder, demonstrations=corpus_lib.single(rows))
    self.assertEqual(corpus.example(), "'<bos>ab<eos>'")


class PromptsTest(parameterized.TestCase):

  def test_of_rows(self):
    coder = tokenizer_lib.Tokenizer.word_level(WORDS)
    rows = coder.encode_rows(['say', 'say it'], ['now', ''],
                             max_prompt_length=3, max_response_length=2)
    prompts, batch = corpus_lib.as_prompts(rows), corpus_lib.single(rows)
    np.testing.assert_array_equal(prompts.tokens, [[1, 3, 0], [1, 3, 4]])
    np.testing.assert_array_equal(prompts.lengths, [2, 3])
    np.testing.assert_array_equal(
        batch.tokens, [[[1, 3, 7, 2, 0]], [[1, 3, 4, 2, 0]]])
    self.assertEqual(batch.mask.shape, (2, 1, 5))

  @parameterized.parameters((0, 1), (5, 6))
  def test_one_prompt_has_to_be_left(self, num_eval_prompts, least):
    corpus_lib.check_prompts(least, num_eval_prompts, 'a.json')
    with self.assertRaisesRegex(
        errors.DataError, f'a.json: {least - 1} usable prompts, but '
        f'{num_eval_prompts} .*config.data.num_eval_prompts'):
      corpus_lib.check_prompts(least - 1, num_eval_prompts, 'a.json')

  @parameterized.parameters((4, 10, [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]),
                            (3, 2, [0, 1]), (2, 2, [0, 1]))
  def test_repeats_are_neighbours(self, num_prompts, size, want):
    np.testing.assert_array_equal(
        corpus_lib.repeated(num_prompts, size), want)


class SplitTest(absltest.TestCase):

  def split(self, seed, num_eval_prompts=3):
    return corpus_lib.split_by_prompt(
        [(f'p{i % 8}', i) for i in range(20)], seed, num_eval_prompts)

  def test_whole_prompts_are_held_out(self):
    for seed in range(5):
      training, held_out = self.split(seed)
      prompts = {prompt for prompt, _ in held_out}
      self.assertLen(held_out, 3)
      self.assertLen(prompts, 3)
      self.assertCountEqual(training, [
          (f'p{i % 8}', i) for i in range(20) if f'p{i % 8}' not in prompts])

  def test_the_seed_is_of_the_order(self):
    self.assertEqual(self.split(0), self.split(0))
    splits = [str(self.split(seed)) for seed in range(10)]
    self.assertLen(set(splits), 10)

  def test_the_stream_is_called_split(self):
    texts = [(str(i), i) for i in range(20)]
    bits = np.random.Philox(streams.number(7, 'split'))
    order = np.random.Generator(bits).permutation(20)
    training, held_out = corpus_lib.split_by_prompt(texts, 7, 4)
    self.assertEqual([i for _, i in held_out + training], order.tolist())


class FreezeTest(absltest.TestCase):

  def test_nodes(self):
    self.assertEqual(
        corpus_lib.freeze({'b': [1, {'c': [2]}], 'a': None}),
        (('a', None), ('b', (1, (('c', (2,)),)))))
    frozen = corpus_lib.freeze({'b': [1, {'c': [2]}], 'a': None})
    self.assertEqual(corpus_lib.freeze(frozen), frozen)


if __name__ == '__main__':
  absltest.main()
