"""The study `online`: what it plans, what it refuses, and best-of-n in it."""

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.configs import base
from rlhf_jax.runner import recipes
from rlhf_jax.storage import files
from rlhf_jax.studies import plan

BEST_OF_N = 'tests/configs/best_of_n.py'
METHODS = ('mean', 'single_1', 'worst_case')


def config(**changes) -> dict:
  """Best-of-n of each of METHODS; `changes` are of the run 'mean'."""
  study = worlds.get_config(BEST_OF_N, 'smoke')
  study['runs']['mean'].update(changes)
  return study


def names(study: dict) -> list[str]:
  return [stage.name for stage in plan.plan(study)]


def keywords(study: dict, name: str) -> dict:
  """What a stage is called with."""
  return next(stage for stage in plan.plan(study)
              if stage.name == name).run.keywords


def ppo(**changes) -> dict:
  return dict(algorithm='ppo', labels=dict(method='ppo')) | changes


class PlanTest(parameterized.TestCase):

  def test_samples_are_those_of_figure_3(self):
    figure_3 = worlds.get_config(worlds.FIGURE_3, 'smoke')
    stages = {
        stage.name: stage for one in (config(), figure_3)
        for stage in plan.plan(one)}
    made_of = recipes.of_stages([*stages.values()])
    self.assertEqual(*(made_of[name].key for name in (
        'seed_0/samples', 'seed_0/as_sampled/samples')))

  def test_a_seed_samples_once_and_a_condition_is_scored_once(self):
    study = config()
    study['runs']['clean'] = dict(condition='clean',
                                  labels=dict(method='clean'))
    study['runs']['ppo'] = ppo(condition='clean')
    self.assertEqual(names(study), [
        *(f'seed_0/{name}' for name in (
            'sft', 'gold', 'pairs', 'trunk', 'clean/proxies',
            'noise_25/proxies', 'samples', 'noise_25/scores', 'policies/mean',
            'policies/single_1', 'policies/worst_case', 'clean/scores',
            'policies/clean', 'policies/ppo')), 'report_seeds_0'])
    for name, condition in (('mean', 'noise_25'), ('clean', 'clean')):
      upstream = keywords(study, f'seed_0/policies/{name}')['upstream']
      self.assertEqual(upstream, {
          'reference': 'seed_0/sft', 'gold': 'seed_0/gold',
          'pairs': 'seed_0/pairs', 'scores': f'seed_0/{condition}/scores',
          'proxies': f'seed_0/{condition}/proxies'})
    self.assertEqual(keywords(study, 'seed_0/clean/scores')['upstream'], {
        'samples': 'seed_0/samples', 'proxies': 'seed_0/clean/proxies'})
    study['runs'] = dict(ppo=study['runs']['ppo'])
    self.assertEqual(names(study), [
        'seed_0/sft', 'seed_0/gold', 'seed_0/pairs', 'seed_0/trunk',
        'seed_0/clean/proxies', 'seed_0/policies/ppo', 'report_seeds_0'])

  def test_who_answers_and_by_what_it_is_measured(self):
    components = dict(proxy=dict(kind='proxy'),
                      short=dict(kind='length', target=9., weight=.5))
    study = config()
    study['seeds'] = (0, 4)
    study['runs'] = dict(one=ppo(reward=dict(components=components)))
    kwargs = keywords(study, 'seed_4/policies/one')
    self.assertEqual(kwargs['upstream'], {
        'reference': 'seed_4/sft', 'gold': 'seed_4/gold',
        'pairs': 'seed_4/pairs', 'proxies': 'seed_4/noise_25/proxies'})
    self.assertEqual(kwargs['measure'], {
        'components': components, 'pool': study['pool'],
        'sampler': study['sampler']})
    self.assertEqual(kwargs['run']['reward']['components'], components)
    self.assertNoCommonElements(kwargs['run'], ('labels', 'condition'))
    self.assertEqual((kwargs['seed'], kwargs['part']), (4, 0))
    shown = keywords(study, 'report_seeds_0_4')['policies']
    self.assertEqual(shown, [
        {'stage': f'seed_{seed}/policies/one', 'run': 'one',
         'labels': {'method': 'ppo'}, 'seed': seed} for seed in (0, 4)])

  def test_fields_it_does_not_use_change_nothing(self):
    one, changed = (
        [stage.run.keywords for stage in plan.plan(study)]
        for study in (config(), config(num_steps=9, rollout=dict(samples=7))))
    self.assertEqual(one, changed)

  @parameterized.parameters(
      ('reward.noise', dict(reward=dict(noise=1.))),
      ('reward.scale', dict(reward=dict(scale='running'))),
      ('reward.components.proxy.squash', dict(reward=dict(
          components=base.proxy(squash='sigmoid')))),
      ('reward.components.proxy.scale', dict(reward=dict(
          components=base.proxy(scale=2.)))),
      ('reward.components.proxy.range', dict(reward=dict(
          components=base.proxy(range=(0, 1))))),
      ('reward.components', dict(reward=dict(components=dict(
          base.proxy(), a=dict(kind='length', target=9))))),
      ('reward.components', dict(reward=dict(components=dict(
          a=dict(kind='length', target=9))))),
      ('reward.components', dict(reward=dict(components=dict(
          a=dict(kind='proxy'), b=dict(kind='proxy'))))),
      ('reward.eos.penalty', dict(reward=dict(eos=dict(penalty=1.)))),
      ('reward.eos.value', dict(reward=dict(eos=dict(value=0.)))),
      ('kl.coef', dict(kl=dict(coef=.01))),
      ('kl.target', dict(kl=dict(target=6.))),
      ('condition', dict(condition='dirty')))
  def test_contradictions(self, field, changes):
    with self.assertRaisesRegex(
        errors.ConfigError, rf'config\.runs\.mean\.{field} is'):
      names(config(**changes))

  def test_no_penalty_is_none(self):
    names(config(kl=dict(coef=0.)))

  def test_a_score_as_it_is(self):
    names(config(reward=dict(components=base.proxy(
        squash='none', scale=1, range=None))))

  @parameterized.parameters(
      ('num_samples', 1), ('num_samples', 24), ('samples_per_call', 0),
      ('shard_prompts', 0))
  def test_samples_out_of_range(self, field, value):
    study = config()
    study['best_of_n'][field] = value
    with self.assertRaisesRegex(
        errors.ConfigError, rf'config\.best_of_n\.{field} is {value};'):
      names(study)
    study['runs'] = dict(ppo=ppo())
    names(study)  # where nobody asks for samples

  def test_a_field_of_a_run_with_dots_in_its_name(self):
    study = config() | {'runs': {'kl_0.1': ppo(num_steps=0)}}
    with self.assertRaisesRegex(
        errors.ConfigError, r'config\.runs\.kl_0\.1\.num_steps is 0;'):
      plan.plan(study)

  def test_judges_read_no_answers_of_best_of_n(self):
    study = config()
    study['runs']['ppo'] = ppo()
    study['judge'] = dict(
        study['judge'], against='reference', num_prompts=4)
    policies = keywords(study, 'win_rates_seeds_0')['policies']
    self.assertEqual([one['run'] for one in policies], ['ppo'])

  def test_number_of_pairs(self):
    study = config()
    study['conditions']['few'] = dict(num_pairs=16)
    study['runs']['few'] = dict(condition='few', labels=dict(method='few'))
    kwargs = keywords(study, 'seed_0/few/proxies')
    self.assertEqual(
        (kwargs['node']['num_pairs'], kwargs['validate']), (16, False))
    kwargs = keywords(study, 'seed_0/noise_25/proxies')
    self.assertIsNone(kwargs['node']['num_pairs'])
    study['conditions']['few']['validate'] = True
    self.assertTrue(keywords(study, 'seed_0/few/proxies')['validate'])
    for count, field in ((0, 'num_pairs'), (65, 'num_pairs'),
                         (15, 'batch_size')):
      study['conditions']['few']['num_pairs'] = count
      with self.assertRaisesRegex(
          errors.ConfigError, rf'config\.conditions\.few\.{field} is'):
        names(study)


