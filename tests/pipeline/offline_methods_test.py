"""Tests for rlhf_jax.pipeline.offline_methods: rows, checks and programs."""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import worlds

from rlhf_jax import algorithms
from rlhf_jax import policy
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.configs import base
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import unpaired
from rlhf_jax.studies import trees


def run(algorithm='a_lol', arguments=None, **changes):
  """The node of a run."""
  node = base.offline_config('smoke').to_dict()['offline']
  return trees.merge(node, dict(
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
      ('dpo', {}, True, 'whole examples, so that filtered=True would leave'),
      ('pro', {}, True, 'filtered=True would leave too little'),
      ('kto', {}, True, 'liked or disliked, so that filtered=True'),
      ('ilql', {}, True, 'set filtered=False'))
  def test_what_does_not_fit(self, algorithm, arguments, filtered, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      row(algorithm, arguments, filtered=filtered)
    self.assertNotIn('\n', str(caught.exception))

  def test_no_row_reads_what_the_stage_does_not_know(self):
    # From other stages, or by a pass of the initial policy.
    told = {'scores', 'ref_logprobs', 'old_values', 'prompt_values',
            *chain_lib.EACH_STEP}
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
      ('dpo', {}, 'reward', "whole examples; set priority='none'"),
      ('kto', {}, 'reward', "liked or disliked; set priority='none'"),
      ('kto', {'kto': {'beta': 0.}}, 'none', 'beta must be > 0'),
      ('kto', {'reference_point': {'drop': True}}, 'none', 'reference_points'),
      ('a_lol', {'prompt_advantages': {'drop': True}}, 'none', 'advantages'),
      ('a_lol', {'prompt_values': {'drop': True}}, 'none', 'prompt_values'),
      ('a_lol', {'alol': {'clip': .9}}, 'none', 'clip'),
      ('a_lol', {'alol': {'clip_ratio': -1.}}, 'none', 'clip_ratio'),
      ('ilql', {'ilql': {'tau': 1.5}}, 'none', 'tau'))
  def test_mistakes_are_one_line(self, name, arguments, priority, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      offline_methods.check(run(name, arguments, priority=priority))
    self.assertNotIn('\n', str(caught.exception))

  def test_rows_that_a_step_cuts_are_not_packed(self):
    offline_methods.check(run('dpo', packing=True))
    with self.assertRaisesRegex(ValueError, 'KTO cuts.*set packing=False'):
      offline_methods.check(run('kto', packing=True))


class MethodTest(parameterized.TestCase):

  def make(self, *args, num_steps=3, **changes):
    return offline_methods.make(
        run(*args, **changes), worlds.config(), None, num_steps)

  @parameterized.parameters({}, dict(dropout=.1), dict(adapter_dropout=.1))
  def test_steps_drop_out_where_the_policy_does(self, **changes):
    method = offline_methods.make(run(), dataclasses.replace(
        worlds.config(), **changes), None, 3)
    with (mock.patch.object(train, 'make_train_step',
                            side_effect=StopIteration) as step,
          self.assertRaises(StopIteration)):
      offline_methods.programs.__wrapped__(method)
    self.assertIs(step.call_args.kwargs['dropout'], bool(changes))

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


class ReferencePointTest(parameterized.TestCase):
  """KTO's z0 is of the whole batch, of the policy as it is at each step."""

  def setUp(self):
    super().setUp()
    self.config = worlds.config()
    init = jax.jit(transformer.init, static_argnums=0)
    self.params, reference = (
        init(self.config, jax.random.key(i)) for i in range(2))
    rows = worlds.corpus().demonstrations
    tokens, mask = rows.tokens[:8, 0], rows.mask[:8, 0]
    others = unpaired.mismatched(tokens, mask)
    batch = types.Batch(
        *(np.stack(x, axis=1) for x in zip((tokens, mask), others)),
        targets=np.tile([[1, 0], [0, 0]], (4, 1)).astype(np.float32))
    self.batch = batch.replace(ref_logprobs=np.asarray(offline_methods.forward(
        self.config, None, reference, batch.tokens, batch.mask)[0]))

  def after(self, batch, num_microbatches=1, base=None, num_steps=2):
    """The state after some steps on one batch, and metrics of each."""
    method = offline_methods.make(
        run('kto', num_microbatches=num_microbatches, optimizer=dict(
            learning_rate=1e-2, schedule='constant')),
        self.config, None, num_steps)
    programs = offline_methods.programs(method)
    params = {k: jnp.copy(x) if k == 'embed' else jax.tree.map(jnp.copy, x)
              for k, x in self.params.items() if k not in (base or {})}
    state, metrics = train.init_state(
        params, programs.tx, jax.random.key(0)), []
    for _ in range(num_steps):
      state, current = programs.step(
          state, batch, *([] if base is None else [base]))
      metrics.append(jax.device_get(current))
    return jax.device_get(state.params), metrics

  def points(self, params):
    """By hand."""
    batch = self.batch
    logprobs = offline_methods.forward(
        self.config, None, params, batch.tokens, batch.mask)[0]
    ratios = np.where(batch.mask, logprobs - batch.ref_logprobs, 0).sum(-1)
    return max(ratios[:, 1].mean(), 0), ratios[:, 0]

  def test_is_of_the_current_policy(self):
    params, (first, second) = self.after(self.batch)
    point, ratios = self.points(self.params)
    self.assertGreater(point, 1)
    self.assertAlmostEqual(
        first['policy/reference_point'] / point, 1, delta=1e-4)
    liked = self.batch.targets[:, 0]
    np.testing.assert_allclose(first['train/loss'], np.mean(
        1 / (1 + np.exp((2 * liked - 1) * .1 * (ratios - point)))), rtol=1e-4)
    self.assertGreater(abs(second['policy/reference_point'] - point), .01)
    self.assertGreater(np.abs(params['embed'] - self.params['embed']).max(), 0)

  @parameterized.parameters(2, 4)
  def test_cutting_a_batch_changes_nothing(self, parts):
    whole, cut = self.after(self.batch), self.after(self.batch, parts)
    jax.tree.map(functools.partial(
        np.testing.assert_allclose, rtol=1e-4, atol=1e-5), whole, cut)

  def test_rows_that_fill_up_do_not_count(self):
    filled = sharding.pad_rows(self.batch, 12)
    self.assertLen(filled.tokens, 12)
    jax.tree.map(functools.partial(
        np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
                 self.after(self.batch), self.after(filled))

  def test_devices_change_nothing(self):
    one = self.after(self.batch)
    with jax.set_mesh(meshes.make({'data': 8})):
      eight = self.after(sharding.shard_batch(self.batch))
    jax.tree.map(functools.partial(
        np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, eight)

  def test_what_lies_under_the_trained_part_is_read(self):
    base = {k: x for k, x in self.params.items() if k != 'embed'}
    _, metrics = self.after(self.batch, base=base, num_steps=1)
    self.assertAlmostEqual(metrics[0]['policy/reference_point'] / self.points(
        self.params)[0], 1, delta=1e-4)


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
