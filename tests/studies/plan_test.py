"""Tests for rlhf_jax.studies.plan: who is planned, what is read, what is new.
"""

import copy
import functools
import importlib
import json
import pathlib
import shutil
import sys

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.configs import base
from rlhf_jax.data import tokenizer
from rlhf_jax.models import pretrained
from rlhf_jax.runner import recipes
from rlhf_jax.studies import plan

FIGURE_15 = f'{worlds.COSTE}/fig15_validation_loss.py'
ITERATED = 'experiments/rlhf_notes/iterated.py'
FUNCTION = dict(kind='function', function='polite:score')
RULE = dict(kind='function', function='rlhf_jax.data.task_rules:fluent')
LENGTH = dict(kind='length', target=9.)


def setUpModule():
  """A module of a user, which a reward may name."""
  path = worlds.folder()
  (path / 'polite.py').write_text(
      'def score(prompts, responses):\n  return [1.0 for _ in responses]\n')
  sys.path.insert(0, str(path))
  importlib.invalidate_caches()


def tearDownModule():
  del sys.path[0]


def online(**runs) -> dict:
  config = base.online_config('smoke')
  config.title = 'online'
  config.runs = {name: dict(run, labels=dict(method=name))
                 for name, run in runs.items()}
  config.figure = dict(kind='table', columns=('proxy',))
  return config.to_dict()


def rloo(**components) -> dict:
  """A run of RLOO on these components."""
  return dict(algorithm='rloo', rollout=dict(samples=2),
              reward=dict(components=components))


def names(config: dict) -> list[str]:
  return [stage.name for stage in plan.plan(config)]


def keywords(config: dict) -> dict[str, dict]:
  """What each stage is told, by its name."""
  return {stage.name: stage.run.keywords for stage in plan.plan(config)}


# A config of each kind of study that reads all it can: a function, and models
# of the policy, gold, proxy and of a condition.


def best_of_n(models) -> dict:
  config = worlds.get_config(worlds.FIGURE_3, 'smoke')
  del models['condition']
  return config


def of_conditions(config, models) -> dict:
  config['conditions'] = {
      'clean': {}, 'other': dict(model=dict(path=str(models['condition'])))}
  return config


def online_of_all(models) -> dict:
  return of_conditions(online(
      one=rloo(proxy=dict(kind='proxy'), f=FUNCTION, fluent=RULE),
      two=dict(condition='other')), models)


def offline_of_all(models) -> dict:
  config = base.offline_config('smoke')
  config.title = 'offline'
  config.logs.clean = dict(components=dict(
      reward=dict(kind='proxy', squash='sigmoid'),
      f=dict(FUNCTION, range=(0, 1))))
  config.logs.other = dict(condition='other')
  config.runs = {name: dict(log=name, labels=dict(method=name))
                 for name in ('clean', 'other')}
  config.figure = dict(kind='table', columns=('gold',))
  return of_conditions(config.to_dict(), models)


def iterated(models) -> dict:
  config = worlds.get_config(ITERATED, 'smoke')
  config['online']['reward']['components']['f'] = FUNCTION
  config['proxy']['batch_size'] = 8
  del models['condition']
  return config


def reward_models(models) -> dict:
  return of_conditions(worlds.get_config(FIGURE_15, 'smoke'), models)


KINDS = {'best_of_n': best_of_n, 'online': online_of_all,
         'offline': offline_of_all, 'iterated': iterated,
         'reward_models': reward_models}


def of_all(kind: str) -> tuple[dict, dict[str, pathlib.Path]]:
  """The config of a kind of study, and the models that it reads."""
  directory = worlds.folder()
  models = {part: directory / part
            for part in ('policy', 'gold', 'proxy', 'condition')}
  for path in models.values():
    shutil.copytree(worlds.loaded() / 'model', path)
  config = worlds.on_files(KINDS[kind](models))
  for part in ('policy', 'gold', 'proxy'):
    config[part]['model']['path'] = str(models[part])
  return config, models


