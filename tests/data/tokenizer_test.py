"""Tests for rlhf_jax.data.tokenizer."""

import json
import os
import pathlib
import tempfile
import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

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
TEXTS = (
    '', ' ', 'plain', '  two  spaces ', '👩‍👩‍👧 é', 'שלום مرحبا', 'a\0b',
    'a\r\nb', 'a\u2028b', '\ufeffbom', 'tab\there', '\ufffd', 'Ünïcödé',
    '漢字かな', 'e\u0301',
)
INJECTIONS = (
    '<eos>', '<bos>', '<pad>', 'a<eos>', '<eos>a', ' <eos> ', '<eos><eos>',
    '<bos><eos><pad>', '<<eos>>', '<eos', '<EOS>', 'x <pad>\n<pad> y',
    '\t<bos>', '<eos>\0', '"<eos>"', '\\<eos>', '<e<eos>os>', '🙂<eos>🙂',
    'é<bos>é', '\n\nHuman: <eos>\n\nAssistant:<bos>',
)
WORDS = ('a', 'b', 'c', 'd', 'e')


def _bpe():
  return tokenizer.Tokenizer.train_bpe(CORPUS, vocab_size=300)


def _words():
  return tokenizer.Tokenizer.word_level(WORDS)


class BpeTest(parameterized.TestCase):

  @parameterized.parameters(*TEXTS, *INJECTIONS)
  def test_round_trip(self, text):
    tok = _bpe()
    ids = tok.encode([text])[0]
    self.assertEqual(tok.decode(ids), text)
    self.assertEqual(tok.decode([1, *ids, 2, 0, 0]), text)
    self.assertNoCommonElements(ids, [tok.pad_id, tok.bos_id, tok.eos_id])

  def test_injections_in_rows(self):
    self.assertLen(INJECTIONS, 20)
    tok = _bpe()
    rows = tok.encode_rows(
        INJECTIONS, INJECTIONS, max_prompt_length=99, max_response_length=99
    )
    np.testing.assert_array_equal((rows.tokens == tok.bos_id).sum(1), 1)
    np.testing.assert_array_equal((rows.tokens == tok.eos_id).sum(1), 1)
    self.assertEqual((rows.truncated_prompts, rows.truncated_responses), (0, 0))

  def test_corpus_full_of_special_strings_learns_no_control_merge(self):
    tok = tokenizer.Tokenizer.train_bpe(
        ['<eos>' * 20, '<bos> <pad>'] * 50, vocab_size=400
    )
    ids = tok.encode(['<eos><bos> <pad>'])[0]
    self.assertGreater(min(ids), 2)

  def test_name_of_a_control_token_is_text_like_any_other(self):
    tok = tokenizer.Tokenizer.train_bpe(['eos'] * 9, vocab_size=261)
    word = tok.encode(['eos'])[0]
    self.assertLen(word, 1)
    self.assertEqual(tok.encode(['<eos>'])[0],
                     [*tok.encode(['<'])[0], *word, *tok.encode(['>'])[0]])

  def test_ids_and_size(self):
    tok = _bpe()
    self.assertEqual((tok.pad_id, tok.bos_id, tok.eos_id), (0, 1, 2))
    self.assertEqual(tok.vocab_size, 300)
    self.assertLess(len(tok.encode(CORPUS)[0]), len(CORPUS[0]))

  def test_control_tokens_of_a_format(self):
    tok = tokenizer.Tokenizer.train_bpe(
        ['<|user|> the <|user|>'] * 20, vocab_size=300, control=['<|user|>'])
    self.assertEqual((tok.eos_id, tok.id_of('<|user|>')), (2, 3))
    self.assertEqual(tok.id_of(''), 2)
    self.assertGreater(min(tok.encode(['<|user|>'])[0]), 3)
    self.assertEqual(tok.decode([1, 3, 2]), '<|user|>')
    with self.assertRaisesRegex(errors.ConfigError, r"token '<\|x\|>', which"):
      tok.id_of('<|x|>')
    with self.assertRaisesRegex(ValueError, '>= 260, got 259'):
      tokenizer.Tokenizer.train_bpe([], vocab_size=259, control=['<|user|>'])

  def test_training_is_deterministic(self):
    self.assertEqual(_bpe().encode(CORPUS), _bpe().encode(CORPUS))

  def test_vocabulary_too_small(self):
    with self.assertRaisesRegex(ValueError, '>= 259, got 258'):
      tokenizer.Tokenizer.train_bpe(CORPUS, vocab_size=258)
    tok = tokenizer.Tokenizer.train_bpe([], vocab_size=259)
    self.assertEqual(tok.decode(tok.encode(['é'])[0]), 'é')

  def test_one_string_is_refused(self):
    with self.assertRaisesRegex(TypeError, 'one string'):
      _bpe().encode('text')

  def test_not_a_string_is_a_bug_not_a_data_error(self):
    with self.assertRaises(TypeError):
      _bpe().encode([3])


