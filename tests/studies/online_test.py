"""The study `online`: what it plans, what it refuses, and best-of-n in it."""

import functools
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import stages_test

from experiments import base
from rlhf_jax import errors
from rlhf_jax.runner import recipes
from rlhf_jax.runner import run as run_lib
from rlhf_jax.studies import best_of_n
from rlhf_jax.studies import online

AGGREGATES = {
    'mean': dict(kind='mean'), 'single_1': dict(kind='single', member=1),
    'worst_case': dict(kind='worst_case')}


def config(**changes):
  """Best-of-n of each of AGGREGATES; `changes` are of the run 'mean'."""
  made = base.online_config('smoke')
  made.title = 'Best-of-n'
  made.conditions = dict(noise_25=dict(label_noise=.25), clean=dict())
  made.online.condition = 'noise_25'
  made.online.algorithm = 'best_of_n'
  made.runs = {
      name: dict(reward=dict(aggregate=aggregate), labels=dict(method=name))
      for name, aggregate in AGGREGATES.items()}
  made.runs.mean.update(changes)
  made.figure = dict(kind='curves', columns=('gold', 'rule'))
  return made.unlock()


def names(made) -> list[str]:
  return [stage.name for stage in online.plan(made.to_dict())]


def keywords(made, name: str) -> dict:
  """What a stage is called with."""
  return next(stage for stage in online.plan(made.to_dict())
              if stage.name == name).run.keywords


@functools.cache
def finished() -> pathlib.Path:
  """The study, on what that of figure 3 has made already."""
  folder = tempfile.TemporaryDirectory()
  finished.folder = folder  # removed at exit
  made = config().to_dict()
  run_lib.run_study(
      online.plan(made), folder.name, config=made | {'inputs': {}},
      reuse=[stages_test.study()])
  return pathlib.Path(folder.name)


def lines(*parts) -> list[dict]:
  text = finished().joinpath('seed_0', *parts).read_text()
  return [json.loads(line) for line in text.splitlines()]


