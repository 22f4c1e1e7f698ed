"""Reward models and ensembles of them, as explicit parameter pytrees.

A reward model is a decoder trunk without its unembedding and a scalar head on
the hidden state of the last response token (Stiennon et al. 2020; Coste et
al. 2024, section 4.3). An ensemble is the same pytree with a leading member
axis E on every leaf; it is trained by one step and scored in one call.
What of it is trained, and what is not, is in `parameters`.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import types
from rlhf_jax.data import tokenizer
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import packing
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import processes
from rlhf_jax.parallel import sharding
from rlhf_jax.rewards import parameters
from rlhf_jax.rewards import scale as scale_lib


def init(config: transformer.Config, key: jax.Array, *,
         trunk: types.Params | None = None,
         head_scale: float = 1.0) -> types.Params:
  """A reward model with a fresh head.

  Args:
    config: shape of the trunk.
    key: of the head, and of the trunk where none is given.
    trunk: a policy's parameters (usually the SFT model's), or what of them is
      trained, of which `heads.trunk` is taken; an adapter stays.
    head_scale: head weights are N(0, head_scale^2 / hidden_size).
  """
  trunk_key, head_key = jax.random.split(key)
  if trunk is None:
    trunk = transformer.init(config, trunk_key)
  trunk = heads.trunk(trunk)
  return ({'trunk': trunk} if trunk else {}) | {'head': heads.init_scalar(
      head_key, config.hidden_size, scale=head_scale)}


def init_members(config: transformer.Config, keys: jax.Array, *,
                 trunk: types.Params | None = None,
                 head_scale: float = 1.0) -> types.Params:
  """An ensemble, leaves [E, ...]: one key for each head, one shared trunk."""
  make = functools.partial(
      init, config, trunk=trunk, head_scale=head_scale)
  return jax.vmap(make)(keys)


def abstract(config: transformer.Config, members: int = 0,
             trunk: types.Params | None = None) -> types.Params:
  """The shapes of what `init` makes; of an ensemble with `members`.

  Args:
    config: of `init`.
    members: E; 0: one model.
    trunk: shapes, of what of a trunk is trained; None: all of it.
  """
  if trunk is None:
    return _abstract(config, members)
  return _shapes(config, members, trunk)


@functools.lru_cache(maxsize=64)
def _abstract(config, members):
  return _shapes(config, members, None)


def _shapes(config, members, trunk):
  key = lambda: jax.random.key(0)
  if members:
    return jax.eval_shape(lambda t: init_members(
        config, jax.random.split(key(), members), trunk=t), trunk)
  return jax.eval_shape(lambda t: init(config, key(), trunk=t), trunk)


def born(config: transformer.Config, key: jax.Array,
         trunk: types.Params | None = None, *, head_scale: float = 1.0,
         members: int = 0) -> types.Params:
  """The same as `init` makes, of which each device holds its part alone.

  Args:
    config: of `init`.
    key: of `init`; key[E] of `init_members`.
    trunk: of either.
    head_scale: of either.
    members: E; 0: one model.
  """
  return sharding.born(_of_members if members else _of_one, key, trunk,
                       static=(config, head_scale), members=members)


def _of_one(config, head_scale, key, trunk):
  return init(config, key, trunk=trunk, head_scale=head_scale)


def _of_members(config, head_scale, keys, trunk):
  return init_members(config, keys, trunk=trunk, head_scale=head_scale)


def features(config: transformer.Config, trunk: types.Params,
             tokens: jax.Array, mask: jax.Array,
             attention_mask: jax.Array | None = None, *,
             dropout_key: jax.Array | None = None) -> jax.Array:
  """What a trunk says of whole responses: its state at the last token.

  Args:
    config: shape of the trunk.
    trunk: of `parameters.trunk_of`.
    tokens: i32[..., T], prompt, response, padding.
    mask: bool[..., T], true on response tokens. The state is that of the last
      of them, whether or not it is an EOS; a row with none gives an
      arbitrary finite one.
    attention_mask: bool[..., T], false on padding; needed only where there is
      some on the left.
    dropout_key: see `transformer.hidden_states`.

  Returns:
    config.dtype[..., D].
  """
  chex.assert_equal_shape([tokens, mask])
  width = tokens.shape[-1]
  # Tokens go to where a member reads them, not what is made of them.
  rows, present = (sharding.keep_rows(x.reshape(-1, width))
                   for x in (tokens, mask))
  position = jnp.broadcast_to(jnp.arange(width), rows.shape)
  last = jnp.max(jnp.where(present, position, 0), axis=-1)
  if attention_mask is not None:
    attention_mask = attention_mask.reshape(rows.shape)
  hidden = transformer.hidden_states(
      config, trunk, rows, attention_mask, query=last,
      dropout_key=dropout_key)
  return hidden[:, 0].reshape(*tokens.shape[:-1], -1)


def score(config: transformer.Config, params: types.Params,
          tokens: jax.Array, mask: jax.Array,
          attention_mask: jax.Array | None = None, *,
          dropout_key: jax.Array | None = None) -> jax.Array:
  """f32[...]: scores of whole responses by one reward model, of `features`.

  Args:
    config: shape of the trunk.
    params: of `init`.
    tokens, mask, attention_mask, dropout_key: of `features`.
  """
  return heads.scalar(params['head'], features(
      config, parameters.trunk_of(params), tokens, mask, attention_mask,
      dropout_key=dropout_key))


def score_members(config: transformer.Config, params: types.Params,
                  tokens: jax.Array, mask: jax.Array) -> jax.Array:
  """f32[E, ...]: every member's score of the same responses, in one call."""
  shared, own = parameters.split(params)
  if 'trunk' not in own:
    return score_features(own, features(
        config, shared['base'], tokens, mask))
  return sharding.map_members(
      lambda p: score(config, shared | p, tokens, mask),
      parameters.num_members(params))(own)


