"""Parameters of reward models: what each member has, and what all share.

  {'trunk': ..., 'head': ...}

Where only a part of a trunk is trained, 'base' holds the rest, and 'trunk'
what is trained: an adapter, the last layers, or nothing, and then there is no
such entry. Leaves of an ensemble have a leading member axis E, but for those
of 'base', which is one for all members.
"""

import jax

from rlhf_jax import types
from rlhf_jax.parallel import sharding


def split(params: types.Params) -> tuple[types.Params, types.Params]:
  """What members share, {'base': ...} or nothing, and what each has."""
  own = {k: v for k, v in params.items() if k != 'base'}
  return {k: v for k, v in params.items() if k == 'base'}, own


def trunk_of(params: types.Params) -> types.Params:
  """The trunk of one reward model: what is trained, and what is not."""
  return {**params.get('base', {}), **params.get('trunk', {})}


def alone(params: types.Params) -> types.Params:
  """One reward model as an ensemble of one, leaves [1, ...]."""
  shared, own = split(params)
  return shared | _alone(own)


@jax.jit
def _alone(own):
  return jax.tree.map(lambda x: x[None], own)


def take(params: types.Params, at: int | slice) -> types.Params:
  """One reward model of an ensemble, or the ensemble of some of them."""
  shared, own = split(params)
  return shared | jax.tree.map(lambda x: x[at], own)


def num_members(params: types.Params) -> int:
  """E of an ensemble, leaves [E, ...]."""
  return len(params['head']['bias'])


def num_trunks(params: types.Params) -> int:
  """How many trunks of an ensemble read a response: E, or one for all."""
  return num_members(params) if 'trunk' in params else 1


def place(params: types.Params) -> types.Params:
  """Places an ensemble on the mesh in use, see `sharding.shard_params`."""
  shared, own = split(params)
  return sharding.shard_params(shared) | sharding.shard_params(
      own, members=num_members(params))
