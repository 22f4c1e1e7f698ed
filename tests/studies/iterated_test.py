"""The study `iterated`: its plan, and what a round hands to the next."""

import csv
import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import experiments_test
import jax
import numpy as np
import stages_test

from experiments.rlhf_notes import iterated as experiment
from rlhf_jax import errors
from rlhf_jax.data import load as load_lib
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.stages import pairs as pairs_lib
from rlhf_jax.stages import proxies as proxies_lib
from rlhf_jax.storage import files
from rlhf_jax.studies import iterated

HELD_OUT, COUNT = 32, 32  # prompts to validate, and to train on in a round


def workdir():
  found, done = experiments_test.smoke('experiments/rlhf_notes/iterated.py')
  assert done.returncode == 0, done.stderr
  return found


def context():
  made = stages_test.Context('unwritten')
  made.directory_of = lambda name: workdir() / name
  made.result_of = lambda name: files.read_json(
      workdir() / name / 'result.json')['result']
  return made


def config() -> dict:
  return experiment.get_config('smoke').to_dict()


def keywords(name: str, made: dict | None = None) -> dict:
  return next(stage for stage in iterated.plan(made or config())
              if stage.name == f'seed_0/{name}').run.keywords


def first_call(module, function: str, stage: str, run, **changes) -> tuple:
  """The arguments of `module.function`, of a stage that ends there."""
  with mock.patch.object(module, function, side_effect=StopIteration) as found:
    try:
      run(context(), **keywords(stage) | changes)
    except StopIteration:
      pass
  return found.call_args


def training_rows(stage: str, **changes):
  """What the reward models of a round are trained on."""
  call = first_call(proxies_lib.sources, 'offline_members', stage,
                    proxies_lib.run, **changes)
  return call.args[0]


def labelled(stage: str):
  return files.load_arrays(workdir() / 'seed_0' / stage / 'pairs.npz')