class PlanTest(parameterized.TestCase):

  def test_samples_are_those_of_figure_3(self):
    stage = next(s for s in online.plan(config().to_dict())
                 if s.name == 'seed_0/samples')
    other = next(s for s in best_of_n.plan(stages_test.config())
                 if s.name == 'seed_0/as_sampled/samples')
    known = pathlib.Path('nowhere')
    self.assertEqual(recipes.recipe(stage.run, known, (), {}),
                     recipes.recipe(other.run, known, (), {}))

  def test_a_seed_samples_once_and_a_condition_is_scored_once(self):
    made = config()
    made.runs.clean = dict(condition='clean', labels=dict(method='clean'))
    made.runs.ppo = dict(condition='clean', algorithm='ppo',
                         labels=dict(method='ppo'))
    self.assertEqual(names(made)[3:], [
        f'seed_0/{name}' for name in (
            'pairs', 'clean/proxies', 'noise_25/proxies', 'samples',
            'clean/scores', 'policies/clean', 'noise_25/scores',
            'policies/mean', 'policies/single_1', 'policies/worst_case',
            'policies/ppo')] + ['report_seeds_0'])
    made.runs = dict(ppo=made.runs.ppo)
    self.assertEqual(names(made)[3:], [
        'seed_0/pairs', 'seed_0/clean/proxies', 'seed_0/policies/ppo',
        'report_seeds_0'])

  def test_fields_it_does_not_use_change_nothing(self):
    known, changed = (
        [stage.run.keywords for stage in online.plan(made.to_dict())]
        for made in (config(), config(num_steps=9, rollout=dict(samples=7))))
    self.assertEqual(known, changed)

  @parameterized.parameters(
      ('reward.noise', dict(reward=dict(noise=1.))),
      ('reward.functions', dict(reward=dict(functions=dict(a={})))),
      ('reward.eos.penalty', dict(reward=dict(eos=dict(penalty=1.)))),
      ('reward.eos.value', dict(reward=dict(eos=dict(value=0.)))),
      ('kl.coef', dict(kl=dict(coef=.01))),
      ('kl.target', dict(kl=dict(target=6.))),
      ('reward.aggregate', dict(reward=dict(aggregate=dict(kind='best')))),
      ('condition', dict(condition='dirty')))
  def test_contradictions(self, field, changes):
    with self.assertRaisesRegex(errors.ConfigError, rf'config.runs.mean.{field}'
                                r'(\.kind)? is'):
      names(config(**changes))

  def test_no_penalty_is_none(self):
    names(config(kl=dict(coef=0.)))

  @parameterized.parameters(
      ('num_samples', 1), ('num_samples', 24), ('samples_per_call', 0),
      ('shard_prompts', 0))
  def test_samples_out_of_range(self, field, value):
    made = config()
    made.best_of_n[field] = value
    with self.assertRaisesRegex(
        errors.ConfigError, rf'config.best_of_n.{field} is {value};'):
      names(made)
    made.runs = dict(ppo=dict(algorithm='ppo', labels=dict(method='ppo')))
    names(made)  # where nobody asks for samples

  def test_a_field_of_a_run_with_dots_in_its_name(self):
    made = config()
    made.runs = {}
    runs = {'kl_0.1': dict(algorithm='ppo', num_steps=0)}
    with self.assertRaisesRegex(
        errors.ConfigError, r'config.runs.kl_0.1.num_steps is 0;'):
      online.plan(made.to_dict() | {'runs': runs})

  def test_judges_read_no_answers_of_best_of_n(self):
    made = config()
    made.runs.ppo = dict(algorithm='ppo', labels=dict(method='ppo'))
    made.judge = dict(against='reference', judge=dict(kind='gold'),
                      num_prompts=4)
    policies = keywords(made, 'win_rates_seeds_0')['policies']
    self.assertEqual([one['run'] for one in policies], ['ppo'])

  def test_number_of_pairs(self):
    made = config()
    made.conditions.few = dict(num_pairs=16)
    made.runs.few = dict(condition='few', labels=dict(method='few'))
    self.assertEqual(keywords(made, 'seed_0/few/proxies')['num_pairs'], 16)
    # The recipe of stages made before there were these fields.
    found = keywords(made, 'seed_0/noise_25/proxies')
    self.assertNoCommonElements(found, ('num_pairs', 'validate'))
    made.conditions.few.validate = True
    self.assertTrue(keywords(made, 'seed_0/few/proxies')['validate'])
    for count, field in ((0, 'num_pairs'), (65, 'num_pairs'),
                         (15, 'batch_size')):
      made.conditions.few.num_pairs = count
      with self.assertRaisesRegex(
          errors.ConfigError, rf'conditions.few: config.proxy.{field} is'):
        names(made)


class BestOfNTest(absltest.TestCase):

  def test_only_scores_are_new(self):
    log = (finished() / 'log.txt').read_text()
    for stage, source in (('samples', 'as_sampled/samples'),
                          ('noise_25/proxies', 'as_sampled/noise_0.25/proxies'),
                          ('pairs', 'as_sampled/pairs')):
      self.assertRegex(log, rf'seed_0/{stage} +reused from .*seed_0/{source}\n')
    self.assertNotRegex(log, 'seed_0/noise_25/scores +reused')

  def test_report(self):
    rows = [json.loads(line) for line in (
        finished() / 'report_seeds_0/results.jsonl').read_text().splitlines()]
    self.assertLen(rows, 3 * 6)
    self.assertEqual({row['method'] for row in rows}, set(AGGREGATES))
    self.assertTrue((finished() / 'report_seeds_0/figure.png').exists())



def policies(**changes):
  """A smoke study of one policy."""
  made = base.online_config('smoke')
  made.title = 'test'
  made.conditions.clean = dict()
  made.runs.one = dict(labels=dict(method='one')) | changes
  made.figure = dict(kind='table', columns=('gold',))
  return made


