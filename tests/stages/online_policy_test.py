"""Tests for rlhf_jax.stages.policy, on one small study of many methods."""

import contextlib
import functools
import json
import pathlib
import shutil
import sys
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments import base
from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax import sharding
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.stages import online_policy
from rlhf_jax.studies import online

KL = dict(coef=None, place='reward', target=None, horizon=10_000)
REWARD = dict(
    aggregate=dict(kind='mean'), weight=1., standardize=True, noise=0.,
    clip=None, scale=None, eos=dict(penalty=None, value=None))
# One row of each way to an update; k = 2 where samples are compared.
METHODS = dict(ppo=1, reinforce=1, raft=2, grpo=2, apa=1)
RATIOS = ('ppo', 'grpo')  # have an importance ratio
FOLDERS = []


def names(nodes):
  return [node['name'] for node in nodes]


def config(runs, **changes):
  """A smoke study on eight devices: eight prompts a rollout."""
  made = base.online_config('smoke')
  made.conditions.noisy = dict(label_noise=.25)
  made.online.condition = 'noisy'
  made.online.rollout.batch_size = 8
  made.online.num_steps = 1
  made.online.update(changes)
  made.title, made.runs = 'test', runs
  made.figure = dict(kind='table', columns=('gold',))
  return json.loads(made.to_json_best_effort())


@functools.cache
def world():
  """The first stages, made once."""
  given, workdir = config({'none': dict(labels={'method': 'none'})}), folder()
  run_lib.run_study(online.plan(given), workdir, config=given, only=(
      'sft', 'trunk', 'gold', 'pairs', 'proxies'))
  return workdir


def folder():
  """An empty directory, gone after the tests."""
  FOLDERS.append(pathlib.Path(tempfile.mkdtemp(prefix='rlhf_jax_policy_')))
  return FOLDERS[-1]


def run(given):
  """Policies on the world that there is, under the same stage names."""
  workdir = folder()
  shutil.copytree(world() / 'seed_0', workdir / 'seed_0')
  run_lib.run_study(online.plan(given), workdir, config=given,
                  only=('seed_*/policies/*',))
  return workdir / 'seed_0' / 'policies'


@contextlib.contextmanager
def one_device():
  """As if there were one; compiled programs know where their arrays lie."""
  make = sharding.make_mesh
  online_policy._programs.cache_clear()
  with mock.patch.object(
      sharding, 'make_mesh', lambda: make(devices=jax.devices()[:1])):
    yield
  online_policy._programs.cache_clear()


def tearDownModule():
  for folder in FOLDERS:
    shutil.rmtree(folder, ignore_errors=True)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def numbers(path):
  """Lines without what differs between two equal runs."""
  return [{k: v for k, v in line.items() if k != 'time'}
          for line in lines(path)]


def decoder(path):
  """The parameters that a stage leaves, as orbax has them."""
  import orbax.checkpoint as ocp
  step = max(int(p.name) for p in path.iterdir() if p.name.isdecimal())
  with ocp.PyTreeCheckpointer() as reader:
    return reader.restore(path / str(step) / 'params')


