"""Compiled steps of the stages that learn from rows.

Stages of one shape, of several seeds or conditions, run one program: it is
traced and compiled for the first of them.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax.core import FrozenDict
import jax
import optax

from rlhf_jax import objectives
from rlhf_jax import train
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding


class Learner(NamedTuple):
  """The jitted step of `train.make_train_step`, and its optimizer."""

  step: Callable[..., Any]  # donates the state
  tx: optax.GradientTransformation


def learner(forward: Callable[..., Any], config: transformer.Config,
            objective: dict[str, Any], *, num_steps: int,
            optimizer: dict[str, Any], num_microbatches: int,
            members: int = 0) -> Learner:
  """What a stage trains with; the same for the same arguments.

  Args:
    forward: (config, params, batch, ...) -> PolicyOutput, of a module.
    config: shape of the decoder.
    objective: 'name' of a loss and its arguments.
    num_steps: of the optimizer.
    optimizer: of `train.optimizer`.
    num_microbatches: of `train.make_train_step`.
    members: E, which the step maps over; 0: there are none.
  """
  return _learner(forward, config, FrozenDict(objective), FrozenDict(
      optimizer, num_steps=num_steps), num_microbatches, members)


def of_rollouts(updates: Callable[..., Any]) -> Callable[..., Any]:
  """`train.make_updates`, jitted: one program whatever the rewards are.

  What only some of them have, scores of members and metrics, goes around it.
  It donates the state.
  """
  compiled = jax.jit(updates, donate_argnums=0)

  def around(state, rollout, base=None):
    state, metrics = compiled(state, rollout.replace(
        batch=rollout.batch.replace(member_scores=None), metrics={}), base)
    return state, {**rollout.metrics, **metrics}

  return around


def of_members(step: Callable[..., Any], members: int) -> Callable[..., Any]:
  """A train step of every member of an ensemble; they share a base."""
  def mapped(state, batch, base=None):
    return sharding.map_members(
        lambda state, batch: step(state, batch, base), members)(state, batch)
  return mapped


@functools.lru_cache(maxsize=8)
def _learner(forward, config, objective, optimizer, num_microbatches, members
             ) -> Learner:
  tx = train.optimizer(**optimizer)
  step = train.make_train_step(
      functools.partial(forward, config), objectives.get(**objective), tx,
      num_microbatches=num_microbatches,
      dropout=bool(config.dropout or config.adapter_dropout))
  if members:
    step = of_members(step, members)
  return Learner(jax.jit(step, donate_argnums=0), tx)
