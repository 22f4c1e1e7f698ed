"""Reward models of which a part is trained, on the rest of a loaded model.

A checkpoint holds what was trained; what is frozen under it comes from where
the model node says, as it does for policies.
"""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import parameters
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files


def start(node: Mapping[str, Any], vocab_size: int, key: jax.Array
          ) -> pretrained.Model:
  """The trunk that reward models are made from, see `pretrained.init`.

  All of it is trainable, or its `base` is {'base': ...} of
  `rewards.parameters`.
  """
  model = pretrained.init(node, vocab_size, key)
  if model.base is None:
    return model
  return model._replace(base={'base': heads.trunk(model.base)})


def born(config: transformer.Config, keys: jax.Array,
         trunks: Sequence[types.Params], head_scale: float) -> types.Params:
  """Members, leaves [E, ...], on one trunk, or each on one of its own.

  Args:
    config: shape of the trunk.
    keys: of the heads, key[E].
    trunks: one or E of them, see `rewards.models.init`.
    head_scale: see there.
  """
  if len(trunks) == 1:
    return reward_models.born(
        config, keys, trunks[0], head_scale=head_scale, members=len(keys))
  return sharding.born(_stacked, keys, list(trunks),
                       static=(config, head_scale), members=len(keys))


def _stacked(config, head_scale, keys, trunks):
  members = [
      reward_models.init(config, k, trunk=trunk, head_scale=head_scale)
      for k, trunk in zip(keys, trunks, strict=True)]
  return jax.tree.map(lambda *x: jnp.stack(x), *members)


def abstract(node: Mapping[str, Any], vocab_size: int, members: int
             ) -> pretrained.Model:
  """Shapes of what a stage trains of reward models, and of what it does not.

  Args:
    node, vocab_size: of `start`.
    members: E; 0: one model without a member axis.
  """
  if not pretrained.is_partial(node):
    config = pretrained.config(node, vocab_size)
    return pretrained.Model(
        config, reward_models.abstract(config, members), None)
  config, trunk, base = pretrained.abstract(node, vocab_size)
  return pretrained.Model(config, reward_models.abstract(
      config, members, trunk), {'base': heads.trunk(base)})


def restore(directory: pathlib.Path, node: Mapping[str, Any], vocab_size: int,
            members: int | None, *, with_base: bool = True
            ) -> reward_models.RewardModels:
  """The reward models of a stage, leaves [E, ...], with the members' scale.

  Args:
    directory: of the stage.
    node, vocab_size: of `start`.
    members: E; None: one model, which becomes an ensemble of one.
    with_base: False leaves out what was not trained, and loads no model.
  """
  members = members or 0
  config, own, base = abstract(node, vocab_size, members)
  params = checkpoint.restore_params(
      directory / 'checkpoints', sharding.abstract(own, members=members))
  if not members:
    params = parameters.alone(params)
  if base is not None and with_base:
    params |= start(node, vocab_size, jax.random.key(0)).base
  path = directory / 'scale.npz'
  return reward_models.RewardModels(
      config, params, files.load_arrays(path) if path.exists() else None)


def finish(config: transformer.Config, params: types.Params) -> types.Params:
  """One reward model in its ordinary form, see `pretrained.finish`.

  Args:
    config: of `abstract`.
    params: of one member.
  """
  return {'head': params['head'], 'trunk': pretrained.finish(pretrained.Model(
      config, params.get('trunk', {}), params.get('base')))}
