"""Tests for rlhf_jax.pipeline.prompt_values: what a prompt is worth."""

import dataclasses
import functools
import math
import types as python_types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.models import heads
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import prompt_values

HEAD = dict(num_heads=2, max_value=2.)


@functools.cache
def parts():
  """A reference and a head on it."""
  config, params = artifacts.restore_policy(worlds.untrained() / 'sft')
  return config, {'reference': params, 'head': heads.init_prompt_value(
      jax.random.key(3), config.hidden_size, num_heads=2)}


def prompts(count=4):
  tokens = np.random.default_rng(0).integers(
      3, 30, (count, 8)).astype(np.int32)
  return tokens, np.resize([8, 5, 1, 3], count).astype(np.int32)


def values(tokens, lengths, num_devices=1, stop=None):
  config, params = parts()
  context = worlds.Context(
      worlds.untrained(), num_devices=num_devices, stop=stop)
  with context.devices():
    return prompt_values.all_values(
        context, config, params, corpus_lib.Prompts(tokens, lengths), **HEAD)


class ValuesTest(parameterized.TestCase):

  def test_width_of_the_padding_changes_nothing(self):
    tokens, lengths = prompts()
    value = lambda tokens: values(tokens, lengths)
    wide = np.pad(tokens, [(0, 0), (0, 5)], constant_values=7)
    np.testing.assert_allclose(value(wide), value(tokens), rtol=2e-5)
    for row, length in enumerate(lengths):
      other = tokens.copy()
      other[row, length:] = 9
      other[row, length - 1] = 31
      changed = np.abs(value(other) - value(tokens)) > 1e-6
      self.assertEqual(np.flatnonzero(changed).tolist(), [row])

  def test_training_and_advantages_have_one_value(self):
    config, params = parts()
    rows = worlds.corpus().demonstrations
    shape = lambda x: x[:8].reshape(4, 2, -1).copy()
    tokens, mask = shape(rows.tokens), shape(rows.mask)
    tokens[:, 1, :8] = tokens[:, 0, :8]  # one prompt, as it is sampled
    forward = jax.jit(functools.partial(
        prompt_values.forward, config, width=8, **HEAD))
    scores = forward(params, types.Batch(tokens, mask)).scores
    # With another rate of dropout, which no one asks for.
    config = dataclasses.replace(config, dropout=.5)
    each = prompt_values.all_values(
        worlds.Context(worlds.untrained()), config, params,
        prompt_values.prompts_of(tokens, mask, 0), **HEAD)
    np.testing.assert_allclose(scores, np.stack([each] * 2, axis=1), rtol=1e-5)
    self.assertGreater(np.ptp(each), 1e-3)

  def test_devices_change_nothing(self):
    one, eight = (values(*prompts(11), num_devices=n) for n in (1, 8))
    self.assertEqual(one.shape, (11,))
    np.testing.assert_allclose(eight, one, rtol=1e-5)

  def test_asks_whether_to_stop(self):
    with self.assertRaisesRegex(errors.Interrupted, 'the end of training of'):
      values(*prompts(), stop=worlds.Stop(-1))


class PromptsTest(parameterized.TestCase):

  def test_of_any_length(self):
    tokens = np.array([[[9, 9, 9, 9, 9], [1, 4, 5, 6, 9]],
                       [[1, 7, 8, 2, 9], [9, 9, 9, 9, 9]]])
    mask = np.zeros((2, 2, 5), bool)
    mask[0, 1, 3] = mask[1, 0, 1:4] = True
    cut = prompt_values.prompts_of(tokens, mask, 0)
    np.testing.assert_array_equal(cut.tokens, [[1, 4, 5], [1, 0, 0]])
    np.testing.assert_array_equal(cut.lengths, [3, 1])
    for array in cut.tokens, cut.lengths:
      self.assertEqual(array.dtype, np.int32)

  def test_all_rows_of_a_prompt_are_held_out_together(self):
    tokens = np.array([[1, 2], [3, 4], [1, 2], [5, 6], [7, 8], [3, 4]])
    rows = corpus_lib.Prompts(tokens, np.full(6, 2))
    choices = set()
    for seed in range(8):
      apart = prompt_values.held_out(rows, .5, seed)
      self.assertLen(np.unique(tokens[apart], axis=0), 2)
      self.assertLen(np.unique(tokens[~apart], axis=0), 2)
      self.assertEqual((apart[0], apart[1]), (apart[2], apart[5]))
      choices.add(tuple(apart))
      np.testing.assert_array_equal(
          prompt_values.held_out(rows, .5, seed), apart)
    self.assertGreater(len(choices), 2)
    self.assertFalse(prompt_values.held_out(rows, 0., 0).any())

  @parameterized.parameters(1., -.1, .9)
  def test_a_share_that_leaves_nothing(self, share):
    rows = corpus_lib.Prompts(np.array([[1], [2], [1]]), np.ones(3))
    with self.assertRaisesRegex(
        errors.ConfigError, f'held_out is {share} of 2 different validation '
        'prompts') as raised:
      prompt_values.held_out(rows, share, 0)
    self.assertNotIn('\n', str(raised.exception))


class ReferencesTest(absltest.TestCase):

  def world(self, source, answers):
    return python_types.SimpleNamespace(
        corpus=worlds.logged_corpus(references=answers),
        log=artifacts.Log({}, ['up'], source, 3))

  def test_right_answers_of_examples(self):
    answers = tuple(f'answer {i}' for i in range(6))
    self.assertEqual(
        prompt_values.references(self.world('corpus', answers), [4, 0, 4]),
        ['answer 4', 'answer 0', 'answer 4'])
    self.assertIsNone(
        prompt_values.references(self.world('corpus', None), [4]))

  def test_pairs_have_none(self):
    # Though the corpus has a log, whose rows are others.
    self.assertIsNone(prompt_values.references(
        self.world('pairs', tuple('abcdef')), [0]))


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(a=dict(kind='gold', squash='sigmoid'), b=dict(kind='proxy')),
       r"component 'b' is in \[-inf, inf\]"),
      (dict(a=dict(kind='gold', squash='sigmoid', weight=-1.)),
       r"component 'a' is in \[-1, 0\]"),
      (dict(a=dict(kind='vader'), b=dict(kind='function', function='m:f')),
       r"component 'b' is in \[-inf, inf\]"),
      (dict(a=dict(kind='vader'), b=dict(kind='function', function='m:f',
                                         range=(-3, 0))),
       r"'b' is in \[-3, 0\] and the sum of all in \[-3, 1\]"),
      (dict(a=dict(kind='gold', range=(0, math.nextafter(0, 1))),
            b=dict(kind='file', column='votes')), "component 'b' is in"),
      (dict(a=dict(kind='vader', weight=0.)), "component 'a' is in"))
  def test_rewards_without_a_range(self, nodes, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as raised:
      prompt_values.check(nodes)
    self.assertNotIn('\n', str(raised.exception))

  @parameterized.parameters(
      dict(a=dict(kind='vader'), b=dict(kind='gold', squash='sigmoid',
                                        weight=2.)),
      dict(a=dict(kind='gold', range=(0, 5))),
      dict(a=dict(kind='vader'), b=dict(kind='proxy', weight=0)),
      dict(a=dict(kind='function', function='m:f', range=(1, 2))),
      dict(a=dict(kind='gold', range=(1, 3)),
           b=dict(kind='vader', weight=-1.)))
  def test_rewards_with_a_range(self, **nodes):
    prompt_values.check(nodes)


if __name__ == '__main__':
  absltest.main()
