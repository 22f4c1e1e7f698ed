"""The study `iterated`: its plan, and what a round hands to the next."""

import copy
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax.data import load as load_lib
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.runner import code
from rlhf_jax.runner import recipes
from rlhf_jax.stages import pairs as pairs_lib
from rlhf_jax.stages import proxies as proxies_lib
from rlhf_jax.storage import files
from rlhf_jax.studies import plan

ITERATED = 'experiments/rlhf_notes/iterated.py'
HELD_OUT, COUNT = 32, 32  # prompts to validate, and to train on in a round


def workdir():
  return worlds.smoke(ITERATED)[0]


@functools.cache
def _config() -> dict:
  return worlds.get_config(ITERATED, 'smoke')


def config() -> dict:
  return copy.deepcopy(_config())


def keywords(name: str, study: dict | None = None) -> dict:
  return next(stage for stage in plan.plan(study or config())
              if stage.name == f'seed_0/{name}').run.keywords


def first_call(module, function: str, stage: str, run, **changes):
  """The arguments of `module.function`, of a stage that ends there."""
  with mock.patch.object(module, function, side_effect=StopIteration) as call:
    try:
      run(worlds.Context(workdir()), **keywords(stage) | changes)
    except StopIteration:
      pass
  return call.call_args


def training_rows(stage: str, *, pairs=None, num_pairs=None, **changes):
  """What the reward models of a round are trained on."""
  kwargs = keywords(stage)
  if pairs is not None:
    changes['upstream'] = kwargs['upstream'] | {'pairs': pairs}
  call = first_call(
      proxies_lib.sources, 'offline_members', stage, proxies_lib.run,
      node=kwargs['node'] | {'num_pairs': num_pairs}, **changes)
  return call.args[0]


def labelled(stage: str):
  return files.load_arrays(workdir() / 'seed_0' / stage / 'pairs.npz')


def evaluations(stage: str) -> list[dict]:
  return files.read_jsonl(workdir() / 'seed_0' / stage / 'evaluation.jsonl')