class RowTest(parameterized.TestCase):

  def test_arguments_and_coefficient(self):
    row = online_policy.make_row(
        'ppo', {'gae': {'gae_lambda': .5}, 'whiten': {'drop': True}},
        dict(KL, coef=.3))
    self.assertNotIn('whiten', names(row.annotators))
    by_name = {node['name']: node for node in row.annotators}
    self.assertEqual(by_name['gae']['gae_lambda'], .5)
    self.assertEqual(by_name['kl_rewards']['kl_coef'], .3)
    self.assertEqual(online_policy.initial_kl_coef(row), .3)

  def test_coefficient_in_the_loss(self):
    row = online_policy.make_row('rloo', {}, dict(KL, coef=.3, place='loss'))
    self.assertEqual(row.objective['kl_coef'], .3)
    self.assertEqual({n['name']: n for n in row.annotators}['kl_scores'][
        'kl_coef'], 0)
    self.assertEqual(online_policy.initial_kl_coef(row), .3)

  @parameterized.parameters(
      (('sfa', {}, KL), "algorithm is 'sfa'"),
      (('dpo', {}, KL), "'dpo' does not sample"),
      (('ppo', {'kl_rewards': {'drop': True}}, KL), "needs 'kl_rewards'"),
      (('ppo', {'keep_best': {'drop': True}}, KL), "no annotator 'keep_best'"),
      (('ppo', {'gea': {'gae_lambda': 1}}, KL), "no node 'gea'"),
      (('dapo', {}, dict(KL, coef=.1)), 'has no KL in the reward'),
      (('ppo', {}, dict(KL, place='both')), "kl.place is 'both'"))
  def test_what_does_not_fit(self, arguments, message):
    with self.assertRaisesRegex(ValueError, message):
      online_policy.make_row(*arguments)

  @parameterized.parameters(*online_policy.names())
  def test_every_online_row_makes_a_chain(self, name):
    row = online_policy.make_row(name, {}, KL)
    nodes = online_policy.make_nodes(row, REWARD, KL, 2)
    chain_lib.chain(nodes, dict.fromkeys(online_policy.MODELS, print))
    self.assertEqual(names(nodes).count('scores'), 1)
    self.assertIn('ref_logprobs', names(nodes))
    own = [n for n in names(algorithms.ALGORITHMS[name].annotators)
           if n not in ('scores', 'ref_logprobs')]
    self.assertEqual(names(nodes)[2:], own)

  def test_rewards_come_in_order_and_the_controller_before_the_choice(self):
    kl = dict(KL, coef=.1, target=6.)
    reward = dict(REWARD, noise=3., clip=10., scale='running',
                  eos=dict(penalty=1., value=None))
    nodes = online_policy.make_nodes(online_policy.make_row('raft', {}, kl), reward, kl, 2)
    self.assertEqual(names(nodes), [
        'scores', 'noise', 'scale_scores', 'clip_scores', 'missing_eos',
        'ref_logprobs', 'kl_scores', 'adapt_kl_coef', 'keep_best'])
    self.assertEqual(nodes[4], {
        'name': 'missing_eos', 'eos_id': 2, 'penalty': 1.})


@functools.cache
def at_rest():
  """Every method, two updates on one rollout, learning rate 0."""
  runs = {name: dict(
      algorithm=name, labels=dict(method=name), rollout=dict(samples=samples))
          for name, samples in METHODS.items()}
  runs['apa']['value'] = dict(trunk='separate')  # must not be donated
  with one_device():  # which compiles faster
    return run(config(runs, updates=dict(num_epochs=2, num_minibatches=1),
                      optimizer=dict(learning_rate=1e-30, warmup_steps=0)))


class AtRestTest(parameterized.TestCase):

  @parameterized.parameters(*METHODS)
  def test_nothing_moves(self, name):
    path = at_rest() / name
    rows = lines(path / 'evaluation.jsonl')
    self.assertEqual([row['step'] for row in rows], [0, 1])
    for row in rows:  # the policy is the reference
      for kind in ('kl_k1', 'kl_k2', 'kl_k3'):
        self.assertAlmostEqual(row[kind], 0, delta=1e-6)
    self.assertEqual(
        {k: v for k, v in rows[0].items()
         if k not in ('step', 'time', 'updates', 'samples')},
        {k: v for k, v in rows[1].items()
         if k not in ('step', 'time', 'updates', 'samples')})
    jax.tree.map(np.testing.assert_array_equal,
                 decoder(path / 'checkpoints'),
                 decoder(at_rest().parent / 'sft' / 'checkpoints'))

  @parameterized.parameters(*METHODS)
  def test_first_rollout_is_that_of_the_reference(self, name):
    row, = lines(at_rest() / name / 'metrics.jsonl')
    self.assertAlmostEqual(row['rollout/kl_k1'], 0, delta=1e-4)
    updates = lines(at_rest() / name / 'updates.jsonl')
    self.assertEqual([u['update'] for u in updates], [0, 1])
    for update in updates:
      self.assertEqual(update['train/skipped'], 0)
      if name in RATIOS:  # all ratios are 1, so nothing is clipped
        self.assertAlmostEqual(update['policy/approx_kl'], 0, delta=1e-6)
        self.assertEqual(update.get('policy/clip_fraction', 0), 0)

  def test_what_a_report_reads(self):
    path = at_rest() / 'raft'
    rows = lines(path / 'final.jsonl')
    self.assertLen(rows, 4)
    for row in rows:
      self.assertGreaterEqual(row.keys(), {
          'prompt', 'response', 'reference', 'gold', 'reference_gold',
          'proxy', 'rule', 'length'})
    last = lines(path / 'evaluation.jsonl')[-1]
    self.assertAlmostEqual(
        np.mean([row['gold'] for row in rows]), last['gold'], delta=1e-5)
    self.assertEqual(last['samples'], 16)
    self.assertEqual(last['updates'], 2)
    self.assertLen(json.loads((path / 'texts/000001.json').read_text()), 1)

  def test_value_head_is_not_left_behind(self):
    self.assertNotIn('value_head', decoder(at_rest() / 'ppo/checkpoints'))
    self.assertIn('value_head', decoder(at_rest() / 'ppo/training'))


