"""Tests for rlhf_jax.stages.rewarding, with models that count tokens."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import load as load_lib
from rlhf_jax.ops import texts
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rewarding
from rlhf_jax.rewards import components
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

DATA = dict(name='reviews', num_demonstrations=6, num_pair_prompts=2,
            num_eval_prompts=2, max_response_length=12)
MODEL = dict(family='llama', hidden_size=8, num_layers=1, num_heads=2)
FACTORS = {'gold': [1.], 'proxies': [1., 10., 5.]}  # of each member


def corpus(**changes):
  made = load_lib.load(DATA, 0)
  return mock.Mock(wraps=made, tokenizer=made.tokenizer, world=made.world,
                   **changes)


def rows():
  """Tokens and mask [6, T] of six reviews."""
  found = load_lib.load(DATA, 0).demonstrations
  return found.tokens[:, 0], found.mask[:, 0]


def lengths():
  return rows()[1].sum(axis=-1).astype(np.float64)


def score_rows(unused_config, params, tokens, mask, **unused_kwargs):
  """f32[E, N]: each member's factor times the length."""
  del tokens
  return np.float32([factor * mask.sum(axis=-1) for factor in params])


class BuildTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.directory = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory()))
    for name in ('pairs', 'proxies', 'logged'):
      (self.directory / name).mkdir()
    tokens, mask = rows()
    files.save_arrays(self.directory / 'pairs/pairs.npz', tokens=tokens,
                      mask=mask)
    files.save_arrays(
        self.directory / 'proxies/scale.npz', mean=np.float32([1, 2, 3]),
        std=np.float32([2, 4, 0]))
    self.results = {'pairs': {'gold_mean': 3., 'gold_std': 2.}, 'gold': {}}
    self.context = mock.Mock(directory_of=lambda name: self.directory / name,
                             result_of=lambda name: self.results[name])
    self.loaded = []
    self.enterContext(mock.patch.object(reward_models, 'score_rows', score_rows))
    self.enterContext(mock.patch.object(
        artifacts, 'load_members', lambda context, stage, config, members: (
            self.loaded.append((stage, config.vocab_size, members))
            or FACTORS[stage])))

  def build(self, made=None, log=None, **nodes):
    return rewarding.build(
        self.context, nodes, corpus=made or corpus(), gold='gold',
        gold_model=MODEL, pairs='pairs', proxies='proxies', proxy_model=MODEL,
        num_members=3, log=log)

  def score(self, found, **kwargs):
    tokens, mask = rows()
    return found(tokens, mask, ['?'] * 6, ['a word'] * 6, **kwargs)

  def test_gold_in_deviations_of_the_samples(self):
    with self.build(good=dict(kind='gold', squash='none')) as found:
      np.testing.assert_allclose(
          self.score(found).raw['good'], (lengths() - 3) / 2)
    self.assertEqual(self.loaded, [
        ('gold', corpus().tokenizer.vocab_size, None)])

  def test_proxy_is_the_mean_of_standardised_members(self):
    with self.build(liked=dict(kind='proxy', squash='none')) as found:
      # Of one without a deviation only the mean is taken off.
      expected = np.mean([(lengths() - 1) / 2, (10 * lengths() - 2) / 4,
                          5 * lengths() - 3], axis=0)
      np.testing.assert_allclose(
          self.score(found).raw['liked'], expected, rtol=1e-6)
    self.assertEqual(self.loaded, [
        ('proxies', corpus().tokenizer.vocab_size, 3)])

  def test_new_responses_are_scored_in_units_of_the_file(self):
    self.results['gold'] = {'target_mean': 7., 'target_std': .5}
    node = dict(kind='file', column='votes', squash='none')
    with self.build(corpus(log_target='votes'), votes=node,
                    good=dict(kind='gold', squash='none')) as found:
      np.testing.assert_allclose(
          self.score(found).raw['votes'], 7 + lengths() / 2)
      np.testing.assert_allclose(
          self.score(found).raw['good'], (lengths() - 3) / 2)
      logged = self.score(found, columns={'votes': np.arange(6.)})
      np.testing.assert_array_equal(logged.raw['votes'], np.arange(6))

  def test_a_gold_model_that_has_learned_no_score(self):
    node = dict(kind='file', column='votes')
    for made, message in (
        (corpus(log_target='votes'), "learns the rule of the small world; use "
         "kind 'gold', or give data.logged.path"),
        (mock.Mock(wraps=corpus(), world=None, tokenizer=corpus().tokenizer),
         'set data.logged.target')):
      with self.assertRaisesRegex(errors.ConfigError, message) as caught:
        self.build(made, votes=node)
      self.assertNotIn('\n', str(caught.exception))

  def test_sum_of_weighted_parts(self):
    with self.build(a=dict(kind='gold', weight=2.), b=dict(kind='proxy'),
                    c=dict(kind='length', target=4, weight=0.)) as found:
      scored = self.score(found)
      np.testing.assert_allclose(
          found.total(scored.values),
          2 / (1 + np.exp(-(lengths() - 3) / 2)) + scored.values['b'],
          rtol=1e-6)
      np.testing.assert_array_equal(scored.values['c'], .5)
      self.assertEqual(found.upper, 3)

  def test_models_that_nobody_asks_for_are_not_read(self):
    with self.build(short=dict(kind='length', target=4)):
      pass
    self.assertEmpty(self.loaded)

  def test_tfidf_is_fitted_on_the_responses_that_there_are(self):
    tokens, mask = (x.reshape(3, 2, -1).copy() for x in rows())
    mask[1, 1] = False
    files.save_arrays(self.directory / 'logged/logged.npz', tokens=tokens,
                      mask=mask)
    coder = corpus().tokenizer
    expected = [coder.decode(t[m], continuation=True) for t, m in zip(
        tokens.reshape(6, -1), mask.reshape(6, -1)) if m.any()]
    self.assertLen(expected, 5)
    with mock.patch.object(components.texts_lib, 'TfidfDiversity',
                           side_effect=texts.TfidfDiversity) as fitted:
      found = rewarding.of_log(
          self.context, dict(other=dict(kind='tfidf', min_words=2)), 'logged',
          {}, corpus=corpus(), gold='gold', gold_model=MODEL, pairs='pairs')
    fitted.assert_called_once_with(expected, min_words=2)
    with found:
      self.assertEqual(self.score(found).values['other'].shape, (6,))
    self.assertEmpty(self.loaded)

  def test_kinds(self):
    self.assertEqual(rewarding.kinds(
        dict(a=dict(kind='gold'), b=dict(kind='gold'), c={})), {'gold', None})


if __name__ == '__main__':
  absltest.main()
