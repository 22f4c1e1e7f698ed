"""Tests for rlhf_jax.stages.logged, on a world that nothing has trained."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import scipy.special
import worlds

from rlhf_jax import errors
from rlhf_jax.data import load as load_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import log_rows
from rlhf_jax.stages import logged
from rlhf_jax.storage import files

PAIRS, HELD_OUT = worlds.NUM_PAIRS, 4
UPSTREAM = dict(reference='sft', gold='gold', pairs='pairs')
NODES = dict(good=dict(kind='gold', weight=2., scale=.5, squash='sigmoid'),
             short=dict(kind='length', target=20))


def run(*, label_noise=.25, seed=0, upstream=None, **node):
  """The arrays and the result of the stage."""
  context = worlds.Context(worlds.untrained())
  result = logged.run(
      context, seed=seed, data=worlds.DATA, upstream=upstream or UPSTREAM,
      label_noise=label_noise, pool={}, node=dict(
          source='pairs', num_validation=HELD_OUT, components=NODES) | node)
  return files.load_arrays(context.directory / 'logged.npz'), result


@functools.cache
def usual():
  return run()


def run_on_log(corpus):
  """Without a gold model: a file speaks for itself."""
  of = worlds.Context.result_of
  with (mock.patch.object(load_lib, 'load', return_value=corpus),
        mock.patch.object(worlds.Context, 'result_of', lambda context, name: (
            {'corpus': corpus.fingerprint()} if name == 'sft'
            else of(context, name)))):
    return run(source='corpus', label_noise=0., num_validation=2,
               upstream={'reference': 'sft'}, components=dict(votes=dict(
                   kind='file', column='votes', weight=.5)))


class PairsTest(parameterized.TestCase):

  def test_all_arrays_are_in_the_order_of_the_log(self):
    arrays, result = usual()
    log, at, _ = log_rows.load(
        artifacts.World(worlds.Context(worlds.untrained()), worlds.DATA, 0,
                        UPSTREAM), 0, 'pairs', .25, HELD_OUT)
    np.testing.assert_array_equal(arrays['example'], at)
    # The first pairs of the stage are those for validation, in their order.
    np.testing.assert_array_equal(at[-HELD_OUT:], np.arange(HELD_OUT))
    for name in ('tokens', 'mask', 'group'):
      np.testing.assert_array_equal(arrays[name], getattr(log, name)[at])
    self.assertEqual(result['flipped'], .25)
    self.assertEqual(result['groups'], ['chosen', 'rejected'])

  def test_scores_are_the_weighted_sum_of_the_parts(self):
    arrays, result = usual()
    scored = artifacts.restore_rewards(worlds.untrained() / 'gold').scores(
        arrays['tokens'], arrays['mask'])[0]
    raw = (scored - .1) / .7  # in deviations of the samples of pairs
    good = scipy.special.expit(raw / .5)
    eos = worlds.corpus().tokenizer.eos_id
    words = (arrays['mask'] & (arrays['tokens'] != eos)).sum(axis=-1)
    np.testing.assert_allclose(arrays['value_good'], good, rtol=1e-5)
    np.testing.assert_allclose(arrays['value_short'], words / 20, rtol=1e-6)
    np.testing.assert_allclose(
        arrays['scores'], 2 * good + words / 20, rtol=1e-5)
    np.testing.assert_allclose(
        arrays['raw_scores'], 2 * raw + words, rtol=1e-5)
    self.assertEqual(result['upper'], 3)

  def test_what_is_said_of_the_training_examples(self):
    arrays, result = usual()
    at = slice(PAIRS - HELD_OUT)
    first, second = arrays['scores'][at].T
    self.assertAlmostEqual(result['agreement'], np.mean(first > second))
    for name in NODES:
      self.assertAlmostEqual(
          result[f'mean_{name}'], arrays[f'value_{name}'][at].mean(), 6)
    self.assertAlmostEqual(
        result['score_mean'], arrays['scores'][at].mean(), 6)
    ended = (arrays['mask'] & (
        arrays['tokens'] == worlds.corpus().tokenizer.eos_id)).any(axis=-1)[at]
    self.assertAlmostEqual(result['unfinished'], 1 - ended.mean())
    self.assertBetween(result['unfinished'], .5, .99)
    self.assertEqual(result['responses'], 2 * PAIRS)
    self.assertEqual((result['examples'], result['num_validation']),
                     (PAIRS, HELD_OUT))

  @parameterized.parameters(
      (dict(source='file'), "source is 'file'; there are pairs, corpus"),
      (dict(num_validation=24), 'num_validation is 24, and there are 24'))
  def test_what_does_not_fit(self, changes, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      run(**changes)


class CorpusTest(parameterized.TestCase):

  def test_log_in_another_order(self):
    corpus = worlds.logged_corpus()
    arrays, result = run_on_log(corpus)
    at = arrays['example']
    np.testing.assert_array_equal(np.sort(at), range(6))
    for name in ('tokens', 'mask', 'group'):
      np.testing.assert_array_equal(
          arrays[name], getattr(corpus.log, name)[at])
    # A missing response scores 0, whatever the file has there.
    votes = np.nan_to_num(corpus.log.scores['votes'][at])
    np.testing.assert_array_equal(arrays['value_votes'], votes)
    np.testing.assert_array_equal(arrays['scores'], votes / 2)
    self.assertEqual(result['groups'], ['up', 'down'])
    self.assertEqual(result['responses'], 16)
    self.assertEqual(result['flipped'], 0)
    self.assertEqual(result['agreement'], 0)  # the file has the best last
    left = corpus.log.scores['votes'][at[:4]]
    self.assertAlmostEqual(result['mean_votes'], np.nanmean(left), 5)
    self.assertEqual(result['upper'], np.inf)

  def test_only_two_that_are_there_agree_or_not(self):
    votes = np.float32([[3, 2, 1], [5, 1, 9], [2, 2, 1], [9, 0, 3],
                        [9, 9, 9], [9, 9, 9]])
    arrays, result = run_on_log(worlds.logged_corpus(scores={'votes': votes}))
    higher = {0: (3, 3), 1: (1, 1), 2: (2, 3), 3: (2, 3), 4: (0, 1), 5: (0, 3)}
    # Of example 1 the third is missing, of example 4 the first.
    counts = np.sum([higher[i] for i in arrays['example'][:4]], axis=0)
    self.assertAlmostEqual(result['agreement'], counts[0] / counts[1])


if __name__ == '__main__':
  absltest.main()
