"""Direct preference optimisation, its robust form, and IPO.

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, eq. 7; label smoothing
from Mitchell 2023, https://ericmitchell.ai/cdpo.pdf, eq. 3; robust DPO from
Chowdhury, Kini and Natarajan 2024, https://arxiv.org/abs/2403.00409; IPO from
Azar et al. 2023, https://arxiv.org/abs/2310.12036, eq. 17:

  h = log(pi / pi_ref)(y_chosen | x) - log(pi / pi_ref)(y_rejected | x)
  dpo = -(1 - eps) log sigmoid(beta * h) - eps log sigmoid(-beta * h)
  robust = (-(1 - eps) log sigmoid(beta * h) + eps log sigmoid(-beta * h))
           / (1 - 2 eps)
  ipo = (h - 1 / (2 tau))^2

Log-ratios are sums over tokens, EOS included. TRL's IPO takes means instead:
length_normalize=True. Reference-free DPO (Baheti et al. 2024) drops pi_ref.
"""

from collections.abc import Callable

import chex
import jax
from jax import nn
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked


def _log_ratios(logprobs, ref_logprobs, mask, reduce):
  """f32[B, 2]; a `ref_logprobs` of None is a uniform reference."""
  chex.assert_shape(logprobs, (None, 2, None))
  chex.assert_equal_shape([logprobs, mask])
  chex.assert_type([logprobs, mask], [float, bool])
  log_ratio = logprobs.astype(jnp.float32)
  if ref_logprobs is not None:
    chex.assert_equal_shape([logprobs, ref_logprobs])
    chex.assert_type(ref_logprobs, float)
    log_ratio -= jax.lax.stop_gradient(ref_logprobs).astype(jnp.float32)
  return reduce(log_ratio, mask, axis=-1)


def _output(loss, rewards, mask):
  """LossOutput of pairs; one with an empty response has weight 0."""
  margin = rewards[:, 0] - rewards[:, 1]
  return types.LossOutput(
      loss=loss,
      weight=mask.any(axis=-1).all(axis=-1).astype(jnp.float32),
      metrics={
          'reward/chosen': rewards[:, 0],
          'reward/rejected': rewards[:, 1],
          'reward/margin': margin,
          'reward/accuracy': (margin > 0).astype(jnp.float32),
      },
  )


def dpo_loss(
    logprobs: jax.Array,
    ref_logprobs: jax.Array | None,
    mask: jax.Array,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
    robust: bool = False,
) -> types.LossOutput:
  """Logistic loss on the gap between two policy-to-reference log-ratios.

  Args:
    logprobs: float[B, 2, T], policy log-probability of each token, in nats;
      index 0 of the second axis is the chosen response, 1 the rejected one.
    ref_logprobs: float[B, 2, T], the same under the frozen reference; not
      read, and may be None, if `reference_free`.
    mask: bool[B, 2, T], true on response tokens.
    beta: reward units per nat of log-ratio, > 0; larger stays closer to the
      reference.
    label_smoothing: eps, probability that a label is flipped, in [0, 0.5).
    reference_free: h = log pi(chosen) - log pi(rejected).
    robust: the mean over labels flipped with probability eps is then the loss
      on the true labels. It has no lower bound, if eps > 0.

  Returns:
    LossOutput with unit = pair: every array is f32[B]. The implicit reward is
    beta * log-ratio.

  Raises:
    ValueError: if `beta` or `label_smoothing` is out of range, or a reference
      is missing.
    AssertionError: if shapes or dtypes disagree, or K != 2.
  """
  if not beta > 0:
    raise ValueError(f'beta must be > 0, got {beta}.')
  if not 0 <= label_smoothing < 0.5:
    raise ValueError(
        f'label_smoothing must be in [0, 0.5), got {label_smoothing}.')
  if reference_free:
    ref_logprobs = None
  elif ref_logprobs is None:
    raise ValueError('ref_logprobs is None, but not reference_free.')
  rewards = beta * _log_ratios(
      logprobs, ref_logprobs, mask, masked.masked_sum)  # [B, 2]
  margin = rewards[:, 0] - rewards[:, 1]
  loss = -(1 - label_smoothing) * nn.log_sigmoid(margin)
  flipped = -label_smoothing * nn.log_sigmoid(-margin)
  if robust:
    loss = (loss - flipped) / (1 - 2 * label_smoothing)
  else:
    loss += flipped
  return _output(loss, rewards, mask)


def ipo_loss(
    logprobs: jax.Array,
    ref_logprobs: jax.Array,
    mask: jax.Array,
    *,
    tau: float,
    length_normalize: bool = False,
) -> types.LossOutput:
  """Squared distance of the same gap from 1 / (2 tau).

  Args:
    logprobs: float[B, 2, T], as for `dpo_loss`.
    ref_logprobs: float[B, 2, T].
    mask: bool[B, 2, T].
    tau: strength of the regularisation, in 1 / nats, > 0.
    length_normalize: log-ratios are means over tokens, as in TRL.

  Returns:
    LossOutput with unit = pair: every array is f32[B]. The implicit reward is
    tau * log-ratio.

  Raises:
    ValueError: if `tau` is not positive or the reference is missing.
    AssertionError: if shapes or dtypes disagree, or K != 2.
  """
  if not tau > 0:
    raise ValueError(f'tau must be > 0, got {tau}.')
  if ref_logprobs is None:
    raise ValueError('ref_logprobs is None.')
  reduce = masked.masked_mean if length_normalize else masked.masked_sum
  log_ratios = _log_ratios(logprobs, ref_logprobs, mask, reduce)
  gap = log_ratios[:, 0] - log_ratios[:, 1]
  return _output((gap - 1 / (2 * tau))**2, tau * log_ratios, mask)


def objective(out, batch, *, kind: str = 'dpo', **kwargs) -> types.LossOutput:
  """Binds `dpo_loss` or, for kind='ipo', `ipo_loss` to a batch (K = 2)."""
  losses: dict[str, Callable[..., types.LossOutput]]
  losses = {'dpo': dpo_loss, 'ipo': ipo_loss}
  if kind not in losses:
    raise ValueError(f"kind must be 'dpo' or 'ipo', got {kind!r}.")
  if out.logprobs is None:
    raise ValueError('out.logprobs is None: not the output of a policy.')
  return losses[kind](out.logprobs, batch.ref_logprobs, batch.mask, **kwargs)
