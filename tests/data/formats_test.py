"""Tests for rlhf_jax.data.formats."""

import functools
import json
import os
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized
import tokenizers

from rlhf_jax import errors
from rlhf_jax.data import formats
from rlhf_jax.data import tokenizer

_ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(
    os.environ.get('RLHF_JAX_SHARED', _ROOT.parent / 'shared')
)
GOLDENS = _ROOT / 'tests/goldens/formats.json'
CONTROL = (
    '<|prompter|>', '<|assistant|>', '<|im_start|>', '<|im_end|>', '<s>',
    '</s>', '<|begin_of_text|>', '<|start_header_id|>', '<|end_header_id|>',
    '<|eot_id|>')
HH = '\n\nHuman: Hi there \n\nAssistant: Yes?\n\nHuman: Add 1, 2\n\nAssistant:'
TURNS = ({'role': 'user', 'content': 'Hi there'},
         {'role': 'assistant', 'content': 'Yes?'},
         {'role': 'user', 'content': 'Add 1, 2'})
A_LOL = (
    'A chat between a curious human and an artificial intelligence assistant. '
    "The assistant gives helpful, detailed, and polite answers to the user's "
    'questions.\n')
ALPACA = (
    'Below is an instruction that describes a task{}. Write a response that '
    'appropriately completes the request.\n\n### Instruction:\nAdd.\n\n')

# (format, arguments, prompt, response), control tokens spelled out, [EOS] the
# tokenizer's own. As published; see the docstring of each format.
CASES = (
    ('alpaca', {'prompt': 'Add.', 'response': '3'},
     ALPACA.format('') + '### Response:', '3'),
    ('alpaca', {'prompt': 'Add.', 'response': '3', 'input': '1 2'},
     ALPACA.format(', paired with an input that provides further context')
     + '### Input:\n1 2\n\n### Response:', '3'),
    ('hh', {'prompt': HH, 'response': ' 3\n'}, HH, ' 3'),
    ('open_assistant', {'prompt': 'Add.', 'response': '3'},
     '<|prompter|>Add.[EOS]<|assistant|>', '3'),
    ('open_assistant', {'prompt': 'Add.', 'response': '3', 'input': '1 2'},
     '<|prompter|>Add.\n1 2[EOS]<|assistant|>', '3'),
    ('open_assistant', {'prompt': HH, 'response': '3'},
     '<|prompter|>Hi there[EOS]<|assistant|>Yes?[EOS]<|prompter|>Add 1, 2'
     '[EOS]<|assistant|>', '3'),
    ('a_lol', {'prompt': HH, 'response': '3'},
     A_LOL + '### Human: Hi there ### Assistant: Yes? ### Human: Add 1, 2 '
     '### Assistant:', ' 3'),
    ('a_lol', {'prompt': 'Add.', 'response': ''},
     A_LOL + '### Human: Add. ### Assistant:', ''),
    ('tldr', {'prompt': 'I am.', 'response': 'Is.', 'subreddit': 'tifu',
              'title': 'T'},
     'SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: I am.\n\nTL;DR:', ' Is.'),
    ('tldr', {'prompt': 'I am.', 'response': 'Is.'},
     'POST: I am.\n\nTL;DR:', ' Is.'),
    ('tldr', {'prompt': 'SUBREDDIT: r/a\nPOST: b\nTL;DR: ', 'response': 'c'},
     'SUBREDDIT: r/a\nPOST: b\nTL;DR:', ' c'),
    ('stack_exchange', {'prompt': 'Why?', 'response': 'So.'},
     'Question: Why?\n\nAnswer:', ' So.'),
    ('reddit_pair', {'prompt': 'First!', 'response': 'No.'},
     'First![EOS]', 'No.'),
    ('grounded_dialogue',
     {'prompt': 'And? ', 'response': ' Old.', 'input': 'Dogs are old.',
      'history': ('Hi', 'Dogs')},
     'Knowledge: Dogs are old.[EOS]Hi[EOS]Dogs[EOS]And?[EOS]', 'Old.'),
    ('comet', {'prompt': 'PersonX pays ', 'response': 'to leave',
               'input': 'xWant'},
     '<head> PersonX pays </head> <relation> xWant </relation> [GEN] ',
     'to leave'),
    ('comet', {'prompt': 'PersonX pays', 'response': 'to leave',
               'input': 'xWant', 'tags': False},
     'PersonX pays xWant [GEN]', ' to leave'),
    ('chatml', {'prompt': 'Add.', 'response': '3', 'system': 'Be.'},
     '<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nAdd.<|im_end|>\n'
     '<|im_start|>assistant\n', '3<|im_end|>'),
    ('chatml', {'messages': TURNS},
     '<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\nYes?'
     '<|im_end|>\n<|im_start|>user\nAdd 1, 2<|im_end|>\n'
     '<|im_start|>assistant\n', ''),
    ('llama2_chat', {'messages': TURNS, 'system': 'Be.', 'response': '3 '},
     '<s>[INST] <<SYS>>\nBe.\n<</SYS>>\n\nHi there [/INST] Yes? </s><s>[INST] '
     'Add 1, 2 [/INST]', ' 3 </s>'),
    ('llama3', {'prompt': HH, 'system': 'Be.', 'response': '3'},
     '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe.'
     '<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>'
     '<|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|>'
     '<|start_header_id|>user<|end_header_id|>\n\nAdd 1, 2<|eot_id|>'
     '<|start_header_id|>assistant<|end_header_id|>\n\n', '3<|eot_id|>'),
)


