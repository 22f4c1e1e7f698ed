"""The data set of an offline method: which responses, and their annotations.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2; Zhu et al.
2023, https://arxiv.org/abs/2306.02231, appendix D.3; objectives.md 8.5, 8.6
and 9.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import running

SOURCES = ('demonstrations', 'logged', 'preferences', 'rankings')
PAIRED = ('preferences', 'rankings')  # whole examples, not single responses
PRIORITIES = ('none', 'advantage', 'reward')
SIDES = ('chosen', 'rejected')  # groups of preferences
USES = ('first', 'all')  # beside the names of groups
FILTER = ('prompt_values', 'prompt_advantages', 'keep_positive')
CHUNK = 256  # examples annotated at a time


def names() -> list[str]:
  """The algorithms that learn from logged responses."""
  return [name for name, row in algorithms.ALGORITHMS.items()
          if row.source in SOURCES and row.objective is not None
          and row.objective['name'] not in (
              'bradley_terry', 'ranking', 'preference_lm')]


def make_row(algorithm: str, arguments: Mapping[str, Mapping], *,
             filtered: bool = False) -> algorithms.Algorithm:
  """The row of a run, with the run's own arguments.

  Args:
    algorithm: one of `names`.
    arguments: of `Algorithm.replace`; {'drop': True} takes an annotator out.
    filtered: whether responses without a positive advantage are left out,
      though the row does not ask for it.

  Raises:
    ValueError: an argument is unknown or does not fit the algorithm.
  """
  if algorithm not in names():
    raise ValueError(f'algorithm is {algorithm!r}, which learns nothing from '
                     f'logged responses; there are {", ".join(names())}.')
  row = algorithms.ALGORITHMS[algorithm]
  dropped = [k for k, v in arguments.items() if v.get('drop')]
  row = row.replace(
      **{k: v for k, v in arguments.items() if k not in dropped})
  row = row.without(*dropped)
  if not filtered:
    return row
  if row.source in PAIRED:
    raise ValueError(f'{row.title} learns from whole examples, so that '
                     'filtered=True would leave none of them whole.')
  known = [node['name'] for node in row.annotators]
  if 'standardize_scores' in known:
    raise ValueError(f'{row.title} learns from standardised scores, which have '
                     'no value of a prompt to be compared with; set '
                     'filtered=False.')
  added = tuple({'name': name} for name in FILTER if name not in known)
  return dataclasses.replace(
      row, annotators=(*row.annotators, *added))


def needs_values(row: algorithms.Algorithm) -> bool:
  """Whether a run reads the reference's values of the prompts."""
  return any(node['name'] == 'prompt_values' for node in row.annotators)


def _compared(row: algorithms.Algorithm, log: Mapping[str, np.ndarray],
              groups: list[str]) -> tuple[np.ndarray, np.ndarray]:
  """Examples i64[N', 1], and which of their responses, i64[N', K]."""
  present = log['mask'].any(axis=-1)
  count = present.shape[1]
  sided = row.source == 'preferences' and {*SIDES} <= {*groups}
  if count < 2 or (count > 2 and row.source == 'preferences' and not sided):
    raise errors.ConfigError(
        f'{row.title} compares responses, and the log has {count} of each '
        'example; give 2, see data.logged.max_samples')
  if sided:  # a log packs left, so that the place does not tell
    sides = np.stack([present & (log['group'] == groups.index(name))
                      for name in SIDES], axis=1)  # [N, 2, K]
    at = np.flatnonzero(sides.any(axis=-1).all(axis=1))
    return at[:, None], sides[at].argmax(axis=-1)
  at = np.flatnonzero(present.all(axis=1))
  return at[:, None], np.arange(count)[None]


def _single(log: Mapping[str, np.ndarray], use: str, groups: list[str]
            ) -> tuple[np.ndarray, np.ndarray]:
  """Examples i64[N', 1], and which of their responses, i64[N', 1]."""
  if use not in (*USES, *groups):
    raise errors.ConfigError(
        f'use is {use!r}; there are {", ".join((*USES, *groups))}')
  present = log['mask'].any(axis=-1)
  if use == 'first' and SIDES[0] in groups:
    present &= log['group'] == groups.index(SIDES[0])
    present &= present.cumsum(axis=1) == 1
  elif use == 'first':
    present &= np.arange(present.shape[1]) == 0
  elif use != 'all':
    present &= log['group'] == groups.index(use)
  at, column = np.nonzero(present)
  return at[:, None], column[:, None]


