"""What the gold model learns from: the rule, logged scores, or preferences."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import grammar
from rlhf_jax.data import order
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib

SAMPLES = 8  # responses to each prompt; one text for each demonstration


@dataclasses.dataclass(frozen=True)
class Split:
  """Rows to train on and rows held out, and the objective that fits them."""

  training: types.Batch
  validation: types.Batch
  objective: str
  # 'target_mean' and 'target_std' of a score that was standardised.
  scale: dict[str, float] = dataclasses.field(default_factory=dict)


def split(world: artifacts.World, seed: int, held_out: int,
          sampler: Mapping[str, Any]) -> Split:
  """The rows of a study's corpus, in a seeded order.

  Args:
    world: of the stage; the reference samples in the small world.
    seed: of the study.
    held_out: rows kept for validation; of a log at least so many.
    sampler: of `rows.Draw`.

  Raises:
    ConfigError: the log has no such score.
    DataError: the log's scores do not differ.
  """
  corpus = world.corpus
  place = lambda count: order.indices(
      streams.number(seed, 'gold', 'held_out'), 0, count, count)
  if corpus.world is not None:
    return _of_rule(world, seed, place, held_out, sampler)
  if corpus.log_target is not None:
    return _of_log(corpus, place, held_out)
  rows = corpus.preferences
  return Split(*_cut(rows, place(len(rows.tokens)), held_out),
               'bradley_terry')


def _cut(rows: types.Batch, at: np.ndarray, held_out: int
         ) -> tuple[types.Batch, types.Batch]:
  """Rows after the first `held_out` of an order, and those."""
  return tuple(jax.tree.map(lambda x, part=part: x[part], rows)
               for part in (at[held_out:], at[:held_out]))


def _of_rule(world, seed, place, held_out, sampler) -> Split:
  """Texts and their standardised rule scores.

  A held-out text may be a damaged copy of a training text, so the correlation
  on it says that the rule is fitted, not that it generalises.
  """
  corpus = world.corpus
  clean = corpus.demonstrations.tokens[:, 0], corpus.demonstrations.mask[:, 0]
  damaged = grammar.corrupt(
      corpus.tokenizer, *clean, seed=streams.number(seed, 'gold', 'damage'))
  sampled = rows_lib.sample_rows(
      world, world.reference, corpus.pair_prompts,
      streams.key(seed, 'gold', 'samples'),
      rows_lib.Draw(num_samples=SAMPLES, sampler=sampler),
      num_prompts=-(-len(clean[0]) // SAMPLES))
  sampled = [x.reshape(-1, x.shape[-1]) for x in sampled]
  tokens, mask = (np.concatenate(x) for x in zip(clean, damaged, sampled))
  targets = corpus.world.rule(tokens, mask)
  targets = (targets - targets.mean()) / targets.std()
  rows = types.Batch(tokens=tokens[:, None], mask=mask[:, None],
                     targets=targets[:, None].astype(np.float32))
  return Split(*_cut(rows, place(len(tokens)), held_out), 'value_regression')


def _of_log(corpus: corpus_lib.Corpus, place, held_out) -> Split:
  """Logged responses and their standardised scores.

  Whole examples are held out, in all at least `held_out` responses, so that
  no example has responses on both sides.
  """
  log, target = corpus.log, corpus.log_target
  if target not in log.scores:
    raise errors.ConfigError(
        f'config.data.target is {target!r}; the log has '
        f'{", ".join(sorted(log.scores)) or "no scores"}')
  scores = log.scores[target]
  present = log.mask.any(axis=-1) & np.isfinite(scores)  # [N, K]
  scored = scores[present].astype(np.float64)
  if len(np.unique(scored)) < 2:
    raise errors.DataError(
        f'the {len(scored)} logged responses that have {target!r} do not '
        'differ in it; choose another config.data.target')
  mean, std = float(scored.mean()), float(scored.std())
  at = place(len(scores))
  count = np.cumsum(present[at].sum(axis=1))
  cut = np.searchsorted(count, held_out) + 1

  def rows(examples):
    there = present[examples]
    take = lambda x: x[examples][there][:, None]
    return types.Batch(
        tokens=take(log.tokens), mask=take(log.mask),
        targets=((take(scores) - mean) / std).astype(np.float32))

  return Split(rows(at[cut:]), rows(at[:cut]), 'value_regression',
               {'target_mean': mean, 'target_std': std})
