"""Tests for rlhf_jax.evaluation.monitor."""

import dataclasses
import functools
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax import sampling
from rlhf_jax import streams
from rlhf_jax.data import small_worlds
from rlhf_jax.evaluation import monitor
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.rewards import components
from rlhf_jax.rewards import models as reward_models

B, E, PADDED = 11, 3, 5
PROMPTS = 13  # that the corpus has
SCALE = {'mean': np.float32([.5, -1., -1.5]), 'std': np.float32([2., .5, 1.])}
NODES = {
    'worst': {'kind': 'proxy', 'aggregate': {'kind': 'worst_case'},
              'weight': .25},
    'long': {'kind': 'length', 'target': 4, 'weight': 2.}}
COLUMNS = [
    'proxy', 'proxy_se', 'member_0', 'member_1', 'member_2',
    'ensemble_variance', 'ensemble_variance_unbiased', 'component_worst',
    'component_worst_se', 'component_long', 'component_long_se', 'gold',
    'gold_se', 'rule', 'rule_se', 'kl_k1', 'kl_k2', 'kl_k3', 'sqrt_kl',
    'length', 'words', 'unfinished', 'distinct_1', 'distinct_2', 'distinct_3',
    'diversity_1', 'diversity_2', 'perplexity', 'reward_variance']


@functools.cache
def _corpus():
  corpus = small_worlds.write(
      'reviews', seed=0, num_demonstrations=1, num_pair_prompts=1,
      num_eval_prompts=PROMPTS, max_response_length=8, num_adjectives=4)
  return dataclasses.replace(corpus, eval_splits=None)


@functools.cache
def _reviews():
  """Prompts and completions of the evaluation, as the world writes them."""
  return _corpus().world.write(
      PROMPTS, streams.number(0, 'reviews', 'evaluation'))


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


def _score(params, tokens, mask):
  """f32[E, ...], not standardised."""
  return reward_models.score_rows(_config(0), params, tokens, mask)


def _gold(tokens, mask):
  return (_score(_members(3, 1), tokens, mask)[0] - 3) / 2


def _rule(tokens, mask):
  return (_corpus().world.rule(tokens, mask) + 1.) / 4


def _rewards(nodes, scale=SCALE, params=None):
  return components.Components(nodes, models=components.Models(
      proxy=reward_models.RewardModels(
          _config(0), params or _members(2, E), scale)))


class Rewards:
  """Components of which every value is known; the first has weight 1, ..."""

  def __init__(self, *, members=None, **values):
    self.members = members
    self.values = {k: np.float32(v) for k, v in values.items()}
    self.calls = []

  def __call__(self, *rows, step, references):
    self.calls.append((*rows, step, references))
    return components.Scored(self.values, self.values, self.members)

  def total(self, values):
    return sum(i * x for i, x in enumerate(values.values(), 1))


def _setting(**changes):
  return monitor.Setting(**dict(
      corpus=_corpus(), num_prompts=B, sampler=dict(temperature=.7),
      key=jax.random.key(4), chunk_size=8) | changes)


def _monitor(*, rewards=None, gold=_gold, rule=_rule, **changes):
  return monitor.Monitor(
      _setting(**changes), _config(), _policy(0), rewards or _rewards(NODES),
      gold=gold, rule=rule)


@functools.cache
def _evaluation():
  return _monitor()(_policy(1), step=3)


def _sampled(params, **options):
  """Tokens, mask and log-probabilities [B, T], without the monitor.

  In two batches of eight, the second filled up, so that the program is that
  of the monitor.
  """
  coder, prompts, parts = _corpus().tokenizer, _corpus().eval_prompts, []
  for rows in (np.arange(8), np.resize([8, 9, 10], 8)):
    batch = sampling.sample(
        _config(), params, prompts.tokens[rows], prompts.lengths[rows],
        jax.random.key(4), num_samples=1, max_new_tokens=8, temperature=.7,
        eos_id=coder.eos_id, pad_id=coder.pad_id, num_tokens=coder.vocab_size,
        row_ids=rows, **options)
    parts.append((batch.tokens, batch.mask, batch.old_logprobs))
  return [np.concatenate(x)[:B, 0] for x in zip(*parts)]


def _changed(**changes):
  """The corpus with other fields."""
  return dataclasses.replace(_corpus(), **changes)


def _answering(tokens, mask):
  """A policy that answers so, whatever its parameters."""
  return mock.patch.object(
      monitor.Monitor, '_sample', lambda self, params: (
          tokens, mask, np.zeros(tokens.shape, np.float32)))


