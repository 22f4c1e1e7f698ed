"""Tests for rlhf_jax.data.small_worlds."""

import functools
import random
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import streams
from rlhf_jax.configs import base
from rlhf_jax.data import reviews
from rlhf_jax.data import small_worlds

FIELDS = dict(num_demonstrations=40, num_pair_prompts=30, num_eval_prompts=5,
              max_response_length=24, num_adjectives=40)
# Zhu et al. have seeds 0 and 1000; neighbours met before streams had names.
SEEDS = (0, 1, 2, 3, 10, 100, 1000, 1001)


class ReviewsTest(parameterized.TestCase):

  def test_contents(self):
    corpus = small_worlds.write('reviews', seed=3, **FIELDS)
    decode = corpus.tokenizer.decode
    self.assertEqual(corpus.demonstrations.tokens.shape, (40, 1, 32))
    self.assertEqual(corpus.pair_prompts.tokens.shape, (30, 8))
    self.assertEqual(corpus.eval_prompts.tokens.shape, (5, 8))
    self.assertIsNone(corpus.preferences)
    self.assertIsNone(corpus.format)
    # The seed is of the texts; the three parts are written apart.
    world = reviews.Reviews(num_adjectives=40)
    write = lambda part, count: world.write(
        count, streams.number(3, 'reviews', part))
    for part, tokens in (('demonstrations', corpus.demonstrations.tokens[:, 0]),
                         ('pairs', corpus.pair_prompts.tokens),
                         ('evaluation', corpus.eval_prompts.tokens)):
      self.assertEqual([decode(row[:8].tolist()) for row in tokens],
                       write(part, len(tokens))[0])
    held_out = corpus.eval_demonstrations
    prompts, texts = write('evaluation', 5)
    self.assertEqual(
        [decode(tokens[mask]) for tokens, mask in zip(
            held_out.tokens, held_out.mask)],
        [' '.join(text.split()[:24]) for text in texts])
    self.assertEqual(corpus.eval_splits, tuple(reviews.split_of(prompts)))
    ended = (corpus.demonstrations.mask & (
        corpus.demonstrations.tokens == corpus.tokenizer.eos_id)).any(axis=-1)
    self.assertAlmostEqual(
        corpus.summary['unfinished_demonstrations'], 1 - ended.mean())

  def test_an_example(self):
    corpus = small_worlds.write('reviews', seed=3, **FIELDS)
    text = corpus.example()
    self.assertRegex(text, r"^'<bos> review the \w+ and its \w+ : .*'$")
    self.assertEqual(text.endswith("<eos>'"), bool(
        (corpus.demonstrations.tokens[0] == corpus.tokenizer.eos_id).any()))

  def test_parts_and_seeds_share_no_stream(self):
    with mock.patch.object(random, 'Random', wraps=random.Random) as draw:
      for seed in SEEDS:
        small_worlds.write('reviews', seed=seed, **FIELDS)
    # The adjectives are in an order of their own, for all seeds.
    drawn = [call.args[0] for call in draw.call_args_list if call.args != (0,)]
    self.assertLen(drawn, 3 * len(SEEDS))
    self.assertLen(set(drawn), 3 * len(SEEDS))
    # Nor do their texts: no two begin alike.
    starts = {tuple(part.tokens.reshape(-1)[:200].tolist())
              for seed in SEEDS
              for corpus in [small_worlds.write('reviews', seed=seed, **FIELDS)]
              for part in (corpus.demonstrations, corpus.pair_prompts)}
    self.assertLen(starts, 2 * len(SEEDS))

  def test_the_seed_decides_all(self):
    first, again, other = (small_worlds.write('reviews', seed=seed, **FIELDS)
                           for seed in (1, 1, 2))
    self.assertEqual(first.fingerprint(), again.fingerprint())
    self.assertNotEqual(first.fingerprint(), other.fingerprint())
    self.assertEqual(first.world.words, other.world.words)

  def test_lengths(self):
    corpus = small_worlds.write('reviews', seed=0, **FIELDS | dict(
        max_response_length=3, max_prompt_length=5))
    self.assertEqual(corpus.demonstrations.tokens.shape, (40, 1, 8))
    self.assertEqual(corpus.max_response_length, 3)
    self.assertEqual(corpus.summary['unfinished_demonstrations'], 1)
    np.testing.assert_array_equal(corpus.demonstrations.mask.sum(axis=-1), 3)

  @parameterized.parameters(
      (dict(zip=1.), TypeError, 'zip'),
      (dict(num_demonstrations=None), TypeError, 'num_demonstrations must be'),
      (dict(typo_rate=2.), ValueError, 'typo_rate must be in'),
      (dict(sentences=[]), ValueError, 'sentences'))
  def test_check_names_the_field(self, change, error, message):
    small_worlds.check('reviews', FIELDS | dict(
        name='reviews', zipf=None, max_prompt_length=None))
    for make in (functools.partial(small_worlds.check, 'reviews'),
                 lambda node: small_worlds.write('reviews', seed=0, **node)):
      with self.assertRaisesRegex(error, message):
        make(FIELDS | change)

class NamesTest(absltest.TestCase):

  def test_configs_have_the_same_worlds(self):
    self.assertEqual(small_worlds.NAMES, base.WORLDS)


class LongTailTest(absltest.TestCase):

  def test_evaluation_prompts_are_held_out(self):
    corpus = small_worlds.write('long_tail', seed=0, **FIELDS | dict(
        num_eval_prompts=200, max_response_length=48))
    decode = lambda rows: {
        tuple(corpus.tokenizer.decode(row.tolist()).split()[2:6:3])
        for row in rows}
    evaluated = decode(corpus.eval_prompts.tokens)
    self.assertLen(next(iter(evaluated)), 2)  # thing and aspect
    self.assertEmpty(evaluated & (
        decode(corpus.pair_prompts.tokens)
        | decode(corpus.demonstrations.tokens[:, 0, :9])))
    self.assertEqual(corpus.pair_prompts.tokens.shape, (30, 9))
    self.assertTrue(all(corpus.pair_prompts.lengths == 9))
    self.assertEqual({split.split()[0] for split in corpus.eval_splits},
                     {'praise', 'pan', 'weigh'})

  def test_check_names_the_field(self):
    with self.assertRaisesRegex(ValueError, 'tail must be > 0'):
      small_worlds.check('long_tail', FIELDS | dict(tail=0))


if __name__ == '__main__':
  absltest.main()
