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

  @parameterized.parameters(1., .1, 0.)
  def test_mlp_is_twice_as_wide(self, scale):
    params = heads.init_scalar(jax.random.key(0), 128, scale=scale, mlp=True)
    kernel = np.asarray(params['features']['kernel'])
    self.assertEqual(kernel.shape, (128, 256))
    self.assertAlmostEqual(kernel.var() * 128, 1, delta=.05)
    self.assertEqual(params['weight'].shape, (256,))
    self.assertAlmostEqual(
        (params['weight']**2).mean() * 256, scale**2, delta=.4 * scale**2)
    np.testing.assert_array_equal(params['features']['bias'], 0)
    self.assertEqual(params['bias'], 0)

  def test_mlp_by_hand(self):
    # Features relu(1 - 2 + 0), relu(1 + 2 - 1) = 0, 2; 3 * 0 + 4 * 2 + 5.
    params = {'features': {'kernel': jnp.array([[1., 1.], [-1., 1.]]),
                           'bias': jnp.array([0., -1.])},
              'weight': jnp.array([3., 4.]), 'bias': jnp.array(5.)}
    for dtype in (jnp.float32, jnp.bfloat16):
      out = heads.scalar(params, jnp.array([[[1., 2.]]], dtype))
      self.assertEqual(out.dtype, jnp.float32)
      np.testing.assert_allclose(out, [[13.]], rtol=1e-6)
    # 1 + 2^-9 has no bfloat16: what comes in is rounded, features are not.
    params['features'] = {'kernel': jnp.eye(2), 'bias': jnp.full(2, 2.**-9)}
    out = heads.scalar(params, jnp.ones((1, 2), jnp.bfloat16))
    np.testing.assert_allclose(out, [7 * (1 + 2**-9) + 5], rtol=1e-6)

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


class QTest(parameterized.TestCase):

  @parameterized.parameters((False, 64), (True, 128))
  def test_heads_differ_and_scale(self, mlp, inputs):
    made = heads.init_q(
        jax.random.key(0), 64, 50, num_heads=3, scale=2., mlp=mlp)
    one, two, three = (head['weight'] if mlp else head for head in made)
    self.assertEqual(one.shape, (50, inputs))
    for x, y in ((one, two), (two, three)):
      self.assertGreater(np.abs(x - y).max(), .1)
    # 3,200 normals: the variance has a relative error of sqrt(2 / 3200).
    self.assertAlmostEqual(np.var(one) * inputs / 4, 1, delta=.1)
    if mlp:
      np.testing.assert_array_equal(made[0]['bias'], np.zeros(50))
      self.assertGreater(np.abs(
          made[0]['features']['kernel']
          - made[1]['features']['kernel']).max(), .1)

  def test_by_hand(self):
    # Features of [1, 2] are 0 and 2, see ScalarTest.
    features = {'kernel': jnp.array([[1., 1.], [-1., 1.]]),
                'bias': jnp.array([0., -1.])}
    weight = jnp.array([[1., 0.], [0., 1.], [2., 3.]])
    mlp = {'features': features, 'weight': weight,
           'bias': jnp.array([0., 1., -1.])}
    for head, expected in ((weight, [1., 2., 8.]), (mlp, [0., 3., 5.])):
      for dtype in (jnp.float32, jnp.bfloat16):
        hidden = jnp.array([1., 2.], dtype)
        states, matrix, bias = heads.q_map(head, hidden)
        self.assertEqual(states.dtype, dtype)
        np.testing.assert_allclose(
            matrix @ states + (0. if bias is None else bias), expected)
        out = heads.q_value(
            head, jnp.tile(hidden, (3, 1)), jnp.arange(3))
        self.assertEqual(out.dtype, jnp.float32)
        np.testing.assert_allclose(out, expected)

  def test_one_token_reads_one_row(self):
    """No array of the vocabulary's size, beside the head itself."""
    head, = heads.init_q(jax.random.key(0), 4, 999, num_heads=1, mlp=True)
    program = jax.make_jaxpr(heads.q_value)(
        head, jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), jnp.int32))
    self.assertNotIn(999, [
        size for eqn in program.jaxpr.eqns for var in eqn.outvars
        for size in var.aval.shape])


