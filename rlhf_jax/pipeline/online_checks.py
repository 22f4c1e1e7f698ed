"""What the stage of an online run would fail at, found on shapes alone."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlhf_jax import algorithms
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import online_methods
from rlhf_jax.pipeline import online_models
from rlhf_jax.storage import files

_CHECKED: set[str] = set()  # digests of what has been traced


def check(run: Mapping[str, Any]):
  """Traces annotators and objective of a run on shapes; touches no device.

  Once for all runs that differ in their reward models alone, of which a figure
  has dozens.

  Args:
    run: node `online` of the config.

  Raises:
    ValueError: an argument is unknown, missing or out of range.
  """
  parts = {name: run[name] for name in ('algorithm', 'arguments', 'kl',
                                        'updates', 'rollout')}
  parts['reward'] = {k: v for k, v in run['reward'].items()
                     if k != 'components'}
  key = files.digest(parts)
  if key in _CHECKED and run.get('objective') is None:
    return
  _trace(run)
  _CHECKED.add(key)


def _trace(run: Mapping[str, Any]):
  """As `check`, each time."""
  kl, updates = run['kl'], run['updates']
  row = online_methods.of_run(run, kl)
  _check_run(row, run)
  nodes = online_methods.make_nodes(row, run['reward'], kl, 0)
  shape = (2, run['rollout']['samples'], 4)
  chain = chain_lib.chain(nodes, {
      'scores': lambda batch, *unused, **kwargs: batch.replace(
          scores=jnp.zeros(shape[:2]),
          member_scores=jnp.zeros((2, *shape[:2]))),
      'ref_logprobs': lambda batch, *unused: batch.replace(
          ref_logprobs=jnp.zeros(shape)),
      online_models.MASK: online_models.check_mask,
      'old_values': lambda batch, *unused: batch.replace(
          old_values=jnp.zeros(shape))})

  def trace():
    zeros = jnp.zeros(shape)
    batch = types.Batch(tokens=jnp.zeros(shape, jnp.int32), old_logprobs=zeros,
                        mask=jnp.ones(shape, bool), scores=zeros[..., 0])
    state = types.TrainState(
        step=jnp.int32(0), params={}, opt_state=(), key=jax.random.key(0),
        statistics=online_methods.statistics(run, nodes))
    batch, state = chain(batch, state, None)
    out = types.PolicyOutput(logprobs=zeros, entropy=zeros, values=zeros)
    names = online_methods.coefficients(row, updates['penalty_target'])
    loss = row.bind()(
        out, batch, **{name: state.statistics[name] for name in names})
    types.check_units(loss, batch)
    return loss

  methods.try_out(trace, run.get('objective'))


def _check_run(row: algorithms.Algorithm, run: Mapping[str, Any]):
  """ValueError for fields that do not fit each other."""
  updates, samples = run['updates'], run['rollout']['samples']
  adapts = run['kl']['target'] is not None
  if adapts and not online_methods.initial_kl_coef(row) > 0:
    raise ValueError('kl.target adapts a coefficient, which must begin above '
                     '0; set kl.coef')
  if not row.takes(samples):
    raise ValueError(f'{row.title} takes rollout.samples {row.samples}'
                     f'{" or more" * row.more}, got {samples}')
  if run['rollout']['resample'] and (samples < 2 or run['reward']['noise']):
    raise ValueError(
        'rollout.resample replaces prompts whose samples have equal scores; '
        f'set rollout.samples >= 2, got {samples}, and reward.noise=0.0, got '
        f"{run['reward']['noise']}.")
  target = updates['penalty_target']
  if target is None:
    return
  if not target > 0 or not row.objective.get('kl_penalty_coef'):
    raise ValueError('updates.penalty_target must be > 0 and needs the '
                     f'KL-penalty form of PPO, got {target} and {row.title}.')
  if updates['num_epochs'] * updates['repeats'] < 2:
    raise ValueError('updates.penalty_target sees how far a second update on '
                     'a minibatch has come; set updates.num_epochs >= 2.')
