"""Preference pairs in the order of noisy labels.

Labels are a function of the seed and of the place of a pair: reward models and
logs that flip the same share of the same pairs flip the same ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.data import order
from rlhf_jax.ops import labels as labels_lib
from rlhf_jax.storage import files


def by_prompt(tokens: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
  """i64[N]: rows with those of one prompt together, prompts in a seeded order.

  Args:
    tokens: i32[N, T].
    mask: bool[N, T], true on responses; what stands before one is its prompt.
    seed: of the order.
  """
  rows = {}
  for row, start in enumerate(mask.argmax(axis=1)):
    rows.setdefault(tokens[row, :start].tobytes(), []).append(row)
  groups = list(rows.values())
  shuffled = order.indices(seed, 0, len(groups), len(groups))
  return np.concatenate([groups[at] for at in shuffled])


def preferred(gold_scores: np.ndarray) -> np.ndarray:
  """i32[N]: which of two responses has the higher gold score; the first on
  ties."""
  return (gold_scores[:, 1] > gold_scores[:, 0]).astype(np.int32)


def flip(labels: np.ndarray, seed: int, rate: float, stage: int = 0
         ) -> np.ndarray:
  """i32[N]: labels with an exact share of them flipped.

  Args:
    labels: i32[N], 0 or 1.
    seed: of the study.
    rate: share.
    stage: number of the stage that the pairs are of; each has its own noise,
      so that a label given once stays as it is.
  """
  return np.asarray(labels_lib.flip(
      streams.key(seed, 'labels', stage), labels, rate=rate))


def chosen_first(arrays: dict[str, np.ndarray], first: np.ndarray
                 ) -> types.Batch:
  """Each pair with the response i32[N] that a label prefers before the other.
  """
  order = np.stack([first, 1 - first], axis=1)[..., None]
  take = lambda x: np.take_along_axis(x, order, axis=1)
  return types.Batch(**{name: take(arrays[name]) for name in (
      'tokens', 'mask', 'features') if name in arrays})


def load(context: Any, stages: str | Sequence[str], seed: int,
         label_noise: float, *, held_out: int, num_pairs: int | None,
         features: Sequence[str] = ()
         ) -> tuple[types.Batch, types.Batch, float]:
  """Training pairs, validation pairs, and the share of labels flipped.

  Args:
    context: of the stage that asks.
    stages: that hold pairs, one or several; all of them in this order.
    seed: of the study.
    label_noise: share of the training labels of each stage that is flipped.
    held_out: pairs with clean labels for validation: the first.
    num_pairs: training pairs used, the first of the others; None: all.
    features: stages that hold what a frozen trunk says of these pairs, in the
      same order.
  """
  parts = [files.load_arrays(context.directory_of(stage) / 'pairs.npz')
           for stage in ([stages] if isinstance(stages, str) else stages)]
  arrays = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  if features:
    arrays['features'] = np.concatenate([
        files.load_arrays(context.directory_of(stage) / 'pairs.npz')['features']
        for stage in features])
  labels = preferred(arrays['gold_scores'])
  total = len(labels) if num_pairs is None else held_out + num_pairs
  ends = np.minimum(np.cumsum([len(p['gold_scores']) for p in parts]), total)
  noisy, start = [], held_out
  for stage, end in enumerate(ends):
    if end > start:
      noisy.append(flip(labels[start:end], seed, label_noise, stage))
      start = end
  noisy, part = np.concatenate(noisy), lambda at: {
      k: v[at] for k, v in arrays.items()}
  at = slice(held_out, total)
  return (chosen_first(part(at), noisy),
          chosen_first(part(slice(held_out)), labels[:held_out]),
          float(np.mean(noisy != labels[at])))