class MistakesTest(parameterized.TestCase):
  """What a policy stage would fail at is one line, before anything runs."""

  @parameterized.parameters(
      (dict(algorithm='sfa'), "algorithm is 'sfa'"),
      (dict(algorithm='dpo'), "'dpo' does not sample"),
      (dict(condition='dirty'), 'runs.one.condition is'),
      (dict(arguments=dict(gae=dict(lamda=.9))), 'lamda'),
      (dict(arguments=dict(gae=dict(gae_lambda=2.))), 'gae_lambda'),
      (dict(arguments=dict(ppo=dict(clip=1.))), 'clip'),
      (dict(arguments=dict(ppo=dict(clip_ratio=-1.))), 'clip_ratio'),
      (dict(arguments=dict(gae=dict(drop=True))), 'advantages'),
      (dict(arguments=dict(whiten=False)), 'arguments.whiten is False'),
      (dict(arguments=dict(scores=dict(kind='mean'))), 'reward.aggregate'),
      (dict(kl=dict(coef=-.1)), 'KL coefficient is -0.1'),
      (dict(kl=dict(target=-6., coef=.1)), 'kl.target is -6.0'),
      (dict(kl=dict(target=6., coef=0.)), 'set kl.coef'),
      (dict(kl=dict(place='loss', coef=.1), algorithm='apa'), 'kl_coef'),
      (dict(kl=dict(place='loss')), 'no KL in the loss'),
      (dict(arguments=dict(ppo=dict(kl_coef=.1))), 'in the reward and in the'),
      (dict(reward=dict(eos=dict(penalty=-1.))), 'penalty'),
      (dict(reward=dict(aggregate=dict(kind='best'))), 'reward.aggregate.kind'),
      (dict(reward=dict(functions=dict(a=dict(function='nowhere:f')))),
       'nowhere'),
      (dict(rollout=dict(chunk_size=-4)), 'chunk_size is -4'),
      (dict(rollout=dict(samples=2)), 'samples=1'),
      (dict(rollout=dict(samples=1), algorithm='rloo'), 'samples >= 2'),
      (dict(updates=dict(num_minibatches=3)), 'num_minibatches is 3'),
      (dict(updates=dict(penalty_target=.01)), 'penalty_target'),
      (dict(updates=dict(penalty_target=.01, num_epochs=1),
            algorithm='ppo_kl_penalty'), 'num_epochs >= 2'),
      (dict(evaluation=dict(num_prompts=999)), 'num_prompts is 999'),
      (dict(value=dict(trunk='none')), "value.trunk is 'none'"),
      (dict(num_step=3), 'runs.one.num_step is no field'))
  def test_of_a_run(self, changes, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as caught:
      online.plan(policies(**changes).to_dict())
    self.assertNotIn('\n', str(caught.exception))

  def test_judge(self):
    made = policies()
    made.judge.against = 'reference'
    with self.assertRaisesRegex(errors.ConfigError, 'judge.num_prompts is'):
      online.plan(made.to_dict())
    made.judge.num_prompts = 4
    names = [stage.name for stage in online.plan(made.to_dict())]
    self.assertEqual(names[-2:], ['win_rates_seeds_0', 'report_seeds_0'])

  def test_condition_with_the_name_of_a_stage(self):
    made = policies(condition='gold')
    made.conditions.gold = dict()
    with self.assertRaisesRegex(errors.ConfigError, 'conditions.gold has the'):
      online.plan(made.to_dict())

  def test_members_with_trunks_of_their_own_share_none(self):
    made = policies(condition='two')
    made.conditions.clean.update(trunk='member', num_members=1)
    made.conditions.two = dict(trunk='member', num_members=2)
    made.runs.other = dict(condition='clean', labels=dict(method='other'))
    names = [stage.name for stage in online.plan(made.to_dict())]
    self.assertContainsSubset(
        [f'seed_0/{x}' for x in ('two/trunk_0', 'two/trunk_1',
                                 'clean/trunk_0')], names)

  def test_code_of_a_reward_function_is_an_input(self):
    made = policies(reward=dict(functions=dict(
        a=dict(function='textwrap:dedent'))))
    found = online.inputs(made.to_dict())
    self.assertLen(found['reward.functions.textwrap'], 64)
    self.assertEmpty(online.inputs(policies().to_dict()))


if __name__ == '__main__':
  absltest.main()
