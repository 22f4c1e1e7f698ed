"""Tests for rlhf_jax.objectives.pro."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import pro
from rlhf_jax.objectives import sft

CONTRACT = {'settings': [{}, {'sft_coef': 0.}], 'responses': 3}

# [Ex 9.8] means -1.7 / 3 and -3 / 2, raw scores 2 and .5.
LOGPROBS = np.float32([[[-1, -.5, -.2], [-2, -1, np.nan]]])
SCORES = np.float32([[2, .5]])


def _inputs(seed=0, b=4, k=4, t=4):
  """(logprobs, scores, mask); lists of 4, 3 with a gap, 1, and no first."""
  rng = np.random.default_rng(seed)
  logprobs = -rng.exponential(size=(b, k, t)).astype(np.float32)
  mask = np.arange(t) < rng.integers(1, t + 1, size=(b, k, 1))
  mask[1, 1], mask[2, 1:], mask[3, 0] = False, False, False
  return logprobs, 2 * rng.normal(size=(b, k)).astype(np.float32), mask


def _twin(x, scores, mask, sft_coef):
  """Mean over the prompts that count, response by response."""
  losses = []
  for i in range(len(x)):
    here = [j for j in range(x.shape[1]) if mask[i, j].any()]
    if len(here) < 2 or here[0] != 0:
      continue
    s = [np.mean(x[i, j][mask[i, j]]) for j in here]
    r = [float(scores[i, j]) for j in here]
    n, loss = len(here), 0.
    for k in range(n - 1):
      temperatures = [r[k] - r[j] for j in range(k + 1, n)]
      own = s[k] * max(temperatures)
      others = sum(
          np.exp(s[j] * t) for j, t in zip(range(k + 1, n), temperatures))
      loss += np.log(np.exp(own) + others) - own
    losses.append(loss - sft_coef * (n - 1)**2 * np.sum(x[i, 0][mask[i, 0]]))
  return np.mean(losses)


_jitted = jax.jit(
    lambda *x: twin.mean(pro.pro_loss(*x, sft_coef=.2)))


class ProLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # T = 1.5: log(e^-.85 + e^-2.25) + .85 = .220417, and .05 * 1.7 = .085.
      ('ranking', [2, .5], 0., .220417),
      ('both', [2, .5], .05, .305417),
      # T = -1.5: log(e^.85 + e^2.25) - .85; the temperature inverts (trap 30).
      ('disagrees', [.5, 2], 0., 1.620417),
      # T = 0 is indifferent: log 2.
      ('tie', [1, 1], 0., .693147))
  def test_by_hand(self, scores, sft_coef, expected):
    fn = self.variant(lambda *x: pro.pro_loss(*x, sft_coef=sft_coef))
    out = fn(LOGPROBS, np.float32([scores]), np.isfinite(LOGPROBS))
    np.testing.assert_allclose(out.loss, [expected], rtol=1e-5)
    np.testing.assert_array_equal(out.weight, [1])

  @parameterized.parameters(
      # [Ex 9.8] n = 3, T_12 = 1, T_13 = T_1 = 2, T_23 = 1:
      # log(e^-1 + e^-1 + e^-4) + 1 = .717737, log(e^-1 + e^-2) + 1 = .313262.
      (0., 1.030998),
      # (n - 1)^2 * .05 * .5.
      (.05, 1.130998))
  def test_three_by_hand(self, sft_coef, expected):
    logprobs = np.float32([[[-.5], [-1], [-2]]])
    out = pro.pro_loss(logprobs, np.float32([[3, 2, 1]]), logprobs < 0,
                       sft_coef=sft_coef)
    np.testing.assert_allclose(out.loss, [expected], rtol=1e-5)

  def test_default_is_the_code_s(self):
    out = pro.pro_loss(LOGPROBS, SCORES, np.isfinite(LOGPROBS))
    np.testing.assert_allclose(out.loss, [.305417], rtol=1e-5)

  def test_metrics_by_hand(self):
    # Pairs of means -1 > -2, -1 < -.5, -2 < -.5; scores 1 < 2, 1 > 0, 2 > 0.
    logprobs = np.float32([[[-1], [-2], [-.5]]])
    metrics = pro.pro_loss(
        logprobs, np.float32([[1, 2, 0]]), logprobs < 0).metrics
    np.testing.assert_allclose(
        metrics['policy/rank_accuracy'], [1 / 3], rtol=1e-6)
    np.testing.assert_allclose(metrics['reward/inverted'], [1 / 3], rtol=1e-6)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    logprobs, *rest = _inputs(seed)
    twin.assert_equal(lambda x: _jitted(x, *rest),
                      lambda x: _twin(x, *rest, .2), logprobs)

  def test_a_negative_temperature_prefers_the_worse(self):
    mask = np.isfinite(LOGPROBS)
    grad = lambda scores: jax.grad(lambda x: pro.pro_loss(
        x, np.float32([scores]), mask, sft_coef=0.).loss.sum())(LOGPROBS)[0]
    agree, disagree = grad([2, .5]), grad([.5, 2])
    self.assertTrue(np.all(agree[0][mask[0, 0]] < 0))  # the best goes up
    self.assertTrue(np.all(disagree[0][mask[0, 0]] > 0))
    self.assertTrue(np.all(disagree[1][mask[0, 1]] < 0))

  def test_means_rank_and_a_sum_imitates(self):
    """Tokens repeated k times rank alike; the likelihood term is k times."""
    mask = np.isfinite(LOGPROBS)
    loss = lambda repeats, coef: pro.pro_loss(
        np.repeat(LOGPROBS, repeats, -1), SCORES, np.repeat(mask, repeats, -1),
        sft_coef=coef).loss
    np.testing.assert_allclose(loss(3, 0.), loss(1, 0.), rtol=1e-6)
    np.testing.assert_allclose(
        loss(3, 1.) - loss(3, 0.), 3 * (loss(1, 1.) - loss(1, 0.)), rtol=1e-5)

  def test_absent_responses_drop_out(self):
    logprobs, scores, mask = _inputs()
    out = pro.pro_loss(logprobs, scores, mask)
    np.testing.assert_array_equal(out.weight, [1, 1, 0, 0])
    np.testing.assert_array_equal(out.loss[2:], 0)
    kept = [0, 2, 3]
    alone = pro.pro_loss(
        logprobs[1:2, kept], scores[1:2, kept], mask[1:2, kept])
    chex.assert_trees_all_close(
        alone, jax.tree.map(lambda x: x[1:2], out), rtol=1e-6)

  def test_likelihood_term_is_sft_of_the_best(self):
    logprobs, scores, mask = _inputs()
    loss = lambda coef: pro.pro_loss(
        logprobs, scores, mask, sft_coef=coef).loss
    expected = sft.sft_loss(logprobs, mask, aggregate='sequence').loss[:2, 0]
    np.testing.assert_allclose(
        (loss(1.) - loss(0.))[:2], expected * np.array([9, 4]), rtol=1e-5)

  def test_shift_of_the_scores_changes_nothing(self):
    logprobs, scores, mask = _inputs()
    np.testing.assert_allclose(
        pro.pro_loss(logprobs, scores + 4, mask).loss,
        pro.pro_loss(logprobs, scores, mask).loss, rtol=1e-5)

  def test_keeps_its_gradient_far_below_the_code_s_epsilon(self):
    """Exponents of -60 and -80: log(1e-10 + ...) would be flat."""
    logprobs = np.float32([[[-3], [-4]]])
    fn = lambda x: pro.pro_loss(
        x, np.float32([[20, 0]]), logprobs < 0, sft_coef=0.).loss.sum()
    value, grad = jax.value_and_grad(fn)(logprobs + np.float32([[[0], [1.1]]]))
    # s = -3, -2.9: 20 * (s_2 - s_1) = 2; log(1 + e^2), 20 * sigmoid(2).
    self.assertAlmostEqual(float(value), 2.126928, 4)
    np.testing.assert_allclose(
        grad[0, :, 0], [-17.615942, 17.615942], rtol=1e-4)

  def test_scores_have_no_gradient(self):
    logprobs, scores, mask = _inputs()
    grad = jax.grad(lambda x: _jitted(logprobs, x, mask))(scores)
    np.testing.assert_array_equal(grad, 0)

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, 'sft_coef.*-1'):
      pro.pro_loss(*_inputs(), sft_coef=-1.)
    logprobs, scores, mask = _inputs()
    for args in ((logprobs[:, :1], scores[:, :1], mask[:, :1]),
                 (logprobs, scores[:, 1:], mask),
                 (logprobs, logprobs, mask),
                 (logprobs, scores, mask[..., 1:]),
                 (logprobs, scores, mask.astype(np.float32)),
                 (logprobs, scores.astype(int), mask)):
      with self.assertRaises(AssertionError):
        pro.pro_loss(*args)

  def test_objective_binds(self):
    logprobs, scores, mask = _inputs()
    batch = types.Batch(
        tokens=np.zeros(mask.shape, int), mask=mask, scores=scores)
    out = types.PolicyOutput(jnp.asarray(logprobs))
    chex.assert_trees_all_equal(
        pro.objective(out, batch, sft_coef=.3),
        pro.pro_loss(logprobs, scores, mask, sft_coef=.3))
    with self.assertRaisesRegex(ValueError, 'scores is None'):
      pro.objective(out, batch.replace(scores=None))


if __name__ == '__main__':
  absltest.main()
