"""Tests for rlhf_jax.pipeline.rewarding: one reward, wherever it is asked for.
"""

import dataclasses
import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import worlds

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.ops import texts
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rewarding
from rlhf_jax.rewards import components
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import nodes as nodes_lib

B, K = 3, 2
PLACES = np.array([5, 2, 7])  # of the prompts of a batch, among all
UPSTREAM = dict(reference='sft', gold='gold', pairs='pairs', proxies='proxies')
MEAN, STD = 7., 3.  # of the column that the gold model has learned
AGGREGATES = (dict(kind='mean'), dict(kind='worst_case'),
              dict(kind='single', member=1),
              dict(kind='uncertainty_weighted', uncertainty_coef=.7))
FIELDS = (dict(), dict(weight=-2.5, scale=.7), dict(squash='sigmoid', scale=3.),
          dict(squash='clip', weight=.5),
          dict(squash='clip', range=(-1.5, .25), scale=2., weight=-.3))
close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6)


def learned(workdir):
  """The untrained world, whose gold model has learned a column."""
  worlds.copy(worlds.untrained(), workdir)
  worlds.save(workdir, 'gold', {'target_mean': MEAN, 'target_std': STD})


def world(corpus=None, **changes):
  given = {k: v for k, v in (UPSTREAM | changes).items() if v is not None}
  there = artifacts.World(worlds.Context(worlds.once('learned', learned)),
                          worlds.DATA, 0, given)
  there.corpus = corpus or dataclasses.replace(
      worlds.corpus(), log_target='votes')
  return there


def batch():
  """Reviews, as if they were responses [B, K, T]."""
  rows = worlds.corpus().demonstrations
  shape = lambda x: jnp.asarray(x[:B * K].reshape(B, K, -1))
  return types.Batch(tokens=shape(rows.tokens), mask=shape(rows.mask))


def flat():
  """Their tokens, masks, prompts and responses, row by row."""
  rows = [np.asarray(x).reshape(B * K, -1)
          for x in (batch().tokens, batch().mask)]
  return *rows, *texts_lib.decode(worlds.corpus().tokenizer, *rows)


def on_host(there, nodes, references=None):
  """f32[B, K], and all that is known of it."""
  with rewarding.bind(there, nodes, {}) as rewards:
    scored = rewards(*flat(), references=references)
    return rewards.total(scored.values).reshape(B, K), scored


def in_training(there, nodes, **fields):
  """The batch as annotators leave it."""
  configs, params, scales = rewarding.frozen_models(there, nodes)
  annotators = chain_lib.chain(rewarding.nodes_of_models(nodes), {
      'scores': lambda batch, state, frozen, component: rewarding.score(
          batch, frozen, configs, component)})
  frozen = types.Frozen(reward=params, reward_scale=scales)
  return annotators(batch().replace(**fields), None, frozen)[0]


def raw(role):
  """f64[E, B * K] of the models of a stage, as they come."""
  model = artifacts.restore_rewards(worlds.untrained() / role)
  return np.float64(model.scores(*flat()[:2], standardize=False))


def texts_of(places, column):
  """Right answers of eight prompts: one of the responses to each of some."""
  responses = np.array(flat()[3]).reshape(B, K)
  answers = ['no such answer'] * 8
  for place, row in zip(places, responses):
    answers[place] = row[column]
  return tuple(answers)


_score_members = jax.jit(reward_models.score_members, static_argnums=0)


class TwoPlacesTest(parameterized.TestCase):
  """A component gives the same numbers on the host and on the device.

  To 1e-6, as users' programs are compiled: without optimizations (conftest)
  sums are taken in another order in the two places.
  """

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    before = jax.config.read('jax_disable_most_optimizations')
    jax.config.update('jax_disable_most_optimizations', False)
    cls.addClassCleanup(
        jax.config.update, 'jax_disable_most_optimizations', before)
    jax.clear_caches()

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.object(  # compiled once
        reward_models, 'score_members', _score_members))

  @parameterized.product(aggregate=AGGREGATES, standardize=(True, False))
  def test_proxy(self, aggregate, standardize):
    self.check(dict(kind='proxy', aggregate=aggregate,
                    standardize=standardize))

  @parameterized.parameters(dict(kind='gold'),
                            dict(kind='file', column='votes'))
  def test_one_model(self, **node):
    self.check(node)

  def check(self, node):
    there = world()
    for fields in FIELDS:
      nodes = {'part': node | fields}
      expected, scored = on_host(there, nodes)
      self.assertGreater(np.ptp(scored.raw['part']), .01)
      out = in_training(there, nodes)
      close(out.scores, expected, err_msg=f'{nodes}')
      if node['kind'] == 'proxy':
        close(out.member_scores.reshape(2, -1), scored.members)
      else:
        self.assertIsNone(out.member_scores)

  def test_sum_with_components_of_texts(self):
    answers = texts_of(places=PLACES, column=1)  # of the second responses
    there = world(dataclasses.replace(
        worlds.corpus(), log_target='votes', pair_references=answers))
    nodes = dict(
        right=dict(kind='exact_match', weight=3.),
        liked=dict(kind='proxy', weight=.7, aggregate=AGGREGATES[3]),
        good=dict(kind='gold', weight=-1.5),
        votes=dict(kind='file', column='votes', squash='sigmoid', scale=5.),
        tone=dict(kind='vader', weight=.4),
        short=dict(kind='length', target=20, weight=-.8),
        plain=dict(kind='readability', weight=0.))
    by_row = [answers[at] for at in np.repeat(PLACES, K)]
    expected, scored = on_host(there, nodes, references=by_row)
    np.testing.assert_array_equal(scored.values['right'], [0, 1] * B)
    with rewarding.bind(there, nodes_lib.by_texts(nodes), {}) as rewards:
      of_texts = rewarding.on_texts(there, rewards)(4, batch(), PLACES)
    self.assertEqual((of_texts.shape, of_texts.dtype), ((B, K), np.float32))
    out = jax.jit(functools.partial(in_training, there, nodes))(
        scores=of_texts)
    close(out.scores, expected, atol=4e-6)  # of terms up to 4
    close(out.member_scores.reshape(2, -1), scored.members)