class WordLevelTest(parameterized.TestCase):

  def test_by_hand(self):
    tok = _words()
    self.assertEqual(tok.vocab_size, 8)
    self.assertEqual(tok.encode(['a c', ' e\n a ', '']), [[3, 5], [7, 3], []])
    self.assertEqual(tok.decode(np.array([1, 3, 5, 2, 0])), 'a c')

  def test_unknown_word_is_named(self):
    with self.assertRaisesRegex(errors.DataError, "text 1: word 'zebra'"):
      _words().encode(['a', 'b zebra c'])

  @parameterized.parameters('<eos>', 'a <pad>', 'b <bos> c')
  def test_special_word_is_refused(self, text):
    with self.assertRaisesRegex(errors.DataError, 'control token'):
      _words().encode([text])

  @parameterized.parameters('', 'a b', '<eos>', 'a')
  def test_bad_vocabulary(self, word):
    with self.assertRaisesRegex(ValueError, 'word'):
      tokenizer.Tokenizer.word_level(['a', word])


class FileTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    directory = tempfile.TemporaryDirectory()
    self.addCleanup(directory.cleanup)
    self.path = pathlib.Path(directory.name) / 'tokenizer.json'

  @parameterized.parameters(_bpe, _words)
  def test_save_and_load(self, make):
    tok = make()
    tok.save(self.path)
    self.assertEqual([p.name for p in self.path.parent.iterdir()],
                     ['tokenizer.json'])
    loaded = tokenizer.Tokenizer.from_file(self.path)
    self.assertEqual(loaded.encode(['a b c']), tok.encode(['a b c']))
    for name in ('vocab_size', 'pad_id', 'bos_id', 'eos_id'):
      self.assertEqual(getattr(loaded, name), getattr(tok, name))
    loaded.save(self.path)  # over itself

  def test_loaded_tokenizers_keep_their_promises(self):
    tok = _bpe()
    tok.save(self.path)
    loaded = tokenizer.Tokenizer.from_file(self.path)
    for ids, text in zip(loaded.encode(INJECTIONS), INJECTIONS):
      self.assertGreater(min(ids), 2)
      self.assertEqual(loaded.decode(ids), text)
    _words().save(self.path)
    with self.assertRaisesRegex(errors.DataError, "'zebra'"):
      tokenizer.Tokenizer.from_file(self.path).encode(['zebra'])

  def test_file_settings_that_would_alter_rows_are_undone(self):
    tok = _bpe()
    tok._backends[0].enable_truncation(2)
    tok._backends[0].enable_padding(length=50)
    tok.save(self.path)
    raw = json.loads(self.path.read_text())
    for added in raw['added_tokens']:
      added['special'] = False  # then encode_special_tokens would not apply
    self.path.write_text(json.dumps(raw))
    loaded = tokenizer.Tokenizer.from_file(self.path)
    self.assertEqual(loaded.encode(INJECTIONS), _bpe().encode(INJECTIONS))

  @parameterized.parameters('os.fsync', 'os.replace')
  def test_failed_save_leaves_the_old_file(self, call):
    _bpe().save(self.path)
    before = self.path.read_bytes()
    with self.assertRaisesRegex(errors.CheckpointError, 'disk full'):
      with absltest.mock.patch(call, side_effect=OSError('disk full')):
        _words().save(self.path)
    self.assertEqual(self.path.read_bytes(), before)
    self.assertLen(list(self.path.parent.iterdir()), 1)

  def test_missing_special_tokens_are_named(self):
    _bpe().save(self.path)
    with self.assertRaisesRegex(
        errors.ConfigError, r'tokenizer\.json.*</s>, <s> are not') as caught:
      tokenizer.Tokenizer.from_file(self.path, bos='<s>', eos='</s>')
    self.assertNotIn('<pad>', str(caught.exception))

  def test_added_tokens_that_look_like_control_tokens_are(self):
    backend = _bpe()._backends[0]
    backend.add_tokens(['<|end|>', '  '])
    backend.save(str(self.path))
    tok = tokenizer.Tokenizer.from_file(self.path)
    self.assertEqual(tok.control['<|end|>'], tok.id_of('<|end|>'))
    self.assertNotIn('  ', tok.control)
    self.assertNotIn(tok.id_of('<|end|>'), tok.encode(['a<|end|>'])[0])
    self.assertIn(tok.id_of('  '), tok.encode(['a  b'])[0])

  def test_pad_and_bos_may_be_eos(self):  # as GPT-2's
    _bpe().save(self.path)
    tok = tokenizer.Tokenizer.from_file(
        self.path, pad='<eos>', bos='<eos>', eos='<eos>')
    self.assertEqual((tok.pad_id, tok.bos_id, tok.eos_id), (2, 2, 2))
    rows = tok.encode_rows(['the fox', 'dog'], ['lazy', ''],
                           max_prompt_length=9, max_response_length=9)
    prompt, response = tok.encode(['the fox', 'lazy'])
    self.assertEqual(rows.tokens[0, :len(prompt) + len(response) + 3].tolist(),
                     [2, *prompt, *response, 2, 2])
    # The mask comes from lengths: EOS is in it, padding of the same id is not.
    self.assertEqual(rows.tokens[0][rows.mask[0]].tolist(), [*response, 2])
    self.assertEqual(rows.mask.sum(1).tolist(), [len(response) + 1, 1])
    self.assertEqual(rows.prompt_lengths[0], 1 + len(prompt))
    self.assertEqual(tok.decode(rows.tokens[0]), 'the foxlazy')

  def test_no_bos(self):
    _bpe().save(self.path)
    tok = tokenizer.Tokenizer.from_file(self.path, bos=None)
    self.assertIsNone(tok.bos_id)
    rows = tok.encode_rows(['the'], ['fox'], max_prompt_length=9,
                           max_response_length=9)
    self.assertEqual(rows.prompts[0, :rows.prompt_lengths[0]].tolist(),
                     tok.encode(['the'])[0])
    with self.assertRaisesRegex(ValueError, 'has no BOS'):
      tok.encode_rows(['a'], ['a'], max_prompt_length=1,
                      max_response_length=1, add_bos=True)

  @parameterized.parameters(b'', b'{}', b'nonsense', b'\xff')
  def test_not_a_tokenizer(self, content):
    self.path.write_bytes(content)
    with self.assertRaisesRegex(errors.DataError, 'is not a tokenizer.json'):
      tokenizer.Tokenizer.from_file(self.path)

  def test_a_pattern_that_takes_for_ever(self):
    """A panic of Rust, which no `except Exception` catches."""
    _bpe().save(self.path)
    spec = json.loads(self.path.read_text())
    spec['pre_tokenizer'] = {'type': 'Split', 'pattern': {'Regex': '(a+)+$'},
                             'behavior': 'Isolated', 'invert': False}
    self.path.write_text(json.dumps(spec))
    loaded = tokenizer.Tokenizer.from_file(self.path)
    self.assertLen(loaded.encode(['a!']), 1)
    with self.assertRaisesRegex(
        errors.DataError, '^the tokenizer gives up on one of 2 texts .*retry'):
      loaded.encode(['a!', 'a' * 30 + '!'])

  def test_missing_file(self):
    with self.assertRaisesRegex(errors.DataError, 'cannot be read: No such'):
      tokenizer.Tokenizer.from_file(self.path)

  def test_published_tokenizer(self):
    path = SHARED / 'data/model/pythia_20B_tokenizer.json'
    if not path.exists():
      self.skipTest(f'{path} is not here (set RLHF_JAX_SHARED)')
    end = '<|endoftext|>'
    tok = tokenizer.Tokenizer.from_file(
        path, pad='<|padding|>', bos=end, eos=end
    )
    self.assertEqual((tok.pad_id, tok.bos_id, tok.eos_id), (1, 0, 0))
    self.assertEqual(tok.vocab_size, 50277)
    ids = tok.encode([f'Hello{end} <|padding|>'])[0]
    self.assertNoCommonElements(ids, [0, 1])
    self.assertEqual(tok.decode([0, *ids, 0]), f'Hello{end} <|padding|>')