def _chosen():
  rows = _corpus().eval_demonstrations
  return rows.tokens[:B, 0], rows.mask[:B, 0]


def _logprobs(seed, tokens, temperature):
  """f64[B, T] from the logits themselves."""
  logits = jax.jit(transformer.logits, static_argnums=0)(
      _config(), _policy(seed), tokens)
  logits = np.asarray(logits, np.float64)[:, :-1] / temperature
  logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.pad(np.take_along_axis(
      logits, tokens[:, 1:, None], axis=-1)[..., 0], ((0, 0), (1, 0)))


class RowTest(parameterized.TestCase):

  def _assert_column(self, row, name, values):
    self.assertAlmostEqual(row[name], values.mean(), 5)
    self.assertAlmostEqual(row[f'{name}_se'], values.std(ddof=1) / B**.5, 5)

  def test_columns(self):
    out = _evaluation()
    self.assertEqual(list(out.row), COLUMNS)
    for value in out.row.values():
      self.assertIsInstance(value, float)
    json.dumps(out.row, allow_nan=False)
    for x in (out.gold, out.proxy, out.rule, *out.components.values()):
      self.assertEqual(x.shape, (B,))
    lengths = (out.mask & (
        out.tokens != _corpus().tokenizer.eos_id)).sum(axis=-1)
    self.assertGreater(len(set(lengths)), 4)
    self.assertAlmostEqual(out.row['length'], lengths.mean())
    self.assertAlmostEqual(out.row['unfinished'], (lengths == 8).mean())
    self.assertBetween(out.row['unfinished'], .1, .9)

  def test_answers_are_those_of_the_sampler(self):
    """The first prompts, each by its own random numbers; tokens alone."""
    tokens, mask, _ = _sampled(_policy(1))
    np.testing.assert_array_equal(_evaluation().tokens, tokens)
    np.testing.assert_array_equal(_evaluation().mask, mask)
    self.assertLess(tokens.max(), _corpus().tokenizer.vocab_size)

  def test_gold_and_rule_are_as_their_scorers_say(self):
    out = _evaluation()
    for name, scorer in (('gold', _gold), ('rule', _rule)):
      expected = scorer(out.tokens, out.mask)
      np.testing.assert_allclose(getattr(out, name), expected, rtol=1e-6)
      self._assert_column(out.row, name, expected)

  def test_members_are_those_that_are_combined(self):
    out = _evaluation()
    scores = np.float64(_score(_members(2, E), out.tokens, out.mask))
    members = (scores - SCALE['mean'][:, None]) / SCALE['std'][:, None]
    for i, x in enumerate(members):
      self.assertAlmostEqual(out.row[f'member_{i}'], x.mean(), 5)
    self.assertAlmostEqual(
        out.row['ensemble_variance'], members.var(axis=0).mean(), 5)
    self.assertAlmostEqual(out.row['ensemble_variance_unbiased'],
                           members.var(axis=0, ddof=1).mean(), 5)
    np.testing.assert_allclose(
        out.components['worst'], members.min(axis=0), atol=1e-6)
    plain = _monitor(rewards=_rewards({'one': {
        'kind': 'proxy', 'aggregate': {'kind': 'single', 'member': 1}}},
                                      scale=None))(_policy(1), step=0)
    np.testing.assert_allclose(plain.proxy, scores[1], rtol=1e-6)
    for name in ('proxy', 'component_one'):
      self.assertAlmostEqual(plain.row['member_1'], plain.row[name], 6)

  def test_components_and_their_total(self):
    out = _evaluation()
    words = np.array([len(row['response'].split())
                      for row in _monitor().texts(out, B)])
    self.assertAlmostEqual(out.row['words'], words.mean())
    long = np.minimum(words / 4, 1)
    np.testing.assert_allclose(out.components['long'], long, rtol=1e-6)
    for name, values in out.components.items():
      self._assert_column(out.row, f'component_{name}', np.float64(values))
    proxy = .25 * np.float64(out.components['worst']) + 2 * long
    np.testing.assert_allclose(out.proxy, proxy, rtol=1e-5)
    self._assert_column(out.row, 'proxy', proxy)
    self.assertAlmostEqual(out.row['reward_variance'], proxy.var(), 5)

  def test_one_component_without_members(self):
    rewards = Rewards(only=np.arange(B))
    out = _monitor(rewards=rewards)(_policy(1), step=7)
    np.testing.assert_array_equal(out.proxy, np.arange(B))
    self.assertEqual(list(out.row), [
        *COLUMNS[:2], 'component_only', 'component_only_se', *COLUMNS[11:]])
    self.assertEqual(out.row['component_only'], 5)
    # What the rewards are does not touch the rest.
    for name in COLUMNS[11:-1]:
      self.assertEqual(out.row[name], _evaluation().row[name], name)

  def test_what_rewards_are_asked(self):
    rewards = Rewards(only=np.ones(B))
    out = _monitor(rewards=rewards)(_policy(1), step=7)
    (tokens, mask, prompts, responses, step, references), = rewards.calls
    self.assertIs(tokens, out.tokens)
    self.assertIs(mask, out.mask)
    rows = _monitor().texts(out, B)
    self.assertEqual(prompts, [row['prompt'] for row in rows])
    self.assertEqual(responses, [row['response'] for row in rows])
    self.assertEqual(step, 7)
    self.assertEqual(references, [
        ' '.join(text.split()[:8]) for text in _reviews()[1][:B]])

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
    out = _monitor(sampler=dict(temperature=temperature))(_policy(0), step=0)
    for name in ('kl_k1', 'kl_k2', 'kl_k3', 'sqrt_kl'):
      self.assertAlmostEqual(out.row[name], 0, 6)
    self.assertTrue(out.mask.any())

  def test_perplexity_of_the_chosen_completions(self):
    tokens, mask = _chosen()
    nll = -_logprobs(1, tokens, 1.)[mask]
    np.testing.assert_allclose(
        _evaluation().row['perplexity'], np.exp(nll.mean()), rtol=1e-4)

  def test_no_gold_and_no_rule(self):
    out = _monitor(gold=None, rule=None)(_policy(1), step=3)
    absent = ['gold', 'gold_se', 'rule', 'rule_se']
    self.assertEqual(list(out.row), [k for k in COLUMNS if k not in absent])
    self.assertEqual((out.gold, out.rule), (None, None))
    for name, value in out.row.items():
      self.assertEqual(value, _evaluation().row[name], name)

  def test_splits(self):
    out = _monitor(corpus=_changed(eval_splits=(*('abc' * 4), 'last')))(
        _policy(1), step=0)
    for i, split in enumerate('abc'):
      for name in ('gold', 'proxy'):
        values = getattr(out, name)[i::3]  # of the first eleven prompts
        self.assertAlmostEqual(out.row[f'{name}_split_{split}'], values.mean())
        self.assertAlmostEqual(out.row[f'{name}_split_{split}_se'],
                               values.std(ddof=1) / len(values)**.5)
    self.assertEqual(list(out.row), [*COLUMNS[:15], *(
        f'{score}_split_{split}{se}' for split in 'abc'
        for score in ('gold', 'proxy') for se in ('', '_se')), *COLUMNS[15:]])