class UnitsTest(parameterized.TestCase):
  """What a component says, from what the models do."""

  def test_gold_in_deviations_of_the_samples(self):
    _, scored = on_host(world(), {'good': dict(kind='gold')})
    for values in (scored.raw, scored.values):
      close(values['good'], (raw('gold')[0] - .1) / .7, rtol=1e-5)

  def test_proxy_is_the_mean_of_standardised_members(self):
    members = raw('proxies')
    expected = np.mean([(members[0] - .1) / .5, (members[1] + .2) / 2], axis=0)
    _, scored = on_host(world(), {'liked': dict(kind='proxy')})
    close(scored.values['liked'], expected, rtol=1e-5)
    _, scored = on_host(world(), {
        'liked': dict(kind='proxy', standardize=False)})
    close(scored.values['liked'], members.mean(axis=0), rtol=1e-5)

  def test_new_responses_are_scored_in_units_of_the_file(self):
    nodes = {'votes': dict(kind='file', column='votes'),
             'good': dict(kind='gold')}
    with rewarding.bind(world(), nodes, {}) as rewards:
      scored = rewards(*flat())
      close(scored.values['votes'], MEAN + STD * raw('gold')[0], rtol=1e-5)
      close(scored.values['good'], (raw('gold')[0] - .1) / .7, rtol=1e-5)
      numbers = np.float32([1e6, -1 / 3, 0, 4, 5e-9, 6])
      logged = rewards(*flat(), columns={'votes': numbers})
      np.testing.assert_array_equal(logged.values['votes'], numbers)
      np.testing.assert_array_equal(
          logged.values['good'], scored.values['good'])

  def test_sum_of_weighted_parts(self):
    nodes = dict(a=dict(kind='gold', weight=2., squash='sigmoid'),
                 b=dict(kind='vader'), c=dict(kind='length', target=1,
                                              weight=0.))
    with rewarding.bind(world(), nodes, {}) as rewards:
      scored = rewards(*flat())
      good = scipy.special.expit((raw('gold')[0] - .1) / .7)
      close(rewards.total(scored.values), 2 * good + scored.values['b'],
            rtol=1e-5)
      np.testing.assert_array_equal(scored.values['c'], 1)
      self.assertEqual(rewards.upper, 3)


