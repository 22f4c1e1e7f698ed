"""Tests for rlhf_jax.objectives.kto."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import kto

ROW = {'beta': .1}  # of the algorithm table
CONTRACT = {'settings': [ROW, {
    'beta': .5, 'desirable_weight': 1.3, 'undesirable_weight': .7}]}
NAMES = ('logprobs', 'ref_logprobs', 'reference_points', 'targets')


def _responses(ratios, targets, point, lengths=None):
  """One prompt each, with these log-ratios, sums over some of four tokens."""
  lengths = np.reshape(lengths or [2] * len(ratios), (-1, 1, 1))
  mask = np.broadcast_to(np.arange(4), (len(ratios), 1, 4)) < lengths
  reference = np.where(mask, -1.5, np.nan).astype(np.float32)
  ratios = np.reshape(ratios, (-1, 1, 1)) / lengths
  return ((reference + ratios).astype(np.float32), reference,
          np.full((len(lengths), 1), point, np.float32),
          np.reshape(targets, (-1, 1)).astype(np.float32), mask)


class KtoLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # sigmoid(-1) of the liked one, 3 - 2 above; sigmoid(1 - 2) of the other.
      ('unit', {}, [.268941, .268941]),
      ('beta', {'beta': .1}, [.475021, .475021]),
      ('weights', {'desirable_weight': 2., 'undesirable_weight': .5},
       [.537883, .134471]))
  def test_by_hand(self, kwargs, expected):
    fn = self.variant(functools.partial(kto.kto_loss, **{'beta': 1.} | kwargs))
    out = fn(*_responses([3., 1.], [1, 0], 2.))
    np.testing.assert_allclose(out.loss[:, 0], expected, rtol=1e-5)
    np.testing.assert_array_equal(out.weight, [[1], [1]])

  def test_at_the_reference_a_response_loses_half(self):
    out = kto.kto_loss(*_responses([0., 0.], [1, 0], 0.), beta=.1,
                       desirable_weight=3.)
    np.testing.assert_allclose(out.loss, [[1.5], [.5]], rtol=1e-6)

  def test_metrics_by_hand(self):
    metrics = kto.kto_loss(
        *_responses([3., 1., 2.5, 1.], [1, 0, 0, 1], 2.), beta=.5).metrics
    for name, expected in {
        'reward/liked': [1.5, 0, 0, .5], 'reward/disliked': [0, .5, 1.25, 0],
        'reward/liked_share': [1, 0, 0, 1], 'reward/accuracy': [1, 1, 0, 0],
        'policy/reference_point': [2] * 4}.items():
      np.testing.assert_allclose(
          metrics[name][:, 0], expected, rtol=1e-5, err_msg=name)

  def test_gradient_by_hand(self):
    # beta * sigmoid(1) * sigmoid(-1), the same for each token; down and up.
    arrays = _responses([3., 1.], [1, 0], 2.)
    grad = jax.grad(lambda x: kto.kto_loss(
        x, *arrays[1:], beta=1.).loss.sum())(arrays[0])
    slope = .196612
    np.testing.assert_allclose(grad[:, 0], [
        [-slope, -slope, 0, 0], [slope, slope, 0, 0]], rtol=1e-5)

  def test_a_length_counts(self):
    """A log-ratio is a sum, whatever the number of its tokens."""
    out = kto.kto_loss(*_responses(
        [3., 3., 6.], [1, 1, 1], 1., [1, 4, 2]), beta=.5)
    np.testing.assert_allclose(out.loss[0], out.loss[1], rtol=1e-5)
    self.assertLess(out.loss[2, 0], .6 * out.loss[0, 0])

  @parameterized.parameters((.1, 1., 1.), (.5, 1.3, .7), (2., 0., 1.))
  @twin.few
  @twin.randomised
  def test_twin(self, beta, liked, disliked, seed):
    rng = np.random.default_rng(seed)
    logprobs, ref = -rng.exponential(size=(2, 4, 3, 5)).astype(np.float32)
    mask = np.arange(5) < rng.integers(1, 5, size=(4, 3, 1))
    point = np.full((4, 3), rng.exponential(), np.float32)
    targets = rng.integers(0, 2, (4, 3)).astype(np.float32)

    def reference(x):
      losses = []
      for at in np.ndindex(4, 3):
        gap = (x[at] - ref[at])[mask[at]].sum() - point[at]
        if targets[at]:
          losses.append(liked - liked / (1 + np.exp(-beta * gap)))
        else:
          losses.append(disliked - disliked / (1 + np.exp(beta * gap)))
      return np.mean(losses)

    twin.assert_equal(
        lambda x: twin.mean(kto.kto_loss(
            x, ref, point, targets, mask, beta=beta, desirable_weight=liked,
            undesirable_weight=disliked)), reference, logprobs)

  def test_a_probability_is_a_mean_of_both(self):
    loss = lambda target: kto.kto_loss(
        *_responses([3.], [target], 1.), beta=1., desirable_weight=2.).loss
    np.testing.assert_allclose(
        loss(.25), .25 * loss(1) + .75 * loss(0), rtol=1e-6)

  def test_extremes(self):
    for ratio in (-1e5, 1e5):
      arrays = _responses([ratio] * 2, [1, 0], 0.)
      value, grad = jax.value_and_grad(lambda x, rest=arrays[1:]: kto.kto_loss(
          x, *rest, **ROW).loss.sum())(arrays[0])
      np.testing.assert_allclose(value, 1, rtol=1e-6)
      chex.assert_tree_all_finite(grad)

  def test_an_empty_response_does_not_count(self):
    *arrays, mask = _responses([3., 1.], [1, 0], 2.)
    out = kto.kto_loss(
        *arrays, mask & (np.arange(2) < 1)[:, None, None], **ROW)
    np.testing.assert_array_equal(out.weight, [[1], [0]])
    self.assertTrue(np.isfinite(out.loss).all())

  @parameterized.parameters(
      ({'beta': 0.}, 'beta'), ({'beta': -1.}, 'beta'),
      ({'desirable_weight': -.1}, 'desirable_weight'),
      ({'undesirable_weight': -.1}, 'undesirable_weight'))
  def test_rejects(self, kwargs, name):
    with self.assertRaisesRegex(ValueError, f'^{name} must be'):
      kto.kto_loss(*_responses([3.], [1], 2.), **{**ROW, **kwargs})

  def test_rejects_arrays(self):
    twin.assert_checks_arrays(
        lambda *x: kto.kto_loss(*x, **ROW), _responses([3.], [1], 2.), NAMES)

  def test_objective(self):
    logprobs, ref, points, targets, mask = _responses([3., 1.], [1, 0], 2.)
    batch = types.Batch(
        tokens=jnp.zeros(mask.shape, jnp.int32), mask=mask, ref_logprobs=ref,
        reference_points=points, targets=targets)
    out = kto.objective(types.PolicyOutput(logprobs=logprobs), batch, beta=1.,
                        desirable_weight=2.)
    np.testing.assert_allclose(out.loss, [[.537883], [.268941]], rtol=1e-5)
    with self.assertRaisesRegex(ValueError, 'logprobs is None'):
      kto.objective(types.PolicyOutput(), batch, **ROW)


if __name__ == '__main__':
  absltest.main()