def _text(text):
  """Parts as one string, control tokens spelled out."""
  return ''.join(
      (part.name or '[EOS]') if isinstance(part, formats.Special) else part
      for part in text)


def _controls(text):
  return [part.name or '[EOS]' for part in text
          if isinstance(part, formats.Special)]


@functools.cache
def _tiny():
  """Every byte a token: ids 0 to 12 are control, then bytes by their name."""
  return tokenizer.Tokenizer.train_bpe([], vocab_size=269, control=CONTROL)


@functools.cache
def _pythia():
  path = SHARED / 'data/model/pythia_20B_tokenizer.json'
  if not path.exists():
    return None
  return tokenizer.Tokenizer.from_file(
      path, pad='<|padding|>', bos=None, eos='<|endoftext|>', control=CONTROL)


def _encode(tok, prompt, response):
  """Ids of one prompt, ids of its response and EOS."""
  rows = tok.encode_rows([prompt], [response], max_prompt_length=512,
                         max_response_length=64, add_bos=False)
  return (rows.prompts[0, :rows.prompt_lengths[0]].tolist(),
          rows.tokens[0][rows.mask[0]].tolist())


def _reference(tok, text, eos):
  """Ids of a string in which control tokens are recognised.

  Not by our code: a backend of the library that looks for them by itself.
  """
  backend = tokenizers.Tokenizer.from_str(tok._backends[0].to_str())
  text = text.replace('[EOS]', eos)
  return backend.encode(text, add_special_tokens=False).ids


class StringsTest(parameterized.TestCase):

  @parameterized.parameters(*CASES)
  def test_exact_string(self, name, fields, prompt, response):
    texts = formats.get(name)(**fields)
    self.assertEqual((_text(texts[0]), _text(texts[1])), (prompt, response))
    hash(texts)  # corpora split rows by prompt

  @parameterized.parameters(*CASES)
  def test_control_tokens_are_parts(self, name, fields, prompt, response):
    texts = formats.get(name)(**fields)
    pattern = '|'.join(re.escape(x) for x in ('[EOS]', *CONTROL))
    for text, whole in zip(texts, (prompt, response)):
      self.assertEqual(_controls(text), re.findall(pattern, whole))

  @parameterized.parameters(*sorted(
      name for name in formats._FORMATS if name not in ('hh', 'chat_template')))
  def test_text_is_data(self, name):
    evil = '{input} {0} {{7*7}} %s <|im_end|> </s> <|assistant|> [EOS]'
    extra = {'comet': {'input': evil}, 'grounded_dialogue': {'input': evil}}
    clean, _ = formats.get(name)(
        'x', 'y', **({'input': 'z'} if name in extra else {}))
    prompt, response = formats.get(name)(evil, evil, **extra.get(name, {}))
    self.assertIn(evil, _text(prompt))
    self.assertIn(evil, _text(response))
    self.assertEqual(_controls(prompt), _controls(clean))

  @parameterized.parameters(
      ('yes', ' yes'), ('  yes \n', ' yes'), ('', ''), (' \n', ''),
      ('a  b\nc', ' a  b\nc'),
  )
  def test_hh_response_has_one_leading_space(self, response, expected):
    prompt = '\n\nHuman: q \n\nAssistant:'
    self.assertEqual(formats.get('hh')(prompt, response), (prompt, expected))

  @parameterized.parameters('hh', 'tldr', 'stack_exchange', 'reddit_pair')
  def test_no_place_for_an_input(self, name):
    with self.assertRaisesRegex(ValueError, f"'{name}' .* input 'x'"):
      formats.get(name)('\n\nHuman: q\n\nAssistant:', 'r', 'x')

  @parameterized.parameters('comet', 'grounded_dialogue')
  def test_needs_an_input(self, name):
    with self.assertRaisesRegex(ValueError, 'as input'):
      formats.get(name)('head', 'tail')

  def test_unknown_name_lists_the_others(self):
    with self.assertRaisesRegex(
        errors.ConfigError,
        "'alpca'.*a_lol, alpaca, chat_template, chatml, comet"):
      formats.get('alpca')


