"""The nouns that flow between data, models and objectives.

Axes: B prompts, K responses per prompt, T tokens, E ensemble members.

Alignment, stated once: a row of tokens is prompt, response, padding, without
gaps. Every array with a T axis is target-aligned: x[..., t] is about
*emitting* tokens[..., t] given tokens[..., :t]; t = 0 is never a target.
`mask` is true on response tokens, up to and including the EOS; padding may
hold anything, NaN included. Boolean arrays are bool, never 0/1 floats.
"""

from typing import Any, Self, TYPE_CHECKING

import flax
import jax
import jax.numpy as jnp

Params = Any  # a pytree of arrays


class _Node:
  """What flax adds to each class below, for whoever checks types."""

  if TYPE_CHECKING:
    def replace(self, **changes: Any) -> Self: ...


@flax.struct.dataclass
class Packed(_Node):
  """The rows of a batch beside each other in fewer, see `ops.packing`."""

  tokens: jax.Array  # i32[G, R, W], of G groups
  segments: jax.Array  # i32[G, R, W], 1 and on by piece; 0 on padding
  ends: jax.Array  # i32[G, R, Q], column of the last token of each piece
  starts: jax.Array  # i32[B, K], of each piece in the R W tokens of its group
  slots: jax.Array  # i32[B, K], of each piece in the R Q ends of its group


@flax.struct.dataclass
class Batch(_Node):
  """B prompts x K responses; optional fields are filled by annotators."""

  tokens: jax.Array  # i32[B, K, T], prompt then response then padding
  mask: jax.Array  # bool[B, K, T], true on response tokens
  scores: jax.Array | None = None  # f32[B, K], aggregated reward-model output
  member_scores: jax.Array | None = None  # f32[E, B, K]
  gold_scores: jax.Array | None = None  # f32[B, K]
  old_logprobs: jax.Array | None = None  # f32[B, K, T], behaviour policy
  ref_logprobs: jax.Array | None = None  # f32[B, K, T], frozen reference
  old_values: jax.Array | None = None  # f32[B, K, T]
  prompt_values: jax.Array | None = None  # f32[B], V(x) of the reference
  rewards: jax.Array | None = None  # f32[B, K, T], after KL shaping
  advantages: jax.Array | None = None  # f32[B, K, T] or f32[B, K]
  returns: jax.Array | None = None  # f32[B, K, T]
  targets: jax.Array | None = None  # f32[B, K], regression targets or labels
  reference_points: jax.Array | None = None  # f32[B, K], z0 of KTO, in nats
  # bool[B, K, T], within annotators: the mask before any of them cleared it.
  sampled: jax.Array | None = None
  packed: Packed | None = None  # what a forward pass then reads
  features: jax.Array | None = None  # f32[B, K, D], of a frozen trunk


@flax.struct.dataclass
class PolicyOutput(_Node):
  """What one forward pass offers; under jit, unread fields cost nothing."""

  logprobs: jax.Array | None = None  # f32[B, K, T], nats, <= 0
  entropy: jax.Array | None = None  # f32[B, K, T], nats
  values: jax.Array | None = None  # f32[B, K, T], before emitting token t
  step_rewards: jax.Array | None = None  # f32[B, K, T], of emitting token t
  scores: jax.Array | None = None  # f32[B, K], scalar head at the last token
  # Per Q head, of each token of the batch: its value, the log-softmax of the
  # head over the vocabulary, and its value under the slowly moving targets.
  q_values: tuple[jax.Array, ...] | None = None  # f32[B, K, T] each
  q_logprobs: tuple[jax.Array, ...] | None = None  # f32[B, K, T] each
  target_q_values: tuple[jax.Array, ...] | None = None  # f32[B, K, T] each


@flax.struct.dataclass
class LossOutput(_Node):
  """Unreduced loss; the train step takes sum(loss * weight) / sum(weight).

  All arrays share one unit shape: token, sequence, pair or prompt.
  """

  loss: jax.Array  # f32[unit]
  weight: jax.Array  # f32[unit], 0 where the unit is padding
  metrics: dict[str, jax.Array]  # each f32[unit]


@flax.struct.dataclass
class TrainState(_Node):
  """Everything that changes during training, as one pytree of arrays."""

  step: jax.Array  # i32[], optimizer steps taken
  params: Params
  opt_state: Any
  key: jax.Array  # the key of the next step
  targets: Params | None = None  # slowly moving copy of a part of `params`
  # What rollouts have seen, by name: see `running`.
  statistics: dict[str, Any] | None = None


@flax.struct.dataclass
class Frozen(_Node):
  """Parameters that training reads and never writes."""

  reference: Params | None = None  # the initial policy
  reward: Params | None = None  # reward models, leaves [E, ...]
  # 'mean' and 'std', f32[E]: of the members' scores on held-out responses.
  reward_scale: dict[str, jax.Array] | None = None
  base: Params | None = None  # what lies under the trained part of the policy
  stops: jax.Array | None = None  # i32[S, V] of `ops.stops.table`


@flax.struct.dataclass
class Rollout(_Node):
  """What an online source gives: the batch, and what was seen in making it."""

  batch: Batch
  statistics: dict[str, Any]  # of `TrainState`, with this rollout counted in
  metrics: dict[str, jax.Array]  # f32[] each, over the whole rollout


def with_base(base: Params | None, params: Params) -> Params:
  """Parameters with the frozen ones under them, if there are any."""
  return {**(base or {}), **params}


def check_units(out: LossOutput, batch: Batch):
  """ValueError unless loss, weight and metrics are one number for each unit.

  A mean would train too, but on another loss: the units of a micro-batch, of
  a device and of a batch are summed, and divided by the weight of all.

  Args:
    out: of an objective.
    batch: that it was given, of B prompts.
  """
  if not isinstance(out, LossOutput):
    shape = getattr(out, 'shape', None)
    raise ValueError(
        'an objective returns types.LossOutput, unreduced, got '
        + (type(out).__name__ if shape is None else f'an array {shape}'))
  shapes = {name: jnp.shape(x) for name, x in {
      'loss': out.loss, 'weight': out.weight, **out.metrics}.items()}
  count = len(batch.mask)
  if len({*shapes.values()}) > 1 or shapes['loss'][:1] != (count,):
    raise ValueError(
        'loss, weight and metrics have one shape, that of prompts, sequences '
        f'or tokens, {count} first, and are not reduced; got {shapes}')