class BestOfNTest(absltest.TestCase):

  def test_only_scores_are_new(self):
    log = (worlds.smoke(BEST_OF_N)[0] / 'log.txt').read_text()
    for stage, source in (('samples', 'as_sampled/samples'),
                          ('noise_25/proxies', 'as_sampled/noise_0.25/proxies'),
                          ('pairs', 'as_sampled/pairs')):
      self.assertRegex(log, rf'seed_0/{stage} +reused from .*seed_0/{source}\n')
    for method in METHODS:
      self.assertNotRegex(log, f'policies/{method} +reused')
    self.assertEqual(log.count('noise_25/scores '), 1)

  def test_report(self):
    report = worlds.smoke(BEST_OF_N)[0] / 'report_seeds_0'
    rows = files.read_jsonl(report / 'results.jsonl')
    self.assertLen(rows, 3 * 6)
    self.assertEqual({row['method'] for row in rows}, set(METHODS))
    self.assertTrue((report / 'figure.png').exists())


def policies(**changes) -> dict:
  """A smoke study of one policy."""
  study = base.online_config('smoke')
  study.title = 'test'
  study.conditions.clean = dict()
  study.runs.one = dict(labels=dict(method='one')) | changes
  study.figure = dict(kind='table', columns=('gold',))
  return study.to_dict()


