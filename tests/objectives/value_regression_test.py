"""Tests for rlhf_jax.objectives.value_regression."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import value_regression

CONTRACT = {'settings': [{}]}


@jax.jit
def _mean(values, targets):
  return twin.mean(value_regression.value_regression_loss(values, targets))


class ValueRegressionTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # (1 - 3)^2 = 4 and (.5 - 0)^2 = .25; the gradient is twice the error.
    values, targets = np.float32([[1, .5]]), np.float32([[3, 0]])
    out = self.variant(value_regression.value_regression_loss)(values, targets)
    np.testing.assert_array_equal(out.loss, [[4, .25]])
    np.testing.assert_array_equal(out.weight, [[1, 1]])
    np.testing.assert_array_equal(
        out.metrics['regression/absolute_error'], [[2, .5]])

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    values, targets = np.random.default_rng(seed).normal(
        size=(2, 3, 2)).astype(np.float32)
    errors = lambda x: [
        (x[i] - targets[i])**2 for i in np.ndindex(targets.shape)]
    twin.assert_equal(lambda x: _mean(x, targets),
                      lambda x: np.mean(errors(x)), values)

  def test_targets_have_no_gradient(self):
    values, targets = np.float32([[1, .5]]), np.float32([[3, 0]])
    np.testing.assert_array_equal(
        jax.grad(_mean, 1)(values, targets), [[0, 0]])

  def test_computes_in_float32(self):
    # 256 - .5 squared; bfloat16 has neither 255.5 nor 65280.25.
    out = value_regression.value_regression_loss(
        *jnp.array([[[256.]], [[.5]]], jnp.bfloat16))
    self.assertEqual(out.loss.dtype, jnp.float32)
    np.testing.assert_array_equal(out.loss, [[65280.25]])
    targets = jnp.array([[.5]], jnp.bfloat16)
    np.testing.assert_array_equal(value_regression.value_regression_loss(
        jnp.array([[256.]]), targets).loss, [[65280.25]])

  def test_objective_binds(self):
    mask = np.ones((1, 2, 3), bool)
    mask[0, 1] = False
    batch = types.Batch(tokens=np.zeros((1, 2, 3), int), mask=mask,
                        targets=np.float32([[3, np.nan]]))
    loss = lambda x: value_regression.objective(
        types.PolicyOutput(scores=x), batch)
    scores = jnp.array([[1., jnp.nan]])
    np.testing.assert_array_equal(loss(scores).loss, [[4, 0]])
    np.testing.assert_array_equal(loss(scores).weight, [[1, 0]])
    with self.assertRaisesRegex(ValueError, 'targets'):
      value_regression.objective(
          types.PolicyOutput(scores=scores), batch.replace(targets=None))
    with self.assertRaisesRegex(ValueError, 'scores is None'):
      value_regression.objective(types.PolicyOutput(), batch)
    grad = jax.grad(lambda x: loss(x).loss.sum())(scores)
    np.testing.assert_array_equal(grad, [[-4, 0]])

  def test_rejects(self):
    x = np.zeros((2, 3), np.float32)
    for args in ((x, x[:, :1]), (x[0], x[0]), (x, x.astype(int))):
      with self.assertRaises(AssertionError):
        value_regression.value_regression_loss(*args)


if __name__ == '__main__':
  absltest.main()
