"""Tests for rlhf_jax.stages.preferences and .loaded_rewards: what people have
labelled, and what was trained elsewhere."""

import dataclasses
import itertools
from unittest import mock

from absl.testing import absltest
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.stages import loaded_rewards
from rlhf_jax.stages import preferences
from rlhf_jax.storage import files


def corpus():
  """Eight pairs, two to each of four prompts, none of them neighbours."""
  rows = worlds.corpus().demonstrations
  at = np.arange(16).reshape(8, 2)
  tokens, mask = rows.tokens[at, 0].copy(), rows.mask[at, 0]
  start = mask.argmax(axis=-1)
  for pair in range(8):
    for side in range(2):
      tokens[pair, side, :start[pair, side]] = 3 + pair % 4
  width = start.max()
  even = np.arange(tokens.shape[-1]) >= width  # prompts of one length
  tokens[..., :width] = np.where(
      np.arange(width) >= 0, (3 + np.arange(8) % 4)[:, None, None], 0)
  return dataclasses.replace(worlds.corpus(), preferences=types.Batch(
      tokens=tokens, mask=mask & even))


class PreferencesTest(absltest.TestCase):

  def run_stage(self, one, seed=0):
    context = worlds.Context(worlds.folder())
    with mock.patch.object(load_lib, 'load', lambda *unused: one):
      result = preferences.run(context, seed=seed, data={}, upstream={})
    return files.load_arrays(context.directory / 'pairs.npz'), result

  def test_all_pairs_chosen_first(self):
    one = corpus()
    arrays, result = self.run_stage(one)
    key = lambda rows: sorted(row.tobytes() for row in rows)
    self.assertEqual(key(arrays['tokens']), key(one.preferences.tokens))
    self.assertEqual(result['pairs'], 8)
    np.testing.assert_array_equal(arrays['gold_scores'], [[1, 0]] * 8)
    # Tokens and mask of one pair have moved together.
    for tokens, mask in zip(arrays['tokens'], arrays['mask']):
      at, = np.flatnonzero(
          (one.preferences.tokens == tokens).all(axis=(1, 2)))
      np.testing.assert_array_equal(mask, one.preferences.mask[at])

  def test_pairs_of_a_prompt_are_neighbours(self):
    """So that those held out share at most one prompt with the others."""
    orders = set()
    for seed in range(4):
      prompts = self.run_stage(corpus(), seed)[0]['tokens'][:, 0, 0].tolist()
      changes = sum(a != b for a, b in itertools.pairwise(prompts))
      self.assertEqual(changes, 3, prompts)
      orders.add(tuple(prompts))
    self.assertGreater(len(orders), 1)

  def test_no_pairs(self):
    with self.assertRaisesRegex(errors.ConfigError, 'give pairs'):
      self.run_stage(worlds.corpus())


class LoadedTest(absltest.TestCase):

  def run_stage(self, directory, **upstream):
    context = worlds.Context(worlds.untrained())
    result = loaded_rewards.run(
        context, upstream=dict(reference='sft') | upstream,
        rewards=str(directory))
    return artifacts.restore_rewards(context.directory), result

  def test_they_are_the_same(self):
    source = worlds.untrained() / 'proxies'
    copied, result = self.run_stage(source)
    original = artifacts.restore_rewards(source)
    for one, other in zip(*map(jax.tree.leaves, (copied.params,
                                                 original.params))):
      np.testing.assert_array_equal(one, other)
    for name in ('mean', 'std'):
      np.testing.assert_array_equal(copied.scale[name], original.scale[name])
    self.assertEqual(result, {'members': worlds.NUM_MEMBERS,
                              'standardized': True})

  def test_other_tokens(self):
    coder = tokenizer.Tokenizer.word_level(['zebra', 'yak', 'xerus'])
    source = worlds.folder()
    worlds.copy(worlds.untrained() / 'proxies', source)
    coder.save(source / 'tokenizer.json')
    with self.assertRaisesRegex(
        errors.ConfigError, 'has another id for the token .*one tokenizer'):
      self.run_stage(source)

  def test_no_reward_models(self):
    with self.assertRaisesRegex(errors.CheckpointError, 'holds a policy model'):
      self.run_stage(worlds.untrained() / 'sft')
    with self.assertRaisesRegex(errors.CheckpointError, 'no such directory'):
      self.run_stage(worlds.folder() / 'none')


if __name__ == '__main__':
  absltest.main()
