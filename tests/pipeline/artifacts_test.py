"""Tests for rlhf_jax.pipeline.artifacts: what stages leave to each other."""

import pathlib
import shutil

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.storage import files

ALL = dict(reference='sft', gold='gold', pairs='pairs', proxies='proxies')


def world(workdir=None, seed=0, data=worlds.DATA, **given):
  return artifacts.World(
      worlds.Context(workdir or worlds.untrained()), data, seed, given)


def rows(count=5):
  """Tokens and mask [N, T]."""
  demonstrations = worlds.corpus().demonstrations
  return demonstrations.tokens[:count, 0], demonstrations.mask[:count, 0]


def copied(test: absltest.TestCase) -> pathlib.Path:
  """The untrained stages, to be changed."""
  workdir = worlds.folder()
  worlds.copy(worlds.untrained(), workdir)
  test.addCleanup(shutil.rmtree, workdir)
  return workdir


class ModelTest(parameterized.TestCase):

  def check(self, message, function, *args):
    with self.assertRaisesRegex(errors.CheckpointError, message) as caught:
      function(*args)
    self.assertNotIn('\n', str(caught.exception))

  def test_of_a_stage_without_one(self):
    pairs = worlds.untrained() / 'pairs'
    for function in (artifacts.read_model, artifacts.read_tokenizer,
                     artifacts.restore_policy, artifacts.restore_rewards):
      self.check('pairs holds no trained model; name a stage that', function,
                 pairs)

  def test_of_another_kind(self):
    sft, gold = (worlds.untrained() / name for name in ('sft', 'gold'))
    self.check('sft holds a policy model where a reward model is needed',
               artifacts.restore_rewards, sft)
    self.check('gold holds a reward model where a policy model is needed',
               artifacts.restore_policy, gold)
    self.check('gold holds a reward model where a policy',
               artifacts.restore_parts, gold)
    self.assertEqual(artifacts.read_model(sft, 'policy'),
                     artifacts.read_model(sft))

  def test_a_directory_says_all_that_a_reader_needs(self):
    policy = artifacts.restore_policy(worlds.untrained() / 'sft')
    self.assertEqual(policy.config, worlds.config())
    expected = transformer.init(
        worlds.config(), jax.random.split(jax.random.key(0), 3)[0])
    jax.tree.map(np.testing.assert_array_equal, policy.params, expected)
    parts = artifacts.restore_parts(worlds.untrained() / 'sft')
    self.assertIsNone(parts.base)
    jax.tree.map(np.testing.assert_array_equal, parts.trainable, expected)

  def test_members_and_one_model(self):
    proxies = artifacts.restore_rewards(worlds.untrained() / 'proxies')
    self.assertEqual(proxies.num_members, worlds.NUM_MEMBERS)
    raw = proxies.scores(*rows(), standardize=False)
    mean, std = np.float32([.1, -.2]), np.float32([.5, 2.])
    np.testing.assert_allclose(
        proxies.scores(*rows()),
        (raw - mean[:, None]) / std[:, None], rtol=1e-5, atol=1e-6)
    gold = artifacts.restore_rewards(worlds.untrained() / 'gold')
    self.assertEqual(gold.num_members, 1)
    self.assertIsNone(gold.scale)

  def test_tokenizer_is_the_one_that_was_trained_with(self):
    coder = artifacts.read_tokenizer(worlds.untrained() / 'sft')
    own = worlds.corpus().tokenizer
    self.assertEqual(coder.roles, own.roles)
    self.assertEqual(coder.vocab_size, own.vocab_size)
    tokens, _ = rows(1)
    self.assertEqual(coder.decode(tokens[0]), own.decode(tokens[0]))


class CorpusTest(parameterized.TestCase):

  def test_that_of_the_reference(self):
    self.assertIs(world(reference='sft').corpus, worlds.corpus())

  @parameterized.parameters(
      dict(seed=1), dict(data=worlds.DATA | dict(num_pair_prompts=9)))
  def test_another_one_is_refused(self, **changes):
    with self.assertRaisesRegex(
        errors.CheckpointError, 'the corpus is not the one that sft was '
        'trained on') as caught:
      _ = world(reference='sft', **changes).corpus
    self.assertNotIn('\n', str(caught.exception))


