"""What a user does with own data, command after command, in one process.

The worlds are tiny; the numbers are recomputed from what the commands leave.
"""

import csv
import json
import pathlib
import shutil
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import own_data
import worlds

from rlhf_jax import errors
from rlhf_jax import main
from rlhf_jax import sampling
from rlhf_jax.data import tokenizer
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.models import convert
from rlhf_jax.ops import ensembles
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import reward_directory
from rlhf_jax.runner import code as code_lib
from rlhf_jax.runner import recipes
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files
from rlhf_jax.studies import plan

succeed, world = own_data.succeed, own_data.trained


def fail(code, *words):
  """The one line of a command that fails."""
  actual, _, err = own_data.run(*words)
  assert actual == code, err
  assert err.count('\n') == 1, err
  return err


def scores(*words) -> list[dict]:
  output = worlds.folder() / 'out.csv'
  succeed('score', *words, f'--output={output}')
  with open(output, newline='') as stream:
    return list(csv.DictReader(stream))


def column(rows, name):
  return np.array([float(row[name]) for row in rows])


STAGE = '--stage=seed_0/rewards/proxies'


class RewardsTest(parameterized.TestCase):

  def of_stage(self):
    return scores(f'--workdir={world()}/rewards', STAGE,
                  f'--data={own_data.folder()}/scored.csv')

  @parameterized.parameters('ensemble', 'rewards/seed_0/rewards/proxies')
  def test_an_export_says_what_the_stage_says(self, directory):
    rows = scores(f'--rewards={world()}/{directory}',
                  f'--data={own_data.folder()}/scored.csv')
    for name in ('reward', 'member_0', 'member_1', 'member_2',
                 'ensemble_variance'):
      np.testing.assert_allclose(column(rows, name),
                                 column(self.of_stage(), name), atol=1e-4)

  def test_what_is_scored_is_what_the_members_think(self):
    """Of the texts as they were in training, prompt, response and EOS."""
    rows = self.of_stage()
    directory = world() / 'rewards/seed_0/rewards/proxies'
    models = artifacts.restore_rewards(directory)
    coder = artifacts.read_tokenizer(directory)
    template = ('Below is an instruction that describes a task. Write a '
                'response that appropriately completes the request.\n\n'
                '### Instruction:\n{}\n\n### Response:')
    encoded = coder.encode_rows(
        [template.format(row['prompt']) for row in rows],
        [row['response'] for row in rows], max_prompt_length=48,
        max_response_length=12)
    members = models.scores(encoded.tokens, encoded.mask)
    for i, x in enumerate(members):
      np.testing.assert_allclose(column(rows, f'member_{i}'), x, atol=1e-4)
    np.testing.assert_allclose(column(rows, 'reward'), members.mean(axis=0),
                               atol=1e-4)
    np.testing.assert_allclose(
        column(rows, 'ensemble_variance'), members.var(axis=0), atol=1e-4)
    np.testing.assert_allclose(column(rows[:2], 'file_reward'), (1.5, .25))

  @parameterized.parameters(
      ('worst_case', {}), ('uncertainty_weighted', {'uncertainty_coef': .3}))
  def test_aggregates(self, kind, options):
    words = [f'--{name}={value}' for name, value in options.items()]
    rows = scores(f'--workdir={world()}/rewards', STAGE, f'--aggregate={kind}',
                  *words, f'--data={own_data.folder()}/scored.csv')
    members = np.stack([column(rows, f'member_{i}') for i in range(3)])
    np.testing.assert_allclose(column(rows, 'reward'), ensembles.aggregate(
        members.astype(np.float32), kind=kind, **options), atol=1e-4)

  def test_what_transformers_has_no_place_for_is_beside_it(self):
    stage = artifacts.restore_rewards(
        world() / 'rewards/seed_0/rewards/proxies')
    for i in range(3):
      directory = world() / f'ensemble/member_{i}'
      told = files.read_json(directory / 'reward.json')
      _, params = convert.load_reward(directory)
      self.assertEqual(params['head']['bias'], 0)
      self.assertAlmostEqual(
          told['bias'], float(stage.params['head']['bias'][i]), 6)
      for name in ('mean', 'std'):
        self.assertAlmostEqual(told[name], float(stage.scale[name][i]), 5)
    self.assertIn('3 reward models', (
        world() / 'ensemble/README.md').read_text())

  def test_a_member_alone(self):
    out = worlds.folder() / 'one'
    succeed('export', f'--workdir={world()}/rewards', STAGE,
            f'--directory={out}', '--member=2')
    loaded = reward_directory.load(out)
    self.assertEqual(loaded.models.num_members, 1)
    rows = scores(f'--rewards={out}',
                  f'--data={own_data.folder()}/scored.csv')
    np.testing.assert_allclose(column(rows, 'reward'),
                               column(self.of_stage(), 'member_2'), atol=1e-4)

  def test_a_policy_is_rewarded_by_them(self):
    """The reward of its answers is what `score` says of them."""
    final = files.read_jsonl(
        world() / 'rloo/seed_0/policies/policy/final.jsonl')
    directory = world() / 'rloo/seed_0/rewards/proxies'
    source = artifacts.restore_rewards(
        world() / 'rewards/seed_0/rewards/proxies')
    copied = artifacts.restore_rewards(directory)
    for name in ('mean', 'std'):
      np.testing.assert_array_equal(copied.scale[name], source.scale[name])
    text = worlds.folder() / 'answers.jsonl'
    files.write_jsonl(text, [
        {'prompt': row['prompt'], 'response': row['response']}
        for row in final if row['response'].strip()])
    rows = scores(f'--workdir={world()}/rloo', STAGE, '--format=',
                  '--aggregate=worst_case', f'--data={text}')
    self.assertLen(column(rows, 'reward'), len(rows))
    for row in final:
      self.assertTrue(np.isfinite(row['proxy']))

  def test_mistakes(self):
    data = f'--data={own_data.folder()}/scored.csv'
    where, out = f'--workdir={world()}/rewards', '--output=x.csv'
    for code, words, part in (
        (2, ('score', where, STAGE, data), 'give --output'),
        (2, ('score', data, out), 'give --workdir and --stage'),
        (4, ('score', where, '--stage=seed_0/proxies', data, out),
         'such as seed_0/rewards/proxies'),
        (4, ('score', where, '--stage=seed_0/trunk', data, out),
         'holds a policy model where a reward model'),
        (2, ('score', where, STAGE, data, out, '--aggregate=worst'),
         "did you mean 'worst_case'"),
        (3, ('score', where, STAGE, out,
             f'--data={own_data.folder()}/prompts.jsonl'),
         'has prompts alone'),
        (4, ('score', '--rewards=none', data, out), 'no such directory'),
        (2, ('export', where, STAGE, '--directory=x', '--member=3'),
         'has members 0 to 2'),
        (2, ('export', where, STAGE, '--directory=x', '--adapter'),
         '--adapter is of policies'),
        (4, ('export', where, STAGE, f'--directory={world()}/ensemble'),
         'holds an ensemble already')):
      self.assertIn(part, fail(code, *words), words)