class PlanTest(parameterized.TestCase):

  def test_stages(self):
    names = [stage.name for stage in plan.plan(config())]
    rounds = [f'seed_0/{collect}/round_{number}/{stage}'
              for collect in ('current', 'initial') for number in range(2)
              for stage in ('pairs', 'proxies', 'policy')]
    self.assertEqual(names, [
        'seed_0/sft', 'seed_0/gold', rounds[0], 'seed_0/trunk', *rounds[1:],
        'report_seeds_0'])

  def test_who_answers_and_who_goes_on(self):
    for collect, answers in (
        ('current', {'policy': 'seed_0/current/round_0/policy'}),
        ('initial', {})):
      here = f'seed_0/{collect}/round_0'
      of_all = {'reference': 'seed_0/sft', 'gold': 'seed_0/gold'}
      self.assertEqual(
          keywords(f'{collect}/round_0/pairs')['upstream'], of_all)
      self.assertEqual(
          keywords(f'{collect}/round_1/pairs')['upstream'], of_all | answers)
      self.assertEqual(keywords(f'{collect}/round_0/policy')['upstream'], {
          **of_all, 'pairs': f'{here}/pairs', 'proxies': f'{here}/proxies'})
      kwargs = keywords(f'{collect}/round_1/policy')
      self.assertEqual(kwargs['upstream'], {
          **of_all, 'policy': f'{here}/policy', 'pairs': f'{here}/pairs',
          'proxies': f'seed_0/{collect}/round_1/proxies'})
      self.assertEqual(kwargs['part'], 1)
      self.assertEqual(
          keywords(f'{collect}/round_1/proxies')['upstream']['pairs'],
          [f'{here}/pairs', f'seed_0/{collect}/round_1/pairs'])

  def test_every_prompt_is_answered_once(self):
    study = config()
    study['rounds'] = 4
    study['proxy']['batch_size'] = 16
    answered = []
    for number in range(4):
      kwargs = keywords(f'current/round_{number}/pairs', study)
      answered += range(kwargs['first'], kwargs['first'] + kwargs['num_pairs'])
    self.assertEqual(answered, list(range(96)))

  @parameterized.parameters(
      ('rounds', 0, 'config.rounds is 0; give'),
      ('rounds', 5, 'config.rounds is 5; leaves 12 pairs'),
      ('collect', (), r'config.collect is \(\)'),
      ('collect', ('initial', 'initial'), 'config.collect is'),
      ('collect', ('both',), 'config.collect is'),
      ('label_noise', 1.5, 'config.label_noise is 1.5'))
  def test_rejects(self, field, value, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      plan.plan(config() | {field: value})

  def test_rejects_what_a_round_would_fail_at(self):
    for part, field, value, message in (
        ('online', 'algorithm', 'best_of_n', "is 'best_of_n'"),
        ('online', 'num_steps', 0, 'config.online.num_steps is 0;'),
        ('proxy', 'num_pairs', 16, 'config.proxy.num_pairs is 16;'),
        ('figure', 'x', 'turn', "no run has the label 'turn'")):
      study = config()
      study[part][field] = value
      with self.assertRaisesRegex(errors.ConfigError, message):
        plan.plan(study)

  def test_an_edited_reward_function(self):
    """Makes what learns by it, and what follows from that, another."""
    folder = worlds.folder()
    module, path = folder / 'judged.py', folder / 'study.py'
    module.write_text('def kind(prompts, responses):\n'
                      '  return [0.5 for _ in responses]\n')
    path.write_text(
        'from experiments.rlhf_notes import iterated\n'
        'def get_config(size):\n'
        '  config = iterated.get_config(size).unlock()\n'
        "  config.online.reward.components.kind = dict(\n"
        "      kind='function', function='judged:kind')\n"
        '  return config\n')
    study = worlds.get_config(str(path), 'smoke')
    worlds.importable(self, folder)

    def made_of():
      code._read.cache_clear()
      return recipes.of_stages(plan.with_inputs(study, plan.plan(study)))

    before = made_of()
    module.write_text(module.read_text().replace('0.5', '-0.5'))
    after = made_of()
    changed = {name for name in before if recipes.differences(
        before[name].record(), after[name]) == ([], ['judged'])}
    # Every policy that learns by it, and all that is made from such a policy.
    kwargs = {stage.name for stage in plan.plan(study)
              if 'judged:kind' in str(stage.run.keywords)}
    self.assertNotEmpty(kwargs)
    self.assertEqual(changed, {*recipes.depending(kwargs, after)})
    self.assertNotIn('seed_0/sft', changed)


class RoundTest(parameterized.TestCase):

  def test_the_policy_goes_on(self):
    """The next round begins where the last has ended, prompt by prompt."""
    for collect in ('current', 'initial'):
      last = evaluations(f'{collect}/round_0/policy')[-1]
      first = evaluations(f'{collect}/round_1/policy')[0]
      self.assertEqual(first['step'], 0)
      for name in ('gold', 'rule', 'length', 'kl_k1', 'kl_k3', 'perplexity'):
        self.assertAlmostEqual(first[name], last[name], 4, msg=name)
      # From the SFT policy still.
      self.assertGreater(first['kl_k3'], 1e-6)

  def test_the_first_round_is_made_once(self):
    log = (workdir() / 'log.txt').read_text()
    for stage in ('pairs', 'proxies', 'policy'):
      self.assertRegex(log, f'initial/round_0/{stage} +reused from .*/current/')
      self.assertNotRegex(log, f'initial/round_1/{stage} +reused')

  @parameterized.parameters(
      ('current', 'seed_0/current/round_0/policy'), ('initial', 'seed_0/sft'))
  def test_responses_are_of_the_policy_of_the_round(self, collect, writer):
    stage = f'{collect}/round_1/pairs'
    draw = lambda stage: first_call(
        pairs_lib.rows_lib, 'sample_rows', stage, pairs_lib.run).args
    _, policy, asked, key, how = draw(stage)
    expected = artifacts.restore_policy(workdir() / writer)
    self.assertEqual(policy.config, expected.config)
    jax.tree.map(np.testing.assert_array_equal, policy.params, expected.params)
    self.assertEqual(how, rows_lib.Draw(
        num_samples=2, sampler=config()['sampler'], force_eos=False))
    # Another stream in each round, though the first one's stays.
    first = HELD_OUT + COUNT
    _, _, _, other, _ = draw(f'{collect}/round_0/pairs')
    for used, place in ((key, first), (other, 0)):
      self.assertEqual(
          jax.random.key_data(used).tolist(), jax.random.key_data(
              streams.key(0, 'pairs', place)).tolist())
    # And to the prompts of the round.
    at = slice(first, first + COUNT)
    prompts = load_lib.load(keywords(stage)['data'], 0).pair_prompts
    np.testing.assert_array_equal(asked.tokens, prompts.tokens[at])
    tokens, lengths = labelled(stage)['tokens'], prompts.lengths[at]
    self.assertLen(tokens, COUNT)
    for rows, prompt, length in zip(tokens, prompts.tokens[at], lengths):
      for row in rows:
        np.testing.assert_array_equal(row[:length], prompt[:length])

  def test_all_labels_so_far_and_each_stays_as_it_was_given(self):
    rows = [training_rows(f'current/round_{r}/proxies') for r in range(2)]
    self.assertEqual([len(x.tokens) for x in rows], [COUNT, 2 * COUNT])
    np.testing.assert_array_equal(rows[1].tokens[:COUNT], rows[0].tokens)
    pairs = [labelled(f'current/round_{r}/pairs') for r in range(2)]
    at = slice(HELD_OUT, None)
    tokens = np.concatenate([pairs[0]['tokens'][at], pairs[1]['tokens']])
    scores = np.concatenate(
        [pairs[0]['gold_scores'][at], pairs[1]['gold_scores']])
    best = np.where((scores[:, 1] > scores[:, 0])[:, None], tokens[:, 1],
                    tokens[:, 0])
    flipped = (rows[1].tokens[:, 0] != best).any(axis=-1)
    # A quarter of each round's, and not the same quarter.
    halves = flipped[:COUNT], flipped[COUNT:]
    self.assertEqual([half.sum() for half in halves], [8, 8])
    self.assertFalse(np.array_equal(*halves))

  def test_part_of_the_pairs(self):
    """Of one stage, or of the first of several."""
    stage, here = 'current/round_1/proxies', 'seed_0/current/round_0/pairs'
    whole = training_rows(stage, label_noise=0.)
    for pairs, count in ((here, 16), ([here], 16),
                         (keywords(stage)['upstream']['pairs'], 40)):
      rows = training_rows(stage, label_noise=0., pairs=pairs, num_pairs=count)
      np.testing.assert_array_equal(rows.tokens, whole.tokens[:count])
    # The share is one of those that are used.
    rows = training_rows(stage, pairs=here, num_pairs=16)
    flipped = (rows.tokens[:, 0] != whole.tokens[:16, 0]).any(axis=-1)
    self.assertEqual(flipped.sum(), 4)

  def test_validation(self):
    """Bradley-Terry loss and accuracy on clean pairs, epoch by epoch."""
    kwargs, context = (keywords('current/round_0/proxies'),
                       worlds.Context(workdir()))
    out = proxies_lib.run(context, **kwargs | dict(
        node=kwargs['node'] | {'num_epochs': 2}, validate=True))
    rows = files.read_jsonl(context.directory / 'evaluation.jsonl')
    self.assertEqual([row['epoch'] for row in rows], [0, 1, 2])
    pairs = {k: x[:HELD_OUT] for k, x in labelled(
        'current/round_0/pairs').items()}
    ensemble = artifacts.restore_rewards(context.directory)
    scores = reward_models.score_rows(
        ensemble.config, ensemble.params, pairs['tokens'], pairs['mask'])
    sign = np.where(np.diff(pairs['gold_scores'])[:, 0] > 0, 1, -1)
    margin = sign * np.diff(scores)[..., 0]
    np.testing.assert_allclose(
        [rows[-1][f'loss_{m}'] for m in range(2)],
        np.log1p(np.exp(-margin)).mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(
        [rows[-1][f'accuracy_{m}'] for m in range(2)], out['accuracies'],
        atol=1e-5)
    self.assertAlmostEqual(
        rows[-1]['loss'], (rows[-1]['loss_0'] + rows[-1]['loss_1']) / 2, 5)

  def test_report(self):
    rows = worlds.rows(workdir() / 'report_seeds_0/results.csv')
    self.assertEqual(
        [(row['collect'], row['round'], row['run'], row['step'])
         for row in rows],
        [(collect, str(r), f'{collect}_{r}', str(step))
         for collect in ('current', 'initial') for r in range(2)
         for step in range(3)])


if __name__ == '__main__':
  absltest.main()
