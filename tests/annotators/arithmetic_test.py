"""Tests for rlhf_jax.annotate."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import from_models
from rlhf_jax.annotators import running
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import advantages
from rlhf_jax.rewards import models as reward_models

V, E, B, K, T = 9, 3, 2, 3, 5
CONFIG = transformer.make_config(
    'llama', vocab_size=V, hidden_size=8, num_layers=1, num_heads=2,
    intermediate_size=12)


@functools.cache
def _batch():
  rng = np.random.default_rng(0)
  mask = np.arange(T) < rng.integers(2, T + 1, size=(B, K, 1))
  mask[..., 0] = False
  logprobs = lambda: jnp.asarray(-rng.random((B, K, T)), jnp.float32)
  return types.Batch(
      tokens=jnp.asarray(rng.integers(0, V, (B, K, T))),
      mask=jnp.asarray(mask), scores=jnp.array([[1., 4., 4.], [3., 0., -6.]]),
      old_logprobs=logprobs(), ref_logprobs=logprobs())


@functools.cache
def _ensemble():
  return jax.jit(reward_models.init_members, static_argnums=0)(
      CONFIG, jax.random.split(jax.random.key(0), E))


_score = jax.jit(reward_models.score, static_argnums=0)
_annotate_scores = jax.jit(from_models.scores, static_argnums=1, static_argnames=(
    'kind', 'uncertainty_coef', 'member'))


class AnnotateTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(), lambda x: x.mean(0)),
      (dict(kind='worst_case'), lambda x: x.min(0)),
      (dict(kind='uncertainty_weighted', uncertainty_coef=.3),
       lambda x: x.mean(0) - .3 * x.var(0)),
      (dict(kind='single', member=2), lambda x: x[2]))
  def test_scores(self, kwargs, combine):
    batch = _annotate_scores(
        _batch().replace(scores=None), CONFIG, _ensemble(), **kwargs)
    members = np.stack([
        _score(CONFIG, jax.tree.map(lambda x, i=i: x[i], _ensemble()),
               batch.tokens, batch.mask) for i in range(E)])
    self.assertEqual(batch.member_scores.shape, (E, B, K))
    np.testing.assert_allclose(batch.member_scores, members, atol=1e-5)
    np.testing.assert_allclose(batch.scores, combine(members), atol=1e-5)
    np.testing.assert_array_equal(batch.tokens, _batch().tokens)

  def test_members_are_standardised_before_they_are_combined(self):
    batch = _batch()
    plain = _annotate_scores(batch.replace(scores=None), CONFIG, _ensemble())
    scale = {'mean': jnp.array([5., -1., 0.]), 'std': jnp.array([2., .5, 0.])}
    out = _annotate_scores(batch, CONFIG, _ensemble(), scale=scale, weight=.5,
                           kind='worst_case')
    members = np.stack([(plain.member_scores[0] - 5) / 2,
                        (plain.member_scores[1] + 1) / .5,
                        plain.member_scores[2]])  # a deviation of 0
    np.testing.assert_allclose(out.member_scores, members, rtol=1e-5)
    # Half of the minimum, on top of the scores that were there.
    np.testing.assert_allclose(
        out.scores, batch.scores + .5 * members.min(0), rtol=1e-5)
    with self.assertRaises(AssertionError):
      from_models.standardize_members(
          plain.member_scores, {'mean': jnp.zeros(1), 'std': jnp.ones(1)})

  @parameterized.parameters('ref_logprobs', 'old_logprobs')
  def test_logprobs(self, name):
    params = jax.jit(transformer.init, static_argnums=0)(
        CONFIG, jax.random.key(0))
    fill = getattr(annotate, name)
    read = lambda *args, **kwargs: getattr(fill(*args, **kwargs), name)
    one = read(_batch(), CONFIG, params)
    np.testing.assert_allclose(
        one, policy.forward(CONFIG, params, _batch()).logprobs, atol=1e-6)
    half = read(_batch(), CONFIG, params, temperature=.5)
    np.testing.assert_allclose(half, policy.forward(
        CONFIG, params, _batch(), temperature=.5).logprobs, atol=1e-6)
    self.assertGreater(np.abs(one - half).max(), .1)
    grads = jax.grad(lambda p: read(_batch(), CONFIG, p).sum())(params)
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0)

  def test_leave_one_out(self):
    np.testing.assert_allclose(
        arithmetic.leave_one_out(_batch()).advantages,
        [[1 - 4, 4 - 2.5, 4 - 2.5], [3 + 3, 0 + 1.5, -6 - 1.5]], rtol=1e-6)

  def test_keep_best_takes_the_first_on_ties(self):
    batch = _batch()
    out = arithmetic.keep_best(batch)
    for b, best in ((0, 1), (1, 0)):
      for k in range(K):
        np.testing.assert_array_equal(
            out.mask[b, k], batch.mask[b, k] if k == best else False)
    np.testing.assert_array_equal(out.tokens, batch.tokens)
    self.assertEqual(out.mask.dtype, bool)

  def test_gae_and_whiten(self):
    rng = np.random.default_rng(1)
    normal = lambda: jnp.asarray(rng.normal(size=(B, K, T)), jnp.float32)
    batch = _batch().replace(rewards=normal(), old_values=normal())
    out = arithmetic.gae(batch, discount=.9, gae_lambda=.8)
    found, returns = advantages.gae(
        batch.rewards, batch.old_values, batch.mask, discount=.9,
        gae_lambda=.8)
    np.testing.assert_array_equal(out.advantages, found)
    np.testing.assert_array_equal(out.returns, returns)
    white = arithmetic.whiten(out)
    inside = np.asarray(white.advantages)[np.asarray(batch.mask)]
    self.assertAlmostEqual(inside.mean(), 0, 5)
    self.assertAlmostEqual(inside.std(), 1, 4)
    np.testing.assert_array_equal(white.returns, returns)  # trap 8
    inside = np.asarray(arithmetic.whiten(
        out, shift_mean=False, ddof=1).advantages)[np.asarray(batch.mask)]
    self.assertAlmostEqual(inside.std(ddof=1), 1, 4)
    self.assertAlmostEqual(
        inside.mean(), np.asarray(found)[np.asarray(batch.mask)].mean(), 5)

  def test_old_values_are_the_heads_and_detached(self):
    params = jax.jit(transformer.init, static_argnums=0)(
        CONFIG, jax.random.key(0))
    params['value_head'] = heads.init_scalar(jax.random.key(1), 8)
    values = lambda p: from_models.old_values(_batch(), CONFIG, p).old_values
    np.testing.assert_allclose(values(params), policy.forward(
        CONFIG, params, _batch()).values, atol=1e-6)
    for leaf in jax.tree.leaves(jax.grad(lambda p: values(p).sum())(params)):
      np.testing.assert_array_equal(leaf, 0)
    # A trunk of its own, and of another shape: rotations are a part of it.
    other = dataclasses.replace(CONFIG, rope_theta=10.)
    params['value_trunk'] = heads.trunk(params)
    np.testing.assert_allclose(
        from_models.old_values(_batch(), CONFIG, params, value_config=other
                            ).old_values,
        policy.forward(other, params, _batch()).values, atol=1e-6)

  def test_group_normalize(self):
    out = arithmetic.group_normalize(_batch(), scale=False)
    np.testing.assert_allclose(
        out.advantages, [[-2, 1, 1], [4, 1, -5]], rtol=1e-6)
    # Deviations with ddof 1: sqrt(6 / 2), sqrt(42 / 2).
    np.testing.assert_allclose(
        arithmetic.group_normalize(_batch(), epsilon=0.).advantages,
        out.advantages / np.sqrt([[3], [21]]), rtol=1e-6)

  def test_prompt_advantages_and_their_filter(self):
    # [Ex 9.9] keeps what is above 0, and not what equals it.
    batch = _batch().replace(prompt_values=jnp.array([1., -1.]))
    batch = batch.replace(mask=jnp.ones((B, K, T), bool))
    out = arithmetic.prompt_advantages(batch)
    np.testing.assert_array_equal(out.advantages, [[0, 3, 3], [4, 1, -5]])
    np.testing.assert_array_equal(
        arithmetic.keep_positive(out).mask[..., 0],
        [[False, True, True], [True, True, False]])


  def test_missing_samples_count_in_no_baseline(self):
    batch = _batch()
    mask = np.ones((B, K, T), bool)
    mask[0, 2] = mask[1, :2] = False
    scores = jnp.array([[1., 2., jnp.nan], [9., jnp.nan, 3.]])
    batch = batch.replace(mask=jnp.asarray(mask), scores=scores)
    np.testing.assert_array_equal(
        arithmetic.leave_one_out(batch).advantages, [[-1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(
        arithmetic.group_normalize(batch, scale=False).advantages,
        [[-.5, .5, 0], [0, 0, 0]])
    np.testing.assert_array_equal(
        arithmetic.keep_best(batch).mask.any(-1),
        [[False, True, False], [False, False, True]])

  def test_standardize_scores(self):
    batch = _batch().replace(mask=jnp.ones((B, K, T), bool))
    found = np.asarray(arithmetic.standardize_scores(batch).scores)
    self.assertAlmostEqual(found.mean(), 0, 6)
    self.assertAlmostEqual(found.std(ddof=1), 1, 6)
    part = batch.replace(
        mask=batch.mask.at[0, 0].set(False),
        scores=batch.scores.at[0, 0].set(jnp.nan))
    found = np.asarray(arithmetic.standardize_scores(part).scores).ravel()[1:]
    self.assertAlmostEqual(found.mean(), 0, 6)
    self.assertAlmostEqual(found.std(ddof=1), 1, 6)

  def test_prompt_values_read_the_prompt_alone(self):
    params = jax.jit(transformer.init, static_argnums=0)(
        CONFIG, jax.random.key(0))
    head = heads.init_prompt_value(jax.random.key(1), 8)
    batch = _batch()
    inside = (np.arange(T) >= 2) & (np.arange(T) < T - 1)  # then padding
    mask = np.broadcast_to(inside, (B, K, T)).copy()
    mask[1, 0] = False  # the prompt is then read from another sample
    batch = batch.replace(mask=jnp.asarray(mask), tokens=batch.tokens.at[
        :, :, :2].set(batch.tokens[:, :1, :2]))
    fn = lambda b, p, h: from_models.prompt_values(
        b, CONFIG, p, h, max_value=5.).prompt_values
    values = fn(batch, params, head)
    hidden = transformer.hidden_states(CONFIG, params, batch.tokens[:, 1, :2])
    np.testing.assert_allclose(values, heads.prompt_value(
        head, hidden, np.ones((B, 2), bool), max_value=5.), rtol=1e-5)
    other = batch.replace(tokens=batch.tokens.at[:, :, 2:].set(0))
    np.testing.assert_allclose(fn(other, params, head), values, rtol=1e-6)
    grads = jax.grad(lambda *args: fn(batch, *args).sum(), (0, 1))(
        params, head)
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0)

  def test_clip_scores(self):
    np.testing.assert_array_equal(
        arithmetic.clip_scores(_batch(), limit=3.).scores,
        [[1, 3, 3], [3, 0, -3]])
    with self.assertRaisesRegex(ValueError, 'limit must be > 0, got 0'):
      arithmetic.clip_scores(_batch(), limit=0)

  @parameterized.parameters(
      (dict(penalty=1.5), [[1, 2.5, jnp.nan], [1.5, 0, -6]]),
      (dict(value=-1.), [[1, -1, jnp.nan], [-1, 0, -6]]))
  def test_missing_eos(self, kwargs, expected):
    # Finished by its last token, not, missing; by padding alone and so not,
    # by the first token, twice.
    tokens = [[[3, 5, 1], [1, 1, 5], [1, 1, 1]],
              [[3, 5, 1], [3, 1, 1], [3, 1, 1]]]
    mask = [[[0, 1, 1], [0, 0, 1], [0, 0, 0]],
            [[0, 1, 0], [0, 1, 0], [0, 1, 1]]]
    batch = types.Batch(
        tokens=jnp.array(tokens), mask=jnp.array(mask, bool),
        scores=jnp.array([[1, 4, jnp.nan], [3, 0, -6.]]))
    out = arithmetic.missing_eos(batch, eos_id=1, **kwargs)
    np.testing.assert_array_equal(out.scores, expected)

  def test_missing_eos_takes_one_rule(self):
    for kwargs in ({}, dict(penalty=1., value=-1.)):
      with self.assertRaisesRegex(ValueError, 'either penalty or value'):
        arithmetic.missing_eos(_batch(), eos_id=1, **kwargs)
    with self.assertRaisesRegex(ValueError, 'penalty must be >= 0, got -1'):
      arithmetic.missing_eos(_batch(), eos_id=1, penalty=-1.)

  @parameterized.parameters(
      ('leave_one_out', {}, 'scores'), ('group_normalize', {}, 'scores'),
      ('keep_best', {}, 'scores'), ('standardize_scores', {}, 'scores'),
      ('clip_scores', {'limit': 1.}, 'scores'),
      ('missing_eos', {'eos_id': 1, 'value': 0.}, 'scores'),
      ('gae', {}, 'rewards'), ('gae', {}, 'old_values'),
      ('whiten', {}, 'advantages'), ('keep_positive', {}, 'advantages'),
      ('prompt_advantages', {}, 'prompt_values'))
  def test_missing_fields_are_named(self, name, kwargs, field):
    filled = jnp.zeros((B, K, T))
    batch = _batch().replace(
        rewards=filled, old_values=filled, advantages=filled[..., 0],
        prompt_values=filled[:, 0, 0])
    with self.assertRaisesRegex(ValueError, f'batch.{field} is None'):
      arithmetic.ARITHMETIC[name](batch.replace(**{field: None}), **kwargs)

  def test_wrong_ranks(self):
    batch = _batch().replace(
        advantages=jnp.zeros((B, K, T)), prompt_values=jnp.zeros((B, K)))
    for fn in (arithmetic.keep_positive, arithmetic.prompt_advantages):
      with self.assertRaises(AssertionError):
        fn(batch)
    with self.assertRaisesRegex(ValueError, 'value_head'):
      from_models.old_values(batch, CONFIG, {})


class ChainTest(absltest.TestCase):

  def test_runs_in_order_with_models_and_arguments(self):
    def double(batch, state, frozen, *, times):
      return batch.replace(
          scores=times * batch.scores + state.params + frozen)
    nodes = [{'name': 'double', 'times': 2}, {'name': 'leave_one_out'},
             {'name': 'keep_best'}]
    state = types.TrainState(step=0, params=10., opt_state=None, key=None)
    out, after = chain_lib.chain(nodes, {'double': double})(_batch(), state, 1.)
    expected = arithmetic.keep_best(arithmetic.leave_one_out(
        _batch().replace(scores=2 * _batch().scores + 11)))
    np.testing.assert_array_equal(out.scores, expected.scores)
    np.testing.assert_array_equal(out.advantages, expected.advantages)
    np.testing.assert_array_equal(out.mask, expected.mask)
    self.assertIs(after, state)

  def test_the_state_goes_from_node_to_node(self):
    nodes = [{'name': 'clip_scores', 'limit': 3.},
             {'name': 'scale_scores', 'kind': 'first'},
             {'name': 'score'}, {'name': 'moving_average', 'decay': .5}]
    score = lambda batch, state, frozen: batch.replace(
        scores=batch.scores + state.statistics['score_moments'].count)
    state = types.TrainState(step=0, params=None, opt_state=None, key=None,
                             statistics=running.init(nodes))
    out, after = chain_lib.chain(nodes, {'score': score})(
        _batch(), state, None)
    clipped = np.array([[1, 3, 3], [3, 0, -3]])
    expected = clipped / clipped.std(ddof=1) + 6
    np.testing.assert_allclose(out.scores, expected, rtol=1e-6)
    np.testing.assert_allclose(out.advantages, expected, rtol=1e-6)
    np.testing.assert_allclose(
        after.statistics['baseline']['mean'], expected.mean(), rtol=1e-6)
    self.assertEqual(state.statistics['baseline']['mean'], 0)  # as it was

  def test_a_bound_model_comes_before_ours(self):
    mine = lambda batch, state, frozen: batch.replace(scores=None)
    chain = chain_lib.chain([{'name': 'noise'}], {'noise': mine})
    self.assertIsNone(chain(_batch(), None, None)[0].scores)

  def test_names_are_of_one_kind(self):
    self.assertNoCommonElements(arithmetic.ARITHMETIC, running.RUNNING)

  def test_unknown_name(self):
    with self.assertRaisesRegex(ValueError, "'gaee'.*gae, .*noise, .*scorer"):
      chain_lib.chain([{'name': 'gaee'}], {'scorer': None})
    with self.assertRaisesRegex(ValueError, "'scores'.*`models`"):
      chain_lib.chain([{'name': 'scores'}], {})

  def test_unknown_and_missing_arguments(self):
    with self.assertRaisesRegex(ValueError, "gae: .*'lam'"):
      chain_lib.chain([{'name': 'gae', 'lam': .9}], {})
    with self.assertRaisesRegex(ValueError, "kl_scores: .*'kl_coef'"):
      chain_lib.chain([{'name': 'kl_scores'}], {})
    with self.assertRaisesRegex(ValueError, "noise: .*'std'"):
      chain_lib.chain([{'name': 'noise', 'sigma': 1., 'std': 1.}], {})


if __name__ == '__main__':
  absltest.main()
