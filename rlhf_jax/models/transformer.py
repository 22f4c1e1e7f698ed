"""One Linen decoder for GPT-2, GPT-Neo, GPT-J, GPT-NeoX, LLaMA and its kin.

Which of them is said by a `Config` (see `models.config`): GPT-2 (Radford et
al. 2019), GPT-Neo (Black et al. 2021, https://doi.org/10.5281/zenodo.5297715),
GPT-J (Wang and Komatsuzaki 2021), GPT-NeoX / Pythia (Black et al. 2022,
https://arxiv.org/abs/2204.06745), LLaMA (Touvron et al. 2023,
https://arxiv.org/abs/2302.13971), Mistral, Qwen2, Qwen3.

Parameters are an explicit pytree with the layers stacked on a leading axis:
training scans over it (one layer is compiled), sampling unrolls it (faster on
small models). Both run the same `Block`; on one CPU training unrolls too, see
`meshes.on_one_cpu`. Beside the decoder's own entries

  embed [V, D], positions [P, D], layers [L, ...], norm, unembed [V, D],
  unembed_bias [V]

there may be 'top_layers' (layers after 'layers', for training only the last
ones) and 'adapter' (low-rank additions to the kernels of 'layers'; see
`models.lora`). Kernels of 'layers' may be quantised (`models.quantize`).
"""

import functools
import re
from typing import Any

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.models import config as config_lib
from rlhf_jax.models import quantize
from rlhf_jax.ops import attention
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding

Config = config_lib.Config
make_config = config_lib.make_config
Cache = list[tuple[jax.Array, jax.Array]]  # per layer: keys, values [B,K,S,h]

_ACTIVATIONS = {
    'silu': nn.silu, 'relu': nn.relu,
    'gelu': functools.partial(nn.gelu, approximate=False),
    'gelu_new': functools.partial(nn.gelu, approximate=True)}
