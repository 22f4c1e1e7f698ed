"""Preference ranking optimisation (PRO) on ranked responses.

Song et al. 2024, https://arxiv.org/abs/2306.17492, as the baseline of Baheti
et al. 2024 computes it; objectives.md 9.8. Responses are ordered, best first;
s_k is the mean log-probability of the tokens of response k, r_k its raw score:

  T_kj = r_k - r_j,  T_k = max_{j > k} T_kj
  ranking = sum_{k < n} log(e^{s_k T_k} + sum_{j > k} e^{s_j T_kj}) - s_k T_k
  loss = ranking + sft_coef * (n - 1)^2 * -sum_t log pi_t(best)

s is a mean over tokens and the last term a sum. Where the scores contradict
the order, T is negative and the temperature inverts the preference (trap 30).

That code takes the log of 1e-10 + (...), which stops the gradient once all
exponents are below -23; this is a plain logsumexp. Its mask is one token off:
it drops the first of the response and adds one after the EOS. This one is not.
"""

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import masked


def _ranking(means, scores, pairs):
  """Sum over k of the ranking terms, f32[B].

  Args:
    means: f32[B, K], s.
    scores: f32[B, K], r.
    pairs: bool[B, K, K], [b, k, j] true where j is to rank below k.
  """
  gaps = scores[:, :, None] - scores[:, None, :]  # T_kj
  largest = jnp.max(gaps, axis=-1, where=pairs, initial=-jnp.inf)
  largest = jnp.where(pairs.any(axis=-1), largest, 0)  # T_k
  own = means * largest  # [B, K]
  # Its own exponent takes the diagonal, so that no row of the sum is empty.
  diagonal = jnp.eye(means.shape[1], dtype=bool)[None]
  exponents = jnp.where(
      diagonal, own[:, :, None], means[:, None, :] * gaps)
  total = jax.nn.logsumexp(exponents, axis=-1, where=pairs | diagonal)
  return jnp.sum(total - own, axis=-1)


def pro_loss(
    logprobs: jax.Array,
    scores: jax.Array,
    mask: jax.Array,
    *,
    sft_coef: float = 0.05,
) -> types.LossOutput:
  """Ranks the responses of a prompt by their likelihood.

  Args:
    logprobs: float[B, K, T], in nats; the responses in order, the best first,
      K >= 2.
    scores: float[B, K], raw reward-model scores, which set the temperatures;
      they need not agree with the order.
    mask: bool[B, K, T], true on response tokens. A response without any is
      absent: the others rank without it, and n counts them alone.
    sft_coef: weight of the likelihood of the best response, >= 0.

  Returns:
    LossOutput with unit = prompt: every array is f32[B]. The weight is 0 if
    the first response is absent, or all the others are. 'policy/rank_accuracy'
    is the share of pairs whose means rank in order, a tie counts as wrong;
    'reward/inverted' that of pairs with a negative temperature.

  Raises:
    ValueError: if `sft_coef` is negative or an array is None.
    AssertionError: if shapes or dtypes disagree, or K < 2.
  """
  if not sft_coef >= 0:
    raise ValueError(f'sft_coef must be >= 0, got {sft_coef}.')
  chex.assert_rank(mask, 3)
  chex.assert_axis_dimension_gteq(mask, 1, 2)
  present = mask.any(axis=-1)  # [B, K]
  logprobs, = masked.clean(mask, logprobs=logprobs)
  scores, = masked.clean(present, scores=scores)
  scores = jax.lax.stop_gradient(scores)
  means = masked.masked_mean(logprobs, mask, axis=-1)  # [B, K]
  below = jnp.triu(jnp.ones((scores.shape[1],) * 2, bool), k=1)[None]
  pairs = below & present[:, :, None] & present[:, None, :]
  others = present.sum(axis=-1) - 1
  valid = present[:, 0] & (others > 0)

  best = masked.masked_sum(logprobs[:, 0], mask[:, 0], axis=-1)
  loss = _ranking(means, scores, pairs) - sft_coef * others**2 * best
  share = lambda x: masked.masked_mean(  # of the pairs of a prompt
      (x[:, :, None] > x[:, None, :]).astype(jnp.float32), pairs, axis=(1, 2))
  return types.LossOutput(
      loss=jnp.where(valid, loss, 0),
      weight=valid.astype(jnp.float32),
      metrics={
          'policy/rank_accuracy': share(means),
          'reward/inverted': share(-scores),
      },
  )


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `pro_loss` to a batch of ranked responses with scores [B, K]."""
  return pro_loss(out.logprobs, batch.scores, batch.mask, **kwargs)
