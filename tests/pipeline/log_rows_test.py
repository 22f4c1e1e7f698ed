"""Tests for rlhf_jax.pipeline.log_rows: a log, its order and its rewards."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import labelled_pairs
from rlhf_jax.pipeline import log_rows
from rlhf_jax.pipeline import rewarding
from rlhf_jax.storage import files

PAIRS, HELD_OUT = worlds.NUM_PAIRS, 4
UPSTREAM = dict(reference='sft', gold='gold', pairs='pairs')


def world(corpus=None, **given):
  there = artifacts.World(worlds.Context(worlds.untrained()), worlds.DATA, 0,
                          UPSTREAM | given)
  there.corpus = corpus or worlds.corpus()
  return there


def load(there=None, seed=0, source='pairs', noise=.25, held_out=HELD_OUT):
  return log_rows.load(there or world(), seed, source, noise, held_out)


class PairsTest(parameterized.TestCase):

  def test_exact_share_is_flipped_and_validation_is_clean(self):
    log, at, flipped = load()
    arrays = files.load_arrays(worlds.untrained() / 'pairs/pairs.npz')
    np.testing.assert_array_equal(np.sort(at), np.arange(PAIRS))
    # The first pairs of the stage, in their order.
    np.testing.assert_array_equal(at[-HELD_OUT:], np.arange(HELD_OUT))
    flips = []
    for example in range(PAIRS):
      tokens = log.tokens[example]
      best = int(arrays['gold_scores'][example].argmax())
      flip = not np.array_equal(tokens[0], arrays['tokens'][example, best])
      first = best ^ flip
      for name in ('tokens', 'mask'):
        np.testing.assert_array_equal(
            getattr(log, name)[example],
            arrays[name][example, [first, 1 - first]])
      flips.append(flip)
    self.assertEqual(sum(flips), 5)  # a quarter of 20
    self.assertFalse(any(flips[:HELD_OUT]))
    self.assertEqual(flipped, .25)
    np.testing.assert_array_equal(log.group, [[0, 1]] * PAIRS)
    self.assertEqual(log.groups, ('chosen', 'rejected'))
    self.assertEmpty(log.scores)

  def test_flips_are_those_of_the_reward_models(self):
    there = world()
    log, _, flipped = load(there)
    rows, validation, share = labelled_pairs.load(
        there.context, 'pairs', 0, .25, held_out=HELD_OUT, num_pairs=None)
    np.testing.assert_array_equal(log.tokens[HELD_OUT:], rows.tokens)
    np.testing.assert_array_equal(log.tokens[:HELD_OUT], validation.tokens)
    self.assertEqual(flipped, share)

  def test_order_is_of_the_seed(self):
    orders = [load(seed=seed)[1].tolist() for seed in (0, 0, 3)]
    self.assertEqual(orders[0], orders[1])
    self.assertNotEqual(orders[0], orders[2])
    self.assertNotEqual(orders[0][:-HELD_OUT], sorted(orders[0][:-HELD_OUT]))


class CorpusTest(parameterized.TestCase):

  def test_the_log_itself_in_a_seeded_order(self):
    corpus = worlds.logged_corpus()
    log, at, flipped = load(
        world(corpus), source='corpus', noise=0., held_out=2)
    self.assertIs(log, corpus.log)
    self.assertEqual(flipped, 0)
    np.testing.assert_array_equal(np.sort(at), range(6))
    self.assertNotEqual(at.tolist(), list(range(6)))
    other = load(world(corpus), 3, 'corpus', 0., 2)[1]
    self.assertNotEqual(at.tolist(), other.tolist())

  @parameterized.parameters(
      (dict(source='file'), "source is 'file'; there are pairs, corpus"),
      (dict(source='corpus', noise=0.), "source is 'corpus', but .* no log"),
      (dict(held_out=24), 'num_validation is 24, and there are 24'),
      (dict(held_out=-1), 'num_validation is -1'))
  def test_what_does_not_fit(self, changes, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as raised:
      load(**changes)
    self.assertNotIn('\n', str(raised.exception))

  @parameterized.parameters(
      (dict(noise=.1, held_out=2), 'label_noise is 0.1'),
      (dict(noise=0., held_out=6), 'num_validation is 6, and there are 6'))
  def test_what_does_not_fit_a_log(self, changes, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      load(world(worlds.logged_corpus()), source='corpus', **changes)

  def test_pairs_that_are_not_there(self):
    with self.assertRaisesRegex(
        errors.ConfigError, "source is 'pairs', and this study has none"):
      load(world(pairs=None))


class ScoreTest(parameterized.TestCase):

  def score(self, corpus, **nodes):
    there = world(corpus)
    with rewarding.bind(there, nodes, {}) as rewards:
      return log_rows.score(rewards, corpus.log, corpus.tokenizer)

  def test_a_column_in_its_own_units_and_missing_responses_are_0(self):
    corpus = worlds.logged_corpus()
    votes = np.nan_to_num(corpus.log.scores['votes'])
    arrays = self.score(
        corpus, votes=dict(kind='file', column='votes', weight=.5))
    np.testing.assert_array_equal(arrays['value_votes'], votes)
    np.testing.assert_array_equal(arrays['scores'], votes / 2)
    np.testing.assert_array_equal(arrays['raw_scores'], votes / 2)
    for values in arrays.values():
      self.assertEqual(values.dtype, np.float32)

  def test_raw_scores_are_those_before_they_are_squashed(self):
    corpus = worlds.logged_corpus()
    votes = np.nan_to_num(corpus.log.scores['votes'])
    arrays = self.score(
        corpus, votes=dict(kind='file', column='votes', squash='clip'),
        brief=dict(kind='length', target=4, weight=-.5))
    present = corpus.log.mask.any(axis=-1)
    # All have at least four words, as EOS is none.
    words = (corpus.log.mask & (
        corpus.log.tokens != corpus.tokenizer.eos_id)).sum(axis=-1)
    self.assertGreater(words[present].min(), 4)
    np.testing.assert_array_equal(
        arrays['scores'], np.minimum(votes, 1) - .5 * present)
    np.testing.assert_allclose(
        arrays['raw_scores'], votes - .5 * words, rtol=1e-6)

  def test_each_response_meets_the_right_answer_of_its_example(self):
    corpus = worlds.logged_corpus()
    texts = tuple(
        corpus.tokenizer.decode(tokens[1][mask[1]], continuation=True)
        for tokens, mask in zip(corpus.log.tokens, corpus.log.mask))
    corpus = worlds.logged_corpus(references=texts)
    arrays = self.score(corpus, right=dict(kind='exact_match'))
    np.testing.assert_array_equal(arrays['value_right'], [[0, 1, 0]] * 6)

  def test_without_columns_models_say_what_a_file_would_have_said(self):
    corpus = dataclasses.replace(
        worlds.logged_corpus(scores={}), log_target='votes')
    node = dict(kind='file', column='votes')
    there = world(corpus)
    arrays = self.score(corpus, votes=node)
    present = corpus.log.mask.any(axis=-1)
    scores = there.column[1].scores(
        corpus.log.tokens[present], corpus.log.mask[present])[0]
    np.testing.assert_allclose(
        arrays['value_votes'][present], scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(arrays['value_votes'][~present], 0)
    self.assertGreater(np.ptp(scores), .01)


class AgreementTest(absltest.TestCase):

  def test_only_two_that_are_there_agree_or_not(self):
    scores = np.float32([[3, 2, 1], [5, 1, 9], [2, 2, 1], [9, 0, 3],
                         [9, 9, 7]])
    present = np.ones((5, 3), bool)
    present[1, 2] = present[4, 0] = False
    #  3 of 3, 1 of 1, 2 of 3 (one is a tie), 2 of 3, 1 of 1.
    self.assertAlmostEqual(
        log_rows.agreement(scores, present), 9 / 11)

  def test_nothing_to_compare(self):
    self.assertTrue(np.isnan(log_rows.agreement(
        np.zeros((4, 1)), np.ones((4, 1), bool))))


if __name__ == '__main__':
  absltest.main()
