"""Draws and optimizer steps in float64 NumPy: AdamW, schedules, targets.

Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101: weights decay
beside the adaptive step, both times the rate. A rate belongs to an update,
not to a rollout, and updates count from 0. Nothing of the package is imported.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

ADAM_EPSILON = 1e-8
# Of the largest gradient of a leaf: below it a float32 gradient is rounding
# for the better part, as where the two halves of a group of GRPO cancel.
ROUNDING = 1e-4


class State(NamedTuple):
  """What an update reads and writes; trees of float64 arrays.

  `exact` says of each number whether float32 could follow it: Adam makes a
  whole step of a gradient that is nothing but rounding.
  """

  params: Any
  mu: Any
  nu: Any
  count: int = 0  # updates so far
  exact: Any = None  # of all updates; without it, all numbers so far


def start(params) -> State:
  """A state before the first update."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  zeros = jax.tree.map(np.zeros_like, params)
  return State(params, zeros, zeros)


def rate(count, *, learning_rate, num_steps, warmup_steps=0,
         schedule='cosine'):
  """The learning rate of update `count` of `num_steps`."""
  if count < warmup_steps:
    return learning_rate * count / warmup_steps
  if schedule == 'constant':
    return learning_rate
  share = (count - warmup_steps) / (
      max(num_steps, warmup_steps + 1) - warmup_steps)
  return learning_rate * .5 * (1 + np.cos(np.pi * min(share, 1.)))


def norm(gradients):
  """Of all leaves together."""
  return np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(gradients)))


def update(state: State, gradients, *, clip_norm=1., weight_decay=0., b1=.9,
           b2=.999, decay_all=False, **schedule) -> State:
  """One step of AdamW on gradients, clipped by their global norm."""
  shrink = min(clip_norm / norm(gradients), 1.) if clip_norm else 1.
  g = jax.tree.map(lambda x: np.asarray(x, np.float64) * shrink, gradients)
  count = state.count + 1
  mu = jax.tree.map(lambda m, x: b1 * m + (1 - b1) * x, state.mu, g)
  nu = jax.tree.map(lambda v, x: b2 * v + (1 - b2) * x**2, state.nu, g)
  size = rate(state.count, **schedule)

  def moved(path, p, m, v):
    step = (m / (1 - b1**count)) / (
        np.sqrt(v / (1 - b2**count)) + ADAM_EPSILON)
    name = str(path[-1]).strip("[]'")
    shrinks = decay_all or not (name == 'scale' or name.endswith('bias'))
    return p - size * (step + weight_decay * p * shrinks)

  exact = jax.tree.map(
      lambda x: (x == 0) | (np.abs(x) > ROUNDING * np.abs(x).max()), g)
  if state.exact is not None:
    exact = jax.tree.map(np.logical_and, state.exact, exact)
  return State(jax.tree_util.tree_map_with_path(
      moved, state.params, mu, nu), mu, nu, count, exact)


def polyak(targets, online, share):
  """share * online + (1 - share) * targets (objectives.md 8.6)."""
  return jax.tree.map(
      lambda old, new: share * np.asarray(new, np.float64)
      + (1 - share) * np.asarray(old, np.float64), targets, online)


def draws(seed, step, batch_size, weights):
  """Rows of a step that are drawn in proportion (objectives.md 9.9).

  With replacement, by the numbers of one endless stream: those of Philox under
  the seed and the last 64-bit word, which is no epoch of an order. A row is
  drawn by those that lie in its share of [0, 1).

  Args:
    seed: of the stream.
    step: which batch, from 0.
    batch_size: rows a step.
    weights: f64[N], >= 0.

  Returns:
    i64[batch_size].
  """
  words = np.array([seed, np.iinfo(np.uint64).max], np.uint64)
  stream = np.random.Generator(np.random.Philox(key=words))
  drawn = stream.random((step + 1) * batch_size)[step * batch_size:]
  ends = np.cumsum(weights / np.sum(weights))
  return (drawn[:, None] >= ends[:-1]).sum(axis=1)
