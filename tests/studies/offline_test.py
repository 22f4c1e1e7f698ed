"""The study `offline`: what it plans, what it refuses, and one run of it."""

import dataclasses
import functools
import pathlib
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.configs import base
from rlhf_jax.data import load as load_lib
from rlhf_jax.parallel import meshes
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.runner import context as context_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import stop
from rlhf_jax.storage import files
from rlhf_jax.studies import nodes
from rlhf_jax.studies import plan as plan_lib

RULE = 'rlhf_jax.data.task_rules'
NODES = dict(short=dict(kind='length', target=20, weight=2.),
             readable=dict(kind='readability', weight=.5))


def config(pairs=None, **run):
  """A study of one log and one run of it."""
  study = base.offline_config('smoke')
  study.title = 'test'
  study.logs.pairs = pairs or {}
  study.runs.one = dict(labels=dict(method='one')) | run
  study.figure = dict(kind='table', columns=('gold',))
  return study.unlock()


def plan(study):
  return plan_lib.plan(study.to_dict())


def names(study) -> list[str]:
  """Of the stages of seed 0."""
  return [stage.name.removeprefix('seed_0/') for stage in plan(study)]


def keywords(study, name: str) -> dict:
  """What a stage is called with."""
  return next(stage for stage in plan(study)
              if stage.name == f'seed_0/{name}').run.keywords


def several():
  """Runs of two logs, offline and online."""
  study = config(dict(components=NODES))
  study.conditions.noisy = dict(label_noise=.25, held_out=16)
  study.logs.noisy = dict(condition='noisy', num_validation=16)
  study.logs.unused = dict(num_validation=12)
  for name, run in dict(
      wbc=dict(algorithm='wbc'), a_lol=dict(log='noisy'),
      filtered=dict(algorithm='sft', log='noisy', filtered=True),
      ppo=dict(algorithm='ppo')).items():
    study.runs[name] = dict(labels=dict(method=name)) | run
  del study.runs.one
  return study


OF_SEED = {'reference': 'seed_0/sft', 'gold': 'seed_0/gold',
           'pairs': 'seed_0/pairs'}
NOISY = OF_SEED | {'proxies': 'seed_0/noisy/proxies'}


