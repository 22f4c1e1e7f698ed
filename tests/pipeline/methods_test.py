"""Tests for rlhf_jax.pipeline.methods: what the table offers, and refuses."""

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp

from rlhf_jax import algorithms
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import online_methods


class NamesTest(parameterized.TestCase):

  def test_every_algorithm_that_trains_a_policy_has_one_way_to_it(self):
    online, offline = online_methods.names(), offline_methods.names()
    self.assertEmpty({*online} & {*offline})
    rest = {*algorithms.ALGORITHMS} - {*online, *offline}
    # Reward models, and what trains nothing.
    self.assertEqual(rest, {
        'reward_model', 'step_rewards', 'choice', 'plackett_luce',
        'preference_lm', 'gold_model', 'best_of_n'})

  def test_online_methods_of_the_papers(self):
    self.assertContainsSubset(
        {'ppo', 'ppo_kl_penalty', 'vanilla_pg', 'reinforce', 'rloo', 'raft',
         'grpo', 'apa', 'awr'}, online_methods.names())

  def test_offline_methods_of_the_papers(self):
    self.assertContainsSubset(
        {'sft', 'wbc', 'gold', 'r_lol', 'a_lol', 'a_lol_ref_free',
         'a_lol_sequence', 'a_lol_kl', 'pro', 'dpo', 'dpo_reference_free',
         'ilql', 'apa_offline', 'awr_offline'}, offline_methods.names())


class GetTest(parameterized.TestCase):

  def test_own_arguments(self):
    row = methods.get('grpo', {'group_normalize': {'scale': False}},
                      ['prompts'])
    by_name = {node['name']: node for node in row.annotators}
    self.assertIs(by_name['group_normalize']['scale'], False)
    self.assertEqual(methods.get('grpo', {}, ['prompts']),
                     algorithms.ALGORITHMS['grpo'])

  @parameterized.parameters(
      ('nonesuch', {}, "algorithm is 'nonesuch'.*there are sft, .*dpo"),
      ('ppo', {}, "'ppo', which trains no policy from demonstrations or pref"),
      ('reward_model', {}, "'reward_model', which trains no policy"),
      ('dpo', {'dpo': .2}, 'arguments.dpo is 0.2'),
      ('dpo', {'dpo': {'name': 'ipo'}}, 'a node keeps its name'))
  def test_what_does_not_fit(self, algorithm, arguments, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      methods.get(algorithm, arguments, ['demonstrations', 'preferences'])
    self.assertNotIn('\n', str(caught.exception))


class AsksTest(parameterized.TestCase):

  @parameterized.parameters(
      ('ppo', True), ('apa', True), ('awr_offline', True), ('ilql', True),
      ('rloo', False), ('dpo', False), ('a_lol', False))
  def test_which_have_a_value_head(self, name, expected):
    row = algorithms.ALGORITHMS[name]
    self.assertEqual(methods.has_values(row), expected)
    self.assertEqual(methods.is_ilql(row), name == 'ilql')

  def test_has(self):
    row = algorithms.ALGORITHMS['ppo']
    self.assertTrue(methods.has(row, 'gae'))
    self.assertFalse(methods.has(row.without('gae'), 'gae'))


class TryOutTest(parameterized.TestCase):

  @parameterized.parameters(
      (lambda: jnp.ones(3) + {}['scores'], 'scores'),
      (lambda: jnp.ones(3).nonesuch, 'nonesuch'),
      (lambda: jnp.sin(), 'positional argument'))
  def test_one_line_of_whatever_it_was(self, trace, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      methods.try_out(trace)
    self.assertNotIn('\n', str(caught.exception))

  def test_whose_objective_it_was(self):
    def raises():
      return jnp.ones(3).nonesuch

    with self.assertRaisesRegex(
        ValueError, r'objective [\w.]+:f: AttributeError: .*nonesuch.* '
        r'\(.*methods_test\.py:\d+\)'):
      methods.try_out(raises, f'{__name__}:f')

  def test_shapes_alone(self):
    methods.try_out(lambda: jnp.ones((2**30, 2**30)))  # would fill no memory


if __name__ == '__main__':
  absltest.main()
