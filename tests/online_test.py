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
from rlhf_jax import recipes
from rlhf_jax import study
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
  study.run_study(
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


if __name__ == '__main__':
  absltest.main()