class PlanTest(parameterized.TestCase):

  def test_stages_are_those_that_runs_need(self):
    self.assertEqual(names(several()), [
        'sft', 'gold', 'pairs', 'trunk', 'clean/proxies', 'noisy/proxies',
        'logs/noisy/logged', 'logs/noisy/prompt_value', 'logs/pairs/logged',
        'policies/a_lol', 'policies/filtered', 'policies/ppo', 'policies/wbc',
        'report_seeds_0'])
    # No reward model where none is asked, no values where none is read.
    study = config(dict(components=NODES), algorithm='wbc')
    self.assertEqual(names(study), [
        'sft', 'gold', 'pairs', 'logs/pairs/logged', 'policies/one',
        'report_seeds_0'])

  def test_a_log_of_a_file_needs_no_gold_model(self):
    study = config(dict(source='corpus', components=NODES), algorithm='wbc')
    study.data.logged.update(kind='gsm8k', task='gsm8k', num_rows=99)
    study.figure.columns = ('proxy',)
    study.runs.rloo = dict(
        algorithm='rloo', labels=dict(method='rloo'),
        rollout=dict(samples=2), reward=dict(components=NODES))
    self.assertEqual(names(study), [
        'sft', 'logs/pairs/logged', 'policies/one', 'policies/rloo',
        'report_seeds_0'])
    for name in ('one', 'rloo'):
      self.assertEqual(keywords(study, f'policies/{name}')['upstream'], {
          'reference': 'seed_0/sft', 'log': 'seed_0/logs/pairs/logged'})

  def test_a_log_that_no_run_names_makes_nothing(self):
    """Not the gold model either, nor pairs; nor does it refuse the plan."""
    study = config(dict(source='corpus', components=NODES), algorithm='wbc')
    study.data.logged.update(kind='gsm8k', task='gsm8k', num_rows=99)
    study.figure.columns = ('proxy',)
    alone = names(study)
    self.assertNotIn('gold', alone)
    study.logs.unused = dict(source='pairs')
    study.logs.more = dict(
        source='corpus', num_validation=10**6,
        components=dict(a=dict(kind='gold')))
    self.assertEqual(names(study), alone)

  def test_logs_are_told_of_their_rewards(self):
    kwargs = keywords(several(), 'logs/noisy/logged')
    self.assertEqual(kwargs['label_noise'], .25)
    self.assertEqual(kwargs['node'], {
        'source': 'pairs', 'num_validation': 16,
        'components': {'reward': {'kind': 'proxy', 'squash': 'sigmoid'}}})
    self.assertEqual(kwargs['upstream'], NOISY)
    kwargs = keywords(several(), 'logs/pairs/logged')
    self.assertEqual(kwargs['label_noise'], 0)
    self.assertEqual(kwargs['node']['components'], NODES)
    self.assertEqual(kwargs['upstream'], OF_SEED)
    kwargs = keywords(several(), 'logs/noisy/prompt_value')
    self.assertEqual(kwargs['upstream']['log'], 'seed_0/logs/noisy/logged')
    self.assertEqual(kwargs['upstream']['proxies'], 'seed_0/noisy/proxies')
    self.assertEqual(kwargs['components'],
                     {'reward': {'kind': 'proxy', 'squash': 'sigmoid'}})

  def test_runs_are_told_of_their_log(self):
    for name in ('a_lol', 'filtered'):
      kwargs = keywords(several(), f'policies/{name}')
      self.assertEqual(kwargs['upstream'], NOISY | {
          'log': 'seed_0/logs/noisy/logged',
          'values': 'seed_0/logs/noisy/prompt_value'})
    kwargs = keywords(several(), 'policies/wbc')
    self.assertEqual(kwargs['upstream'], OF_SEED | {
        'log': 'seed_0/logs/pairs/logged'})
    self.assertEqual(kwargs['measure']['components'], NODES)

  def test_values_are_for_those_who_read_them(self):
    """Of one log, too."""
    study = config(dict(components=NODES))
    study.runs.wbc = dict(algorithm='wbc', labels=dict(method='wbc'))
    values = 'seed_0/logs/pairs/prompt_value'
    self.assertEqual(
        [keywords(study, f'policies/{name}')['upstream'].get('values')
         for name in ('one', 'wbc')], [values, None])

  def test_online_learns_from_its_condition_and_is_compared_by_the_log(self):
    kwargs = keywords(several(), 'policies/ppo')
    self.assertEqual(kwargs['upstream'], OF_SEED | {
        'proxies': 'seed_0/clean/proxies', 'log': 'seed_0/logs/pairs/logged'})
    self.assertEqual(kwargs['measure']['components'], NODES)
    self.assertEqual(kwargs['run']['reward']['components'], base.proxy())
    self.assertNoCommonElements(
        kwargs['run'], ('use', 'log', 'condition', 'labels'))

  def test_seeds_share_nothing(self):
    study = several()
    study.seeds = (0, 3)
    stages = plan(study)
    kwargs = next(stage for stage in stages
                  if stage.name == 'seed_3/policies/a_lol').run.keywords
    self.assertEqual(kwargs['seed'], 3)
    self.assertEqual(set(kwargs['upstream'].values()), {
        f'seed_3/{name}' for name in (
            'sft', 'gold', 'pairs', 'noisy/proxies', 'logs/noisy/logged',
            'logs/noisy/prompt_value')})
    self.assertEqual(stages[-1].run.keywords['logs']['noisy'], [
        {'stage': f'seed_{seed}/logs/noisy/logged', 'seed': seed}
        for seed in (0, 3)])

  def test_code_of_reward_functions_is_an_input(self):
    study = config(dict(components=dict(
        a=dict(kind='function', function='textwrap:dedent', range=(0, 1)),
        b=dict(kind='function', function=f'{RULE}:fluent', range=(0, 1)))))
    inputs = plan_lib.inputs(study.to_dict(), plan(study))
    self.assertLen(inputs['function textwrap'], 64)
    self.assertLen(inputs, 1)  # our own change with the version


