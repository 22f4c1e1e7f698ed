"""The format 'chat_template': a model's own template writes the texts."""

import functools
import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import own_data
import worlds

from rlhf_jax import errors
from rlhf_jax.data import coders
from rlhf_jax.data import formats
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer

START, END = '<|im_start|>', '<|im_end|>'
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + "
    "m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
SIZES = dict(num_pair_prompts=4, num_eval_prompts=4, max_prompt_length=48,
             max_response_length=16)
# The same template drops the end of a turn.
ENDLESS = CHATML.replace(" + '<|im_end|>' + '\\n'", " + '\\n'")


@functools.cache
def directory(template=CHATML):
  """A tokenizer as a model brings it, with this template."""
  path = worlds.folder()
  coder = tokenizer.Tokenizer.train_bpe(
      [(own_data.folder() / 'pairs.jsonl').read_text()], vocab_size=400,
      control=(START, END))
  coder.chat_template = template
  coder.save_directory(path)
  return path


def load(format_, name='pairs.jsonl', kind='logged', **fields):
  path = str(own_data.folder() / name)
  where = dict(path=path) | (
      dict(preferences=path) if kind == 'files' and 'pairs' in name else {})
  return load_lib.load(dict(
      name=kind, format=format_, tokenizer=str(directory()), eos=END, **where,
      **SIZES) | fields, 0)


class TemplateTest(parameterized.TestCase):

  @parameterized.parameters(
      ('logged', 'pairs.jsonl'), ('files', 'pairs.jsonl'),
      ('logged', 'messages.jsonl'), ('files', 'prompts.jsonl'))
  def test_as_the_built_in_format(self, kind, name):
    own = load('chatml', name, kind)
    out = load('chat_template', name, kind, allow_checkpoint_template=True)
    self.assertEqual(out.fingerprint(), own.fingerprint())
    np.testing.assert_array_equal(out.eval_prompts.tokens,
                                  own.eval_prompts.tokens)
    if name != 'prompts.jsonl':
      last = out.demonstrations.tokens[out.demonstrations.mask]
      self.assertIn(out.tokenizer.eos_id, last)

  def test_conversations_of_several_turns(self):
    path = worlds.folder() / 'a.jsonl'
    said = lambda *texts: [
        dict(role=('user', 'assistant')[i % 2], content=text)
        for i, text in enumerate(texts)]
    path.write_text(''.join(json.dumps(dict(messages=[
        dict(role='system', content='Be brief.'),
        *said('Hi', 'Yes?', f'What is {i}?', 'A number.')])) + '\n'
                            for i in range(8)))
    one = functools.partial(load, kind='files', path=str(path))
    self.assertEqual(
        one('chat_template', allow_checkpoint_template=True).fingerprint(),
        one('chatml').fingerprint())

  def test_only_where_it_is_allowed(self):
    with self.assertRaisesRegex(errors.ConfigError,
                                'set allow_checkpoint_template'):
      load('chat_template')
    data = dict(name='logged', format='chat_template', eos=END,
                path=str(own_data.folder() / 'pairs.jsonl'), **SIZES)
    with self.assertRaisesRegex(errors.ConfigError,
                                "format 'chat_template' is that of a model"):
      load_lib.check(data)
    plain = worlds.folder()
    tokenizer.Tokenizer.train_bpe(['text'], vocab_size=300).save_directory(
        plain)
    with self.assertRaisesRegex(errors.ConfigError, 'which has none'):
      load_lib.check(data | dict(tokenizer=str(plain), eos=tokenizer.EOS,
                                 allow_checkpoint_template=True))

  def test_a_template_without_an_end(self):
    """The row ends with the tokenizer's EOS all the same."""
    coder = coders.load_tokenizer(str(directory(ENDLESS)), eos=END)
    row = formats.chat_template('Hi', 'Yes')
    (_, response), = coders.rendered(coder, [row], allowed=True)
    rows = coder.encode_rows(['x'], [response], max_prompt_length=4,
                             max_response_length=9)
    last = rows.tokens[0][rows.mask[0]][-1]
    self.assertEqual(last, coder.eos_id)


if __name__ == '__main__':
  absltest.main()
