"""Tests for rlhf_jax.pipeline.offline_methods: rows, checks and programs."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import algorithms
from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.configs import base
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.studies import nodes as nodes_lib


def run(algorithm='a_lol', arguments=None, **changes):
  """The node of a run."""
  node = base.offline_config('smoke').to_dict()['offline']
  return nodes_lib.merge(node, dict(
      changes, algorithm=algorithm, arguments=arguments or {}), 'test')


def row(*args, **changes):
  return offline_methods.make_row(run(*args, **changes))


def names(method):
  return [node['name'] for node in method.annotators]


class RowTest(parameterized.TestCase):

  def test_filter_is_that_of_a_lol(self):
    filtered = row('sft', dict(sft=dict(aggregate='sequence')), filtered=True)
    self.assertEqual(names(filtered), list(offline_methods.FILTER))
    self.assertEqual(
        filtered.objective, {'name': 'sft', 'aggregate': 'sequence'})
    self.assertTrue(offline_methods.needs_values(filtered))
    self.assertFalse(offline_methods.needs_values(row('sft')))
    self.assertEqual(names(row('r_lol', filtered=True)),
                     ['ref_logprobs', *offline_methods.FILTER])
    # Those that filter already do it once.
    self.assertEqual(row('a_lol', filtered=True), row('a_lol'))

  def test_arguments_and_what_is_dropped(self):
    changed = row('a_lol', dict(keep_positive=dict(drop=True),
                                alol=dict(clip_ratio=None)))
    self.assertEqual(names(changed)[-1], 'prompt_advantages')
    self.assertIsNone(changed.objective['clip_ratio'])

  @parameterized.parameters(
      ('ppo', {}, False, "'ppo', which trains no policy from demonstrations"),
      ('reward_model', {}, False, "algorithm is 'reward_model'"),
      ('a_lol', {'gae': {}}, False, "no node 'gae'"),
      ('a_lol', {'gae': {'drop': True}}, False, "no annotator 'gae'"),
      ('dpo', {}, True, 'filtered=True would leave none'),
      ('pro', {}, True, 'filtered=True would leave none'),
      ('ilql', {}, True, 'set filtered=False'))
  def test_what_does_not_fit(self, algorithm, arguments, filtered, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      row(algorithm, arguments, filtered=filtered)
    self.assertNotIn('\n', str(caught.exception))

  def test_no_row_reads_what_the_stage_does_not_know(self):
    # From other stages, or by a pass of the initial policy.
    told = {'scores', 'ref_logprobs', 'old_values', 'prompt_values'}
    for name in offline_methods.names():
      self.assertContainsSubset(
          names(algorithms.ALGORITHMS[name]),
          told | arithmetic.ARITHMETIC.keys() | {'kl_rewards'}, name)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(*offline_methods.names())
  def test_every_row_traces(self, name):
    offline_methods.check(run(name))

  @parameterized.parameters(
      ('wbc', {}, 'scores', "priority is 'scores'"),
      ('wbc', {}, 'advantage', 'wBC has no advantages of prompts'),
      ('awr_offline', {}, 'advantage', 'has no advantages of prompts'),
      ('dpo', {}, 'reward', "set priority='none'"),
      ('a_lol', {'prompt_advantages': {'drop': True}}, 'none', 'advantages'),
      ('a_lol', {'prompt_values': {'drop': True}}, 'none', 'prompt_values'),
      ('a_lol', {'alol': {'clip': .9}}, 'none', 'clip'),
      ('a_lol', {'alol': {'clip_ratio': -1.}}, 'none', 'clip_ratio'),
      ('ilql', {'ilql': {'tau': 1.5}}, 'none', 'tau'))
  def test_mistakes_are_one_line(self, name, arguments, priority, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      offline_methods.check(run(name, arguments, priority=priority))
    self.assertNotIn('\n', str(caught.exception))


class MethodTest(parameterized.TestCase):

  def make(self, *args, num_steps=3, **changes):
    return offline_methods.make(
        run(*args, **changes), worlds.config(), None, num_steps)

  def test_equal_methods_share_their_programs(self):
    offline_methods.programs.cache_clear()
    self.addCleanup(offline_methods.programs.cache_clear)
    first = offline_methods.programs(self.make())
    # What a step is given is no part of the step.
    self.assertIs(offline_methods.programs(self.make(
        use='all', priority='advantage', log='other')), first)
    for other in (self.make('wbc'), self.make(num_steps=4),
                  self.make(num_microbatches=2),
                  self.make(optimizer=dict(learning_rate=.5))):
      self.assertIsNot(offline_methods.programs(other), first)
    info = offline_methods.programs.cache_info()
    self.assertEqual((info.hits, info.misses), (1, 5))


class ForwardTest(absltest.TestCase):

  def test_log_probabilities_and_values_of_the_policy(self):
    config, keys = worlds.config(), jax.random.split(jax.random.key(0), 3)
    params = transformer.init(config, keys[0])
    rows = worlds.corpus().demonstrations
    tokens, mask = rows.tokens[:4], rows.mask[:4]
    logprobs, values = offline_methods.forward(
        config, None, params, tokens, mask)
    self.assertIsNone(values)
    out = jax.jit(functools.partial(policy.forward, config))(
        params, types.Batch(tokens, mask))
    np.testing.assert_allclose(logprobs, out.logprobs, rtol=1e-5, atol=1e-6)
    # Of a trunk of its own, which is a decoder of another shape.
    other = pretrained.config(
        worlds.MODEL | dict(num_heads=1), config.vocab_size)
    params = {**params, 'value_trunk': heads.trunk(
        transformer.init(other, keys[1])),
              'value_head': heads.init_scalar(
                  keys[2], config.hidden_size, scale=1.)}
    again, values = offline_methods.forward(
        config, other, params, tokens, mask)
    np.testing.assert_allclose(again, logprobs, rtol=1e-5, atol=1e-6)
    own, wrong = (jax.jit(functools.partial(
        policy.forward, config, value_config=shape))(
            params, types.Batch(tokens, mask)).values
                  for shape in (other, config))
    np.testing.assert_allclose(values, own, rtol=1e-5, atol=1e-6)
    self.assertGreater(np.abs(own - wrong)[mask].max(), .01)


if __name__ == '__main__':
  absltest.main()
