"""One Linen decoder for LLaMA and GPT-NeoX shapes, chosen by its config.

LLaMA: Touvron et al. 2023, https://arxiv.org/abs/2302.13971 (pre-RMSNorm,
SwiGLU, rotary positions, grouped-query attention). GPT-NeoX / Pythia: Black
et al. 2022, https://arxiv.org/abs/2204.06745 (LayerNorm, GELU, biases, rotary
positions on a part of each head, parallel residual).

Parameters are an explicit pytree with the layers stacked on a leading axis:
training scans over it (one layer is compiled), sampling unrolls it (faster on
small models). Both run the same `Block`.
"""

import dataclasses
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import types

Cache = list[tuple[jax.Array, jax.Array]]  # per layer: keys, values [B,S,K,h]


@dataclasses.dataclass(frozen=True)
class Config:
  """Shape of a decoder; hashable, so that it can be a static argument."""

  vocab_size: int
  hidden_size: int
  num_layers: int
  num_heads: int
  intermediate_size: int
  num_kv_heads: int | None = None  # None: as many as query heads
  norm: str = 'rms'  # 'rms' | 'layer'
  norm_epsilon: float = 1e-5
  mlp: str = 'swiglu'  # 'swiglu' | 'gelu'
  use_bias: bool = False
  parallel_residual: bool = False
  rotary_fraction: float = 1.0
  rope_theta: float = 10_000.0
  tie_embeddings: bool = False
  dtype: str = 'float32'  # of the computation; parameters stay as they are
  remat: bool = False

  def __post_init__(self):
    for name in ('vocab_size', 'hidden_size', 'num_layers', 'num_heads',
                 'intermediate_size'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name} must be >= 1, got {getattr(self, name)}.')
    if self.hidden_size % self.num_heads:
      raise ValueError(f'hidden_size {self.hidden_size} is not divisible by '
                       f'num_heads {self.num_heads}.')
    if self.num_heads % self.kv_heads:
      raise ValueError(f'num_heads {self.num_heads} is not divisible by '
                       f'num_kv_heads {self.kv_heads}.')
    if self.rotary_size % 2:
      raise ValueError(f'rotary_fraction {self.rotary_fraction} rotates '
                       f'{self.rotary_size} of {self.head_size} dimensions; '
                       'the number must be even.')
    for name, allowed in (('norm', ('rms', 'layer')),
                          ('mlp', ('swiglu', 'gelu'))):
      if getattr(self, name) not in allowed:
        raise ValueError(f'{name} must be one of {allowed}, '
                         f'got {getattr(self, name)!r}.')

  @property
  def head_size(self) -> int:
    return self.hidden_size // self.num_heads

  @property
  def kv_heads(self) -> int:
    return self.num_kv_heads or self.num_heads

  @property
  def rotary_size(self) -> int:
    return int(self.head_size * self.rotary_fraction)


FAMILIES: dict[str, dict[str, Any]] = {
    'llama': {},
    'gpt_neox': dict(norm='layer', mlp='gelu', use_bias=True,
                     parallel_residual=True, rotary_fraction=0.25),
}


def make_config(family: str, **kwargs) -> Config:
  """Returns the `Config` of a family; `kwargs` override its defaults."""
  if family not in FAMILIES:
    raise ValueError(f'family must be one of {sorted(FAMILIES)}, '
                     f'got {family!r}.')
  kwargs = FAMILIES[family] | kwargs
  if 'intermediate_size' not in kwargs:
    kwargs['intermediate_size'] = 4 * kwargs['hidden_size']
  return Config(**kwargs)


def rotate(x: jax.Array, positions: jax.Array, theta: float,
           size: int) -> jax.Array:
  """Rotary embedding of the first `size` dimensions of x [B, T, N, h].

  Half-split convention (as GPT-NeoX and Hugging Face LLaMA store weights);
  `positions` i32[B, T]; angles are float32 whatever the dtype of x.
  """
  frequency = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
  angle = positions[..., None].astype(jnp.float32) * frequency[None, None]
  cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
  turned, rest = x[..., :size].astype(jnp.float32), x[..., size:]
  first, second = jnp.split(turned, 2, axis=-1)
  turned = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1)
  return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


