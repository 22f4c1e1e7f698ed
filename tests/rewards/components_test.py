"""Tests for rlhf_jax.components, with numbers made by hand."""

import pathlib
import sys
import tempfile
import textwrap
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import scipy.special
from vaderSentiment import vaderSentiment

from rlhf_jax import errors
from rlhf_jax.data import logged
from rlhf_jax.ops import readability
from rlhf_jax.ops import texts
from rlhf_jax.rewards import components
from rlhf_jax.rewards import nodes as nodes_lib

RESPONSES = ['the red car is good.', 'a dog', 'red dog dog']
PROMPTS = ['which?', 'what?', 'who?']
TOKENS = np.array([[5, 1, 2, 3], [5, 1, 2, 0], [5, 4, 4, 0]], np.int32)
MASK = np.array([[0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0]], bool)
LENGTH = {'kind': 'length', 'target': 4}
NODES = {'score': {'kind': 'gold', 'weight': 2}, 'long': LENGTH,
         'watched': {'kind': 'proxy', 'weight': 0, 'squash': 'none'},
         'brief': LENGTH | {'weight': -.5, 'target': 5},
         'tone': {'kind': 'vader', 'weight': .1}}
MODULE = """
  def share(prompts, responses):
    return [.1 if 'dog' in text else 0. for text in responses]

  def above(prompts, responses):
    return [0., 1., 1.25]
"""


def score(tokens, mask):
  """Sum of the response's tokens: 6, 3, 8."""
  return np.where(mask, tokens, 0).sum(axis=-1).astype(np.float32)


def make(nodes, **kwargs):
  return components.Components(
      nodes, models={'gold': score, 'proxy': lambda *x: -score(*x)},
      responses=RESPONSES, **kwargs)


def scored(nodes, **kwargs):
  with make(nodes) as named:
    return named(TOKENS, MASK, PROMPTS, RESPONSES, **kwargs)


class ValuesTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'kind': 'gold'}, [6, 3, 8], scipy.special.expit([6, 3, 8])),
      ({'kind': 'proxy', 'scale': 2}, [-6, -3, -8],
       scipy.special.expit([-3, -1.5, -4])),
      ({'kind': 'gold', 'squash': 'none', 'scale': 4}, [6, 3, 8],
       [1.5, .75, 2]),
      ({'kind': 'gold', 'squash': 'clip', 'scale': 4}, [6, 3, 8], [1, .75, 1]),
      ({'kind': 'gold', 'squash': 'clip', 'range': [4, 7]}, [6, 3, 8],
       [6, 4, 7]),
      ({'kind': 'gold', 'squash': 'none', 'range': (3, 8)}, [6, 3, 8],
       [6, 3, 8]),
      (LENGTH, [5, 2, 3], [1, .5, .75]),
      ({'kind': 'exact_match'}, [0, 1, 0], [0, 1, 0]))
  def test_by_hand(self, node, raw, values):
    out = scored({'part': node}, references=['', ' a  dog\n', 'red'])
    for found, expected in ((out.raw, raw), (out.values, values)):
      self.assertEqual(list(found), ['part'])
      self.assertEqual(found['part'].dtype, np.float32)
      np.testing.assert_allclose(found['part'], expected, rtol=1e-6)

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

  def test_files_are_read_and_other_rows_are_predicted(self):
    node = {'votes': {'kind': 'file', 'column': 'ups', 'scale': 2}}
    given = scored(node, columns={'ups': [1, -1, 0], 'downs': [0, 0, 0]})
    np.testing.assert_array_equal(given.raw['votes'], [1, -1, 0])
    np.testing.assert_allclose(
        given.values['votes'], scipy.special.expit([.5, -.5, 0]), rtol=1e-6)
    named = components.Components(node, models={'file:ups': score})
    np.testing.assert_array_equal(
        named(TOKENS, MASK, PROMPTS, RESPONSES).raw['votes'], [6, 3, 8])

  def test_final_answers(self):
    answers = {'six #### 6': '6', '6': None, 'I think #### 8': '8', 'eh': None}
    with mock.patch.object(logged, 'final_answer', answers.get):
      named = components.Components(
          {'right': {'kind': 'exact_match', 'extract': 'final_answer'}})
      out = named(TOKENS, MASK, PROMPTS, ['six #### 6', 'six #### 6', 'eh'],
                  references=['6', 'I think #### 8', 'eh'])
    np.testing.assert_array_equal(out.values['right'], [1, 0, 0])

  def test_no_rows(self):
    with make({'score': {'kind': 'gold'}, 'long': LENGTH,
               'plain': {'kind': 'readability'}}) as named:
      out = named(TOKENS[:0], MASK[:0], [], [])
      self.assertEqual(named.total(out.values).shape, (0,))

  @parameterized.parameters(
      # 3 words, 1 sentence, 1 + 2 + 2 syllables.
      ('the table simple', 206.835 - 1.015 * 3 - 84.6 * 5 / 3),
      # 6 words, 2 sentences, 7 syllables: the silent e of 'made' counts not.
      ("He made it! Don't worry... she", 206.835 - 1.015 * 2 - 84.6 * 7 / 6),
      ('Idle. while. 42.', 206.835 - 1.015 - 84.6 * 3 / 2), (' 1 + 1 ', 0.),
      ('', 0.))
  def test_flesch_by_hand(self, text, expected):
    np.testing.assert_allclose(
        readability.flesch_reading_ease([text]), [expected])

  def test_flesch_of_one_string(self):
    with self.assertRaisesRegex(ValueError, "got one: 'a'"):
      readability.flesch_reading_ease('a')


