"""Tests for rlhf_jax.pipeline.labelled_pairs, on pairs that number themselves.
"""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

from rlhf_jax.pipeline import labelled_pairs

SIZES = {'first': 40, 'second': 24}  # pairs of each stage


def pairs(stage):
  """Of which a response has the number of its pair and its place in it."""
  count, offset = SIZES[stage], 100 if stage == 'second' else 0
  tokens = np.stack(np.broadcast_arrays(
      (offset + np.arange(count))[:, None], np.arange(2)), axis=-1)
  scores = np.random.default_rng(count).normal(size=(count, 2))
  return dict(tokens=tokens.astype(np.int32),
              mask=np.ones(tokens.shape, bool),
              gold_scores=scores.astype(np.float32))


def stages(workdir):
  for name in SIZES:
    worlds.save(workdir, name, {}, pairs=pairs(name))


def load(names, noise=.25, held_out=8, num_pairs=None, seed=0):
  context = worlds.Context(worlds.once('numbered_pairs', stages))
  return labelled_pairs.load(context, names, seed, noise, held_out=held_out,
                             num_pairs=num_pairs)


def numbers(rows):
  """Of the pairs, in their order; each has both of its responses."""
  of_pair, place = np.moveaxis(rows.tokens, -1, 0)
  np.testing.assert_array_equal(of_pair[:, 0], of_pair[:, 1])
  np.testing.assert_array_equal(place.sum(axis=1), 1)
  return of_pair[:, 0].tolist()


def flips(rows):
  """Of each pair, whether the worse response comes first."""
  best = {}
  for name in SIZES:
    arrays = pairs(name)
    best |= dict(zip(arrays['tokens'][:, 0, 0],
                     arrays['gold_scores'].argmax(axis=1)))
  return [bool(place != best[number])
          for number, place in rows.tokens[:, 0]]


class LabelsTest(parameterized.TestCase):

  def test_the_higher_score_is_preferred_and_the_first_on_ties(self):
    scores = np.float32([[1, 2], [2, 1], [3, 3], [-2, -1]])
    labels = labelled_pairs.preferred(scores)
    np.testing.assert_array_equal(labels, [1, 0, 0, 1])
    self.assertEqual(labels.dtype, np.int32)

  @parameterized.parameters((0, 0), (.25, 10), (.3, 12), (1, 40))
  def test_an_exact_share_is_flipped(self, rate, count):
    labels = np.arange(40, dtype=np.int32) % 2
    flipped = labelled_pairs.flip(labels, 0, rate)
    self.assertEqual((flipped != labels).sum(), count)
    self.assertContainsSubset(flipped.tolist(), [0, 1])

  def test_which_is_a_function_of_seed_and_stage(self):
    labels = np.zeros(40, np.int32)
    which = lambda *args: labelled_pairs.flip(labels, *args).tolist()
    self.assertEqual(which(0, .25), which(0, .25, 0))
    self.assertNotEqual(which(0, .25), which(1, .25))
    self.assertNotEqual(which(0, .25), which(0, .25, 1))
    # And not of the labels, so that everyone flips the same.
    np.testing.assert_array_equal(
        labelled_pairs.flip(1 - labels, 0, .25), 1 - np.array(which(0, .25)))

  def test_chosen_first(self):
    arrays = pairs('second')
    arrays['mask'][3, 1] = False
    first = (np.arange(24) % 3 == 0).astype(np.int32)
    rows = labelled_pairs.chosen_first(arrays, first)
    for i, label in enumerate(first):
      for name in ('tokens', 'mask'):
        np.testing.assert_array_equal(
            getattr(rows, name)[i], arrays[name][i][[label, 1 - label]])


class LoadTest(parameterized.TestCase):

  @parameterized.parameters(('first',), (['first'],))
  def test_the_first_are_held_out_with_clean_labels(self, names):
    rows, validation, flipped = load(names)
    self.assertEqual(numbers(validation), list(range(8)))
    self.assertEqual(numbers(rows), list(range(8, 40)))
    self.assertFalse(any(flips(validation)))
    self.assertEqual(sum(flips(rows)), 8)  # a quarter of 32
    self.assertEqual(flipped, .25)

  def test_part_of_the_pairs(self):
    rows, validation, flipped = load('first', num_pairs=16)
    self.assertEqual(numbers(validation), list(range(8)))
    self.assertEqual(numbers(rows), list(range(8, 24)))
    self.assertEqual((sum(flips(rows)), flipped), (4, .25))

  def test_all_pairs_of_several_stages_with_noise_of_their_own(self):
    rows, validation, flipped = load(['first', 'second'])
    self.assertEqual(numbers(validation), list(range(8)))
    self.assertEqual(numbers(rows), [*range(8, 40), *range(100, 124)])
    self.assertEqual(sum(flips(rows)[:32]), 8)
    self.assertEqual(sum(flips(rows)[32:]), 6)
    self.assertEqual(flipped, .25)
    # A label that was given once stays as it is.
    alone, _, _ = load('first')
    np.testing.assert_array_equal(rows.tokens[:32], alone.tokens)
    which = [i for i, flip in enumerate(flips(rows)[32:]) if flip]
    expected = np.flatnonzero(labelled_pairs.flip(
        np.zeros(24, np.int32), 0, .25, 1))
    self.assertEqual(which, expected.tolist())

  def test_part_of_the_pairs_of_several_stages(self):
    rows, _, flipped = load(['first', 'second'], num_pairs=40)
    self.assertEqual(numbers(rows), [*range(8, 40), *range(100, 108)])
    self.assertEqual(sum(flips(rows)[32:]), 2)  # a quarter of 8
    self.assertEqual(flipped, .25)
    rows, _, _ = load(['first', 'second'], num_pairs=16)
    self.assertEqual(numbers(rows), list(range(8, 24)))

  def test_another_seed_flips_others(self):
    one, two = (flips(load('first', seed=seed)[0]) for seed in (0, 1))
    self.assertEqual(sum(one), sum(two))
    self.assertNotEqual(one, two)

  def test_without_noise(self):
    rows, _, flipped = load(['first', 'second'], noise=0)
    self.assertFalse(any(flips(rows)))
    self.assertEqual(flipped, 0)


if __name__ == '__main__':
  absltest.main()