@jax.jit
def score_features(params: types.Params, features: jax.Array) -> jax.Array:
  """f32[E, ...]: scores of `features`, [..., D], by every member's head."""
  return jax.vmap(heads.scalar, (0, None))(params['head'], features)


def forward(config: transformer.Config, params: types.Params,
            batch: types.Batch, *, per_step: bool = False,
            dropout_key: jax.Array | None = None) -> types.PolicyOutput:
  """A reward model as the trainable model of a train step.

  Args:
    config: shape of the trunk.
    params: of `init`.
    batch: `tokens` and `mask` are read; with `packed`, those rows; with
      `features`, of a trunk that is frozen, these alone.
    per_step: rewards each token where it stands, as Christiano et al. 2017,
      who sum that over a trajectory; `score` is the special case with a reward
      at the last token alone.
    dropout_key: see `transformer.hidden_states`.

  Returns:
    PolicyOutput with `scores` f32[B, K] or, `per_step`, with `step_rewards`
    f32[B, K, T].
  """
  packed = batch.packed
  if not per_step and batch.features is not None:
    return types.PolicyOutput(
        scores=heads.scalar(params['head'], batch.features))
  if not per_step and packed is None:
    return types.PolicyOutput(scores=score(
        config, params, batch.tokens, batch.mask, dropout_key=dropout_key))
  rows, segments = packing.rows(batch)
  ends = None if per_step else packed.ends.reshape(len(rows), -1)
  read = heads.scalar(params['head'], transformer.hidden_states(
      config, parameters.trunk_of(params), rows, segments=segments, query=ends,
      dropout_key=dropout_key))
  if per_step:
    return types.PolicyOutput(step_rewards=packing.tokenwise(read, batch))
  return types.PolicyOutput(scores=packing.piecewise(read, packed))


@functools.partial(jax.jit, static_argnums=0)
def _score_chunk(config, params, tokens, mask):
  return jnp.moveaxis(score_members(config, params, tokens, mask), 0, -1)


@functools.partial(jax.jit, static_argnums=0)
def _read_chunk(config, trunk, tokens, mask):
  return features(config, trunk, tokens, mask).astype(jnp.float32)


CHUNK = 2048  # rows scored at a time at most


