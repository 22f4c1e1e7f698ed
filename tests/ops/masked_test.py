"""Tests for rlhf_jax.ops.masked."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.ops import masked

REDUCTIONS = {
    'sum': masked.masked_sum,
    'mean': masked.masked_mean,
    'last': masked.last,
    'whiten': masked.whiten,
}



def _whiten_twin(x, mask, shift_mean=True, ddof=0):
  x = x[mask]
  scaled = (x - x.mean()) / np.sqrt(x.var(ddof=ddof) + 1e-8)
  return scaled + (0 if shift_mean else x.mean())


# Of the masked entries, one row at a time where there is an axis.
TWINS = {
    'sum': lambda x, mask: x[mask].sum(),
    'mean': lambda x, mask: x[mask].mean(),
    'last': lambda x, mask: np.array([r[m][-1] for r, m in zip(x, mask)]),
    'whiten': _whiten_twin,
}


@functools.partial(jax.jit, static_argnames='name')
def _total(x, mask, name):
  """Not linear, since the sum of whitened numbers is a constant."""
  return jnp.sum(jnp.sin(REDUCTIONS[name](x, mask)))


class MaskedTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    x = np.float32([[1, 2, 4], [8, 16, np.nan]])
    mask = np.array([[True, True, False], [False, True, False]])
    total = self.variant(lambda x, m: masked.masked_sum(x, m))(x, mask)
    rows = self.variant(lambda x, m: masked.masked_mean(x, m, -1))(x, mask)
    last = self.variant(masked.last)(x, mask)
    self.assertEqual(total, 19)  # 1 + 2 + 16
    self.assertAlmostEqual(float(masked.masked_mean(x, mask)), 19 / 3, 5)
    np.testing.assert_array_equal(rows, [1.5, 16])
    np.testing.assert_array_equal(last, [2, 16])

  @parameterized.parameters(*REDUCTIONS)
  @twin.few
  @twin.randomised
  def test_twin(self, name, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, 5)).astype(np.float32)
    mask = rng.random((3, 5)) < .6
    mask[:, 2] = True
    twin.assert_equal(
        lambda x: _total(x, mask, name),
        lambda x: np.sum(np.sin(TWINS[name](x, mask))), x)

  def test_axes(self):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = x % 3 > 0
    np.testing.assert_allclose(
        masked.masked_mean(x, mask, (0, 2)),
        [x[:, i][mask[:, i]].mean() for i in range(3)], rtol=1e-6)

  @parameterized.parameters(*REDUCTIONS)
  def test_padding_is_inert_in_value_and_gradient(self, name):
    fn = REDUCTIONS[name]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5)).astype(np.float32)
    mask = rng.random((3, 5)) < 0.6
    value = lambda x: jnp.sum(jnp.sin(fn(x, mask)))
    clean = jax.value_and_grad(value)(jnp.where(mask, x, 0))
    junk = jax.value_and_grad(value)(jnp.where(mask, x, jnp.nan))
    chex.assert_trees_all_equal(clean, junk)
    np.testing.assert_array_equal(junk[1][~mask], 0)

  @parameterized.parameters(*REDUCTIONS)
  def test_all_masked_is_zero_with_zero_gradient(self, name):
    fn = REDUCTIONS[name]
    x, mask = jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool)
    np.testing.assert_array_equal(fn(x, mask), 0)
    grad = jax.grad(lambda x: fn(x, mask).sum())(x)
    np.testing.assert_array_equal(grad, 0)

  @parameterized.parameters(.1, 3.3e3, 3.3e6, -7.7e9)
  def test_equal_values_whiten_to_nothing(self, value):
    x, mask = np.full((40, 25), value, np.float32), np.ones((40, 25), bool)
    x[0, :3], mask[0, :3] = np.nan, False
    np.testing.assert_array_equal(masked.whiten(x, mask), np.zeros((40, 25)))
    np.testing.assert_array_equal(
        masked.whiten(x, mask, shift_mean=False), np.where(mask, x, 0))

  def test_first(self):
    x = np.float32([[np.nan, 5], [7, np.nan]])
    self.assertEqual(masked.first(x, np.array([[0, 0], [1, 0]], bool)), 7)
    self.assertEqual(masked.first(x, np.array([[0, 1], [1, 0]], bool)), 5)
    self.assertEqual(masked.first(x, np.zeros((2, 2), bool)), 0)

  def test_last_ignores_gaps(self):
    x = np.float32([[1, 2, 3, 4]])
    mask = np.array([[True, False, True, False]])
    np.testing.assert_array_equal(masked.last(x, mask), [3])

  def test_accumulates_in_float32(self):
    # 4096 ones: a bfloat16 accumulator stops at 256.
    x = jnp.ones(4096, jnp.bfloat16)
    total = masked.masked_sum(x, x > 0)
    self.assertEqual(total.dtype, jnp.float32)
    self.assertEqual(total, 4096)

  @parameterized.named_parameters(
      # [Ex 6.2] mean .8224, squared deviations .006292, .002820, .017530:
      # population variance .008881, with ddof 1 .013321.
      ('population', 0, [.841672, .563384, -1.405056]),
      ('sample', 1, [.687222, .460001, -1.147224]),
  )
  def test_whiten_by_hand(self, ddof, expected):
    x = np.float32([.901725, .8755, .69, 0, 0])
    mask = np.array([True] * 3 + [False] * 2)
    out = masked.whiten(x, mask, ddof=ddof)
    np.testing.assert_allclose(out[:3], expected, atol=2e-5)
    np.testing.assert_array_equal(out[3:], 0)
    # Kept mean: the same plus .8224083.
    kept = masked.whiten(x, mask, ddof=ddof, shift_mean=False)
    np.testing.assert_allclose(kept[:3], out[:3] + .8224083, atol=1e-5)

  def test_whiten_is_not_unmasked(self):
    # [Ex 6.2], trap 8: two zero pads in the statistics turn the sign of the
    # third, which is what an all-true mask asks for.
    x = np.float32([.901725, .8755, .69, 0, 0])
    np.testing.assert_allclose(
        masked.whiten(x, np.ones(5, bool), ddof=1),
        [.89186, .834573, .429361, -1.077897, -1.077897], atol=1e-5)

  @parameterized.parameters(0, 1)
  def test_whiten_degenerate(self, ddof):
    x = np.float32([3, 3, 7])
    one = np.array([False, False, True])
    np.testing.assert_array_equal(masked.whiten(x, one, ddof=ddof), 0)
    np.testing.assert_array_equal(
        masked.whiten(x, ~one, ddof=ddof), 0)  # no variance

  def test_rejects(self):
    x = np.ones((2, 3), np.float32)
    with self.assertRaisesRegex(ValueError, 'ddof.*2'):
      masked.whiten(x, x > 0, ddof=2)
    with self.assertRaises(AssertionError):
      masked.masked_mean(x, np.ones((2, 1), bool))
    with self.assertRaises(AssertionError):
      masked.masked_sum(x, x)


class CleanTest(absltest.TestCase):

  def test_fills_and_upcasts(self):
    mask = np.array([True, False])
    x, y = masked.clean(mask, x=jnp.array([1., np.nan], jnp.bfloat16),
                        y=jnp.array([3., 4.]))
    np.testing.assert_array_equal(x, [1, 0])
    np.testing.assert_array_equal(y, [3, 0])
    self.assertEqual(x.dtype, jnp.float32)
    grad = jax.grad(lambda x: (masked.clean(mask, x=x)[0]**2).sum())(
        jnp.array([1., np.nan]))
    np.testing.assert_array_equal(grad, [2, 0])

  def test_rejects(self):
    mask, x = np.array([True, False]), jnp.zeros(2)
    with self.assertRaisesRegex(ValueError, 'scores is None'):
      masked.clean(mask, logprobs=x, scores=None)
    for bad in ((mask, jnp.zeros(3)), (mask, jnp.zeros(2, int)),
                (mask.astype(np.float32), x)):
      with self.assertRaises(AssertionError):
        masked.clean(bad[0], x=bad[1])


if __name__ == '__main__':
  absltest.main()