class Block(nn.Module):
  """One decoder layer: attention and MLP with residuals."""

  config: Config

  def _dense(self, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=self.config.use_bias, name=name,
                    dtype=self.config.dtype)

  def _norm(self, name: str) -> nn.Module:
    kind = nn.RMSNorm if self.config.norm == 'rms' else nn.LayerNorm
    return kind(epsilon=self.config.norm_epsilon, name=name,
                dtype=self.config.dtype)

  def _attention(self, x, positions, mask, cache, slot, query):
    config = self.config
    heads = lambda y, n: y.reshape(*y.shape[:2], n, config.head_size)
    turn = lambda y, p: rotate(y, p, config.rope_theta, config.rotary_size)
    key = turn(heads(self._dense(config.kv_heads * config.head_size, 'k')(x),
                     config.kv_heads), positions)
    value = heads(self._dense(config.kv_heads * config.head_size, 'v')(x),
                  config.kv_heads)
    if query is not None:
      x, positions = _pick(x, query), _pick(positions, query)
    q = turn(heads(self._dense(config.hidden_size, 'q')(x), config.num_heads),
             positions)
    if cache is not None:
      at = (0, slot, 0, 0)
      key = jax.lax.dynamic_update_slice(
          cache[0], key.astype(cache[0].dtype), at)
      value = jax.lax.dynamic_update_slice(
          cache[1], value.astype(cache[1].dtype), at)
    out = jax.nn.dot_product_attention(
        q, key.astype(q.dtype), value.astype(q.dtype), mask=mask[:, None])
    out = out.reshape(*out.shape[:2], config.hidden_size)
    return self._dense(config.hidden_size, 'o')(out), (key, value)

  def _mlp(self, x):
    config = self.config
    if config.mlp == 'swiglu':
      gate = self._dense(config.intermediate_size, 'gate')(x)
      up = self._dense(config.intermediate_size, 'up')(x)
      x = nn.silu(gate) * up
    else:
      x = nn.gelu(self._dense(config.intermediate_size, 'up')(x),
                  approximate=False)
    return self._dense(config.hidden_size, 'down')(x)

  @nn.compact
  def __call__(self, x, positions, mask, cache=None, slot=0, query=None):
    """Runs the layer.

    Args:
      x: [B, T, D].
      positions: i32[B, T].
      mask: bool[B or 1, Q, S], true where a query may look.
      cache: keys and values [B, S, K, h] to write T new entries into.
      slot: where in the cache they go.
      query: i32[B]; the only position whose output is wanted (Q = 1), for the
        last layer of a model that is read at one token. None: all, Q = T.

    Returns:
      Output [B, Q, D] and the keys and values [B, S, K, h] attended to.
    """
    attended, cache = self._attention(
        self._norm('attention_norm')(x), positions, mask, cache, slot, query)
    if query is not None:
      x = _pick(x, query)
    if self.config.parallel_residual:
      return x + attended + self._mlp(self._norm('mlp_norm')(x)), cache
    x = x + attended
    return x + self._mlp(self._norm('mlp_norm')(x)), cache


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
  """x[b, index[b]] with the axis kept, by a gather along axis 1."""
  return jnp.take_along_axis(
      x, index.reshape(-1, *[1] * (x.ndim - 1)), axis=1, mode='clip')


def _final_norm(config: Config) -> nn.Module:
  kind = nn.RMSNorm if config.norm == 'rms' else nn.LayerNorm
  return kind(epsilon=config.norm_epsilon, dtype=config.dtype)


def init(config: Config, key: jax.Array) -> types.Params:
  """Returns float32 parameters: embed, layers [L, ...], norm, (unembed)."""
  embed_key, layers_key, norm_key, unembed_key = jax.random.split(key, 4)
  x = jnp.zeros((1, 1, config.hidden_size))
  positions = jnp.zeros((1, 1), jnp.int32)
  mask = jnp.ones((1, 1, 1), bool)
  layer = lambda k: Block(config).init(k, x, positions, mask)['params']
  size = (config.vocab_size, config.hidden_size)
  scale = config.hidden_size ** -0.5
  params = {
      'embed': jax.random.normal(embed_key, size) * scale,
      'layers': jax.vmap(layer)(
          jax.random.split(layers_key, config.num_layers)),
      'norm': _final_norm(config).init(norm_key, x)['params'],
  }
  if not config.tie_embeddings:
    params['unembed'] = jax.random.normal(unembed_key, size) * scale
  return params


def unembedding(params: types.Params) -> jax.Array:
  """The output matrix [V, D]; the embedding itself where they are tied."""
  return params.get('unembed', params['embed'])