def rows_per_chunk(config: transformer.Config, trunks: int, width: int,
                   most: int) -> int:
  """As many rows as keep the attention weights of a layer near 1 GiB.

  Args:
    config: shape of a trunk.
    trunks: that read a row.
    width: T, tokens of a row.
    most: rows at most.
  """
  row = 4 * trunks * config.num_heads * width**2  # bytes
  return max(min(most, 2**30 // row), 1)


def score_rows(config: transformer.Config, params: types.Params,
               tokens: np.ndarray, mask: np.ndarray, *,
               chunk_size: int = CHUNK, poll=lambda: None) -> np.ndarray:
  """Scores many rows from host memory, chunk by chunk over the mesh.

  Rows are ordered by length, so that a chunk is only as wide as its longest
  row, in steps of 8 tokens: few programs are compiled and little padding is
  computed.

  Args:
    config: shape of the trunk.
    params: of an ensemble, leaves [E, ...].
    tokens: i32[..., T].
    mask: bool[..., T].
    chunk_size: rows scored at a time at most; fewer where rows are long.
    poll: called before every chunk; may raise, to stop.

  Returns:
    f32[E, ...].

  Raises:
    DataError: a token is not of the model's vocabulary.
  """
  scores = _by_chunk(
      functools.partial(_score_chunk, config, parameters.place(params)),
      (tokens, mask), (parameters.num_members(params),), config,
      parameters.num_trunks(params), chunk_size, poll)
  return np.moveaxis(scores, -1, 0)


def read_rows(config: transformer.Config, trunk: types.Params,
              tokens: np.ndarray, mask: np.ndarray, *,
              chunk_size: int = CHUNK, poll=lambda: None) -> np.ndarray:
  """f32[..., D]: the `features` of many rows, otherwise as `score_rows`."""
  return _by_chunk(
      functools.partial(_read_chunk, config, sharding.shard_params(trunk)),
      (tokens, mask), (config.hidden_size,), config, 1, chunk_size, poll)


def _by_chunk(program, pair, each, config, trunks, chunk_size, poll):
  """What a program says of rows, f32[..., *each], see `score_rows`."""
  tokenizer.check_ids(pair[0], config.vocab_size)
  shape, width = pair[0].shape[:-1], pair[0].shape[-1]
  tokens, mask = (x.reshape(-1, width) for x in pair)
  lengths = width - np.argmax(mask[:, ::-1], axis=1)
  order = np.argsort(lengths, kind='stable')
  out = np.empty((len(tokens), *each), np.float32)
  size = rows_per_chunk(
      config, trunks, int(lengths.max(initial=1)), chunk_size)
  for rows, count in sharding.chunks(len(tokens), size, meshes.row_parts()):
    poll()
    at = order[rows]
    used = min(width, -(-int(lengths[at].max()) // 8) * 8)
    part = program(*sharding.shard_batch((tokens[at, :used], mask[at, :used])))
    out[at[:count]] = processes.whole(part)[:count]
  return out.reshape(*shape, *each)


class RewardModels(NamedTuple):
  """E reward models of one shape, and the unit in which they are compared."""

  config: transformer.Config
  params: types.Params  # leaves [E, ...]
  scale: dict[str, np.ndarray] | None = None  # 'mean' and 'std', f[E]

  @property
  def num_members(self) -> int:
    return parameters.num_members(self.params)

  def frozen(self) -> 'RewardModels':
    """The same as it is kept where nothing trains it, see `transformer`."""
    return self._replace(
        params=transformer.frozen(self.config, self.params))

  def scores(self, tokens: np.ndarray, mask: np.ndarray, *,
             standardize: bool = True, **options) -> np.ndarray:
    """f32[E, ...] of rows on the host, standardised where there is a scale.

    Args:
      tokens: i32[..., T].
      mask: bool[..., T].
      standardize: False gives the scores as they are.
      **options: `chunk_size` and `poll` of `score_rows`.
    """
    scores = score_rows(self.config, self.params, tokens, mask, **options)
    if self.scale is None or not standardize:
      return scores
    return np.asarray(scale_lib.standardize(scores, self.scale))
