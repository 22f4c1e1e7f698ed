"""Tests for rlhf_jax.studies.seed: stages when they are asked for, and roles.
"""

import functools
import types

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.pipeline import artifacts
from rlhf_jax.stages import best_of_n
from rlhf_jax.stages import best_of_n_policy
from rlhf_jax.stages import features
from rlhf_jax.stages import feedback
from rlhf_jax.stages import gold
from rlhf_jax.stages import loaded_rewards
from rlhf_jax.stages import logged
from rlhf_jax.stages import offline_policy
from rlhf_jax.stages import online_policy
from rlhf_jax.stages import pairs
from rlhf_jax.stages import preferences
from rlhf_jax.stages import prompt_value
from rlhf_jax.stages import proxies
from rlhf_jax.stages import rule
from rlhf_jax.stages import samples
from rlhf_jax.stages import scores
from rlhf_jax.stages import sft
from rlhf_jax.studies import nodes
from rlhf_jax.studies import seed as seed_lib

STAGES = (best_of_n, best_of_n_policy, features, feedback, gold,
          loaded_rewards, logged, offline_policy, online_policy, pairs,
          preferences, prompt_value, proxies, rule, samples, scores, sft)
EVERYTHING = {role: f'seed_3/{role}' for role in artifacts.ROLES} | {
    'trunks': ['seed_3/trunk']}


@functools.cache
def config() -> dict:
  return worlds.get_config(worlds.FIGURE_3, 'smoke')


def seed() -> seed_lib.Seed:
  return seed_lib.Seed(config(), nodes.data_config(config()), 3)


def names(one: seed_lib.Seed) -> list[str]:
  return [stage.name.removeprefix('seed_3/') for stage in one.stages]


def keywords(one: seed_lib.Seed, name: str) -> dict:
  stage, = [stage for stage in one.stages if stage.name == f'seed_3/{name}']
  return stage.run.keywords


class RolesTest(parameterized.TestCase):

  @parameterized.parameters(*STAGES)
  def test_a_stage_is_told_of_what_it_reads_and_no_more(self, stage):
    one = seed()
    name = one.add('one', stage, EVERYTHING, note='kept')
    self.assertEqual(name, 'seed_3/one')
    self.assertIs(one.stages[0].run.func, stage.run)
    kwargs = keywords(one, 'one')
    self.assertEqual(kwargs.pop('upstream'), {
        role: EVERYTHING[role] for role in (*stage.NEEDS, *stage.READS)})
    self.assertEqual(kwargs, {'note': 'kept'})
    self.assertContainsSubset(stage.NEEDS + stage.READS, artifacts.ROLES)

  @parameterized.parameters(
      *((stage, role) for stage in STAGES for role in stage.NEEDS))
  def test_a_role_that_is_needed_and_not_there(self, stage, role):
    for absent in ({}, {role: None}, {role: []}):
      upstream = {k: v for k, v in EVERYTHING.items() if k != role} | absent
      one = seed()
      with self.assertRaisesRegex(
          errors.ConfigError, f"^stage policies/one needs '{role}', which this "
          'study does not make; name a condition, a log or data'):
        one.add('policies/one', stage, upstream)
      self.assertEmpty(one.stages)

  def test_a_role_that_may_be_absent_is_absent(self):
    one = seed()
    one.add('one', online_policy, {'reference': 'seed_3/sft', 'gold': None})
    self.assertEqual(keywords(one, 'one')['upstream'],
                     {'reference': 'seed_3/sft'})

  def test_every_stage_of_a_seed_says_what_it_needs(self):
    """But for those that see all seeds: reports and the judge."""
    modules = {path.stem for path in (
        worlds.ROOT / 'rlhf_jax/stages').glob('*.py')}
    of_seeds = {'__init__', 'report', 'policy_report', 'win_rates'}
    self.assertEqual({stage.__name__.rpartition('.')[2] for stage in STAGES},
                     modules - of_seeds)
    for stage in STAGES:
      self.assertIsInstance(stage, types.ModuleType)
      self.assertNoCommonElements(stage.NEEDS, stage.READS)


class PartsTest(absltest.TestCase):
  """Reward models of which a part is trained, on a loaded model."""

  def proxy(self, **tuning):
    node = config()['proxy']
    return node | {'model': node['model'] | tuning | {'path': '/a/model'}}

  def test_adapters_start_from_no_trunk(self):
    one = seed()
    one.add_proxies('proxies', self.proxy(lora=dict(rank=2)),
                    pairs='seed_3/pairs', label_noise=0.)
    self.assertEqual(names(one), ['sft', 'proxies'])
    self.assertEqual(keywords(one, 'proxies')['upstream'], {
        'pairs': 'seed_3/pairs', 'trunks': ['seed_3/sft']})

  def test_heads_share_the_features_of_the_same_responses(self):
    one, proxy = seed(), self.proxy(trainable_layers=0)
    for name in ('one', 'two'):
      one.add_proxies(name, proxy, pairs='seed_3/pairs', label_noise=.1)
    self.assertEqual(names(one), ['sft', 'pairs_features', 'one', 'two'])
    for name in ('one', 'two'):
      self.assertEqual(keywords(one, name)['upstream'], {
          'pairs': 'seed_3/pairs', 'trunks': ['seed_3/sft'],
          'features': ['seed_3/pairs_features']})
    kwargs = keywords(one, 'pairs_features')
    self.assertEqual(kwargs, {'model': proxy['model'], 'upstream': {
        'reference': 'seed_3/sft', 'pairs': 'seed_3/pairs'}})
    # Of several rounds in their order, and of another trunk others.
    other = self.proxy(trainable_layers=0, dtype='bfloat16')
    one.add_proxies('three', other, label_noise=.1, pairs=[
        'seed_3/round/pairs', 'seed_3/pairs'])
    self.assertEqual(keywords(one, 'three')['upstream']['features'], [
        'seed_3/round/pairs_features', 'seed_3/pairs_features_1'])
    self.assertEqual(
        keywords(one, 'pairs_features_1')['model'], other['model'])
    self.assertEqual(one.add_features('samples', 'seed_3/samples', proxy),
                     'seed_3/samples_features')
    self.assertEqual(keywords(one, 'samples_features')['upstream'], {
        'reference': 'seed_3/sft', 'samples': 'seed_3/samples'})
    self.assertIsNone(one.add_features(
        'samples', 'seed_3/samples', config()['proxy']))


