"""Logits to the log-probability and entropy of each token, in nats.

Logits at t - 1 predict the token at t, so results are target-aligned and 0 at
t = 0. Logits are upcast to float32 before the softmax and divided by the
temperature of the sampler, without which ratios against the sampler's own
log-probabilities are not 1 (objectives.md, section 13, trap 22).
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

_LOWEST = -1e30  # finite, so that a chunk of -inf leaves no inf - inf behind


class Statistics(NamedTuple):
  """What is known of each token, f32[..., T]; t = 0 is 0."""

  logprobs: jax.Array  # nats, <= 0
  entropy: jax.Array  # of the distribution it was drawn from, nats
  logits: jax.Array  # as they come, before the temperature; a Q head's value


def _check(temperature: float, tokens: jax.Array) -> None:
  if not temperature > 0:
    raise ValueError(f'temperature must be > 0, got {temperature}.')
  chex.assert_type(tokens, int)
  chex.assert_axis_dimension_gteq(tokens, -1, 1)


def _project(hidden, unembed, bias):
  """Logits f32[..., V]."""
  out = jnp.einsum('...d,vd->...v', hidden, unembed.astype(hidden.dtype),
                   preferred_element_type=jnp.float32)
  if bias is not None:
    out += jnp.broadcast_to(bias.astype(jnp.float32), out.shape)
  return out


def _at(logits, targets):
  """The entry of each target; NaN, not a guess, where there is none."""
  taken = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  known = (targets >= 0) & (targets < logits.shape[-1])
  return jnp.where(known, taken, jnp.nan)


def at_targets(logits: jax.Array, targets: jax.Array,
               temperature: float = 1.0) -> Statistics:
  """Statistics of tokens under the logits that predict them, not aligned.

  Args:
    logits: float[..., V]; -inf forbids a token.
    targets: i32[...]; NaN where one is not in [0, V).
    temperature: divides the logits, > 0.

  Returns:
    Statistics, each f32[...].
  """
  logits = logits.astype(jnp.float32)
  logprobs = jax.nn.log_softmax(logits / temperature)
  probs = jnp.exp(logprobs)
  # A token that the sampler forbade has logit -inf, and 0 * -inf is NaN.
  entropy = -jnp.sum(probs * jnp.where(probs > 0, logprobs, 0), axis=-1)
  return Statistics(_at(logprobs, targets), entropy, _at(logits, targets))


def _cut(unembed, bias, chunk_size):
  """First token, rows [size, D] and bias [size] of each chunk, stacked.

  Zeros fill the last.
  """
  count = unembed.shape[0]
  least = -(-count // chunk_size)
  # Equal chunks spare the copies of `unembed` and of its gradient that padding
  # makes; most vocabularies have some (GPT-2's 50,257 is 29 * 1733).
  number = next((n for n in range(least, 2 * least) if count % n == 0), least)
  size = -(-count // number)
  missing = number * size - count
  rows = jnp.pad(unembed, ((0, missing), (0, 0))).reshape(number, size, -1)
  if bias is not None:
    bias = jnp.pad(bias, (0, missing)).reshape(number, size)
  return size * jnp.arange(number), rows, bias


def _chunked(hidden, unembed, bias, targets, temperature, chunk_size):
  """Statistics of targets i32[N] under the logits of hidden [N, D].

  One pass over the vocabulary, by Milakov and Gimelshein 2018,
  https://arxiv.org/abs/1805.02867: sums are kept relative to the largest
  logit so far and rescaled when it grows.
  """
  count = unembed.shape[0]
  wide = hidden.astype(jnp.float32)  # chunks then add up gradients in float32

  @functools.partial(jax.checkpoint, prevent_cse=False)  # inside a scan
  def step(carry, chunk):
    peak, total, spread, taken = carry
    start, rows, added = chunk
    ids = start + jax.lax.broadcasted_iota(jnp.int32, (1, rows.shape[0]), 1)
    logits = jnp.where(
        ids < count, _project(wide.astype(hidden.dtype), rows, added),
        -jnp.inf)
    scaled = logits / temperature
    highest = jax.lax.stop_gradient(jnp.maximum(peak, scaled.max(axis=-1)))
    gap = scaled - highest[:, None]
    weight = jnp.exp(gap)
    shift = peak - highest
    shrink = jnp.exp(shift)
    spread = (spread + total * shift) * shrink + jnp.sum(
        weight * jnp.where(weight > 0, gap, 0), axis=-1)
    total = total * shrink + weight.sum(axis=-1)
    index = targets - start
    own = _at(logits, jnp.clip(index, 0, rows.shape[0] - 1))
    taken = jnp.where((index >= 0) & (index < rows.shape[0]), own, taken)
    return (highest, total, spread, taken), None

  zeros = jnp.zeros(targets.shape, jnp.float32)
  (peak, total, spread, taken), _ = jax.lax.scan(
      step, (zeros + _LOWEST, zeros, zeros, zeros + jnp.nan),
      _cut(unembed, bias, chunk_size))
  return Statistics(taken / temperature - peak - jnp.log(total),
                    jnp.log(total) - spread / total, taken)


def align(x: jax.Array) -> jax.Array:
  """[..., T] from [..., T - 1]: prepends t = 0, which is never a target."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)])


