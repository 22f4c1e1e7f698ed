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


class ReadTest(absltest.TestCase):
  """Two rows: 'good thing : not good . very' and ': good very . good'."""

  def setUp(self):
    super().setUp()
    self.coder = tokenizer.Tokenizer.word_level(
        [':', '.', 'good', 'not', 'very', 'thing'])
    rows = self.coder.encode_rows(
        ['good thing :', ':'], ['not good . very', 'good very . good'],
        max_prompt_length=4, max_response_length=5)
    self.rows = rows.tokens, rows.mask
    self.things = grammar.members(self.coder, ['thing'])

  def test_word_by_word(self):
    stops = (*self.coder.encode(['.'])[0], self.coder.eos_id)
    steps = list(grammar.read(
        *self.rows, grammar.table(self.coder, {'good': 2.}, 0.),
        grammar.table(self.coder, {'not': -.5, 'very': 3.}, 1.), stops))
    tokens, here, valences, dangles = (np.stack(x, axis=1)
                                       for x in zip(*steps))
    np.testing.assert_array_equal(tokens, self.rows[0])
    np.testing.assert_array_equal(here, self.rows[1])
    of_response = lambda x: [list(row[mask]) for row, mask in zip(x, here)]
    self.assertEqual(of_response(valences),
                     [[0, -1, 0, 0, 0], [2, 0, 0, 2, 0]])
    self.assertEqual(of_response(dangles),
                     [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]])
    self.assertFalse(valences[~here].any())  # a prompt's 'good' is not said

  def test_what_a_prompt_names_and_a_response_says(self):
    prompt = grammar.prompts(*self.rows)
    self.assertEqual([self.coder.decode(row[row > 0]) for row in prompt],
                     ['good thing :', ':'])
    thing = grammar.named(prompt, self.things)
    self.assertEqual(list(thing), [*self.coder.encode(['thing'])[0], -1])
    good, very = (np.repeat(self.coder.encode([word])[0], 2)
                  for word in ('good', 'very'))
    says = lambda word: list(grammar.says(*self.rows, word))
    self.assertEqual([says(thing), says(good), says(very)],
                     [[False, False], [True, True], [True, True]])


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