class MistakesTest(parameterized.TestCase):
  """What a stage would fail at is one line, before anything runs."""

  def check(self, study, message):
    with self.assertRaisesRegex(errors.ConfigError, message) as caught:
      plan(study)
    self.assertNotIn('\n', str(caught.exception))

  @parameterized.parameters(
      (dict(algorithm='sfa'), "runs.one: algorithm is 'sfa'"),
      (dict(algorithm='best_of_n'), 'trains no policy from .*logged'),
      (dict(log='other'), "runs.one.log is 'other'; there are pairs"),
      (dict(num_step=3), 'runs.one.num_step is no field'),
      (dict(num_steps=-1), 'runs.one.num_steps is -1'),
      (dict(batch_size='8'), "runs.one.batch_size is '8'; give an integer"),
      (dict(q=dict(shift=None)), 'runs.one.q.shift is None; give a number'),
      (dict(algorithm=None), 'runs.one.algorithm is None; give text'),
      (dict(algorithm=['ppo']), 'runs.one.algorithm is .*; give text'),
      (dict(log=['pairs']), 'runs.one.log is .*; give text'),
      (dict(num_steps=2.5), 'runs.one.num_steps is 2.5'),
      (dict(batch_size=0), 'runs.one.batch_size is 0'),
      (dict(num_microbatches=3), 'runs.one.num_microbatches is 3'),
      (dict(evaluation=dict(every=0)), 'runs.one.evaluation.every is 0'),
      (dict(evaluation=dict(num_prompts=99)), 'evaluation.num_prompts is 99'),
      (dict(value=dict(trunk='reward')), "runs.one.value.trunk is 'reward'"),
      (dict(q=dict(shift=-1.)), 'runs.one.q.shift is -1.0'),
      (dict(q=dict(top_k=-1)), 'runs.one.q.top_k is -1'),
      (dict(q=dict(every=0)), 'runs.one.q.every is 0'),
      (dict(q=dict(rate=0.)), 'runs.one.q.rate is 0.0'),
      (dict(arguments=dict(gae={})), "runs.one: A-LOL has no node 'gae'"),
      (dict(arguments=dict(alol=dict(clip=1.))), 'runs.one: .*clip'),
      (dict(arguments=dict(alol=.9)), 'runs.one: arguments.alol is 0.9'),
      (dict(use='best'), "runs.one.use is 'best'; there are first, all, chos"),
      (dict(algorithm='awr_offline', filtered=True), 'set filtered=False'),
      (dict(priority='score'), "runs.one: priority is 'score'"),
      (dict(algorithm='wbc', priority='advantage'), 'runs.one: wBC has no adv'),
      (dict(algorithm='dpo', filtered=True), 'runs.one: DPO learns from whole'),
      (dict(algorithm='dpo', priority='reward'), "set priority='none'"),
      (dict(optimizer=dict(learning_rate=-1.)), 'runs.one.optimizer: learning'),
      (dict(algorithm='ppo', use='all'), 'runs.one.use is no field'),
      (dict(algorithm='ppo', condition='dirty'), 'runs.one.condition is'),
      (dict(algorithm='ppo', num_steps=0), 'runs.one.num_steps is 0'))
  def test_of_a_run(self, run, message):
    self.check(config(**run), message)

  @parameterized.parameters(
      (dict(source='file'), "logs.pairs.source is 'file'; there are pairs"),
      (dict(source='corpus'), 'logs.pairs.source .*config.data.logged.path'),
      (dict(sourse='pairs'), 'logs.pairs.sourse is no field'),
      (dict(num_validation='9'), "logs.pairs.num_validation is '9'; give an"),
      (dict(value=dict(held_out=None)), 'value.held_out is None; give a num'),
      (dict(condition=None), 'logs.pairs.condition is None; give text'),
      (dict(components=dict(a='pkg:f')),
       "logs.pairs.components.a is 'pkg:f'; give {'kind'"),
      (dict(condition='dirty'), "logs.pairs.condition is 'dirty'"),
      (dict(components=dict(a=dict(kind='best'))),
       "logs.pairs.components: component 'a': kind is 'best'"),
      (dict(components=dict(a=dict(kind='length'))),
       "logs.pairs.components: component 'a': target is absent"),
      (dict(components=dict(a=dict(kind='file', column='votes'))),
       'logs.pairs.components.a .*config.data.logged.path, .* .votes.'),
      (dict(components=dict(a=dict(kind='function', function='nowhere:f'))),
       'nowhere'),
      (dict(components=dict(a=dict(
          kind='function', function=f'{RULE}:fluent', range=(0, 1),
          on_bad_reward='drop'))),
       "logs.pairs.components .*'drop' is of runs that sample; give 'error'"),
      (dict(components=dict(a=dict(kind='gold', squash='none'))),
       "logs.pairs.components: component 'a' is in .-inf, inf."),
      (dict(components=dict(a=dict(kind='exact_match'))),
       'logs.pairs.components.a .*config.data.logged.path'),
      (dict(num_validation=1), 'logs.pairs.num_validation is 1; give 2 to 95'),
      (dict(num_validation=96), 'num_validation is 96; give 2 to 95'),
      (dict(value=dict(num_samples=0)), 'logs.pairs.value.num_samples is 0'),
      (dict(value=dict(num_steps=0)), 'logs.pairs.value.num_steps is 0'),
      (dict(value=dict(temperature=-1.)), 'value.temperature is -1.0'),
      (dict(value=dict(held_out=1.)), 'logs.pairs.value.held_out is 1.0'),
      (dict(value=dict(held_out=0.)), 'logs.pairs.value.held_out is 0.0'),
      (dict(value=dict(batch_size=30)), 'value.batch_size is 30; more than'),
      (dict(value=dict(num_heads=3)), 'num_heads is 3; must divide the 16'),
      (dict(value=dict(optimizer=dict(clip_norm=-1.))),
       'logs.pairs.value.optimizer: clip_norm'))
  def test_of_a_log(self, log, message):
    self.check(config(log), message)

  def test_of_a_log_that_is_not_there(self):
    """All that there are can be named."""
    study = config(log='other')
    study.logs.unused = {}
    self.check(study, "runs.one.log is 'other'; there are pairs, unused")

  def test_a_column_that_the_gold_model_has_not_learned(self):
    """The target is advice where the data are a log."""
    study = config(dict(source='corpus', components=dict(
        a=dict(kind='file', column='votes'))))
    study.data.logged.update(task='gsm8k', num_rows=99)
    self.check(study, 'components.a .*set config.data.logged.target to .votes')

  def test_conditions_that_are_not_trained(self):
    """What is read of one is checked, and nothing else."""
    study = config(dict(components=NODES, condition='noisy'), algorithm='wbc')
    study.conditions.noisy = dict(held_out=10**6, label_noise=.25)
    self.assertNotIn('noisy/proxies', names(study))
    study.conditions.noisy.label_noise = 1.5
    self.check(study, r'^config\.conditions\.noisy\.label_noise is 1\.5; ')

  def test_bound_is_for_those_who_read_values(self):
    free = dict(components=dict(a=dict(kind='gold', squash='none')))
    names(config(free, algorithm='wbc'))
    self.check(config(free, algorithm='wbc', filtered=True), 'logs.pairs.comp')

  def test_labels_are_those_of_the_reward_models(self):
    study = config(dict(condition='noisy', num_validation=16))
    study.conditions.noisy = dict(label_noise=.25)
    self.check(study, 'logs.pairs.num_validation is 16; .*proxy.held_out, 32')
    study.conditions.noisy.label_noise = 0.
    names(study)

  @parameterized.parameters('logs', 'runs')
  def test_nothing_to_do(self, field):
    study = config().to_dict()
    with self.assertRaisesRegex(errors.ConfigError,
                                rf'config.{field} is {{}}; give at least one'):
      plan_lib.plan(study | {field: {}})

  def test_what_needs_the_small_world(self):
    study = config(dict(source='corpus'))
    study.data.logged.update(kind='gsm8k', task='gsm8k', num_rows=99)
    self.check(study, "logs.pairs.components .*use 'gold'")
    study.logs.pairs.components = dict(a=dict(kind='exact_match'))
    study.logs.pairs.source = 'pairs'
    self.check(study, "logs.pairs.components .*source='corpus'")
    study.logs.pairs.source = 'corpus'
    self.check(study, 'data.logged.target is None')  # for the figure
    study.figure.columns = ('proxy',)
    names(study)
    study.runs.one.algorithm = 'ppo'
    self.check(study, 'runs.one.algorithm .*pairs of samples')

  def test_figure(self):
    study = config(dict(components=NODES))
    study.figure.columns = ('gold', 'component_short')
    names(study)
    study.figure.columns = ('component_long',)
    self.check(study, 'component_long')

  def test_online_is_compared_by_the_models_of_its_log(self):
    study = config(algorithm='ppo')
    names(study)
    study.conditions.noisy = dict(label_noise=.25)
    study.runs.one.condition = 'noisy'
    self.check(study, "runs.one.condition is 'noisy'; its log")
    study.logs.pairs.condition = 'noisy'
    names(study)

  def test_judge(self):
    study = config()
    study.judge.update(against='reference', num_prompts=5)
    self.check(study, 'judge.num_prompts is 5; give 1 to 4')
    study.judge.num_prompts = 4
    self.assertIn('win_rates_seeds_0', names(study))