class PolicyTest(parameterized.TestCase):

  def test_generate(self):
    where = (f'--workdir={world()}/rloo', '--stage=seed_0/policies/policy')
    twice = [succeed('generate', *where, '--prompt=Name a colour.',
                     '--samples=2', '--seed=3') for _ in range(2)]
    self.assertEqual(*twice)
    self.assertNotEqual(twice[0], succeed(
        'generate', *where, '--prompt=Name a colour.', '--samples=2'))
    out = worlds.folder() / 'out.jsonl'
    succeed('generate', *where, f'--data={own_data.folder()}/prompts.jsonl',
            f'--output={out}', '--temperature=0')
    rows = files.read_jsonl(out)
    self.assertLen(rows, 60)
    # The same as an exported policy's, of which transformers knows no format.
    greedy = succeed('generate', f'--model={world()}/model', '--temperature=0',
                     '--format=alpaca', '--max_response_length=12',
                     '--max_prompt_length=48', '--prompt=Name a colour.')
    self.assertEqual(greedy, succeed(
        'generate', f'--workdir={world()}/sft', '--temperature=0',
        '--stage=seed_0/policies/policy', '--prompt=Name a colour.'))

  def test_generate_at_least(self):
    """Whatever ends it, an answer has as many tokens as it was told."""
    flags = (f'--model={world()}/model', '--format=alpaca',
             '--prompt=Name a colour.', '--samples=8')
    with mock.patch.object(
        sampling, 'sample', wraps=sampling.sample) as sample:
      succeed('generate', *flags, '--max_response_length=6',
              '--min_new_tokens=6')
    self.assertEqual(sample.call_args.kwargs['min_new_tokens'], 6)
    self.assertIn('min_new_tokens must be in [0, 5], got 6', fail(
        2, 'generate', *flags, '--max_response_length=5',
        '--min_new_tokens=6'))

  def test_generate_ends_as_the_model_says(self):
    model = worlds.folder()
    worlds.copy(world() / 'model', model)
    coder = tokenizer.Tokenizer.from_directory(model)
    (model / 'generation_config.json').write_text(
        json.dumps({'eos_token_id': [coder.eos_id, 65]}))
    with mock.patch.object(
        sampling, 'sample', wraps=sampling.sample) as sample:
      succeed('generate', f'--model={model}', '--format=alpaca',
              '--prompt=Name a colour.', '--max_response_length=4')
    self.assertEqual(sample.call_args.kwargs['eos_id'], (coder.eos_id, 65))

  def test_generate_ends_where_training_did(self):
    """At `data.stop` of the study, which its stages remember."""
    stage, read = world() / 'sft/seed_0/policies/policy', artifacts.read_model
    coder = artifacts.read_tokenizer(stage).ending_at(('e', 'o'))
    context = mock.Mock(directory=worlds.folder())
    artifacts.write_model(context, 'policy', {}, coder, texts=None)
    stop = read(context.directory)['stop']
    self.enterContext(mock.patch.object(
        artifacts, 'read_model',
        lambda *args: read(*args) | {'stop': stop}))
    with mock.patch.object(
        sampling, 'sample', wraps=sampling.sample) as sample:
      said = succeed('generate', f'--workdir={world()}/sft',
                     '--stage=seed_0/policies/policy', '--prompt=Name one.')
    np.testing.assert_array_equal(
        sample.call_args.kwargs['stops'], coder.stops)
    self.assertNotRegex(said, '[eo]')

  def test_a_chat(self):
    said = succeed('generate', f'--model={world()}/model', '--format=alpaca',
                   '--max_response_length=4', stdin='Hello\n\n/new\nWhat?\n')
    self.assertGreaterEqual(said.count('\n'), 2)

  def test_evaluate(self):
    worlds.importable(self, own_data.folder())
    out = worlds.folder() / 'out.jsonl'
    page = succeed('evaluate', f'--workdir={world()}/rloo',
                   '--stage=seed_0/policies/policy', '--reward=mine:polite',
                   f'--output={out}')
    lines = files.read_jsonl(out)
    mean = lambda name: np.mean([line[name] for line in lines])
    for line in lines:
      self.assertAlmostEqual(line['reward'], len(line['response']) / 100, 5)
      self.assertAlmostEqual(
          line['against_reward'], len(line['against']) / 100, 5)
    rows = {line.split()[0]: line.split()[1:]
            for line in page.splitlines()[1:]}
    self.assertEqual(rows['reward'][0], f'{mean("reward"):.4g}')
    wins = np.mean([np.sign(x['reward'] - x['against_reward']) / 2 + .5
                    for x in lines])
    self.assertEqual(rows['win_rate'], [f'{wins:.4g}'])
    # The same prompts as the study's own evaluations.
    own = files.read_jsonl(world() / 'rloo/seed_0/policies/policy/final.jsonl')
    self.assertEqual([line['prompt'] for line in lines],
                     [row['prompt'] for row in own])

  def test_a_config_of_another_study_holds_out_other_prompts(self):
    workdir = worlds.folder() / 'rloo'
    worlds.copy(world() / 'rloo', workdir)
    config = workdirs.read_config(workdir)
    del config['layout']
    config['data']['num_eval_prompts'] -= 1
    (workdir / 'config.json').unlink()
    workdirs.check_config(workdir, config, ())
    self.assertIn('seed_0/sft has learned from', fail(
        4, 'evaluate', f'--workdir={workdir}',
        '--stage=seed_0/policies/policy', '--reward=vader'))

  def test_a_policy_against_itself(self):
    page = succeed('evaluate', f'--model={world()}/model', '--reward=vader',
                   f'--against={world()}/model', '--format=alpaca',
                   '--max_response_length=8', '--num_prompts=6',
                   f'--data={own_data.folder()}/prompts.jsonl')
    rows = {line.split()[0]: line.split()[1:]
            for line in page.splitlines()[1:]}
    self.assertEqual(rows['win_rate'], ['0.5'])
    self.assertEqual(float(rows['kl_k2'][0]), 0)

  def test_mistakes(self):
    for code, words, part in (
        (2, ('generate', '--prompt=x'), 'give --workdir and --stage'),
        (2, ('generate', '--prompt=x', '--data=y'), '--prompt or --data'),
        (2, ('generate', '--model=a', '--stage=b'), '--model, or --workdir'),
        (2, ('generate', '--model=none', '--prompt=x'), 'no such model'),
        (2, ('evaluate', f'--model={world()}/model'), 'give --data'),
        (2, ('evaluate', f'--model={world()}/model', '--temperature=0'),
         'more than 0'),
        (2, ('evaluate', f'--model={world()}/model', '--reward=vadre',
             f'--data={own_data.folder()}/prompts.jsonl', '--num_prompts=2',
             '--max_response_length=4'), "did you mean 'vader'")):
      self.assertIn(part, fail(code, *words), words)


