"""Tests for rlhf_jax.ops.moments."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.ops import moments

_update = jax.jit(moments.update)


def _fold(x, size, mask=None):
  """Moments of `x`, `size` values at a time."""
  result = moments.init()
  for i in range(0, len(x), size):
    piece = slice(i, i + size)
    result = _update(
        result, x[piece], None if mask is None else mask[piece])
  return result


class MomentsTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # 1, 2, 3, 6 as 1 and 2, 3, 6: the means are 1 and 11/3, the squares in
    # the second 78 / 9, between them (8/3)^2 * 1 * 3 / 4 = 16/3: 14.
    update = self.variant(moments.update)
    result = update(moments.init(), np.float32([1]))
    chex.assert_trees_all_equal(result, moments.Moments(*np.float32([1, 1, 0])))
    result = update(result, np.float32([2, 3, 6]))
    chex.assert_trees_all_close(
        result, moments.Moments(*np.float32([4, 3, 14])), rtol=1e-6)
    self.assertAlmostEqual(float(moments.std(result)), (14 / 3)**.5, 6)
    self.assertAlmostEqual(float(moments.std(result, ddof=0)), 3.5**.5, 6)

  @parameterized.parameters(1, 7, 30, 64)
  @twin.few
  @twin.randomised
  def test_any_cut_gives_the_whole(self, size, seed):
    rng = np.random.default_rng(seed)
    x = (3 + 2 * rng.normal(size=60)).astype(np.float32)
    mask = rng.random(60) < .8
    exact = x[mask].astype(np.float64)
    result = _fold(np.where(mask, x, np.nan).astype(np.float32), size, mask)
    self.assertEqual(result.count, mask.sum())
    np.testing.assert_allclose(result.mean, exact.mean(), rtol=1e-6)
    for ddof in (0, 1):
      np.testing.assert_allclose(
          moments.std(result, ddof), exact.std(ddof=ddof), rtol=1e-6)

  def test_shape_does_not_matter(self):
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    chex.assert_trees_all_close(
        moments.update(moments.init(), x),
        moments.update(moments.init(), x.ravel()), rtol=1e-6)

  @parameterized.parameters(1, 10, 1000)
  def test_accurate_far_from_zero(self, size):
    # Around 1e4 squares are 1e8, of which float32 keeps 7 digits: a mean of
    # squares less the squared mean has no digit of a variance of 1.
    x = (1e4 + np.random.default_rng(0).normal(size=1000)).astype(np.float32)
    result = _fold(x, size)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(result.mean, exact.mean(), rtol=1e-6)
    np.testing.assert_allclose(
        moments.std(result), exact.std(ddof=1), rtol=1e-3)

  def test_one_piece_is_exact(self):
    x = (1e6 + np.random.default_rng(0).normal(size=10000)).astype(np.float32)
    np.testing.assert_allclose(
        moments.std(_fold(x, 10000)), x.astype(np.float64).std(ddof=1),
        rtol=1e-5)

  @parameterized.parameters(.1, 3.3e3, 3.3e6, -7.7e9)
  def test_equal_values_are_exact(self, value):
    state = moments.init()
    for count in (1000, 1, 333):
      state = moments.update(state, jnp.full((count,), value))
    self.assertEqual(state.mean, np.float32(value))
    self.assertEqual(moments.std(state), 0)

  def test_nothing_and_one_value(self):
    empty = moments.update(
        moments.init(), jnp.full(3, jnp.nan), jnp.zeros(3, bool))
    chex.assert_trees_all_equal(empty, moments.init())
    one = moments.update(empty, jnp.array([5.]))
    for ddof in (0, 1):
      self.assertEqual(moments.std(empty, ddof), 0)
      self.assertEqual(moments.std(one, ddof), 0)
    chex.assert_trees_all_equal(
        moments.update(one, jnp.full(2, jnp.inf), jnp.zeros(2, bool)), one)

  def test_one_for_each_member(self):
    x = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    start = jax.vmap(lambda _: moments.init())(jnp.arange(3))
    result = jax.vmap(moments.update)(start, x)
    np.testing.assert_allclose(result.mean, x.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(
        jax.vmap(moments.std)(result), x.std(axis=1, ddof=1), rtol=1e-5)

  def test_under_scan_without_gradient(self):
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    fold = lambda x: jax.lax.scan(
        lambda carry, row: (moments.update(carry, row), None),
        moments.init(), x)[0]
    self.assertAlmostEqual(float(fold(x).mean), 2.5, 6)
    grad = jax.grad(lambda x: sum(jax.tree.leaves(fold(x))))(x)
    np.testing.assert_array_equal(grad, 0)

  def test_other_dtypes(self):
    for x in (np.arange(5), jnp.arange(5, dtype=jnp.bfloat16)):
      result = moments.update(moments.init(), x)
      chex.assert_type(jax.tree.leaves(result), jnp.float32)
      chex.assert_trees_all_close(
          result, moments.Moments(*np.float32([5, 2, 10])), rtol=1e-6)

  def test_rejects(self):
    x = np.ones(3, np.float32)
    with self.assertRaisesRegex(ValueError, 'ddof.*2'):
      moments.std(moments.init(), ddof=2)
    for mask in (np.ones(2, bool), x):
      with self.assertRaises(AssertionError):
        moments.update(moments.init(), x, mask)


class NormalizeTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # Mean 3, deviation 2; then only divided, as trlX does with its running one.
    fn = self.variant(moments.normalize)
    x = np.float32([1, 3, 6])
    np.testing.assert_allclose(fn(x, 3., 2.), [-1, 0, 1.5])
    np.testing.assert_allclose(fn(x, 0., 2.), [.5, 1.5, 3])

  def test_each_member_by_its_own(self):
    x = np.float32([[1, 3], [10, 50]])
    mean, std = np.float32([[2], [30]]), np.float32([[1], [20]])
    np.testing.assert_allclose(
        moments.normalize(x, mean, std), [[-1, 1], [-1, 1]])

  def test_no_deviation(self):
    x = np.float32([[2, 3], [4, 6]])
    out = moments.normalize(x, 2., np.float32([[0], [2]]))
    np.testing.assert_array_equal(out, [[0, 1], [1, 2]])
    self.assertTrue(np.all(np.isnan(moments.normalize(x, 2., np.nan))))

  def test_takes_bfloat16(self):
    out = moments.normalize(jnp.ones(3, jnp.bfloat16), 1 / 3, 1.)
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, 2 / 3, rtol=1e-6)

  def test_rejects(self):
    x = np.ones((2, 2), np.float32)
    for args in ((x, np.ones(2), 1.), (x, 0., np.ones(2))):
      with self.assertRaises(AssertionError):  # which axis is meant?
        moments.normalize(*args)


if __name__ == '__main__':
  absltest.main()