def small():
  """A study of the shapes of that world: the reference, A-LOL and PPO."""
  study = config(dict(
      components=NODES, num_validation=8, value=dict(batch_size=4)),
                 num_steps=0)
  study.data.update(num_demonstrations=24, num_pair_prompts=worlds.NUM_PAIRS)
  study.data.world.max_response_length = 12
  for part in (study.policy, study.proxy, study.gold):
    part.model.update(
        worlds.MODEL, intermediate_size=worlds.config().intermediate_size)
  study.proxy.update(held_out=4, batch_size=4)
  study.gold.held_out = 8
  study.training.save_every = 1
  study.offline.update(use='all')
  study.offline.optimizer.learning_rate = 1e-2
  study.runs.a_lol = dict(labels=dict(method='A-LOL'), priority='advantage')
  study.runs.ppo = dict(labels=dict(method='PPO'), algorithm='ppo')
  study.figure.columns = ('proxy', 'component_short', 'component_readable')
  return study


def untrained(context, name):
  """A first stage of the study, as it is in the shared world."""
  if name == 'trunk':
    return {}
  source = worlds.untrained() / name
  shutil.copytree(source, context.directory, dirs_exist_ok=True)
  (context.directory / 'result.json').unlink()
  if name == 'sft':  # of more prompts, which change no vocabulary
    data = nodes.data_config(small().to_dict())
    return {'corpus': load_lib.load(data, 0).fingerprint()}
  return files.read_json(source / 'result.json')['result']