def ppo(**changes):
  """Two rollouts of PPO with all that a rollout remembers."""
  return config(
      {'ppo': dict(
          labels={'method': 'ppo'}, kl=dict(coef=.1, target=6., horizon=100),
          reward=dict(noise=.5, scale='running'), **changes)},
      num_steps=2, updates=dict(num_epochs=2, num_minibatches=1),
      optimizer=dict(learning_rate=1e-2, warmup_steps=0))


@functools.cache
def learned():
  return run(ppo()) / 'ppo'


class LearningTest(parameterized.TestCase):

  def test_same_seed_is_bitwise_equal(self):
    again = run(ppo()) / 'ppo'
    for name in ('evaluation', 'metrics', 'updates'):
      self.assertEqual(numbers(again / f'{name}.jsonl'),
                       numbers(learned() / f'{name}.jsonl'))
    jax.tree.map(np.testing.assert_array_equal,
                 decoder(again / 'training'), decoder(learned() / 'training'))

  @parameterized.named_parameters(
      ('microbatches', dict(updates=dict(num_microbatches=4)), None),
      ('chunks', dict(rollout=dict(chunk_size=8)), None),
      ('one_device', dict(rollout=dict(chunk_size=2)), 1))
  def test_cut_changes_nothing(self, changes, devices):
    with one_device() if devices == 1 else contextlib.nullcontext():
      other = run(ppo(**changes)) / 'ppo'
    for mine, theirs in zip(lines(other / 'updates.jsonl'),
                            lines(learned() / 'updates.jsonl'), strict=True):
      for name in theirs.keys() - {'time'}:
        np.testing.assert_allclose(
            mine[name], theirs[name], rtol=2e-2, atol=2e-4, err_msg=name)

  def test_moves_and_remembers(self):
    first, last = lines(learned() / 'evaluation.jsonl')[::2]
    self.assertGreater(last['kl_k2'], 10 * first['kl_k2'] + 1e-4)
    updates = lines(learned() / 'updates.jsonl')
    self.assertEqual([(u['step'], u['update']) for u in updates],
                     [(1, 0), (1, 1), (2, 0), (2, 1)])
    self.assertAlmostEqual(updates[0]['policy/approx_kl'], 0, delta=1e-6)
    self.assertGreater(updates[1]['policy/approx_kl'], 1e-5)
    self.assertAlmostEqual(updates[2]['policy/approx_kl'], 0, delta=1e-6)
    kept = decoder(learned() / 'training').keys()
    self.assertIn('value_head', kept)

  def test_statistics_are_saved(self):
    import orbax.checkpoint as ocp
    with ocp.PyTreeCheckpointer() as reader:
      found = reader.restore(learned() / 'training' / '2' / 'training')
    statistics = found['statistics']
    self.assertEqual(statistics['score_moments']['count'], 16)
    # KL is below 6 nats, so the coefficient falls, by .8 * 8 / 100 at most.
    self.assertLess(statistics['kl_coef'], .1)
    self.assertGreater(statistics['kl_coef'], .1 * (1 - .2 * 8 / 100)**2 - 1e-6)

  def test_interrupted_run_goes_on_bitwise(self):
    given = ppo()
    given['training']['save_every'] = 1
    workdir = folder()
    shutil.copytree(world() / 'seed_0', workdir / 'seed_0')
    real, calls = fit_lib._Log.step, []

    def killed(log, step, current):
      calls.append(step)
      if len(calls) == 2:
        raise errors.Interrupted('killed')
      return real(log, step, current)

    args = dict(config=given, only=('seed_*/policies/*',))
    with mock.patch.object(fit_lib._Log, 'step', killed):
      with self.assertRaises(errors.Interrupted):
        run_lib.run_study(online.plan(given), workdir, **args)
    run_lib.run_study(online.plan(given), workdir, **args)
    path = workdir / 'seed_0/policies/ppo'
    for name in ('evaluation', 'metrics', 'updates'):
      self.assertEqual(numbers(path / f'{name}.jsonl'),
                       numbers(learned() / f'{name}.jsonl'))


