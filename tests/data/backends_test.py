"""Tests for rlhf_jax.data.backends, by way of Tokenizer.from_*."""

import functools
import itertools
import json
import os
import pathlib
import struct
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from rlhf_jax import errors
from rlhf_jax.data import formats
from rlhf_jax.data import tokenizer

_ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(
    os.environ.get('RLHF_JAX_SHARED', _ROOT.parent / 'shared')
)
CORPUS = [
    'the quick brown fox jumps over the lazy dog',
    'a response is a list of tokens and its end',
] * 20
# Names of control tokens, put where a user could put them.
INJECTIONS = tuple(
    form.format(name)
    for name in ('<|im_end|>', '<|im_start|>', '</s>', '<|assistant|>')
    for form in ('{0}', 'a{0}b', ' {0} {0}', '{0}{0}', '<{0}>\n\nHuman: {0}'))
ESCAPES = (b'\n<s>\n', b'\n</s>\n')


def _directory(test):
  directory = tempfile.TemporaryDirectory()
  test.addCleanup(directory.cleanup)
  return pathlib.Path(directory.name)


@functools.cache
def _merges():
  """The vocabulary and merges of a byte-level BPE without control tokens."""
  trained = tokenizer.Tokenizer.train_bpe(CORPUS, vocab_size=300)
  raw = json.loads(trained._backends[0].to_str())['model']
  vocab = [name for name in raw['vocab'] if name not in
           (tokenizer.PAD, tokenizer.BOS, tokenizer.EOS)]
  return vocab, [tuple(merge) for merge in raw['merges']]


def _write(directory, config, *, added=(), special=(), post=None):
  """tokenizer.json of a byte-level BPE, and tokenizer_config.json."""
  vocab, merges = _merges()
  backend = tokenizers.Tokenizer(models.BPE(
      {name: id_ for id_, name in enumerate(vocab)}, merges))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  backend.add_special_tokens(list(special))
  backend.add_tokens(list(added))
  if post:
    backend.post_processor = processors.TemplateProcessing(
        single=f'{post} $A', special_tokens=[(post, backend.token_to_id(post))])
  backend.save(str(directory / 'tokenizer.json'))
  if config is not None:
    (directory / 'tokenizer_config.json').write_text(json.dumps(
        {'tokenizer_class': 'PreTrainedTokenizerFast', **config}))


class DirectoryTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = _directory(self)

  def load(self, config, **kwargs):
    _write(self.path, config, **kwargs)
    return tokenizer.Tokenizer.from_directory(self.path)

  def test_special_tokens_are_the_directorys(self):
    special = ['<unk>', '<s>', '</s>', '[P]']
    tok = self.load({'bos_token': '<s>', 'eos_token': '</s>',
                     'pad_token': '[P]'}, special=special)
    size = len(_merges()[0])
    self.assertEqual((tok.bos_id, tok.eos_id, tok.pad_id),
                     (size + 1, size + 2, size + 3))
    self.assertEqual(tok.vocab_size, size + 4)
    named = tokenizer.Tokenizer.from_directory(
        self.path, pad='</s>', bos='[P]', eos='<s>')
    self.assertEqual((named.bos_id, named.eos_id, named.pad_id),
                     (size + 3, size + 1, size + 2))

  def of_settings(self, ids, **kwargs):
    """With generation_config.json, `<s> </s> <|eot|>` the last of the ids."""
    _write(self.path, {'eos_token': '</s>'}, special=['<s>', '</s>', '<|eot|>'])
    (self.path / 'generation_config.json').write_text(
        json.dumps({'eos_token_id': ids}))
    return tokenizer.Tokenizer.from_directory(self.path, **kwargs)

  def test_all_that_ends_a_response(self):
    """The tokenizer's own first, which is written; then those of the model."""
    first = len(_merges()[0])
    for ids, expected in (
        (None, [1]), ([], [1]), (first + 1, [1]), (first + 2, [1, 2]),
        ([first + 2, first + 1], [1, 2]), ([first + 2, first], [1, 2, 0])):
      tok = self.of_settings(ids)
      self.assertEqual(tok.eos_ids, tuple(first + i for i in expected), ids)
      self.assertEqual(tok.eos_id, first + 1)
    self.assertEqual(tok.ends, ('<|eot|>', '<s>'))
    text = tok.encode(['the fox'])[0]
    self.assertEqual(tok.decode([*text, first + 2]), 'the fox')
    rows = np.array([[*text, first + 2], [*text, first + 1], [*text, 5]])
    np.testing.assert_array_equal(
        tok.finished(rows, np.ones(rows.shape, bool)), [True, True, False])
    named = tokenizer.Tokenizer.from_directory(self.path, eos='<s>')
    self.assertEqual(named.eos_ids, (first,))

  def test_an_end_that_is_no_token(self):
    size = len(_merges()[0]) + 3
    for ids, message in (
        ([size - 1, size], rf'generation_config.json: eos_token_id {size} is '
         rf'no token; the tokenizer has ids up to {size - 1}'),
        ([-1], 'eos_token_id is .*give ids of tokens'),
        ('2', 'eos_token_id is .*give ids of tokens'),
        ([True], 'eos_token_id is .*give ids of tokens')):
      with self.assertRaisesRegex(errors.CheckpointError, message):
        self.of_settings(ids)

  def test_without_bos_and_padding(self):  # as Qwen's base models
    tok = self.load({'eos_token': '<|end|>'}, special=['<|end|>'])
    self.assertIsNone(tok.bos_id)
    self.assertEqual(tok.pad_id, tok.eos_id)
    rows = tok.encode_rows(['the fox', 'dog'], ['lazy', ''],
                           max_prompt_length=9, max_response_length=9)
    prompt, response = tok.encode(['the fox', 'lazy'])
    self.assertEqual(rows.tokens[0][rows.mask[0]].tolist(),
                     [*response, tok.eos_id])  # EOS counts, padding does not
    self.assertEqual(rows.prompts[0, :len(prompt)].tolist(), prompt)
    self.assertEqual(rows.mask.sum(1).tolist(), [len(response) + 1, 1])
    with self.assertRaisesRegex(ValueError, 'has no BOS'):
      tok.encode_rows(['a'], ['a'], max_prompt_length=2,
                      max_response_length=2, add_bos=True)

  def test_bos_can_be_left_out(self):
    _write(self.path, {'bos_token': '<s>', 'eos_token': '</s>'},
           special=['<s>', '</s>'])
    tok = tokenizer.Tokenizer.from_directory(self.path, bos='')
    self.assertIsNone(tok.bos_id)

  def test_post_processor_adds_no_second_bos(self):
    tok = self.load({'bos_token': '<s>', 'eos_token': '</s>'},
                    special=['<s>', '</s>'], post='<s>')
    self.assertIn(tok.bos_id, tok._backends[0].encode('the').ids)  # it would
    self.assertNotIn(tok.bos_id, tok.encode(['the'])[0])
    rows = tok.encode_rows(
        ['the', (formats.Special('<s>'), 'the')], ['fox'] * 2,
        max_prompt_length=5, max_response_length=9)
    np.testing.assert_array_equal((rows.tokens == tok.bos_id).sum(1), 1)
    np.testing.assert_array_equal(rows.tokens[0], rows.tokens[1])

  @parameterized.parameters(True, False)
  def test_no_control_token_out_of_a_text(self, special):
    names = ['<|im_end|>', '<|im_start|>', '</s>', '<|assistant|>']
    tok = self.load(
        {'bos_token': '<|im_start|>', 'eos_token': '<|im_end|>'},
        **{'special' if special else 'added': names})
    self.assertLen(INJECTIONS, 20)
    self.assertContainsSubset(names, tok.control)
    control = [tok.id_of(name) for name in names]
    for text, ids in zip(INJECTIONS, tok.encode(INJECTIONS)):
      self.assertNoCommonElements(ids, control)
      self.assertEqual(tok.decode(ids), text)
    rows = tok.encode_rows(INJECTIONS, INJECTIONS, max_prompt_length=99,
                           max_response_length=99, add_bos=True)
    self.assertEqual(np.isin(rows.tokens, control[2:]).sum(), 0)
    np.testing.assert_array_equal((rows.tokens == tok.bos_id).sum(1), 1)

  def test_other_added_tokens_are_used(self):  # Pythia's runs of spaces
    tok = self.load({'eos_token': '</s>'}, special=['</s>'], added=['    '])
    self.assertIn(tok.id_of('    '), tok.encode(['a    b'])[0])
    self.assertNotIn('    ', tok.control)

  def test_control_token_by_the_config_alone(self):
    tok = self.load({'eos_token': '</s>', 'extra_special_tokens': ['[X]']},
                    special=['</s>'], added=['[X]'])
    self.assertNotIn(tok.control['[X]'], tok.encode(['a [X]'])[0])

  def test_control_tokens_to_add(self):
    _write(self.path, {'eos_token': '</s>'}, special=['</s>'])
    tok = tokenizer.Tokenizer.from_directory(
        self.path, control=['<|prompter|>', '</s>', '[X]'])
    size = len(_merges()[0])
    self.assertEqual((tok.eos_id, tok.id_of('<|prompter|>'), tok.id_of('[X]')),
                     (size, size + 1, size + 2))
    self.assertNoCommonElements(tok.encode(['[X] <|prompter|>'])[0],
                                range(size, size + 3))

  def test_tokenizer_json_alone(self):
    _write(self.path, None, special=['</s>'])
    with self.assertRaisesRegex(errors.ConfigError, 'name it with eos'):
      tokenizer.Tokenizer.from_directory(self.path)
    tok = tokenizer.Tokenizer.from_directory(self.path, eos='</s>')
    self.assertEqual(tok.eos_id, len(_merges()[0]))
    ours = _directory(self)
    tokenizer.Tokenizer.train_bpe(CORPUS, vocab_size=300).save(
        ours / 'tokenizer.json')
    tok = tokenizer.Tokenizer.from_directory(ours)
    self.assertEqual((tok.pad_id, tok.bos_id, tok.eos_id), (0, 1, 2))

  def test_vocab_and_merges_without_tokenizer_json(self):  # as GPT-2's
    vocab, merges = _merges()
    names = [*vocab, '<|endoftext|>']
    (self.path / 'vocab.json').write_text(json.dumps(
        {name: id_ for id_, name in enumerate(names)}))
    (self.path / 'merges.txt').write_text(
        '#version: 0.2\n' + '\n'.join(map(' '.join, merges)) + '\n')
    with self.assertRaisesRegex(errors.ConfigError, 'fast tokenizer') as caught:
      tokenizer.Tokenizer.from_directory(self.path)
    self.assertNotIn('\n', str(caught.exception))
    (self.path / 'config.json').write_text('{"model_type": "gpt2"}')
    tok = tokenizer.Tokenizer.from_directory(self.path)
    self.assertEqual((tok.pad_id, tok.bos_id, tok.eos_id), (len(vocab),) * 3)
    text = 'the fox <|endoftext|>'
    self.assertEqual(tok.decode(tok.encode([text])[0]), text)
    self.assertNotIn(tok.eos_id, tok.encode([text])[0])
    trained = tokenizer.Tokenizer.train_bpe(CORPUS, vocab_size=300)
    self.assertEqual([id_ + 3 for id_ in tok.encode(['the fox'])[0]],
                     trained.encode(['the fox'])[0])

  def test_refused_before_transformers_looks(self):
    _write(self.path, {'eos_token': '</s>',
                       'auto_map': {'AutoTokenizer': ['x.Evil', None]}})
    (self.path / 'x.py').write_text('raise SystemExit("ran")')
    with absltest.mock.patch(
        'transformers.AutoTokenizer.from_pretrained') as called:
      with self.assertRaisesRegex(errors.CheckpointError, 'auto_map'):
        tokenizer.Tokenizer.from_directory(self.path)
    called.assert_not_called()

  def test_link_out_of_the_directory(self):
    _write(self.path, {'eos_token': '</s>'}, special=['</s>'])
    other = _directory(self)
    (other / 'tokenizer.json').symlink_to(self.path / 'tokenizer.json')
    with self.assertRaisesRegex(errors.CheckpointError, 'link'):
      tokenizer.Tokenizer.from_directory(other, eos='</s>')

  def test_garbage(self):
    (self.path / 'tokenizer.json').write_text('{"version": "1.0"}')
    with self.assertRaisesRegex(errors.ConfigError, 'fast tokenizer'):
      tokenizer.Tokenizer.from_directory(self.path, eos='</s>')

  def test_eos_that_is_not_there(self):
    with self.assertRaisesRegex(errors.ConfigError, '</x> are not in'):
      _write(self.path, {'eos_token': '</s>'}, special=['</s>'])
      tokenizer.Tokenizer.from_directory(self.path, eos='</x>')

  def test_saved_directory_loads_in_transformers(self):
    import transformers
    tok = tokenizer.Tokenizer.train_bpe(
        CORPUS, vocab_size=320, control=['<|prompter|>'])
    tok.chat_template = '{{ messages }}'
    tok.save_directory(self.path / 'new')
    theirs = transformers.AutoTokenizer.from_pretrained(
        self.path / 'new', local_files_only=True)
    texts = ['', 'the lazy fox', '  é\n', 'dogs <|prompter|>']
    for text, ids in zip(texts, tok.encode(texts)):
      self.assertEqual(theirs(text, add_special_tokens=False,
                              split_special_tokens=True).input_ids, ids)
      self.assertEqual(theirs.decode(ids), text)
    self.assertEqual(
        (theirs.pad_token_id, theirs.bos_token_id, theirs.eos_token_id),
        (0, 1, 2))
    # In transformers, too, a text begins with BOS, as in training.
    self.assertEqual(theirs('<|prompter|><eos>').input_ids, [1, 3, 2])
    self.assertIn('<|prompter|>', theirs.all_special_tokens)
    self.assertEqual(theirs.chat_template, tok.chat_template)
    again = tokenizer.Tokenizer.from_directory(self.path / 'new')
    self.assertEqual(again.control, tok.control)
    self.assertEqual(again.encode(texts), tok.encode(texts))
    self.assertEqual(again.chat_template, tok.chat_template)
    self.assertTrue(again.adds_bos)

  def test_begins_with_bos_if_the_directory_does(self):
    """Once, and only where transformers does it too."""
    tok = tokenizer.Tokenizer.train_bpe(CORPUS, vocab_size=320)
    for begins in (True, False):
      path = self.path / str(begins)
      tok.adds_bos = begins
      tok.save_directory(path)
      loaded = tokenizer.Tokenizer.from_directory(path)
      self.assertEqual((loaded.adds_bos, loaded.bos_id), (begins, 1))
      rows = loaded.encode_rows(
          ['the dogs'], ['a'], max_prompt_length=20, max_response_length=5)
      self.assertEqual((rows.tokens == 1).sum(), begins)
      self.assertEqual(rows.tokens[0, 0] == 1, begins)

  def test_tokenizer_json_is_not_replaced_by_a_class(self):
    # transformers splits single digits for every model_type 'qwen2'.
    tok = tokenizer.Tokenizer.train_bpe(['2020 2020'] * 9, vocab_size=262)
    self.assertLess(len(tok.encode(['2020'])[0]), 4)
    tok.save_directory(self.path)
    (self.path / 'config.json').write_text('{"model_type": "qwen2"}')
    again = tokenizer.Tokenizer.from_directory(self.path)
    self.assertEqual(again.encode(['2020 é']), tok.encode(['2020 é']))
    self.assertEqual(again.vocab_size, tok.vocab_size)
    self.assertEqual(again.control, tok.control)

  @parameterized.parameters('gpt2', 'gpt_neox', 'llama', 'qwen2')
  def test_no_token_is_made_up_for_a_model_type(self, model_type):
    tok = tokenizer.Tokenizer.train_bpe(['2020 2020'] * 9, vocab_size=262)
    tok.save(self.path / 'tokenizer.json')  # says nothing of <|endoftext|>
    (self.path / 'config.json').write_text(f'{{"model_type": "{model_type}"}}')
    again = tokenizer.Tokenizer.from_directory(self.path)
    self.assertEqual(again.vocab_size, tok.vocab_size)
    self.assertEqual(again.control, tok.control)
    self.assertEqual((again.pad_id, again.bos_id, again.eos_id), (0, 1, 2))

  def test_tokens_that_only_the_config_adds(self):
    size = len(_merges()[0])
    token = {'content': '<|x|>', 'special': True, 'lstrip': False,
             'rstrip': False, 'normalized': False, 'single_word': False}
    tok = self.load(
        {'eos_token': '</s>', 'added_tokens_decoder': {str(size + 1): token}},
        special=['</s>'])
    self.assertEqual(tok.control['<|x|>'], size + 1)
    self.assertNotIn(size + 1, tok.encode(['<|x|>'])[0])

  def test_padding_without_a_row_in_the_model(self):
    """Only the settings know it; another token may pad in its place."""
    size = len(_merges()[0]) + 1
    tok = self.load({'eos_token': '</s>', 'pad_token': '[PAD]'},
                    special=['</s>'])
    with self.assertRaisesRegex(errors.ConfigError, 'name another token as pa'):
      tokenizer.check_vocabulary(tok, size)
    tok = tokenizer.Tokenizer.from_directory(self.path, pad='</s>')
    tokenizer.check_vocabulary(tok, size)
    self.assertEqual((tok.pad_id, tok.eos_id), (size - 1, size - 1))
    self.assertNotIn('[PAD]', tok.control)
    self.assertEqual(tokenizer.Tokenizer.from_directory(
        self.path, pad='[PAD]').pad_id, size)
    with self.assertRaisesRegex(errors.ConfigError, r'\[P\]'):
      tokenizer.Tokenizer.from_directory(self.path, pad='[P]')
    # One of tokenizer.json itself stays, for it may have a row.
    tok = self.load({'eos_token': '</s>', 'pad_token': '[P]'},
                    special=['</s>', '[P]'])
    named = tokenizer.Tokenizer.from_directory(self.path, pad='</s>')
    self.assertEqual(named.vocab_size, tok.vocab_size)

  def test_no_network(self):
    _write(self.path, {'eos_token': '</s>'}, special=['</s>'])
    with absltest.mock.patch('socket.socket.connect') as connect:
      with absltest.mock.patch('socket.getaddrinfo') as resolve:
        tokenizer.Tokenizer.from_directory(self.path)
    connect.assert_not_called()
    resolve.assert_not_called()

  def test_saved_without_bos(self):
    tok = self.load({'eos_token': '</s>'}, special=['</s>'])
    tok.save_directory(self.path / 'new')
    again = tokenizer.Tokenizer.from_directory(self.path / 'new')
    self.assertIsNone(again.bos_id)
    self.assertEqual(again.pad_id, again.eos_id)


