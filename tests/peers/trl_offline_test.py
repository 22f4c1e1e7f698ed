"""ORPO and KTO against TRL's trainers, on given logits."""

import functools
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='parity with torch, see [peers]')
trl = pytest.importorskip('trl', reason='parity with TRL, see [peers]')
from trl.experimental.orpo import orpo_trainer  # noqa: E402 - after the skips

from rlhf_jax.objectives import orpo  # noqa: E402
from rlhf_jax.ops import logprobs  # noqa: E402

B, T, V = 4, 9, 31
_ORPO = orpo_trainer.ORPOTrainer


def _pairs(prompts, lengths, scale=1.):
  """Logits f32[B, 2, T, V], tokens and masks of prompts, of all and of both.

  Args:
    prompts: tokens of each prompt, i[B, 1].
    lengths: tokens of each response, i[B, 2].
    scale: of the logits.
  """
  rng = np.random.default_rng(0)
  logits = (scale * rng.normal(size=(B, 2, T, V))).astype(np.float32)
  tokens = rng.integers(1, V, (B, 2, T)).astype(np.int32)
  at, prompts = np.arange(T), prompts[..., None]
  there = at < prompts + lengths[..., None]
  return logits, tokens, there, there & (at >= prompts)


def _their_orpo(logits, tokens, there, mask, beta):
  """Loss of TRL's ORPO trainer, its gradient in the logits, its metrics."""
  given = torch.from_numpy(
      np.concatenate([logits[:, 0], logits[:, 1]])).requires_grad_()
  same = lambda x: x
  trainer = mock.MagicMock(
      is_encoder_decoder=False, padding_value=0, aux_loss_enabled=False,
      beta=beta, accelerator=mock.MagicMock(
          device='cpu', gather_for_metrics=same),
      concatenated_inputs=_ORPO.concatenated_inputs,
      get_batch_logps=_ORPO.get_batch_logps)
  for name in ('concatenated_forward', 'odds_ratio_loss'):
    setattr(trainer, name, functools.partial(getattr(_ORPO, name), trainer))
  batch = {}
  for k, side in enumerate(('chosen', 'rejected')):
    for name, x in (
        ('input_ids', tokens[:, k]), ('attention_mask', there[:, k]),
        ('labels', np.where(mask[:, k], tokens[:, k], -100))):
      batch[f'{side}_{name}'] = torch.from_numpy(x.astype(np.int64))
  loss, metrics = _ORPO.get_batch_loss_metrics(
      trainer, lambda *_, **__: types.SimpleNamespace(logits=given), batch)
  loss.backward()
  grad = np.stack([x.numpy() for x in given.grad.chunk(2)], axis=1)
  return loss.item(), grad, metrics


class OrpoTest(parameterized.TestCase):

  def ours(self, logits, tokens, mask, coef):
    return orpo.orpo_loss(
        logprobs.token_logprobs(logits, tokens), mask, odds_coef=coef)

  @parameterized.product(coef=(.1, 2.), scale=(1., 5.))
  def test_loss_where_both_take_the_same_likelihood(self, coef, scale):
    """Of prompts of one token, which nothing emits, and of equal lengths."""
    lengths = np.random.default_rng(1).integers(2, T, (B, 2))
    lengths[:, 0] = 5
    logits, tokens, there, mask = _pairs(
        np.ones((B, 1), int), lengths, scale)
    loss, grad, metrics = _their_orpo(logits, tokens, there, mask, coef)
    value, slope = jax.value_and_grad(lambda x: self.ours(
        x, tokens, mask, coef).loss.mean())(logits)
    np.testing.assert_allclose(value, loss, rtol=1e-5)
    np.testing.assert_allclose(slope, grad, rtol=1e-4, atol=1e-6)
    out = self.ours(logits, tokens, mask, coef)
    np.testing.assert_allclose(
        out.metrics['policy/nll'].mean(), metrics['nll_loss'], rtol=1e-5)

  def test_odds_agree_where_the_likelihoods_do_not(self):
    rng = np.random.default_rng(2)
    prompts, lengths = rng.integers(2, 4, (B, 1)), rng.integers(2, 6, (B, 2))
    logits, tokens, there, mask = _pairs(prompts, lengths)
    loss, _, metrics = _their_orpo(logits, tokens, there, mask, .1)
    out = self.ours(logits, tokens, mask, .1)
    odds = out.loss.mean() - out.metrics['policy/nll'].mean()
    np.testing.assert_allclose(
        odds, -.1 * metrics['log_odds_ratio'], rtol=1e-5)
    np.testing.assert_allclose(
        out.metrics['reward/margin'].mean(), metrics['log_odds_chosen'],
        rtol=1e-5)
    np.testing.assert_allclose(
        out.metrics['reward/accuracy'].mean(), metrics['rewards/accuracies'])
    # Theirs is of prompts too, and all tokens of the batch count alike.
    all_tokens = there[:, 0] & (np.arange(T) > 0)
    nll = -np.asarray(logprobs.token_logprobs(logits, tokens))[:, 0][
        all_tokens].mean()
    np.testing.assert_allclose(metrics['nll_loss'], nll, rtol=1e-5)
    np.testing.assert_allclose(loss, nll + odds, rtol=1e-5)
    self.assertGreater(
        abs(nll - out.metrics['policy/nll'].mean()), .01)


if __name__ == '__main__':
  absltest.main()