class StagesTest(parameterized.TestCase):

  def test_a_policy_is_trained_on_a_reward_function_alone(self):
    """No gold model, no trunk, no pairs and no reward models."""
    of_world = online(rloo=rloo(f=FUNCTION, fluent=RULE))
    self.assertEmpty(of_world['conditions'])
    on_files = worlds.on_files(copy.deepcopy(of_world), preferences=False)
    for config in (of_world, on_files):
      config['seeds'] = (0, 7)
      stages = keywords(config)
      self.assertEqual(list(stages), [
          'seed_0/sft', 'seed_0/policies/rloo', 'seed_7/sft',
          'seed_7/policies/rloo', 'report_seeds_0_7'])
      self.assertEqual(stages['seed_7/policies/rloo']['upstream'],
                       {'reference': 'seed_7/sft'})
      self.assertEqual(stages['report_seeds_0_7']['stages'],
                       list(stages)[:-1])

  def test_who_reads_the_gold_model_has_one(self):
    config = online(rloo=rloo(f=RULE))
    for reader in (dict(figure=dict(kind='table', columns=('gold',))),
                   dict(figure=dict(kind='table', columns=('rule',))),
                   dict(judge=dict(config['judge'], against='reference',
                                   num_prompts=4))):
      self.assertContainsSubset(
          ['seed_0/gold', 'seed_0/pairs'], names(config | reader))
      # And there it cannot be had.
      files_alone = worlds.on_files(
          copy.deepcopy(config | reader), preferences=False)
      if reader.get('figure', {}).get('columns') == ('rule',):
        continue  # of the small world alone
      with self.assertRaisesRegex(
          errors.ConfigError, r'config\.data\.preferences is None'):
        plan.plan(files_alone)

  @parameterized.parameters(*KINDS)
  def test_the_config_stays_as_it_is(self, kind):
    config, _ = of_all(kind)
    before = copy.deepcopy(config)
    plan.plan(config)
    self.assertEqual(config, before)

  @parameterized.parameters(
      ('best_of_n', 'proxy'), ('online', r'conditions\.clean'),
      ('offline', r'conditions\.clean'), ('iterated', 'proxy'),
      ('reward_models', r'conditions\.clean'))
  def test_the_mesh_is_that_of_the_devices(self, kind, where):
    """Of as many as the caller says; an axis of -1 counts as 1 otherwise."""
    config, _ = of_all(kind)
    config['mesh'] = dict(member=-1)
    plan.plan(config)
    with self.assertRaisesRegex(
        errors.TopologyError,
        rf'^config\.{where}: 2 members are not divisible by member 5'):
      plan.plan(config, 5)
    config['mesh'] = dict(data=-1, tensor=3)
    with self.assertRaisesRegex(errors.TopologyError, 'there are 8 devices'):
      plan.plan(config, 8)
    config['mesh'] = dict(tensor=-1)
    with self.assertRaisesRegex(
        errors.TopologyError, r'^config\.policy\.model: num_heads 2 is not'):
      plan.plan(config, 4)
    plan.plan(config, 2)

  @parameterized.product(
      kind=('online', 'iterated'), figure=(3, None, ('table',)))
  def test_a_figure_that_is_none(self, kind, figure):
    config, _ = of_all(kind)
    with self.assertRaisesRegex(
        errors.ConfigError, r"^config\.figure is .*; give {'kind': ...}"):
      plan.plan(config | {'figure': figure})

  def test_final(self):
    final = lambda *seeds: plan.final({'seeds': seeds})
    self.assertEqual(final(0), 'report_seeds_0')
    self.assertEqual(final(3, 1000), 'report_seeds_3_1000')
    many = final(*range(100, 130))
    self.assertRegex(many, r'^report_seeds_30_[0-9a-f]{8}$')
    self.assertNotEqual(many, final(*range(101, 131)))


