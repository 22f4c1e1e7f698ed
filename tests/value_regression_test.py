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

  def test_twin(self):
    values, targets = np.random.default_rng(0).normal(
        size=(2, 3, 2)).astype(np.float32)
    expected = lambda x: np.sum((x - targets)**2)
    loss = lambda x, y: value_regression.value_regression_loss(x, y).loss.sum()
    value, grads = jax.value_and_grad(loss, (0, 1))(values, targets)
    np.testing.assert_allclose(value, expected(values), rtol=1e-5)
    np.testing.assert_allclose(
        grads[0], twin.gradient(expected, values), atol=1e-5)
    np.testing.assert_array_equal(grads[1], 0)

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
    grad = jax.grad(lambda x: loss(x).loss.sum())(scores)
    np.testing.assert_array_equal(grad, [[-4, 0]])

  def test_rejects(self):
    x = np.zeros((2, 3), np.float32)
    for args in ((x, x[:, :1]), (x[0], x[0]), (x, x.astype(int))):
      with self.assertRaises(AssertionError):
        value_regression.value_regression_loss(*args)


if __name__ == '__main__':
  absltest.main()