class ReferencesTest(absltest.TestCase):

  def _evaluate(self, **changes):
    """A policy that answers with the chosen completions."""
    watch = _monitor(rewards=_rewards({'same': {'kind': 'exact_match'}}),
                     corpus=_changed(**changes))
    with _answering(*_chosen()):
      return watch, watch(_policy(1), step=0)

  def test_chosen_completions(self):
    watch, out = self._evaluate(eval_splits=(*('abc' * 4), 'last'))
    np.testing.assert_array_equal(out.proxy, np.ones(B))
    rows = watch.final_rows(out)
    json.dumps(rows, allow_nan=False)
    self.assertEqual([row['split'] for row in rows], list('abcabcabcab'))
    self.assertEqual([row['component_same'] for row in rows], [1.] * B)
    for row in rows:
      self.assertEqual(row['response'], row['reference'])
      self.assertAlmostEqual(row['gold'], row['reference_gold'], 5)

  def test_right_answers_go_before_chosen_completions(self):
    """And are still not the completions that people wrote."""
    completions = [' '.join(text.split()[:8]) for text in _reviews()[1]]
    watch, out = self._evaluate(eval_references=tuple(
        text if i % 2 else 'other' for i, text in enumerate(completions)))
    np.testing.assert_array_equal(out.proxy, np.arange(B) % 2)
    self.assertEqual([row['reference'] for row in watch.final_rows(out)],
                     completions[:B])


