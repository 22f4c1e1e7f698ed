"""Tests for rlhf_jax.annotators.arithmetic."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.ops import advantages
from rlhf_jax.ops import stops

B, K, T = 2, 3, 5


@functools.cache
def _batch():
  rng = np.random.default_rng(0)
  mask = np.arange(T) < rng.integers(2, T + 1, size=(B, K, 1))
  mask[..., 0] = False
  return types.Batch(
      tokens=jnp.asarray(rng.integers(0, 9, (B, K, T))),
      mask=jnp.asarray(mask), scores=jnp.array([[1., 4., 4.], [3., 0., -6.]]))


class ArithmeticTest(parameterized.TestCase):

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

  def test_best_first(self):
    """Every field moves; equal scores stay in order, the missing come last."""
    scores = jnp.array([[1., 4., 4.], [3., 9., -6.]])
    mask = jnp.ones((B, K, T), bool).at[1, 1].set(False)
    ids = jnp.arange(B * K).reshape(B, K)
    wide = jnp.broadcast_to(ids[..., None], (B, K, T))
    out = arithmetic.best_first(types.Batch(
        tokens=wide, mask=mask, scores=scores, old_logprobs=wide,
        member_scores=jnp.stack([ids, 10 * ids]), advantages=ids,
        prompt_values=jnp.arange(B)))
    order = np.array([[1, 2, 0], [3, 5, 4]])
    np.testing.assert_array_equal(out.scores, [[4, 4, 1], [3, -6, 9]])
    np.testing.assert_array_equal(out.advantages, order)
    np.testing.assert_array_equal(out.tokens[..., 0], order)
    np.testing.assert_array_equal(out.old_logprobs[..., -1], order)
    np.testing.assert_array_equal(out.member_scores, [order, 10 * order])
    np.testing.assert_array_equal(out.prompt_values, [0, 1])
    np.testing.assert_array_equal(
        out.mask.any(-1), [[1, 1, 1], [1, 1, 0]])

  def test_gae_and_whiten(self):
    rng = np.random.default_rng(1)
    normal = lambda: jnp.asarray(rng.normal(size=(B, K, T)), jnp.float32)
    batch = _batch().replace(rewards=normal(), old_values=normal())
    out = arithmetic.gae(batch, discount=.9, gae_lambda=.8)
    advantage, returns = advantages.gae(
        batch.rewards, batch.old_values, batch.mask, discount=.9,
        gae_lambda=.8)
    np.testing.assert_array_equal(out.advantages, advantage)
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
        inside.mean(), np.asarray(advantage)[np.asarray(batch.mask)].mean(), 5)

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
    scores = np.asarray(arithmetic.standardize_scores(batch).scores)
    self.assertAlmostEqual(scores.mean(), 0, 6)
    self.assertAlmostEqual(scores.std(ddof=1), 1, 6)
    part = batch.replace(
        mask=batch.mask.at[0, 0].set(False),
        scores=batch.scores.at[0, 0].set(jnp.nan))
    scores = np.asarray(arithmetic.standardize_scores(part).scores).ravel()[1:]
    self.assertAlmostEqual(scores.mean(), 0, 6)
    self.assertAlmostEqual(scores.std(ddof=1), 1, 6)

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

  def test_a_stop_string_is_an_end(self):
    tokens = jnp.array([[[2, 3, 4], [2, 4, 3], [2, 3, 1]]])
    batch = types.Batch(tokens=tokens, mask=jnp.ones((1, 3, 3), bool),
                        scores=jnp.ones((1, 3)))
    pieces = [b'', b'', b'a', b'b', b'c']
    out = arithmetic.missing_eos(
        batch, eos_id=1, value=0., stops=stops.table(['bc'], pieces, pieces))
    np.testing.assert_array_equal(out.scores, [[1, 0, 1]])

  def test_missing_eos_takes_one_rule(self):
    for kwargs in ({}, dict(penalty=1., value=-1.)):
      with self.assertRaisesRegex(ValueError, 'either penalty or value'):
        arithmetic.missing_eos(_batch(), eos_id=1, **kwargs)
    with self.assertRaisesRegex(ValueError, 'penalty must be >= 0, got -1'):
      arithmetic.missing_eos(_batch(), eos_id=1, penalty=-1.)

  @parameterized.parameters(
      ('leave_one_out', {}, 'scores'), ('group_normalize', {}, 'scores'),
      ('keep_best', {}, 'scores'), ('best_first', {}, 'scores'),
      ('standardize_scores', {}, 'scores'),
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


if __name__ == '__main__':
  absltest.main()