def evaluations(stage: str) -> list[dict]:
  text = (workdir() / 'seed_0' / stage / 'evaluation.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


class PlanTest(parameterized.TestCase):

  def test_stages(self):
    names = [stage.name for stage in iterated.plan(config())]
    self.assertEqual(names, [
        'seed_0/sft', 'seed_0/trunk', 'seed_0/gold',
        *(f'seed_0/{collect}/round_{number}/{stage}'
          for collect in ('current', 'initial') for number in range(2)
          for stage in ('pairs', 'proxies', 'policy')), 'report_seeds_0'])

  def test_who_answers_and_who_goes_on(self):
    for collect, answers in (('current', 'seed_0/current/round_0/policy'),
                             ('initial', None)):
      here = f'seed_0/{collect}/round_0'
      self.assertEqual(
          keywords(f'{collect}/round_1/pairs')['sampled_from'], answers)
      found = keywords(f'{collect}/round_1/policy')
      self.assertEqual(
          [found[k] for k in ('start', 'policy', 'pairs', 'proxies')],
          [f'{here}/policy', 'seed_0/sft', f'{here}/pairs',
           f'seed_0/{collect}/round_1/proxies'])
      self.assertEqual(
          keywords(f'{collect}/round_1/proxies')['pairs'],
          [f'{here}/pairs', f'seed_0/{collect}/round_1/pairs'])

  def test_every_prompt_is_answered_once(self):
    made = config()
    made['rounds'] = 4
    made['proxy']['batch_size'] = 16
    answered = []
    for number in range(4):
      found = keywords(f'current/round_{number}/pairs', made)
      answered += range(found['first'], found['first'] + found['num_pairs'])
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
      iterated.plan(config() | {field: value})

  def test_rejects_what_a_round_would_fail_at(self):
    for part, field, value, message in (
        ('online', 'algorithm', 'best_of_n', "is 'best_of_n'"),
        ('online', 'num_steps', 0, 'config.online.num_steps is 0;'),
        ('proxy', 'num_pairs', 16, 'config.proxy.num_pairs is 16;'),
        ('figure', 'x', 'turn', "no run has the label 'turn'")):
      made = config()
      made[part][field] = value
      with self.assertRaisesRegex(errors.ConfigError, message):
        iterated.plan(made)


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
    _, world, shape, params, key = first_call(
        pairs_lib.common, 'sample_rows', stage, pairs_lib.run).args
    self.assertIsInstance(shape, transformer.Config)
    _, expected = artifacts.load_policy(
        context(), writer, config()['policy']['model'], shape.vocab_size)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    *_, other = first_call(pairs_lib.common, 'sample_rows',
                           f'{collect}/round_0/pairs', pairs_lib.run).args
    self.assertNotEqual(jax.random.key_data(key).tolist(),
                        jax.random.key_data(other).tolist())
    # And to the prompts of the round.
    at = slice(HELD_OUT + COUNT, HELD_OUT + 2 * COUNT)
    prompts = load_lib.load(keywords(stage)['data'], 0).pair_prompts
    np.testing.assert_array_equal(
        world.pair_prompts.tokens, prompts.tokens[at])
    tokens, lengths = labelled(stage)['tokens'], prompts.lengths[at]
    self.assertLen(tokens, COUNT)
    for rows, prompt, length in zip(tokens, prompts.tokens[at], lengths):
      for row in rows:
        np.testing.assert_array_equal(row[:length], prompt[:length])

  def test_all_labels_so_far_and_each_stays_as_it_was_given(self):
    rows = [training_rows(f'current/round_{r}/proxies') for r in range(2)]
    self.assertEqual([len(x.tokens) for x in rows], [COUNT, 2 * COUNT])
    np.testing.assert_array_equal(rows[1].tokens[:COUNT], rows[0].tokens)
    given = [labelled(f'current/round_{r}/pairs') for r in range(2)]
    at = slice(HELD_OUT, None)
    tokens = np.concatenate([given[0]['tokens'][at], given[1]['tokens']])
    scores = np.concatenate(
        [given[0]['gold_scores'][at], given[1]['gold_scores']])
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
                         (keywords(stage)['pairs'], 40)):
      rows = training_rows(stage, label_noise=0., pairs=pairs, num_pairs=count)
      np.testing.assert_array_equal(rows.tokens, whole.tokens[:count])
    # The share is one of those that are used.
    rows = training_rows(stage, pairs=here, num_pairs=16)
    flipped = (rows.tokens[:, 0] != whole.tokens[:16, 0]).any(axis=-1)
    self.assertEqual(flipped.sum(), 4)

  def test_validation(self):
    """Bradley-Terry loss and accuracy on clean pairs, epoch by epoch."""
    made = context()
    made.directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    out = proxies_lib.run(made, **keywords('current/round_0/proxies') | dict(
        num_epochs=2, validate=True))
    rows = [json.loads(line) for line in (
        made.directory / 'evaluation.jsonl').read_text().splitlines()]
    self.assertEqual([row['epoch'] for row in rows], [0, 1, 2])
    given = {k: x[:HELD_OUT] for k, x in labelled(
        'current/round_0/pairs').items()}
    coder = load_lib.load(keywords('sft')['data'], 0).tokenizer
    shape = pretrained.config(config()['proxy']['model'], coder.vocab_size)
    scores = reward_models.score_rows(shape, artifacts.restore_members(
        made.directory, shape, 2), given['tokens'], given['mask'])
    sign = np.where(np.diff(given['gold_scores'])[:, 0] > 0, 1, -1)
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
    with open(workdir() / 'report_seeds_0/results.csv') as stream:
      rows = list(csv.DictReader(stream))
    self.assertEqual(
        [(row['collect'], row['round'], row['run'], row['step'])
         for row in rows],
        [(collect, str(r), f'{collect}_{r}', str(step))
         for collect in ('current', 'initial') for r in range(2)
         for step in range(3)])


if __name__ == '__main__':
  absltest.main()
