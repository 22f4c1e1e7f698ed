"""Tests for rlhf_jax.pipeline.gold_rows: what the gold model learns from."""

import collections
import functools
import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import voted
import worlds

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax.data import grammar
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import gold_rows


def split(corpus, seed, held_out):
  return gold_rows.split(
      types.SimpleNamespace(corpus=corpus), seed, held_out, {})


def joined(parts):
  """The rows of both parts, without the axis of responses."""
  return jax.tree.map(lambda *x: np.concatenate(x)[:, 0],
                      parts.training, parts.validation)


def texts(tokens, mask):
  """How often each text occurs."""
  return collections.Counter(
      row.tobytes() + at.tobytes() for row, at in zip(tokens, mask))


class RuleTest(absltest.TestCase):

  @functools.cached_property
  def world(self):
    return artifacts.World(worlds.Context(worlds.untrained()), worlds.DATA, 0,
                           {'reference': 'sft'})

  def split(self, seed=0, held_out=20):
    return gold_rows.split(self.world, seed, held_out, dict(temperature=1.))

  def test_clean_damaged_and_sampled_texts(self):
    parts, corpus = self.split(), self.world.corpus
    self.assertEqual(parts.objective, 'value_regression')
    self.assertEqual(parts.scale, {})
    self.assertLen(parts.validation.tokens, 20)
    rows = joined(parts)
    clean = (corpus.demonstrations.tokens[:, 0],
             corpus.demonstrations.mask[:, 0])
    damaged = grammar.corrupt(
        corpus.tokenizer, *clean, seed=streams.number(0, 'gold', 'damage'))
    count = worlds.DATA['num_demonstrations']
    self.assertLen(rows.tokens, 3 * count)
    left = texts(rows.tokens, rows.mask)
    for part in (clean, damaged):
      expected = texts(*part)
      self.assertLessEqual(expected, left)
      left = left - expected
    # The others are eight responses to each of the first pair prompts.
    sampled = [i for i, text in enumerate(zip(rows.tokens, rows.mask))
               if text[0].tobytes() + text[1].tobytes() in left]
    self.assertLen(sampled, count)
    prompts = collections.Counter(
        row[:8].tobytes() for row in rows.tokens[sampled])
    self.assertEqual(prompts, collections.Counter({
        row[:8].tobytes(): gold_rows.SAMPLES
        for row in corpus.pair_prompts.tokens[:count // gold_rows.SAMPLES]}))

  def test_targets_are_the_rule_in_deviations(self):
    rows = joined(self.split())
    rule = self.world.corpus.world.rule(rows.tokens, rows.mask)
    np.testing.assert_allclose(
        rows.targets, (rule - rule.mean()) / rule.std(), atol=1e-5)
    self.assertEqual(rows.targets.dtype, np.float32)

  def test_another_seed_holds_out_others(self):
    held = lambda seed: self.split(seed).validation.tokens.tolist()
    self.assertEqual(held(0), held(0))
    self.assertNotEqual(held(0), held(1))


class LogTest(parameterized.TestCase):

  def test_by_hand(self):
    """Of four examples: 1 has a missing response, 2 and 3 one without votes."""
    log = voted.log(4)
    at = [(0, 0), (0, 1), (1, 0), (2, 1), (3, 0)]
    self.assertEqual(list(zip(*np.nonzero(np.isfinite(
        log.scores['votes'])))), at)
    log.scores['votes'][tuple(zip(*at))] = [10, 20, 60, 30, 30]
    # Mean 30, squares 400, 100, 900, 0, 0: variance 280.
    parts = split(voted.corpus(log), 0, 1)
    self.assertEqual(parts.objective, 'value_regression')
    np.testing.assert_allclose(parts.scale['target_mean'], 30)
    np.testing.assert_allclose(parts.scale['target_std'], 280**.5)
    rows = joined(parts)
    self.assertEqual(rows.targets.dtype, np.float32)
    expected = dict(zip(at, np.array([-20, -10, 30, 0, 0]) / 280**.5))
    targets = {}
    for tokens, mask, target in zip(rows.tokens, rows.mask, rows.targets):
      [where] = [i for i in np.ndindex(4, voted.K)
                 if (log.tokens[i] == tokens).all()
                 and (log.mask[i] == mask).all()]
      targets[where] = target
    self.assertEqual(targets.keys(), expected.keys())
    for where, value in expected.items():
      np.testing.assert_allclose(targets[where], value, atol=1e-6)

  @parameterized.parameters(1, 7, 30)
  def test_examples_are_held_out_whole(self, held_out):
    log = voted.log(40)  # each with a prompt of its own
    corpus = voted.corpus(log)
    parts = split(corpus, 3, held_out)
    training, held = (x.tokens[:, 0, 0].tolist()
                      for x in (parts.training, parts.validation))
    self.assertBetween(len(held), held_out, held_out + voted.K - 1)
    self.assertTrue(set(training).isdisjoint(held))
    self.assertLen(training + held, int(np.isfinite(
        log.scores['votes']).sum()))
    other = split(corpus, 4, held_out).validation.tokens[:, 0, 0]
    self.assertNotEqual(held, other.tolist())

  def test_refuses_what_says_nothing(self):
    with self.assertRaisesRegex(errors.ConfigError,
                                "'upvotes'; the log has constant, votes"):
      split(voted.corpus(voted.log(4), 'upvotes'), 0, 1)
    with self.assertRaisesRegex(
        errors.DataError, "the 5 .* have 'constant' do not differ in it"):
      split(voted.corpus(voted.log(4), 'constant'), 0, 1)


class PreferencesTest(absltest.TestCase):

  def test_pairs_where_no_score_is_asked_for(self):
    corpus = voted.corpus(voted.log(40), target=None)
    parts = split(corpus, 0, 12)
    self.assertEqual((parts.objective, parts.scale), ('bradley_terry', {}))
    self.assertLen(parts.validation.tokens, 12)
    pairs = lambda rows: texts(rows.tokens, rows.mask)
    self.assertEqual(pairs(parts.training) + pairs(parts.validation),
                     pairs(corpus.preferences))
    self.assertNotEqual(pairs(parts.validation),
                        pairs(jax.tree.map(lambda x: x[:12],
                                           corpus.preferences)))
    self.assertNotEqual(pairs(parts.validation),
                        pairs(split(corpus, 1, 12).validation))


if __name__ == '__main__':
  absltest.main()