class PrefixTest(parameterized.TestCase):
  """Tokenizers that begin a text with a space, as LLaMA's in two ways."""

  def make(self, scheme):
    words = ['▁', 'a', 'b', '▁a', '▁b', '<s>', '</s>', '<|x|>']
    backend = tokenizers.Tokenizer(models.BPE(
        {word: id_ for id_, word in enumerate(words)},
        [('▁', 'a'), ('▁', 'b')]))
    if scheme == 'legacy':
      backend.normalizer = normalizers.Sequence([
          normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
      backend.decoder = decoders.Sequence([
          decoders.Replace('▁', ' '), decoders.Fuse(),
          decoders.Strip(' ', 1, 0)])
    else:
      backend.pre_tokenizer = pre_tokenizers.Metaspace(
          prepend_scheme=scheme, split=False)
      backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    backend.add_special_tokens(words[5:])
    return tokenizer.Tokenizer(backend, pad='</s>', bos='<s>', eos='</s>')

  @parameterized.parameters('legacy', 'first', 'always')
  def test_response_gets_no_space_that_it_does_not_have(self, scheme):
    tok = self.make(scheme)
    rows = tok.encode_rows(
        ['a', 'a', ''], ['b', ' b', 'b'], max_prompt_length=2,
        max_response_length=3)
    np.testing.assert_array_equal(rows.tokens[:, :4], [
        [5, 3, 2, 6], [5, 3, 4, 6], [5, 4, 6, 6]])
    self.assertEqual(tok.decode([4]), 'b')
    self.assertEqual(tok.decode([4], continuation=True), ' b')

  @parameterized.parameters(('legacy', 3), ('first', 1), ('always', 3))
  def test_text_after_a_control_token_is_as_the_backend_has_it(
      self, scheme, expected):
    tok = self.make(scheme)
    parts = (formats.Special('<|x|>'), 'a')
    rows = tok.encode_rows([parts], [parts], max_prompt_length=3,
                           max_response_length=4)
    np.testing.assert_array_equal(
        rows.tokens, [[5, 7, expected, 7, expected, 6, 6]])
    plain = tokenizers.Tokenizer.from_str(tok._backends[0].to_str())
    self.assertEqual(plain.encode('<|x|>a<|x|>a').ids,
                     [7, expected, 7, expected])


class PieceTest(parameterized.TestCase):

  def test_control_token_that_is_also_a_piece(self):
    pieces = [('<unk>', 0.), ('</s>', 0.), *((c, -2.) for c in '</s>ab ')]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.add_special_tokens(['<unk>', '</s>'])
    tok = tokenizer.Tokenizer(backend, pad='</s>', bos=None, eos='</s>')
    backend.encode_special_tokens = True
    self.assertIn(1, backend.encode('a</s>b').ids)  # it needs help
    for text in ('a</s>b', '</s>', '</s></s> ' * 500, 'a</</s>s>'):
      ids, = tok.encode([text])
      self.assertNotIn(1, ids)
      self.assertEqual(backend.decode(ids).replace(' ', ''),
                       text.replace(' ', ''))
    self.assertEqual(tok.encode(['aéb']), [[6, 0, 7]])  # unknown, not control


def _sentence_piece(scores, pieces, text):
  """llama2.c's encoder in so many words: merge the best pair until none is."""
  ids = {piece: id_ for id_, piece in enumerate(pieces)}
  row = []
  for char in (' ' + text if text else ''):
    if char in ids:
      row.append(ids[char])
    else:
      row.extend(byte + 3 for byte in char.encode())
  while True:
    best, where = -1e10, None
    for i, (left, right) in enumerate(itertools.pairwise(row)):
      merged = ids.get(pieces[left] + pieces[right])
      if merged is not None and scores[merged] > best:
        best, where = scores[merged], i
    if where is None:
      return row
    row[where:where + 2] = [ids[pieces[row[where]] + pieces[row[where + 1]]]]


def _tokens(raw):
  """(scores, pieces) of a llama2.c file."""
  scores, pieces, offset = [], [], 4
  while offset < len(raw):
    score, length = struct.unpack_from('<fi', raw, offset)
    scores.append(score)
    pieces.append(raw[offset + 8:offset + 8 + length].decode())
    offset += 8 + length
  return scores, pieces


def _llama2c(pieces):
  """The bytes of a file with these pieces after the 259 that are always."""
  tokens = [(0., b'<unk>'), *((0., name) for name in ESCAPES),
            *((0., f'<0x{byte:02X}>'.encode()) for byte in range(256)),
            # Not in the order of ids.
            *((-(i * 7 % 19), piece.encode())
              for i, piece in enumerate(pieces))]
  return struct.pack('<i', 9) + b''.join(
      struct.pack('<fi', score, len(piece)) + piece for score, piece in tokens)


class Llama2cTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = _directory(self) / 'tok.bin'

  def _check(self, raw, texts):
    self.path.write_bytes(raw)
    tok = tokenizer.Tokenizer.from_llama2c(self.path)
    scores, pieces = _tokens(raw)
    for text, ids in zip(texts, tok.encode(texts)):
      self.assertEqual(ids, _sentence_piece(scores, pieces, text), repr(text))
      self.assertEqual(tok.decode(ids), text)
      self.assertNoCommonElements(ids, [0, 1, 2])
    return tok

  def _texts(self, chars, pieces):
    rng = np.random.default_rng(0)
    draw = lambda parts, n: ''.join(rng.choice(parts, rng.integers(0, n)))
    return ['', ' ', '  two ', 'naïve 漢字 🙂', '<s> </s> <0x41>', 'a\n\n\tb',
            *ESCAPES[0].decode(), *(draw(list(chars), 40) for _ in range(150)),
            *(draw(pieces, 20) for _ in range(150))]

  def test_small_vocabulary(self):
    # Not in the order of length: 'b' + 'ab' has to win over 'ba' + 'b'.
    pieces = ['ab', ' a', 'bab', 'aba', 'ba', ' ab', 'abab', 'é', ' ', 'a',
              'b', '<', 's', '>', '/', '</', 's>', '<s', '</s']
    texts = self._texts(' ababé<s>/', pieces)
    tok = self._check(_llama2c(pieces), texts)
    self.assertEqual((tok.bos_id, tok.eos_id, tok.pad_id), (1, 2, 0))
    self.assertEqual(tok.vocab_size, 259 + len(pieces))
    rows = tok.encode_rows(['ab'], ['ab'], max_prompt_length=4,
                           max_response_length=4)
    ab, space_ab = 259, 259 + 5
    self.assertEqual(rows.tokens[0, :4].tolist(), [1, space_ab, ab, 2])

  def test_published(self):
    path = SHARED / 'data/model/tok512.bin'
    if not path.exists():
      self.skipTest(f'{path} is not here (set RLHF_JAX_SHARED)')
    raw = path.read_bytes()
    pieces = _tokens(raw)[1][259:]
    stories = ['Once upon a time, there was a little girl named Lily.',
               'He said: "I\'m 3 — and you?"\n\n\nThe end…']
    tok = self._check(
        raw, [*stories, *self._texts('the andT.,"\n ', pieces)])
    self.assertEqual(tok.vocab_size, 512)

  @parameterized.parameters(
      (b'', 'tokens 3 to 258'), (b'\0' * 7, 'error'),
      (_llama2c(['a'])[:-4], 'not a llama2.c'),
      (_llama2c(['a' * 1025]), 'a length of 1025'),
      (_llama2c(['a', 'a']), 'a token twice'), (b'GGUF' * 99, 'not a llama2.c'),
  )
  def test_another_file(self, raw, message):
    self.path.write_bytes(raw)
    with self.assertRaisesRegex(errors.DataError, message) as caught:
      tokenizer.Tokenizer.from_llama2c(self.path)
    self.assertIn('not a llama2.c tokenizer', str(caught.exception))

  def test_no_file(self):
    with self.assertRaisesRegex(errors.DataError, 'No such file'):
      tokenizer.Tokenizer.from_llama2c(self.path)


class GgufTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = _directory(self) / 'model.gguf'

  def _write(self, *, model='gpt2', pre='smollm', eos=2, types=None,
             merge='2 0'):
    try:
      import gguf
    except ImportError:
      self.skipTest('the package gguf is not installed')
    vocab, merges = _merges()
    names = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', *vocab, '20', '  ']
    writer = gguf.GGUFWriter(str(self.path), 'llama')
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types(
        ([3] * 3 + [1] * (len(vocab) + 1) + [4])[:types])
    writer.add_token_merges([*map(' '.join, merges), merge])
    writer.add_bos_token_id(1)
    if eos is not None:
      writer.add_eos_token_id(eos)
    writer.add_chat_template('{{ messages }}')
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()

  def test_ids(self):
    self._write()
    tok = tokenizer.Tokenizer.from_gguf(self.path)
    self.assertEqual((tok.bos_id, tok.eos_id, tok.pad_id), (1, 2, 2))
    trained = tokenizer.Tokenizer.train_bpe(CORPUS, vocab_size=300)
    texts = ['the lazy dog', '<|im_end|>', 'é']
    self.assertEqual(tok.encode(texts), trained.encode(texts))  # 3 first ids
    self.assertEqual(tok.encode(['a  b'])[0][1], tok.vocab_size - 1)
    self.assertEqual(tok.chat_template, '{{ messages }}')
    self.assertEqual(list(tok.control.values()), [2, 1, 0])

  @parameterized.parameters(('smollm', 2), ('gpt-2', 1))
  def test_digits_one_by_one(self, pre, length):
    self._write(pre=pre)
    tok = tokenizer.Tokenizer.from_gguf(self.path)
    self.assertLen(tok.encode(['20'])[0], length)

  @parameterized.parameters(('llama', 'smollm'), ('gpt2', 'qwen2'))
  def test_another_kind(self, model, pre):
    self._write(model=model, pre=pre)
    with self.assertRaisesRegex(errors.ConfigError, f"'{model}' with '{pre}'"):
      tokenizer.Tokenizer.from_gguf(self.path)

  def test_no_eos(self):
    self._write(eos=None)
    with self.assertRaisesRegex(errors.ConfigError, 'name it with eos'):
      tokenizer.Tokenizer.from_gguf(self.path)

  @parameterized.parameters(
      ({'types': 3}, '302 tokens, 3 token types'),
      ({'eos': 999}, 'IndexError'), ({'merge': 'zz zz'}, 'its tokenizer: '),
  )
  def test_unsound(self, change, message):
    self._write(**change)
    with self.assertRaisesRegex(errors.CheckpointError, message) as caught:
      tokenizer.Tokenizer.from_gguf(self.path)
    self.assertIn('is not sound GGUF', str(caught.exception))

  def test_not_gguf(self):
    self._write()
    self.path.write_bytes(b'nonsense' * 9)
    with self.assertRaisesRegex(errors.CheckpointError, 'not sound GGUF'):
      tokenizer.Tokenizer.from_gguf(self.path)
    self.path.unlink()
    with self.assertRaisesRegex(errors.CheckpointError, 'missing'):
      tokenizer.Tokenizer.from_gguf(self.path)


if __name__ == '__main__':
  absltest.main()