class BindTest(parameterized.TestCase):

  def test_models_that_nobody_asks_for_are_not_read(self):
    there = world(gold='nonesuch', pairs='nonesuch', proxies='nonesuch')
    with rewarding.bind(there, {'short': dict(kind='length', target=4)}, {}):
      pass
    with self.assertRaises(errors.CheckpointError):
      rewarding.bind(there, {'good': dict(kind='gold')}, {})

  @parameterized.parameters(('gold', 'gold'), ('proxy', 'proxies'))
  def test_a_model_that_is_not_there(self, kind, role):
    with self.assertRaisesRegex(ValueError, f"must hold '{kind}' for .* part"):
      rewarding.bind(world(**{role: None}), {'part': dict(kind=kind)}, {})

  def test_a_column_without_a_gold_model(self):
    nodes = {'votes': dict(kind='file', column='votes')}
    with rewarding.bind(world(gold=None), nodes, {}) as rewards:
      logged = rewards(*flat(), columns={'votes': np.arange(6.)})
      np.testing.assert_array_equal(logged.values['votes'], np.arange(6))
      with self.assertRaisesRegex(
          errors.RewardError, "need a model of the column 'votes'"):
        rewards(*flat())

  def test_a_gold_model_that_has_learned_no_score(self):
    there = artifacts.World(
        worlds.Context(worlds.untrained()), worlds.DATA, 0, UPSTREAM)
    results = dict(gold={})
    of = there.context.result_of
    there.context.result_of = lambda name: results.get(name, of(name))
    real = dataclasses.replace(worlds.corpus(), world=None)
    for corpus, message in (
        (worlds.corpus(), 'learns the rule of the small world; use kind '
         "'gold', or give data.logged.path"),
        (real, 'learned no score of the log; set data.logged.target')):
      there.corpus = corpus
      with self.assertRaisesRegex(errors.ConfigError, message) as raised:
        rewarding.bind(there, {'votes': dict(kind='file', column='votes')}, {})
      self.assertNotIn('\n', str(raised.exception))

  @parameterized.parameters(True, False)
  def test_tfidf_is_fitted_on_the_responses_that_there_are(self, of_world):
    tokens, mask = np.array(batch().tokens), np.array(batch().mask)
    mask[1, 1] = False
    expected = [text for i, text in enumerate(flat()[3]) if i != 3]
    there = world(log='log' if of_world else None)
    if of_world:
      there.log = artifacts.Log(dict(tokens=tokens, mask=mask), [], 'corpus',
                                1)  # those of validation examples too
    with mock.patch.object(components.texts_lib, 'TfidfDiversity',
                           side_effect=texts.TfidfDiversity) as fitted:
      rewards = rewarding.bind(
          there, {'other': dict(kind='tfidf', min_words=2)}, {},
          log=None if of_world else (tokens, mask))
    fitted.assert_called_once_with(expected, min_words=2)
    with rewards:
      self.assertEqual(rewards(*flat()).values['other'].shape, (B * K,))


class AnnotatorsTest(absltest.TestCase):

  def test_components_of_models_in_order(self):
    nodes = dict(short=dict(kind='length', target=4), b=dict(kind='gold'),
                 a=dict(kind='proxy', weight=.5))
    full = nodes_lib.check(nodes)
    self.assertEqual(rewarding.nodes_of_models(nodes), [
        {'name': 'scores', 'component': full['b']},
        {'name': 'scores', 'component': full['a']}])
    self.assertEmpty(rewarding.nodes_of_models({'short': nodes['short']}))

  def test_models_that_annotators_read(self):
    there = world()
    configs, params, scales = rewarding.frozen_models(there, dict(
        a=dict(kind='gold'), b=dict(kind='gold'),
        c=dict(kind='length', target=4)))
    self.assertEqual(configs, {'gold': there.gold.config})
    self.assertEqual(list(params), ['gold'])
    jax.tree.map(np.testing.assert_array_equal, params['gold'],
                 there.gold.params)
    self.assertEqual({k: x.dtype for k, x in scales['gold'].items()},
                     {'mean': jnp.float32, 'std': jnp.float32})
    close(scales['gold']['mean'], [.1])
    close(scales['gold']['std'], [.7])
    alone = world(pairs=None)  # without samples there is no unit
    self.assertEqual(
        rewarding.frozen_models(alone, {'a': dict(kind='gold')})[2], {})
    self.assertEqual(
        rewarding.frozen_models(there, {
            'a': dict(kind='length', target=4)}), ({}, {}, {}))

  def test_disagreement_is_that_of_the_ensemble(self):
    there = world()
    nodes = dict(a=dict(kind='proxy'), b=dict(kind='gold'),
                 c=dict(kind='file', column='votes'))
    alone = in_training(there, {'a': nodes['a']}).member_scores
    np.testing.assert_array_equal(
        in_training(there, nodes).member_scores, alone)


class OnTextsTest(absltest.TestCase):

  def test_without_right_answers(self):
    there = world()  # of the small world, whose prompts have none
    nodes = dict(short=dict(kind='length', target=4, weight=2.))
    with rewarding.bind(there, nodes, {}) as rewards:
      scores = rewarding.on_texts(there, rewards)(0, batch(), PLACES)
    words = np.array([len(text.split()) for text in flat()[3]])
    np.testing.assert_array_equal(
        scores, 2 * np.minimum(words / 4, 1).reshape(B, K))
    nodes = dict(right=dict(kind='exact_match'))
    with rewarding.bind(there, nodes, {}) as rewards:
      with self.assertRaisesRegex(
          errors.RewardError, "component 'right'.*there are none for these"):
        rewarding.on_texts(there, rewards)(0, batch(), PLACES)

  def test_the_step_is_told(self):
    there, steps = world(), []
    rewards = mock.Mock(side_effect=lambda *args, step, references: (
        steps.append((step, references)) or components.Scored({}, {})))
    rewards.total = lambda values: np.zeros(B * K, np.float32)
    rewarding.on_texts(there, rewards)(11, batch(), PLACES)
    self.assertEqual(steps, [(11, None)])


if __name__ == '__main__':
  absltest.main()