def stages():
  """Whose first ones train nothing."""
  first = ('sft', 'trunk', 'gold', 'pairs', 'clean/proxies')
  return [dataclasses.replace(stage, run=functools.partial(
      untrained, name=stage.name.rpartition('/')[2]))
          if stage.name.removeprefix('seed_0/') in first else stage
          for stage in plan(small())]


def run(workdir, *only):
  """One device, which compiles faster."""
  worlds.untrained()
  mesh = worlds.mesh()
  with mock.patch.object(meshes, 'make', lambda shape: mesh):
    run_lib.run_study(stages(), workdir, config=small().to_dict(), only=only)


@functools.cache
def first() -> pathlib.Path:
  """All but the policies, made once."""
  workdir = worlds.folder()
  run(workdir, 'sft', 'trunk', 'gold', 'pairs', 'proxies', 'seed_0/logs/*')
  return workdir


@functools.cache
def finished() -> pathlib.Path:
  workdir = worlds.folder()
  shutil.copytree(first() / 'seed_0', workdir / 'seed_0')
  run(workdir, 'one', 'a_lol')
  return workdir / 'seed_0'


def lines(path):
  return [{k: v for k, v in line.items() if k != 'time'}
          for line in files.read_jsonl(path)]


def result(path):
  return files.read_json(path / 'result.json')['result']