class InputsTest(parameterized.TestCase):
  """Whatever a study reads from outside is pinned with its config."""

  @parameterized.parameters(
      ('polite', True), ('rlhf_jax_rewards', True), ('rlhf_jaxes.mine', True),
      ('rlhf_jax.rewards.example', False))
  def test_a_module_is_ours_by_its_whole_name(self, module, outside):
    told = {'reward': [{'function': f'{module}:score'}]}
    self.assertEqual([*plan._outside(told)],
                     [('function', module)] * outside)

  @parameterized.parameters(*KINDS)
  def test_of_every_kind_of_study(self, kind):
    config, models = of_all(kind)
    stages = plan.plan(config)
    inputs = plan.inputs(config, stages)
    read = {f'model {path}' for path in models.values()}
    if kind in ('online', 'offline', 'iterated'):
      read.add('function polite')  # our own change with the version
    self.assertEqual(
        set(inputs), {'path', 'preferences', 'tokenizer', *read})
    self.assertEqual({len(digest) for digest in inputs.values()}, {64})
    of_stages = plan.with_inputs(config, stages)
    for stage in of_stages:
      keywords = stage.run.keywords
      told = json.dumps({k: v for k, v in keywords.items() if k != 'data'})
      self.assertEqual({*stage.inputs}, {name for name in inputs if (
          'data' in keywords if name in ('path', 'preferences', 'tokenizer')
          else name.startswith('model ') and name[6:] in told)}, stage.name)
      self.assertEqual(stage.modules, ('polite',) * ('polite:' in told))
    for path in models.values():
      self.assertEqual(inputs[f'model {path}'],
                       pretrained.fingerprint({'path': str(path)}))

    def changed():
      after = plan.inputs(config, stages)
      self.assertEqual(after.keys(), inputs.keys())
      return {name for name in after if after[name] != inputs[name]}

    self.assertEmpty(changed())
    for part, path in models.items():
      weights = path / 'model.safetensors'
      data = weights.read_bytes()
      weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
      self.assertEqual(changed(), {f'model {path}'}, part)
      weights.write_bytes(data)
    module = pathlib.Path(sys.path[0], 'polite.py')
    text = module.read_text()
    module.write_text(text.replace('1.0', '2.0'))
    self.assertEqual(changed(), read & {'function polite'})
    module.write_text(text)

  @parameterized.parameters('online', 'offline', 'reward_models')
  def test_a_reward_model_of_a_condition_that_does_not_fit(self, kind):
    config, models = of_all(kind)
    tokenizer.Tokenizer.train_bpe(
        ['unlike other texts'], vocab_size=270).save_directory(
            models['condition'])
    with self.assertRaisesRegex(
        errors.ConfigError, r'config\.conditions\.other\.model: in '
        rf'{models["condition"]}, .*another id.*one vocabulary'):
      plan.plan(config)


@functools.cache
def recipes_of(text: str) -> dict[str, str]:
  """The key of the recipe of each stage of a config."""
  return {name: recipe.key for name, recipe in recipes.of_stages(
      plan.plan(json.loads(text))[:-1]).items()}


def changed_by(config: dict, *fields_and_value) -> list[str]:
  """The stages that a change of one field makes anew."""
  *path, last, value = fields_and_value
  other = copy.deepcopy(config)
  functools.reduce(lambda node, name: node[name], path, other)[last] = value
  before, after = (recipes_of(json.dumps(x)) for x in (config, other))
  assert before.keys() == after.keys()
  return [name.removeprefix('seed_0/') for name in before
          if before[name] != after[name]]


