"""Tests for rlhf_jax.ops.kl."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import kl


class EstimateTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 5.1] d = .3, -.2, .1: the sum; .5 * (.09 + .04 + .01);
      # (e^-.3 - .7) + (e^.2 - 1.2) + (e^-.1 - .9).
      ('k1', 'k1', [.3, -.2, .1], .2),
      ('k2', 'k2', [.045, .02, .005], .07),
      ('k3', 'k3', [.040818, .021403, .004837], .067058),
  )
  def test_by_hand(self, kind, expected, total):
    logprobs = np.float32([-.7, -1.2, -.9])
    fn = self.variant(lambda a, b: kl.estimate(a, b, kind=kind))
    out = fn(logprobs, np.float32([-1., -1., -1.]))
    np.testing.assert_allclose(out, expected, atol=1e-6)
    self.assertAlmostEqual(float(out.sum()), total, 6)

  @parameterized.named_parameters(
      # [Ex 5.2] expectations under pi; KL = .7 log(7/4) + .2 log .5 + .1 log .5
      ('k1', 'k1', .183787), ('k2', 'k2', .181677), ('k3', 'k3', .183787))
  def test_expectation_by_enumeration(self, kind, expected):
    pi, ref = np.float32([.7, .2, .1]), np.float32([.4, .4, .2])
    out = kl.estimate(np.log(pi), np.log(ref), kind=kind)
    self.assertAlmostEqual(float(np.sum(pi * out)), expected, 5)

  @parameterized.parameters('k2', 'k3')
  def test_never_negative(self, kind):
    d = np.concatenate([np.linspace(-1e-2, 1e-2, 2001),
                        np.linspace(-50, 50, 2001)]).astype(np.float32)
    out = kl.estimate(d, np.zeros_like(d), kind=kind)
    self.assertGreaterEqual(out.min(), 0)
    self.assertTrue(np.all(np.isfinite(out)))

  def test_bfloat16_in_float32_out(self):
    x = jnp.full(3, -1.5, jnp.bfloat16)
    for kind in kl.KINDS:
      self.assertEqual(kl.estimate(x, x, kind=kind).dtype, jnp.float32)

  def test_rejects(self):
    x = np.zeros(3, np.float32)
    with self.assertRaisesRegex(ValueError, "kind.*'k4'"):
      kl.estimate(x, x, kind='k4')
    with self.assertRaises(AssertionError):
      kl.estimate(x, x[:2])


class AdaptiveCoefTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 5.4] .1 * (1 + e * 256 / 10000), e clipped to +-.2, or 6.3 / 6 - 1.
      ('high', 9., .100512), ('low', 3., .099488), ('near', 6.3, .100128))
  def test_by_hand(self, observed, expected):
    fn = self.variant(lambda coef, observed: kl.adaptive_coef(
        coef, observed, target=6., horizon=10000, num_samples=256))
    self.assertAlmostEqual(float(fn(.1, observed)), expected, 7)

  def test_is_a_fixed_point_at_the_target(self):
    out = kl.adaptive_coef(
        .3, jnp.float32(6), target=6., horizon=10, num_samples=5)
    self.assertEqual(out, jnp.float32(.3))

  @parameterized.parameters(
      ('target', 0.), ('horizon', 0), ('num_samples', -1))
  def test_rejects(self, name, value):
    kwargs = {'target': 6., 'horizon': 10, 'num_samples': 1, name: value}
    with self.assertRaisesRegex(ValueError, f'{name}.*{value}'):
      kl.adaptive_coef(.1, 6., **kwargs)

  def test_under_scan(self):
    step = lambda coef, observed: (kl.adaptive_coef(
        coef, observed, target=1., horizon=1, num_samples=1),) * 2
    _, out = jax.lax.scan(step, jnp.float32(1), jnp.array([9., 0.]))
    np.testing.assert_allclose(out, [1.2, 1.2 * .8], rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
