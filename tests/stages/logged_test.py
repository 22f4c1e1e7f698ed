"""Tests for rlhf_jax.stages.logged, on a world that nothing has trained."""

import atexit
import dataclasses
import functools
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import stages_test

from rlhf_jax import errors
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import load as load_lib
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.stages import logged
from rlhf_jax.stages import proxies
from rlhf_jax.storage import files

DATA = dict(name='reviews', num_demonstrations=24, num_pair_prompts=8,
            num_eval_prompts=4, max_response_length=12)
MODEL = dict(family='llama', hidden_size=16, num_layers=1, num_heads=2)
PAIRS, HELD_OUT = 24, 4
NODES = dict(good=dict(kind='gold', weight=2., scale=.5),
             short=dict(kind='length', target=20))


class Context(stages_test.Context):
  """Reads the world, or stages written beside it."""

  def __init__(self, directory=None, stop=None):
    super().__init__(directory or folder(), stop)
    self.shown = []
    self.show = self.shown.append
    self.directory_of = lambda name: world() / name
    self.result_of = lambda name: files.read_json(
        world() / name / 'result.json')


def folder() -> pathlib.Path:
  path = pathlib.Path(tempfile.mkdtemp(prefix='rlhf_jax_logged_'))
  atexit.register(shutil.rmtree, path, ignore_errors=True)
  return path


def corpus() -> corpus_lib.Corpus:
  return load_lib.load(DATA, 0)


def config() -> transformer.Config:
  return pretrained.config(MODEL, corpus().tokenizer.vocab_size)


def cut(tokens, mask, count):
  """Responses [N, T] without their last tokens, the EOS among them."""
  left = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > count
  return np.where(mask & ~left, 0, tokens), mask & left


def save(name, result, params=None, **arrays):
  """A complete stage."""
  context = stages_test.Context(world() / name)
  context.directory.mkdir(parents=True)
  if params is not None:
    artifacts.save_policy(context, 0, params)
  if arrays:
    files.save_arrays(context.directory / f'{name}.npz', **arrays)
  files.write_json(context.directory / 'result.json', result)


@functools.cache
def world() -> pathlib.Path:
  return folder()


@functools.cache
def make_world():
  """A policy, a gold model and pairs, as they come out of nowhere."""
  keys = jax.random.split(jax.random.key(0))
  save('sft', {'corpus': corpus().fingerprint()},
       transformer.init(config(), keys[0]))
  save('gold', {'target_mean': 0., 'target_std': 1.},
       reward_models.init(config(), keys[1]))
  rows = corpus().demonstrations
  first = rows.tokens[:, 0], rows.mask[:, 0]
  tokens, mask = (np.stack(x, axis=1) for x in zip(first, cut(*first, 3)))
  scores = np.random.default_rng(0).normal(size=(PAIRS, 2)).astype(np.float32)
  save('pairs', {'gold_mean': .1, 'gold_std': .7}, tokens=tokens, mask=mask,
       gold_scores=scores)


def setUpModule():
  make_world()


def run(**changes):
  """The arrays and the result of the stage."""
  context = Context()
  result = logged.run(context, **dict(
      seed=0, data=DATA, policy='sft', policy_model=MODEL, gold='gold',
      gold_model=MODEL, pairs='pairs', source='pairs', label_noise=.25,
      components=NODES, num_validation=HELD_OUT) | changes)
  return files.load_arrays(context.directory / 'logged.npz'), result


@functools.cache
def usual():
  return run()


def pairs():
  return files.load_arrays(world() / 'pairs/pairs.npz')


def with_log(**changes) -> corpus_lib.Corpus:
  """A corpus whose log has up to three responses, two of six missing."""
  rows = corpus().demonstrations
  at = np.arange(18).reshape(6, 3)
  mask = rows.mask[at, 0]
  mask[1, 2], mask[4, 0] = False, False
  missing = ~mask.any(axis=-1)
  votes = np.where(missing, np.nan, at).astype(np.float32)
  log = corpus_lib.Log(
      tokens=rows.tokens[at, 0], mask=mask,
      group=np.where(missing, -1, at % 2).astype(np.int32),
      groups=('up', 'down'), scores={'votes': votes},
      references=tuple(f'answer {i}' for i in range(6)))
  return dataclasses.replace(
      corpus(), log=dataclasses.replace(log, **changes))