class WorldTest(parameterized.TestCase):

  def test_nothing_is_read_before_it_is_asked_for(self):
    there = world(pathlib.Path('nonesuch'), reference='sft', gold='gold')
    with self.assertRaisesRegex(
        errors.CheckpointError, 'nonesuch/sft/result.json'):
      _ = there.reference

  def test_what_is_absent_is_absent(self):
    there = world(reference='sft', gold=None)
    self.assertEqual(there.upstream, {'reference': 'sft'})
    self.assertIsNone(there.gold)
    self.assertIsNone(there.proxies)
    self.assertIsNone(there.column)
    self.assertIsNone(there.gold_scorer())
    self.assertIsNone(there.rule_unit())
    self.assertIsNone(there.rule_scorer())
    self.assertIs(there.policy, there.reference)

  def test_gold_without_samples_has_no_unit(self):
    there = world(reference='sft', gold='gold')
    self.assertIsNone(there.gold.scale)
    self.assertIsNone(there.gold_scorer())

  def test_gold_is_in_deviations_of_the_samples(self):
    there = world(**ALL)
    raw = artifacts.restore_rewards(worlds.untrained() / 'gold').scores(
        *rows())[0]
    expected = (raw - .1) / .7
    np.testing.assert_allclose(
        there.gold_scorer()(*rows()), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        there.gold.scores(*rows())[0], expected, rtol=1e-5,
        atol=1e-6)

  def test_column_is_in_its_own_units(self):
    workdir = copied(self)
    worlds.save(workdir, 'gold', {'target_mean': 7., 'target_std': 3.})
    there = world(workdir, **ALL)
    raw = there.gold.scores(*rows(), standardize=False)[0]
    name, model = there.column
    self.assertEqual(name, worlds.corpus().log_target)
    np.testing.assert_allclose(
        model.scores(*rows())[0], 3 * raw + 7, rtol=1e-5)
    worlds.save(workdir, 'gold', {})  # that has learned the rule
    self.assertIsNone(world(workdir, **ALL).column)

  def test_rule_is_in_deviations_of_the_samples(self):
    there, rule = world(**ALL), worlds.corpus().world.rule
    pairs = files.load_arrays(worlds.untrained() / 'pairs/pairs.npz')
    samples = rule(pairs['tokens'], pairs['mask'])
    mean, std = there.rule_unit()
    self.assertAlmostEqual(mean, samples.mean(), 5)
    self.assertAlmostEqual(std, samples.std(), 5)
    np.testing.assert_allclose(
        there.rule_scorer()(*rows()), (rule(*rows()) - mean) / std)

  def test_policy_that_goes_on(self):
    workdir = copied(self)
    params = transformer.init(worlds.config(), jax.random.key(9))
    worlds.save(workdir, 'better', {}, kind='policy', params=params)
    there = world(workdir, reference='sft', policy='better')
    for trained in (there.policy.params, there.start().trainable):
      jax.tree.map(np.testing.assert_array_equal, trained, params)
    self.assertGreater(np.abs(
        there.reference.params['embed'] - params['embed']).max(), .01)
    self.assertEqual(there.node, worlds.MODEL)

  def test_start_is_new_each_time(self):
    """A step may donate it."""
    there = world(reference='sft')
    jax.tree.map(lambda x: x.delete(), there.start().trainable)
    jax.tree.map(np.testing.assert_array_equal, there.start().trainable,
                 there.reference.params)

  def test_log_and_its_training_part(self):
    workdir = copied(self)
    worlds.save(workdir, 'log', {
        'groups': ['up'], 'source': 'corpus', 'num_validation': 2},
                logged={'tokens': np.arange(5.)})
    worlds.save(workdir, 'values', {}, values={'values': np.arange(5.) / 2})
    there = world(workdir, reference='sft', log='log', values='values')
    self.assertEqual((there.log.groups, there.log.source), (['up'], 'corpus'))
    np.testing.assert_array_equal(there.log.arrays['tokens'], np.arange(5))
    np.testing.assert_array_equal(there.log.training()['tokens'], np.arange(3))
    np.testing.assert_array_equal(there.values(), np.arange(5) / 2)


if __name__ == '__main__':
  absltest.main()
