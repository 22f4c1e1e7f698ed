"""Tests for rlhf_jax.data.grammar."""

import statistics

from absl.testing import absltest
import numpy as np

from rlhf_jax.data import grammar
from rlhf_jax.data import reviews
from rlhf_jax.data import tokenizer


class WordsTest(absltest.TestCase):

  def test_both_halves(self):
    values = list(grammar.valences(240).values())
    self.assertLen(values, 240)
    self.assertEqual(sum(v > 0 for v in values), 120)
    with self.assertRaisesRegex(ValueError, 'num_adjectives must be <= 342'):
      grammar.valences(344)

  def test_modifiers(self):
    self.assertEqual(grammar.MODIFIERS, {*grammar.BOOSTS, 'not', 'never'})
    self.assertLen(grammar.valences(grammar.MOST_ADJECTIVES), 342)

  def test_coined_words_are_spread_as_those_of_vader(self):
    known = grammar.valences(grammar.MOST_ADJECTIVES)
    words = grammar.coined(2000)
    self.assertLen(words, 2000)
    self.assertEmpty(set(words) & set(known))
    values = list(words.values())
    self.assertTrue(all(v > 0 for v in values[::2]))
    self.assertTrue(all(v < 0 for v in values[1::2]))
    mean = lambda x: statistics.fmean(map(abs, x))
    self.assertAlmostEqual(mean(values), mean(known.values()), delta=.1)
    self.assertEqual(list(grammar.coined(10).items()),
                     list(words.items())[:10])  # more words change none

  def test_zipf(self):
    np.testing.assert_allclose(grammar.zipf(3, 2.), [1, 1.25, 1.25 + 1 / 9])

  def test_tables(self):
    coder = tokenizer.Tokenizer.word_level(['a', 'b', 'c'])
    b = coder.encode(['b'])[0][0]
    np.testing.assert_array_equal(
        grammar.table(coder, {'b': 2.}, -1.),
        [2. if i == b else -1. for i in range(coder.vocab_size)])
    self.assertEqual(np.flatnonzero(grammar.members(coder, ['b'])), b)


class CorruptTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.world = reviews.Reviews()
    prompts, texts = self.world.write(600, 0)
    rows = self.world.tokenizer.encode_rows(
        prompts, texts, max_prompt_length=8, max_response_length=24)
    self.tokens, self.mask = rows.tokens, rows.mask
    self.out = grammar.corrupt(self.world.tokenizer, self.tokens, self.mask, 5)

  def test_only_responses(self):
    tokens, mask = self.out
    self.assertEqual((tokens.shape, tokens.dtype),
                     (self.tokens.shape, self.tokens.dtype))
    self.assertEqual(mask.dtype, bool)
    self.assertFalse((mask & ~self.mask).any())
    outside = ~self.mask
    np.testing.assert_array_equal(tokens[outside], self.tokens[outside])
    self.assertTrue(mask.any(axis=1).all())

  def test_all_three_kinds(self):
    tokens, mask = self.out
    cut = mask.sum(axis=1) < self.mask.sum(axis=1)
    changed = (tokens != self.tokens).any(axis=1) & ~cut
    self.assertBetween(cut.mean(), .25, .4)
    self.assertBetween(changed.mean(), .4, .7)
    eos = self.world.tokenizer.eos_id
    self.assertFalse((mask & (tokens == eos))[cut].any())
    self.assertTrue((tokens[cut][self.mask[cut] & ~mask[cut]]
                     == self.world.tokenizer.pad_id).all())
    # A cut leaves no gap: the mask stays one run.
    self.assertTrue((np.abs(np.diff(mask.astype(int))).sum(axis=1) <= 2).all())
    # An echo repeats what stands at most three tokens before it.
    echo = [any((row[t] == old[t - k]) and (row[t] != old[t])
                for t in range(11, 32) for k in (1, 2, 3))
            for row, old in zip(tokens[changed], self.tokens[changed])]
    self.assertBetween(np.mean(echo), .3, .9)
    # And nothing of the prompt, which ends in ':'.
    colon = self.world.tokenizer.encode([':'])[0][0]
    self.assertLess((mask & (tokens == colon)).any(axis=1).mean(), .03)

  def test_seeds(self):
    again = grammar.corrupt(self.world.tokenizer, self.tokens, self.mask, 5)
    other = grammar.corrupt(self.world.tokenizer, self.tokens, self.mask, 6)
    np.testing.assert_array_equal(again[0], self.out[0])
    self.assertTrue((other[0] != self.out[0]).any())

  def test_damage_costs(self):
    clean = self.world.rule(self.tokens, self.mask).mean()
    self.assertLess(self.world.rule(*self.out).mean(), clean - 1)


if __name__ == '__main__':
  absltest.main()
