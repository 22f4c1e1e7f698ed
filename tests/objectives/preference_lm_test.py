"""Tests for rlhf_jax.objectives.preference_lm."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import bradley_terry
from rlhf_jax.objectives import preference_lm
from rlhf_jax.objectives import sft

CONTRACT = {'settings': [{}, {'aggregate': 'sequence', 'lm_coef': .5},
                         {'preference_coef': .5, 'lm_coef': 0.}]}

# One pair with d = 1, whose chosen NLL is 2.25 over three tokens.
SCORES = np.float32([[1.5, .5]])
LOGPROBS = np.float32([[[-.5, -1, -.75, np.nan], [-7, -8, -9, -9]]])
MASK = np.isfinite(LOGPROBS)


@functools.partial(jax.jit, static_argnums=3)
def _mean(scores, logprobs, mask, kwargs):
  return twin.mean(preference_lm.preference_lm_loss(
      scores, logprobs, mask, **dict(kwargs)))


def _twin(scores, logprobs, mask, preference_coef, lm_coef, aggregate):
  """Pair by pair; what the train step minimises."""
  losses = []
  for (chosen, rejected), x, m in zip(scores, logprobs, mask):
    if m[0].any() and m[1].any():
      nll = -sum(x[0][m[0]])
      nll /= sum(m[0]) if aggregate == 'token' else 1
      gap = chosen - rejected
      losses.append(preference_coef * np.log(1 + np.exp(-gap)) + lm_coef * nll)
  return np.mean(losses)


def _inputs(seed):
  rng = np.random.default_rng(seed)
  logprobs = -rng.exponential(size=(4, 2, 3)).astype(np.float32)
  mask = rng.random((4, 2, 3)) < .7
  mask[0], mask[1, 0], mask[2, 1] = True, False, False
  return rng.normal(size=(4, 2)).astype(np.float32), logprobs, mask


class PreferenceLmLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 2.5] log(1 + e^-1) = .313262, + .5 * 2.25. (Trap 6: with the
      # printed sign -.811738.)
      ('sequence', {'lm_coef': .5, 'aggregate': 'sequence'}, 1.438262),
      # The mean over three tokens is .75.
      ('token', {'lm_coef': .5, 'aggregate': 'token'}, .688262),
      # Both coefficients are 1 by default, and the norm is the mean.
      ('defaults', {}, 1.063262),
      ('half', {'preference_coef': .5}, .906631))
  def test_by_hand(self, kwargs, expected):
    out = self.variant(lambda *x: preference_lm.preference_lm_loss(
        *x, **kwargs))(SCORES, LOGPROBS, MASK)
    np.testing.assert_allclose(out.loss, [expected], atol=1e-6)
    np.testing.assert_array_equal(out.weight, [1])
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [1])
    np.testing.assert_allclose(out.metrics['reward/margin'], [1], rtol=1e-6)
    nll = 2.25 if kwargs.get('aggregate') == 'sequence' else .75
    np.testing.assert_allclose(out.metrics['lm/nll'], [nll], rtol=1e-6)

  def test_gradient_by_hand(self):
    # -(1 - sigma(1)) = -.268941 on the chosen score. The chosen tokens get
    # -.5 each, or a third of it: more likely, not less (trap 6).
    for aggregate, expected in (('sequence', -.5), ('token', -.5 / 3)):
      scores, logprobs = jax.grad(
          lambda *x, a=aggregate: preference_lm.preference_lm_loss(
              *x, MASK, lm_coef=.5, aggregate=a).loss.sum(), (0, 1))(
                  SCORES, LOGPROBS)
      np.testing.assert_allclose(scores, [[-.268941, .268941]], atol=1e-6)
      np.testing.assert_allclose(
          logprobs, [[[expected] * 3 + [0], [0] * 4]], rtol=1e-6)

  @parameterized.product(
      aggregate=('token', 'sequence'), coefs=((1., 1.), (.5, 2.)))
  @twin.few
  @twin.randomised
  def test_twin(self, seed, aggregate, coefs):
    scores, logprobs, mask = _inputs(seed)
    kwargs = (('preference_coef', coefs[0]), ('lm_coef', coefs[1]),
              ('aggregate', aggregate))
    twin.assert_equal(
        lambda x: _mean(x, logprobs, mask, kwargs),
        lambda x: _twin(x, logprobs, mask, **dict(kwargs)), scores)
    twin.assert_equal(
        lambda x: _mean(scores, x, mask, kwargs),
        lambda x: _twin(scores, x, mask, **dict(kwargs)), logprobs)

  def test_each_term_alone(self):
    scores, logprobs, mask = _inputs(0)
    mask[...] = True
    loss = lambda **k: preference_lm.preference_lm_loss(
        scores, logprobs, mask, **k).loss
    np.testing.assert_allclose(
        loss(lm_coef=0.),
        bradley_terry.bradley_terry_loss(scores).loss, rtol=1e-6)
    np.testing.assert_allclose(
        loss(preference_coef=0., aggregate='sequence'),
        sft.sft_loss(logprobs, mask, aggregate='sequence').loss[:, 0],
        rtol=1e-6)

  def test_rejected_tokens_are_not_read(self):
    logprobs = LOGPROBS.copy()
    logprobs[0, 1] = np.nan
    chex.assert_trees_all_equal(
        preference_lm.preference_lm_loss(SCORES, logprobs, MASK),
        preference_lm.preference_lm_loss(SCORES, LOGPROBS, MASK))

  def test_empty_responses_have_no_weight(self):
    scores, logprobs, mask = _inputs(0)
    scores[1], scores[2], logprobs[~mask] = np.nan, np.inf, np.nan
    step = lambda *x: preference_lm.preference_lm_loss(*x, mask)
    out = step(scores, logprobs)
    np.testing.assert_array_equal(out.weight, [1, 0, 0, 1])
    chex.assert_tree_all_finite(out)
    for grad in jax.grad(lambda *x: step(*x).loss.sum(), (0, 1))(
        scores, logprobs):
      chex.assert_tree_all_finite(grad)
      np.testing.assert_array_equal(grad[1], 0)

  @parameterized.parameters(
      ('preference_coef', -1.), ('lm_coef', -.5), ('aggregate', 'mean'))
  def test_rejects(self, name, value):
    with self.assertRaisesRegex(ValueError, f'{name}.*{value}'):
      preference_lm.preference_lm_loss(
          SCORES, LOGPROBS, MASK, **{name: value})

  def test_rejects_shapes(self):
    for args in ((SCORES[:, :1], LOGPROBS, MASK),
                 (SCORES, LOGPROBS[:, :1], MASK[:, :1]),
                 (SCORES, LOGPROBS, MASK[..., 1:]),
                 (SCORES[[0, 0]], LOGPROBS, MASK),
                 (SCORES.astype(int), LOGPROBS, MASK),
                 (SCORES, LOGPROBS, MASK.astype(np.float32))):
      with self.assertRaises(AssertionError):
        preference_lm.preference_lm_loss(*args)

  def test_objective_binds(self):
    batch = types.Batch(tokens=np.zeros(MASK.shape, int), mask=MASK)
    out = types.PolicyOutput(LOGPROBS, scores=SCORES)
    chex.assert_trees_all_equal(
        preference_lm.objective(out, batch, lm_coef=.5),
        preference_lm.preference_lm_loss(SCORES, LOGPROBS, MASK, lm_coef=.5))
    for name in ('scores', 'logprobs'):
      with self.assertRaisesRegex(ValueError, f'out.{name}'):
        preference_lm.objective(out.replace(**{name: None}), batch)


if __name__ == '__main__':
  absltest.main()