def run_on_log(made=None, **changes):
  with mock.patch.object(artifacts, 'load_corpus',
                         return_value=made or with_log()):
    return run(**dict(source='corpus', label_noise=0., num_validation=2,
                      components=dict(votes=dict(
                          kind='file', column='votes', squash='none',
                          weight=.5))) | changes)


class PairsTest(parameterized.TestCase):

  def test_exact_share_is_flipped_and_validation_is_clean(self):
    arrays, result = usual()
    known = pairs()
    np.testing.assert_array_equal(np.sort(arrays['example']), np.arange(PAIRS))
    # The first pairs of the stage, in their order.
    np.testing.assert_array_equal(arrays['example'][-HELD_OUT:],
                                  np.arange(HELD_OUT))
    flipped = []
    for tokens, mask, example in zip(
        arrays['tokens'], arrays['mask'], arrays['example']):
      best = int(known['gold_scores'][example].argmax())
      flips = not np.array_equal(tokens[0], known['tokens'][example, best])
      first = best ^ flips
      for name, found in (('tokens', tokens), ('mask', mask)):
        np.testing.assert_array_equal(
            found, known[name][example, [first, 1 - first]])
      flipped.append(flips)
    self.assertEqual(sum(flipped), 5)  # a quarter of 20
    self.assertFalse(any(flipped[-HELD_OUT:]))
    self.assertEqual(result['flipped'], .25)
    np.testing.assert_array_equal(arrays['group'], [[0, 1]] * PAIRS)
    self.assertEqual(result['groups'], ['chosen', 'rejected'])

  def test_flips_are_those_of_the_reward_models(self):
    with mock.patch.object(proxies, '_load', side_effect=StopIteration) as load:
      with self.assertRaises(StopIteration):
        proxies.run(
            Context(), seed=0, data=DATA, pairs='pairs', trunks=[],
            model=MODEL, num_members=1, label_noise=.25, num_epochs=1,
            batch_size=1, optimizer={}, held_out=HELD_OUT)
    rows, validation, _ = proxies._load(Context(), *load.call_args.args[1:])
    arrays = usual()[0]
    at = np.argsort(arrays['example'])
    np.testing.assert_array_equal(arrays['tokens'][at[HELD_OUT:]], rows.tokens)
    np.testing.assert_array_equal(
        arrays['tokens'][at[:HELD_OUT]], validation.tokens)

  def test_scores_are_the_weighted_sum_of_the_parts(self):
    arrays, result = usual()
    scored = reward_models.score_rows(
        config(), artifacts.load_members(Context(), 'gold', config(), None),
        arrays['tokens'], arrays['mask'])[0]
    raw = (scored - .1) / .7  # in deviations of the samples of pairs
    good = 1 / (1 + np.exp(-raw / .5))
    eos = corpus().tokenizer.eos_id
    words = (arrays['mask'] & (arrays['tokens'] != eos)).sum(axis=-1)
    np.testing.assert_allclose(arrays['value_good'], good, rtol=1e-5)
    np.testing.assert_allclose(arrays['value_short'], words / 20, rtol=1e-6)
    np.testing.assert_allclose(
        arrays['scores'], 2 * good + words / 20, rtol=1e-5)
    np.testing.assert_allclose(
        arrays['raw_scores'], 2 * raw + words, rtol=1e-5)
    self.assertEqual(result['upper'], 3)

  def test_what_is_said_of_the_training_examples(self):
    arrays, result = usual()
    at = slice(PAIRS - HELD_OUT)
    first, second = arrays['scores'][at].T
    self.assertAlmostEqual(result['agreement'], np.mean(first > second))
    for name in NODES:
      self.assertAlmostEqual(
          result[f'mean_{name}'], arrays[f'value_{name}'][at].mean(), 6)
    self.assertAlmostEqual(
        result['score_mean'], arrays['scores'][at].mean(), 6)
    ended = (arrays['mask'] & (
        arrays['tokens'] == corpus().tokenizer.eos_id)).any(axis=-1)[at]
    self.assertAlmostEqual(result['unfinished'], 1 - ended.mean())
    self.assertBetween(result['unfinished'], .5, .99)
    self.assertEqual(result['responses'], 2 * PAIRS)

  def test_order_is_of_the_seed(self):
    made = corpus()
    with mock.patch.object(artifacts, 'load_corpus', return_value=made):
      orders = [run(seed=seed, components=dict(short=NODES['short']))[0][
          'example'].tolist() for seed in (0, 3)]
    self.assertEqual(orders[0], usual()[0]['example'].tolist())
    self.assertNotEqual(orders[0], orders[1])