class TrunkTest(absltest.TestCase):

  def test_leaves_out_what_reads_it(self):
    names = ('embed', 'positions', 'layers', 'top_layers', 'norm', 'adapter',
             'unembed', 'unembed_bias', 'value_head', 'q_heads',
             'reward_head', 'value_trunk')
    self.assertEqual(heads.trunk({name: name for name in names}),
                     {name: name for name in names[:6]})


class PromptValueTest(parameterized.TestCase):

  def _by_hand(self):
    """Identity projections, one head, D = 2 (objectives.md, Ex 9.10)."""
    same = {'kernel': jnp.eye(2)[:, None], 'bias': jnp.zeros((1, 2))}
    back = {'kernel': jnp.eye(2)[None], 'bias': jnp.zeros(2)}
    return {'query': jnp.array([1., 0.]),
            'attention': {'query': same, 'key': same, 'value': same,
                          'out': back},
            'scalar': {'weight': jnp.array([0., 2.]), 'bias': jnp.zeros(())}}

  @parameterized.parameters(9., np.nan)
  def test_by_hand(self, padding):
    # [Ex 9.10] The second key is sqrt(2) log 3, so that the weights are
    # 1/4 and 3/4; .75 * 1.553672 = 1.165254 and .25 * 1 = .25; sigmoid(2 *
    # .25) = .622459, times 5. With the padding, w . o would be 4.0.
    hidden = jnp.array([[[0., 1.], [2**.5 * np.log(3), 0.], [0., padding]]])
    mask = jnp.array([[True, True, False]])
    value = lambda *args: heads.prompt_value(
        self._by_hand(), *args, num_heads=1, max_value=5.)
    np.testing.assert_allclose(value(hidden, mask), [3.112297], rtol=1e-6)
    np.testing.assert_allclose(
        value(hidden[:, :2], mask[:, :2]), [3.112297], rtol=1e-6)
    leaked = value(hidden.at[0, 2, 1].set(9.), jnp.ones((1, 3), bool))
    # Weights 1/5, 3/5, 1/5: (1 + 9) / 5 = 2, and sigmoid(2 * 2).
    np.testing.assert_allclose(leaked, [5 / (1 + np.exp(-4))], rtol=1e-5)

  def test_padding_is_inert_in_the_gradient(self):
    params = heads.init_prompt_value(jax.random.key(0), 16)
    hidden = jax.random.normal(jax.random.key(1), (3, 5, 16))
    mask = jnp.asarray(np.arange(5) < np.array([[5], [2], [1]]))
    loss = lambda p, h: heads.prompt_value(p, h, mask, max_value=4.).sum()
    grad = jax.jit(jax.value_and_grad(loss, (0, 1)))
    clean = grad(params, hidden)
    dirty = grad(params, jnp.where(mask[..., None], hidden, jnp.nan))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(
        x, y, atol=1e-6), clean, dirty)
    value = heads.prompt_value(params, hidden, mask, max_value=4.)
    self.assertTrue(np.all((value > 0) & (value < 4)))
    self.assertEqual(heads.prompt_value(
        params, hidden.astype(jnp.bfloat16), mask).dtype, jnp.float32)

  def test_rejects(self):
    params = heads.init_prompt_value(jax.random.key(0), 8)
    hidden, mask = jnp.zeros((1, 2, 8)), jnp.ones((1, 2), bool)
    with self.assertRaisesRegex(ValueError, 'max_value.*0'):
      heads.prompt_value(params, hidden, mask, max_value=0.)
    with self.assertRaisesRegex(ValueError, 'num_heads.*3'):
      heads.init_prompt_value(jax.random.key(0), 8, num_heads=3)
    with self.assertRaises(AssertionError):
      heads.prompt_value(params, hidden, mask[:, :1])


if __name__ == '__main__':
  absltest.main()