def select(row: algorithms.Algorithm, log: Mapping[str, np.ndarray],
           use: str, groups: list[str]) -> types.Batch:
  """The training data of a run, before its annotators.

  Args:
    row: of `make_row`.
    log: training examples of a stage `logged`: tokens, mask [N, K, T], group,
      scores, raw_scores [N, K], and values [N] where they are needed.
    use: 'first' (the best of each example; of its 'chosen' ones where the log
      has such a group), 'all', or the name of a group; not read where whole
      examples are needed. Those are, for preferences, the examples with a
      response in each of the groups 'chosen' and 'rejected', where the log
      has both, and of each the first; else the examples with every response.
    groups: names of the groups.

  Returns:
    Batch [N', K, T] of examples, or [N', 1, T] of responses, with `scores`
    f32[N', K] and `prompt_values` f32[N']. Rankings have raw scores, as in
    PRO (objectives.md 9.8).

  Raises:
    ConfigError: `use` is no group, or the log has nothing for the run.
  """
  at, column = (_compared(row, log, groups) if row.source in PAIRED
                else _single(log, use, groups))
  scores = 'raw_scores' if row.source == 'rankings' else 'scores'
  if not at.size:
    raise errors.ConfigError(
        f'{row.title} with use={use!r} finds no response in the log')
  values = log.get('values')
  pick = lambda name: log[name][at, column]
  return types.Batch(
      tokens=pick('tokens'), mask=pick('mask'), scores=pick(scores),
      prompt_values=None if values is None else values[at[:, 0]])


def is_ilql(row: algorithms.Algorithm) -> bool:
  """Whether a run has Q heads, and samples by them."""
  return row.objective['name'] == 'ilql'


def _by_chunk(function: Callable, batch: types.Batch) -> Any:
  """`function` of tokens and mask, chunk by chunk, to the host."""
  rows, parts = len(batch.tokens), []
  size = min(CHUNK, rows)
  for start in range(0, rows, size):
    # The last chunk is filled up, so that it runs the same program.
    at = np.resize(np.arange(start, min(start + size, rows)), size)
    parts.append(jax.device_get(function(batch.tokens[at], batch.mask[at])))
  return jax.tree.map(lambda *x: np.concatenate(x)[:rows], *parts)


def _models(forward) -> dict[str, chain_lib.Annotator]:
  """The annotators that read parameters, or what other stages have filled."""
  def given(name):
    def check(batch, *unused, **kwargs):
      running.need(batch, name)
      return batch
    return check

  passed = []

  def once(batch):
    """What one pass over the data set says; annotators keep its tokens."""
    if not passed:
      passed.append(_by_chunk(forward, batch))
    return passed[0]

  return {
      'scores': given('scores'), 'prompt_values': given('prompt_values'),
      'ref_logprobs': lambda batch, *unused: batch.replace(
          ref_logprobs=once(batch)[0]),
      'old_values': lambda batch, *unused: batch.replace(
          old_values=once(batch)[1]),
  }


def annotated(row: algorithms.Algorithm, batch: types.Batch,
              forward: Callable[..., Any]) -> types.Batch:
  """The data set with what the row's annotators fill, on the host.

  Args:
    row: of `make_row`.
    batch: of `select`.
    forward: (tokens, mask) -> logprobs and values of the initial policy,
      [B, K, T] each, values None without a value head.

  Returns:
    The examples that have a response left.

  Raises:
    ConfigError: if there is none.
  """
  chain = chain_lib.chain(row.annotators, _models(forward))
  found = jax.device_get(chain(batch, None, None)[0])
  left = found.mask.any(axis=(1, 2))
  if not left.any():
    raise errors.ConfigError(
        f'{row.title} is left without a response: none of {len(left)} has a '
        'positive advantage; look at the rewards of the log')
  return jax.tree.map(lambda x: x[left], found)


def try_out(row: algorithms.Algorithm, priority: str):
  """Traces annotators and objective of a run on shapes; touches no device.

  Raises:
    ValueError: an argument is unknown, missing or out of range.
  """
  if priority not in PRIORITIES:
    raise ValueError(f'priority is {priority!r}; there are '
                     f'{", ".join(PRIORITIES)}.')
  advantages = any(n['name'] == 'prompt_advantages' for n in row.annotators)
  if priority == 'advantage' and not advantages:
    raise ValueError(f"{row.title} has no advantages of prompts; choose "
                     "priority='reward' or 'none', or filtered=True.")
  if priority != 'none' and row.source in PAIRED:
    raise ValueError(f'{row.title} learns from whole examples; set '
                     "priority='none'.")
  shape = (2, 2 if row.source in PAIRED else 1, 4)
  zeros = lambda tokens, mask: (np.zeros(shape, np.float32),) * 2

  def whole():
    flat = jnp.zeros(shape)
    batch = types.Batch(
        tokens=np.zeros(shape, np.int32), mask=np.ones(shape, bool),
        scores=np.ones(shape[:2], np.float32),
        prompt_values=(np.zeros(len(flat), np.float32)
                       if needs_values(row) else None))
    batch = chain_lib.chain(row.annotators, _models(zeros))(
        batch, None, None)[0]
    out = types.PolicyOutput(
        logprobs=flat, entropy=flat, values=flat, q_values=(flat,) * 2,
        q_logprobs=(flat,) * 2, target_q_values=(flat,) * 2)
    return row.bind()(out, batch)

  try:
    jax.eval_shape(whole)
  except (AssertionError, AttributeError, KeyError, TypeError) as error:
    raise ValueError(str(error).partition('\n')[0]) from error
