"""Log-probabilities, entropies and preference losses against TRL's."""

import collections
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='parity with torch, see [peers]')
trl = pytest.importorskip('trl', reason='parity with TRL, see [peers]')
from trl.trainer import dpo_trainer  # noqa: E402 - after the skips
from trl.trainer import utils  # noqa: E402

from rlhf_jax.objectives import dpo  # noqa: E402
from rlhf_jax.ops import logprobs  # noqa: E402

B, T, V = 4, 9, 31


def _logits(scale):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, V, (B, T)).astype(np.int32)
  return (scale * rng.normal(size=(B, T, V))).astype(np.float32), tokens


class LogprobsTest(parameterized.TestCase):

  @parameterized.product(scale=(1., 30.), temperature=(.5, 1., 3.))
  def test_logprobs(self, scale, temperature):
    logits, tokens = _logits(scale)
    theirs = utils.selective_log_softmax(
        torch.from_numpy(logits[:, :-1]),
        torch.from_numpy(tokens[:, 1:].astype(np.int64)),
        temperature=temperature).numpy()
    ours = logprobs.token_logprobs(logits, tokens, temperature=temperature)
    np.testing.assert_allclose(ours[:, 1:], theirs, rtol=1e-6, atol=3e-5)

  @parameterized.product(scale=(1., 30.), temperature=(.5, 1., 3.))
  def test_entropy(self, scale, temperature):
    logits, tokens = _logits(scale)
    theirs = utils.entropy_from_logits(
        torch.from_numpy(logits[:, :-1] / np.float32(temperature))).numpy()
    ours = logprobs.token_entropy(logits, tokens, temperature=temperature)
    np.testing.assert_allclose(ours[:, 1:], theirs, rtol=1e-5, atol=1e-5)


def _their_loss(policy, reference, mask, *, loss_type, **kwargs):
  """Loss and gradient of TRL's DPO trainer, on given log-probabilities.

  Args:
    policy: f32[B, 2, T], of each token, chosen before rejected.
    reference: f32[B, 2, T].
    mask: bool[B, 2, T].
    loss_type: in TRL's words.
    **kwargs: attributes of the trainer.
  """
  # It has all chosen responses first, and no log-probability of token 0.
  rows = lambda x: torch.from_numpy(
      np.concatenate([x[:, 0], x[:, 1]])).clone()
  given = rows(np.where(mask, policy, 0))[:, 1:].requires_grad_()
  fixed = rows(np.where(mask, reference, 0))[:, 1:].sum(1).chunk(2)
  out = types.SimpleNamespace(
      log_probs=given, entropy=torch.zeros_like(given),
      mean_logits=torch.zeros_like(given), is_top1=given > 0)
  same = lambda x: x
  trainer = mock.MagicMock(
      model=mock.MagicMock(training=False), ld_alpha=None,
      precompute_ref_logps=True, f_divergence_type='reverse_kl',
      loss_types=[loss_type], loss_weights=[1.], use_weighting=False,
      aux_loss_enabled=False, _total_train_tokens=0,
      accelerator=mock.MagicMock(
          gather=same, gather_for_metrics=same, device='cpu'),
      _metrics=collections.defaultdict(
          lambda: collections.defaultdict(list)), **kwargs)
  completion = rows(mask).long()
  loss = dpo_trainer.DPOTrainer._compute_loss(
      trainer, lambda **_: out, {
          'input_ids': torch.zeros_like(completion),
          'attention_mask': torch.ones_like(completion),
          'completion_mask': completion, 'ref_chosen_logps': fixed[0],
          'ref_rejected_logps': fixed[1]}, False)
  loss.backward()
  grad = np.zeros(mask.shape, np.float32)
  grad[:, 0, 1:], grad[:, 1, 1:] = (
      g.numpy() for g in given.grad.chunk(2))
  return loss.item(), np.where(mask, grad, 0), trainer._metrics['eval']


class DpoTest(parameterized.TestCase):

  @parameterized.parameters(
      ('sigmoid', dict(beta=.1), lambda *x: dpo.dpo_loss(*x, beta=.1)),
      ('sigmoid', dict(beta=2.), lambda *x: dpo.dpo_loss(*x, beta=2.)),
      ('robust', dict(beta=.3, label_smoothing=.2),
       lambda *x: dpo.dpo_loss(*x, beta=.3, label_smoothing=.2, robust=True)),
      ('ipo', dict(beta=.5),
       lambda *x: dpo.ipo_loss(*x, tau=.5, length_normalize=True)))
  def test_loss(self, loss_type, kwargs, ours):
    rng = np.random.default_rng(1)
    policy, reference = -rng.exponential(
        size=(2, B, 2, T)).astype(np.float32)
    starts, ends = rng.integers(1, 4, (B, 2, 1)), rng.integers(5, T, (B, 2, 1))
    mask = (np.arange(T) >= starts) & (np.arange(T) < ends)
    loss, grad, metrics = _their_loss(
        policy, reference, mask, loss_type=loss_type, **kwargs)
    out = ours(policy, reference, mask)
    np.testing.assert_allclose(out.loss.mean(), loss, rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda x: ours(x, reference, mask).loss.mean())(policy), grad,
        rtol=1e-4, atol=1e-6)
    if loss_type != 'ipo':  # its rewards are sums, where the loss has means
      for name in ('chosen', 'rejected'):
        np.testing.assert_allclose(
            out.metrics[f'reward/{name}'].mean(),
            metrics[f'rewards/{name}'][0], rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
