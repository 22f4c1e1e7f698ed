"""Tests for rlhf_jax.monitor."""

import dataclasses
import functools
import json
import types as python_types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import sharding
from rlhf_jax import types
from rlhf_jax.data import from_reviews
from rlhf_jax.evaluation import monitor
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.rewards import components
from rlhf_jax.rewards import models as reward_models

B, E, PADDED = 11, 3, 5
SCALE = {'mean': np.float32([.5, -1., -1.5]), 'std': np.float32([2., .5, 1.])}
COLUMNS = [
    'proxy', 'proxy_se', 'member_0', 'member_1', 'member_2',
    'ensemble_variance', 'ensemble_variance_unbiased', 'gold', 'gold_se',
    'rule', 'rule_se', 'kl_k1', 'kl_k2', 'kl_k3', 'sqrt_kl', 'length',
    'unfinished', 'distinct_1', 'distinct_2', 'distinct_3', 'diversity_1',
    'diversity_2', 'perplexity', 'reward_variance']


@functools.cache
def _corpus():
  return from_reviews.from_reviews(
      seed=0, num_demonstrations=1, num_pair_prompts=1, num_eval_prompts=13,
      max_response_length=8, num_adjectives=4)


@functools.cache
def _config(padded=PADDED):
  """A policy has rows in its embeddings that are no token."""
  return transformer.make_config(
      'gptj', vocab_size=_corpus().tokenizer.vocab_size + padded,
      hidden_size=8, num_layers=1, num_heads=1, intermediate_size=12)