FUNCTIONS = '''
import time
def words(prompts, responses):
  return [len(text.split()) for text in responses]
def never(prompts, responses):
  if len(responses) > 1 and len(prompts[0]) > 0:
    time.sleep(60)
  return [0.0] * len(responses)
'''


class FunctionsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    path = folder()
    (path / 'rewards_of_texts.py').write_text(FUNCTIONS)
    sys.path.insert(0, str(path))
    self.addCleanup(sys.path.remove, str(path))

  def _config(self, name, timeout):
    reward = dict(
        weight=0., clip=None, functions={name: dict(
            function=f'rewards_of_texts:{name}', weight=.5)},
        functions_pool=dict(timeout=timeout, num_workers=1))
    return config({'rloo': dict(
        algorithm='rloo', labels={'method': 'rloo'}, reward=reward,
        rollout=dict(samples=2), kl=dict(coef=0.))})

  def test_score_of_texts_is_what_is_trained_on(self):
    with one_device():
      path = run(self._config('words', 60.)) / 'rloo'
    last = lines(path / 'evaluation.jsonl')[-1]
    words = [len(row['response'].split())
             for row in lines(path / 'final.jsonl')]
    self.assertAlmostEqual(last['proxy'], .5 * np.mean(words), delta=1e-5)
    metrics, = lines(path / 'metrics.jsonl')
    # Half the words, and an EOS is none.
    self.assertBetween(metrics['rollout/score'], .3 * (
        metrics['rollout/length'] - 1), .5 * metrics['rollout/length'])

  def test_hung_function_stops_the_run_by_name(self):
    with one_device():
      with self.assertRaisesRegex(errors.RewardError, 'never.*step 0.*row'):
        run(self._config('never', 1.))
    path = FOLDERS[-1] / 'seed_0' / 'policies' / 'rloo'
    self.assertFalse((path / 'result.json').exists())
    self.assertEmpty(list((path / 'training').glob('[0-9]*')))


  def test_no_process_is_left_if_the_components_fail(self):
    functions, pair = mock.Mock(), (mock.MagicMock(), mock.MagicMock())
    world = mock.MagicMock(**{'load_policy.return_value': pair,
                              'score_scales.return_value': pair})
    parts = ('pretrained', 'policy_parts', 'train', 'make_row', 'make_nodes',
             '_programs', '_statistics')
    with (mock.patch.multiple(policy, common=world, **{
              name: mock.MagicMock() for name in parts}),
          mock.patch.object(online_policy, '_functions', return_value=functions),
          mock.patch.object(online_policy.rewarding, 'of_log',
                            side_effect=errors.ConfigError('no score')),
          self.assertRaisesRegex(errors.ConfigError, 'no score')):
      online_policy.run(
          mock.MagicMock(), seed=0, data={}, policy='sft', policy_model={},
          gold='gold', gold_model={}, pairs='pairs', proxies='proxies',
          proxy_model={}, num_members=1, algorithm='rloo', arguments={},
          reward=dict(standardize=False, functions_pool={}), kl=dict(coef=0.),
          rollout=dict(batch_size=1, samples=1), value={}, num_steps=1,
          updates=dict(num_epochs=1, num_minibatches=1, repeats=1),
          optimizer={}, evaluation={}, sampler={}, logged='logged',
          components={'votes': {'kind': 'file', 'column': 'votes'}})
    functions.close.assert_called_once_with()


class PolicyLoadsTest(absltest.TestCase):

  def test_decoder_is_restored_as_a_policy(self):
    given = ppo()
    context = mock.Mock(directory_of=lambda name: learned())
    tokens = json.loads((learned() / 'model.json').read_text())['vocab_size']
    _, params = artifacts.load_policy(
        context, 'ppo', given['policy']['model'], tokens)
    jax.tree.map(np.testing.assert_array_equal, params,
                 decoder(learned() / 'checkpoints'))


if __name__ == '__main__':
  absltest.main()
