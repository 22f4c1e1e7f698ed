"""Tests for rlhf_jax.rewards.components, with numbers made by hand."""

import pathlib
import sys
import tempfile
import textwrap
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import scipy.special
from vaderSentiment import vaderSentiment

from rlhf_jax import errors
from rlhf_jax.data import logged
from rlhf_jax.ops import texts
from rlhf_jax.rewards import components

RESPONSES = ['the red car is good.', 'a dog', 'red dog dog']
PROMPTS = ['which?', 'what?', 'who?']
TOKENS = np.array([[5, 1, 2, 3], [5, 1, 2, 0], [5, 4, 4, 0]], np.int32)
MASK = np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0]], bool)
LENGTH = {'kind': 'length', 'target': 4}
NODES = {'score': {'kind': 'gold', 'weight': 2, 'squash': 'sigmoid'},
         'long': LENGTH, 'watched': {'kind': 'proxy', 'weight': 0},
         'brief': LENGTH | {'weight': -.5, 'target': 5},
         'tone': {'kind': 'vader', 'weight': .1}}
MODULE = """
  def share(prompts, responses):
    return [.1 if 'dog' in text else 0. for text in responses]

  def bad(prompts, responses):
    return [None if 'cat' in text or 'good' in text else 3. for text in
            responses]

  def above(prompts, responses):
    return [0., 1., -1.25]
"""


class Model:
  """Members that score a factor times the sum of a response's tokens.

  The sums are 6, 3 and 8; standardised, 1 is taken off.
  """

  def __init__(self, *factors):
    self.factors = factors

  def scores(self, tokens, mask, *, standardize=True):
    total = np.where(mask, tokens, 0).sum(axis=-1)
    return np.float32([factor * total - standardize
                       for factor in self.factors])


def make(nodes, *, column=None, **kwargs):
  return components.Components(
      nodes, responses=RESPONSES, models=components.Models(
          gold=Model(1), proxy=Model(1, -2, 4), column=column,
          file=column and Model(.5)), **kwargs)


def scored(nodes, column=None, **kwargs):
  with make(nodes, column=column) as rewards:
    return rewards(TOKENS, MASK, PROMPTS, RESPONSES, **kwargs)


class ValuesTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'kind': 'gold'}, [5, 2, 7], [5, 2, 7]),
      ({'kind': 'gold', 'scale': 4}, [5, 2, 7], [1.25, .5, 1.75]),
      ({'kind': 'gold', 'squash': 'sigmoid', 'scale': 2}, [5, 2, 7],
       scipy.special.expit([2.5, 1, 3.5])),
      ({'kind': 'gold', 'squash': 'clip', 'scale': 4}, [5, 2, 7],
       [1, .5, 1]),
      ({'kind': 'gold', 'squash': 'clip', 'range': [3, 6]}, [5, 2, 7],
       [5, 3, 6]),
      ({'kind': 'gold', 'range': (2, 7)}, [5, 2, 7], [5, 2, 7]),
      (LENGTH, [5, 2, 3], [1, .5, .75]),
      ({'kind': 'exact_match'}, [0, 1, 0], [0, 1, 0]))
  def test_by_hand(self, node, raw, values):
    out = scored({'part': node}, references=['', ' a  dog\n', 'red'])
    for scores, expected in ((out.raw, raw), (out.values, values)):
      self.assertEqual(list(scores), ['part'])
      self.assertEqual(scores['part'].dtype, np.float32)
      np.testing.assert_allclose(scores['part'], expected, rtol=1e-6)

  @parameterized.parameters(
      ({'kind': 'mean'}, [6, 3, 8]),  # of factors 1, -2 and 4
      ({'kind': 'worst_case'}, [-12, -6, -16]),
      ({'kind': 'single', 'member': 2}, [24, 12, 32]),
      ({'kind': 'uncertainty_weighted', 'uncertainty_coef': .5},
       [6 - 6**2 * 3, 3 - 3**2 * 3, 8 - 8**2 * 3]))  # their variance is 6
  def test_aggregates_of_members(self, aggregate, expected):
    node = {'kind': 'proxy', 'aggregate': aggregate, 'weight': 3}
    out = scored({'part': dict(node, standardize=False)})
    np.testing.assert_allclose(out.values['part'], expected, rtol=1e-6)
    np.testing.assert_array_equal(
        out.members, [[6, 3, 8], [-12, -6, -16], [24, 12, 32]])
    standard = scored({'part': node})  # each member less 1
    np.testing.assert_allclose(
        standard.values['part'], np.array(expected) - 1, rtol=1e-6)
    np.testing.assert_array_equal(standard.members, out.members - 1)

  def test_members_are_those_of_the_first_ensemble(self):
    self.assertIsNone(scored({'score': {'kind': 'gold'}}).members)
    out = scored({'long': LENGTH, 'a': {'kind': 'proxy', 'standardize': False},
                  'b': {'kind': 'proxy'}})
    self.assertEqual(out.members[0].tolist(), [6, 3, 8])

  def test_a_member_without_a_number_is_named(self):
    """One that the aggregate leaves out, too: its ensemble is broken."""
    nodes = {'part': {'kind': 'proxy', 'aggregate': {
        'kind': 'single', 'member': 0}}}
    broken = components.Models(proxy=Model(1, np.nan))
    with components.Components(
        nodes, responses=RESPONSES, models=broken) as rewards:
      with self.assertRaisesRegex(
          errors.RewardError, r"'part': member 1 .* nan in row 0 \(step 7; 3 of"
          ' 3'):
        rewards(TOKENS, MASK, PROMPTS, RESPONSES, step=7)

  def test_texts(self):
    out = scored({'tfidf': {'kind': 'tfidf', 'min_words': 2},
                  'tone': {'kind': 'vader'}, 'plain': {'kind': 'readability'}})
    rare = texts.TfidfDiversity(RESPONSES, min_words=2)(RESPONSES)
    tone = [vaderSentiment.SentimentIntensityAnalyzer().polarity_scores(
        text)['compound'] for text in RESPONSES]
    self.assertGreater(tone[0], .3)
    for name, raw, values in (
        ('tfidf', rare, rare), ('tone', tone, (np.array(tone) + 1) / 2),
        # Words of one syllable: above 100, which is the best there is.
        ('plain', [206.835 - 1.015 * n - 84.6 for n in (5, 2, 3)], [1, 1, 1])):
      np.testing.assert_allclose(out.raw[name], raw, rtol=1e-6)
      np.testing.assert_allclose(out.values[name], values, rtol=1e-6)

  def test_a_column_is_given_as_it_is(self):
    numbers = np.float32([1234.5, -1 / 3, 2e-30])
    node = {'votes': {'kind': 'file', 'column': 'ups', 'weight': -4}}
    with make(node) as rewards:
      out = rewards(TOKENS, MASK, PROMPTS, RESPONSES,
                    columns={'ups': numbers, 'downs': np.zeros(3)})
      for values in (out.raw, out.values):
        np.testing.assert_array_equal(values['votes'], numbers)
      np.testing.assert_array_equal(rewards.total(out.values), -4 * numbers)

  @parameterized.parameters(
      ({'squash': 'sigmoid'}, scipy.special.expit([.5, -.5, 0])),
      ({'squash': 'clip'}, [.5, 0, 0]), ({}, [.5, -.5, 0]))
  def test_a_column_is_squashed_if_the_config_says_so(self, fields, values):
    out = scored({'votes': {'kind': 'file', 'column': 'ups', 'scale': 2,
                            **fields}}, columns={'ups': [1, -1, 0]})
    np.testing.assert_array_equal(out.raw['votes'], [1, -1, 0])
    np.testing.assert_allclose(out.values['votes'], values, rtol=1e-6)

  def test_what_is_in_no_file_is_predicted(self):
    node = {'votes': {'kind': 'file', 'column': 'ups'}}
    np.testing.assert_array_equal(
        scored(node, column='ups').values['votes'], [2, .5, 3])
    np.testing.assert_array_equal(
        scored(node, column='ups', columns={'ups': [9, 8, 7]}).values['votes'],
        [9, 8, 7])

  def test_final_answers(self):
    answers = {'six #### 6': '6', '6': None, 'I think #### 8': '8', 'eh': None}
    with mock.patch.object(logged, 'final_answer', answers.get):
      rewards = components.Components(
          {'right': {'kind': 'exact_match', 'extract': 'final_answer'}})
      out = rewards(TOKENS, MASK, PROMPTS, ['six #### 6', 'six #### 6', 'eh'],
                    references=['6', 'I think #### 8', 'eh'])
    np.testing.assert_array_equal(out.values['right'], [1, 0, 0])

  def test_no_rows(self):
    with make({'score': {'kind': 'gold'}, 'long': LENGTH,
               'plain': {'kind': 'readability'}}) as rewards:
      out = rewards(TOKENS[:0], MASK[:0], [], [])
      self.assertEqual(rewards.total(out.values).shape, (0,))


  def test_what_is_dropped_is_squashed_in_silence(self):
    x = np.float32([np.nan, 0, 3, -200, 200])
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      values = components._bounded(
          x, {'kind': 'function', 'squash': 'sigmoid'}, 'mine', 0)
    np.testing.assert_array_equal(values, scipy.special.expit(
        x.astype(np.float64)).astype(np.float32))