class SpellTest(parameterized.TestCase):

  def test_words(self):
    self.assertEqual(_words().spell(np.array([1, 3, 4, 2, 0])),
                     '<bos> a b <eos> <pad>')

  @parameterized.parameters(*TEXTS)
  def test_control_tokens_stand_between_texts(self, text):
    tok = tokenizer.Tokenizer.train_bpe(
        CORPUS, vocab_size=300, control=['<|user|>'])
    user = tok.control['<|user|>']
    ids, = tok.encode([text])
    self.assertEqual(tok.spell([1, user, *ids, 2, *ids, 2, 0]),
                     f'<bos><|user|>{text}<eos>{text}<eos><pad>')
    self.assertEqual(tok.spell([]), '')


class EncodeRowsTest(parameterized.TestCase):

  def rows(self, prompts, responses, p=4, r=3, **kwargs):
    return _words().encode_rows(
        prompts, responses, max_prompt_length=p, max_response_length=r,
        **kwargs,
    )

  def test_by_hand(self):
    rows = self.rows(['a b', '', 'a b c d e'], ['c', '', 'a b c d'])
    np.testing.assert_array_equal(
        rows.prompts, [[1, 3, 4, 0], [1, 0, 0, 0], [1, 5, 6, 7]]
    )
    np.testing.assert_array_equal(rows.prompt_lengths, [3, 1, 4])
    np.testing.assert_array_equal(rows.tokens, [
        [1, 3, 4, 5, 2, 0, 0],
        [1, 2, 0, 0, 0, 0, 0],  # an empty response is its EOS
        [1, 5, 6, 7, 3, 4, 5],  # cut on the left, cut on the right: no EOS
    ])
    np.testing.assert_array_equal(rows.mask, np.array([
        [0, 0, 0, 1, 1, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1, 1],
    ], bool))
    self.assertEqual((rows.truncated_prompts, rows.truncated_responses), (1, 1))
    self.assertEqual(
        [x.dtype for x in rows[:4]], [np.int32, np.int32, np.int32, np.bool_]
    )

  @parameterized.parameters(
      ('a b', 1, [3, 4, 2]),  # exactly fits
      ('a b c', 0, [3, 4, 5]),  # fits but for its EOS: counted as cut
      ('a b c d', 0, [3, 4, 5]),
  )
  def test_response_at_the_limit(self, response, whole, expected):
    rows = self.rows(['a'], [response])
    np.testing.assert_array_equal(rows.tokens[rows.mask], expected)
    self.assertEqual(rows.truncated_responses, 1 - whole)

  @parameterized.parameters(
      (4, True, 'a b c', 0, [1, 3, 4, 5]),
      (4, True, 'a b c d', 1, [1, 4, 5, 6]),
      (1, True, 'a b', 1, [1]), (1, True, '', 0, [1]),
      (2, False, 'a b', 0, [3, 4]), (2, False, 'a b c', 1, [4, 5]),
  )
  def test_prompt_at_the_limit(self, length, add_bos, prompt, cut, expected):
    rows = self.rows([prompt], ['a'], p=length, add_bos=add_bos)
    np.testing.assert_array_equal(
        rows.prompts[0, : rows.prompt_lengths[0]], expected
    )
    self.assertEqual(rows.truncated_prompts, cut)

  def test_a_prompt_with_its_bos_gets_no_second_one(self):
    bos = formats.Special('<bos>')
    rows = self.rows([(bos, 'a'), (bos,), 'a'], ['b'] * 3, add_bos=True)
    np.testing.assert_array_equal(rows.prompt_lengths, [2, 1, 2])
    np.testing.assert_array_equal(rows.prompts[0], rows.prompts[2])

  def test_a_response_with_its_eos_gets_no_second_one(self):
    rows = self.rows(['a'] * 3, [('b', formats.END), (formats.END,), 'b'])
    self.assertEqual([rows.tokens[i][rows.mask[i]].tolist() for i in range(3)],
                     [[4, 2], [2], [4, 2]])
    with self.assertRaisesRegex(ValueError, 'response 1 has EOS before'):
      self.rows(['a'] * 2, ['b', (formats.END, 'b')])

  def test_response_length_of_one(self):
    rows = self.rows(['a', 'a'], ['', 'b'], r=1)
    np.testing.assert_array_equal(rows.tokens[rows.mask], [2, 4])
    self.assertEqual(rows.truncated_responses, 1)

  def test_no_rows(self):
    rows = self.rows([], [])
    self.assertEqual(rows.tokens.shape, (0, 7))
    self.assertEqual(rows.mask.shape, (0, 7))

  def test_prompt_and_response_are_never_merged(self):
    tok = tokenizer.Tokenizer.train_bpe(CORPUS, vocab_size=400)
    rows = tok.encode_rows(
        ['the qu'], ['ick brown'], max_prompt_length=32, max_response_length=32
    )
    prompt, response = tok.encode(['the qu', 'ick brown'])
    ids = rows.tokens[0, : 2 + len(prompt) + len(response)].tolist()
    self.assertEqual(ids, [1, *prompt, *response, 2])
    self.assertNotEqual(prompt + response, tok.encode(['the quick brown'])[0])

  @parameterized.parameters(0, 1, 2)
  def test_laws_on_random_rows(self, seed):
    rng = np.random.default_rng(seed)
    draw = lambda: ' '.join(rng.choice(WORDS, rng.integers(0, 9)))
    prompts, responses = ([draw() for _ in range(50)] for _ in range(2))
    rows = self.rows(prompts, responses, p=5, r=4)
    lengths = rows.mask.sum(1)
    self.assertTrue(np.all((lengths >= 1) & (lengths <= 4)))
    for i, length in enumerate(rows.prompt_lengths):
      end = length + lengths[i]
      self.assertEqual(np.flatnonzero(rows.mask[i]).tolist(),
                       list(range(length, end)))
      np.testing.assert_array_equal(rows.tokens[i, :length],
                                    rows.prompts[i, :length])
      np.testing.assert_array_equal(rows.prompts[i, length:], 0)
      np.testing.assert_array_equal(rows.tokens[i, end:], 0)
      self.assertEqual((rows.tokens[i] == 1).sum(), 1)
      words = responses[i].split()
      self.assertEqual((rows.tokens[i] == 2).sum(), len(words) < 4)
      text = _words().decode(rows.tokens[i][rows.mask[i]])
      self.assertEqual(text.split(), words[:4])

  def test_rejects(self):
    for p, r in ((0, 3), (4, 0)):
      with self.assertRaisesRegex(ValueError, f'got {p} and {r}'):
        self.rows(['a'], ['a'], p=p, r=r)
    with self.assertRaisesRegex(ValueError, '2 prompts, 1 responses'):
      self.rows(['a', 'b'], ['a'])
    with self.assertRaisesRegex(TypeError, 'got one string'):
      self.rows('a', 'a')
    with self.assertRaisesRegex(errors.DataError, 'prompt 1 has no token'):
      self.rows(['a', ' '], ['a', 'a'], add_bos=False)

  def test_speed(self):
    tok = _bpe()
    texts = [f'the quick brown fox number {i}' for i in range(50_000)]
    # About 3 s of two cores; the machine of a test run is rarely free, so that
    # the clock on the wall says little.
    started = time.process_time()
    tok.encode_rows(
        texts, texts, max_prompt_length=32, max_response_length=32
    )
    self.assertLess(time.process_time() - started, 10)


