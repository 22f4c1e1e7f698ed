"""Tests for rlhf_jax.objectives.bradley_terry."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import bradley_terry

PAIRS = np.float32([[1, 0], [.2, .5]])


def _twin(scores, margin, target, score_l2, center_coef):
  first, second = scores[:, 0], scores[:, 1]
  wins = np.log1p(np.exp(-(first - second - margin)))
  loses = np.log1p(np.exp(-(second - first - margin)))
  return (target * wins + (1 - target) * loses
          + score_l2 * .5 * (first**2 + second**2)
          + center_coef * (first + second)**2)


class BradleyTerryLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 2.1] log(1 + e^-1) = .313262, log(1 + e^.3) = .854355.
      ('plain', {}, .583808),
      # + .001 * mean(.5 * 1, .5 * .29); + .01 * mean(1, .49).
      ('score_l2', {'score_l2': .001}, .584131),
      ('center', {'center_coef': .01}, .591258))
  def test_by_hand(self, kwargs, expected):
    out = self.variant(
        lambda x: bradley_terry.bradley_terry_loss(x, **kwargs))(PAIRS)
    self.assertAlmostEqual(float(out.loss.mean()), expected, 6)
    np.testing.assert_array_equal(out.weight, [1, 1])
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [1, 0])
    np.testing.assert_allclose(
        out.metrics['reward/margin'], [1, -.3], rtol=1e-6)

  @parameterized.parameters((1., .371101), (0., 1.171101), (.5, .771101))
  def test_soft_labels_by_hand(self, target, expected):
    # [Ex 2.2] sums of step rewards 1.2 and .4: d = .8; log(1 + e^-.8), that
    # + .8, and the mean of the two.
    out = bradley_terry.bradley_terry_loss(
        np.float32([[1.2, .4]]), target=np.float32([target]))
    np.testing.assert_allclose(out.loss, [expected], atol=1e-6)

  def test_label_noise_fact(self):
    # [Ex 2.7] a quarter of labels flipped: .75 softplus(-1) + .25 softplus(1)
    # = .563262, and the minimum moves to d = log 3.
    loss = lambda d: bradley_terry.bradley_terry_loss(
        jnp.array([[1., 0.]]) * d, target=jnp.array([.75])).loss[0]
    self.assertAlmostEqual(float(loss(1.)), .563262, 6)
    self.assertAlmostEqual(float(jax.grad(loss)(np.log(3.))), 0, 6)

  def test_margin_by_hand(self):
    # Whoever is preferred has to win by .5: 1 - .5; then -.3 - .5.
    out = bradley_terry.bradley_terry_loss(PAIRS, margin=.5)
    np.testing.assert_allclose(
        out.loss, np.log1p(np.exp([-.5, .8])), rtol=1e-6)
    each = bradley_terry.bradley_terry_loss(PAIRS, margin=np.float32([.5, 0]))
    np.testing.assert_allclose(each.loss, [out.loss[0], .854355], rtol=1e-6)

  @parameterized.parameters(
      (0., None, 0., 0.), (.3, .8, 0., 0.), (0., .3, .1, .2))
  def test_twin(self, margin, target, score_l2, center_coef):
    scores = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    soft = None if target is None else np.full(5, target, np.float32)
    kwargs = {'score_l2': score_l2, 'center_coef': center_coef}
    expected = lambda x: _twin(
        x, margin, 1. if target is None else target, **kwargs)
    fn = lambda x: bradley_terry.bradley_terry_loss(
        x, margin=margin, target=soft, **kwargs).loss
    np.testing.assert_allclose(fn(scores), expected(scores), rtol=1e-5)
    grad = jax.grad(lambda x: fn(x).sum())(scores)
    np.testing.assert_allclose(
        grad, twin.gradient(lambda x: expected(x).sum(), scores), atol=1e-5)

  def test_antisymmetry(self):
    # softplus(d) - softplus(-d) = d.
    scores = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    loss = lambda x, **k: bradley_terry.bradley_terry_loss(x, **k).loss
    np.testing.assert_allclose(
        loss(scores[:, ::-1]) - loss(scores), scores[:, 0] - scores[:, 1],
        atol=1e-5)
    soft = np.full(9, .7, np.float32)  # naming the other one first is the same
    np.testing.assert_allclose(
        loss(scores[:, ::-1], target=1 - soft, margin=.2),
        loss(scores, target=soft, margin=.2), rtol=1e-5)

  def test_extremes(self):
    out = bradley_terry.bradley_terry_loss(
        np.float32([[0, 0], [1e4, 0], [0, 1e4]]))
    np.testing.assert_allclose(out.loss, [np.log(2), 0, 1e4], rtol=1e-6)
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [0, 1, 0])

  def test_accuracy_of_soft_labels(self):
    out = bradley_terry.bradley_terry_loss(
        np.float32([[1, 0]] * 3), target=np.float32([.7, .3, .5]))
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [1, 0, 0])

  def test_labels_have_no_gradient(self):
    fn = lambda m, t: bradley_terry.bradley_terry_loss(
        PAIRS, margin=m, target=t).loss.sum()
    for grad in jax.grad(fn, (0, 1))(jnp.ones(2), jnp.full(2, .3)):
      np.testing.assert_array_equal(grad, 0)

  def test_objective_binds(self):
    mask = np.ones((2, 2, 3), bool)
    mask[1, 0] = False
    scores = PAIRS + np.float32([[0, 0], [np.nan, 0]])
    batch = types.Batch(tokens=np.zeros((2, 2, 3), int), mask=mask,
                        targets=np.float32([[.25, .75], [np.nan, .5]]))
    loss = lambda x: bradley_terry.objective(
        types.PolicyOutput(scores=x), batch)
    out = loss(scores)
    # log(1 + e^-1) + .75.
    self.assertAlmostEqual(float(out.loss[0]), .313262 + .75, 6)
    np.testing.assert_array_equal(out.weight, [1, 0])
    grad = jax.grad(
        lambda x: jnp.sum(loss(x).loss * out.weight))(jnp.asarray(scores))
    self.assertTrue(np.all(np.isfinite(grad)))
    hard = bradley_terry.objective(
        types.PolicyOutput(scores=scores), batch.replace(targets=None))
    self.assertAlmostEqual(float(hard.loss[0]), .313262, 6)

  def test_rejects(self):
    for name in ('score_l2', 'center_coef'):
      with self.assertRaisesRegex(ValueError, f'{name}.*-1'):
        bradley_terry.bradley_terry_loss(PAIRS, **{name: -1.})
    for bad in (np.zeros((2, 3), np.float32), np.zeros((2, 2), int)):
      with self.assertRaises(AssertionError):
        bradley_terry.bradley_terry_loss(bad)
    for name in ('target', 'margin'):
      with self.assertRaises(AssertionError):
        bradley_terry.bradley_terry_loss(
            PAIRS, **{name: np.zeros((2, 1), np.float32)})


if __name__ == '__main__':
  absltest.main()
