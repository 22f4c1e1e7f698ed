"""Tests for rlhf_jax.models.heads."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import heads


class ScalarTest(parameterized.TestCase):

  @parameterized.parameters((4096, 1.), (4096, .1), (16384, 3.))
  def test_weights_have_variance_scale_squared_over_d(self, size, scale):
    params = heads.init_scalar(jax.random.key(0), size, scale=scale)
    weight = np.asarray(params['weight'], np.float64)
    self.assertEqual(weight.shape, (size,))
    expected = scale**2 / size
    # The variance of n normals has a relative error of sqrt(2 / n).
    self.assertAlmostEqual(
        (weight**2).mean() / expected, 1, delta=4 * (2 / size)**.5)
    self.assertLess(abs(weight.mean()), 4 * (expected / size)**.5)
    self.assertEqual(params['bias'], 0)

  def test_keys_differ(self):
    one, same, other = (heads.init_scalar(jax.random.key(s), 8)['weight']
                        for s in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    self.assertGreater(np.abs(one - other).max(), .01)

  def test_by_hand(self):
    params = {'weight': jnp.array([1., -2., .5]), 'bias': jnp.array(10.)}
    hidden = jnp.array([[[1., 1., 2.], [0., 3., 0.]]])
    np.testing.assert_allclose(
        heads.scalar(params, hidden), [[10., 4.]], rtol=1e-6)
    out = heads.scalar(params, hidden.astype(jnp.bfloat16))
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(out, [[10., 4.]], rtol=1e-2)


if __name__ == '__main__':
  absltest.main()