class CheckIdsTest(parameterized.TestCase):

  @parameterized.parameters((8, 8), (-1, 8), (50_000, 8))
  def test_both_numbers(self, bad, vocab_size):
    with self.assertRaisesRegex(errors.DataError, f'id {bad} .* {vocab_size} '):
      tokenizer.check_ids(np.array([[0, 1], [bad, 7]]), vocab_size)

  def test_good(self):
    tokenizer.check_ids(np.array([[0, 7]], np.int32), 8)
    tokenizer.check_ids(np.zeros((0, 4), np.int32), 8)


class CheckVocabularyTest(parameterized.TestCase):

  def test_both_numbers(self):
    with self.assertRaisesRegex(errors.ConfigError, 'up to 7, a .* 8, .* 7;'):
      tokenizer.check_vocabulary(_words(), 7)

  @parameterized.parameters(8, 128)  # models are padded to a round size
  def test_good(self, size):
    tokenizer.check_vocabulary(_words(), size)

  def test_holes_count(self):
    tok = _words()
    raw = json.loads(tok._backends[0].to_str())
    raw['model']['vocab']['e'] = 40
    tok = tokenizer.Tokenizer(
        tokenizer.tokenizers.Tokenizer.from_str(json.dumps(raw)))
    with self.assertRaises(errors.ConfigError):
      tokenizer.check_vocabulary(tok, 40)
    tokenizer.check_vocabulary(tok, 41)


class EndingTest(parameterized.TestCase):

  def test_strings_and_control_tokens_end_a_response(self):
    plain = tokenizer.Tokenizer.train_bpe(
        ['to be or not'], vocab_size=270, control=['<|end|>'])
    coder = plain.ending_at(('be o', '<|end|>'))
    self.assertEqual((plain.stop, plain.stops), ((), None))
    self.assertEqual(coder.stop, ('be o', '<|end|>'))
    rows = [[*coder.encode([text])[0], *more] for text, more in (
        ('to be or', []), ('to be', []), ('to', [coder.control['<|end|>']]),
        ('to', [coder.eos_id]), ('<|end|>', []))]  # the last is spelled out
    width = max(map(len, rows))
    tokens = np.array([row + [coder.pad_id] * (width - len(row))
                       for row in rows])
    mask = np.arange(width) < np.array([len(row) for row in rows])[:, None]
    np.testing.assert_array_equal(
        coder.finished(tokens, mask), [True, False, True, True, True])
    np.testing.assert_array_equal(
        plain.finished(tokens, mask), [False, False, False, True, False])
    with self.assertRaisesRegex(errors.ConfigError, 'none of them empty'):
      plain.ending_at(('',))


if __name__ == '__main__':
  absltest.main()