class FrontDoorTest(parameterized.TestCase):

  def test_a_directory_without_reward_models(self):
    with self.assertRaisesRegex(errors.CheckpointError,
                                'holds no reward models: neither model.json'):
      reward_directory.members(worlds.folder())

  def test_help(self):
    for words in ((), ('--help',), ('help',)):
      page = succeed(*words)
      for name in main.COMMANDS:
        self.assertIn(f'  {name} ', page)

  @parameterized.parameters(*main.COMMANDS)
  def test_every_command_helps(self, name):
    page = succeed(name, '--help')
    self.assertIn(f'rlhf-jax {name}', page)

  def test_version(self):
    self.assertRegex(succeed('--version'), r'^rlhf-jax \d+\.\d+')

  def test_mistakes(self):
    for words, part in (
        (('trian',), "'trian' is no command; did you mean 'train'"),
        (('train', '--algoritm=dpo'), 'Did you mean: algorithm'),
        (('train', '--algorithm=dpo'), 'give --data'),
        (('train', '--algorithm=dpo', '--data=x', 'y'), "'y' is no flag"),
        (('train', '--algorithm=dpo', '--data=x', '--steps=many'), 'steps'),
        (('train', '--algorithm=dpo', '--data=x'), 'give --workdir'),
        (('train', '--algorithm=dpo', '--data=x', '--workdir=w',
          '--columns=prompt'), "--columns has 'prompt'"),
        (('train', '--algorithm=dpo', '--data=x', '--workdir=w',
          '--columns=choosen=best'), "did you mean 'chosen'"),
        (('train', '--algorithm=dpo', '--data=x', '--workdir=w',
          '--reward_range=3,1'), 'give least,largest'),
        (('run', '--workdir=w'), 'give --config'),
        (('show',), 'give --config'),
        (('train', '--algorithm=dpo', '--workdir=w', '--size=smoke',
          f'--data={own_data.folder()}/pairs.jsonl',
          '--config.offline.optimizer.learning_rat=1'),
         'learning_rat is no field of the config. Did you mean "learning_rate"'
         ),
        (('show', '--algorithm=dpo', '--size=smoke',
          f'--data={own_data.folder()}/pairs.jsonl',
          '--config.offline.arguments.mine.beta=1'),
         'In config.offline.arguments there are dpo')):
      self.assertIn(part, fail(2, *words), words)
    self.assertFalse(pathlib.Path('w').exists())

  @parameterized.parameters(
      (2, '--algoritm=dpo'), (2, '--columns=choosen=a'), (3, '--data=none'),
      (3, '--columns=chosen=nix'))
  def test_what_is_refused_at_once(self, code, word):
    """Without jax, which takes longer to import than the rest to refuse."""
    folder = worlds.folder()
    (folder / 'jax.py').write_text('raise ImportError("not so soon")')
    for command in ('train', 'show'):
      done = subprocess.run(
          [sys.executable, '-m', 'rlhf_jax', command, '--algorithm=dpo',
           f'--data={own_data.folder()}/pairs.jsonl', f'--workdir={folder}/w',
           word], env=worlds.environment() | {
               'PYTHONPATH': f'{folder}:{worlds.ROOT}'},
          capture_output=True, text=True, timeout=60)
      self.assertEqual(done.returncode, code, done.stderr)
      self.assertNotIn('not so soon', done.stderr)

  def test_list(self):
    page = succeed('list', 'figure 3', '--directory',
                   worlds.ROOT / 'experiments')
    self.assertIn('fig3_best_of_n.py  [smoke, laptop, full; run,', page)
    page = succeed('list', '--directory', worlds.ROOT / 'experiments')
    # Each size once, however many options it has.
    self.assertEqual(page.count('.py  [smoke, laptop, full; '),
                     page.count('.py  ['))
    paper = worlds.folder() / 'paper'
    paper.mkdir()
    shutil.copy(worlds.ROOT / worlds.ZHU / 'fig9_offline.py', paper)
    self.assertIn('fig9_offline.py  [smoke, laptop, full; not yet run]',
                  succeed('list', f'--directory={paper.parent}'))
    self.assertEmpty(succeed('list', 'nosuchword', '--directory',
                             worlds.ROOT / 'experiments'))
    self.assertEqual(page.count('.py  ['), len(list(
        (worlds.ROOT / 'experiments').glob('*/*.py'))))

  def test_list_knows_what_is_stale(self):
    paper = 'zhu2023_advantage_induced_policy_alignment'
    folder = worlds.folder() / 'experiments'
    shutil.copytree(worlds.ROOT / 'experiments' / paper, folder / paper)
    shutil.copy(worlds.ROOT / 'experiments/zhu2023.py', folder)
    config = worlds.get_config(
        f'experiments/{paper}/fig7_apa_lambda.py') | {'seeds': (4,)}
    keys = {name: recipe.key for name, recipe in recipes.of_stages(
        plan.with_inputs(config, plan.plan(config))).items()
            if name.startswith('seed_')}
    rows = [{'stage': name, 'stage_seconds': 1., 'recipe': key}
            for name, key in keys.items()]
    stages = folder / paper / 'results/fig7_apa_lambda/stages.jsonl'
    listed = lambda: succeed('list', 'figure 7', '--check',
                             f'--directory={folder}')
    self.assertIn('made before recipes were kept', listed())
    files.write_jsonl(stages, rows)
    self.assertIn('fig7_apa_lambda: 1 seeds, as they would be made now',
                  listed())
    rows[-1]['recipe'] = 'another'
    files.write_jsonl(stages, rows)
    self.assertIn(f'stale: 1 of {len(rows)} stages would be made otherwise, '
                  f'{rows[-1]["stage"]} first', listed())
    stages.unlink()
    self.assertIn('fig7_apa_lambda: not yet run: laptop', listed())

  def test_show(self):
    words = ('--algorithm=dpo', f'--data={own_data.folder()}/pairs.jsonl',
             '--size=smoke')
    page = succeed('show', *words, f'--workdir={worlds.folder()}')
    self.assertIn('to do        seed_0/logs/data/logged', page)
    page = succeed('show', *words, '--print_config',
                   '--config.offline.num_steps=5')
    self.assertIn('config.offline.num_steps=5\n', page)
    # Those that hold None, and those of the row, as any other.
    page = succeed('show', *words, '--config.offline.arguments.dpo.beta=0.3',
                   '--config.data.logged.task=x', '--print_config')
    self.assertIn('config.offline.arguments.dpo.beta=0.3\n', page)
    self.assertIn("config.data.logged.task='x'\n", page)
    page = succeed('show', *words, '--config.offline.num_steps=5')
    self.assertIn('5 steps of', page)
    page = succeed('show', f'--workdir={world()}/rloo')
    self.assertIn('complete     seed_0/policies/policy', page)
    folder = worlds.folder() / 'rloo'
    shutil.copytree(world() / 'rloo', folder)
    (folder / 'seed_0/sft/model.json').unlink()
    shutil.rmtree(folder / 'seed_0/rewards/proxies')
    page = succeed('show', f'--workdir={folder}')
    for line in ('damaged      seed_0/sft ', 'to do        seed_0/rewards/prox',
                 'complete     seed_0/policies/policy'):
      self.assertIn(line, page)
    with mock.patch.object(code_lib, 'of', lambda *args: {'mine': 'edited'}):
      page = succeed('show', f'--workdir={folder}')
    self.assertIn('other code   seed_0/policies/policy', page)
    self.assertIn('there is no study in it', fail(
        3, 'show', f'--workdir={worlds.folder()}'))
    page = succeed('show', f'--config={worlds.ROOT}/{worlds.FIGURE_3}:smoke')
    self.assertIn('seed_0/gold', page)

  def test_plan(self):
    page = succeed('plan', 'h100x1', '--algorithm=dpo', '--size=smoke',
                   f'--data={own_data.folder()}/pairs.jsonl')
    self.assertIn('h100x1: 1 devices', page)
    self.assertIn('seed_0/policies/policy', page)


