"""Tests for rlhf_jax.studies.nodes: what the nodes of a config stand for."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.configs import base
from rlhf_jax.studies import nodes


def config() -> dict:
  one = base.offline_config('smoke')
  one.title, one.figure = 'test', dict(kind='table', columns=('gold',))
  return one.to_dict()


class ConfigTest(parameterized.TestCase):

  def test_a_requirement_names_the_field_and_its_value(self):
    require = nodes.requirement({'a': {'b': [1, 2]}})
    require(True, 'a.b', 'unseen')
    with self.assertRaisesRegex(
        errors.ConfigError, r'^config\.a\.b is \[1, 2\]; give one$'):
      require(False, 'a.b', 'give one')

  def test_at(self):
    self.assertEqual(nodes.at('runs.one', {'x': 1}),
                     {'runs': {'one': {'x': 1}}})

  @parameterized.parameters('', '.', '../x', '/tmp/x', 'a/b', '.hidden', 'a\0')
  def test_names_that_are_no_directories(self, name):
    for field, read in (('runs', nodes.offline_runs), ('logs', nodes.logs),
                        ('conditions', nodes.conditions)):
      one = config()
      one[field] = {name: {}}
      with self.assertRaisesRegex(
          errors.ConfigError, rf'^config\.{field} has the name '):
        read(one)

  def test_absolute_paths_of_models(self):
    one = config()
    one['policy']['model']['path'] = 'here/model'
    absolute = nodes.absolute(one)
    self.assertEqual(absolute['policy']['model']['path'],
                     str(pathlib.Path('here/model').absolute()))
    self.assertIsNone(absolute['gold']['model']['path'])
    self.assertEqual(one['policy']['model']['path'], 'here/model')


class DataTest(parameterized.TestCase):

  def test_the_small_world_where_nothing_else_is_given(self):
    data = nodes.data_config(config())
    self.assertEqual(data['name'], 'reviews')
    self.assertEqual(data['num_demonstrations'], 256)
    self.assertEqual(data['num_adjectives'], 240)
    self.assertNoCommonElements(
        data, ('files', 'world', 'logged', 'path', 'preferences'))
    self.assertTrue(nodes.has_rule(data))

  def test_files(self):
    one = worlds.on_files(config())
    data = nodes.data_config(one)
    self.assertEqual(data['name'], 'files')
    self.assertEqual(data['path'], str(worlds.loaded() / 'alpaca.json'))
    self.assertEqual(data['preferences'], str(worlds.loaded() / 'hh.jsonl'))
    self.assertIsNone(data['tokenizer'])
    self.assertFalse(nodes.has_rule(data))
    one['data']['path'] = 'alpaca.json'
    self.assertEqual(nodes.data_config(one)['path'],
                     str(pathlib.Path('alpaca.json').absolute()))
    # A loaded policy brings its tokenizer, unless one is named.
    one['policy']['model']['path'] = str(worlds.loaded() / 'model')
    self.assertEqual(nodes.data_config(one)['tokenizer'],
                     str(worlds.loaded() / 'model'))
    one['data']['files']['tokenizer'] = '/another'
    self.assertEqual(nodes.data_config(one)['tokenizer'], '/another')

  def test_preferences_alone(self):
    one = config()
    one['data']['preferences'] = 'hh.jsonl'
    with self.assertRaisesRegex(errors.ConfigError, 'data.path .*give both'):
      nodes.data_config(one)

  def test_a_log(self):
    one = config()
    one['data']['logged'].update(kind='reddit', task='reddit', num_rows=99,
                                 noise=.1)
    data = nodes.data_config(one)
    self.assertEqual((data['name'], data['task'], data['num_rows']),
                     ('logged', 'reddit', 99))
    self.assertNotIn('num_demonstrations', data)
    self.assertTrue(nodes.has_rule(data))
    self.assertFalse(nodes.has_rule(data | {'tokenizer': '/a/model'}))
    # The real thing takes the place of the task.
    one['data']['logged']['path'] = 'reddit.csv'
    data = nodes.data_config(one)
    self.assertEqual(data['path'], str(pathlib.Path('reddit.csv').absolute()))
    self.assertEqual([data[k] for k in ('task', 'num_rows', 'noise')],
                     [None] * 3)
    self.assertFalse(nodes.has_rule(data))
    one['data']['path'] = 'alpaca.json'
    with self.assertRaisesRegex(errors.ConfigError, 'give one of them'):
      nodes.data_config(one)


  @parameterized.parameters(
      ('logged', 'kind', 'reddit'), ('logged', 'target', 'votes'),
      ('logged', 'split', 'train'), ('logged', 'columns.prompt', 'question'),
      ('logged', 'tokenizer', '/a/model'), ('logged', 'num_rows', 99),
      ('logged', 'noise', 0.), ('logged', 'control', ('<|a|>',)),
      ('logged', 'demonstrations', ('liked',)), ('logged', 'eos', '</s>'),
      ('files', 'kind', 'alpaca'), ('files', 'preference_kind', 'hh'))
  def test_a_field_of_texts_that_nothing_reads(self, part, field, value):
    one = config()
    node, name = one['data'][part], field
    if '.' in field:
      node, name = node['columns'], field.partition('.')[2]
    node[name] = value
    source = {'logged': r'config\.data\.logged\.path \(or config\.data\.logged'
                        r'\.task\)', 'files': r'config\.data\.path'}[part]
    message = (rf'^config\.data\.{part}\.{field} is .*, but {source} is not '
               'given')
    with self.assertRaisesRegex(errors.ConfigError, message):
      nodes.data_config(one)
    worlds.on_files(one)
    if part == 'files':
      self.assertEqual(nodes.data_config(one)[name], value)
      return
    with self.assertRaisesRegex(errors.ConfigError, message):
      nodes.data_config(one)

  def test_lists_of_nothing_say_nothing(self):
    """As of a config that was JSON."""
    one = config()
    one['data']['logged']['control'] = []
    self.assertEqual(nodes.data_config(one)['name'], 'reviews')


class RunsTest(parameterized.TestCase):

  def test_conditions_are_changes_of_the_proxy(self):
    one = config()
    one['conditions'] = {'clean': {}, 'noisy': dict(
        label_noise=.25, num_members=3, model=dict(path='m'))}
    conditions = nodes.conditions(one)
    self.assertEqual(conditions['clean'], {'label_noise': 0., **one['proxy']})
    self.assertEqual(conditions['noisy'], {
        **one['proxy'], 'label_noise': .25, 'num_members': 3,
        'model': one['proxy']['model'] | {
            'path': str(pathlib.Path('m').absolute())}})
    one['conditions']['noisy'] = dict(noise=.25)
    with self.assertRaisesRegex(
        errors.ConfigError, r'conditions\.noisy\.noise is no field'):
      nodes.conditions(one)

  def test_an_online_run_is_a_change_of_the_node_online(self):
    one = config()
    one['runs'] = {'a': dict(kl=dict(coef=.1)), 'b': dict(labels={'x': 1})}
    runs = nodes.online_runs(one)
    self.assertEqual(runs['a']['kl'], one['online']['kl'] | {'coef': .1})
    self.assertEqual((runs['a']['labels'], runs['b']['labels']), ({}, {'x': 1}))
    self.assertEqual(nodes.of_stage(runs['b'], 'condition'), {
        k: v for k, v in one['online'].items() if k != 'condition'})

  def test_a_run_offline_is_a_change_of_one_node_or_the_other(self):
    one = config()
    one['runs'] = {'a': {}, 'b': dict(algorithm='wbc', use='all'),
                   'c': dict(algorithm='rloo', log='other')}
    runs = nodes.offline_runs(one)
    self.assertEqual(runs['a'], {'labels': {}, **one['offline']})
    self.assertEqual(runs['b'], {
        'labels': {}, **one['offline'], 'algorithm': 'wbc', 'use': 'all'})
    self.assertEqual(runs['c'], {
        'labels': {}, **one['online'], 'algorithm': 'rloo', 'log': 'other'})

  def test_logs_are_changes_of_the_node_log(self):
    one = config()
    part = dict(short=dict(kind='length', target=9))
    one['logs'] = {'a': {}, 'b': dict(components=part)}
    self.assertEqual(nodes.logs(one), {
        'a': one['log'], 'b': one['log'] | {'components': part}})

  @parameterized.parameters(
      (nodes.online_runs, 'runs', 3),
      (nodes.offline_runs, 'runs', 3),
      (nodes.conditions, 'conditions', None),
      (nodes.logs, 'logs', 'pairs'))
  def test_what_is_no_change(self, read, field, value):
    one = config()
    for node, where in ((value, ''), ({'a': value}, r'\.a')):
      with self.assertRaisesRegex(
          errors.ConfigError, rf'^config\.{field}{where} is {value!r}; give '):
        read(one | {field: node})

  @parameterized.parameters(
      (dict(mine='pkg:f'), r"\.mine is 'pkg:f'; give {'kind': ...}"),
      (dict(mine={}), r"\.mine is {}; give {'kind': ...}"),
      (dict(mine=dict(kind=['gold'])), r"\.mine is .*; give {'kind': ...}"),
      ('gold', " is 'gold'; give "))
  def test_components_have_kinds(self, components, message):
    """In a run, in a log, and in the node that all runs are changes of."""
    one = config()
    online = dict(reward=dict(components=components))
    ppo = dict(algorithm='ppo', **online)
    for read, where, changes in (
        (nodes.online_runs, 'runs.a.reward', {'runs': {'a': online}}),
        (nodes.offline_runs, 'runs.a.reward', {'runs': {'a': ppo}}),
        (nodes.logs, 'logs.a', {'logs': {'a': dict(components=components)}}),
        (nodes.logs, 'logs.a', {'logs': {'a': {}}, 'log': dict(
            one['log'], components=components)})):
      with self.assertRaisesRegex(
          errors.ConfigError, rf'^config\.{where}\.components{message}'):
        read(one | changes)

  @parameterized.parameters(
      (3, 'judge is 3; give changes'),
      (dict(judge=3), 'judge.judge is 3; give'),
      (dict(judge=dict(kind=3)), 'judge.judge is .*; give'),
      (dict(num_prompts='4'), "judge.num_prompts is '4'; give an integer"),
      (dict(against=4), 'judge.against is 4; give text, or None'),
      (dict(show_reference=None), 'judge.show_reference is None; give True'),
      (dict(prompts=4), 'judge.prompts is no field'))
  def test_a_judge_of_another_type(self, judge, message):
    with self.assertRaisesRegex(errors.ConfigError, rf'^config\.{message}'):
      nodes.judge(config() | {'judge': judge})
    with self.assertRaisesRegex(errors.ConfigError, rf'^config\.{message}'):
      nodes.reads_gold(config() | {'judge': judge}, [])

  def test_a_judge_has_every_field(self):
    self.assertEqual(nodes.judge({}), {
        'against': None, 'num_prompts': None, 'show_reference': False,
        'judge': {'kind': 'gold', 'margin': 0.}})
    self.assertEqual(nodes.judge(config()), config()['judge'])
    http = dict(kind='http', endpoint='http://localhost', model='m')
    self.assertEqual(nodes.judge({'judge': {'judge': http}})['judge'], http)

  def test_who_reads_reward_models(self):
    one = config()
    one['runs'] = {
        'ppo': dict(algorithm='ppo'),
        'function': dict(algorithm='rloo', reward=dict(components=dict(
            f=dict(kind='function', function='a:b')))),
        'trunk': dict(algorithm='ppo', value=dict(trunk='reward'),
                      reward=dict(components=dict(g=dict(kind='gold')))),
        'best': dict(algorithm='best_of_n')}
    self.assertEqual(
        {name: nodes.reads_proxies(run)
         for name, run in nodes.online_runs(one).items()},
        {'ppo': True, 'function': False, 'trunk': True, 'best': True})

  @parameterized.parameters(
      ({}, {}, False),
      (dict(x=dict(kind='gold')), {}, True),
      (dict(x=dict(kind='file', column='votes')), {}, True),
      (dict(x=dict(kind='proxy')), {}, False),
      ({}, dict(figure=dict(kind='table', columns=('proxy', 'gold'))), True),
      ({}, dict(figure=dict(kind='curves', y=('rule',))), True),
      ({}, dict(figure=dict(kind='table', columns=('drop_above',))), True),
      ({}, dict(figure=dict(kind='table', columns=('gold_split_8',))), True),
      ({}, dict(figure=dict(kind='table', columns=('length', 'kl_k1'))), False),
      ({}, dict(figure=dict(kind='win_rates')), True),
      # Which the check of a figure refuses.
      ({}, dict(figure=dict(kind='table', columns=3)), False),
      ({}, dict(figure=dict(kind='table', columns=(3,))), False),
      ({}, dict(judge=dict(against='reference', judge=dict(kind='gold'))),
       True),
      ({}, dict(judge=dict(against=None, judge=dict(kind='gold'))), False),
      ({}, dict(judge=dict(against='reference', judge=dict(kind='http'))),
       False))
  def test_who_reads_the_gold_model(self, components, changes, reads):
    one = {'figure': dict(kind='table', columns=('proxy',)), **changes}
    self.assertIs(nodes.reads_gold(one, [{}, components]), reads)


if __name__ == '__main__':
  absltest.main()
