"""Tests for rlhf_jax.objectives.dpo."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import dpo


def _inputs(seed=0, b=3, t=5):
  rng = np.random.default_rng(seed)
  logprobs = -rng.exponential(size=(b, 2, t)).astype(np.float32)
  ref = -rng.exponential(size=(b, 2, t)).astype(np.float32)
  mask = np.arange(t) < rng.integers(1, t, size=(b, 2, 1))
  return logprobs, ref, mask


def _gap(logprobs, ref, mask, reduce=np.sum):
  """h of each pair, row by row."""
  ratio = [[reduce((x - y)[m]) for x, y, m in zip(*rows)]
           for rows in zip(logprobs, ref, mask)]
  return np.array([chosen - rejected for chosen, rejected in ratio])


def _pair(chosen, rejected, ref_chosen, ref_rejected):
  """One pair whose responses have the given sums, over two tokens each."""
  row = lambda *x: np.float32([[[y / 4, 3 * y / 4, np.nan] for y in x]])
  mask = np.array([[[True, True, False]] * 2])
  return row(chosen, rejected), row(ref_chosen, ref_rejected), mask


class DpoLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 7.4] h = (-10 + 12) - (-15 + 14) = 3: log(1 + e^-.3).
      ('plain', {}, .554355),
      # Reference-free h = -10 + 15 = 5: log(1 + e^-.5).
      ('reference_free', {'reference_free': True}, .474077),
      # Smoothing adds eps * beta * h = .1 * .3.
      ('smoothed', {'label_smoothing': .1}, .584355))
  def test_by_hand(self, kwargs, expected):
    fn = self.variant(lambda *x: dpo.dpo_loss(*x, beta=.1, **kwargs))
    out = fn(*_pair(-10, -15, -12, -14))
    np.testing.assert_allclose(out.loss, [expected], rtol=1e-6)

  def test_metrics_by_hand(self):
    metrics = dpo.dpo_loss(*_pair(-10, -15, -12, -14), beta=.1).metrics
    for name, expected in (('chosen', .2), ('rejected', -.1), ('margin', .3),
                           ('accuracy', 1)):
      np.testing.assert_allclose(
          metrics[f'reward/{name}'], [expected], rtol=1e-5)

  def test_gradient_by_hand(self):
    # [Ex 7.4] beta * sigmoid(-.3) = .1 * .425557, down on chosen tokens.
    logprobs, ref, mask = _pair(-10, -15, -12, -14)
    grad = jax.grad(
        lambda x: dpo.dpo_loss(x, ref, mask, beta=.1).loss.sum())(logprobs)
    np.testing.assert_allclose(
        grad, .0425557 * np.array([[[-1, -1, 0], [1, 1, 0]]]), rtol=1e-5)

  @parameterized.parameters((0., False), (.2, False), (0., True))
  def test_twin(self, label_smoothing, reference_free):
    logprobs, ref, mask = _inputs()

    def expected(x):
      h = _gap(x, 0 * ref if reference_free else ref, mask)
      return np.sum((1 - label_smoothing) * np.log1p(np.exp(-.3 * h))
                    + label_smoothing * np.log1p(np.exp(.3 * h)))

    value, grad = jax.value_and_grad(lambda x: dpo.dpo_loss(
        x, ref, mask, beta=.3, label_smoothing=label_smoothing,
        reference_free=reference_free).loss.sum())(logprobs)
    self.assertAlmostEqual(float(value), expected(logprobs), 5)
    np.testing.assert_allclose(
        grad, twin.gradient(expected, logprobs), atol=1e-5)

  def test_policy_at_reference_is_log_two(self):
    logprobs, _, mask = _inputs()
    out = dpo.dpo_loss(logprobs, logprobs, mask, beta=.1)
    np.testing.assert_allclose(out.loss, np.log(2), rtol=1e-6)
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], 0)

  def test_reference_free_reads_no_reference(self):
    logprobs, ref, mask = _inputs()
    out = [dpo.dpo_loss(logprobs, x, mask, beta=.1, reference_free=True)
           for x in (None, ref * np.nan)]
    chex.assert_trees_all_equal(*out)
    self.assertTrue(np.all(np.isfinite(out[0].loss)))

  def test_empty_response_has_no_weight(self):
    logprobs, ref, mask = _inputs()
    mask[1, 1] = False
    out = dpo.dpo_loss(logprobs, ref, mask, beta=.1)
    np.testing.assert_array_equal(out.weight, [1, 0, 1])

  @parameterized.parameters(
      ('beta', 0.), ('beta', -1.), ('label_smoothing', .5),
      ('label_smoothing', -.1))
  def test_rejects(self, name, value):
    with self.assertRaisesRegex(ValueError, f'{name}.*{value}'):
      dpo.dpo_loss(*_inputs(), **{'beta': .1, name: value})

  def test_rejects_shapes(self):
    logprobs, ref, mask = _inputs()
    for args in ((logprobs[:, :1], ref[:, :1], mask[:, :1]),
                 (logprobs, ref[..., 1:], mask),
                 (logprobs, ref, mask.astype(np.float32))):
      with self.assertRaises(AssertionError):
        dpo.dpo_loss(*args, beta=.1)
    with self.assertRaisesRegex(ValueError, 'ref_logprobs'):
      dpo.dpo_loss(logprobs, None, mask, beta=.1)


class IpoLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 7.5] (3 - 1 / .2)^2 = 4.
    out = self.variant(lambda *x: dpo.ipo_loss(*x, tau=.1))(
        *_pair(-10, -15, -12, -14))
    np.testing.assert_allclose(out.loss, [4], rtol=1e-5)
    np.testing.assert_allclose(
        out.metrics['reward/margin'], [.3], rtol=1e-5)

  def test_length_normalized_by_hand(self):
    # [Ex 7.5] +2 over 10 tokens less -1 over 5: h = .4; (.4 - 1)^2.
    mask = np.arange(10) < np.array([[[10], [5]]])
    logprobs = np.where(mask, np.float32([[[.2], [-.2]]]), np.nan) - 1
    out = dpo.ipo_loss(
        logprobs, -np.ones_like(logprobs), mask, tau=.5, length_normalize=True)
    np.testing.assert_allclose(out.loss, [.36], rtol=1e-5)

  @parameterized.parameters((False, np.sum), (True, np.mean))
  def test_twin(self, length_normalize, reduce):
    logprobs, ref, mask = _inputs()
    expected = lambda x: np.sum(
        (_gap(x, ref, mask, reduce) - 1 / .8)**2)
    value, grad = jax.value_and_grad(lambda x: dpo.ipo_loss(
        x, ref, mask, tau=.4, length_normalize=length_normalize).loss.sum())(
            logprobs)
    np.testing.assert_allclose(value, expected(logprobs), rtol=1e-5)
    np.testing.assert_allclose(
        grad, twin.gradient(expected, logprobs), rtol=1e-4, atol=1e-5)

  def test_minimum(self):
    # h = 1 / (2 tau) = 3 at tau = 1/6: no loss and no gradient.
    logprobs, ref, mask = _pair(-10, -15, -12, -14)
    value, grad = jax.value_and_grad(lambda x: dpo.ipo_loss(
        x, ref, mask, tau=1 / 6).loss.sum())(logprobs)
    self.assertAlmostEqual(float(value), 0, 5)
    np.testing.assert_allclose(grad, 0, atol=1e-5)

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, 'tau.*0'):
      dpo.ipo_loss(*_inputs(), tau=0.)
    logprobs, _, mask = _inputs()
    with self.assertRaisesRegex(ValueError, 'ref_logprobs'):
      dpo.ipo_loss(logprobs, None, mask, tau=.1)


class ObjectiveTest(absltest.TestCase):

  def test_binds(self):
    logprobs, ref, mask = _inputs()
    batch = types.Batch(
        tokens=np.zeros(mask.shape, int), mask=mask, ref_logprobs=ref)
    out = types.PolicyOutput(jnp.asarray(logprobs))
    chex.assert_trees_all_equal(
        dpo.objective(out, batch, beta=.1),
        dpo.dpo_loss(logprobs, ref, mask, beta=.1))
    chex.assert_trees_all_equal(
        dpo.objective(out, batch, kind='ipo', tau=.1),
        dpo.ipo_loss(logprobs, ref, mask, tau=.1))
    with self.assertRaisesRegex(ValueError, "kind.*'kto'"):
      dpo.objective(out, batch, kind='kto')


if __name__ == '__main__':
  absltest.main()
