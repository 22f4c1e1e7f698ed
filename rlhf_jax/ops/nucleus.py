"""Action masks of NLPO: the nucleus of one policy restricts another.

Ramamurthy et al. 2023, https://arxiv.org/abs/2210.01241, section 4. A mask
policy, a copy of the policy refreshed every 20 rollouts or so, says which
tokens may be emitted: its top-p nucleus (0.9). Sampling, log-probabilities,
ratios and KL all use the policy renormalised on that set; the loss is PPO's.

Use one mask for a rollout, in sampling and in every update: store it, or keep
the mask policy as it is until the next rollout and compute it again. A sampled
token may lie outside a refreshed mask, where its log-probability is -inf, and,
where two programs round differently, outside one that is computed again:
`include` allows it there.

Alignment is that of logits: position t - 1 of `logits` and of `allowed`
governs tokens[..., t], so that logprobs.token_logprobs(restrict(logits,
allowed), tokens) is the masked policy. Logits are divided by the temperature
of the sampler beforehand.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types


class Guide(NamedTuple):
  """The mask policy of NLPO, and how much of it is allowed."""

  params: types.Params  # of a decoder of the policy's shape; no gradient
  top_p: float = 0.9  # of `nucleus`, at the temperature of the sampler


def nucleus(logits: jax.Array, *, top_p: float) -> jax.Array:
  """The smallest set of likeliest tokens whose probability reaches `top_p`.

  The set that `sampling.filter_logits` keeps.

  Args:
    logits: float[..., V]; -inf forbids a token.
    top_p: probability, in (0, 1]; 1 allows every token of finite logit.

  Returns:
    bool[..., V], at least one token true. Tokens as likely as the last one of
    the set are all in it, so that the answer does not depend on their order.

  Raises:
    ValueError: if `top_p` is out of range.
    AssertionError: if `logits` is not floating.
  """
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p must be in (0, 1], got {top_p}.')
  chex.assert_type(logits, float)
  logits = jax.lax.stop_gradient(logits).astype(jnp.float32)
  possible = logits > -jnp.inf
  if top_p == 1:
    return possible
  ordered = jnp.sort(logits, axis=-1, descending=True)
  probs = jax.nn.softmax(ordered, axis=-1)
  # The mass *before* a token decides, so the first is always kept.
  kept = jnp.cumsum(probs, axis=-1) - probs < top_p
  border = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
  return possible & (logits >= border)


def restrict(logits: jax.Array, allowed: jax.Array) -> jax.Array:
  """Sets the logits of tokens that are not allowed to -inf.

  Args:
    logits: float[..., V].
    allowed: bool[..., V]. Where it allows nothing, as in padding, the logits
      stay as they are, because a softmax of -inf alone is NaN.

  Returns:
    float[..., V], the dtype of `logits`; no gradient reaches what is not
    allowed.

  Raises:
    AssertionError: if shapes or dtypes disagree.
  """
  chex.assert_equal_shape([logits, allowed])
  chex.assert_type([logits, allowed], [float, bool])
  padding = ~allowed.any(axis=-1, keepdims=True)
  return jnp.where(allowed | padding, logits, -jnp.inf)


def include(allowed: jax.Array, tokens: jax.Array) -> jax.Array:
  """What is allowed, and one token of each row besides.

  Args:
    allowed: bool[..., V].
    tokens: i32[...], in the rows that govern them; one that is not in [0, V)
      adds nothing.

  Returns:
    bool[..., V].

  Raises:
    AssertionError: if shapes or dtypes disagree.
  """
  chex.assert_equal_shape([allowed[..., 0], tokens])
  chex.assert_type([allowed, tokens], [bool, int])
  ids = jax.lax.broadcasted_iota(jnp.int32, allowed.shape, allowed.ndim - 1)
  return allowed | (ids == tokens[..., None])
