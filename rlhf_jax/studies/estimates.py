"""What programs need beside what they are called with, term by term.

A layer, what is kept of all layers, logits, gathered tables and caches, from
shapes alone. `make test-pods` compares it with what compilers say.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import AbstractMesh

from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.data import coders
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import small_worlds
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import parameters


class Sizes(NamedTuple):
  """Of the texts of a study."""

  vocab_size: int
  prompt: int  # tokens
  response: int

  @property
  def length(self) -> int:
    return self.prompt + self.response

  @classmethod
  def of(cls, data: Mapping[str, Any], seed: int) -> 'Sizes':
    """Of the texts of a node of `nodes.data_config`."""
    coder = coders.named_tokenizer(data)
    if coder is not None:
      vocab_size = coder.vocab_size
    elif data['name'] in small_worlds.NAMES:
      vocab_size = load_lib.load(data, seed).tokenizer.vocab_size
    else:
      vocab_size = data['vocab_size']  # that is trained
    return cls(vocab_size, data['max_prompt_length'],
               data['max_response_length'])


@dataclasses.dataclass(frozen=True)
class Estimates:
  """Bytes on one device of a mesh, for texts of these sizes."""

  mesh: AbstractMesh
  sizes: Sizes

  def step(self, config: transformer.Config, rows: int, *,
           vocabulary: bool = True, members: int = 0) -> int:
    """Bytes that a step on `rows` in all needs beside state and gradients.

    Args:
      config: of the model that it trains.
      rows: that go through it at a time.
      vocabulary: whether it has logits of tokens.
      members: E, of an ensemble; 0: of a policy.
    """
    tokens, layer = self.tokens(rows, members), self._layer(config)
    kept = {'none': layer, 'dots': layer // 2, 'full': 0}[config.remat]
    inputs = config.hidden_size * _width(config)
    logits = config.vocab_size * 4 if vocabulary else 0
    # Tables are gathered to be read, and so are their gradients, f32.
    tables = self._tables(config, vocabulary) * (_width(config) + 4)
    return self._here(members) * (tables + tokens * (
        config.num_layers * (inputs + kept) + 2 * layer + 2 * logits))

  def _tables(self, config, vocabulary):
    """Numbers of the embeddings that are gathered, where they lie in parts."""
    count = 2 if vocabulary and not config.tie_embeddings else 1
    return count * config.vocab_size * config.hidden_size * (
        self.mesh.shape['fsdp'] > 1)

  def score(self, config: transformer.Config, rows: int, *,
            vocabulary: bool = True, members: int = 0) -> int:
    """Bytes of a forward pass; see `step`."""
    logits = config.vocab_size * 4 if vocabulary else 0
    tables = self._tables(config, vocabulary) * _width(config)
    return self._here(members) * (tables + self.tokens(rows, members) * max(
        self._layer(config), logits))

  def _layer(self, config):
    """Bytes of a token that a layer computes from its input."""
    split = (2 * config.num_heads * config.head_size
             + 3 * config.intermediate_size)
    weights = config.num_heads * self.sizes.length * (4 + _width(config))
    return 4 * config.hidden_size * _width(config) + (
        split * _width(config) + weights) // self.mesh.shape['tensor']

  def guided(self, config: transformer.Config, rows: int) -> int:
    """Bytes of a guide's pass, and of logits that it restricts; NLPO."""
    here = self.tokens(rows)
    at_once = max(policy.LOGITS // meshes.row_parts(self.mesh),
                  here // self.sizes.length * config.vocab_size)
    # Of both policies, sorted, as probabilities and summed up, f32.
    return 9 * 4 * min(at_once, here * config.vocab_size) + self.score(
        config, rows, vocabulary=False)

  def head_step(self, config: transformer.Config, rows: int) -> int:
    """Bytes of a step of a head on the hidden states of a frozen policy."""
    states = self.tokens(rows) * config.hidden_size * 4  # f32
    # They, keys and values, and the gradients of these.
    return 6 * states + self.score(config, rows, vocabulary=False)

  def sampler(self, config: transformer.Config, whole: int, prompts: int,
              samples: int) -> int:
    """Bytes of a call's gathered weights, its cache, and logits of one token.

    Args:
      config: of the policy.
      whole: bytes of its weights in one place.
      prompts: of a call, filled up to as many on each device.
      samples: responses to each.
    """
    tokens = self.tokens(self.filled(prompts) * samples)
    cache = (2 * config.num_layers * tokens * config.num_kv_heads
             * config.head_size * _width(config))
    logits = tokens // self.sizes.length * config.vocab_size * 4
    return (whole + cache) // self.mesh.shape['tensor'] + 2 * logits

  def filled(self, prompts: int) -> int:
    """As many as `sharding.chunks` makes of them, a multiple of the parts."""
    parts = meshes.row_parts(self.mesh)
    return -(-prompts // parts) * parts

  def chunk(self, config: transformer.Config, params: types.Params) -> int:
    """Rows that reward models score at a time, from the host.

    Args:
      config: of a trunk.
      params: shapes of what each member has, leaves [E, ...].
    """
    return self.filled(reward_models.rows_per_chunk(
        config, parameters.num_trunks(params), self.sizes.length,
        reward_models.CHUNK))

  def tokens(self, rows: int, members: int = 0) -> int:
    """Of rows on one device, filled up to as many on each."""
    parts = meshes.row_parts(self.mesh, members=members or 1)
    return -(-rows // parts) * self.sizes.length

  def _here(self, members: int) -> int:
    """Members on one device."""
    return max(members // self.mesh.shape['member'], 1)


def _width(config: transformer.Config) -> int:
  """Bytes of a number of the computation."""
  return jnp.dtype(config.dtype).itemsize
