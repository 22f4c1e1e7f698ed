"""Logits to the log-probability and entropy of each token, in nats.

Logits at t - 1 predict the token at t, so results are target-aligned and 0 at
t = 0. Logits are upcast to float32 before the softmax and divided by the
temperature of the sampler, without which ratios against the sampler's own
log-probabilities are not 1 (objectives.md, section 13, trap 22).
"""

import functools

import chex
import jax
import jax.numpy as jnp


def _check(temperature: float, tokens: jax.Array) -> None:
  if temperature <= 0:
    raise ValueError(f'temperature must be > 0, got {temperature}.')
  chex.assert_type(tokens, int)


def _statistics(logits, targets, temperature):
  """(logprob, entropy) f32[...] of targets i32[...] under logits [..., V]."""
  logprobs = jax.nn.log_softmax(logits.astype(jnp.float32) / temperature)
  taken = jnp.take_along_axis(logprobs, targets[..., None], axis=-1)[..., 0]
  probs = jnp.exp(logprobs)
  # A token that the sampler forbade has logit -inf, and 0 * -inf is NaN.
  entropy = -jnp.sum(probs * jnp.where(probs > 0, logprobs, 0), axis=-1)
  return taken, entropy


def _align(x: jax.Array) -> jax.Array:
  """Prepends the position t = 0, which is never a target."""
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(1, 0)])


def _from_logits(logits, tokens, temperature):
  _check(temperature, tokens)
  chex.assert_equal_shape_prefix([logits, tokens], tokens.ndim)
  chex.assert_rank(logits, tokens.ndim + 1)
  chex.assert_type(logits, float)
  return jax.tree.map(_align, _statistics(
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
  return _from_logits(logits, tokens, temperature)[0]


def token_entropy(logits: jax.Array, tokens: jax.Array, *,
                  temperature: float = 1.0) -> jax.Array:
  """Entropy of the distribution that each token was drawn from.

  Arguments, alignment and errors are those of `token_logprobs`.
  """
  return _from_logits(logits, tokens, temperature)[1]


def from_hidden(
    hidden: jax.Array,
    unembed: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
    chunk_size: int = 64,
) -> tuple[jax.Array, jax.Array]:
  """Log-probabilities and entropies without the logits of a whole batch.

  Logits exist for `chunk_size` positions at a time and are recomputed in the
  backward pass, so memory is O(rows * chunk_size * V), not O(rows * T * V).

  Args:
    hidden: float[..., T, D], final hidden states.
    unembed: float[V, D], output matrix.
    tokens: i32[..., T].
    temperature: divides the logits, > 0.
    chunk_size: positions per chunk, >= 1; T need not be a multiple.

  Returns:
    (logprobs, entropy), each f32[..., T] in nats; t = 0 is 0.

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

  count = tokens.shape[-1] - 1
  size = min(chunk_size, max(count, 1))
  axis = tokens.ndim - 1  # the T axis of both arrays

  def cut(x):  # [..., count, ...] -> [chunks, ..., size, ...]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -count % size)
    x = jnp.pad(x, widths)
    x = x.reshape(*x.shape[:axis], -1, size, *x.shape[axis + 1:])
    return jnp.moveaxis(x, axis, 0)

  def join(x):  # [chunks, ..., size] -> [..., T]
    x = jnp.moveaxis(x, 0, -2)
    return _align(x.reshape(*x.shape[:-2], -1)[..., :count])

  @functools.partial(jax.checkpoint, prevent_cse=False)  # inside a scan
  def chunk(hidden, targets):
    logits = jnp.einsum('...d,vd->...v', hidden, unembed.astype(hidden.dtype),
                        preferred_element_type=jnp.float32)
    return _statistics(logits, targets, temperature)

  chunks = jax.lax.map(lambda pair: chunk(*pair), (
      cut(hidden[..., :-1, :]), cut(tokens[..., 1:])))
  return jax.tree.map(join, chunks)