class StudyTest(parameterized.TestCase):

  def test_filter_is_that_of_the_values(self):
    of_values = result(finished() / 'logs/pairs/prompt_value')
    of_policy = result(finished() / 'policies/a_lol')
    self.assertAlmostEqual(
        of_policy['filtered_share'], of_values['filtered_share'])
    log = files.load_arrays(finished() / 'logs/pairs/logged/logged.npz')
    values = files.load_arrays(
        finished() / 'logs/pairs/prompt_value/values.npz')['values']
    advantages = (log['scores'] - values[:, None])[:16]
    self.assertAlmostEqual(
        of_policy['filtered_share'], np.mean(advantages <= 0))
    self.assertEqual(of_policy['examples'], 32)

  def test_rewards_are_sums_of_their_parts(self):
    log = files.load_arrays(finished() / 'logs/pairs/logged/logged.npz')
    np.testing.assert_allclose(
        log['scores'], 2 * log['value_short'] + .5 * log['value_readable'],
        rtol=1e-6)
    for name in ('one', 'a_lol'):
      for row in lines(finished() / f'policies/{name}/evaluation.jsonl'):
        self.assertAlmostEqual(
            row['proxy'],
            2 * row['component_short'] + .5 * row['component_readable'], 5)

  def test_reference_is_where_a_lol_begins(self):
    reference, = lines(finished() / 'policies/one/evaluation.jsonl')
    start, _, last = lines(finished() / 'policies/a_lol/evaluation.jsonl')
    self.assertEqual(reference, start)
    self.assertAlmostEqual(start['kl_k2'], 0, delta=1e-6)
    self.assertGreater(last['kl_k2'], 1e-3)

  def test_interrupted_study_goes_on_bitwise(self):
    workdir, real, calls = worlds.folder(), fit_lib._Log.step, []
    shutil.copytree(first() / 'seed_0', workdir / 'seed_0')

    def killed(log, step, current):
      calls.append(step)
      if len(calls) == 2:
        raise errors.Interrupted('killed')
      return real(log, step, current)

    with mock.patch.object(fit_lib._Log, 'step', killed):
      with self.assertRaises(errors.Interrupted):
        run(workdir, 'a_lol')
    run(workdir, 'a_lol')
    path = workdir / 'seed_0/policies/a_lol'
    for name in ('metrics', 'evaluation', 'final'):
      self.assertEqual(lines(path / f'{name}.jsonl'),
                       lines(finished() / f'policies/a_lol/{name}.jsonl'))

  def test_online_is_evaluated_by_the_rewards_of_the_log(self):
    context = context_lib.StageContext(
        finished().parent, 'seed_0/policies/ppo', stop.StopSignal(),
        worlds.mesh)
    context.directory.mkdir()
    stage = next(s for s in stages() if s.name == 'seed_0/policies/ppo')
    rows = []

    def fit(unused_context, state, *unused, watch, **unused_kwargs):
      rows.append(watch.evaluate(0, state))
      raise StopIteration

    with mock.patch.object(fit_lib, 'fit', fit):
      with self.assertRaises(StopIteration):
        stage.run(context)
    row, = rows
    self.assertAlmostEqual(
        row['proxy'],
        2 * row['component_short'] + .5 * row['component_readable'], 5)
    # Not by what it maximises.
    self.assertNotIn('member_0', row)


def unpaired(**run):
  """A study of a file of responses that were liked or not, for KTO."""
  path = worlds.folder() / 'liked.jsonl'
  files.write_jsonl(path, [dict(
      prompt=f'Is {i} more than {i % 7}?', label=bool(i % 3),
      completion='Yes, it is.' if i % 3 else 'No.') for i in range(40)])
  study = config(dict(source='corpus', components=NODES, num_validation=8,
                      value=dict(batch_size=4)),
                 algorithm='kto', num_steps=2, num_microbatches=2, **run)
  study.data.logged.path = str(path)
  study.policy.model.update(
      worlds.MODEL, intermediate_size=worlds.config().intermediate_size)
  study.figure.columns = ('proxy',)
  return study


class UnpairedTest(parameterized.TestCase):
  """KTO, from a file of the kind unpaired to its policy."""

  def test_study(self):
    study = unpaired()
    workdir, mesh = worlds.folder(), worlds.mesh()
    with mock.patch.object(meshes, 'make', lambda shape: mesh):
      run_lib.run_study(
          plan(study), workdir, config=study.to_dict(),
          only=['sft', 'logged', 'one'])
    directory = workdir / 'seed_0/policies/one'
    log = files.load_arrays(workdir / 'seed_0/logs/pairs/logged/logged.npz')
    self.assertEqual(result(directory)['examples'], len(log['tokens']) - 8)
    last = lines(directory / 'metrics.jsonl')[-1]
    self.assertEqual(last['step'], 2)
    self.assertEqual(last['train/skipped'], 0)
    self.assertBetween(last['train/loss'], .4, .6)
    self.assertBetween(last['reward/liked_share'], .01, .99)
    self.assertGreaterEqual(last['policy/reference_point'], 0)

  def test_a_file_without_labels(self):
    study = unpaired()
    study.data.logged.update(path=None, kind='gsm8k', task='gsm8k', num_rows=99)
    with self.assertRaisesRegex(
        errors.ConfigError, 'runs.one.algorithm .*groups liked and') as caught:
      plan(study)
    self.assertNotIn('\n', str(caught.exception))

  def test_pairs_have_labels(self):
    self.assertIn('policies/one', names(config(algorithm='kto')))


if __name__ == '__main__':
  absltest.main()
