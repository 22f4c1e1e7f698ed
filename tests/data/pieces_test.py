"""Tests for rlhf_jax.data.pieces: the bytes of tokens make up a text."""

import functools
import struct
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers

from rlhf_jax import errors
from rlhf_jax.data import tokenizer

TEXT = ['the cat sat on the mat', 'naïve 漢字 🙂 the 漢字',
        'END of it\n\nHuman:']


def _words():
  return tokenizer.Tokenizer.word_level(['a', 'bc', 'END', 'Ð'])


def _byte_level():
  return tokenizer.Tokenizer.train_bpe(
      TEXT * 3, vocab_size=300, control=['<|user|>'])


def _llama2c():
  """Pieces with spaces, and bytes for what has none."""
  tokens = [b'<unk>', b'\n<s>\n', b'\n</s>\n',
            *(f'<0x{byte:02X}>'.encode() for byte in range(256)),
            b' a', b'ab', b' ', b'a', b'b', 'é'.encode()]
  with tempfile.NamedTemporaryFile(suffix='.bin') as file:
    file.write(struct.pack('<i', 16) + b''.join(
        struct.pack('<fi', -i, len(x)) + x for i, x in enumerate(tokens)))
    file.flush()
    return tokenizer.Tokenizer.from_llama2c(file.name)


def _metaspace():
  words = ['▁', 'a', 'b', '▁a', '▁b', '<s>', '</s>']
  backend = tokenizers.Tokenizer(models.BPE(
      {word: i for i, word in enumerate(words)}, [('▁', 'a'), ('▁', 'b')]))
  backend.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme='always', split=False)
  backend.decoder = decoders.Metaspace(prepend_scheme='always')
  backend.add_special_tokens(words[5:])
  return tokenizer.Tokenizer(backend, pad='</s>', bos='<s>', eos='</s>')


def _word_piece():
  words = ['[UNK]', 'a', '##b', 'b', '.', '<s>', '</s>']
  backend = tokenizers.Tokenizer(models.WordPiece(
      {word: i for i, word in enumerate(words)}, unk_token='[UNK]'))
  backend.decoder = decoders.WordPiece(cleanup=False)
  backend.add_special_tokens(words[5:])
  return tokenizer.Tokenizer(backend, pad='</s>', bos='<s>', eos='</s>')


class PiecesTest(parameterized.TestCase):

  @parameterized.parameters(_words, _byte_level, _llama2c, _metaspace,
                            _word_piece)
  def test_are_the_bytes_of_what_is_decoded(self, make):
    coder = make()
    first, later = coder.pieces()
    self.assertLen(first, coder.vocab_size)
    self.assertLen(later, coder.vocab_size)
    rng = np.random.default_rng(0)
    for _ in range(300):
      ids = rng.integers(0, coder.vocab_size, rng.integers(0, 9))
      data = functools.reduce(
          lambda text, i: text + (later[i] if text else first[i]), ids, b'')
      text = coder.decode(ids, continuation=True)
      if '�' not in text:
        self.assertEqual(data.decode(), text)
      elif make is _byte_level:  # of bytes that are no character
        self.assertEqual(data.decode(errors='replace'), text)
    for i in {coder.pad_id, coder.bos_id, coder.eos_id}:
      self.assertEqual((first[i], later[i]), (b'', b''))

  def test_texts_have_their_bytes(self):
    coder = _byte_level()
    _, later = coder.pieces()
    for text, ids in zip(TEXT, coder.encode(TEXT)):
      self.assertEqual(b''.join(later[i] for i in ids).decode(), text)
    self.assertEqual(later[coder.control['<|user|>']], b'<|user|>')

  def test_a_token_that_depends_on_the_one_before_it(self):
    coder = _word_piece()
    for backend in coder._backends:
      backend.decoder = decoders.BPEDecoder(suffix='b')
    with self.assertRaisesRegex(
        errors.ConfigError, 'stop strings cannot be found'):
      coder.pieces()


if __name__ == '__main__':
  absltest.main()