class CorpusTest(parameterized.TestCase):

  def test_log_in_another_order(self):
    made = with_log()
    arrays, result = run_on_log(made)
    at = arrays['example']
    self.assertNotEqual(at.tolist(), list(range(6)))
    np.testing.assert_array_equal(np.sort(at), range(6))
    for name in ('tokens', 'mask', 'group'):
      np.testing.assert_array_equal(arrays[name], getattr(made.log, name)[at])
    # A missing response scores 0, whatever the file has there.
    votes = np.nan_to_num(made.log.scores['votes'][at])
    np.testing.assert_array_equal(arrays['value_votes'], votes)
    np.testing.assert_array_equal(arrays['scores'], votes / 2)
    self.assertEqual(result['groups'], ['up', 'down'])
    self.assertEqual(result['responses'], 16)
    self.assertEqual(result['flipped'], 0)
    self.assertEqual(result['agreement'], 0)  # the file has the best last
    left = made.log.scores['votes'][at[:4]]
    self.assertAlmostEqual(result['mean_votes'], np.nanmean(left), 5)

  def test_only_two_that_are_there_agree_or_not(self):
    votes = np.float32([[3, 2, 1], [5, 1, 9], [2, 2, 1], [9, 0, 3],
                        [9, 9, 9], [9, 9, 9]])
    arrays, result = run_on_log(with_log(scores={'votes': votes}))
    higher = {0: (3, 3), 1: (1, 1), 2: (2, 3), 3: (2, 3), 4: (0, 1), 5: (0, 3)}
    # Of example 1 the third is missing, of example 4 the first.
    counts = np.sum([higher[i] for i in arrays['example'][:4]], axis=0)
    self.assertAlmostEqual(result['agreement'], counts[0] / counts[1])

  def test_each_response_meets_the_reference_of_its_example(self):
    made = with_log()
    texts = [made.tokenizer.decode(tokens[0][mask[0]], continuation=True)
             for tokens, mask in zip(made.log.tokens, made.log.mask)]
    made = with_log(references=tuple(texts))
    arrays, _ = run_on_log(
        made, components=dict(right=dict(kind='exact_match')))
    there = made.log.mask[arrays['example'], 0].any(axis=-1)
    np.testing.assert_array_equal(arrays['value_right'][:, 0], there)
    np.testing.assert_array_equal(arrays['value_right'][:, 1:], 0)

  @parameterized.parameters(
      (dict(source='file'), "source is 'file'; there are pairs, corpus"),
      (dict(source='corpus', label_noise=0.), 'holds no log'),
      (dict(num_validation=24), 'num_validation is 24, and there are 24'),
      (dict(num_validation=-1), 'num_validation is -1'))
  def test_what_does_not_fit(self, changes, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      run(**changes)

  def test_noise_needs_pairs(self):
    with self.assertRaisesRegex(errors.ConfigError, 'label_noise is 0.1'):
      run_on_log(label_noise=.1)


if __name__ == '__main__':
  absltest.main()