class ValueShiftTest(absltest.TestCase):

  def _heads(self, scale):
    key = jax.random.key(0)
    init = lambda: heads.init_q(key, 8, _config().vocab_size)
    return {'target_q_heads': _random(init, 7, scale), 'value_head': _random(
        lambda: heads.init_scalar(key, 8), 8, scale)}

  def test_columns(self):
    """The KL is of the distribution that has sampled."""
    watch, params = _monitor(value_shift=3.), _policy(0) | self._heads(1.)
    out = watch(params, step=3)
    self.assertEqual([k for k in COLUMNS if k not in out.row], ['perplexity'])
    self.assertGreater((out.tokens != _evaluation().tokens).sum(), B)
    self.assertGreater(out.row['kl_k3'], .5)
    tokens, mask, old_logprobs = _sampled(params, value_shift=3.)
    np.testing.assert_array_equal(tokens, out.tokens)
    d = np.where(mask, old_logprobs - _logprobs(0, tokens, .7), 0)
    np.testing.assert_allclose(out.row['kl_k1'], d.sum(-1).mean(), rtol=1e-4)

  def test_without_advantages_it_is_the_language_model(self):
    out = _monitor(value_shift=3.)(
        _policy(1) | self._heads(0.) | {'q_heads': np.float32(np.nan)}, step=3)
    np.testing.assert_array_equal(out.tokens, _evaluation().tokens)
    for name, value in out.row.items():
      np.testing.assert_allclose(
          value, _evaluation().row[name], rtol=1e-4, atol=1e-5, err_msg=name)

  def test_heads_are_needed(self):
    with self.assertRaisesRegex(ValueError, 'target_q_heads'):
      _monitor(value_shift=3.)(_policy(0), step=0)


class SameTest(absltest.TestCase):

  def _assert_same(self, out, **tolerance):
    expected = _evaluation()
    np.testing.assert_array_equal(out.tokens, expected.tokens)
    np.testing.assert_array_equal(out.mask, expected.mask)
    np.testing.assert_allclose(out.gold, expected.gold, **tolerance)
    self.assertEqual(list(out.row), list(expected.row))
    np.testing.assert_allclose(
        list(out.row.values()), list(expected.row.values()), **tolerance)

  def test_twice_and_by_the_key(self):
    self._assert_same(_monitor()(_policy(1), step=3), rtol=0)
    other = _monitor(key=jax.random.key(5))(_policy(1), step=3)
    self.assertGreater((other.tokens != _evaluation().tokens).sum(), B)

  def test_heads_are_not_read(self):
    nans = {k: np.float32(np.nan) for k in (
        'value_head', 'value_trunk', 'reward_head', 'q_heads',
        'target_q_heads')}
    self._assert_same(_monitor()(_policy(1) | nans, step=3), rtol=0)

  def test_chunks(self):
    """Four of at most three give what two of at most eight give."""
    self._assert_same(_monitor(chunk_size=3)(_policy(1), step=3),
                      rtol=1e-4, atol=1e-5)

  def test_devices(self):
    """A mesh of eight gives what one device gives without a mesh."""
    shard_batch = sharding.shard_batch
    shards = []

    def record(batch, *args):
      placed = shard_batch(batch, *args)
      shards.extend(x.addressable_shards[0].data.shape[0]
                    for x in jax.tree.leaves(placed))
      return placed

    with worlds.devices(8), mock.patch.object(
        sharding, 'shard_batch', record):
      out = _monitor()(_policy(1), step=3)
    self._assert_same(out, rtol=1e-4, atol=1e-5)
    # Eleven prompts are two chunks of eight, in which a device has one; they
    # are sampled, and scored by the policy twice and by the reference; the
    # ensemble scores them in one chunk, for two of the components.
    self.assertEqual(shards, [1] * 2 * 3 + [2] * 2 * 2 + [1] * 2 * 3 * 2)

  def test_parameters_are_placed_once(self):
    with mock.patch.object(sharding, 'shard_params',
                           wraps=sharding.shard_params) as place:
      watch = _monitor()
      self.assertLen(place.call_args_list, 1)
      self.assertIs(place.call_args.args[0], _policy(0))
      for _ in range(2):
        place.reset_mock()
        watch(_policy(1), step=3)
        trees = [call.args[0] for call in place.call_args_list
                 if call.args[0].keys() == _policy(0).keys()]
        self.assertLen(trees, 1)


