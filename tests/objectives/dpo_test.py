"""Tests for rlhf_jax.objectives.dpo."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import dpo

CONTRACT = {'settings': [
    {'beta': .1}, {'beta': .1, 'reference_free': True},
    {'beta': .1, 'label_smoothing': .1},
    {'beta': .1, 'label_smoothing': .1, 'robust': True},
    {'kind': 'ipo', 'tau': .5},
    {'kind': 'ipo', 'tau': .5, 'length_normalize': True}]}


@functools.partial(jax.jit, static_argnums=(0, 4))
def _mean(loss, logprobs, ref, mask, kwargs):
  return twin.mean(loss(logprobs, ref, mask, **dict(kwargs)))


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
      ('smoothed', {'label_smoothing': .1}, .584355),
      # (.9 * .554355 - .1 * .854355) / .8.
      ('robust', {'label_smoothing': .1, 'robust': True}, .516855))
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

  @parameterized.parameters(
      (0., False, False), (.2, False, False), (0., True, False),
      (.2, False, True), (.3, True, True))
  @twin.few
  @twin.randomised
  def test_twin(self, label_smoothing, reference_free, robust, seed):
    logprobs, ref, mask = _inputs(seed)
    wrong = label_smoothing * (-1 if robust else 1)

    def reference(x):
      h = _gap(x, 0 * ref if reference_free else ref, mask)
      losses = ((1 - label_smoothing) * np.log(1 + np.exp(-.3 * h))
                + wrong * np.log(1 + np.exp(.3 * h)))
      return np.mean(losses) / (1 - 2 * label_smoothing * robust)

    kwargs = (('beta', .3), ('label_smoothing', label_smoothing),
              ('reference_free', reference_free), ('robust', robust))
    twin.assert_equal(lambda x: _mean(dpo.dpo_loss, x, ref, mask, kwargs),
                      reference, logprobs)

  @parameterized.parameters(.1, .4)
  def test_robust_is_unbiased(self, rate):
    """Its mean over flipped labels is the plain loss on the true ones."""
    inputs = _inputs()
    other = [x[:, ::-1] for x in inputs]
    step = jax.value_and_grad(lambda x, *rest, **k: dpo.dpo_loss(
        x, *rest, beta=.7, **k).loss.sum())
    true, flipped = (
        step(*x, label_smoothing=rate, robust=True) for x in (inputs, other))
    clean = step(*inputs)
    np.testing.assert_allclose(
        (1 - rate) * true[0] + rate * flipped[0], clean[0], rtol=1e-5)
    np.testing.assert_allclose(
        (1 - rate) * true[1] + rate * flipped[1][:, ::-1], clean[1], atol=1e-5)

  def test_robust_without_noise_is_plain(self):
    chex.assert_trees_all_equal(
        dpo.dpo_loss(*_inputs(), beta=.1, robust=True),
        dpo.dpo_loss(*_inputs(), beta=.1))

  def test_tokens_are_summed(self):
    # Trap 20: +1 nat on each of three chosen tokens and none of two rejected
    # ones is h = 3, a mean were 1; log(1 + e^-.3). The last token, the EOS,
    # counts like any other.
    mask = np.arange(4) < np.array([[[3], [2]]])
    ref = -2 * np.ones(mask.shape, np.float32)
    logprobs = np.where(mask, ref + np.float32([[[1], [0]]]), np.nan)
    loss = lambda x: dpo.dpo_loss(x, ref, mask, beta=.1).loss[0]
    value, grad = jax.value_and_grad(loss)(logprobs)
    self.assertAlmostEqual(float(value), .554355, 6)
    np.testing.assert_allclose(
        grad, .0425557 * np.array([[[-1, -1, -1, 0], [1, 1, 0, 0]]]),
        rtol=1e-5)
    mask[0, 0, 2] = False  # without it h = 2
    self.assertAlmostEqual(float(loss(logprobs)), np.log(1 + np.exp(-.2)), 6)

  @parameterized.parameters(False, True)
  def test_extremes(self, robust):
    logprobs, ref, mask = _pair(-1e5, -1, -1, -1e5)
    for sign in (1, -1):
      value, grad = jax.value_and_grad(lambda x, s=sign: dpo.dpo_loss(
          x[:, ::s], ref[:, ::s], mask, beta=.1, label_smoothing=.1,
          robust=robust).loss.sum())(logprobs)
      chex.assert_tree_all_finite((value, grad))

  def test_only_logprobs_have_a_gradient(self):
    logprobs, ref, mask = _inputs()
    for fn in (lambda x: dpo.dpo_loss(logprobs, x, mask, beta=.1),
               lambda x: dpo.ipo_loss(logprobs, x, mask, tau=.1)):
      grad = jax.grad(lambda x, fn=fn: fn(x).loss.sum())(ref)
      np.testing.assert_array_equal(grad, 0)

  def test_accumulates_in_float32(self):
    # h = 601 nats, which bfloat16 has not.
    ref = jnp.full((1, 2, 601), -1, jnp.bfloat16)
    logprobs = ref + jnp.array([[[1], [0]]], jnp.bfloat16)
    out = dpo.dpo_loss(logprobs, ref, ref < 0, beta=1.)
    np.testing.assert_array_equal(out.metrics['reward/margin'], [601])

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
  @twin.few
  @twin.randomised
  def test_twin(self, length_normalize, reduce, seed):
    logprobs, ref, mask = _inputs(seed)
    kwargs = (('tau', .4), ('length_normalize', length_normalize))
    twin.assert_equal(
        lambda x: _mean(dpo.ipo_loss, x, ref, mask, kwargs),
        lambda x: np.mean((_gap(x, ref, mask, reduce) - 1 / .8)**2), logprobs)

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
    with self.assertRaisesRegex(ValueError, 'out.logprobs'):
      dpo.objective(types.PolicyOutput(), batch, beta=.1)
    with self.assertRaisesRegex(ValueError, 'ref_logprobs'):
      dpo.objective(out, batch.replace(ref_logprobs=None), beta=.1)


if __name__ == '__main__':
  absltest.main()