def _random(make, seed, scale):
  """Numbers in the shape of what `make` makes, without compiling it."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda x: (scale * rng.normal(size=x.shape)).astype(x.dtype),
      jax.eval_shape(make))


@functools.cache
def _policy(seed):
  params = _random(
      lambda: transformer.init(_config(), jax.random.key(0)), seed, .5)
  # EOS is likelier than other tokens, so that responses differ in length.
  params['unembed_bias'][_corpus().tokenizer.eos_id] = 2.
  return params


@functools.cache
def _members(seed, count):
  return _random(lambda: reward_models.init_members(
      _config(0), jax.random.split(jax.random.key(0), count)), seed, .7)


@functools.cache
def _monitor(**changes):
  fields = dict(
      config=_config(), reference=_policy(0), reward_config=_config(0),
      reward=_members(2, E), reward_scale=SCALE,
      aggregate=dict(kind='worst_case'), gold_config=_config(0),
      gold=_members(3, 1), gold_scale=(3., 2.), rule_scale=(-1., 4.),
      corpus=_corpus(), num_prompts=B, sampler=dict(temperature=.7),
      key=jax.random.key(4), chunk_size=8)
  return monitor.Monitor(**(fields | changes))


def _changed(**changes):
  return dataclasses.replace(_monitor(), **changes)


@functools.cache
def _evaluation():
  return _monitor()(_policy(1), step=3)


def _scores(params):
  out = _evaluation()
  return np.float64(reward_models.score_rows(
      _config(0), params, out.tokens, out.mask))


def _logprobs(seed, tokens, temperature):
  """f64[B, T] from the logits themselves."""
  logits = jax.jit(transformer.logits, static_argnums=0)(
      _config(), _policy(seed), tokens)
  logits = np.asarray(logits, np.float64)[:, :-1] / temperature
  logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.pad(np.take_along_axis(
      logits, tokens[:, 1:, None], axis=-1)[..., 0], ((0, 0), (1, 0)))


class RowTest(parameterized.TestCase):

  def test_columns(self):
    out = _evaluation()
    self.assertEqual(list(out.row), COLUMNS)
    for value in out.row.values():
      self.assertIsInstance(value, float)
    json.dumps(out.row, allow_nan=False)
    for x in (out.gold, out.proxy, out.rule, out.length):
      self.assertEqual(x.shape, (B,))
    self.assertLess(out.tokens.max(), _corpus().tokenizer.vocab_size)
    np.testing.assert_array_equal(
        out.tokens[:, :8], _corpus().eval_prompts.tokens[:B])
    self.assertGreater(len(set(out.length)), 4)
    self.assertBetween(out.row['unfinished'], .1, .9)

  def test_gold_and_rule_are_in_deviations_of_their_scales(self):
    out = _evaluation()
    gold = (_scores(_members(3, 1))[0] - 3) / 2
    rule = (_corpus().world.rule(out.tokens, out.mask) + 1) / 4
    for name, found, expected in (
        ('gold', out.gold, gold), ('rule', out.rule, rule)):
      np.testing.assert_allclose(found, expected, rtol=1e-6)
      self.assertAlmostEqual(out.row[name], expected.mean(), 6)
      self.assertAlmostEqual(
          out.row[f'{name}_se'], expected.std(ddof=1) / B**.5, 6)

  def test_members_are_standardised(self):
    out = _evaluation()
    members = _scores(_members(2, E))
    members = (members - SCALE['mean'][:, None]) / SCALE['std'][:, None]
    for i, x in enumerate(members):
      self.assertAlmostEqual(out.row[f'member_{i}'], x.mean(), 5)
    self.assertAlmostEqual(
        out.row['ensemble_variance'], members.var(axis=0).mean(), 5)
    self.assertAlmostEqual(out.row['ensemble_variance_unbiased'],
                           members.var(axis=0, ddof=1).mean(), 5)
    proxy = members.min(axis=0)
    np.testing.assert_allclose(out.proxy, proxy, atol=1e-6)
    self.assertAlmostEqual(out.row['proxy'], proxy.mean(), 5)
    self.assertAlmostEqual(
        out.row['proxy_se'], proxy.std(ddof=1) / B**.5, 5)
    self.assertAlmostEqual(out.row['reward_variance'], proxy.var(), 5)
    plain = _changed(reward_scale=None, aggregate=dict(
        kind='single', member=1))(_policy(1), step=0)
    np.testing.assert_allclose(
        plain.proxy, _scores(_members(2, E))[1], rtol=1e-6)
    self.assertAlmostEqual(plain.row['member_1'], plain.row['proxy'])

  def test_divergence_by_hand(self):
    """[objectives.md 5.1] d in nats at the temperature of the sampler."""
    out = _evaluation()
    d = np.where(out.mask, _logprobs(1, out.tokens, .7)
                 - _logprobs(0, out.tokens, .7), 0)
    for kind, values in (
        ('k1', d), ('k2', d**2 / 2), ('k3', np.exp(-d) - 1 + d)):
      np.testing.assert_allclose(
          out.row[f'kl_{kind}'], values.sum(-1).mean(), rtol=1e-4)
    np.testing.assert_allclose(
        out.row['sqrt_kl']**2, (d**2 / 2).sum(-1).mean(), rtol=1e-4)
    self.assertGreater(out.row['kl_k2'], .1)

  @parameterized.parameters(.7, 0)
  def test_no_divergence_of_the_reference_from_itself(self, temperature):
    out = _changed(sampler=dict(temperature=temperature))(
        _policy(0), step=0)
    for name in ('kl_k1', 'kl_k2', 'kl_k3', 'sqrt_kl'):
      self.assertAlmostEqual(out.row[name], 0, 6)
    self.assertTrue(out.mask.any())

  def test_perplexity_of_the_chosen_completions(self):
    rows = _corpus().eval_demonstrations
    tokens, mask = rows.tokens[:B, 0], rows.mask[:B, 0]
    nll = -_logprobs(1, tokens, 1.)[mask]
    np.testing.assert_allclose(
        _evaluation().row['perplexity'], np.exp(nll.mean()), rtol=1e-4)

  def test_texts_by_hand(self):
    """the the the, cut off; the phone, ended. Words are tokens."""
    coder = _corpus().tokenizer
    (the, phone), = coder.encode(['the phone'])
    tokens = _corpus().eval_demonstrations.tokens[:2].copy()
    tokens[:, 0, 8:] = coder.pad_id
    tokens[0, 0, 8:11] = the
    tokens[1, 0, 8:11] = the, phone, coder.eos_id
    mask = np.zeros(tokens.shape, bool)
    mask[:, :, 8:11] = True
    with mock.patch.object(monitor.Monitor, '_sample',
                           lambda self, params: types.Batch(tokens, mask)):
      row = _changed(num_prompts=2)(_policy(1), step=0).row
    for name, expected in dict(
        length=2.5, unfinished=.5, distinct_1=2 / 5, distinct_2=2 / 5,
        distinct_3=1 / 5, diversity_1=2 / 3, diversity_2=3 / 4).items():
      self.assertAlmostEqual(row[name], expected, msg=name)

  def test_functions_add_to_the_weighted_ensemble(self):
    seen = []
    def score(prompts, responses, step):
      seen.append((prompts, responses, step))
      return np.arange(B)
    functions = python_types.SimpleNamespace(score=score)
    out = _changed(functions=functions, weight=.25)(_policy(1), step=3)
    np.testing.assert_allclose(
        out.proxy, .25 * _evaluation().proxy + np.arange(B), rtol=1e-6)
    np.testing.assert_array_equal(out.tokens, _evaluation().tokens)
    alone = _changed(functions=functions, reward=None)(_policy(1), step=7)
    np.testing.assert_array_equal(alone.proxy, np.arange(B))
    self.assertEqual([k for k in COLUMNS if k not in alone.row], COLUMNS[2:7])
    self.assertEqual([step for *_, step in seen], [3, 7])
    rows = _monitor().texts(out, B)
    self.assertEqual(seen[0][:2], ([r['prompt'] for r in rows],
                                   [r['response'] for r in rows]))


class ComponentsTest(absltest.TestCase):

  def _changed(self, nodes, **changes):
    models = {'gold': lambda tokens, mask: mask.sum(axis=-1) - 4.}
    named = components.Components(nodes, models=models)
    splits = (*('abc' * 4), 'last')
    corpus = dataclasses.replace(_corpus(), eval_splits=splits)
    return _changed(components=named, corpus=corpus, **changes)

  def test_columns_and_total(self):
    watch = self._changed({'votes': {'kind': 'gold', 'weight': 2.},
                           'long': {'kind': 'length', 'target': 4}})
    out = watch(_policy(1), step=3)
    votes = 1 / (1 + np.exp(4. - out.mask.sum(axis=-1)))
    words = np.array([len(row['response'].split())
                      for row in watch.texts(out, B)])
    long = np.minimum(words / 4, 1)
    for name, expected in (('votes', votes), ('long', long)):
      np.testing.assert_allclose(out.components[name], expected, rtol=1e-6)
      column = f'component_{name}'
      self.assertAlmostEqual(out.row[column], expected.mean(), 6)
      self.assertAlmostEqual(
          out.row[f'{column}_se'], expected.std(ddof=1) / B**.5, 6)
    np.testing.assert_allclose(out.proxy, 2 * votes + long, rtol=1e-6)
    self.assertAlmostEqual(out.row['reward_variance'], out.proxy.var(), 5)
    self.assertAlmostEqual(out.row['words'], words.mean())
    # The reward models are still followed, and nothing else has changed.
    for name in COLUMNS:
      if not name.startswith(('proxy', 'reward_variance')):
        self.assertEqual(out.row[name], _evaluation().row[name], name)
    self.assertCountEqual(out.row, [
        *COLUMNS, 'component_votes', 'component_votes_se', 'component_long',
        'component_long_se', 'words', *(
            f'{score}_split_{split}{se}' for score in ('gold', 'proxy')
            for split in 'abc' for se in ('', '_se'))])
    json.dumps(out.row, allow_nan=False)

  def test_splits_by_hand(self):
    out = self._changed({'long': {'kind': 'length', 'target': 4}})(
        _policy(1), step=0)
    for i, split in enumerate('abc'):
      for name in ('gold', 'proxy'):
        values = getattr(out, name)[i::3]  # of the first eleven prompts
        self.assertAlmostEqual(out.row[f'{name}_split_{split}'], values.mean())
        self.assertAlmostEqual(out.row[f'{name}_split_{split}_se'],
                               values.std(ddof=1) / len(values)**.5)

  def test_final_rows_and_references(self):
    same = self._changed({'same': {'kind': 'exact_match'}}, reward=None)
    chosen = _corpus().eval_demonstrations
    with mock.patch.object(
        monitor.Monitor, '_sample', lambda self, params: types.Batch(
            chosen.tokens[:B], chosen.mask[:B])):
      out = same(_policy(1), step=0)
    np.testing.assert_array_equal(out.proxy, np.ones(B))
    self.assertNotIn('member_0', out.row)
    rows = same.final_rows(out)
    json.dumps(rows, allow_nan=False)
    self.assertEqual([row['split'] for row in rows], list('abcabcabcab'))
    self.assertEqual([row['component_same'] for row in rows], [1.] * B)

  def test_right_answers_go_before_chosen_completions(self):
    named = components.Components({'same': {'kind': 'exact_match'}})
    chosen = _corpus().eval_demonstrations
    mine = _monitor()._references
    answers = tuple(text if i % 2 else 'other' for i, text in enumerate(
        mine + ['not asked'] * 2))
    watch = _changed(
        components=named, reward=None,
        corpus=dataclasses.replace(_corpus(), eval_references=answers))
    with mock.patch.object(
        monitor.Monitor, '_sample', lambda self, params: types.Batch(
            chosen.tokens[:B], chosen.mask[:B])):
      out = watch(_policy(1), step=0)
    np.testing.assert_array_equal(out.proxy, np.arange(B) % 2)
    self.assertEqual(
        [row['reference'] for row in watch.final_rows(out)], mine)

  def test_a_component_fails(self):
    watch = self._changed({'votes': {
        'kind': 'gold', 'squash': 'none', 'range': (-10, 3)}})
    with self.assertRaisesRegex(
        errors.RewardError, r"component 'votes' \(gold\) gave 4 at step 20"):
      watch(_policy(1), step=20)


class ValueShiftTest(absltest.TestCase):

  def _heads(self, scale):
    key = jax.random.key(0)
    init = lambda: heads.init_q(key, 8, _config().vocab_size)
    return {'target_q_heads': _random(init, 7, scale), 'value_head': _random(
        lambda: heads.init_scalar(key, 8), 8, scale)}

  def test_columns(self):
    """The KL is of the distribution that has sampled."""
    watch = _changed(value_shift=3.)
    out = watch(_policy(0) | self._heads(1.), step=3)
    self.assertEqual([k for k in COLUMNS if k not in out.row], ['perplexity'])
    self.assertGreater((out.tokens != _evaluation().tokens).sum(), B)
    self.assertGreater(out.row['kl_k3'], .5)
    batch = watch._sample(_policy(0) | self._heads(1.))
    np.testing.assert_array_equal(batch.tokens[:, 0], out.tokens)
    d = np.where(out.mask, batch.old_logprobs[:, 0]
                 - _logprobs(0, out.tokens, .7), 0)
    np.testing.assert_allclose(out.row['kl_k1'], d.sum(-1).mean(), rtol=1e-4)

  def test_without_advantages_it_is_the_language_model(self):
    out = _changed(value_shift=3.)(
        _policy(1) | self._heads(0.) | {'q_heads': np.float32(np.nan)}, step=3)
    np.testing.assert_array_equal(out.tokens, _evaluation().tokens)
    for name, value in out.row.items():
      np.testing.assert_allclose(
          value, _evaluation().row[name], rtol=1e-4, atol=1e-5, err_msg=name)

  def test_heads_are_needed(self):
    with self.assertRaisesRegex(ValueError, 'target_q_heads'):
      _changed(value_shift=3.)(_policy(0), step=0)


class SameTest(absltest.TestCase):

  def _assert_same(self, found, **tolerance):
    expected = _evaluation()
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.mask, expected.mask)
    np.testing.assert_allclose(found.gold, expected.gold, **tolerance)
    np.testing.assert_allclose(
        list(found.row.values()), list(expected.row.values()), **tolerance)

  def test_twice_and_by_the_key(self):
    self._assert_same(_monitor()(_policy(1), step=3), rtol=0)
    other = _changed(key=jax.random.key(5))(_policy(1), step=3)
    self.assertGreater((other.tokens != _evaluation().tokens).sum(), B)

  def test_heads_are_not_read(self):
    heads = {k: np.float32(np.nan) for k in (
        'value_head', 'value_trunk', 'reward_head', 'q_heads',
        'target_q_heads')}
    self._assert_same(_monitor()(_policy(1) | heads, step=3), rtol=0)

  def test_chunks_and_devices(self):
    """Four chunks on one device give what two on eight devices give."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with mock.patch.object(sharding, 'make_mesh', lambda: mesh):
      found = _changed(chunk_size=3)(_policy(1), step=3)
    self._assert_same(found, rtol=1e-4, atol=1e-5)