class StagesTest(parameterized.TestCase):

  def test_each_is_added_when_it_is_asked_for_and_once(self):
    one = seed()
    self.assertEmpty(one.stages)
    self.assertEqual(one.gold, 'seed_3/gold')
    self.assertEqual(names(one), ['sft', 'gold'])
    self.assertEqual([one.reference, one.gold], ['seed_3/sft', 'seed_3/gold'])
    self.assertEqual(one.add_pairs(force_eos=True), 'seed_3/pairs')
    self.assertEqual(names(one), ['sft', 'gold', 'pairs'])
    for name in names(one):
      kwargs = keywords(one, name)
      self.assertEqual(kwargs['seed'], 3)
      self.assertEqual(kwargs['data'], nodes.data_config(config()))

  def test_what_they_are_told(self):
    one = seed()
    one.add_pairs('round/pairs', force_eos=True, policy='seed_3/policy',
                  first=7, num_pairs=5)
    kwargs = keywords(one, 'round/pairs')
    self.assertEqual(kwargs['upstream'], {
        'reference': 'seed_3/sft', 'gold': 'seed_3/gold',
        'policy': 'seed_3/policy'})
    self.assertEqual(
        (kwargs['force_eos'], kwargs['first'], kwargs['num_pairs']),
        (True, 7, 5))
    self.assertEqual(kwargs['sampler'], config()['sampler'])
    self.assertEqual(keywords(one, 'sft')['node'], config()['policy'])
    self.assertEqual(keywords(one, 'sft')['part'], 'policy')
    self.assertEqual(keywords(one, 'gold')['node'], config()['gold'])
    self.assertEqual(keywords(one, 'gold')['sampler'], config()['sampler'])
    for name in ('sft', 'gold'):
      self.assertEqual(keywords(one, name)['training'], config()['training'])
    one.add_proxies('round/proxies', config()['proxy'],
                    pairs=['seed_3/pairs', 'seed_3/round/pairs'],
                    label_noise=.25)
    kwargs = keywords(one, 'round/proxies')
    self.assertEqual(kwargs['upstream'], {
        'pairs': ['seed_3/pairs', 'seed_3/round/pairs'],
        'trunks': ['seed_3/trunk']})
    self.assertEqual((kwargs['label_noise'], kwargs['validate']), (.25, False))
    self.assertNoCommonElements(
        kwargs['node'], ('sft', 'trunk', 'validate', 'label_noise'))
    self.assertEqual(kwargs['node']['num_members'], 2)
    trunk = keywords(one, 'trunk')
    self.assertEqual(trunk['part'], 'trunk')
    self.assertEqual(trunk['node'], config()['proxy']['sft'] | {
        'model': config()['proxy']['model']})

  def test_trunks_are_shared_by_ensembles_that_are_alike(self):
    proxy, one = config()['proxy'], seed()
    larger = dict(proxy, model=dict(proxy['model'], hidden_size=32))
    usual = one.add_trunks(proxy, 'first/')
    self.assertEqual(usual, ['seed_3/trunk'])  # the same in all studies
    self.assertEqual(one.add_trunks(dict(proxy, num_members=9), 'x/'), usual)
    self.assertEqual(one.add_trunks(larger, 'large/'), ['seed_3/large/trunk'])
    self.assertEqual(one.add_trunks(larger, 'again/'), ['seed_3/large/trunk'])
    longer = dict(proxy, sft=dict(proxy['sft'], num_steps=9))
    self.assertEqual(one.add_trunks(longer, 'long/'), ['seed_3/long/trunk'])
    own = dict(proxy, trunk='member', num_members=2)
    self.assertEqual(one.add_trunks(own, 'own/'),
                     ['seed_3/own/trunk_0', 'seed_3/own/trunk_1'])
    self.assertEqual(one.add_trunks(dict(own, num_members=3), 'three/'), [
        f'seed_3/three/trunk_{m}' for m in range(3)])
    self.assertEqual([keywords(one, f'three/trunk_{m}')['part']
                      for m in range(3)], ['trunk_0', 'trunk_1', 'trunk_2'])
    self.assertLen(one.stages, 8)

  def test_conditions(self):
    proxy, one = dict(config()['proxy'], label_noise=.1), seed()
    stages = one.add_conditions({
        'clean': dict(proxy, label_noise=0.), 'noisy': proxy,
        'own': dict(proxy, trunk='member', num_members=1)}, 'seed_3/pairs')
    self.assertEqual(stages, {name: f'seed_3/{name}/proxies'
                              for name in ('clean', 'noisy', 'own')})
    self.assertEqual(names(one), [
        'trunk', 'clean/proxies', 'noisy/proxies', 'own/trunk_0',
        'own/proxies'])
    self.assertEqual([keywords(one, f'{name}/proxies')['label_noise']
                      for name in stages], [0., .1, .1])
    for name in stages:
      self.assertEqual(
          keywords(one, f'{name}/proxies')['upstream']['pairs'], 'seed_3/pairs')


if __name__ == '__main__':
  absltest.main()
