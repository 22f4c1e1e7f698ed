"""Tests for rlhf_jax.objectives.sft."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.objectives import sft

CONTRACT = {'settings': [
    {}, {'aggregate': 'sequence'}, {'aggregate': 'sequence_mean'}]}


@functools.partial(jax.jit, static_argnums=2)
def _mean(logprobs, mask, aggregate):
  return twin.mean(sft.sft_loss(logprobs, mask, aggregate=aggregate))


def _twin(logprobs, mask, aggregate):
  """Response by response; what the train step minimises."""
  sums, lengths = [], []
  for i in np.ndindex(mask.shape[:2]):
    if mask[i].any():
      sums.append(sum(x for x, m in zip(logprobs[i], mask[i]) if m))
      lengths.append(sum(mask[i]))
  if aggregate == 'token':
    return -np.sum(sums) / np.sum(lengths)
  if aggregate == 'sequence_mean':
    sums = np.divide(sums, lengths)
  return -np.mean(sums)


def _inputs(seed):
  rng = np.random.default_rng(seed)
  logprobs = -rng.exponential(size=(3, 2, 4)).astype(np.float32)
  mask = rng.random((3, 2, 4)) < .6
  mask[0, 0], mask[0, 1, 0] = False, True
  return logprobs, mask


class SftLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 1.1] tokens: (3.5 + 1) / 5; sequences: (3.5 + 1) / 2, and of the
      # means (3.5 / 3 + 1 / 2) / 2.
      ('token', .9, (2, 1, 3)), ('sequence', 2.25, (2, 1)),
      ('sequence_mean', .833333, (2, 1)))
  def test_by_hand(self, aggregate, expected, unit):
    logprobs = np.float32([[[-.5, -1, -2]], [[-.25, -.75, np.nan]]])
    mask = np.array([[[True] * 3], [[True, True, False]]])
    out = self.variant(
        lambda x, m: sft.sft_loss(x, m, aggregate=aggregate))(logprobs, mask)
    chex.assert_shape([out.loss, out.weight], unit)
    self.assertAlmostEqual(float(twin.mean(out)), expected, 6)

  def test_tokens_are_the_default(self):
    logprobs, mask = _inputs(0)
    chex.assert_trees_all_equal(
        sft.sft_loss(logprobs, mask),
        sft.sft_loss(logprobs, mask, aggregate='token'))

  @parameterized.parameters(*sft.AGGREGATES)
  @twin.few
  @twin.randomised
  def test_twin(self, aggregate, seed):
    logprobs, mask = _inputs(seed)
    twin.assert_equal(lambda x: _mean(x, mask, aggregate),
                      lambda x: _twin(x, mask, aggregate), logprobs)

  def test_sum_is_the_sequence_logprob(self):
    # objectives.md, section 16: B * L_sum = -sum_b LP_b.
    logprobs, mask = _inputs(1)
    out = sft.sft_loss(logprobs, mask, aggregate='sequence')
    np.testing.assert_allclose(
        out.loss.sum(), -logprobs[mask].sum(), rtol=1e-6)
    np.testing.assert_array_equal(out.weight, mask.any(-1))

  @parameterized.parameters(*sft.AGGREGATES)
  def test_pad_contents_do_not_matter(self, aggregate):
    logprobs, mask = _inputs(2)
    logprobs[~mask] = np.arange((~mask).sum()) - 5
    logprobs[0, 0, 0] = np.nan
    permuted = logprobs.copy()
    permuted[~mask] = np.random.default_rng(3).permutation(logprobs[~mask])
    step = jax.value_and_grad(lambda x: _mean(x, mask, aggregate))
    value, grad = step(logprobs)
    chex.assert_trees_all_equal(step(permuted), (value, grad))
    self.assertTrue(np.isfinite(value))
    np.testing.assert_array_equal(grad[~mask], 0)

  def test_best_of_k_by_hand(self):
    # [Ex 7.3] RAFT: the best of [1, 4, 4] is 1, the first on ties, of
    # [0, -1, -2] it is 0; NLL (4 + 2) / 2 = 3, split over two tokens each.
    total = np.float32([[-5, -4, -9], [-2, -7, -8]])
    logprobs = np.stack([.25 * total, .75 * total], -1)
    batch = arithmetic.keep_best(types.Batch(
        tokens=np.zeros((2, 3, 2), int), mask=np.ones((2, 3, 2), bool),
        scores=jnp.array([[1., 4, 4], [0, -1, -2]])))
    out = sft.objective(types.PolicyOutput(logprobs), batch,
                        aggregate='sequence')
    np.testing.assert_array_equal(out.weight, [[0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(twin.mean(out), 3., rtol=1e-6)

  def test_one_sample_is_its_own_best(self):
    # K = 1: RAFT is SFT on one's own samples.
    logprobs, mask = _inputs(4)
    batch = types.Batch(tokens=np.zeros((3, 1, 4), int), mask=mask[:, :1],
                        scores=jnp.zeros((3, 1)))
    chex.assert_trees_all_equal(
        sft.objective(types.PolicyOutput(logprobs[:, :1]),
                      arithmetic.keep_best(batch)),
        sft.sft_loss(logprobs[:, :1], mask[:, :1]))

  @parameterized.parameters(*sft.AGGREGATES)
  def test_all_masked(self, aggregate):
    x = jnp.full((2, 1, 3), jnp.nan)
    loss = lambda x: sft.sft_loss(
        x, jnp.zeros((2, 1, 3), bool), aggregate=aggregate)
    np.testing.assert_array_equal(loss(x).loss, 0)
    np.testing.assert_array_equal(loss(x).weight, 0)
    np.testing.assert_array_equal(jax.grad(lambda x: loss(x).loss.sum())(x), 0)

  def test_accumulates_in_float32(self):
    # bfloat16 has no 601.
    x = -jnp.ones((1, 1, 601), jnp.bfloat16)
    out = sft.sft_loss(x, x < 0, aggregate='sequence')
    np.testing.assert_array_equal(out.loss, [[601]])
    self.assertEqual(sft.sft_loss(x, x < 0).loss.dtype, jnp.float32)

  def test_objective_binds(self):
    x = -jnp.ones((1, 1, 3))
    batch = types.Batch(tokens=jnp.zeros((1, 1, 3), int), mask=x < 0)
    out = sft.objective(types.PolicyOutput(x), batch, aggregate='sequence')
    np.testing.assert_array_equal(out.loss, [[3]])
    with self.assertRaisesRegex(ValueError, 'logprobs'):
      sft.objective(types.PolicyOutput(), batch)

  def test_rejects(self):
    x = jnp.zeros((1, 1, 3))
    with self.assertRaisesRegex(ValueError, "aggregate.*'mean'"):
      sft.sft_loss(x, x == 0, aggregate='mean')
    for args in ((x[0], x[0] == 0), (x, x), (x, x[..., 1:] == 0),
                 (x.astype(int), x == 0)):
      with self.assertRaises(AssertionError):
        sft.sft_loss(*args)


if __name__ == '__main__':
  absltest.main()