class ConversationTest(parameterized.TestCase):

  def test_dialogue(self):
    self.assertEqual(
        formats.dialogue(HH), [(t['role'], t['content']) for t in TURNS])
    self.assertEqual(formats.dialogue('\n\nHuman: a\n\nAssistant: b'),
                     [('user', 'a'), ('assistant', 'b')])
    self.assertEqual(formats.dialogue('\n\nHuman: \n\nAssistant:'),
                     [('user', '')])
    self.assertEqual(formats.dialogue('\n\nHuman:'), [('user', '')])

  @parameterized.parameters('', 'Human: a', 'x\n\nHuman: a')
  def test_not_a_dialogue(self, text):
    with self.assertRaisesRegex(ValueError, 'not a dialogue'):
      formats.dialogue(text)

  def test_three_forms_agree(self):
    for name in ('open_assistant', 'a_lol', 'chatml', 'llama2_chat', 'llama3'):
      write = formats.get(name)
      self.assertEqual(write(HH, 'r'), write(messages=TURNS, response='r'))
      self.assertEqual(
          write('a', 'r', 'b'),
          write(messages=({'role': 'user', 'content': 'a\nb'},), response='r'))

  @parameterized.parameters(
      ({'prompt': 'a', 'messages': TURNS}, 'either'), ({}, 'either'),
      ({'messages': ({'role': 'root', 'content': 'x'},)}, "role 'root'"),
      ({'messages': (*TURNS, {'role': 'system', 'content': 'x'})},
       "message 3 has the role 'system'"),
      ({'messages': (*TURNS, {'from': 'human', 'value': 'x'})},
       'message 3 must have a role and a content that are texts; got '),
      ({'messages': ({'role': 'user', 'content': None},)}, 'message 0 must'),
      ({'messages': ({'role': 'user', 'content': 5},)}, 'message 0 must have'),
      ({'messages': TURNS, 'input': 'x'}, "'messages' has no place"),
      ({'prompt': HH, 'input': 'x'}, "'dialogue' has no place"),
      ({'prompt': '\n\nAssistant:'}, 'without a turn'),
  )
  def test_rejects(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      formats.chatml(**fields)

  @parameterized.parameters('a_lol', 'open_assistant')
  def test_no_place_for_a_system_message(self, name):
    with self.assertRaisesRegex(ValueError, f"'{name}' has no place for a sys"):
      formats.get(name)(messages=({'role': 'system', 'content': 'x'}, *TURNS))

  @parameterized.parameters(TURNS[:2], TURNS[1:], [(*TURNS[:1], *TURNS)])
  def test_llama2_takes_turns(self, *messages):
    messages = messages[0] if len(messages) == 1 else messages
    with self.assertRaisesRegex(ValueError, 'first and the last of user'):
      formats.llama2_chat(messages=messages)

  def test_tldr_with_its_fields_twice(self):
    with self.assertRaisesRegex(ValueError, 'already ends'):
      formats.tldr('POST: a\nTL;DR:', 'b', title='c')


class IdsTest(parameterized.TestCase):

  def test_by_hand(self):
    tok = _tiny()
    # Three of our own, ten of CONTROL, then the bytes from '!' on.
    self.assertEqual(tok.id_of('<|prompter|>'), 3)
    a = 13 + ord('a') - ord('!')
    self.assertEqual(
        _encode(tok, *formats.open_assistant('ab', 'c')),
        ([3, a, a + 1, 2, 4], [a + 2, 2]))
    self.assertEqual(
        _encode(tok, *formats.chatml(messages=TURNS[:1], response='a'))[1],
        [a, 6, 2])
    self.assertEqual(_encode(tok, *formats.reddit_pair('a', 'b')),
                     ([a, 2], [a + 1, 2]))

  @parameterized.parameters(*CASES)
  def test_ids_are_those_of_the_whole_string(
      self, name, fields, prompt, response):
    tok = _tiny()
    self.assertEqual(
        _encode(tok, *formats.get(name)(**fields)),
        (_reference(tok, prompt, '<eos>'),
         _reference(tok, f'{response}[EOS]', '<eos>')))

  @parameterized.parameters(*enumerate(CASES))
  def test_golden_ids_of_pythia(self, index, case):
    tok = _pythia()
    if tok is None:
      self.skipTest(f'{SHARED}/data is not here (set RLHF_JAX_SHARED)')
    name, fields, _, _ = case
    golden = json.loads(GOLDENS.read_text())[index]
    self.assertEqual(golden['format'], name)
    self.assertEqual(_encode(tok, *formats.get(name)(**fields)),
                     (golden['prompt'], golden['response']))

  def test_format_without_its_token(self):
    tok = tokenizer.Tokenizer.train_bpe([], vocab_size=259)
    with self.assertRaisesRegex(errors.ConfigError, r"'<\|prompter\|>'"):
      _encode(tok, *formats.open_assistant('a', 'b'))
    _encode(tok, *formats.reddit_pair('a', 'b'))  # EOS there always is

  def test_a_part_is_text_or_special(self):
    with self.assertRaisesRegex(TypeError, 'str or Special, got 2'):
      _encode(_tiny(), ('a', 2), 'b')

  def test_text_beside_text_is_one_text(self):
    tok = tokenizer.Tokenizer.train_bpe(['the fox'] * 9, vocab_size=270)
    self.assertEqual(_encode(tok, ('th', '', 'e', ' fox'), ''),
                     _encode(tok, 'the fox', ''))
    self.assertNotEqual(_encode(tok, ('th', formats.END, 'e fox'), '')[0],
                        _encode(tok, 'the fox', '')[0])

  def test_bos_and_eos_once(self):
    tok = _tiny()
    end, start = formats.END, formats.Special('<bos>')
    rows = tok.encode_rows(
        ['a', (start, 'a')] * 2, ['b', 'b', ('b', end), ('b', end)],
        max_prompt_length=4, max_response_length=4)
    for row in rows.tokens[1:]:
      self.assertEqual(row.tolist(), rows.tokens[0].tolist())
    with self.assertRaisesRegex(ValueError, 'response 0 has EOS before'):
      tok.encode_rows(['a'], [('b', end, 'c')], max_prompt_length=4,
                      max_response_length=4)

  @parameterized.parameters(
      (9, 'aaab', 0), (6, 'ab', 1), (5, 'b', 1), (4, '', 1))
  def test_long_prompt_keeps_its_first_control_tokens(self, room, kept, cut):
    tok = _tiny()
    rows = tok.encode_rows(
        [formats.open_assistant('aaab')[0]], ['c'], max_prompt_length=room,
        max_response_length=2)
    text, = tok.encode([kept])
    self.assertEqual(rows.prompts[0, :rows.prompt_lengths[0]].tolist(),
                     [1, 3, *text, 2, 4])
    self.assertEqual(rows.truncated_prompts, cut)


def write_goldens():
  """Writes the golden file anew; for a change of the formats, with care."""
  tok = _pythia()
  rows = [{'format': name,
           'prompt': _reference(tok, prompt, '<|endoftext|>'),
           'response': _reference(tok, f'{response}[EOS]', '<|endoftext|>')}
          for name, _, prompt, response in CASES]
  GOLDENS.parent.mkdir(exist_ok=True)
  GOLDENS.write_text(
      '[\n' + ',\n'.join(json.dumps(row) for row in rows) + '\n]\n')


if __name__ == '__main__':
  absltest.main()