class RecipesTest(parameterized.TestCase):
  """A stage is taken over where all that it reads is the same, and only there.
  """

  def setUp(self):
    super().setUp()
    self.config = online(
        ppo=dict(condition='clean'), rloo=rloo(f=LENGTH),
        best=dict(algorithm='best_of_n', condition='noisy'))
    self.config['conditions'] = {'clean': {}, 'noisy': dict(label_noise=.25)}

  def test_a_change_reaches_what_reads_it(self):
    self.assertEqual(list(recipes_of(json.dumps(self.config))), [
        f'seed_0/{name}' for name in (
            'sft', 'gold', 'pairs', 'trunk', 'clean/proxies', 'noisy/proxies',
            'samples', 'noisy/scores', 'policies/best', 'policies/ppo',
            'policies/rloo')])
    for change, reached in (
        (('policy', 'num_steps', 9), [
            'sft', 'gold', 'pairs', 'clean/proxies', 'noisy/proxies',
            'samples', 'noisy/scores', 'policies/best', 'policies/ppo',
            'policies/rloo']),
        (('gold', 'num_steps', 9), [
            'gold', 'pairs', 'clean/proxies', 'noisy/proxies', 'samples',
            'noisy/scores', 'policies/best', 'policies/ppo',
            'policies/rloo']),
        (('proxy', 'num_epochs', 2), [
            'clean/proxies', 'noisy/proxies', 'noisy/scores', 'policies/best',
            'policies/ppo']),
        (('proxy', 'sft', 'num_steps', 9), [
            'trunk', 'clean/proxies', 'noisy/proxies', 'noisy/scores',
            'policies/best', 'policies/ppo']),
        (('conditions', 'clean', dict(label_noise=.1)), [
            'clean/proxies', 'policies/ppo']),
        (('conditions', 'noisy', dict(label_noise=.5)), [
            'noisy/proxies', 'noisy/scores', 'policies/best']),
        (('best_of_n', 'num_samples', 16), [
            'samples', 'noisy/scores', 'policies/best']),
        (('online', 'num_steps', 3), ['policies/ppo', 'policies/rloo']),
        (('runs', 'rloo', dict(rloo(f=LENGTH | dict(weight=2.)),
                               labels=dict(method='rloo'))),
         ['policies/rloo']),
        (('runs', 'rloo', 'labels', dict(method='REINFORCE')), []),
        (('training', 'log_every', 2), []), (('title', 'another'), [])):
      self.assertEqual(changed_by(self.config, *change), reached, change)

  def test_what_a_stage_does_not_read_does_not_matter(self):
    """Neither another run beside it, nor the names of what it reads."""
    config = copy.deepcopy(self.config)
    del config['runs']['ppo'], config['conditions']['clean']
    config['conditions']['loud'] = config['conditions'].pop('noisy')
    config['runs']['best']['condition'] = 'loud'
    whole, part = (recipes_of(json.dumps(x)) for x in (self.config, config))
    renamed = {name.replace('loud', 'noisy'): recipe
               for name, recipe in part.items()}
    self.assertEqual(renamed, {
        name: recipe for name, recipe in whole.items()
        if name.removeprefix('seed_0/') not in (
            'clean/proxies', 'policies/ppo')})

  def test_studies_share_what_they_make_alike(self):
    """By kind: best-of-n, online, iterated and reward models."""
    recipes_by_kind = {
        kind: recipes_of(json.dumps(config)) for kind, config in (
            ('online', self.config),
            ('best_of_n', worlds.get_config(worlds.FIGURE_3, 'smoke')),
            ('iterated', worlds.get_config(ITERATED, 'smoke')),
            ('reward_models', worlds.get_config(FIGURE_15, 'smoke')))}
    for name in ('sft', 'gold', 'trunk'):
      self.assertLen({made_by[f'seed_0/{name}']
                      for made_by in recipes_by_kind.values()}, 1, name)
    one, other = (recipes_by_kind[kind] for kind in ('online', 'best_of_n'))
    for name, same in (('samples', 'as_sampled/samples'),
                       ('pairs', 'as_sampled/pairs'),
                       ('clean/proxies', 'as_sampled/noise_0/proxies'),
                       ('noisy/proxies', 'as_sampled/noise_0.25/proxies'),
                       ('noisy/scores', 'as_sampled/noise_0.25/scores')):
      self.assertEqual(one[f'seed_0/{name}'], other[f'seed_0/{same}'], name)
    rounds = recipes_by_kind['iterated']
    for stage in ('pairs', 'proxies', 'policy'):
      for number, same in ((0, True), (1, False)):
        who = [rounds[f'seed_0/{collect}/round_{number}/{stage}']
               for collect in ('current', 'initial')]
        self.assertEqual(who[0] == who[1], same, (stage, number))


if __name__ == '__main__':
  absltest.main()