def embed(config: Config, params: types.Params, tokens: jax.Array):
  return params['embed'].astype(config.dtype)[tokens]


def finish(config: Config, params: types.Params, x: jax.Array) -> jax.Array:
  """The final normalisation, [..., D]."""
  return _final_norm(config).apply({'params': params['norm']}, x)


def _layout(tokens, attention_mask):
  """Positions i32[B, T] and causal mask bool[B or 1, T, T]."""
  length = tokens.shape[1]
  causal = jnp.tril(jnp.ones((length, length), bool))[None]
  if attention_mask is None:
    return jnp.broadcast_to(jnp.arange(length), tokens.shape), causal
  chex.assert_equal_shape([tokens, attention_mask])
  positions = jnp.cumsum(attention_mask, axis=1, dtype=jnp.int32) - 1
  # A padded query sees itself, so that its softmax stays finite.
  itself = jnp.eye(length, dtype=bool)[None]
  return (jnp.maximum(positions, 0),
          causal & (attention_mask[:, None, :] | itself))


def hidden_states(
    config: Config,
    params: types.Params,
    tokens: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    query: jax.Array | None = None,
) -> jax.Array:
  """Final hidden states, normalised.

  Args:
    config: shape of the decoder.
    params: as `init` returns them.
    tokens: i32[B, T].
    attention_mask: bool[B, T], false on padding, left or right. None: no
      padding, or only on the right of what is read (causality hides it).
    query: i32[B], the one position to return; the last layer then computes
      nothing else.

  Returns:
    config.dtype[B, T, D], or [B, 1, D] with `query`.
  """
  chex.assert_rank(tokens, 2)
  positions, mask = _layout(tokens, attention_mask)
  block = Block(config)

  def layer(x, layer_params):
    return block.apply({'params': layer_params}, x, positions, mask)[0], None

  if config.remat:
    layer = jax.checkpoint(layer, prevent_cse=False)
  x = embed(config, params, tokens)
  if query is None:
    x, _ = jax.lax.scan(layer, x, params['layers'])
    return finish(config, params, x)
  inner = jax.tree.map(lambda p: p[:-1], params['layers'])
  last = jax.tree.map(lambda p: p[-1], params['layers'])
  if config.num_layers > 1:
    x, _ = jax.lax.scan(layer, x, inner)
  row = _pick(jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:])), query)
  x, _ = block.apply({'params': last}, x, positions, row, query=query)
  return finish(config, params, x)


def logits(
    config: Config,
    params: types.Params,
    tokens: jax.Array,
    attention_mask: jax.Array | None = None,
) -> jax.Array:
  """Next-token logits f32[B, T, V] for tokens i32[B, T]."""
  x = hidden_states(config, params, tokens, attention_mask)
  return jnp.einsum('btd,vd->btv', x, unembedding(params).astype(x.dtype),
                    preferred_element_type=jnp.float32)


def make_cache(config: Config, batch_size: int, length: int) -> Cache:
  """An empty cache of `length` slots for each layer."""
  shape = (batch_size, length, config.kv_heads, config.head_size)
  zeros = jnp.zeros(shape, config.dtype)
  return [(zeros, zeros) for _ in range(config.num_layers)]


def unstack(config: Config, params: types.Params) -> list[types.Params]:
  """The stacked layers as a list, for unrolled decoding."""
  return [jax.tree.map(lambda p, i=i: p[i], params['layers'])
          for i in range(config.num_layers)]


def extend(config: Config, params: types.Params, tokens, positions, mask,
           cache: Cache, slot) -> tuple[jax.Array, Cache]:
  """Feeds tokens i32[B, T] through cached, unrolled layers.

  Args:
    config: shape of the decoder.
    params: with 'layers' either stacked or already a list (`unstack`).
    tokens: i32[B, T], the new tokens.
    positions: i32[B, T].
    mask: bool[B or 1, T, S] over the slots of the cache.
    cache: S slots for each layer.
    slot: first slot to write.

  Returns:
    Hidden states [B, T, D], not yet normalised, and the new cache.
  """
  layers = params['layers']
  if not isinstance(layers, list):
    layers = unstack(config, params)
  x, new = embed(config, params, tokens), []
  for layer, kept in zip(layers, cache):
    x, kept = Block(config).apply(
        {'params': layer}, x, positions, mask, cache=kept, slot=slot)
    new.append(kept)
  return x, new
