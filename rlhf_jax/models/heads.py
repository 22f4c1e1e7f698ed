"""Heads that read a decoder's hidden states.

Weights and results are float32 whatever the dtype of the hidden states.
"""

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.parallel import sharding

_TRUNK = ('embed', 'positions', 'layers', 'top_layers', 'norm', 'adapter')


def trunk(params: types.Params) -> types.Params:
  """What a head reads: a decoder's parameters without its unembedding.

  Other heads in `params` are left out as well; an adapter stays.
  """
  return {k: params[k] for k in _TRUNK if k in params}


def _init_features(key, hidden_size):
  kernel = jax.random.normal(key, (hidden_size, 2 * hidden_size))
  return {'kernel': kernel * hidden_size ** -0.5,
          'bias': jnp.zeros(2 * hidden_size)}


def _features(params, hidden):
  """ReLU features [..., 2 D] where there is such a layer, else `hidden`."""
  layer = params.get('features')
  if layer is None:
    return hidden
  out = hidden.astype(jnp.float32) @ layer['kernel']
  return nn.relu(out + jnp.broadcast_to(layer['bias'], out.shape))


def init_scalar(key: jax.Array, hidden_size: int, *, scale: float = 1.0,
                mlp: bool = False) -> types.Params:
  """Parameters of `scalar`, f32: one number from a hidden state of size D.

  A linear map (Stiennon et al. 2020; lm-human-preferences has weights
  N(0, 1 / (D + 1)) for rewards, and 0 for values), or D -> 2 D -> ReLU -> 1,
  the value head of trlX, Zhu et al. 2023 and Coste et al. 2024. Biases are 0.
  The initialisation is what tells the members of an ensemble apart (Coste et
  al. 2024, section 4.3).

  Args:
    key: of the weights.
    hidden_size: D.
    scale: last weights are N(0, scale^2 / inputs), inputs being D or 2 D; 0
      gives a head that says 0.
    mlp: puts a hidden layer in between, weights N(0, 1 / D).
  """
  params, inputs = {}, hidden_size
  if mlp:
    key, features_key = jax.random.split(key)
    params['features'] = _init_features(features_key, hidden_size)
    inputs = 2 * hidden_size
  weight = jax.random.normal(key, (inputs,)) * scale * inputs ** -0.5
  return params | {'weight': weight, 'bias': jnp.zeros(())}


def scalar(params: types.Params, hidden: jax.Array) -> jax.Array:
  """f32[...] from hidden states [..., D], by either map of `init_scalar`."""
  out = jnp.einsum('...d,d->...', _features(params, hidden), params['weight'],
                   preferred_element_type=jnp.float32)
  return out.astype(jnp.float32) + params['bias']


def init_q(key: jax.Array, hidden_size: int, vocab_size: int, *,
           num_heads: int = 2, scale: float = 1.0,
           mlp: bool = False) -> list[types.Params]:
  """Heads with a value for each token, f32; `q_map` reads them.

  Args:
    key: of the weights; every head has its own.
    hidden_size: D.
    vocab_size: V.
    num_heads: 2 in ILQL, whose smaller value counts.
    scale: last weights [V, inputs] are N(0, scale^2 / inputs).
    mlp: D -> 2 D -> ReLU -> V as in trlX, at twice the parameters and time of
      the linear maps [V, D] without bias that there are otherwise.
  """
  keys = jax.random.split(key, num_heads)
  if mlp:
    return [_init_q_mlp(k, hidden_size, vocab_size, scale) for k in keys]
  scale *= hidden_size ** -0.5
  return [scale * jax.random.normal(k, (vocab_size, hidden_size))
          for k in keys]


def _init_q_mlp(key, hidden_size, vocab_size, scale):
  key, features_key = jax.random.split(key)
  weight = jax.random.normal(key, (vocab_size, 2 * hidden_size))
  return {'features': _init_features(features_key, hidden_size),
          'weight': weight * scale * (2 * hidden_size) ** -0.5,
          'bias': jnp.zeros(vocab_size)}


def q_map(params: types.Params, hidden: jax.Array
          ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """A Q head as `ops.logprobs.from_hidden` takes it.

  Args:
    params: one head of `init_q`.
    hidden: float[..., D].

  Returns:
    States [..., inputs] of the dtype of `hidden`, so that the product over
    the vocabulary costs what the policy's does, matrix [V, inputs], and bias
    [V] or None.
  """
  whole = lambda matrix: sharding.whole(matrix.astype(hidden.dtype))
  if not isinstance(params, dict):
    return hidden, whole(params), None
  states = _features(params, hidden).astype(hidden.dtype)
  return states, whole(params['weight']), params['bias']


def q_value(params: types.Params, hidden: jax.Array,
            tokens: jax.Array) -> jax.Array:
  """f32[...], value of tokens i32[...] in hidden states [..., D].

  Reads one row of the head for each token; no vocabulary is projected.
  """
  states, weight, bias = q_map(params, hidden)
  value = jnp.einsum(
      '...d,...d->...', states, weight[tokens].astype(states.dtype),
      preferred_element_type=jnp.float32)
  return value if bias is None else value + bias[tokens]


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