def _from_logits(logits, tokens, temperature):
  _check(temperature, tokens)
  chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
  chex.assert_rank(logits, tokens.ndim + 1)
  chex.assert_type(logits, float)
  return jax.tree.map(align, at_targets(
      logits[..., :-1, :], tokens[..., 1:], temperature))


def token_logprobs(logits: jax.Array, tokens: jax.Array, *,
                   temperature: float = 1.0) -> jax.Array:
  """Log-probability of each token given those before it.

  Args:
    logits: float[..., T, V], any float dtype.
    tokens: i32[..., T].
    temperature: divides the logits, > 0.

  Returns:
    f32[..., T] in nats, <= 0; t = 0 is 0.

  Raises:
    ValueError: if `temperature` is not positive.
    AssertionError: if shapes or dtypes disagree.
  """
  return _from_logits(logits, tokens, temperature).logprobs


def token_entropy(logits: jax.Array, tokens: jax.Array, *,
                  temperature: float = 1.0) -> jax.Array:
  """Entropy of the distribution that each token was drawn from.

  Arguments, alignment and errors are those of `token_logprobs`.
  """
  return _from_logits(logits, tokens, temperature).entropy


def from_hidden(
    hidden: jax.Array,
    unembed: jax.Array,
    tokens: jax.Array,
    *,
    bias: jax.Array | None = None,
    temperature: float = 1.0,
    chunk_size: int = 2048,
) -> Statistics:
  """Statistics of each token without the logits of a whole vocabulary.

  Logits exist for `chunk_size` vocabulary entries at a time and are recomputed
  in the backward pass, so memory is O(rows * T * chunk_size), not O(rows * T *
  V). A vocabulary of one chunk is neither cut nor recomputed.

  Args:
    hidden: float[..., T, D], final hidden states.
    unembed: float[V, D], output matrix.
    tokens: i32[..., T], in [0, V).
    bias: float[V], added to the logits (GPT-J has one).
    temperature: divides the logits, > 0.
    chunk_size: vocabulary entries per chunk at most, >= 1; V need not be a
      multiple. See benchmarks/arrays.py.

  Returns:
    Statistics, each f32[..., T].

  Raises:
    ValueError: if `temperature` or `chunk_size` is out of range.
    AssertionError: if shapes or dtypes disagree.
  """
  _check(temperature, tokens)
  if chunk_size < 1:
    raise ValueError(f'chunk_size must be >= 1, got {chunk_size}.')
  chex.assert_equal_shape_prefix([hidden, tokens], tokens.ndim)
  chex.assert_shape(unembed, (None, hidden.shape[-1]))
  chex.assert_type([hidden, unembed], [float, float])
  if bias is not None:
    chex.assert_shape(bias, (unembed.shape[0],))
    chex.assert_type(bias, float)

  # One axis of rows: XLA's matrix product is slower on two (1.7x, CPU).
  rows = hidden[..., :-1, :].reshape(-1, hidden.shape[-1])
  targets = tokens[..., 1:]
  if unembed.shape[0] <= chunk_size:
    out = at_targets(
        _project(rows, unembed, bias), targets.reshape(-1), temperature)
  else:
    out = _chunked(
        rows, unembed, bias, targets.reshape(-1), temperature, chunk_size)
  return jax.tree.map(lambda x: align(x.reshape(targets.shape)), out)
