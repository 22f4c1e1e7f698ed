"""Tests for rlhf_jax.pipeline.online_methods: rows, nodes and programs."""

import copy
import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import algorithms
from rlhf_jax import sampling
from rlhf_jax import train
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.configs import base
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import online_methods
from rlhf_jax.studies import trees

KL = dict(coef=None, place='reward', target=None, horizon=10_000)
REWARD = dict(
    components=dict(proxy=dict(kind='proxy')), noise=0., clip=None, scale=None,
    eos=dict(penalty=None, value=None))


def names(nodes):
  return [node['name'] for node in nodes]


def run(**changes):
  """The node of a run."""
  node = base.online_config('smoke').to_dict()['online']
  del node['condition']
  return trees.merge(node, changes, 'test')


class RowTest(parameterized.TestCase):

  def test_arguments_and_coefficient(self):
    row = online_methods.make_row(
        'ppo', {'gae': {'gae_lambda': .5}, 'whiten': {'drop': True}},
        dict(KL, coef=.3))
    self.assertNotIn('whiten', names(row.annotators))
    by_name = {node['name']: node for node in row.annotators}
    self.assertEqual(by_name['gae']['gae_lambda'], .5)
    self.assertEqual(by_name['kl_rewards']['kl_coef'], .3)
    self.assertEqual(online_methods.initial_kl_coef(row), .3)

  def test_coefficient_in_the_loss(self):
    row = online_methods.make_row(
        'rloo', {}, dict(KL, coef=.3, place='loss'))
    self.assertEqual(row.objective['kl_coef'], .3)
    self.assertEqual({n['name']: n for n in row.annotators}['kl_scores'][
        'kl_coef'], 0)
    self.assertEqual(online_methods.initial_kl_coef(row), .3)

  @parameterized.parameters(
      (('sfa', {}, KL), "algorithm is 'sfa'"),
      (('dpo', {}, KL), "'dpo', which trains no policy from prompts"),
      (('best_of_n', {}, KL), "'best_of_n', which trains no policy"),
      (('ppo', {'kl_rewards': {'drop': True}}, KL), "needs 'kl_rewards'"),
      (('nlpo', {'nucleus': {'drop': True}}, KL), "needs 'nucleus'"),
      (('online_dpo', {'best_first': {'drop': True}}, KL),
       "needs 'best_first'"),
      (('ppo', {'keep_best': {'drop': True}}, KL), "no annotator 'keep_best'"),
      (('ppo', {'gea': {'gae_lambda': 1}}, KL), "no node 'gea'"),
      (('ppo', {'scores': {'weight': 2.}}, KL), 'given as reward.components'),
      (('dapo', {}, dict(KL, coef=.1)), 'has no KL in the reward'),
      (('dapo', {}, dict(KL, place='loss')), 'has no KL in the loss'),
      (('ppo', {}, dict(KL, place='both')), "kl.place is 'both'"),
      (('ppo', {}, dict(KL, coef=-.1)), 'a KL coefficient is -0.1'),
      (('rloo', {'reinforce': {'kl_coef': .2}}, KL),
       r'in the reward and in the loss, \[0.1, 0.2\]'))
  def test_what_does_not_fit(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      online_methods.make_row(*arguments)
    self.assertNotIn('\n', str(caught.exception))


class NodesTest(parameterized.TestCase):

  @parameterized.parameters(*online_methods.names())
  def test_every_online_row_makes_a_chain(self, name):
    row = online_methods.make_row(name, {}, KL)
    nodes = online_methods.make_nodes(row, REWARD, KL, 2)
    chain_lib.chain(nodes, dict.fromkeys(online_methods.MODELS, print))
    self.assertEqual(names(nodes).count('scores'), 1)
    self.assertIn('ref_logprobs', names(nodes))
    own = [n for n in names(algorithms.ALGORITHMS[name].annotators)
           if n not in ('scores', 'ref_logprobs')]
    self.assertEqual(names(nodes)[2:], own)

  def test_rewards_come_in_order_and_the_controller_before_the_choice(self):
    kl = dict(KL, coef=.1, target=6.)
    reward = dict(REWARD, noise=3., clip=10., scale='running',
                  eos=dict(penalty=1., value=None))
    nodes = online_methods.make_nodes(
        online_methods.make_row('raft', {}, kl), reward, kl, 2)
    self.assertEqual(names(nodes), [
        'scores', 'noise', 'scale_scores', 'clip_scores', 'missing_eos',
        'ref_logprobs', 'kl_scores', 'adapt_kl_coef', 'keep_best'])
    self.assertEqual(nodes[1:5], [
        {'name': 'noise', 'sigma': 3.},
        {'name': 'scale_scores', 'kind': 'running'},
        {'name': 'clip_scores', 'limit': 10.},
        {'name': 'missing_eos', 'eos_id': 2, 'penalty': 1.}])
    self.assertEqual(nodes[7], {
        'name': 'adapt_kl_coef', 'target': 6., 'horizon': 10_000})

  def test_a_component_of_a_model_is_a_node_and_one_of_texts_is_none(self):
    row = online_methods.make_row('rloo', {}, KL)
    components = dict(
        short=dict(kind='length', target=9), good=dict(kind='gold', weight=2.),
        liked=dict(kind='proxy', aggregate=dict(kind='worst_case')))
    nodes = online_methods.make_nodes(
        row, dict(REWARD, components=components), KL, 2)
    scores = [n['component'] for n in nodes if n['name'] == 'scores']
    self.assertEqual([(n['kind'], n['weight']) for n in scores],
                     [('gold', 2.), ('proxy', 1.)])
    self.assertEqual(scores[1]['aggregate'], {'kind': 'worst_case'})
    nodes = online_methods.make_nodes(
        row, dict(REWARD, components={'short': components['short']}), KL, 2)
    self.assertEqual(names(nodes)[0], 'ref_logprobs')


class StatisticsTest(absltest.TestCase):

  def test_what_a_state_begins_with(self):
    def of(**changes):
      node = run(**changes)
      row = online_methods.make_row(
          node['algorithm'], node['arguments'], node['kl'])
      return online_methods.statistics(node, online_methods.make_nodes(
          row, node['reward'], node['kl'], 2))
    close = np.testing.assert_allclose
    self.assertEqual(of(kl=dict(coef=0.)), {})
    close(of(kl=dict(coef=.3))['kl_coef'], .3)
    close(of(kl=dict(coef=.3, place='loss'))['kl_coef'], .3)
    close(of()['kl_coef'], .1)  # the row's own
    self.assertEqual(of(algorithm='reinforce')['baseline'],
                     {'mean': 0, 'count': 0})
    both = of(algorithm='ppo_kl_penalty', updates=dict(penalty_target=.1),
              reward=dict(scale='running'))
    self.assertEqual(both.keys(),
                     {'kl_coef', 'kl_penalty_coef', 'score_moments'})
    self.assertEqual(both['kl_penalty_coef'], 1)


@functools.cache
def world():
  return artifacts.World(worlds.Context(worlds.untrained()), worlds.DATA, 0,
                         {'reference': 'sft'})


class MethodTest(parameterized.TestCase):

  def make(self, **changes):
    return online_methods.make(run(**changes), world(), worlds.config(),
                               {'proxy': worlds.config()}, None)

  def test_size_of_the_coefficient_is_not_in_it(self):
    first, second = (self.make(kl=dict(coef=x)) for x in (.1, .7))
    self.assertEqual(first, second)
    self.assertEqual(hash(first), hash(second))
    # But whether there is one is.
    self.assertNotEqual(first, self.make(kl=dict(coef=0.)))
    # The run itself is left as it was.
    node = run(kl=dict(coef=.7))
    before = copy.deepcopy(node)
    online_methods.make(node, world(), worlds.config(), {}, None)
    self.assertEqual(node, before)

  @parameterized.parameters(
      dict(rollout=dict(temperature=.5)), dict(updates=dict(num_epochs=7)),
      dict(optimizer=dict(learning_rate=.5)), dict(num_steps=7),
      dict(reward=dict(clip=7.)), dict(arguments=dict(ppo=dict(value_coef=7.))),
      dict(reward=dict(components=dict(proxy=dict(kind='proxy', weight=7.)))))
  def test_what_programs_depend_on_is(self, **changes):
    self.assertNotEqual(self.make(), self.make(**changes))

  def test_where_the_prompts_are_cut_is_not(self):
    self.assertEqual(
        self.make(), self.make(rollout=dict(
            batch_size=2, chunk_size=1, resample=3)))

  def test_sampler_draws_as_the_node_says(self):
    node = dict(temperature=.5, top_k=7, top_p=.6, min_new_tokens=2, samples=3)
    sampler = online_methods._of_policy.__wrapped__(self.make(rollout=node))[0]
    with (mock.patch.object(sampling, 'sample', side_effect=StopIteration
                            ) as sample, self.assertRaises(StopIteration)):
      sampler({}, np.zeros((1, 2), np.int32), np.ones(1, np.int32),
              jax.random.key(0), np.zeros(1, np.int32))
    node['num_samples'] = node.pop('samples')
    self.assertEqual({name: sample.call_args.kwargs[name] for name in node},
                     node)

  @parameterized.parameters({}, dict(dropout=.1), dict(adapter_dropout=.1))
  def test_steps_drop_out_where_the_policy_does(self, **changes):
    method = online_methods.make(
        run(), world(), dataclasses.replace(worlds.config(), **changes),
        {'proxy': worlds.config()}, None)
    with (mock.patch.object(train, 'make_train_step',
                            side_effect=StopIteration) as step,
          self.assertRaises(StopIteration)):
      online_methods._of_policy.__wrapped__(method)
    self.assertIs(step.call_args.kwargs['dropout'], bool(changes))

  def test_schedule_counts_updates(self):
    method = self.make(num_steps=5, updates=dict(
        num_epochs=2, num_minibatches=2, repeats=3))
    self.assertEqual(method.optimizer['num_steps'], 60)

  def test_equal_methods_share_their_programs(self):
    online_methods.programs.cache_clear()
    self.addCleanup(online_methods.programs.cache_clear)
    first = online_methods.programs(self.make(kl=dict(coef=.1)))
    self.assertIs(online_methods.programs(self.make(kl=dict(coef=.7))), first)
    self.assertIsNot(
        online_methods.programs(self.make(reward=dict(clip=7.))), first)
    info = online_methods.programs.cache_info()
    self.assertEqual((info.hits, info.misses), (1, 2))

  def test_bfloat16_reads_the_policy_again(self):
    """The sampler's own log-probabilities are a hundredth off."""
    node = run()
    make = lambda **changes: online_methods.make(
        node, world(), dataclasses.replace(worlds.config(), **changes),
        {'proxy': worlds.config()}, None)
    exact, rounded = make().nodes, make(dtype='bfloat16').nodes
    self.assertEqual(rounded, ({'name': 'old_logprobs'}, *exact))


if __name__ == '__main__':
  absltest.main()
