"""Tests for rlhf_jax.stages.rule: a study whose gold score is the rule."""

import shutil

from absl.testing import absltest
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import scale
from rlhf_jax.stages import pairs
from rlhf_jax.stages import rule
from rlhf_jax.stages import samples
from rlhf_jax.storage import files
from rlhf_jax.studies import nodes
from rlhf_jax.studies import plan

ARGUMENTS = dict(seed=0, data=worlds.DATA, force_eos=False, sampler={},
                 upstream=dict(reference='sft', gold='gold'))


class StageTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = worlds.folder() / 'study'
    worlds.copy(worlds.untrained(), self.workdir)
    shutil.rmtree(self.workdir / 'gold')
    context = worlds.Context(self.workdir, self.workdir / 'gold')
    context.directory.mkdir()
    self.result = rule.run(context, seed=0, data=worlds.DATA,
                           upstream=dict(reference='sft'))
    files.write_json(self.workdir / 'gold/result.json', {
        'result': self.result})
    self.context = worlds.Context(self.workdir)
    self.rule = worlds.corpus().world.rule

  def test_result(self):
    texts = worlds.corpus().demonstrations
    scores = self.rule(texts.tokens, texts.mask)
    self.assertEqual(self.result, {
        'rule': 'reviews', 'mean': scores.mean(), 'std': scores.std()})

  def test_pairs_are_labelled_by_the_rule(self):
    result = pairs.run(self.context, **ARGUMENTS)
    arrays = files.load_arrays(self.context.directory / 'pairs.npz')
    scores = self.rule(arrays['tokens'], arrays['mask'])
    np.testing.assert_array_equal(arrays['gold_scores'], scores)
    self.assertGreater(len(np.unique(scores)), 4)
    self.assertAlmostEqual(result['gold_mean'], scores.mean(), places=6)

  def test_samples_are_scored_by_the_rule(self):
    samples.run(self.context, num_samples=4, call=dict(
        samples_per_call=2, shard_prompts=4), **ARGUMENTS)
    arrays = files.load_arrays(self.context.directory / 'shard_0000.npz')
    np.testing.assert_array_equal(arrays['gold_scores'], arrays['rule'])

  def test_policies_are_watched_in_the_unit_of_pairs(self):
    upstream = dict(reference='sft', gold='gold', pairs='pairs')
    world = artifacts.World(self.context, worlds.DATA, 0, upstream)
    texts = worlds.corpus().eval_demonstrations
    rows = texts.tokens[:, 0], texts.mask[:, 0]
    unit = scale.single(.1, .7)  # of the world's pairs
    np.testing.assert_allclose(
        world.gold_scorer()(*rows),
        (self.rule(*rows) - unit['mean']) / unit['std'], rtol=1e-6)


class PlanTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.config = worlds.get_config(worlds.FIGURE_3, 'smoke,world=long_tail')

  def test_no_gold_model_is_trained(self):
    stages = {stage.name: stage.run.func for stage in plan.plan(self.config)}
    self.assertEqual(stages['seed_0/gold'], rule.run)
    self.assertEqual(nodes.data_config(self.config)['name'], 'long_tail')

  def test_nothing_is_trained_against_the_rule(self):
    config = worlds.get_config(f'{worlds.COSTE}/fig4_ppo.py', 'smoke')
    config['gold']['kind'] = 'rule'
    plan.plan(config)
    config['online']['reward']['components'] = {'true': {'kind': 'gold'}}
    with self.assertRaisesRegex(
        errors.ConfigError, r"^config\.gold\.kind is 'rule', and a component "
        "of kind 'gold' is a model; set config.gold.kind to 'model'$"):
      plan.plan(config)

  def test_texts_without_a_rule(self):
    config = worlds.on_files(self.config | {
        'data': worlds.get_config(worlds.FIGURE_3, 'smoke')['data']})
    with self.assertRaisesRegex(
        errors.ConfigError, r"^config\.gold\.kind is 'rule', and these texts "
        "have no rule"):
      plan.plan(config)

  def test_unknown_kind(self):
    self.config['gold']['kind'] = 'oracle'
    with self.assertRaisesRegex(
        errors.ConfigError, r"config\.gold\.kind is 'oracle'.*'rule'"):
      plan.plan(self.config)


class SmokeTest(absltest.TestCase):
  """The study of figure 3 in the world `long_tail`, from its command."""

  def test_a_study(self):
    workdir = worlds.folder() / 'study'
    done = worlds.launch(f'{worlds.FIGURE_3}:smoke,world=long_tail', workdir)
    self.assertEqual(done.returncode, 0, done.stderr)
    rows = worlds.rows(workdir / 'report_seeds_0/results.csv')
    self.assertNotEmpty(rows)
    for row in rows:
      self.assertEqual(row['gold'], row['rule'])


if __name__ == '__main__':
  absltest.main()