class TextsTest(absltest.TestCase):

  def test_a_model_says_how_its_texts_are_written(self):
    for stage in ('sft/seed_0/sft', 'sft/seed_0/policies/policy',
                  'rewards/seed_0/rewards/proxies',
                  'rloo/seed_0/rewards/proxies'):
      texts = json.loads((world() / stage / 'model.json').read_text())['texts']
      self.assertEqual(texts, {'format': 'alpaca', 'max_prompt_length': 48,
                               'max_response_length': 12}, stage)

  def test_preferences_are_those_of_the_file(self):
    arrays = files.load_arrays(
        world() / 'rewards/seed_0/preferences/pairs.npz')
    coder = artifacts.read_tokenizer(world() / 'rewards/seed_0/trunk')
    _, responses = texts_lib.decode(coder, arrays['tokens'], arrays['mask'])
    rows = [json.loads(line) for line in (
        own_data.folder() / 'pairs.jsonl').read_text().splitlines()]
    sides = {(row['chosen'], row['rejected']) for row in rows}
    strip = [text.strip() for text in responses]
    pairs = list(zip(strip[::2], strip[1::2]))
    self.assertTrue(all(any(
        chosen.startswith(good) and rejected.startswith(bad)
        for chosen, rejected in sides) for good, bad in pairs))
    self.assertLen(pairs, 58)  # two prompts are held out
    np.testing.assert_array_equal(arrays['gold_scores'], [[1, 0]] * 58)


if __name__ == '__main__':
  absltest.main()
