"""ORPO and KTO against TRL's trainers, on given logits."""

import collections
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
from trl.trainer import kto_trainer  # noqa: E402

from rlhf_jax.objectives import kto  # noqa: E402
from rlhf_jax.objectives import orpo  # noqa: E402
from rlhf_jax.ops import kl  # noqa: E402
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


def _their_kto(policy, reference, mask, liked, **kwargs):
  """Loss of TRL's KTO trainer, its gradient, its metrics.

  Args:
    policy: f32[B, 2, T], of each token; first the response, then the other's.
    reference: f32[B, 2, T].
    mask: bool[B, 2, T].
    liked: bool[B].
    **kwargs: attributes of the trainer.
  """
  rows = lambda x: [  # it has no log-probability of token 0
      torch.from_numpy(np.where(mask, x, 0)[:, k, 1:].astype(np.float32))
      for k in range(2)]
  given, theirs, (ref, ref_other) = (
      rows(policy)[0].requires_grad_(), rows(policy)[1], rows(reference))
  out = types.SimpleNamespace(
      log_probs=given, entropy=torch.zeros_like(given),
      mean_logits=torch.zeros_like(given))
  other = types.SimpleNamespace(log_probs=theirs)
  same = lambda x: x
  trainer = mock.MagicMock(
      model=mock.MagicMock(training=False), calculate_KL=True,
      precompute_ref_logps=True, loss_type='kto', aux_loss_enabled=False,
      _total_train_tokens=0, _tp_size=1, accelerator=mock.MagicMock(
          gather_for_metrics=same, device='cpu'),
      _metrics=collections.defaultdict(
          lambda: collections.defaultdict(list)), **kwargs)
  trainer._compute_kl_logps = functools.partial(
      kto_trainer.KTOTrainer._compute_kl_logps, trainer)
  of_kl, of_own = (torch.from_numpy(mask[:, k].astype(np.int64))
                   for k in (1, 0))
  loss = kto_trainer.KTOTrainer._compute_loss(
      trainer, lambda input_ids, **_: other if input_ids is of_kl else out, {
          'input_ids': of_own, 'attention_mask': torch.ones_like(of_own),
          'completion_mask': of_own, 'KL_input_ids': of_kl,
          'KL_attention_mask': torch.ones_like(of_kl),
          'KL_completion_mask': of_kl, 'label': torch.from_numpy(liked),
          'ref_logps': ref.sum(1), 'ref_KL_logps': ref_other.sum(1)}, False)
  loss.backward()
  grad = np.zeros(mask[:, 0].shape, np.float32)
  grad[:, 1:] = given.grad.numpy()
  return loss.item(), np.where(mask[:, 0], grad, 0), trainer._metrics['eval']


class KtoTest(parameterized.TestCase):

  @parameterized.product(
      beta=(.1, 2.), weights=((1., 1.), (1.3, .4)), drift=(.4, -.4))
  def test_loss(self, beta, weights, drift):
    rng = np.random.default_rng(3)
    reference = -rng.exponential(size=(B, 2, T)).astype(np.float32)
    policy = (reference + drift + .5 * rng.normal(
        size=reference.shape)).astype(np.float32)
    starts, ends = rng.integers(1, 4, (B, 1, 1)), rng.integers(5, T, (B, 2, 1))
    mask = (np.arange(T) >= starts) & (np.arange(T) < ends)
    liked = np.array([True, False, False, True])
    arguments = dict(zip(('desirable_weight', 'undesirable_weight'), weights))
    loss, grad, metrics = _their_kto(
        policy, reference, mask, liked, beta=beta, **arguments)
    point = kl.reference_point(policy[:, 1], reference[:, 1], mask[:, 1])
    np.testing.assert_allclose(point, metrics['kl'][0], rtol=1e-5)
    self.assertEqual(point > .1, drift > 0)  # and else 0

    def ours(x):
      return kto.kto_loss(
          x[:, None], reference[:, :1], np.full((B, 1), point, np.float32),
          liked[:, None].astype(np.float32), mask[:, :1], beta=beta,
          **arguments)

    out = ours(policy[:, 0])
    np.testing.assert_allclose(out.loss.mean(), loss, rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda x: ours(x).loss.mean())(policy[:, 0]), grad,
        rtol=1e-4, atol=1e-6)
    share = out.metrics['reward/liked_share'].mean()
    for name, part, of in (('liked', 'chosen', share),
                           ('disliked', 'rejected', 1 - share)):
      np.testing.assert_allclose(
          out.metrics[f'reward/{name}'].mean() / of,
          metrics[f'rewards/{part}'][0], rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
