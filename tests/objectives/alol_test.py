"""Tests for rlhf_jax.objectives.alol."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import alol
from rlhf_jax.objectives import sft

CONTRACT = {'settings': [
    {}, {'clip_ratio': None}, {'variant': 'ref_free'}, {'variant': 'sequence'},
    {'variant': 'kl', 'kl_coef': .05}, {'variant': 'r_lol'},
    {'variant': 'gold'}, {'variant': 'wbc'}]}

CASES = [
    ('a_lol', {}), ('a_lol', {'clip_ratio': None}),
    ('a_lol', {'clip_ratio': (.1, .4)}), ('ref_free', {}), ('sequence', {}),
    ('sequence', {'clip_ratio': (.1, .4)}), ('sequence', {'clip_ratio': None}),
    ('kl', {'kl_coef': .3}), ('r_lol', {}), ('r_lol', {'clip_ratio': .2}),
    ('gold', {}), ('gold', {'floor': .5}), ('wbc', {})]

# [Ex 9] A = .9 - .5 and .4 - .6; LP = -1.7, -3; LPref = -2.4, -2.9.
LOGPROBS = np.float32([[[-1, -.5, -.2]], [[-2, -1, np.nan]]])
REF = np.float32([[[-1.2, -.9, -.3]], [[-1.5, -1.4, np.nan]]])
SCORES = np.float32([[.9], [.4]])
ADVANTAGES = np.float32([[.4], [-.2]])
MASK = np.isfinite(LOGPROBS)


def _loss(variant, logprobs, ref, values, mask, **kwargs):
  """Calls a variant as `objective` does, whatever its arguments are."""
  batch = types.Batch(tokens=jnp.zeros(mask.shape, int), mask=mask,
                      scores=values, advantages=values, ref_logprobs=ref)
  return alol.objective(
      types.PolicyOutput(logprobs), batch, variant=variant, **kwargs)


def _values(variant):
  return SCORES if variant in ('r_lol', 'gold', 'wbc') else ADVANTAGES


def _inputs(seed=0, b=3, k=2, t=4):
  """(logprobs, ref, values, mask); the first response is empty."""
  rng = np.random.default_rng(seed)
  ref = -rng.exponential(size=(b, k, t)).astype(np.float32)
  logprobs = ref + .5 * rng.normal(size=ref.shape).astype(np.float32)
  logprobs = np.minimum(logprobs, -.01)
  mask = np.arange(t) < rng.integers(1, t + 1, size=(b, k, 1))
  mask[0, 0] = False
  return logprobs, ref, rng.normal(size=(b, k)).astype(np.float32), mask


def _twin(x, at, ref, values, mask, variant, clip_ratio=.9, kl_coef=0.,
          floor=.1):
  """Mean over responses, one by one; weights are constants made from `at`."""
  low, high = clip_ratio if isinstance(clip_ratio, tuple) else (clip_ratio,) * 2
  clip = lambda r: r if clip_ratio is None else np.clip(r, 1 - low, 1 + high)
  total, count = 0., 0
  for i in np.ndindex(values.shape):
    m = mask[i]
    if not m.any():
      continue
    lp, now, prior, value = x[i][m], at[i][m], ref[i][m], values[i]
    good = value if value > 0 else 0.
    count += 1
    if variant in ('a_lol', 'r_lol'):
      scale = good if variant == 'a_lol' else value
      total += scale * clip(np.exp(np.sum(now) - np.sum(prior))) * -np.sum(lp)
    elif variant == 'ref_free':
      total += good * -np.sum(lp)
    elif variant == 'sequence':
      total += good * -np.sum(clip(np.exp(now - prior)) * lp)
    elif variant == 'kl':
      total += good * -np.sum(lp) + kl_coef * np.sum(lp - prior)
    elif variant == 'gold':
      total += value * -np.sum(np.maximum(np.exp(now), floor) * lp)
    else:
      total += value * -np.sum(lp)
  return total / count


@functools.cache
def _jitted(index):
  variant, kwargs = CASES[index]
  return jax.jit(lambda *x: twin.mean(_loss(variant, *x, **kwargs)))


def _gradient(variant, logprobs, *rest, **kwargs):
  return jax.grad(lambda x: twin.mean(
      _loss(variant, x, *rest, **kwargs)))(logprobs)


class ExampleTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 9] rho = e^.7, e^-.1, the first clipped to 1.9; 2 rows each.
      # .4 * 1.9 * 1.7 / 2.
      ('a_lol', 'a_lol', {}, .646),
      # (.9 * 1.9 * 1.7 + .4 * .904837 * 3) / 2.
      ('r_lol', 'r_lol', {}, 1.996402),
      # .4 * 1.7 / 2.
      ('ref_free', 'ref_free', {}, .34),
      # .4 * (e^.2 * 1 + e^.4 * .5 + e^.1 * .2) / 2.
      ('sequence', 'sequence', {}, .43767),
      # .34 + .05 * (.7 - .1) / 2.
      ('kl', 'kl', {'kl_coef': .05}, .355),
      # (.9 * 1.7 + .4 * 3) / 2.
      ('wbc', 'wbc', {}, 1.365),
      # Weights e^lp; row 1: .367879 + .303265 + .163746 = .834890, row 2:
      # .270671 + .367879 = .638550; (.9 * .834890 + .4 * .638550) / 2 less
      # nothing at u = .1 (e^-2 > .1).
      ('gold', 'gold', {}, .503411),
      # u = .5 lifts e^-1 and e^-2.
      ('gold_half', 'gold', {'floor': .5}, .735155))
  def test_by_hand(self, variant, kwargs, expected):
    fn = self.variant(functools.partial(_loss, variant, **kwargs))
    out = fn(LOGPROBS, REF, _values(variant), MASK)
    chex.assert_shape([out.loss, out.weight], (2, 1))
    self.assertAlmostEqual(float(twin.mean(out)), expected, 6)

  @parameterized.parameters(
      # -.4 * 1.9 / 2; the second advantage is negative.
      ('a_lol', {}, [[-.38] * 3, [0] * 3]),
      # -(.4 - .05) / 2 and +.05 / 2.
      ('kl', {'kl_coef': .05}, [[-.175] * 3, [.025, .025, 0]]),
      # -.4 * e^L_t / 2.
      ('sequence', {}, [[-.244281, -.298365, -.221034], [0] * 3]))
  def test_gradient_by_hand(self, variant, kwargs, expected):
    grad = _gradient(variant, LOGPROBS, REF, ADVANTAGES, MASK, **kwargs)
    np.testing.assert_allclose(grad[:, 0], expected, rtol=1e-5, atol=1e-7)

  def test_metrics_by_hand(self):
    metrics = _loss('a_lol', LOGPROBS, REF, ADVANTAGES, MASK).metrics
    for name, expected in (
        ('policy/ratio', [2.013753, .904837]), ('policy/clip_fraction', [1, 0]),
        ('advantage/positive', [1, 0])):
      np.testing.assert_allclose(metrics[name][:, 0], expected, rtol=1e-6)
    # Ratios 1.221403, 1.491825, 1.105171 and .606531, 1.491825; clipped to
    # 1.4 in the loss, not in what is reported.
    metrics = _loss('sequence', LOGPROBS, REF, ADVANTAGES, MASK,
                    clip_ratio=.4).metrics
    np.testing.assert_allclose(
        metrics['policy/ratio'][:, 0], [3.818399 / 3, 2.098356 / 2], rtol=1e-6)
    np.testing.assert_allclose(
        metrics['policy/clip_fraction'][:, 0], [1 / 3, 1 / 2], rtol=1e-6)
    reward = _loss('r_lol', LOGPROBS, REF, SCORES, MASK).metrics
    np.testing.assert_allclose(
        reward['policy/ratio'][:, 0], [2.013753, .904837], rtol=1e-6)


class AlolFamilyTest(parameterized.TestCase):

  @parameterized.parameters(*range(len(CASES)))
  @twin.few
  @twin.randomised
  def test_twin(self, index, seed):
    variant, kwargs = CASES[index]
    at, *rest = _inputs(seed)
    twin.assert_equal(
        lambda x: _jitted(index)(x, *rest),
        lambda x: _twin(x, at.astype(float), *rest, variant, **kwargs), at)

  def test_reductions_at_the_reference(self):
    """At theta = ref every ratio is 1: 9.1 and 9.4 = 9.3, 9.2 = 9.6."""
    _, ref, values, mask = _inputs()
    loss = lambda variant: _loss(variant, ref, ref, values, mask).loss
    for one, other in (('a_lol', 'ref_free'), ('sequence', 'ref_free'),
                       ('kl', 'ref_free'), ('r_lol', 'wbc')):
      np.testing.assert_allclose(loss(one), loss(other), rtol=1e-6)

  def test_unit_scores_are_likelihood(self):
    logprobs, _, values, mask = _inputs()
    out = alol.wbc_loss(logprobs, np.ones_like(values), mask)
    expected = sft.sft_loss(logprobs, mask, aggregate='sequence')
    chex.assert_trees_all_close(out, expected, rtol=1e-6)

  def test_gold_between_probability_and_cloning(self):
    logprobs, _, scores, mask = _inputs()
    np.testing.assert_allclose(
        alol.gold_loss(logprobs, scores, mask, floor=1.).loss,
        alol.wbc_loss(logprobs, scores, mask).loss, rtol=1e-6)
    # Without a floor the gradient is that of -R * pi_t.
    grad = jax.grad(lambda x: alol.gold_loss(
        x, scores, mask, floor=0.).loss.sum())(logprobs)
    np.testing.assert_allclose(
        grad, np.where(mask, -scores[..., None] * np.exp(logprobs), 0),
        rtol=1e-5)

  @parameterized.parameters('a_lol', 'ref_free', 'sequence', 'kl')
  def test_negative_advantage_has_no_gradient(self, variant):
    logprobs, ref, values, mask = _inputs()
    values = np.where([[True, False]], -abs(values), abs(values))
    grad = _gradient(variant, logprobs, ref, values, mask)
    np.testing.assert_array_equal(grad[:, 0], 0)
    self.assertTrue(np.all(grad[:, 1][mask[:, 1]] != 0))
    positive = _loss(variant, logprobs, ref, values, mask).metrics[
        'advantage/positive']
    np.testing.assert_array_equal(positive, mask.any(-1) & (values > 0))

  def test_scores_are_not_clamped(self):
    for variant in ('r_lol', 'gold', 'wbc'):
      grad = _gradient(variant, LOGPROBS, REF, -SCORES, MASK)
      self.assertTrue(np.all(grad[MASK] > 0), variant)

  @parameterized.parameters(
      ('a_lol', .9), ('r_lol', .9), ('sequence', .9), ('a_lol', (.2, .5)))
  def test_clip_keeps_the_gradient(self, variant, clip_ratio):
    """Outside the interval the weight is its bound (trap 27); PPO has none."""
    ref = np.full((2, 1, 1), -4, np.float32)
    logprobs = ref + np.float32([3, -3]).reshape(2, 1, 1)
    low, high = clip_ratio if isinstance(clip_ratio, tuple) else (.9, .9)
    one = np.ones((2, 1), np.float32)
    args = (variant, logprobs, ref, one, logprobs < 0)
    grad = _gradient(*args, clip_ratio=clip_ratio)
    np.testing.assert_allclose(
        grad[:, 0, 0], [-(1 + high) / 2, -(1 - low) / 2], rtol=1e-5)
    out = _loss(*args, clip_ratio=clip_ratio)
    np.testing.assert_array_equal(out.metrics['policy/clip_fraction'], one)
    unclipped = _gradient(*args, clip_ratio=None)
    np.testing.assert_allclose(
        unclipped[:, 0, 0], -np.exp([3, -3]) / 2, rtol=1e-5)

  def test_sequence_is_no_product(self):
    """The printed product over tokens is another number (trap 11)."""
    ratio = np.exp(LOGPROBS[0, 0] - REF[0, 0])
    product = .4 * np.prod(ratio * -LOGPROBS[0, 0])
    out = alol.alol_loss(LOGPROBS, REF, ADVANTAGES, MASK, variant='sequence')
    self.assertAlmostEqual(float(out.loss[0, 0]), .875341, 5)
    self.assertAlmostEqual(float(product), .080550, 5)

  def test_penalty_shifts_the_advantage(self):
    """Where A > 0, 'kl' is 'ref_free' at A - beta (trap 10)."""
    logprobs, ref, values, mask = _inputs()
    values = abs(values) + .1
    grad = _gradient('kl', logprobs, ref, values, mask, kl_coef=.05)
    np.testing.assert_allclose(
        grad, _gradient('ref_free', logprobs, ref, values - .05, mask),
        rtol=1e-5)
    np.testing.assert_array_equal(
        grad, _gradient('kl', logprobs, 3 * ref, values, mask, kl_coef=.05))
    # A below beta is pushed down.
    small = _gradient('kl', logprobs, ref, 0 * values + .01, mask, kl_coef=.05)
    self.assertTrue(np.all(small[mask] > 0))

  @parameterized.parameters(*range(len(CASES)))
  def test_only_logprobs_have_a_gradient(self, index):
    logprobs, ref, values, mask = _inputs()
    fn = lambda ref, values: _jitted(index)(logprobs, ref, values, mask)
    for grad in jax.grad(fn, (0, 1))(ref, values):
      np.testing.assert_array_equal(grad, 0)

  def test_reference_free_reads_no_reference(self):
    logprobs, ref, values, mask = _inputs()
    out = [alol.alol_loss(logprobs, x, values, mask, variant='ref_free')
           for x in (None, ref * np.nan)]
    chex.assert_trees_all_equal(*out)
    self.assertTrue(np.all(np.isfinite(out[0].loss)))

  @parameterized.parameters('a_lol', 'sequence', 'r_lol')
  def test_survives_a_huge_ratio(self, variant):
    ref = np.full((1, 1, 2), -200, np.float32)
    args = (variant, np.zeros_like(ref), ref, np.ones((1, 1), np.float32),
            ref < 0)
    self.assertTrue(np.isfinite(_loss(*args, clip_ratio=None).loss))
    grad = _gradient(*args, clip_ratio=None)
    np.testing.assert_allclose(grad, -np.exp(20) * np.ones_like(ref), rtol=1e-5)

  def test_empty_response_has_no_weight(self):
    for variant, kwargs in CASES:
      out = _loss(variant, *_inputs(), **kwargs)
      np.testing.assert_array_equal(out.weight, [[0, 1], [1, 1], [1, 1]])
      self.assertEqual(out.loss[0, 0], 0)


class ArgumentTest(parameterized.TestCase):

  @parameterized.parameters(
      ({'variant': 'alol'}, "variant.*'alol'"),
      ({'clip_ratio': 0.}, 'clip_ratio.*0'),
      ({'variant': 'ref_free', 'clip_ratio': -1.}, 'clip_ratio.*-1'),
      ({'variant': 'kl', 'kl_coef': -.1}, 'kl_coef.*-0.1'),
      ({'kl_coef': .1}, "kl_coef=0.1.*'a_lol'"),
      ({'variant': 'sequence', 'kl_coef': .1}, "kl_coef=0.1.*'sequence'"))
  def test_rejects(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      alol.alol_loss(*_inputs(), **kwargs)

  def test_rejects_of_the_others(self):
    logprobs, ref, values, mask = _inputs()
    with self.assertRaisesRegex(ValueError, 'clip_ratio.*-0.5'):
      alol.r_lol_loss(logprobs, ref, values, mask, clip_ratio=-.5)
    for floor in (-.1, 1.5):
      with self.assertRaisesRegex(ValueError, f'floor.*{floor}'):
        alol.gold_loss(logprobs, values, mask, floor=floor)

  def test_rejects_shapes(self):
    logprobs, ref, values, mask = _inputs()
    for args in ((logprobs[0], ref, values, mask),
                 (logprobs, ref[..., 1:], values, mask),
                 (logprobs, ref, values[:, :1], mask),
                 (logprobs, ref, logprobs, mask),
                 (logprobs, ref, values, mask[..., 1:]),
                 (logprobs, ref, values, mask.astype(np.float32)),
                 (logprobs, ref, values.astype(int), mask),
                 (logprobs, ref.astype(int), values, mask)):
      for variant in ('a_lol', 'sequence', 'kl', 'r_lol'):
        with self.assertRaises(AssertionError):
          _loss(variant, *args)
    for variant in ('gold', 'wbc', 'ref_free'):
      with self.assertRaises(AssertionError):
        _loss(variant, logprobs, ref, logprobs, mask)

  def test_missing_fields(self):
    logprobs, ref, values, mask = _inputs()
    for variant in ('a_lol', 'sequence', 'kl', 'r_lol'):
      with self.assertRaisesRegex(ValueError, 'ref_logprobs is None'):
        _loss(variant, logprobs, None, values, mask)
    for variant, _ in CASES:
      name = 'scores' if variant in ('r_lol', 'gold', 'wbc') else 'advantages'
      with self.assertRaisesRegex(ValueError, f'{name} is None'):
        _loss(variant, logprobs, ref, None, mask)

  def test_objective_binds(self):
    logprobs, ref, values, mask = _inputs()
    batch = types.Batch(
        tokens=np.zeros(mask.shape, int), mask=mask, ref_logprobs=ref,
        scores=values + 1, advantages=values)
    bound = lambda **k: alol.objective(types.PolicyOutput(logprobs), batch, **k)
    chex.assert_trees_all_equal(
        bound(), alol.alol_loss(logprobs, ref, values, mask))
    chex.assert_trees_all_equal(
        bound(variant='kl', kl_coef=.1),
        alol.alol_loss(logprobs, ref, values, mask, variant='kl', kl_coef=.1))
    chex.assert_trees_all_equal(
        bound(variant='r_lol', clip_ratio=.1),
        alol.r_lol_loss(logprobs, ref, values + 1, mask, clip_ratio=.1))
    chex.assert_trees_all_equal(
        bound(variant='gold', floor=.2),
        alol.gold_loss(logprobs, values + 1, mask, floor=.2))
    chex.assert_trees_all_equal(
        bound(variant='wbc'), alol.wbc_loss(logprobs, values + 1, mask))
    with self.assertRaisesRegex(ValueError, "variant.*'lol'"):
      bound(variant='lol')


if __name__ == '__main__':
  absltest.main()
