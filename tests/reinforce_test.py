"""Tests for rlhf_jax.objectives.reinforce."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import reinforce
from rlhf_jax.ops import advantages as advantages_lib

CASES = [
    {'aggregate': 'sequence'}, {'aggregate': 'token'},
    {'aggregate': 'sequence_mean'}, {'aggregate': 'constant'},
    {'ratio': 'sequence'}, {'ratio': 'sequence', 'clip_ratio': .2},
    {'ratio': 'token'}, {'ratio': 'token', 'clip_ratio': .2},
    {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'token'},
    {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'sequence_mean'},
    {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'constant'},
]


def _inputs(seed=0, b=3, k=2, t=5):
  rng = np.random.default_rng(seed)
  old = -rng.exponential(size=(b, k, t)).astype(np.float32)
  logprobs = old + .3 * rng.normal(size=old.shape).astype(np.float32)
  mask = rng.random((b, k, t)) < .7
  mask[0, 0] = False
  return logprobs, old, rng.normal(size=(b, k)).astype(np.float32), mask


def _mean(out):
  return jnp.sum(out.loss * out.weight) / jnp.sum(out.weight)


def _twin(logprobs, old, advantages, mask, ratio='none', clip_ratio=None,
          aggregate='sequence'):
  """Loss over the valid units, response by response."""
  total, units = 0., 0
  for i in np.ndindex(advantages.shape):
    valid, a = mask[i], advantages[i]
    if not valid.any():
      continue
    x, y = logprobs[i][valid], old[i][valid]
    if ratio == 'none':
      terms = a * x
    else:
      rho = np.exp(x - y) if ratio == 'token' else np.exp(np.sum(x - y))[None]
      terms = rho * a
      if clip_ratio is not None:
        terms = np.minimum(
            terms, np.clip(rho, 1 - clip_ratio, 1 + clip_ratio) * a)
    divide = {'sequence_mean': len(x), 'constant': len(valid)}
    total -= terms.sum() / divide.get(aggregate, 1)
    units += len(x) if aggregate == 'token' else 1
  return total / units


class ReinforceLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_moving_average_by_hand(self):
    # [Ex 7.1] baseline .5: -(.5 * -3 + -.3 * -2) / 2 = .45.
    logprobs = np.float32([[[-1, -2, np.nan]], [[-2, np.nan, np.nan]]])
    mask = np.isfinite(logprobs)
    out = self.variant(lambda *x: reinforce.reinforce_loss(
        x[0], None, *x[1:]))(logprobs, np.float32([[.5], [-.3]]), mask)
    self.assertAlmostEqual(float(_mean(out)), .45, 6)

  def test_leave_one_out_by_hand(self):
    # [Ex 7.2] -(8/3 + 8/3 + 0 - 16) / 4 = 2.666667.
    logprobs = np.float32([[[-1], [-2], [-3], [-4]]])
    a = advantages_lib.leave_one_out(np.float32([[1, 2, 3, 6]]))
    out = reinforce.reinforce_loss(logprobs, None, a, logprobs < 0)
    self.assertAlmostEqual(float(_mean(out)), 2.666667, 5)

  @parameterized.parameters('token', 'sequence')
  def test_clipping_by_hand(self, ratio):
    # objectives.md, Ex 6.3: A = 1, -1, 1, -1 at ratios 1.5, 1.5, .5, .5 has
    # terms 1.2, -1.5, .5, -.8; a clipped term has no gradient, others r * A.
    # With one token per response, both ratios are the same.
    old = -np.ones((4, 1, 1), np.float32)
    logprobs = old + np.log(np.float32([1.5, 1.5, .5, .5])).reshape(4, 1, 1)
    a = np.float32([[1], [-1], [1], [-1]])
    fn = lambda x: reinforce.reinforce_loss(
        x, old, a, old < 0, ratio=ratio, clip_ratio=.2)
    out = fn(logprobs)
    np.testing.assert_allclose(
        out.loss[:, 0], [-1.2, 1.5, -.5, .8], rtol=1e-6)
    np.testing.assert_array_equal(
        out.metrics['policy/clip_fraction'][:, 0], [1, 0, 0, 1])
    grad = jax.grad(lambda x: _mean(fn(x)))(logprobs)
    np.testing.assert_allclose(
        grad[:, 0, 0], [0, .375, -.125, 0], atol=1e-6)

  @parameterized.parameters(*CASES)
  def test_twin(self, **kwargs):
    logprobs, *rest = _inputs()
    fn = lambda x: _mean(reinforce.reinforce_loss(x, *rest, **kwargs))
    expected = lambda x: _twin(x, *rest, **kwargs)
    value, grad = jax.value_and_grad(fn)(logprobs)
    self.assertAlmostEqual(float(value), expected(logprobs), 5)
    np.testing.assert_allclose(
        grad, twin.gradient(expected, logprobs), atol=1e-5)

  @parameterized.parameters(*CASES[4:])
  def test_on_policy_gradient_is_plain(self, **kwargs):
    """At ratio 1 every form has the gradient of ratio='none'."""
    _, old, a, mask = _inputs()
    aggregate = kwargs.get('aggregate', 'sequence')
    fn = lambda x, **k: _mean(reinforce.reinforce_loss(x, old, a, mask, **k))
    np.testing.assert_allclose(
        jax.grad(lambda x: fn(x, **kwargs))(old),
        jax.grad(lambda x: fn(x, aggregate=aggregate))(old), atol=1e-6)

  def test_units(self):
    for aggregate, unit in (('token', (3, 2, 5)), ('sequence', (3, 2))):
      out = reinforce.reinforce_loss(
          *_inputs(), ratio='token', aggregate=aggregate)
      chex.assert_shape([*jax.tree.leaves(out)], unit)

  def test_only_logprobs_have_a_gradient(self):
    logprobs, old, a, mask = _inputs()
    fn = lambda old, a: _mean(reinforce.reinforce_loss(
        logprobs, old, a, mask, ratio='token'))
    for grad in jax.grad(fn, (0, 1))(old, a):
      np.testing.assert_array_equal(grad, 0)

  def test_survives_a_huge_ratio(self):
    old = np.full((1, 1, 2), -200, np.float32)
    out = reinforce.reinforce_loss(
        np.zeros_like(old), old, np.ones((1, 1), np.float32), old < 0,
        ratio='sequence')
    self.assertTrue(np.all(np.isfinite(out.loss)))

  def test_objective_binds(self):
    logprobs, old, a, mask = _inputs()
    batch = types.Batch(tokens=np.zeros(mask.shape, int), mask=mask,
                        old_logprobs=old, advantages=a)
    out = types.PolicyOutput(logprobs)
    chex.assert_trees_all_equal(
        reinforce.objective(out, batch, ratio='token'),
        reinforce.reinforce_loss(logprobs, old, a, mask, ratio='token'))
    plain = reinforce.objective(out, batch.replace(old_logprobs=None))
    self.assertEqual(plain.loss.shape, (3, 2))

  @parameterized.parameters(
      ({'ratio': 'tokens'}, "ratio.*'tokens'"),
      ({'aggregate': 'mean'}, "aggregate.*'mean'"),
      ({'ratio': 'sequence', 'aggregate': 'token'}, "aggregate.*'token'"),
      ({'ratio': 'token', 'clip_ratio': 0.}, 'clip_ratio.*0'),
      ({'clip_ratio': .2}, 'clip_ratio=0.2'))
  def test_rejects(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      reinforce.reinforce_loss(*_inputs(), **kwargs)

  def test_rejects_shapes(self):
    logprobs, old, a, mask = _inputs()
    for args in ((logprobs, old, a[:, :1], mask), (logprobs, old, old, mask),
                 (logprobs, old[..., 1:], a, mask)):
      with self.assertRaises(AssertionError):
        reinforce.reinforce_loss(*args, ratio='token')
    with self.assertRaisesRegex(ValueError, 'old_logprobs'):
      reinforce.reinforce_loss(logprobs, None, a, mask, ratio='token')


if __name__ == '__main__':
  absltest.main()