class ReadTest(absltest.TestCase):

  def test_texts(self):
    rows = _monitor().texts(_evaluation(), 4)
    self.assertLen(rows, 4)
    prompts, _ = _corpus().world.write(13, 2)
    coder, out = _corpus().tokenizer, _evaluation()
    found = monitor.decode(coder, out.tokens[:4].reshape(2, 2, -1),
                           out.mask[:4].reshape(2, 2, -1))
    self.assertEqual(found, ([row['prompt'] for row in rows],
                             [row['response'] for row in rows]))
    for i, row in enumerate(rows):
      self.assertEqual(row['prompt'], prompts[i])
      self.assertEqual(row['response'], coder.decode(out.tokens[i, 8:]))
      self.assertEqual((row['gold'], row['proxy']),
                       (out.gold[i], out.proxy[i]))

  def test_final_rows(self):
    out = _evaluation()
    rows = _monitor().final_rows(out)
    json.dumps(rows, allow_nan=False)
    self.assertLen(rows, B)
    chosen = _corpus().eval_demonstrations
    gold = (reward_models.score_rows(
        _config(0), _members(3, 1), chosen.tokens, chosen.mask)[0] - 3) / 2
    _, reviews = _corpus().world.write(13, 2)
    for i, row in enumerate(rows):
      # There is room for eight tokens, EOS included.
      self.assertEqual(
          row['reference'], ' '.join(reviews[i].split()[:8]))
      self.assertAlmostEqual(row['reference_gold'], gold[i, 0], 5)
      self.assertEqual(row['rule'], out.rule[i])
      self.assertEqual(row['length'], out.length[i])
      self.assertLessEqual(
          set(_monitor().texts(out, B)[i].items()), set(row.items()))

  def test_a_world_without_rule_or_references(self):
    small = _changed(rule_scale=None, num_prompts=1,
                     corpus=dataclasses.replace(
                         _corpus(), world=None, eval_demonstrations=None))
    out = small(_policy(1), step=0)
    self.assertEqual([k for k in COLUMNS if k not in out.row],
                     ['rule', 'rule_se', 'perplexity'])
    self.assertTrue(np.isnan(out.row['gold_se']))
    row, = small.final_rows(out)
    self.assertEqual((row['reference'], row['reference_gold'], row['rule']),
                     (None, None, None))


