"""Heads that read a decoder's hidden states."""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import types


def init_scalar(key: jax.Array, hidden_size: int, *,
                scale: float = 1.0) -> types.Params:
  """A linear map to one number, weights N(0, scale^2 / hidden_size).

  Stiennon et al. 2020 and lm-human-preferences use N(0, 1 / (d + 1)); the
  initialisation is what tells the members of an ensemble apart (Coste et al.
  2024, section 4.3).
  """
  weight = jax.random.normal(key, (hidden_size,)) * scale * hidden_size ** -0.5
  return {'weight': weight, 'bias': jnp.zeros(())}


def scalar(params: types.Params, hidden: jax.Array) -> jax.Array:
  """f32[...] from hidden states [..., D]."""
  out = jnp.einsum('...d,d->...', hidden, params['weight'],
                   preferred_element_type=jnp.float32)
  return out.astype(jnp.float32) + params['bias']


def init_q(key: jax.Array, hidden_size: int, vocab_size: int, *,
           num_heads: int = 2, scale: float = 1.0) -> list[jax.Array]:
  """Linear maps to a value for each token, [V, D], N(0, scale^2 / D)."""
  keys = jax.random.split(key, num_heads)
  scale *= hidden_size ** -0.5
  return [scale * jax.random.normal(k, (vocab_size, hidden_size))
          for k in keys]


def _attention(hidden_size, num_heads):
  if hidden_size % num_heads:
    raise ValueError(f'num_heads must divide the {hidden_size} features, got '
                     f'{num_heads}.')
  return nn.MultiHeadDotProductAttention(
      num_heads=num_heads, qkv_features=hidden_size, out_features=hidden_size)


def init_prompt_value(key: jax.Array, hidden_size: int, *,
                      num_heads: int = 8) -> types.Params:
  """Parameters of `prompt_value`; the query is N(0, 1).

  Raises:
    ValueError: if `num_heads` does not divide `hidden_size`.
  """
  query_key, attention_key, scalar_key = jax.random.split(key, 3)
  example = jnp.zeros((1, 1, hidden_size))
  attention = _attention(hidden_size, num_heads).init(attention_key, example)
  return {'query': jax.random.normal(query_key, (hidden_size,)),
          'attention': attention['params'],
          'scalar': init_scalar(scalar_key, hidden_size)}


def prompt_value(params: types.Params, hidden: jax.Array, mask: jax.Array, *,
                 num_heads: int = 8, max_value: float = 1.0) -> jax.Array:
  """V(x), what the reference policy's responses to a prompt are worth.

  Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2.2, as its
  code: one learned query attends to the prompt's last hidden states; a linear
  map, a sigmoid, times the largest reward. Two things differ from that code:
  padding is not attended to, and there is no dropout, which it leaves on when
  it computes advantages.

  Args:
    params: of `init_prompt_value`.
    hidden: float[B, T, D], of the frozen reference.
    mask: bool[B, T], true on prompt tokens, at least one in each row. Padding
      may hold NaN.
    num_heads: as in `init_prompt_value`.
    max_value: the largest reward, in score units, > 0; no other can be
      represented, so that rewards must lie in (0, max_value).

  Returns:
    f32[B], in (0, max_value).

  Raises:
    ValueError: if `max_value` or `num_heads` is out of range.
    AssertionError: if shapes or dtypes disagree.
  """
  if not max_value > 0:
    raise ValueError(f'max_value must be > 0, got {max_value}.')
  chex.assert_rank([hidden, mask], [3, 2])
  chex.assert_equal_shape_prefix([hidden, mask], 2)
  chex.assert_type([hidden, mask], [float, bool])
  hidden = jnp.where(mask[..., None], hidden, 0).astype(jnp.float32)
  query = jnp.broadcast_to(
      params['query'], (len(hidden), 1, hidden.shape[-1]))
  read = _attention(hidden.shape[-1], num_heads).apply(
      {'params': params['attention']}, query, hidden,
      mask=mask[:, None, None])[:, 0]
  return max_value * jax.nn.sigmoid(scalar(params['scalar'], read))
