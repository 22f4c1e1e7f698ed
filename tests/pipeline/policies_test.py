"""Tests for rlhf_jax.pipeline.policies."""

import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import worlds

from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import policies
from rlhf_jax.rewards import components
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

CONFIG = transformer.Config(vocab_size=7, hidden_size=4, intermediate_size=8,
                            num_layers=1, num_heads=2)
OTHER = transformer.Config(vocab_size=7, hidden_size=6, intermediate_size=8,
                           num_layers=1, num_heads=1)
KEY = jax.random.key(3)


def decoder(value):
  """What stands for a decoder."""
  return {'embed': jnp.full((7, 4), value), 'layers': {'q': jnp.full(3, value)},
          'norm': jnp.full(4, value), 'unembed': jnp.full((7, 4), -value)}


def world():
  """With a reference of 2s and an ensemble of two."""
  make = {
      'reference': lambda: artifacts.Policy(CONFIG, decoder(2.)),
      'proxies': lambda: reward_models.RewardModels(OTHER, {
          'trunk': {'embed': jnp.arange(6.).reshape(2, 3)},
          'head': {'weight': jnp.arange(8.).reshape(2, 4)}}, None)}
  return types.SimpleNamespace(
      unfrozen=lambda role: make[role](),
      **{role: function() for role, function in make.items()})


def add(trunk, trainable=None, **changes):
  return policies.add_value_head(
      world(), trainable or decoder(1.),
      dict(mlp=True, scale=.5, trunk=trunk) | changes, KEY)


class ValueHeadTest(parameterized.TestCase):

  @parameterized.parameters(
      ('shared', None), ('separate', CONFIG), ('reward', OTHER))
  def test_shape_of_the_trunk(self, trunk, config):
    self.assertIs(policies.value_config(world(), {'trunk': trunk}), config)

  def test_shared(self):
    params = add('shared')
    self.assertEqual(params.keys(), {*decoder(1.), 'value_head'})
    self.assertEqual(params['value_head']['weight'].shape, (8,))
    self.assertGreater(jnp.abs(params['value_head']['weight']).max(), 0)
    plain = add('shared', mlp=False, scale=0.)
    np.testing.assert_array_equal(plain['value_head']['weight'], jnp.zeros(4))

  def test_separate_is_a_copy_of_the_reference(self):
    there = world()
    params = policies.add_value_head(
        there, decoder(1.), dict(mlp=False, scale=1., trunk='separate'), KEY)
    self.assertNotIn('unembed', params['value_trunk'])
    np.testing.assert_array_equal(params['value_trunk']['embed'],
                                  there.reference.params['embed'])
    # A step that donates it leaves the reference as it is.
    jax.tree.map(lambda x: x.delete(), params['value_trunk'])
    np.testing.assert_array_equal(
        there.reference.params['embed'], jnp.full((7, 4), 2.))
    np.testing.assert_array_equal(params['embed'], jnp.full((7, 4), 1.))

  def test_reward_is_the_first_member(self):
    params = add('reward')
    np.testing.assert_array_equal(params['value_trunk']['embed'], [0, 1, 2])
    np.testing.assert_array_equal(params['value_head']['weight'], [0, 1, 2, 3])

  @parameterized.parameters(*policies.TRUNKS)
  def test_policy_is_not_changed(self, trunk):
    trainable = decoder(1.)
    params = add(trunk, trainable)
    self.assertNotIn('value_head', trainable)
    for name, x in trainable.items():
      self.assertIs(params[name], x)


class SaveTest(absltest.TestCase):

  def test_heads_are_left_out_and_nothing_is_written_twice(self):
    context = worlds.Context(worlds.SHARED)
    artifacts.write_model(
        context, 'policy', worlds.MODEL, worlds.corpus().tokenizer, texts=None)
    params = transformer.init(worlds.config(), KEY)
    heads = dict.fromkeys(('value_head', 'value_trunk', 'q_heads'), decoder(1.))
    policies.save_policy(context, 4, {**params, **heads})
    policies.save_policy(context, 4, {})  # killed before the stage's result
    restored = artifacts.restore_policy(context.directory)
    self.assertEqual(restored.config, worlds.config())
    jax.tree.map(np.testing.assert_array_equal, restored.params, params)


class ViewTest(absltest.TestCase):

  def test_what_samples(self):
    state = types.SimpleNamespace(params={'layers': 1}, targets='slow')
    model = pretrained.Model(CONFIG, {}, None)
    view = lambda base, **kwargs: policies.View(
        model._replace(base=base), 1, dict, **kwargs).params(state)
    self.assertEqual(view(None), {'layers': 1})
    self.assertEqual(view({'embed': 2}), {'embed': 2, 'layers': 1})
    self.assertEqual(view(None, value_shift=0.),
                     {'layers': 1, 'target_q_heads': 'slow'})


