"""Tests for rlhf_jax.ops.ensembles."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.ops import ensembles

FIVE = np.float32([1, 2, 0, 1.5, .5])
THREE = np.float32([[1, 3], [3, 3], [2, 0]])  # members x responses


TWINS = {
    'mean': np.mean, 'worst_case': np.min, 'single': lambda x: x[0],
    'uncertainty_weighted': lambda x: np.mean(x) - .5 * np.var(x)}
_aggregate = jax.jit(ensembles.aggregate, static_argnames=(
    'kind', 'uncertainty_coef', 'member', 'ddof'))


class EnsemblesTest(parameterized.TestCase):

  @parameterized.parameters(.1, 3.3e3, 3.3e6)
  def test_members_who_agree_have_no_variance(self, value):
    scores = jnp.full((5, 40), value, jnp.float32)
    np.testing.assert_array_equal(ensembles.variance(scores), 0)
    np.testing.assert_array_equal(ensembles.variance(scores, ddof=1), 0)

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 3.1] deviations 0, 1, -1, .5, -.5: squares sum to 2.5, so the
      # variance is .5, or .625 with ddof 1.
      ('mean', {'kind': 'mean'}, 1.),
      ('worst_case', {'kind': 'worst_case'}, 0.),
      ('default_coef', {'kind': 'uncertainty_weighted'}, .75),
      ('small_coef', {'kind': 'uncertainty_weighted',
                      'uncertainty_coef': .1}, .95),
      ('ddof', {'kind': 'uncertainty_weighted', 'ddof': 1}, .6875),
      ('ddof_small', {'kind': 'uncertainty_weighted', 'ddof': 1,
                      'uncertainty_coef': .1}, .9375),
      # The paper's code turns a coefficient of 0 into 1, which gives .5.
      ('zero_coef', {'kind': 'uncertainty_weighted',
                     'uncertainty_coef': 0.}, 1.),
      ('single', {'kind': 'single', 'member': 3}, 1.5),
      ('default_member', {'kind': 'single'}, 1.),
  )
  def test_by_hand(self, kwargs, expected):
    fn = self.variant(lambda x: ensembles.aggregate(x, **kwargs))
    np.testing.assert_allclose(fn(FIVE), expected, rtol=1e-6)

  @parameterized.parameters(*ensembles.KINDS)
  @twin.few
  @twin.randomised
  def test_twin(self, kind, seed):
    scores = np.random.default_rng(seed).normal(size=(4, 3, 2))
    out = np.asarray(_aggregate(np.float32(scores), kind=kind))
    for i in np.ndindex(3, 2):
      np.testing.assert_allclose(
          out[i], TWINS[kind](scores[:, i[0], i[1]]), atol=1e-5)

  def test_reduces_members_only(self):
    # [Ex 3.2] columns (1, 3, 2) and (3, 3, 0): mean 2, 2; minimum 1, 0;
    # population variance 2/3, 2, on average 4/3; with ddof 1: 1, 3.
    np.testing.assert_allclose(ensembles.aggregate(THREE), [2, 2])
    np.testing.assert_allclose(
        ensembles.aggregate(THREE, kind='worst_case'), [1, 0])
    np.testing.assert_allclose(
        ensembles.aggregate(THREE, kind='uncertainty_weighted'),
        [1.666667, 1], rtol=1e-6)
    self.assertAlmostEqual(
        float(ensembles.variance(THREE).mean()), 1.333333, 6)
    self.assertAlmostEqual(float(ensembles.variance(THREE, ddof=1).mean()), 2.)

  def test_weighted_can_be_below_the_worst(self):
    # Members 0 and 10: mean 5, variance 25, so .5 * 25 takes it to -7.5; and
    # for 0 and 1 it is .5 - .125, above the minimum. No order between them.
    scores = np.float32([[0, 0], [10, 1]])
    np.testing.assert_allclose(
        ensembles.aggregate(scores, kind='uncertainty_weighted'),
        [-7.5, .375])
    np.testing.assert_array_equal(
        ensembles.aggregate(scores, kind='worst_case'), [0, 0])

  def test_worst_case_follows_the_lowest_offset(self):
    # Trap 17: members that disagree, one shifted by -9: it alone decides.
    scores = np.float32([[0, 1, 2], [2, 1, 0]])
    np.testing.assert_array_equal(
        ensembles.aggregate(scores, kind='worst_case'), [0, 1, 0])
    scores[0] -= 9
    np.testing.assert_array_equal(
        ensembles.aggregate(scores, kind='worst_case'), scores[0])

  @parameterized.parameters(0, 1)
  def test_one_member(self, ddof):
    for kind in ensembles.KINDS:
      out = ensembles.aggregate(THREE[:1], kind=kind, ddof=ddof)
      np.testing.assert_array_equal(out, THREE[0])
    np.testing.assert_array_equal(
        ensembles.variance(THREE[:1], ddof=ddof), [0, 0])

  def test_bounds_shift_and_scale(self):
    x = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    mean, worst, weighted = (
        ensembles.aggregate(x, kind=kind) for kind in ensembles.KINDS[:3])
    self.assertTrue(np.all(worst <= mean))
    self.assertTrue(np.all(weighted <= mean))
    for kind in ensembles.KINDS:
      np.testing.assert_allclose(
          ensembles.aggregate(x + 3, kind=kind),
          ensembles.aggregate(x, kind=kind) + 3, atol=1e-5)
    np.testing.assert_allclose(
        ensembles.variance(2 * x), 4 * ensembles.variance(x), rtol=1e-5)
    same = np.broadcast_to(x[:1], (4, 50))
    for kind in ensembles.KINDS:
      np.testing.assert_allclose(
          ensembles.aggregate(same, kind=kind), x[0], rtol=1e-5)

  def test_dtype_and_gradient(self):
    for kind in ensembles.KINDS:
      fn = lambda x, kind=kind: ensembles.aggregate(x, kind=kind)
      out = fn(jnp.asarray(THREE, jnp.bfloat16))
      self.assertEqual(out.dtype, jnp.float32)
      grad = jax.grad(lambda x, fn=fn: fn(x).sum())(THREE)
      np.testing.assert_array_equal(grad, 0)

  @parameterized.parameters(
      ({'kind': 'median'}, "kind.*'median'"),
      ({'kind': 'uncertainty_weighted', 'uncertainty_coef': -1.},
       'uncertainty_coef.*-1'),
      ({'kind': 'uncertainty_weighted', 'ddof': 2}, 'ddof.*2'),
      ({'kind': 'single', 'member': 3}, 'member.*3'),
      ({'kind': 'single', 'member': -1}, 'member.*-1'),
  )
  def test_rejects(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      ensembles.aggregate(THREE, **kwargs)

  def test_rejects_no_members(self):
    for kind in ensembles.KINDS:
      with self.assertRaisesRegex(ValueError, 'member_scores'):
        ensembles.aggregate(THREE[:0], kind=kind)
    with self.assertRaisesRegex(ValueError, 'member_scores'):
      ensembles.variance(THREE[:0])


if __name__ == '__main__':
  absltest.main()
