"""Tests for rlhf_jax.ops.priorities."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import priorities


class PrioritiesTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 9.9] .4 / .5, .1 / .5; neither a negative nor a 0 is ever drawn.
      ([.4, -.2, .1, 0], [.8, 0, .2, 0]), ([3.], [1]), ([-1, 1e-30], [0, 1]))
  def test_by_hand(self, advantages, expected):
    out = self.variant(priorities.priorities)(np.float32(advantages))
    np.testing.assert_allclose(out, expected, rtol=1e-6)

  def test_sums_to_one_and_ignores_the_scale(self):
    advantages = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    out = priorities.priorities(advantages)
    self.assertAlmostEqual(float(out.sum()), 1, 5)
    np.testing.assert_allclose(
        priorities.priorities(7 * advantages), out, rtol=1e-5)
    np.testing.assert_array_equal(out > 0, advantages > 0)

  def test_draws_in_proportion(self):
    p = priorities.priorities(np.float32([.4, -.2, .1, 0]))
    drawn = jax.random.choice(jax.random.key(0), 4, (4000,), p=p)
    share = np.bincount(drawn, minlength=4) / 4000
    np.testing.assert_allclose(share, p, atol=.03)
    np.testing.assert_array_equal(share[[1, 3]], 0)

  def test_no_data(self):
    for advantages in ([-.5, 0], []):
      with self.assertRaisesRegex(ValueError, f'{len(advantages)} .*no data'):
        priorities.priorities(np.float32(advantages))
    # Under jit the values are not known; nothing is drawn, and nothing NaN.
    out = jax.jit(priorities.priorities)(np.float32([-.5, 0]))
    np.testing.assert_array_equal(out, 0)

  @parameterized.parameters(np.nan, np.inf, -np.inf)
  def test_rejects_what_is_not_finite(self, value):
    with self.assertRaisesRegex(ValueError, f'finite.*{value}'):
      priorities.priorities(np.float32([1, value]))

  def test_bfloat16_in_float32_out_without_gradient(self):
    out = priorities.priorities(jnp.asarray([.5, 1.5], jnp.bfloat16))
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, [.25, .75])
    grad = jax.grad(lambda x: priorities.priorities(x)[0])(jnp.ones(2))
    np.testing.assert_array_equal(grad, 0)

  def test_rejects_shapes(self):
    for x in (np.ones((2, 2), np.float32), np.ones(2, int)):
      with self.assertRaises(AssertionError):
        priorities.priorities(x)


if __name__ == '__main__':
  absltest.main()