def proxy(**fields) -> dict:
  """Changes of a run whose reward is an ensemble with these fields."""
  return dict(reward=dict(components=base.proxy(**fields)))


class MistakesTest(parameterized.TestCase):
  """What a policy stage would fail at is one line, before anything runs."""

  @parameterized.parameters(
      (dict(algorithm='sfa'), "algorithm is 'sfa'"),
      (dict(algorithm='dpo'), "'dpo', which trains no policy from prompts"),
      (dict(condition='dirty'), 'runs.one.condition is'),
      (dict(arguments=dict(gae=dict(lamda=.9))), 'lamda'),
      (dict(arguments=dict(gae=dict(gae_lambda=2.))), 'gae_lambda'),
      (dict(arguments=dict(ppo=dict(clip=1.))), 'clip'),
      (dict(arguments=dict(ppo=dict(clip_ratio=-1.))), 'clip_ratio'),
      (dict(arguments=dict(gae=dict(drop=True))), 'advantages'),
      (dict(arguments=dict(whiten=False)), 'arguments.whiten is False'),
      (dict(arguments=dict(scores=dict(kind='mean'))), 'reward.components'),
      (dict(kl=dict(coef=-.1)), 'KL coefficient is -0.1'),
      (dict(kl=dict(target=-6., coef=.1)), 'kl.target is -6.0'),
      (dict(kl=dict(target=6., coef=0.)), 'set kl.coef'),
      (dict(kl=dict(place='loss', coef=.1), algorithm='apa'), 'kl_coef'),
      (dict(kl=dict(place='loss')), 'no KL in the loss'),
      (dict(arguments=dict(ppo=dict(kl_coef=.1))), 'in the reward and in the'),
      (dict(reward=dict(eos=dict(penalty=-1.))), 'penalty'),
      (proxy(aggregate=dict(kind='best')),
       "reward.components: component 'proxy': aggregate is .*'best'"),
      (proxy(aggregate=dict(kind='single', member=9)),
       'runs.one.reward.components.proxy.aggregate: '),
      (proxy(standardise=True), 'component .proxy.: standardise is True'),
      (dict(reward=dict(components={})), r'reward.components is \{\}; give'),
      (dict(reward=dict(components=dict(a=dict(
          kind='function', function='nowhere:f')))), 'nowhere'),
      (dict(reward=dict(components=dict(a=dict(kind='tfidf')))),
       "runs.one.reward.components.a has kind 'tfidf', which reads 'log'"),
      (dict(reward=dict(components=dict(a=dict(
          kind='file', column='votes')))),
       "runs.one.reward.components.a has kind 'file', .*logged.path, a file "
       "with the column 'votes'"),
      (dict(reward=dict(components=dict(a=dict(kind='exact_match')))),
       "runs.one.reward.components.a has kind 'exact_match'"),
      (dict(rollout=dict(chunk_size=-4)), 'chunk_size is -4'),
      (dict(rollout=dict(resample=-1)), 'resample is -1'),
      (dict(rollout=dict(min_new_tokens=-1)),
       r'runs.one.rollout.min_new_tokens is -1; give 0 to \d+, the tokens'),
      (dict(rollout=dict(min_new_tokens=999)), 'min_new_tokens is 999'),
      (dict(rollout=dict(samples=2)), 'PPO takes rollout.samples 1, got 2'),
      (dict(rollout=dict(samples=1), algorithm='rloo'),
       'RLOO takes rollout.samples 2 or more'),
      (dict(updates=dict(num_minibatches=3)), 'num_minibatches is 3'),
      (dict(updates=dict(penalty_target=.01)), 'penalty_target'),
      (dict(updates=dict(penalty_target=.01, num_epochs=1),
            algorithm='ppo_kl_penalty'), 'num_epochs >= 2'),
      (dict(evaluation=dict(num_prompts=999)), 'num_prompts is 999'),
      (dict(evaluation=dict(texts=-1)), 'texts is -1; give at least 0'),
      (dict(value=dict(trunk='none')), "value.trunk is 'none'"),
      (dict(num_step=3), 'runs.one.num_step is no field'),
      (3, r'config\.runs\.one is 3; give changes'),
      (dict(rollout=dict(temperature=None)),
       r'config\.runs\.one\.rollout\.temperature is None; give a number'),
      (dict(reward=dict(noise='1')),
       r"config\.runs\.one\.reward\.noise is '1'; give a number"),
      (dict(kl=dict(target='6')), r"config\.runs\.one\.kl\.target is '6'"),
      (dict(rollout=dict(chunk_size='4')), r"rollout\.chunk_size is '4'"),
      (dict(reward=dict(components=dict(mine='pkg:f'))),
       r"config\.runs\.one\.reward\.components\.mine is 'pkg:f'; give {'kind"),
      (dict(labels=3), r'config\.runs\.one\.labels is 3; give a dict'),
      (dict(condition=['clean']), r'config\.runs\.one\.condition is '))
  def test_of_a_run(self, changes, message):
    study = policies()
    if isinstance(changes, dict):
      study = policies(**changes)
    else:
      study['runs']['one'] = changes
    with self.assertRaisesRegex(errors.ConfigError, message) as caught:
      plan.plan(study)
    self.assertNotIn('\n', str(caught.exception))

  def test_nothing_to_do(self):
    with self.assertRaisesRegex(
        errors.ConfigError, r'config\.runs is {}; give at least one'):
      plan.plan(policies() | {'runs': {}})

  def test_a_condition_is_for_those_who_read_it(self):
    study = policies(algorithm='rloo', rollout=dict(samples=2), reward=dict(
        components=dict(short=dict(kind='length', target=9))),
                     condition='dirty')
    self.assertNotIn('seed_0/clean/proxies', names(study))
    # A value function on a reward model's trunk reads it too.
    study = policies(value=dict(trunk='reward'), reward=dict(
        components=dict(short=dict(kind='length', target=9))))
    self.assertEqual(
        keywords(study, 'seed_0/policies/one')['upstream']['proxies'],
        'seed_0/clean/proxies')
    study['runs']['one']['condition'] = 'dirty'
    with self.assertRaisesRegex(
        errors.ConfigError, r"config\.runs\.one\.condition is 'dirty'; its "
        'reward models are of a condition; there are clean'):
      plan.plan(study)

  @parameterized.parameters(
      (3, r'conditions\.clean is 3; give changes'),
      (dict(num_pairs='9'), r"conditions\.clean\.num_pairs is '9'; give an"),
      (dict(num_members=2.5), r'conditions\.clean\.num_members is 2\.5'),
      (dict(model=dict(path=3)), r'conditions\.clean\.model\.path is 3; give'),
      (dict(label_noise=None), r'conditions\.clean\.label_noise is None'))
  def test_of_a_condition(self, changes, message):
    study = policies()
    study['conditions']['clean'] = changes
    with self.assertRaisesRegex(errors.ConfigError, rf'^config\.{message}'):
      plan.plan(study)

  def test_a_condition_that_no_run_reads(self):
    """It trains nothing, and cannot refuse the plan."""
    study = policies()
    study['conditions']['large'] = dict(held_out=10**6)
    names(study)
    study['runs']['one']['condition'] = 'large'
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.conditions\.large\.held_out is '):
      names(study)

  def test_judge(self):
    study = policies()
    study['judge']['against'] = 'reference'
    with self.assertRaisesRegex(errors.ConfigError, 'judge.num_prompts is'):
      plan.plan(study)
    study['judge']['num_prompts'] = '4'
    with self.assertRaisesRegex(
        errors.ConfigError, r"^config\.judge\.num_prompts is '4'; give an int"):
      plan.plan(study)
    study['judge']['num_prompts'] = 4
    self.assertEqual(names(study)[-2:],
                     ['win_rates_seeds_0', 'report_seeds_0'])

  @parameterized.parameters(
      'sft', 'gold', 'policies', 'trunk_0', 'pairs_features',
      'pairs_features_1')
  def test_condition_with_the_name_of_a_stage(self, name):
    study = policies(condition=name)
    study['conditions'][name] = {}
    with self.assertRaisesRegex(
        errors.ConfigError, rf'conditions\.{name} has the name of a stage'):
      plan.plan(study)

  def test_members_with_trunks_of_their_own_share_none(self):
    study = policies(condition='two')
    study['conditions'] = {'clean': dict(trunk='member', num_members=1),
                           'two': dict(trunk='member', num_members=2)}
    study['runs']['other'] = dict(condition='clean',
                                  labels=dict(method='other'))
    self.assertContainsSubset(
        [f'seed_0/{x}' for x in ('two/trunk_0', 'two/trunk_1',
                                 'clean/trunk_0')], names(study))

  def test_figure(self):
    study = policies()
    study['figure'] = dict(kind='curves', line=('beta',))
    with self.assertRaisesRegex(errors.ConfigError, "label 'beta'"):
      plan.plan(study)


if __name__ == '__main__':
  absltest.main()
