"""Tests for rlhf_jax.pipeline.cards; their lines are run by tests/peers too."""

import re
import types

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax.data import coders
from rlhf_jax.data import formats
from rlhf_jax.pipeline import cards

TEXTS = {'format': 'alpaca', 'max_prompt_length': 9, 'max_response_length': 4}


def as_transformers(coder):
  """The little of a tokenizer that the card's lines ask for."""
  class Tokenizer:
    eos_token_id = coder.eos_id

    def __call__(self, text, add_special_tokens=True):
      ids, = coder.encode([text])
      start = [coder.bos_id] if add_special_tokens and coder.adds_bos else []
      return types.SimpleNamespace(input_ids=[*start, *ids])
  return Tokenizer()


class RewardTest(parameterized.TestCase):

  @parameterized.product(
      members=(1, 3), prompt=('one two', 'one two three four five six ' * 3),
      response=('yes', '', 'yes indeed it is so and more so'))
  def test_texts_are_cut_as_the_models_have_seen_them(
      self, members, prompt, response):
    coder = coders.train_tokenizer([(prompt, response + ' no')] * 2, 290, ())
    card = cards.reward(members, True, TEXTS)
    lines = re.search(r'```python\n(.*?)```', card, re.DOTALL)[1]
    function = re.search(r'^def encode.*?(?=^\S|\Z)',
                         lines[lines.index('def encode'):],
                         re.DOTALL | re.MULTILINE)[0]
    names = {}
    exec(function, names)
    rows = coder.encode_rows(
        [prompt], [response], max_prompt_length=9, max_response_length=4)
    tokens = rows.tokens[0]
    count = int(rows.mask[0].nonzero()[0][-1]) + 1
    self.assertEqual(
        names['encode'](as_transformers(coder), prompt, response),
        tokens[:count].tolist())

  def test_how_texts_are_written(self):
    card = cards.reward(2, False, TEXTS)
    prompt, _ = formats.alpaca('PROMPT')
    self.assertIn(repr(prompt), card)
    self.assertIn('`alpaca`', card)
    self.assertNotIn('deviation', card)
    self.assertIn('deviation', cards.reward(2, True, TEXTS))
    self.assertIn('2 reward models', card)
    with self.subTest('control tokens by their names'):
      self.assertIn('<|im_start|>user', cards.reward(
          1, True, TEXTS | {'format': 'chatml'}))
    for name in ('chat_template', ''):
      self.assertNotIn('PROMPT', cards.reward(
          1, True, TEXTS | {'format': name}))
    self.assertNotIn('tokens lose', cards.reward(1, True, None))


class PolicyTest(absltest.TestCase):

  def test_a_template_of_another_format(self):
    for name, has_template, expected in (
        ('alpaca', True, True), ('alpaca', False, False),
        ('chat_template', True, False)):
      card = cards.policy(TEXTS | {'format': name}, adapter=False,
                          has_template=has_template)
      self.assertEqual('may write another' in card, expected)

  def test_an_adapter(self):
    for adapter in (True, False):
      card = cards.policy(None, adapter=adapter, has_template=False)
      self.assertEqual('peft' in card, adapter)


if __name__ == '__main__':
  absltest.main()