_UNROLLED = 8  # layers at most, so that compiling stays short
_THIN = 32  # rows at most of a `_thin_product`
_REMATS = {
    'full': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def _frequencies(config: Config) -> jax.Array:
  """f32[rotary_size / 2], radians a token."""
  size = config.rotary_size
  exponent = -jnp.arange(0, size, 2, dtype=jnp.float32) / size
  frequency = config.rope_theta ** exponent
  scaling = config.rope_scaling
  if scaling is None:
    return frequency
  if scaling.kind == 'linear':
    return frequency / scaling.factor
  turns = scaling.original_length * frequency / (2 * jnp.pi)
  low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
  keep = jnp.clip((turns - low) / (high - low), 0, 1)
  return frequency * (keep + (1 - keep) / scaling.factor)


def rotate(x: jax.Array, positions: jax.Array,
           frequencies: jax.Array) -> jax.Array:
  """Rotary embedding of the first dimensions of x [B, T, N, h].

  Half-split convention (as GPT-NeoX and Hugging Face LLaMA store weights):
  dimensions i and i + F turn by positions * frequencies[i], of F frequencies.
  `positions` i32[B, T]; angles are float32 whatever the dtype of x.
  """
  angle = positions[..., None].astype(jnp.float32) * frequencies[None, None]
  cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
  size = 2 * frequencies.shape[0]
  turned, rest = x[..., :size].astype(jnp.float32), x[..., size:]
  first, second = jnp.split(turned, 2, axis=-1)
  turned = jnp.concatenate(
      [first * cos - second * sin, second * cos + first * sin], axis=-1)
  return jnp.concatenate([turned.astype(x.dtype), rest], axis=-1)


def _norm(config: Config, name: str | None = None) -> nn.Module:
  kind = nn.RMSNorm if config.norm == 'rms' else nn.LayerNorm
  # E[x^2] - E[x]^2 loses digits where a feature is large, as in GPT-2.
  return kind(epsilon=config.norm_epsilon, name=name, dtype=config.dtype,
              use_fast_variance=False)


def _drop(module: nn.Module, rate: float, x: jax.Array) -> jax.Array:
  """Dropout where the caller has given a key, and nowhere else."""
  if not rate or not module.has_rng('dropout'):
    return x
  return nn.Dropout(rate, deterministic=False)(x)


def _written(old: jax.Array, new: jax.Array, slot) -> jax.Array:
  """A cache [B, K, S, h] with entries [B, K, T, h] from a slot on.

  Where rows have slots of their own, i32[B], T is 1.
  """
  if jnp.ndim(slot) == 0:
    return jax.lax.dynamic_update_slice(old, new, (0, 0, slot, 0))
  return old.at[jnp.arange(len(old)), :, slot].set(new[:, :, 0])


def _thin_product(x, kernel, *_, **__):
  """x [..., D] @ kernel [D, F], of few rows, on a CPU.

  XLA writes a convolution of width 1 as a product again, but after it has
  handed products to YNNPACK, which is slower than its own where rows are few
  (jaxlib 0.10: 29 and 37 GFLOP/s at 32 rows of 256 x 682).
  """
  y = jax.lax.conv_general_dilated(
      x.reshape(1, -1, x.shape[-1]), kernel[None], (1,), 'VALID',
      dimension_numbers=('NWC', 'WIO', 'NWC'))
  return y.reshape(*x.shape[:-1], -1)


class Block(nn.Module):
  """One decoder layer: attention and MLP with residuals.

  Attributes:
    config: shape of the decoder.
    thin: whether products are `_thin_product`.
  """

  config: Config
  thin: bool = False

  def _dense(self, x, features: int, name: str, use_bias: bool):
    """A linear map, with its low-rank adapter if there is one."""
    config, shape = self.config, (*x.shape[:-1], features)
    if x.shape[1] > 1 and meshes.on_one_cpu():
      x = x.reshape(-1, x.shape[-1])
    y = nn.Dense(features, use_bias=use_bias, name=name, dtype=config.dtype,
                 dot_general=_thin_product if self.thin else None)(x)
    adapter = self.get_variable('adapter', name)
    if adapter is None:
      return y.reshape(shape)
    x = _drop(self, config.adapter_dropout, x)
    a, b = (adapter[k].astype(y.dtype) for k in 'ab')
    y += config.adapter_scale * ((x.astype(y.dtype) @ a) @ b)
    return y.reshape(shape)

  def _heads(self, x, count: int, name: str):
    config = self.config
    y = self._dense(x, count * config.head_size, name, config.attention_bias)
    y = y.reshape(*y.shape[:2], count, config.head_size)
    if config.qk_norm and name != 'v':
      y = nn.RMSNorm(epsilon=config.norm_epsilon, name=f'{name}_norm',
                     dtype=config.dtype)(y)
    return y

  def _attention(self, x, positions, mask, cache, slot, query, depth):
    config = self.config
    turn = lambda y, p: y
    if config.max_positions is None:
      turn = lambda y, p: rotate(y, p, _frequencies(config))
    key = turn(self._heads(x, config.num_kv_heads, 'k'), positions)
    value = self._heads(x, config.num_kv_heads, 'v')
    if query is not None:
      x, positions = _pick(x, query), _pick(positions, query)
    q = turn(self._heads(x, config.num_heads, 'q'), positions)
    if config.scale_by_depth:
      q = q / (depth + 1).astype(q.dtype)
    if cache is None and config.attention is None and meshes.on_one_cpu():
      out = attention.cached(q, key.swapaxes(1, 2), value.swapaxes(1, 2), mask,
                             scale=config.attention_scale)
    elif cache is None:
      out = jax.nn.dot_product_attention(
          q, key.astype(q.dtype), value.astype(q.dtype), mask=mask[:, None],
          scale=config.attention_scale, implementation=config.attention)
    else:
      cache = tuple(_written(old, new.swapaxes(1, 2).astype(old.dtype), slot)
                    for old, new in zip(cache, (key, value), strict=True))
      out = attention.cached(q, *cache, mask, scale=config.attention_scale)
    out = out.reshape(*out.shape[:2], -1)
    out = self._dense(out, config.hidden_size, 'o', config.output_bias)
    return _drop(self, config.dropout, out), cache

  def _mlp(self, x):
    config = self.config
    dense = functools.partial(
        self._dense, x, config.intermediate_size, use_bias=config.mlp_bias)
    activation = _ACTIVATIONS[config.activation]
    if config.mlp == 'gated':
      x = activation(dense('gate')) * dense('up')
    else:
      x = activation(dense('up'))
    x = self._dense(x, config.hidden_size, 'down', config.mlp_bias)
    return _drop(self, config.dropout, x)

  @nn.compact
  def __call__(self, x, positions, mask, *, cache=None, slot=0, query=None,
               window=None, depth=None, key_positions=None):
    """Runs the layer.

    Args:
      x: [B, T, D].
      positions: i32[B, T].
      mask: bool[B or 1, Q, S], true where a query may look.
      cache: keys and values [B, K, S, h] to write T new entries into.
      slot: where in the cache they go; i32[B] if rows differ, and T is 1.
      query: i32[B] or i32[B, Q]; the only positions whose output is wanted,
        for the last layer of a model that is read at few tokens. None: all, Q
        = T.
      window: i32[], tokens that a query sees, itself included; None: all.
      depth: i32[], index of the layer.
      key_positions: i32[B, S], where a window needs them; default
        `positions`.

    Returns:
      Output [B, Q, D], and the cache with the new entries, if there is one.
    """
    config = self.config
    if window is not None:
      seen = positions if query is None else _pick(positions, query)
      held = positions if key_positions is None else key_positions
      mask = mask & (seen[:, :, None] - held[:, None] < window)
    normed = _norm(config, 'attention_norm')(x)
    attended, cache = self._attention(
        normed, positions, mask, cache, slot, query, depth)
    if query is not None:
      x, normed = _pick(x, query), _pick(normed, query)
    if config.residual == 'shared':
      return x + attended + self._mlp(normed), cache
    if config.residual == 'parallel':
      return x + attended + self._mlp(_norm(config, 'mlp_norm')(x)), cache
    x = x + attended
    return x + self._mlp(_norm(config, 'mlp_norm')(x)), cache


def _pick(x: jax.Array, index: jax.Array) -> jax.Array:
  """x[b, index[b, q]] as [B, Q, ...]; of index i32[B], Q is 1."""
  index = index.reshape(len(index), -1, *[1] * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1, mode='clip')


def init(config: Config, key: jax.Array) -> types.Params:
  """Returns float32 parameters, see the top of this module."""
  embed_key, layers_key, norm_key, unembed_key = jax.random.split(key, 4)
  x = jnp.zeros((1, 1, config.hidden_size))
  positions = jnp.zeros((1, 1), jnp.int32)
  mask = jnp.ones((1, 1, 1), bool)
  layer = lambda k: Block(config).init(
      k, x, positions, mask, depth=jnp.int32(0))['params']
  size = (config.vocab_size, config.hidden_size)
  scale = config.hidden_size ** -0.5
  params = {
      'embed': jax.random.normal(embed_key, size) * scale,
      'layers': jax.vmap(layer)(
          jax.random.split(layers_key, config.num_layers)),
      'norm': _norm(config).init(norm_key, x)['params'],
  }
  if config.max_positions is not None:
    params['positions'] = scale * jax.random.normal(
        jax.random.fold_in(embed_key, 1),
        (config.max_positions, config.hidden_size))
  if not config.tie_embeddings:
    params['unembed'] = jax.random.normal(unembed_key, size) * scale
  if config.unembed_bias:
    params['unembed_bias'] = jnp.zeros(config.vocab_size)
  return params


@functools.lru_cache(maxsize=64)
def abstract(config: Config) -> types.Params:
  """The shapes of what `init` makes."""
  return jax.eval_shape(lambda: init(config, jax.random.key(0)))


def frozen(config: Config, params: types.Params) -> types.Params:
  """Parameters that nothing trains, as they are kept.

  Matrices have the dtype that they are cast to wherever they are read, so that
  no number changes and bfloat16 takes half the memory. Norms, biases, heads
  and what is quantised stay as they are.

  Args:
    config: shape of the decoder.
    params: of the decoder, or holding one, or with leading axes.
  """
  def cast(path, x):
    name = sharding.path_of(path)
    matrix = re.search(r'kernel$|embed$|positions$|adapter/', name)
    return x.astype(config.dtype) if matrix and 'head' not in name else x

  if config.dtype == 'float32':
    return params
  return jax.tree_util.tree_map_with_path(cast, params)


def unembedding(params: types.Params, dtype: str | None = None) -> jax.Array:
  """The output matrix [V, D]; the embedding itself where they are tied.

  Args:
    params: of the decoder.
    dtype: in which it will be read; None: its own.
  """
  # From NumPy parameters, too.
  matrix = jnp.asarray(params.get('unembed', params['embed']))
  return sharding.whole(matrix.astype(dtype or matrix.dtype))


def project(params: types.Params, x: jax.Array) -> jax.Array:
  """Next-token logits f32[..., V] from normalised hidden states [..., D]."""
  out = jnp.einsum('...d,vd->...v', x, unembedding(params, x.dtype),
                   preferred_element_type=jnp.float32)
  if 'unembed_bias' in params:
    out += jnp.broadcast_to(
        params['unembed_bias'].astype(jnp.float32), out.shape)
  return out


def embed(config: Config, params: types.Params, tokens: jax.Array,
          positions: jax.Array) -> jax.Array:
  """config.dtype[B, T, D] of tokens i32[B, T] at positions i32[B, T]."""
  # Of NumPy parameters, too, which cannot be indexed by traced tokens.
  table = lambda name: sharding.whole(
      jnp.asarray(params[name]).astype(config.dtype))
  x = table('embed')[tokens]
  if config.max_positions is not None:
    x += table('positions')[positions]
  return sharding.keep_rows(x)


def finish(config: Config, params: types.Params, x: jax.Array) -> jax.Array:
  """The final normalisation, [..., D]."""
  return _norm(config).apply({'params': params['norm']}, x)


def check_length(config: Config, length: int):
  """ValueError if rows of `length` tokens exceed a learned table."""
  if config.max_positions is not None and length > config.max_positions:
    raise ValueError(f'rows of {length} tokens exceed the {config.family} '
                     f"model's max_positions {config.max_positions}.")


def _causal(length):
  """bool[1, T, T]: a token sees itself and those before it."""
  return jnp.tril(jnp.ones((length, length), bool))[None]


def _layout(tokens, attention_mask):
  """Positions i32[B, T] and causal mask bool[B or 1, T, T]."""
  length = tokens.shape[1]
  causal = _causal(length)
  if attention_mask is None:
    return jnp.broadcast_to(jnp.arange(length), tokens.shape), causal
  chex.assert_equal_shape([tokens, attention_mask])
  positions = jnp.cumsum(attention_mask, axis=1, dtype=jnp.int32) - 1
  # A padded query sees itself, so that its softmax stays finite.
  itself = jnp.eye(length, dtype=bool)[None]
  return (jnp.maximum(positions, 0),
          causal & (attention_mask[:, None, :] | itself))


def _packed_layout(segments):
  """The same of rows that hold several pieces, each from position 0."""
  index = jnp.broadcast_to(jnp.arange(segments.shape[1]), segments.shape)
  first = jnp.diff(segments, axis=1, prepend=-1) != 0
  start = jax.lax.cummax(jnp.where(first, index, 0), axis=1)
  same = segments[:, :, None] == segments[:, None]
  return index - start, same & _causal(segments.shape[1])


def _stacks(config: Config, params: types.Params) -> list[dict[str, Any]]:
  """What each layer reads, stacked [l, ...], in one or two groups."""
  stacks, start = [], 0
  for name in ('layers', 'top_layers'):
    if name not in params:
      continue
    stack = {'params': params[name]}
    length = jax.tree.leaves(stack)[0].shape[0]
    if name in params.get('adapter', {}):
      stack['adapter'] = params['adapter'][name]
    stack['depth'] = jnp.arange(start, start + length)
    if any(config.windows):
      # 0 stands for all; no row is that long.
      stack['window'] = jnp.array(
          [w or 2**30 for w in config.windows[start:start + length]])
    stacks.append(stack)
    start += length
  return stacks


def _has_quantized(params: types.Params) -> bool:
  leaves = jax.tree.leaves(params, is_leaf=quantize.is_quantized)
  return any(map(quantize.is_quantized, leaves))


def _apply(config: Config, layer: dict[str, Any], x, positions, mask,
           dropout_key=None, **kwargs):
  """Runs one layer of `_stacks`; (output, keys and values)."""
  if _has_quantized(layer['params']):
    # Else the compiler makes all layers dense before a loop over tokens.
    x, layer = jax.lax.optimization_barrier((x, layer))
  variables = {'params': quantize.dense(layer['params'], config.dtype)}
  if 'adapter' in layer:
    variables['adapter'] = layer['adapter']
  # One row is bound by reading; at 64 both are as fast. Not in training.
  thin = ('cache' in kwargs and x.shape[1] == 1 < len(x) <= _THIN
          and config.dtype == 'float32' and meshes.on_one_cpu())
  x, kept = Block(config, thin).apply(
      variables, x, positions, mask, window=layer.get('window'),
      depth=layer['depth'], **kwargs,
      rngs={} if dropout_key is None else {'dropout': dropout_key})
  return sharding.keep_rows(x), kept


def _rematerialized(config: Config, params: types.Params, layer):
  """`layer` with what its backward pass keeps, by `config.remat`."""
  remat = config.remat
  if remat == 'none' and _has_quantized(params):
    remat = 'full'  # else the backward pass keeps every dense weight
  if remat == 'none':
    return layer
  return jax.checkpoint(layer, prevent_cse=False, policy=_REMATS[remat])


def hidden_states(
    config: Config,
    params: types.Params,
    tokens: jax.Array,
    attention_mask: jax.Array | None = None,
    *,
    query: jax.Array | None = None,
    segments: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
  """Final hidden states, normalised.

  Args:
    config: shape of the decoder.
    params: as `init` returns them.
    tokens: i32[B, T].
    attention_mask: bool[B, T], false on padding, left or right. None: no
      padding, or only on the right of what is read (causality hides it).
    query: i32[B] or i32[B, Q], the positions to return; the last layer then
      computes nothing else.
    segments: i32[B, T], where rows hold several pieces beside each other: a
      token sees those before it of its own number, which stand together. Not
      with `attention_mask`.
    dropout_key: of `config.dropout` and `config.adapter_dropout`; None: no
      dropout. Attention weights are never dropped.

  Returns:
    config.dtype[B, T, D], or [B, Q, D] with `query`, Q being 1 of i32[B].

  Raises:
    ValueError: if T exceeds a learned table of positions, or there are both
      segments and an attention mask.
  """
  chex.assert_rank(tokens, 2)
  check_length(config, tokens.shape[1])
  if segments is None:
    positions, mask = _layout(tokens, attention_mask)
  elif attention_mask is None:
    chex.assert_equal_shape([tokens, segments])
    positions, mask = _packed_layout(segments)
  else:
    raise ValueError('segments and attention_mask exclude each other.')

  def key_of(stacked):
    if dropout_key is None:
      return None
    return jax.random.fold_in(dropout_key, stacked['depth'] + 1)

  def layer(x, stacked):
    return _apply(
        config, stacked, x, positions, mask, key_of(stacked))[0], None

  x = embed(config, params, tokens, positions)
  if dropout_key is not None and config.dropout:
    x = nn.Dropout(config.dropout, deterministic=False).apply(
        {}, x, rngs={'dropout': jax.random.fold_in(dropout_key, 0)})
  stacks, last = _stacks(config, params), None
  if query is not None:
    last = jax.tree.map(lambda p: p[-1], stacks[-1])
    stacks[-1] = jax.tree.map(lambda p: p[:-1], stacks[-1])
  run = _rematerialized(config, params, layer)
  # What is computed again needs the loop, or the compiler computes it once.
  most = _UNROLLED if run is layer and meshes.on_one_cpu() else 1
  for stack in stacks:
    if size := stack['depth'].size:
      x, _ = jax.lax.scan(run, x, stack, unroll=min(size, most))
  if query is not None:
    row = _pick(jnp.broadcast_to(mask, (x.shape[0], *mask.shape[1:])), query)
    x, _ = _apply(
        config, last, x, positions, row, key_of(last), query=query)
  return finish(config, params, x)


def logits(
    config: Config,
    params: types.Params,
    tokens: jax.Array,
    attention_mask: jax.Array | None = None,
) -> jax.Array:
  """Next-token logits f32[B, T, V] for tokens i32[B, T]."""
  return project(params, hidden_states(config, params, tokens, attention_mask))


def make_cache(config: Config, batch_size: int, length: int) -> Cache:
  """An empty cache of `length` slots for each layer."""
  shape = (batch_size, config.num_kv_heads, length, config.head_size)
  zeros = jnp.zeros(shape, config.dtype)
  return [(zeros, zeros) for _ in range(config.num_layers)]


def unstack(config: Config, params: types.Params) -> list[dict[str, Any]]:
  """What each layer reads, as a list, for unrolled decoding."""
  return [jax.tree.map(lambda p, i=i: p[i], stack)
          for stack in _stacks(config, params)
          for i in range(stack['depth'].size)]


def extend(config: Config, params: types.Params, tokens, positions, mask,
           cache: Cache, slot, *, layers: list[dict[str, Any]] | None = None,
           key_positions=None) -> tuple[jax.Array, Cache]:
  """Feeds tokens i32[B, T] through cached, unrolled layers.

  Args:
    config: shape of the decoder.
    params: of the decoder.
    tokens: i32[B, T], the new tokens.
    positions: i32[B, T].
    mask: bool[B or 1, T, S] over the slots of the cache.
    cache: S slots for each layer.
    slot: first slot to write, of all rows, or i32[B] where T is 1.
    layers: of `unstack`; made here if not given.
    key_positions: i32[B, S], position of the token in each slot; only models
      with windows read it. Default: the slot.

  Returns:
    Hidden states [B, T, D], not yet normalised, and the new cache.
  """
  if key_positions is None:
    key_positions = jnp.arange(cache[0][0].shape[2])[None]
  x, new = embed(config, params, tokens, positions), []
  for layer, kept in zip(layers or unstack(config, params), cache,
                         strict=True):
    x, kept = _apply(config, layer, x, positions, mask, cache=kept, slot=slot,
                     key_positions=key_positions)
    new.append(kept)
  return x, new