class Monitor:
  """One of which everything is known."""

  def __init__(self, setting, config, reference, rewards, *, gold, rule):
    self.setting, self.rewards = setting, rewards
    self.scorers = gold, rule

  def __call__(self, params, *, step):
    return types.SimpleNamespace(
        row={'gold': params['norm'] + step, 'kl_k1': 0.})

  def texts(self, evaluation, count):
    return [{'response': f'{evaluation.row["gold"]}'}] * count

  def final_rows(self, evaluation):
    return [{'gold': evaluation.row['gold']}, {'gold': -1.}]


class WatchTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.context = worlds.Context(worlds.untrained())
    self.monitors = []

    def build(*args, **kwargs):
      self.monitors.append(Monitor(*args, **kwargs))
      return self.monitors[-1]

    self.enterContext(mock.patch.object(
        policies.monitor_lib, 'Monitor', build))

  def watch(self, last_step=6, **given):
    there = artifacts.World(self.context, worlds.DATA, 0,
                            {'reference': 'sft', **given})
    measure = dict(components=dict(short=dict(kind='length', target=5)),
                   pool={}, sampler=dict(temperature=.7))
    model = pretrained.Model(worlds.config(), {}, None)
    view = policies.View(model, last_step, lambda step: {'updates': 4 * step})
    return policies.watch(
        there, measure, dict(every=3, num_prompts=3, texts=2, chunk_size=5),
        KEY, view)

  def state(self, value):
    return types.SimpleNamespace(params={'norm': value})

  def read(self, name):
    return files.read_json(self.context.directory / name)

  def test_files_and_rows(self):
    with self.watch() as watch:
      self.assertEqual(watch.every, 3)
      self.assertEqual(watch.evaluate(3, self.state(100)),
                       {'updates': 12, 'gold': 103, 'kl_k1': 0})
      self.assertEqual(self.read('texts/000003.json'),
                       [{'response': '103'}] * 2)
      self.assertFalse((self.context.directory / 'final.jsonl').exists())
      self.assertEqual(watch.evaluate(6, self.state(200))['gold'], 206)
    self.assertEqual(self.read('texts/000006.json'), [{'response': '206'}] * 2)
    self.assertEqual(
        [row['gold'] for row in self.context.lines('final')], [206, -1])
    self.assertFalse((self.context.directory / 'first.jsonl').exists())

  def test_what_it_begins_with(self):
    with self.watch() as watch:
      watch.evaluate(0, self.state(5))
    self.assertEqual(
        [row['gold'] for row in self.context.lines('first')], [5, -1])
    self.assertFalse((self.context.directory / 'final.jsonl').exists())

  def test_of_a_run_that_goes_on(self):
    for _ in range(2):
      with self.watch(last_step=0) as watch:
        watch.evaluate(0, self.state(1.))
    self.assertLen(self.context.lines('final'), 2)
    self.assertLen(self.context.lines('first'), 2)

  def test_setting_and_scorers_are_those_of_the_world(self):
    with self.watch():
      pass
    with self.watch(gold='gold', pairs='pairs'):
      pass
    bare, whole = self.monitors
    setting = bare.setting
    self.assertIs(setting.key, KEY)
    self.assertEqual((setting.num_prompts, setting.chunk_size), (3, 5))
    self.assertEqual(setting.sampler, dict(temperature=.7))
    self.assertEqual(bare.rewards.names, ('short',))
    self.assertEqual(bare.scorers, (None, None))
    rows = worlds.corpus().demonstrations
    tokens, mask = rows.tokens[:3, 0], rows.mask[:3, 0]
    gold = artifacts.restore_rewards(worlds.untrained() / 'gold').scores(
        tokens, mask)[0]
    np.testing.assert_allclose(  # in deviations of the pairs from their mean
        whole.scorers[0](tokens, mask), (gold - .1) / .7, rtol=1e-5, atol=1e-6)
    pairs = files.load_arrays(worlds.untrained() / 'pairs/pairs.npz')
    rule = worlds.corpus().world.rule
    samples = rule(pairs['tokens'], pairs['mask'])
    np.testing.assert_allclose(
        whole.scorers[1](tokens, mask),
        (rule(tokens, mask) - samples.mean()) / samples.std(), rtol=1e-6)

  def test_rewards_are_closed_whatever_happens(self):
    closed = mock.Mock()
    with mock.patch.object(components.Components, 'close', closed):
      with self.assertRaises(ZeroDivisionError), self.watch():
        closed.assert_not_called()
        raise ZeroDivisionError
    closed.assert_called_once_with()


if __name__ == '__main__':
  absltest.main()
