"""Tests for rlhf_jax.configs.training: from a few words to a study."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import own_data
import worlds

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax.configs import tasks
from rlhf_jax.configs import training
from rlhf_jax.pipeline import methods
from rlhf_jax.studies import nodes
from rlhf_jax.studies import plan

# A file that has what algorithms of a source learn from.
DATA = {'demonstrations': 'demonstrations.json', 'preferences': 'pairs.jsonl',
        'rankings': 'ranked.jsonl', 'logged': 'scored.csv',
        'prompts': 'prompts.jsonl', 'unpaired': 'kto.jsonl'}
REWARD = 'mine:polite'


def task(algorithm, data=None, **fields) -> tasks.Task:
  row = algorithms.ALGORITHMS.get(algorithm)
  if row is not None and row.source == 'prompts':
    fields.setdefault('reward', REWARD)
  name = data or DATA[row.source]
  return tasks.Task(algorithm=algorithm, data=str(own_data.folder() / name),
                       **{'size': 'smoke', **fields})


def config(*args, **fields) -> dict:
  return training.get_config(task(*args, **fields)).to_dict()


def stages(study: dict) -> list[str]:
  return [stage.name.removeprefix('seed_0/') for stage in plan.plan(study)]


class PlanTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    worlds.importable(self, own_data.folder())

  @parameterized.parameters(*training.names())
  def test_every_row_is_planned(self, algorithm):
    """In each size, with the steps and the batch that it is told of."""
    data = 'pairs.jsonl' if algorithm == tasks.REWARD else None
    for size in ('smoke', 'laptop', 'full'):
      study = config(algorithm, data, size=size)
      self.assertIn('report_seeds_0', stages(study))
      self.assertEqual(study['size'], size)

  def test_rows_are_packed_where_they_can_be(self):
    for algorithm, packed in (('dpo', True), ('kto', False)):
      study = config(algorithm)
      self.assertIs(study['offline']['packing'], packed)
      for node in (study['policy'], study['proxy'], study['proxy']['sft'],
                   study['gold']):
        self.assertTrue(node['packing'])

  def test_all_rows_that_train_a_policy_may_be_named(self):
    rows = {name for name, row in algorithms.ALGORITHMS.items()
            if row.objective and row.objective['name'] not in methods.REWARDS}
    self.assertEqual(rows | {tasks.REWARD}, {*training.names()})

  @parameterized.parameters(
      ('rloo', {}, ['sft', 'policies/policy']),
      ('dpo', {}, ['sft', 'logs/data/logged', 'policies/policy']),
      ('a_lol', {}, ['sft', 'gold', 'logs/data/logged',
                     'logs/data/prompt_value', 'policies/policy']),
      ('a_lol', dict(reward=REWARD, reward_range=(0., 1.)), [
          'sft', 'logs/data/logged', 'logs/data/prompt_value',
          'policies/policy']),
      ('reward', dict(data='messages.jsonl'), [
          'preferences', 'trunk', 'rewards/proxies']),
      ('ppo', dict(preferences='pairs.jsonl', reward=None), [
          'sft', 'preferences', 'trunk', 'rewards/proxies',
          'policies/policy']))
  def test_no_stage_that_is_not_needed(self, algorithm, fields, expected):
    if 'preferences' in fields:
      fields = fields | {'preferences': str(
          own_data.folder() / fields['preferences'])}
    self.assertEqual(stages(config(algorithm, **fields))[:-1], expected)

  def test_fields(self):
    study = config('rloo', steps=7, batch_size=6, samples=3, kl_coef=.5, seed=4,
                   learning_rate=.1, max_prompt_length=40, eval_prompts=5,
                   max_response_length=9, format='hh')
    run = study['online']
    self.assertEqual(
        (run['num_steps'], run['rollout']['batch_size'], study['seeds'],
         run['rollout']['samples'], run['kl']['coef'],
         run['optimizer']['learning_rate']), (7, 6, (4,), 3, .5, .1))
    texts = study['data']['files']
    self.assertEqual(
        (texts['max_prompt_length'], texts['max_response_length'],
         texts['format'], study['data']['num_eval_prompts']), (40, 9, 'hh', 5))
    study = config('reward', 'pairs.jsonl', members=3)
    self.assertEqual(study['proxy']['num_members'], 3)
    study = config('dpo', sft_steps=0)
    self.assertEqual(study['policy']['num_steps'], 0)

  def test_a_learning_rate_is_that_of_the_algorithm_alone(self):
    """Else a sweep over it would change the reference and the rewards too."""
    names = {'dpo': 'offline', 'reward': 'proxy'}
    for algorithm, node in names.items():
      study = config(algorithm, 'pairs.jsonl', learning_rate=.25)
      usual = config(algorithm, 'pairs.jsonl')
      self.assertEqual(study[node]['optimizer']['learning_rate'], .25)
      study[node]['optimizer'] = usual[node]['optimizer']
      self.assertEqual(study, usual)
    self.assertEqual(config('dpo', learning_rate=0.)['offline']['optimizer'][
        'learning_rate'], 0)

  @parameterized.parameters(*training.names())
  def test_every_argument_of_a_row_is_a_field(self, algorithm):
    """With the value that holds without it."""
    if algorithm == tasks.REWARD:
      return
    study = config(algorithm)
    run = study['offline' if 'offline' in study else 'online']
    row = algorithms.ALGORITHMS[algorithm]
    for node in (*row.annotators, row.objective):
      fields = {k: v for k, v in node.items()
                if k != 'name' and v is not None and not (
                    k == 'kl_coef' and node['name'].startswith('kl_'))}
      self.assertEqual(run['arguments'].get(node['name'], {}) | fields,
                       run['arguments'].get(node['name'], {}))
    stages(study)  # all of them are known, and fit

  def test_defaults_of_functions_are_fields_too(self):
    arguments = config('ppo')['online']['arguments']
    self.assertEqual(arguments['ppo']['value_clip'], .2)
    self.assertEqual(arguments['gae'], dict(gae_lambda=.95, discount=1.))

  def test_a_fresh_policy_reads_the_tokens_of_its_reward_models(self):
    rewards = own_data.trained() / 'rewards/seed_0/rewards/proxies'
    for directory in (rewards, own_data.trained() / 'ensemble'):
      study = config('rloo', reward=str(directory))
      self.assertIn('rewards/proxies', stages(study))
      named = nodes.data_config(nodes.absolute(study))['tokenizer']
      self.assertStartsWith(named, str(directory))
    study['data']['files']['tokenizer'] = str(own_data.other_tokenizer())
    with self.assertRaisesRegex(errors.ConfigError, r'conditions\.rewards\.path'
                                ': .* has another id for the token'):
      plan.plan(study)

  @parameterized.parameters(
      ('reward', 'pairs.jsonl', {}),
      ('rloo', 'scored.csv', dict(
          reward=None, preferences='pairs.jsonl', sft_steps=3)))
  def test_adapters_of_reward_models_too(self, algorithm, data, fields):
    if 'preferences' in fields:
      fields = fields | dict(
          preferences=str(own_data.folder() / 'pairs.jsonl'))
    one = task(algorithm, data, model=str(worlds.loaded() / 'model'), lora=4,
               format='open_assistant', **fields)
    study = training.get_config(one).to_dict()
    for part in ('policy', 'proxy', 'gold'):
      self.assertEqual(study[part]['model']['lora']['rank'], 4)
    self.assertEqual(study['policy']['num_steps'], fields.get('sft_steps', 0))
    self.assertIn('adapters of rank 4', '\n'.join(training.describe(
        training.get_config(one), one)))
    self.assertIn('rewards/proxies', stages(study))
    self.assertNotIn('trunk', stages(study))

  def test_bad_rows(self):
    path = worlds.folder() / 'bad.jsonl'
    path.write_text((own_data.folder() / 'pairs.jsonl').read_text()
                    + '{"prompt": 3}\n')
    one = functools.partial(task, 'dpo', data=str(path))
    with self.assertRaisesRegex(errors.DataError, r'--max_bad_rows=1 of train'):
      training.get_config(one())
    study = training.get_config(one(max_bad_rows=1)).to_dict()
    self.assertIn('policies/policy', stages(study))

  def test_a_score_of_the_data_is_its_reward(self):
    """In the range that it has, where values of prompts need one."""
    node, = config('a_lol')['log']['components'].values()
    self.assertEqual(node, dict(kind='file', column='reward', squash='clip',
                                range=(0.0, 1.5)))
    node, = config('wbc')['log']['components'].values()
    self.assertEqual(node, dict(kind='file', column='reward'))
    self.assertEmpty(config('dpo')['log']['components'])

  def test_prompts_alone_start_from_the_model_as_it_is(self):
    self.assertEqual(config('rloo')['policy']['num_steps'], 0)
    self.assertGreater(config('rloo', 'pairs.jsonl')['policy']['num_steps'], 0)

  def test_conversations_have_a_format_for_them(self):
    study = config('dpo', 'messages.jsonl')
    self.assertEqual(study['data']['logged']['format'], 'alpaca')
    study = config('dpo', 'messages.jsonl', format='chatml')
    self.assertEqual(study['data']['logged']['format'], 'chatml')

  def test_what_was_filled_in_is_said(self):
    one = task('rloo')
    said = '\n'.join(training.describe(training.get_config(one), one))
    for part in ('RLOO', '(prompts)', '4 prompts held out', 'alpaca', '2 steps',
                 '0.001', 'mine:polite', 'up to 96 tokens'):
      self.assertIn(part, said)


class MistakesTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(algorithm='dop'), "--algorithm=dop trains nothing; did you mean "
       "'dpo'"),
      (dict(algorithm='best_of_n'), 'best_of_n trains nothing'),
      (dict(size='large'), '--size=large: there are smoke, laptop, full'),
      (dict(model='none/there'), '--model=none/there: there is no such'),
      (dict(lora=8), '--lora=8 adapts a model that is loaded; give --model'),
      (dict(kind='pears'), "--kind=pears: did you mean 'pairs'"),
      (dict(columns=(('prompt', 'q'),)), 'no kind .*|field .q. is missing'),
      (dict(reward='vadre'), "--reward=vadre is no module:function.*did you "
       "mean 'vader'"),
      (dict(samples=4), '--preferences and --samples are of algorithms'),
      (dict(kl_coef=.1), '--kl_coef is of algorithms that sample'),
      (dict(algorithm='rloo'), '--algorithm=rloo needs a reward'),
      (dict(algorithm='reward', kl_coef=.1), '--kl_coef is of policies'),
      (dict(algorithm='a_lol'), 'no score is said of every response'),
      (dict(algorithm='pro', data='scored.csv'), 'are not two or more'),
      (dict(algorithm='dpo', data='scored.csv'), 'are not pairs of a chosen'),
      (dict(algorithm='reward', data='scored.csv'), 'make no pair'),
      (dict(algorithm='sft', data='prompts.jsonl'), 'has prompts alone'))
  def test_one_line(self, fields, message):
    fields = {'algorithm': 'dpo', 'data': 'pairs.jsonl', **fields}
    fields['data'] = str(own_data.folder() / fields['data'])
    with self.assertRaisesRegex(errors.UserError, message) as caught:
      training.get_config(tasks.Task(**{'size': 'smoke', **fields}))
    self.assertNotIn('\n', str(caught.exception))

  def test_sft_on_prompts_alone(self):
    worlds.importable(self, own_data.folder())
    with self.assertRaisesRegex(
        errors.ConfigError, r'policy\.num_steps is 3; but the data is prompts'):
      plan.plan(config('rloo', sft_steps=3))

  def test_a_stage_is_no_model(self):
    directory = worlds.folder()
    (directory / 'a').mkdir()
    for name in ('config.json', 'a/model.json'):
      (directory / name).write_text('{}')
    with self.assertRaisesRegex(
        errors.ConfigError, 'export it first: rlhf-jax export --workdir=.* '
        '--stage=a --directory='):
      config('dpo', model=str(directory / 'a'))


class ReadersTest(parameterized.TestCase):

  @parameterized.parameters('.', 'pairs')
  def test_none_there(self, name):
    with self.assertRaises(errors.DataError):
      training.get_config(tasks.Task(
          algorithm='dpo', data=str(worlds.folder() / name)))

  def test_columns_of_other_names(self):
    path = worlds.folder() / 'a.jsonl'
    text = (own_data.folder() / 'pairs.jsonl').read_text()
    for old, new in (('prompt', 'q'), ('chosen', 'a'), ('rejected', 'b')):
      text = text.replace(f'"{old}"', f'"{new}"')
    path.write_text(text)
    columns = (('prompt', 'q'), ('chosen', 'a'), ('rejected', 'b'))
    one = tasks.Task(algorithm='dpo', data=str(path), size='smoke',
                        columns=columns)
    study = training.get_config(one).to_dict()
    self.assertIn('policies/policy', stages(study))
    one = functools.partial(
        tasks.Task, algorithm='rloo', data=str(path), size='smoke',
        reward='vader')
    study = training.get_config(one(columns=columns)).to_dict()
    self.assertIn('policies/policy', stages(study))


if __name__ == '__main__':
  absltest.main()
