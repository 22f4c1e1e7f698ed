"""The data set of an offline method: which responses, and their annotations.

Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2; Zhu et al.
2023, https://arxiv.org/abs/2306.02231, appendix D.3; objectives.md 8.5, 8.6
and 9.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax import sources
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import running
from rlhf_jax.data import screening
from rlhf_jax.pipeline import unpaired

PAIRED = ('preferences', 'rankings')  # whole examples, not single responses
# Nothing of these may be left out, or drawn more often.
WHOLE = dict.fromkeys(PAIRED, 'whole examples') | {
    'unpaired': 'all that is liked or disliked'}
SIDES = ('chosen', 'rejected')  # groups of preferences
USES = ('first', 'all')  # beside the names of groups
CHUNK = 256  # examples annotated at a time


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
    column = sides[at].argmax(axis=-1)
    tokens = log['tokens'][at[:, None], column]
    differ = ~screening.same(tokens[:, 0], tokens[:, 1])
    return at[differ, None], column[differ]
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
    row: of `offline_methods.make_row`.
    log: training examples of a stage `logged`: tokens, mask [N, K, T], group,
      scores, raw_scores [N, K], and values [N] where they are needed.
    use: 'first' (the best of each example; of its 'chosen' ones where the log
      has such a group), 'all', or the name of a group; not read for a source
      in `WHOLE`. Whole examples are, for preferences, the examples with a
      response in each of the groups 'chosen' and 'rejected', where the log
      has both, and of each the first; else the examples with every response.
    groups: names of the groups.

  Returns:
    Batch [N', K, T] of examples, or [N', 1, T] of responses, with `scores`
    f32[N', K] and `prompt_values` f32[N']. Rankings have raw scores, as in
    PRO (objectives.md 9.8). Of `unpaired` responses, those of that module.

  Raises:
    ConfigError: `use` is no group, or the log has nothing for the run.
  """
  if row.source == 'unpaired':
    return unpaired.select(log, groups)
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


def models(forward: Callable[[], tuple]) -> dict[str, chain_lib.Annotator]:
  """The annotators that read parameters, or what other stages have filled.

  Args:
    forward: () -> log-probabilities and values of the whole data set; called
      once at most.
  """
  def filled(name):
    def check(batch, *unused, **kwargs):
      running.need(batch, name)
      return batch
    return check

  passes = []

  def once():
    """What one pass over the data set says; annotators keep its tokens."""
    if not passes:
      passes.append(forward())
    return passes[0]

  return {
      'scores': filled('scores'), 'prompt_values': filled('prompt_values'),
      'ref_logprobs': lambda batch, *unused: batch.replace(
          ref_logprobs=once()[0]),
      'old_values': lambda batch, *unused: batch.replace(
          old_values=once()[1]),
  }


def annotated(row: algorithms.Algorithm, batch: types.Batch,
              forward: Callable[[], tuple]) -> types.Batch:
  """The data set with what the row's annotators fill, on the host.

  But for what is filled at each step, see `chain.split`.

  Args:
    row: of `offline_methods.make_row`.
    batch: of `select`.
    forward: () -> log-probabilities and values of the initial policy on it,
      f32[N', K, T] each, values None without a value head.

  Returns:
    The examples that have a response left.

  Raises:
    ConfigError: if there is none.
  """
  first, _ = chain_lib.split(row.annotators)
  chain = chain_lib.chain(first, models(forward))
  dataset = jax.device_get(chain(batch, None, None)[0])
  present = dataset.mask.any(axis=(1, 2))
  if not present.any():
    raise errors.ConfigError(
        f'{row.title} is left without a response: none of {len(present)} has a '
        'positive advantage; look at the rewards of the log')
  return jax.tree.map(lambda x: x[present], dataset)


def source(dataset: types.Batch, priority: str, *, batch_size: int,
           seed: int) -> sources.Source:
  """Every response alike in each epoch, or drawn in proportion.

  Args:
    dataset: of `annotated`.
    priority: 'none' (each once in every epoch), or with replacement in
      proportion to 'advantage' or 'reward' (objectives.md 9.9).
    batch_size: examples a step.
    seed: of the order.

  Raises:
    ConfigError: no response has a weight above 0.
  """
  if priority == 'none':
    return sources.offline(dataset, batch_size=batch_size, seed=seed)
  weights = (dataset.advantages if priority == 'advantage'
             else dataset.scores)[:, 0]
  if not (weights > 0).any():
    raise errors.ConfigError(
        f'priority is {priority!r}, and none of {len(weights)} responses has '
        "one above 0; choose priority='none', or look at the rewards")
  return sources.prioritized(
      dataset, np.maximum(weights, 0), batch_size=batch_size, seed=seed)
