"""What of a run online reads parameters; and NLPO's mask policy.

Ramamurthy et al. 2023, https://arxiv.org/abs/2210.01241, section 4;
objectives.md 10.1. The mask policy is a copy of what is trained of the
decoder, in `TrainState.targets`, and takes the place of it in the policy: it
shares what lies under an adapter. It is renewed between rollouts alone, so
that the mask of a rollout can be computed again in each of its updates, and
need not be kept, [B, K, T, V].

`every` counts rollouts, as the authors' code does (allenai/RL4LMs); the paper
speaks of updates, of which one rollout may have more than there are from one
copy to the next. Their code renews after sampling, before the updates on that
sample, and takes the KL of the reward from the policy without its mask; here,
as in objectives.md, it is that of the policy that acts, to a reference that is
not restricted.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import algorithms
from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import from_models
from rlhf_jax.ops import nucleus
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import rewarding

MASK = 'nucleus'  # an annotator of NLPO: its arguments, and what it reads


def annotators(method: Any) -> dict[str, chain_lib.Annotator]:
  """Those of an `online_methods.Method` that read parameters, or stops."""
  config, temperature = method.config, method.rollout['temperature']
  whole = lambda state, frozen: types.with_base(frozen.base, state.params)

  def old_logprobs(batch, state, frozen, guide=None):
    return from_models.old_logprobs(
        batch, config, whole(state, frozen), temperature=temperature,
        guide=guide)

  return {
      'old_logprobs': old_logprobs,
      # By the forward pass of the updates, in place of the sampler's.
      MASK: lambda batch, state, frozen, top_p, every: old_logprobs(
          batch, state, frozen, guide=nucleus.Guide(
              types.with_base(frozen.base, state.targets), top_p)),
      'scores': lambda batch, state, frozen, component: rewarding.score(
          batch, frozen, method.reward_configs, component),
      'missing_eos': lambda batch, state, frozen, **how:
          arithmetic.missing_eos(batch, stops=frozen.stops, **how),
      'ref_logprobs': lambda batch, state, frozen: from_models.ref_logprobs(
          batch, config, frozen.reference, temperature=temperature),
      'old_values': lambda batch, state, frozen: from_models.old_values(
          batch, config, whole(state, frozen),
          value_config=method.value_config),
  }


def mask(row: algorithms.Algorithm) -> Mapping[str, Any] | None:
  """`top_p` and `every` of a row's mask policy; None where it has none."""
  return next((x for x in row.annotators if x['name'] == MASK), None)


def check_mask(batch: types.Batch, *unused: Any, top_p: float, every: int
               ) -> types.Batch:
  """An annotator that fills nothing; ValueError unless its arguments do."""
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p must be in (0, 1], got {top_p}.')
  if not isinstance(every, int) or every < 1:
    raise ValueError(f'every must be a number of rollouts >= 1, got {every}.')
  return batch


def within(forward: Callable[..., types.PolicyOutput], top_p: float
           ) -> Callable[..., types.PolicyOutput]:
  """`policy.forward` of the policy in the nucleus of its mask policy.

  Args:
    forward: (params, batch, guide=) -> PolicyOutput.
    top_p: of `nucleus.Guide`.

  Returns:
    (params, batch, targets) -> PolicyOutput, for `train.make_train_step`.
  """
  def restricted(params, batch, targets, **kwargs):
    guide = nucleus.Guide({**params, **targets}, top_p)
    return forward(params, batch, guide=guide, **kwargs)

  return restricted


def renewing(updates: Callable[..., Any], every: int) -> Callable[..., Any]:
  """Updates on a rollout, after which the mask policy may be copied anew.

  Args:
    updates: of `train.make_updates`.
    every: optimizer steps from one copy to the next, >= 1: mu rollouts of
      them. A copy is made after the rollout in which a multiple is reached.

  Returns:
    The function, with the arguments and results of `updates`.
  """
  def renewed(state, rollout, base=None):
    before = state.step // every
    state, metrics = updates(state, rollout, base)
    due = state.step // every > before
    targets = jax.tree.map(
        lambda new, old: jnp.where(due, new, old),
        {name: state.params[name] for name in state.targets}, state.targets)
    return state.replace(targets=sharding.keep(targets)), metrics

  return renewed