class TotalTest(absltest.TestCase):

  def test_the_sum_of_the_parts(self):
    with make(NODES) as rewards:
      out = rewards(TOKENS, MASK, PROMPTS, RESPONSES)
      values, raw = (
          2 * x['score'] + x['long'] - .5 * x['brief'] + .1 * x['tone']
          for x in (out.values, out.raw))
      np.testing.assert_allclose(rewards.total(out.values), values, rtol=1e-6)
      np.testing.assert_allclose(rewards.total(out.raw), raw, rtol=1e-6)
      self.assertEqual(rewards.total(out.values).dtype, np.float32)
      self.assertEqual(rewards.names, tuple(NODES))
      self.assertEqual((rewards.lower, rewards.upper),
                       (-.5, np.float32(3.1)))
    for name, node in NODES.items():
      with make({name: node | {'weight': 1}}) as alone:
        one = alone(TOKENS, MASK, PROMPTS, RESPONSES)
      np.testing.assert_array_equal(one.values[name], out.values[name])

  def test_bounds(self):
    free = make({'a': {'kind': 'gold'}, 'b': LENGTH})
    self.assertEqual((free.lower, free.upper), (-np.inf, np.inf))
    ranged = {'kind': 'gold', 'range': (3, 8)}
    both = make({'a': ranged | {'weight': -2}, 'b': ranged})
    self.assertEqual((both.lower, both.upper), (-13, 2))
    # Never below a total of itself, which float32 has rounded up.
    tenth = make({'a': {'kind': 'length', 'target': 1, 'weight': .1}})
    out = tenth(TOKENS, MASK, PROMPTS, RESPONSES)
    self.assertLessEqual(tenth.total(out.values).max(), tenth.upper)

  def test_finite_parts_with_a_sum_that_is_not(self):
    node = {'kind': 'file', 'column': 'x'}
    with make({'a': node, 'b': node | {'weight': 2}}) as rewards:
      out = rewards(TOKENS, MASK, PROMPTS, RESPONSES,
                    columns={'x': np.float32([0, 2e38, 1])})
      with self.assertRaisesRegex(
          errors.RewardError, r'sum of the rewards a, b is 6e\+38 in row 1; '
          'lower their weights'):
        rewards.total(out.values)


class FunctionsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    directory = self.enterContext(tempfile.TemporaryDirectory())
    pathlib.Path(directory, 'component_functions.py').write_text(
        textwrap.dedent(MODULE))
    self.enterContext(mock.patch.object(sys, 'path', [directory, *sys.path]))

  def test_range(self):
    node = lambda name, *limits: {
        'kind': 'function', 'function': f'component_functions:{name}',
        **({'range': limits} if limits else {})}
    pool = {'num_workers': 1, 'chunk_size': 3}
    with make({'share': node('share', 0, .1), 'all': node('above', -2, 2)},
              pool=pool) as rewards:
      out = rewards(TOKENS, MASK, PROMPTS, RESPONSES)
      np.testing.assert_array_equal(
          out.values['share'], np.float32([0, .1, .1]))
      np.testing.assert_array_equal(out.values['all'], [0, 1, -1.25])
      self.assertEqual(rewards.upper, np.float32(2.1))
      workers = rewards._functions._workers
      self.assertNotEmpty(workers)
    self.assertEmpty(rewards._functions._workers)
    # Without one there is none.
    with make({'all': node('above')}, pool=pool) as rewards:
      self.assertEqual((rewards.lower, rewards.upper), (-np.inf, np.inf))
      out = rewards(TOKENS, MASK, PROMPTS, RESPONSES)
      np.testing.assert_array_equal(out.values['all'], [0, 1, -1.25])
    with make({'all': node('above', 0, 1)}, pool=pool) as rewards:
      with self.assertRaisesRegex(
          errors.RewardError, r"component 'all' \(function\) gave -1.25 at "
          r'step 7, row 2, outside its range \[0, 1\] \(1 of 3'):
        rewards(TOKENS, MASK, PROMPTS, RESPONSES, step=7)


  def test_what_is_dropped(self):
    node = {'kind': 'function', 'function': 'component_functions:bad',
            'range': (0, 4)}
    pool = {'num_workers': 1}
    with make({'bad': node | {'on_bad_reward': 'drop'}, 'long': LENGTH},
              pool=pool) as rewards:
      out = rewards(TOKENS, MASK, PROMPTS, RESPONSES)
      for values in (out.values, out.raw):
        np.testing.assert_array_equal(values['bad'], [np.nan, 3, 3])
      np.testing.assert_array_equal(out.bad, [True, False, False])
      np.testing.assert_array_equal(
          rewards.total(out.values), [np.nan, 3.5, 3.75])
      with self.assertRaisesRegex(
          errors.RewardError, "^'bad' left none of 3 responses at step 5: "):
        rewards(TOKENS, MASK, PROMPTS, ['cat'] * 3, step=5)
    with make({'bad': node, 'long': LENGTH}, pool=pool) as rewards:
      with self.assertRaisesRegex(
          errors.RewardError, 'returned None, a NoneType, .*step 0, row 0'):
        rewards(TOKENS, MASK, PROMPTS, RESPONSES)
    self.assertIsNone(scored({'long': LENGTH}).bad)


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters('gold', 'proxy')
  def test_a_model_is_missing(self, kind):
    with self.assertRaisesRegex(
        ValueError, f"models must hold '{kind}' for .* a"):
      components.Components({'a': {'kind': kind}})

  @parameterized.parameters(
      ({'kind': 'exact_match'}, {}, 'right answers, and there are none'),
      ({'kind': 'file', 'column': 'ups'}, {}, "a model of the column 'ups'"),
      ({'kind': 'file', 'column': 'ups'}, {'column': 'downs'},
       "a model of the column 'ups'"),
      ({'kind': 'file', 'column': 'ups'}, {'columns': {'x': [1, 2, 3]}},
       "the log has no column 'ups'; there are x"),
      ({'kind': 'file', 'column': 'ups'}, {'columns': {}},
       "the log has no column 'ups'; there are none"),
      ({'kind': 'file', 'column': 'x'}, {'columns': {'x': [1, np.nan, 3]}},
       r"logged response 1 has no score 'x' \(1 of 3 have none\); choose a"),
      ({'kind': 'file', 'column': 'x'}, {'columns': {'x': [1, 2, 1e39]}},
       r'gave 1e\+39 in row 2 \(step 4; 1 of 3 are not finite\)'),
      ({'kind': 'file', 'column': 'x'}, {'columns': {'x': [1, 2]}},
       r'gave scores of shape \(2,\) for 3 responses'),
      ({'kind': 'gold', 'range': (2, 6)}, {},
       r'gave 7 at step 4, row 2, outside its range \[2, 6\]'),
      ({'kind': 'gold', 'range': (3, 9)}, {},
       r'gave 2 at step 4, row 1, outside its range \[3, 9\]'))
  def test_values(self, node, kwargs, message):
    with self.assertRaisesRegex(errors.RewardError, message) as raised:
      scored({'part': node}, step=4, **kwargs)
    self.assertIn("component 'part'", str(raised.exception))
    self.assertNotIn('\n', str(raised.exception))


if __name__ == '__main__':
  absltest.main()
