"""Shapes of a plan's models, and the bytes of them that one device holds.

Bytes are those of `sharding.shardings`, and as many as models take that are
really placed.
"""

from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh

from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import parameters

# Any rate: shapes are those of every config's optimizer.
TX = train.optimizer(learning_rate=1., num_steps=1)


class Model(NamedTuple):
  """What a stage leaves that trains one."""

  node: Mapping[str, Any]
  members: int = 0  # E of reward models; 0: a policy


class Shapes:
  """Of models with one vocabulary, on one mesh."""

  def __init__(self, mesh: AbstractMesh, vocab_size: int):
    self._mesh, self._vocab_size = mesh, vocab_size

  def parts(self, node: Mapping[str, Any]) -> pretrained.Model:
    """Of a policy: what is trained, and what lies frozen under it."""
    config, trainable, base = pretrained.abstract(node, self._vocab_size)
    return pretrained.Model(config, trainable, base and frozen(config, base))

  def policy(self, node: Mapping[str, Any]
             ) -> tuple[transformer.Config, types.Params]:
    """Its config, and all its parameters as they are kept frozen."""
    config, trainable, base = pretrained.abstract(node, self._vocab_size)
    return config, frozen(config, types.with_base(base, trainable))

  def rewards(self, model: Model) -> pretrained.Model:
    """Of reward models: what is trained, leaves [E, ...], and their base."""
    config, own, base = reward_parts.abstract(
        model.node, self._vocab_size, model.members)
    return pretrained.Model(config, own, base and frozen(config, base))

  def value_head(self, config: transformer.Config, value: Mapping[str, Any],
                 proxies: Model | None = None
                 ) -> tuple[types.Params, transformer.Config | None]:
    """What `policies.add_value_head` adds, and the shape of its own trunk.

    Args:
      config: of the policy.
      value: node of the config.
      proxies: from whose first member a trunk of kind 'reward' is made.
    """
    if value['trunk'] == 'reward':
      trunk_config, own, base = self.rewards(proxies)
      first = jax.eval_shape(
          lambda own, base: reward_parts.finish(
              trunk_config, parameters.take(types.with_base(base, own), 0)),
          own, base)
      return {'value_head': first['head'],
              'value_trunk': first['trunk']}, trunk_config
    head = {'value_head': jax.eval_shape(lambda: heads.init_scalar(
        jax.random.key(0), config.hidden_size, scale=value['scale'],
        mlp=value['mlp']))}
    if value['trunk'] == 'shared':
      return head, None
    return {**head, 'value_trunk': jax.eval_shape(
        heads.trunk, transformer.abstract(config))}, config

  def place(self, tree: Any, members: int = 0) -> int:
    """Bytes of a tree on one device."""
    return sharding.device_bytes(
        sharding.abstract(tree, members=members, mesh=self._mesh))

  def state(self, params: types.Params, members: int = 0) -> tuple[int, int]:
    """Bytes of trained parameters, and of the rest of their state."""
    held = self.place(params, members)
    return held, self.place(state(params, members), members) - held


def frozen(config: transformer.Config, params: types.Params) -> types.Params:
  """Parameters of a decoder, or what is of one, as they are kept frozen."""
  return jax.eval_shape(
      functools.partial(transformer.frozen, config), params)


def state(params: types.Params, members: int = 0) -> types.TrainState:
  """Of parameters that are trained by `TX`; leaves [E, ...] with members."""
  make = lambda p: train.init_state(p, TX, jax.random.key(0))
  return jax.eval_shape(jax.vmap(make) if members else make, params)