class ErrorsTest(parameterized.TestCase):

  def _message(self, **changes):
    with self.assertRaises(errors.RewardError) as caught:
      _changed(**changes)(_policy(1), step=20)
    self.assertNotIn('\n', str(caught.exception))
    return str(caught.exception)

  def test_scores_that_are_not_finite(self):
    spoilt = lambda params, *bias: params | {
        'head': params['head'] | {'bias': np.float32(bias)}}
    message = self._message(gold=spoilt(_members(3, 1), np.nan))
    self.assertIn('gold reward model gave nan for evaluation prompt 0 '
                  '(response at step 20; 11 of 11', message)
    self.assertIn('member_2 gave -inf', self._message(
        reward=spoilt(_members(2, E), 0, 1, -np.inf)))

  def test_functions(self):
    at_three = np.where(np.arange(B) == 3, np.nan, 1)
    for value, expected in (
        (at_three, 'gave nan for evaluation prompt 3 (response at step 20; 1'),
        (np.zeros((B, 1)), 'shape (11, 1) for 11')):
      functions = python_types.SimpleNamespace(score=lambda *_, v=value: v)
      message = self._message(functions=functions)
      self.assertIn('reward functions', message)
      self.assertIn(expected, message)

  @parameterized.parameters(
      (dict(num_prompts=14), r'num_prompts must be in \[1, 13\].*got 14'),
      (dict(chunk_size=0), 'chunk_size must be >= 1'),
      (dict(gold_scale=(0., 0.)), 'gold_scale must be'),
      (dict(rule_scale=(np.nan, 1.)), 'rule_scale must be'),
      (dict(reward=None), 'reward, functions or components'))
  def test_fields_out_of_range(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      _changed(**changes)


if __name__ == '__main__':
  absltest.main()