class ReadTest(parameterized.TestCase):

  def test_texts(self):
    watch, out = _monitor(), _evaluation()
    rows = watch.texts(out, 4)
    json.dumps(rows, allow_nan=False)
    self.assertLen(rows, 4)
    for i, row in enumerate(rows):
      self.assertEqual(row['prompt'], _reviews()[0][i])
      self.assertEqual(row['response'],
                       _corpus().tokenizer.decode(out.tokens[i, 8:]))
      self.assertEqual((row['gold'], row['proxy']),
                       (out.gold[i], out.proxy[i]))
    self.assertLen(watch.texts(out, B + 1), B)

  def test_final_rows(self):
    watch, out = _monitor(), _evaluation()
    rows = watch.final_rows(out)
    json.dumps(rows, allow_nan=False)
    self.assertLen(rows, B)
    gold = _gold(*_chosen())
    for i, row in enumerate(rows):
      # There is room for eight tokens, EOS included.
      self.assertEqual(
          row['reference'], ' '.join(_reviews()[1][i].split()[:8]))
      self.assertAlmostEqual(row['reference_gold'], gold[i], 5)
      self.assertEqual(row['rule'], out.rule[i])
      self.assertEqual(row['component_long'], out.components['long'][i])
      self.assertIsNone(row['split'])
      self.assertAlmostEqual(
          row['ensemble_variance'], out.members[:, i].var(), 5)
      self.assertLessEqual(
          set(watch.texts(out, B)[i].items()), set(row.items()))
    self.assertAlmostEqual(
        np.mean([row['length'] for row in rows]), out.row['length'])
    for name in ('kl_k1', 'ensemble_variance'):
      self.assertAlmostEqual(
          np.mean([row[name] for row in rows]), out.row[name], 5)

  @parameterized.parameters(
      (dict(gold=None), ('gold', 'reference_gold'), ('gold', 'gold_se')),
      (dict(rule=None), ('rule',), ('rule', 'rule_se')),
      (dict(eval_demonstrations=None), ('reference', 'reference_gold'),
       ('perplexity',)))
  def test_what_is_absent(self, changes, fields, absent):
    if 'eval_demonstrations' in changes:
      changes = dict(corpus=_changed(**changes))
    watch = _monitor(**changes)
    out = watch(_policy(1), step=3)
    self.assertEqual(
        list(out.row), [k for k in COLUMNS if k not in absent])
    rows = watch.final_rows(out)
    json.dumps(rows, allow_nan=False)
    for name, value in rows[0].items():
      self.assertEqual(value is None, name in (*fields, 'split'), name)
    row, = watch.texts(out, 1)
    self.assertEqual(list(row), ['prompt', 'response', 'gold', 'proxy'])
    self.assertEqual(row['gold'], rows[0]['gold'])


class ErrorsTest(parameterized.TestCase):

  def _message(self, **changes):
    with self.assertRaises(errors.RewardError) as caught:
      _monitor(**changes)(_policy(1), step=20)
    self.assertNotIn('\n', str(caught.exception))
    return str(caught.exception)

  def test_scores_that_are_not_finite(self):
    at_three = np.where(np.arange(B) == 3, np.nan, 1)
    for name, source in (
        ('gold', 'the gold reward model'), ('rule', 'the rule')):
      self.assertIn(
          f'{source} gave nan in row 3 (response at step 20; 1 of 11 are not '
          'finite)', self._message(**{name: lambda *unused: at_three}))

  def test_too_many_scores(self):
    self.assertIn('the gold reward model gave scores of shape (11, 1) for 11 '
                  'responses (response at step 20)',
                  self._message(gold=lambda *unused: np.zeros((B, 1))))

  def test_a_reference_without_a_score(self):
    gold = lambda tokens, mask: np.where(
        (tokens == _chosen()[0]).all(axis=-1), np.inf, 0)
    watch = _monitor(gold=gold)
    out = watch(_policy(1), step=0)
    with self.assertRaisesRegex(
        errors.RewardError, 'gold reward model gave inf in row 0 '
        r'\(chosen completion; 11 of 11'):
      watch.final_rows(out)

  def test_a_member_that_the_aggregate_hides(self):
    """The minimum never shows that a member has run away upwards."""
    members = _members(2, E)
    bias = np.float32([0, 1, np.inf])
    params = members | {'head': members['head'] | {'bias': bias}}
    self.assertIn(
        'member 2 of the reward ensemble gave inf in row 0 (step 20; 11 of',
        self._message(rewards=_rewards(NODES, params=params)))

  def test_a_component(self):
    nodes = {'votes': {'kind': 'proxy', 'range': (1e3, 1e4)}}
    self.assertRegex(
        self._message(rewards=_rewards(nodes)),
        r"component 'votes' \(proxy\) gave .* at step 20, row 0, outside")

  @parameterized.parameters(
      (dict(num_prompts=PROMPTS + 1),
       r'num_prompts must be in \[1, 13\].*got 14'),
      (dict(num_prompts=0), r'num_prompts must be in \[1, 13\].*got 0'),
      (dict(chunk_size=0), 'chunk_size must be >= 1, got 0'))
  def test_fields_out_of_range(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      _setting(**changes)


if __name__ == '__main__':
  absltest.main()
