"""What a prompt is worth to the reference: a head on its hidden states.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2.2;
objectives.md 9.9 and 9.10.
"""

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import order
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import nodes as nodes_lib

CHUNK = 256  # prompts at a time


def check(components: Mapping[str, Mapping[str, Any]]):
  """Refuses rewards that the head cannot represent; loads nothing.

  Its values lie between 0 and the largest reward (objectives.md 9.10).

  Args:
    components: of `rewards.nodes.check`.

  Raises:
    ConfigError: the sum has no bound or may be negative; names the component
      that makes it so.
  """
  bounds = {name: nodes_lib.bounds(node)
            for name, node in nodes_lib.check(components).items()}
  low, high = (sum(x) for x in zip(*bounds.values()))
  if low >= 0 and 0 < high < math.inf:
    return
  name = next((k for k, (least, most) in bounds.items()
               if least < 0 or most == math.inf), next(iter(bounds)))
  raise errors.ConfigError(
      f'component {name!r} is in [{bounds[name][0]:g}, {bounds[name][1]:g}] '
      f'and the sum of all in [{low:g}, {high:g}]; the prompt values of A-LOL '
      "need a sum from 0 to a finite number: set its squash to 'sigmoid', its "
      'range or its weight')


def prompts_of(tokens: np.ndarray, mask: np.ndarray, pad_id: int
               ) -> corpus_lib.Prompts:
  """The prompts of examples [N, K, T], each with a response somewhere."""
  row = np.argmax(mask.any(axis=-1), axis=1)
  pick = lambda x: np.take_along_axis(x, row[:, None, None], axis=1)[:, 0]
  lengths = np.argmax(pick(mask), axis=-1).astype(np.int32)
  tokens = pick(tokens)[:, :lengths.max()]
  # Padding may hold what is no token; attention to it has weight 0, but 0
  # times NaN is NaN.
  real = np.arange(tokens.shape[1]) < lengths[:, None]
  return corpus_lib.Prompts(
      np.where(real, tokens, pad_id).astype(np.int32), lengths)


def held_out(prompts: corpus_lib.Prompts, share: float, seed: int
             ) -> np.ndarray:
  """bool[V]: a seeded share of the different prompts, with all their rows.

  Raises:
    ConfigError: no prompt would be left.
  """
  which = np.unique(
      prompts.tokens, axis=0, return_inverse=True)[1].reshape(-1)
  count = int(which.max(initial=-1)) + 1
  apart = round(share * count)
  if not 0 <= share < 1 or apart == count:
    raise errors.ConfigError(
        f'held_out is {share} of {count} different validation prompts, which '
        'leaves none to learn values from; give a share in [0, 1), or raise '
        'num_validation')
  return np.isin(which, order.indices(seed, 0, count, count)[:apart])


def _value(config, params, tokens, lengths, *, num_heads, max_value):
  """f32[B] of prompts i32[B, P]; nothing is dropped out, ever."""
  hidden = transformer.hidden_states(config, params['reference'], tokens)
  real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
  return heads.prompt_value(params['head'], hidden, real,
                            num_heads=num_heads, max_value=max_value)


def forward(config: transformer.Config, params: types.Params,
            batch: types.Batch, *, width: int, **head) -> types.PolicyOutput:
  """The value of a prompt for each of its samples, as `scores` f32[B, K].

  Args:
    config: shape of the reference.
    params: 'reference' and 'head'.
    batch: samples of B prompts of at most `width` tokens.
    width: tokens.
    **head: `num_heads` and `max_value` of `heads.prompt_value`.
  """
  lengths = jnp.argmax(batch.mask[:, 0], axis=-1)
  values = _value(config, params, batch.tokens[:, 0, :width], lengths, **head)
  return types.PolicyOutput(
      scores=jnp.broadcast_to(values[:, None], batch.mask.shape[:2]))


_value_chunk = functools.partial(
    jax.jit, static_argnames=('config', 'num_heads', 'max_value'))(_value)


def all_values(context: Any, config: transformer.Config, params: types.Params,
               prompts: corpus_lib.Prompts, **head) -> np.ndarray:
  """f32[N] of prompts, chunk by chunk on all devices; arguments as above."""
  params = sharding.shard_params(params)
  return sharding.map_rows(
      lambda *rows: _value_chunk(config, params, *rows, **head),
      prompts.tokens, prompts.lengths, chunk_size=CHUNK,
      poll=lambda: context.stop.check(
          f'the end of training of {context.directory.name}'))


def references(world: artifacts.World, examples: Sequence[int]
               ) -> list[str] | None:
  """The right answers of a log's examples; None where there are none."""
  log = world.corpus.log
  if world.log.source != 'corpus' or log.references is None:
    return None
  return [log.references[i] for i in examples]
