"""Tests for rlhf_jax.data.coders."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import coders
from rlhf_jax.data import formats
from rlhf_jax.data import options as options_lib
from rlhf_jax.data import tokenizer

TEXTS = [('the fox', 'jumps'), ('the dog', 'sleeps')] * 20
CHAT = [((formats.Special('<|user|>'), 'the fox', formats.END), 'jumps')] * 20


def _options(**changes):
  return options_lib.Texts(**dict(
      num_pair_prompts=1, num_eval_prompts=1, max_prompt_length=8,
      max_response_length=4, vocab_size=300) | changes)


class TrainTest(parameterized.TestCase):

  def test_control_tokens_of_the_format(self):
    coder = coders.train_tokenizer(CHAT, 300, ['<|end|>'])
    self.assertEqual(coder.control, {'<pad>': 0, '<bos>': 1, '<eos>': 2,
                                     '<|end|>': 3, '<|user|>': 4})
    # The texts around them are learned: each word is a token or two.
    self.assertLess(len(coder.encode(['the fox'])[0]), 4)

  def test_that_of_a_trained_model(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    own = tokenizer.Tokenizer.train_bpe(['a a'] * 9, vocab_size=270)
    own.save(folder / 'tokenizer.json')
    for stop in ([], ['a']):
      coder = coders.of_model(folder, {'stop': stop, 'tokenizer': dict(
          own.roles, control=list(own.control))})
      self.assertEqual(coder.encode(['a a']), own.encode(['a a']))
      self.assertEqual(coder.stop, tuple(stop))

  def test_own_is_named_or_trained(self):
    path = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory())) / 'tokenizer.json'
    tokenizer.Tokenizer.train_bpe(['a a'] * 9, vocab_size=270).save(path)
    options = _options(tokenizer=str(path), control=('<|end|>',))
    coder = coders.own_tokenizer(options, TEXTS)
    self.assertEqual(coder.vocab_size, 261)  # a merge; its control token
    self.assertIn('<|end|>', coder.control)
    self.assertGreater(
        coders.own_tokenizer(_options(), TEXTS).vocab_size, 270)

  def test_encode(self):
    coder = coders.train_tokenizer(TEXTS, 300, ())
    rows = coders.encode(coder, _options(), iter(TEXTS[:2]))
    self.assertEqual(rows.tokens.shape, (2, 12))
    self.assertEqual(rows.prompts.shape, (2, 8))
    for i, (prompt, response) in enumerate(TEXTS[:2]):
      self.assertEqual(coder.decode(rows.prompts[i]), prompt)
      self.assertEqual(coder.decode(rows.tokens[i][rows.mask[i]]), response)


class LoadTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.coder = tokenizer.Tokenizer.train_bpe(
        ['the fox'] * 9, vocab_size=270, control=['<|end|>'])

  def test_file_and_directory(self):
    self.coder.save(self.directory / 'tokenizer.json')
    self.coder.save_directory(self.directory / 'all')
    want = self.coder.encode(['the fox'])
    for path in (self.directory / 'tokenizer.json', self.directory / 'all'):
      coder = coders.load_tokenizer(str(path), eos='<|end|>')
      self.assertEqual(coder.encode(['the fox']), want)
      self.assertEqual(coder.roles, {
          'pad': '<pad>', 'bos': '<bos>', 'eos': '<|end|>'})

  @parameterized.parameters(('x.bin', 'not a llama2.c tokenizer'),
                            ('x.json', 'not a tokenizer.json'),
                            ('x.gguf', 'x.gguf'))
  def test_by_its_ending(self, name, message):
    (self.directory / name).write_bytes(b'nonsense')
    with self.assertRaisesRegex(errors.UserError, message):
      coders.load_tokenizer(str(self.directory / name))

  def test_named(self):
    path = str(self.directory / 'tokenizer.json')
    self.coder.save(path)
    for node in ({}, dict(tokenizer=None), dict(tokenizer='')):
      self.assertIsNone(coders.named_tokenizer(node))
    coder = coders.named_tokenizer(dict(
        tokenizer=path, pad='<eos>', bos=None, control=['<|new|>'],
        vocab_size=9, name='files'))
    self.assertEqual(coder.roles['pad'], '<eos>')
    self.assertEqual(coder.roles['bos'], '<bos>')
    self.assertEqual(coder.control['<|new|>'], self.coder.vocab_size)


class CheckTextsTest(parameterized.TestCase):

  @parameterized.parameters((TEXTS, (), 259), (CHAT, (), 260),
                            (CHAT, ('<|user|>', '<|end|>'), 261))
  def test_vocabulary_has_room(self, texts, control, least):
    check = lambda size: coders.check_texts(
        _options(vocab_size=size, control=control), None, texts)
    check(least)
    with self.assertRaisesRegex(
        ValueError, f'>= {least} .*got {least - 1}'):
      check(least - 1)
    # It is the least that training takes, too.
    coders.train_tokenizer(texts, least, control)
    with self.assertRaises(ValueError):
      coders.train_tokenizer(texts, least - 1, control)

  def test_tokens_of_the_format_are_in_the_tokenizer(self):
    coder = coders.train_tokenizer(TEXTS, 300, ())
    coders.check_texts(_options(), coder, TEXTS)
    with self.assertRaisesRegex(errors.ConfigError, r'<\|user\|>'):
      coders.check_texts(_options(), coder, TEXTS + CHAT)

  def test_words_are_in_a_closed_vocabulary(self):
    coder = tokenizer.Tokenizer.word_level('the fox jumps dog'.split())
    coders.check_texts(_options(), coder, TEXTS[:1])
    with self.assertRaisesRegex(errors.DataError, "'sleeps'"):
      coders.check_texts(_options(), coder, TEXTS)


class RowsTest(absltest.TestCase):

  def test_lengths_are_those_of_the_options(self):
    coder = coders.train_tokenizer(TEXTS, 300, ())
    rows = coders.encode(
        coder, _options(max_prompt_length=2, max_response_length=1), TEXTS)
    self.assertEqual(rows.tokens.shape, (40, 3))
    self.assertEqual(rows.truncated_responses, 40)
    np.testing.assert_array_equal(rows.prompts[:, 0], coder.bos_id)


if __name__ == '__main__':
  absltest.main()
