"""Tests for rlhf_jax.studies.trees: changes of configs, and their types."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.configs import base
from rlhf_jax.studies import nodes
from rlhf_jax.studies import trees

TYPED = dict(number=1., count=2, text='a', flag=False, parts=(1, 2),
             kl=dict(coef=None), anything=None, labels={}, arguments={})


class MergeTest(parameterized.TestCase):

  def test_merge_goes_into_fields_and_no_others(self):
    base_node = {'kl': {'coef': 0., 'place': 'reward'}, 'arguments': {'a': 1},
                 'steps': 5}
    merged = trees.merge(
        base_node, {'kl': {'coef': .1}, 'arguments': {'b': 2}}, 'runs.x')
    self.assertEqual(merged, {'kl': {'coef': .1, 'place': 'reward'},
                              'arguments': {'b': 2}, 'steps': 5})
    self.assertEqual(base_node['kl'], {'coef': 0., 'place': 'reward'})
    for changes, message in (
        ({'step': 1}, r'config\.runs\.x\.step is no field; there are '
         'arguments, kl, steps'),
        ({'kl': {'coeff': 1}}, r'config\.runs\.x\.kl\.coeff is no field; '
         'there are coef, place'),
        ({'kl': .1}, r'config\.runs\.x\.kl is 0\.1; give changes of its')):
      with self.assertRaisesRegex(errors.ConfigError, message):
        trees.merge(base_node, changes, 'runs.x')

  @parameterized.parameters(
      (dict(number=None), r"number is None; give a number$"),
      (dict(number='1'), r"number is '1'; give a number$"),
      (dict(number=True), 'number is True; give a number$'),
      (dict(number=math.nan), 'number is nan; give a number$'),
      (dict(number=np.float32('inf')), 'number is .*inf.*; give a number$'),
      (dict(kl=dict(coef=-math.inf)), r'kl\.coef is -inf; give a number$'),
      (dict(count='1'), "count is '1'; give an integer$"),
      (dict(count=2.5), 'count is 2.5; give an integer$'),
      (dict(count=False), 'count is False; give an integer$'),
      (dict(text=3), 'text is 3; give text$'),
      (dict(text=None), 'text is None; give text$'),
      (dict(text=('a',)), 'text is .*; give text$'),
      (dict(flag=1), 'flag is 1; give True or False$'),
      (dict(parts='ab'), "parts is 'ab'; give a list of values$"),
      (dict(kl=None), 'kl is None; give changes of its fields$'),
      (dict(kl=dict(coef='1')), r"kl\.coef is '1'; give a number, or None$"),
      (dict(kl=dict(coef=False)), r'kl\.coef is False; give a number, or None'),
      (dict(labels='a'), "labels is 'a'; give a dict$"),
      (dict(arguments=3), 'arguments is 3; give a dict$'))
  def test_merge_refuses_another_type(self, changes, message):
    with self.assertRaisesRegex(
        errors.ConfigError, rf'^config\.runs\.x\.{message}'):
      trees.merge(TYPED, changes, 'runs.x')

  @parameterized.parameters(
      dict(number=3), dict(number=2.5), dict(count=np.int64(3)),
      dict(number=np.float32(3)), dict(parts=[1]), dict(flag=True),
      dict(anything='a'), dict(anything=None), dict(anything=[{}]),
      dict(kl=dict(coef=0)), dict(kl=dict(coef=None)), dict(kl={}))
  def test_merge_takes_the_same_type(self, **changes):
    merged = trees.merge(TYPED, changes, 'runs.x')
    self.assertEqual(merged, TYPED | changes | (
        {'kl': TYPED['kl'] | changes['kl']} if 'kl' in changes else {}))

  def test_what_may_be_none_may_be_so_after_a_number(self):
    """As where a config sets the KL coefficient of all runs but one."""
    self.assertEqual(
        trees.merge(dict(kl=dict(coef=.1)), dict(kl=dict(coef=None)), 'runs.x'),
        dict(kl=dict(coef=None)))

  @parameterized.parameters(
      ('proxy', 'conditions.x'), ('online', 'runs.x'), ('offline', 'runs.x'),
      ('log', 'logs.x'), ('judge', 'judge'))
  def test_every_field_that_is_none_has_a_type(self, part, where):
    def absent(node):
      for name, value in node.items():
        if value is None:
          yield name
        elif isinstance(value, dict):
          yield from (f'{name}.{inner}' for inner in absent(value))

    node = base.offline_config('smoke').to_dict()[part]
    for field in absent(node):
      with self.assertRaisesRegex(
          errors.ConfigError, rf'^config\.{where}\.{field} is .*, or None$'):
        trees.merge(node, nodes.at(field, {1}), where)
      trees.merge(node, nodes.at(field, None), where)

  @parameterized.parameters(3, None, 'ppo', [('kl', {})])
  def test_merge_refuses_what_is_no_mapping(self, changes):
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.runs\.a is .*; give changes of its'):
      trees.merge({'kl': {}}, changes, 'runs.a')

  @parameterized.parameters('aggregate', 'arguments', 'components', 'labels')
  def test_what_belongs_to_a_name_is_replaced_whole(self, field):
    self.assertEqual(trees.merge({field: {'kind': 'mean', 'coef': 1.}},
                                 {field: {'kind': 'single'}}, 'runs.x'),
                     {field: {'kind': 'single'}})


if __name__ == '__main__':
  absltest.main()