class TotalTest(absltest.TestCase):
  def test_the_sum_of_the_parts(self):
    with make(NODES) as named:
      out = named(TOKENS, MASK, PROMPTS, RESPONSES)
      values, raw = (
          2 * x['score'] + x['long'] - .5 * x['brief'] + .1 * x['tone']
          for x in (out.values, out.raw))
      np.testing.assert_allclose(named.total(out.values), values, rtol=1e-6)
      np.testing.assert_allclose(named.total(out.raw), raw, rtol=1e-6)
      self.assertEqual(named.total(out.values).dtype, np.float32)
      self.assertEqual(named.names, tuple(NODES))
      self.assertEqual((named.lower, named.upper), (-.5, np.float32(3.1)))
    for name, node in NODES.items():
      with make({name: node | {'weight': 1}}) as alone:
        one = alone(TOKENS, MASK, PROMPTS, RESPONSES)
      np.testing.assert_array_equal(one.values[name], out.values[name])

  def test_bounds(self):
    self.assertEqual(make({'a': {'kind': 'gold', 'squash': 'none'},
                           'b': LENGTH}).upper, np.inf)
    ranged = {'kind': 'gold', 'squash': 'none', 'range': (3, 8)}
    named = make({'a': ranged | {'weight': -2}, 'b': ranged})
    self.assertEqual((named.lower, named.upper), (-13, 2))
    # Never below a total of itself, which float32 has rounded up.
    tenth = make({'a': {'kind': 'length', 'target': 1, 'weight': .1}})
    out = tenth(TOKENS, MASK, PROMPTS, RESPONSES)
    self.assertLessEqual(tenth.total(out.values).max(), tenth.upper)


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
    self.assertEqual(
        nodes_lib.functions({'a': node('share'), 'b': LENGTH}),
        {'a': {'function': 'component_functions:share'}})
    pool = {'num_workers': 1, 'chunk_size': 3}
    with make({'share': node('share', 0, .1), 'all': node('above', -1, 2)},
              pool=pool) as named:
      out = named(TOKENS, MASK, PROMPTS, RESPONSES)
      np.testing.assert_array_equal(
          out.values['share'], np.float32([0, .1, .1]))
      np.testing.assert_array_equal(out.values['all'], [0, 1, 1.25])
      self.assertEqual(named.upper, np.float32(2.1))
      workers = named._functions._workers
      self.assertNotEmpty(workers)
    self.assertEmpty(named._functions._workers)
    with make({'all': node('above')}, pool=pool) as named:
      with self.assertRaisesRegex(
          errors.RewardError, r"component 'all' \(function\) gave 1.25 at step "
          r'7, row 2, outside its range \[0, 1\] \(1 of 3'):
        named(TOKENS, MASK, PROMPTS, RESPONSES, step=7)


class ErrorsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({}, 'at least one'),
      ({'a b': LENGTH}, "component 'a b': name is .*; give a Python identif"),
      ({'gold_se': LENGTH}, "does not end in '_se'"),
      ({'a': 'length'}, "component 'a': node is 'length'; give {'kind'"),
      ({'a': {'kind': 'lenght'}}, "kind is 'lenght'; there are gold, proxy"),
      ({'a': {'target': 2}}, 'kind is None; there are gold'),
      ({'a': {'kind': 'length'}}, "target is absent; 'length' needs it"),
      ({'a': LENGTH | {'words': 2}}, "words is 2; 'length' has weight, target"),
      ({'a': LENGTH | {'target': 0}}, 'target is 0; give words'),
      ({'a': LENGTH | {'weight': np.inf}}, 'weight is inf; give a finite'),
      ({'a': {'kind': 'gold', 'squash': 'tanh'}}, "squash is 'tanh'; there"),
      ({'a': {'kind': 'gold', 'scale': -1}}, 'scale is -1; give a number'),
      ({'a': {'kind': 'gold', 'range': (0, 1)}},
       r"range is \(0, 1\); 'sigmoid' has its own"),
      ({'a': {'kind': 'gold', 'squash': 'clip', 'range': (1, 0)}},
       r'range is \(1, 0\); give \(least, largest\)'),
      ({'a': {'kind': 'file'}}, "column is absent; 'file' needs it"),
      ({'a': {'kind': 'tfidf', 'min_words': 11}}, 'min_words is 11; give a'),
      ({'a': {'kind': 'exact_match', 'extract': 'last'}}, "extract is 'last'"),
      ({'a': {'kind': 'function', 'function': 'len'}},
       "function is 'len'; give it as 'package.module:function'"))
  def test_nodes(self, nodes, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as raised:
      nodes_lib.check(nodes)
    self.assertNotIn('\n', str(raised.exception))

  def test_sound_nodes_get_every_field(self):
    full = nodes_lib.check({'a': {'kind': 'gold', 'weight': 2}, 'b': LENGTH})
    self.assertEqual(full['a'], {'kind': 'gold', 'weight': 2, 'scale': 1.,
                                 'squash': 'sigmoid', 'range': None})
    self.assertEqual(nodes_lib.check(full), full)

  def test_scikit_learn_is_missing(self):
    with mock.patch('importlib.util.find_spec', return_value=None):
      with self.assertRaisesRegex(errors.ConfigError, r'rlhf_jax\[text\]'):
        nodes_lib.check({'a': {'kind': 'tfidf'}})

  def test_a_model_is_missing(self):
    with self.assertRaisesRegex(ValueError, "models must hold 'gold' for .* a"):
      components.Components({'a': {'kind': 'gold'}})

  @parameterized.parameters(
      ({'kind': 'exact_match'}, {}, 'right answers, and there are none'),
      ({'kind': 'file', 'column': 'ups'}, {}, "a model of the column 'ups'"),
      ({'kind': 'file', 'column': 'ups'}, {'columns': {'x': [1, 2, 3]}},
       "the log has no column 'ups'; there are x"),
      ({'kind': 'file', 'column': 'x'}, {'columns': {'x': [1, np.nan, 3]}},
       r"logged response 1 has no score 'x' \(1 of 3 have none\); choose a"),
      ({'kind': 'file', 'column': 'x'}, {'columns': {'x': [1, 2, 1e39]}},
       r'gave 1e\+39 at step 4, row 2'),
      ({'kind': 'file', 'column': 'x'}, {'columns': {'x': [1, 2]}},
       r'gave scores of shape \(2,\) for 3 responses'),
      ({'kind': 'gold', 'squash': 'none', 'range': (3, 7)}, {},
       r'gave 8 at step 4, row 2, outside its range \[3, 7\]'),
      ({'kind': 'gold', 'squash': 'none', 'range': (4, 9)}, {},
       r'gave 3 at step 4, row 1, outside its range \[4, 9\]'))
  def test_values(self, node, given, message):
    with self.assertRaisesRegex(errors.RewardError, message) as raised:
      scored({'part': node}, step=4, **given)
    self.assertIn("component 'part'", str(raised.exception))


if __name__ == '__main__':
  absltest.main()
