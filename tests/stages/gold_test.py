"""Tests for rlhf_jax.stages.gold on logged responses."""

import json
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import sharding
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import reviews
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import stop
from rlhf_jax.stages import gold

P, T, K = 3, 8, 2
MODEL = dict(family='llama', hidden_size=16, num_layers=1, num_heads=2,
             intermediate_size=32)
CODER = reviews.Reviews().tokenizer


def _log(count, seed=0):
  """Votes are 100 for each token 7 and 200 for each 8, less 50.

  One response in five is missing, and one in five has no votes.
  """
  rng = np.random.default_rng(seed)
  tokens = rng.integers(5, 9, size=(count, K, T)).astype(np.int32)
  tokens[:, :, :P] = np.arange(count)[:, None, None] % 40 + 10
  length = rng.integers(2, T - P + 1, size=(count, K, 1))
  kind = rng.integers(5, size=(count, K))
  kind[:4] = [[2, 3], [2, 0], [1, 3], [2, 1]]
  mask = (np.arange(T) >= P) & (np.arange(T) < P + length)
  mask &= (kind != 0)[..., None]
  votes = (100. * (tokens == 7) + 200. * (tokens == 8)) * mask
  votes = votes.sum(axis=-1) - 50
  tokens = np.where(mask | (np.arange(T) < P), tokens, 0)
  return corpus_lib.Log(
      tokens=tokens, mask=mask, group=np.where(kind == 0, -1, 0),
      groups=('all',), scores={
          'votes': np.where(kind < 2, np.nan, votes).astype(np.float32),
          'constant': np.where(kind < 2, np.nan, .1).astype(np.float32)})


def _corpus(log, target='votes'):
  prompts = corpus_lib.Prompts(
      log.tokens[:, 0, :P], np.full(len(log.tokens), P, np.int32))
  first = types.Batch(tokens=log.tokens[:, :1], mask=log.mask[:, :1])
  return corpus_lib.Corpus(
      tokenizer=CODER, demonstrations=first, pair_prompts=prompts,
      eval_prompts=prompts, max_response_length=T - P,
      preferences=types.Batch(tokens=log.tokens, mask=log.mask),
      log=log, log_target=target)


class GoldTest(parameterized.TestCase):

  def _run(self, corpus, **kwargs):
    workdir = self.enter_context(tempfile.TemporaryDirectory())
    context = run_lib.StageContext(
        pathlib.Path(workdir), 'gold', stop.StopSignal())
    context.directory.mkdir()
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with (mock.patch.object(sharding, 'make_mesh', lambda: mesh),
          mock.patch.object(load_lib, 'load', lambda data, seed: corpus),
          mock.patch.object(context, 'result_of', lambda name: {
              'corpus': corpus.fingerprint()})):
      return context, gold.run(context, **dict(
          dict(seed=0, data={}, model=MODEL, num_steps=1, batch_size=32,
               optimizer=dict(learning_rate=2e-2), policy='sft',
               policy_model=MODEL, sampler={}, held_out=64), **kwargs))

  def test_learns_the_score_of_the_log(self):
    corpus = _corpus(_log(400))
    context, result = self._run(corpus, num_steps=80)
    self.assertGreater(result['correlation'], .8)
    self.assertNotIn('accuracy', result)
    self.assertEqual(json.loads(
        (context.directory / 'model.json').read_text())['kind'], 'reward')
    # What the stage leaves, in votes, on responses that it has not seen.
    fresh = _log(50, seed=1)
    votes = fresh.scores['votes']
    config = pretrained.config(MODEL, CODER.vocab_size)
    params = artifacts.restore_members(context.directory, config, None)
    scores = reward_models.score_rows(config, params, fresh.tokens, fresh.mask)[0]
    known = np.isfinite(votes)
    error = (result['target_mean'] + result['target_std'] * scores
             - votes)[known]
    self.assertLess(np.abs(error).mean(), .5 * votes[known].std())

  def test_pairs_where_no_score_is_asked_for(self):
    with mock.patch.object(
        fit_lib, 'fit', lambda context, state, *_, **__: (state, {})):
      _, result = self._run(_corpus(_log(160), target=None))
    self.assertIn('accuracy', result)
    self.assertTrue({'correlation', 'target_mean', 'target_std'}.isdisjoint(
        result))

  def test_too_few_rows_are_refused(self):
    log = _log(40)
    present = int(np.isfinite(log.scores['votes']).sum())
    for held_out in (present, 10 * present):
      with self.assertRaisesRegex(
          errors.ConfigError, f'held_out is {held_out}, .* leaves 0 rows'):
        self._run(_corpus(log), held_out=held_out)


class LogRowsTest(parameterized.TestCase):

  def test_by_hand(self):
    """Of four examples: 1 has a missing response, 2 and 3 one without votes."""
    log = _log(4)
    at = [(0, 0), (0, 1), (1, 0), (2, 1), (3, 0)]
    self.assertEqual(list(zip(*np.nonzero(np.isfinite(
        log.scores['votes'])))), at)
    log.scores['votes'][tuple(zip(*at))] = [10, 20, 60, 30, 30]
    # Mean 30, squares 400, 100, 900, 0, 0: variance 280.
    rows, validation, scale = gold._log_rows(_corpus(log), 0, 1)
    np.testing.assert_allclose(scale['target_mean'], 30)
    np.testing.assert_allclose(scale['target_std'], 280**.5)
    joined = jax.tree.map(
        lambda *x: np.concatenate(x)[:, 0], rows, validation)
    self.assertEqual(joined.targets.dtype, np.float32)
    expected = dict(zip(at, np.array([-20, -10, 30, 0, 0]) / 280**.5))
    found = {}
    for tokens, mask, target in zip(
        joined.tokens, joined.mask, joined.targets):
      [where] = [i for i in np.ndindex(4, K)
                 if (log.tokens[i] == tokens).all()
                 and (log.mask[i] == mask).all()]
      found[where] = target
    self.assertEqual(found.keys(), expected.keys())
    for where, value in expected.items():
      np.testing.assert_allclose(found[where], value, atol=1e-6)

  @parameterized.parameters(1, 7, 30)
  def test_examples_are_held_out_whole(self, held_out):
    log = _log(40)  # each with a prompt of its own
    parts = gold._log_rows(_corpus(log), 3, held_out)[:2]
    training, held = (x.tokens[:, 0, 0].tolist() for x in parts)
    self.assertBetween(len(held), held_out, held_out + K - 1)
    self.assertTrue(set(training).isdisjoint(held))
    self.assertLen(training + held, int(np.isfinite(log.scores['votes']).sum()))
    other = gold._log_rows(_corpus(log), 4, held_out)[1].tokens[:, 0, 0]
    self.assertNotEqual(held, other.tolist())

  def test_refuses_what_says_nothing(self):
    with self.assertRaisesRegex(errors.ConfigError,
                                "'upvotes'; the log has constant, votes"):
      gold._log_rows(_corpus(_log(4), 'upvotes'), 0, 1)
    with self.assertRaisesRegex(
        errors.DataError, "the 5 .* have 'constant' do not differ in it"):
      gold._log_rows(_corpus(_log(4), 'constant'), 0, 1)


if __name__ == '__main__':
  absltest.main()
