"""Tests for rlhf_jax.objectives.sft."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import sft


def _mean(out):
  return jnp.sum(out.loss * out.weight) / jnp.sum(out.weight)


class SftLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 1.1] tokens: (3.5 + 1) / 5; sequences: (3.5 + 1) / 2.
      ('token', .9, (2, 1, 3)), ('sequence', 2.25, (2, 1)))
  def test_by_hand(self, aggregate, expected, unit):
    logprobs = np.float32([[[-.5, -1, -2]], [[-.25, -.75, np.nan]]])
    mask = np.array([[[True] * 3], [[True, True, False]]])
    out = self.variant(
        lambda x, m: sft.sft_loss(x, m, aggregate=aggregate))(logprobs, mask)
    chex.assert_shape([out.loss, out.weight], unit)
    self.assertAlmostEqual(float(_mean(out)), expected, 6)

  @parameterized.parameters('token', 'sequence')
  def test_twin(self, aggregate):
    rng = np.random.default_rng(0)
    logprobs = -rng.exponential(size=(3, 2, 4)).astype(np.float32)
    mask = rng.random((3, 2, 4)) < .6
    mask[0, 0] = False
    count = mask.sum() if aggregate == 'token' else mask.any(-1).sum()
    expected = lambda x: -np.sum(x[mask]) / count
    value, grad = jax.value_and_grad(
        lambda x: _mean(sft.sft_loss(x, mask, aggregate=aggregate)))(logprobs)
    self.assertAlmostEqual(float(value), expected(logprobs), 5)
    np.testing.assert_allclose(
        grad, twin.gradient(expected, logprobs), atol=1e-6)

  def test_all_masked(self):
    x = jnp.full((2, 1, 3), jnp.nan)
    for aggregate in ('token', 'sequence'):
      out = sft.sft_loss(x, jnp.zeros((2, 1, 3), bool), aggregate=aggregate)
      np.testing.assert_array_equal(out.loss, 0)
      np.testing.assert_array_equal(out.weight, 0)

  def test_objective_binds(self):
    x = -jnp.ones((1, 1, 3))
    batch = types.Batch(tokens=jnp.zeros((1, 1, 3), int), mask=x < 0)
    out = sft.objective(types.PolicyOutput(x), batch, aggregate='sequence')
    np.testing.assert_array_equal(out.loss, [[3]])

  def test_rejects(self):
    x = jnp.zeros((1, 1, 3))
    with self.assertRaisesRegex(ValueError, "aggregate.*'mean'"):
      sft.sft_loss(x, x == 0, aggregate='mean')
    with self.assertRaises(AssertionError):
      sft.sft_loss(x[0], x[0] == 0)
    with self.assertRaises(AssertionError):
      sft.sft_loss(x, x)


if __name__ == '__main__':
  absltest.main()
