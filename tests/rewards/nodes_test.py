"""Tests for rlhf_jax.rewards.nodes: what a config may say of a reward."""

import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.rewards import nodes as nodes_lib

LENGTH = {'kind': 'length', 'target': 4}
# The least that each kind must be told.
LEAST = {
    'gold': {}, 'proxy': {}, 'file': {'column': 'votes'}, 'tfidf': {},
    'vader': {}, 'readability': {}, 'length': {'target': 4},
    'exact_match': {}, 'function': {'function': 'package.module:name'}}


def least(kind, **fields):
  return {'kind': kind, **LEAST[kind], **fields}


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      (None, 'components are None; give'),
      ({'a b': LENGTH}, "component 'a b': name is .*; give a Python identif"),
      ({'gold_se': LENGTH}, "does not end in '_se'"),
      ({'a': 'length'}, "component 'a': node is 'length'; give {'kind'"),
      ({'a': {'kind': 'lenght'}}, "kind is 'lenght'; there are gold, proxy"),
      ({'a': {'target': 2}}, 'kind is None; there are gold'),
      ({'a': {'kind': 'length'}}, "target is absent; 'length' needs it"),
      ({'a': LENGTH | {'words': 2}}, "words is 2; 'length' has weight, target"),
      ({'a': LENGTH | {'target': 0}}, 'target is 0; give words'),
      ({'a': LENGTH | {'weight': np.inf}}, 'weight is inf; give a finite'),
      ({'a': LENGTH | {'weight': '1'}}, "weight is '1'; give a finite"),
      ({'a': {'kind': 'gold', 'squash': 'tanh'}}, "squash is 'tanh'; there"),
      ({'a': {'kind': 'gold', 'scale': -1}}, 'scale is -1; give a number'),
      ({'a': {'kind': 'gold', 'squash': 'sigmoid', 'range': (0, 1)}},
       r"range is \(0, 1\); 'sigmoid' has its own"),
      ({'a': {'kind': 'gold', 'squash': 'clip', 'range': (1, 0)}},
       r'range is \(1, 0\); give \(least, largest\)'),
      ({'a': {'kind': 'gold', 'aggregate': {'kind': 'mean'}}},
       "aggregate is .*; 'gold' has weight, squash, scale, range"),
      ({'a': {'kind': 'proxy', 'aggregate': {'kind': 'median'}}},
       "aggregate is .*; give {'kind': ...}; there are mean, worst_case"),
      ({'a': {'kind': 'proxy', 'standardize': 1}}, 'standardize is 1; give Tr'),
      ({'a': {'kind': 'file'}}, "column is absent; 'file' needs it"),
      ({'a': {'kind': 'file', 'column': ''}}, "column is ''; give a name"),
      ({'a': {'kind': 'tfidf', 'min_words': 11}}, 'min_words is 11; give a'),
      ({'a': {'kind': 'exact_match', 'extract': 'last'}}, "extract is 'last'"),
      ({'a': {'kind': 'function'}}, 'function is absent'),
      ({'a': {'kind': 'function', 'function': 'len'}},
       "function is 'len'; give it as 'package.module:function'"),
      ({'a': {'kind': 'function', 'function': 'm:f', 'squash': 'sigmoid'}},
       "squash is 'sigmoid'; 'function' has weight, function, range"),
      ({'a': {'kind': 'function', 'function': 'm:f', 'on_bad_reward': 'skip'}},
       "on_bad_reward is 'skip'; there are 'error', 'drop'"))
  def test_mistakes(self, nodes, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as raised:
      nodes_lib.check(nodes)
    self.assertNotIn('\n', str(raised.exception))

  def test_sound_nodes_get_every_field(self):
    full = nodes_lib.check({
        'a': {'kind': 'gold', 'weight': 2}, 'b': {'kind': 'proxy'},
        'c': least('file'), 'd': least('function'), 'e': LENGTH})
    model = {'scale': 1., 'squash': 'none', 'range': None}  # its own units
    self.assertEqual(full, {
        'a': {'kind': 'gold', 'weight': 2, **model},
        'b': {'kind': 'proxy', 'weight': 1, 'aggregate': {'kind': 'mean'},
              'standardize': True, **model},
        'c': {'kind': 'file', 'weight': 1, 'column': 'votes', **model},
        'd': {'kind': 'function', 'weight': 1, 'range': None,
              'on_bad_reward': 'error',
              'function': 'package.module:name'},
        'e': {'kind': 'length', 'weight': 1, 'target': 4}})
    self.assertEqual(nodes_lib.check(full), full)

  def test_scikit_learn_is_missing(self):
    with mock.patch('importlib.util.find_spec', return_value=None):
      with self.assertRaisesRegex(errors.ConfigError, r'rlhf_jax\[text\]'):
        nodes_lib.check({'a': {'kind': 'tfidf'}})
      nodes_lib.check({'a': {'kind': 'vader'}})


class PartsTest(parameterized.TestCase):

  @parameterized.parameters(*nodes_lib.KINDS)
  def test_every_component_is_scored_in_one_place(self, kind):
    nodes = {'a': least(kind, weight=.5)}
    full = nodes_lib.check(nodes)
    models, texts = nodes_lib.by_models(nodes), nodes_lib.by_texts(nodes)
    self.assertEqual(models | texts, full)
    self.assertEqual(bool(models), kind in ('gold', 'proxy', 'file'))
    self.assertEqual(bool(texts), not models)

  def test_order_is_kept(self):
    nodes = {name: least(kind) for name, kind in zip(
        'zyxw', ('vader', 'gold', 'length', 'proxy'))}
    self.assertEqual(list(nodes_lib.by_models(nodes)), ['y', 'w'])
    self.assertEqual(list(nodes_lib.by_texts(nodes)), ['z', 'x'])

  def test_kinds(self):
    self.assertEqual(nodes_lib.kinds(
        dict(a=dict(kind='gold'), b=dict(kind='gold'), c={})), {'gold', None})

  def test_functions(self):
    self.assertEqual(
        nodes_lib.functions({'a': least('function'), 'b': LENGTH}),
        {'a': 'package.module:name'})

  @parameterized.parameters(
      ('gold', ['gold', 'pairs']), ('proxy', ['proxies']), ('file', ['gold']),
      ('tfidf', ['log']), ('vader', []), ('readability', []), ('length', []),
      ('exact_match', []), ('function', []))
  def test_roles_are_named_with_who_reads_them(self, kind, roles):
    self.assertEqual(nodes_lib.roles({'long': LENGTH, 'a': least(kind)}),
                     dict.fromkeys(roles, 'a'))


class BoundsTest(parameterized.TestCase):

  @parameterized.parameters(
      (least('gold'), (-math.inf, math.inf)),
      (least('gold', weight=-1), (-math.inf, math.inf)),
      (least('gold', weight=0), (0, 0)),
      (least('gold', squash='sigmoid', weight=2), (0, 2)),
      (least('proxy', squash='sigmoid', weight=-2), (-2, 0)),
      (least('file', range=(3, 8), weight=-2), (-16, -6)),
      (least('gold', squash='clip', weight=3), (0, 3)),
      (least('gold', squash='clip', range=(-4, 7)), (-4, 7)),
      (least('vader', weight=.5), (0, .5)), (least('readability'), (0, 1)),
      (least('tfidf', weight=-1), (-1, 0)), (least('length'), (0, 1)),
      (least('exact_match'), (0, 1)),
      (least('function'), (-math.inf, math.inf)),
      (least('function', range=(-3, 1), weight=2), (-6, 2)),
      (least('function', weight=0), (0, 0)))
  def test_by_hand(self, node, bounds):
    limits = nodes_lib.bounds(nodes_lib.check({'a': node})['a'])
    self.assertEqual(limits, bounds)
    for limit in limits:
      self.assertFalse(limit == 0 and math.copysign(1, limit) < 0)  # no -0


if __name__ == '__main__':
  absltest.main()
