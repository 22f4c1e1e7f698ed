"""Tests for rlhf_jax.objectives.bradley_terry."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import bradley_terry

CONTRACT = {'settings': [
    {}, {'margin': .1, 'score_l2': .1, 'center_coef': .1}, {'per_step': True}]}


PAIRS = np.float32([[1, 0], [.2, .5]])
# [Ex 2.2] steps [.5, .5, .2] against [.1, .3]: sums 1.2 and .4.
STEPS = np.float32([[[.5, .5, .2], [.1, .3, np.nan]]])


@functools.partial(jax.jit, static_argnums=(3, 4))
def _mean(scores, margin, target, score_l2, center_coef):
  return twin.mean(bradley_terry.bradley_terry_loss(
      scores, margin=margin, target=target, score_l2=score_l2,
      center_coef=center_coef))


@jax.jit
def _trajectory_mean(step_rewards, mask, target):
  return twin.mean(
      bradley_terry.trajectory_loss(step_rewards, mask, target=target))


def _twin(scores, margin, target, score_l2=0., center_coef=0.):
  """Pair by pair; what the train step minimises."""
  losses = []
  for (first, second), m, p in zip(scores, margin, target):
    wins = np.log(1 + np.exp(-(first - second - m)))
    loses = np.log(1 + np.exp(-(second - first - m)))
    losses.append(p * wins + (1 - p) * loses
                  + score_l2 * (first**2 + second**2) / 2
                  + center_coef * (first + second)**2)
  return np.mean(losses)


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
    if not kwargs:
      np.testing.assert_allclose(out.loss, [.313262, .854355], atol=1e-6)
    np.testing.assert_array_equal(out.weight, [1, 1])
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [1, 0])
    np.testing.assert_allclose(
        out.metrics['reward/margin'], [1, -.3], rtol=1e-6)

  def test_printed_logarithm(self):
    # Trap 5: as printed, softplus(-log d), the loss is log 2 = .693147 at
    # d = 1 and undefined at d <= 0.
    out = bradley_terry.bradley_terry_loss(np.float32([[1, 0], [0, 0], [0, 1]]))
    np.testing.assert_allclose(
        out.loss, [.313262, .693147, 1.313262], atol=1e-6)

  @parameterized.parameters((1., .371101), (0., 1.171101), (.5, .771101))
  def test_soft_labels_by_hand(self, target, expected):
    # [Ex 2.2] d = 1.2 - .4 = .8; log(1 + e^-.8), that + .8, and the mean.
    out = bradley_terry.bradley_terry_loss(
        np.float32([[1.2, .4]]), target=np.float32([target]))
    np.testing.assert_allclose(out.loss, [expected], atol=1e-6)

  @parameterized.parameters(.25, .35)
  def test_label_noise_fact(self, rate):
    # [Ex 2.7] the minimum is at d = log((1 - p) / p), at p = .25 log 3.
    loss = jax.jit(lambda d: bradley_terry.bradley_terry_loss(
        jnp.array([[1., 0.]]) * d, target=jnp.array([1 - rate])).loss[0])
    optimum = np.log((1 - rate) / rate)
    self.assertAlmostEqual(float(jax.grad(loss)(optimum)), 0, 6)
    for step in (-.1, .1):
      self.assertGreater(loss(optimum + step), loss(optimum))
    if rate == .25:  # .75 softplus(-1) + .25 softplus(1)
      self.assertAlmostEqual(float(loss(1.)), .563262, 6)

  def test_margin_by_hand(self):
    # Whoever is preferred has to win by .5: 1 - .5; then -.3 - .5.
    out = bradley_terry.bradley_terry_loss(PAIRS, margin=.5)
    np.testing.assert_allclose(
        out.loss, np.log1p(np.exp([-.5, .8])), rtol=1e-6)
    each = bradley_terry.bradley_terry_loss(PAIRS, margin=np.float32([.5, 0]))
    np.testing.assert_allclose(each.loss, [out.loss[0], .854355], rtol=1e-6)

  @parameterized.parameters((0., 0.), (.1, 0.), (0., .2), (.1, .2))
  @twin.few
  @twin.randomised
  def test_twin(self, score_l2, center_coef, seed):
    rng = np.random.default_rng(seed)
    scores = 3 * rng.normal(size=(5, 2))
    rest = (*np.float32([rng.normal(size=5), rng.random(5)]),
            score_l2, center_coef)
    twin.assert_equal(lambda x: _mean(x, *rest),
                      lambda x: _twin(x, *rest), scores)

  def test_defaults_are_plain(self):
    scores = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    zero = np.zeros(5, np.float32)
    np.testing.assert_allclose(
        bradley_terry.bradley_terry_loss(scores).loss.mean(),
        _twin(scores, zero, zero + 1), rtol=1e-6)

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

  def test_gradient(self):
    # -(1 - sigma(d)), and the opposite for the second.
    scores = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    grad = jax.grad(
        lambda x: bradley_terry.bradley_terry_loss(x).loss.sum())(scores)
    slope = 1 - 1 / (1 + np.exp(scores[:, 1] - scores[:, 0]))
    np.testing.assert_allclose(
        grad, np.stack([-slope, slope], 1), rtol=1e-5)

  def test_extremes(self):
    scores = np.float32([[0, 0], [1e4, 0], [0, 1e4], [1e4, -1e4]])
    loss = lambda x: bradley_terry.bradley_terry_loss(x)
    out = loss(scores)
    np.testing.assert_allclose(out.loss, [np.log(2), 0, 1e4, 0], rtol=1e-6)
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [0, 1, 0, 1])
    grad = jax.grad(lambda x: loss(x).loss.sum())(scores)
    np.testing.assert_array_equal(grad, [[-.5, .5], [0, 0], [-1, 1], [0, 0]])

  def test_accuracy_of_soft_labels(self):
    out = bradley_terry.bradley_terry_loss(
        np.float32([[1, 0]] * 3), target=np.float32([.7, .3, .5]))
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [1, 0, 0])

  def test_labels_have_no_gradient(self):
    fn = lambda m, t: bradley_terry.bradley_terry_loss(
        PAIRS, margin=m, target=t).loss.sum()
    for grad in jax.grad(fn, (0, 1))(jnp.ones(2), jnp.full(2, .3)):
      np.testing.assert_array_equal(grad, 0)

  def test_computes_in_float32(self):
    # bfloat16 has no 256.5.
    out = bradley_terry.bradley_terry_loss(
        jnp.array([[-256., .5]], jnp.bfloat16))
    self.assertEqual(out.loss.dtype, jnp.float32)
    np.testing.assert_array_equal(out.loss, [256.5])

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


class TrajectoryLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 2.2] mu = (1, 0), (0, 1), (.5, .5) at d = .8. With means instead
      # of sums d would be .4 - .2 = .2.
      (1., .371101), (0., 1.171101), (.5, .771101))
  def test_by_hand(self, target, expected):
    out = self.variant(lambda *x: bradley_terry.trajectory_loss(
        x[0], x[1], target=x[2]))(
            STEPS, np.isfinite(STEPS), np.float32([target]))
    np.testing.assert_allclose(out.loss, [expected], atol=1e-6)
    np.testing.assert_allclose(out.metrics['reward/margin'], [.8], rtol=1e-6)
    np.testing.assert_array_equal(out.weight, [1])

  def test_first_wins_by_default(self):
    out = bradley_terry.trajectory_loss(STEPS, np.isfinite(STEPS))
    np.testing.assert_allclose(out.loss, [.371101], atol=1e-6)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    rng = np.random.default_rng(seed)
    steps, mask = rng.normal(size=(4, 2, 3)), rng.random((4, 2, 3)) < .6
    mask[0] = [[True] * 3, [False] * 3]  # an empty trajectory has S = 0
    mask[1], mask[2, 0, 0] = False, True  # nothing at all has no weight
    target = rng.random(4).astype(np.float32)

    def reference(x):
      sums = np.array([[sum(r[m]) for r, m in zip(*pair)]
                       for pair in zip(x, mask)])
      keep = mask.any((1, 2))
      return _twin(sums[keep], np.zeros(4), target[keep])

    twin.assert_equal(
        lambda x: _trajectory_mean(x, mask, target), reference, steps)

  def test_single_steps_are_a_pair(self):
    chex.assert_trees_all_equal(
        bradley_terry.trajectory_loss(
            PAIRS[..., None], np.ones((2, 2, 1), bool)),
        bradley_terry.bradley_terry_loss(PAIRS))

  def test_equal_preference_has_its_minimum_at_a_tie(self):
    steps = np.float32([[[.5, .25, .25], [.75, .25, 0]]])
    value, grad = jax.value_and_grad(lambda x: bradley_terry.trajectory_loss(
        x, np.ones(x.shape, bool), target=np.float32([.5])).loss[0])(steps)
    self.assertAlmostEqual(float(value), np.log(2), 6)
    np.testing.assert_allclose(grad, 0, atol=1e-7)

  def test_empty_trajectories(self):
    # One empty: S = 0 against .8, in either order; both: log 2, no weight.
    steps = np.float32([[[.8], [np.nan]], [[np.nan], [.8]], [[np.nan]] * 2])
    mask = np.isfinite(steps)
    loss = lambda x: bradley_terry.trajectory_loss(x, mask)
    out = loss(steps)
    np.testing.assert_allclose(
        out.loss, [.371101, 1.171101, np.log(2)], atol=1e-6)
    np.testing.assert_array_equal(out.weight, [1, 1, 0])
    grad = jax.grad(lambda x: loss(x).loss.sum())(steps)
    np.testing.assert_array_equal(grad[~mask], 0)
    # -(1 - sigma(.8)) of the first, sigma(.8) of the second.
    np.testing.assert_allclose(grad[mask], [-.310026, .689974], atol=1e-6)

  def test_rejects(self):
    mask = np.isfinite(STEPS)
    for args in ((STEPS[:, :1], mask[:, :1]), (STEPS, mask[..., 1:]),
                 (STEPS, mask.astype(np.float32)), (STEPS[0], mask[0]),
                 (np.zeros(STEPS.shape, int), mask)):
      with self.assertRaises(AssertionError):
        bradley_terry.trajectory_loss(*args)
    with self.assertRaises(AssertionError):
      bradley_terry.trajectory_loss(
          STEPS, mask, target=np.zeros((1, 2), np.float32))


class ObjectiveTest(absltest.TestCase):

  def _batch(self):
    mask = np.ones((2, 2, 3), bool)
    mask[1, 0] = False
    return types.Batch(tokens=np.zeros((2, 2, 3), int), mask=mask,
                       targets=np.float32([[.25, .75], [np.nan, .5]]))

  def test_binds(self):
    batch = self._batch()
    scores = PAIRS + np.float32([[0, 0], [np.nan, 0]])
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

  def test_binds_steps(self):
    batch = self._batch()
    steps = np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)
    steps[1, 0] = np.nan
    loss = lambda x: bradley_terry.objective(
        types.PolicyOutput(step_rewards=x), batch, per_step=True)
    out = loss(steps)
    expected = bradley_terry.trajectory_loss(
        steps[:1], batch.mask[:1], target=np.float32([.25]))
    np.testing.assert_allclose(out.loss[:1], expected.loss, rtol=1e-6)
    np.testing.assert_array_equal(out.weight, [1, 0])
    chex.assert_tree_all_finite(out)
    grad = jax.grad(lambda x: jnp.sum(loss(x).loss * out.weight))(steps)
    chex.assert_tree_all_finite(grad)

  def test_either_empty_response_takes_the_weight(self):
    mask = np.ones((3, 2, 2), bool)
    mask[0, 0] = mask[1, 1] = False
    batch = types.Batch(tokens=np.zeros((3, 2, 2), int), mask=mask)
    out = types.PolicyOutput(scores=jnp.ones((3, 2)))
    np.testing.assert_array_equal(
        bradley_terry.objective(out, batch).weight, [0, 0, 1])

  def test_rejects(self):
    batch = self._batch()
    with self.assertRaisesRegex(ValueError, 'scores is None'):
      bradley_terry.objective(types.PolicyOutput(), batch)
    with self.assertRaisesRegex(ValueError, 'step_rewards is None'):
      bradley_terry.objective(
          types.PolicyOutput(scores=PAIRS), batch, per_step=True)
    with self.assertRaises(AssertionError):
      bradley_terry.objective(
          types.PolicyOutput(scores=PAIRS),
          batch.replace(targets=np.zeros((2, 1), np.float32)))
    # A margin belongs to scores; Python itself rejects it.
    with self.assertRaises(TypeError):
      bradley_terry.objective(
          types.PolicyOutput(step_rewards=np.zeros(batch.mask.shape)), batch,
          per_step=True, margin=.1)


if __name__ == '__main__':
  absltest.main()
