"""Where batches come from: (step, state, frozen) -> Batch or Rollout.

An offline source ignores the state and gives a batch; an online one samples
with the state and gives a rollout, a batch with what was seen in making it.
That is the whole difference between the two kinds of algorithm.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax import streams
from rlhf_jax import types
from rlhf_jax.annotators import running
from rlhf_jax.data import corpus
from rlhf_jax.data import order
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import processes
from rlhf_jax.parallel import sharding

Source = Callable[[int, types.TrainState, types.Frozen], types.Batch]


class Numbered(NamedTuple):
  """A source that says which rows a step has, without giving it."""

  rows: Callable[[int], np.ndarray]  # (step) -> places in the data, from 0
  source: Source

  def __call__(self, *args) -> types.Batch:
    return self.source(*args)


def offline(dataset: types.Batch, *, batch_size: int, seed: int) -> Numbered:
  """Batches of a data set in an order that is a function of seed and step.

  Args:
    dataset: numpy arrays, rows on the first axis; fields that are None stay
      None.
    batch_size: prompts a step.
    seed: of the order; one permutation each epoch.
  """
  count = len(dataset.tokens)
  return _taken(dataset, lambda step: order.indices(
      seed, step, batch_size, count))


def _taken(dataset: types.Batch, rows: Callable[[int], np.ndarray]
           ) -> Numbered:
  def source(step, state, frozen):
    del state, frozen
    at = rows(step)
    return jax.tree.map(lambda x: x[at], dataset)

  return Numbered(rows, source)


def prioritized(dataset: types.Batch, weights: np.ndarray, *, batch_size: int,
                seed: int) -> Numbered:
  """Batches of rows that are drawn in proportion to their weights.

  Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2.2;
  objectives.md 9.9: with replacement, by advantage or by reward. As that of
  `offline`, the order is one endless stream, which another batch size only
  cuts elsewhere, and a resumed run goes on in it.

  Args:
    dataset: of `offline`, N rows.
    weights: f[N], finite, >= 0 and somewhere > 0, such as
      `ops.priorities.priorities`; a row of weight 0 is never drawn.
    batch_size: rows a step.
    seed: of the draws.

  Raises:
    ValueError: an argument is out of range, or there is not one weight for
      each row.
  """
  weights = np.asarray(weights, np.float64)
  rows = len(dataset.tokens)
  if weights.shape != (rows,):
    raise ValueError(f'weights must have one entry for each of {rows} rows, '
                     f'got shape {weights.shape}.')
  if not (np.isfinite(weights).all() and weights.min(initial=0) >= 0
          and weights.any()):
    raise ValueError('weights must be finite, >= 0 and somewhere > 0, got '
                     f'{weights}.')
  for name, value, least in (('batch_size', batch_size, 1), ('seed', seed, 0)):
    if value < least:
      raise ValueError(f'{name} must be >= {least}, got {value}.')
  mass = np.cumsum(weights / weights.max())

  def drawn(step):
    uniform = _uniforms(seed, step * batch_size, batch_size)
    # The first row whose mass exceeds the point: one of weight 0 has no more
    # than the row before it.
    return np.searchsorted(mass, uniform * mass[-1], side='right')

  return _taken(dataset, drawn)


def _uniforms(seed: int, start: int, count: int) -> np.ndarray:
  """f64[count] in [0, 1): numbers `start` and on of the stream of a seed."""
  # `order` has the streams of a seed whose second word is an epoch. A block
  # of the generator is four words.
  block, skipped = divmod(start, 4)
  bits = np.random.Philox(
      key=np.array([seed, 2**64 - 1], np.uint64), counter=block)
  words = bits.random_raw(skipped + count)[skipped:]
  return (words >> np.uint64(11)) * 2.0**-53


def offline_members(dataset: types.Batch, *, batch_size: int,
                    seeds: Sequence[int]) -> Numbered:
  """The same data in an order of its own for each member: leaves [E, B, ...].

  Coste et al. 2024, section 4.3: members share the data and differ in the
  initialisation of the head and in the order of the data.
  """
  members = [offline(dataset, batch_size=batch_size, seed=s) for s in seeds]

  def source(step, state, frozen):
    parts = [member(step, state, frozen) for member in members]
    return jax.tree.map(lambda *x: np.stack(x), *parts)

  return Numbered(
      lambda step: np.stack([member.rows(step) for member in members]), source)


def _remembered(batch: types.Batch) -> types.Batch:
  """With its mask as a field, which goes along where samples change places."""
  return batch.replace(sampled=batch.mask)


def rollout(annotators: Callable[..., Any]
            ) -> Callable[..., types.Rollout]:
  """(batch, state, frozen) -> Rollout, ready for jit, from `annotators.chain`.

  Its metrics are over all responses that were sampled, those too whose mask
  an annotator clears.
  """

  def annotated(batch, state, frozen):
    batch, state = annotators(_remembered(batch), state, frozen)
    return types.Rollout(
        batch=batch.replace(sampled=None), statistics=state.statistics or {},
        metrics=running.metrics(batch.replace(mask=batch.sampled)))

  return annotated


def varied(annotators: Callable[..., Any]) -> Callable[..., jax.Array]:
  """(batch, state, frozen) -> bool[B], ready for jit: whose scores differ.

  False of a prompt whose samples all have one score after the annotators: the
  advantages of a group are then 0. A score that is NaN differs from all, so
  that it is noticed.
  """

  def differ(batch, state, frozen):
    batch, _ = annotators(_remembered(batch), state, frozen)
    there = batch.sampled.any(axis=-1)
    extreme = lambda of, other: of(
        jnp.where(there, batch.scores, other), axis=1)
    return there.any(axis=1) & (
        extreme(jnp.min, jnp.inf) != extreme(jnp.max, -jnp.inf))

  return differ


class Resample(NamedTuple):
  """Dynamic sampling: further prompts for those whose scores are all equal.

  Yu et al. 2025, https://arxiv.org/abs/2503.14476, section 3.2.
  """

  rounds: int  # at most, beside the first
  varied: Callable[..., jax.Array]  # of `varied`, usually jitted


def _fill(draw: Callable[[int], types.Batch],
          keeps: Callable[[types.Batch], jax.Array], *, size: int, rounds: int
          ) -> tuple[types.Batch, dict[str, np.float32]]:
  """Rounds of prompts until `size` of them are kept.

  The host decides, on values that all processes read alike.

  Args:
    draw: (round from 0) -> samples of `size` prompts, or more to be left out.
    keeps: (samples) -> bool[B], of each prompt.
    size: prompts.
    rounds: at most.

  Returns:
    NumPy arrays of `size` prompts: those kept, in the order of the draws, then
    prompts without a response, which weigh nothing. And the metrics 'rollout/
    kept', share of the prompts asked, and 'rollout/rounds', those it took.
  """
  parts, count = [], 0
  for turn in range(rounds):
    batch = draw(turn)
    batch, keep = jax.tree.map(
        lambda x: x[:size], processes.whole((batch, keeps(batch))))
    parts.append(jax.tree.map(lambda x, keep=keep: x[keep], batch))
    count += int(keep.sum())
    if count >= size:
      break
  parts.append(batch.replace(mask=np.zeros_like(batch.mask)))
  return jax.tree.map(lambda *x: np.concatenate(x)[:size], *parts), {
      'rollout/kept': np.float32(count / (size * (turn + 1))),
      'rollout/rounds': np.float32(turn + 1)}


@functools.partial(jax.jit, static_argnums=(1, 2))
def _join(parts: Sequence[types.Batch], size: int, count: int) -> types.Batch:
  """`size` rows of chunks; those after the first `count` have no response."""
  batch = jax.tree.map(lambda *x: sharding.keep_rows(
      jnp.concatenate(x)[:size]), *parts)
  present = jnp.arange(size) < count
  return batch.replace(mask=batch.mask & present[:, None, None])


def _without_bad(scores: np.ndarray, step: int
                 ) -> tuple[np.ndarray, np.ndarray]:
  """Scores f32[B, K] without NaN, and bool[B]: whose samples all have one.

  The others are left out whole: fewer samples than K would be another method
  to some rows of the table, and a group of one has no baseline.

  Raises:
    RewardError: no prompt is left.
  """
  good = ~np.isnan(scores).any(axis=1)
  if not good.any():
    raise errors.RewardError(
        f'rewards at step {step} leave none of {len(scores)} prompts: of each '
        f"a sample's is None, NaN or infinite ({int(np.isnan(scores).sum())} "
        f'of {scores.size}), and its prompt is dropped; mend the reward')
  return np.where(good[:, None], scores, np.float32(0)), good


@jax.jit
def _scored(batch: types.Batch, scores: jax.Array, good: jax.Array
            ) -> types.Batch:
  """With f32[B, K]; only of the prompts kept, bool[B], there are responses."""
  return batch.replace(scores=scores, mask=batch.mask & good[:, None, None])


def online(
    prompts: corpus.Prompts,
    sampler: Callable[..., types.Batch],
    annotated: Callable[..., types.Rollout],
    *,
    batch_size: int,
    seed: int,
    score: Callable[[int, types.Batch, np.ndarray], np.ndarray] | None = None,
    chunk_size: int | None = None,
    multiple: int = 1,
    resample: Resample | None = None,
) -> Numbered:
  """Samples responses with the current policy and annotates them.

  The order of the prompts is a function of seed and step, the noise of the
  samples one of `state.key` and the place of a prompt in the rollout. So
  neither chunks nor devices change what is sampled. Where the mesh in use does
  not divide a rollout, it is filled up with prompts without a response.

  Args:
    prompts: N of them.
    sampler: (params, prompts, prompt_lengths, key, row_ids) -> Batch; params
      are those of the state and, where there is one, of `frozen.base`. Where
      the state has `targets`, those of a mask policy, it gets them beside the
      base as `guide`.
    annotated: of `rollout`, usually jitted.
    batch_size: prompts a rollout.
    seed: of the order of the prompts.
    score: rewards of texts, (step, batch, places i64[B] of its prompts among
      all) -> f32[B, K] on the host, which come into `batch.scores` before the
      annotators. A prompt of whose samples one has NaN is left without a
      response, and weighs nothing; 'rollout/bad_rewards' in the metrics counts
      the NaN.
    chunk_size: prompts sampled at a time, a divisor of `batch_size`; None:
      all at once. Memory falls.
    multiple: parts, of equal size for each device, into which a rollout will
      be cut.
    resample: None: a rollout is of the prompts of one round, whatever their
      scores. Otherwise each step has 1 + rounds batches of the order, of which
      it asks as many as it needs, see `_fill`: a resumed run asks the same.
      Scores of all rounds are made with the state as the step finds it;
      statistics and metrics are of the rollout that is trained on.

  Raises:
    ValueError: if `chunk_size` does not divide `batch_size`.
    RewardError: when called, if rewards leave no prompt.
  """
  chunk_size = chunk_size or batch_size
  if chunk_size < 1 or batch_size % chunk_size:
    raise ValueError(f'chunk_size must divide batch_size {batch_size}, '
                     f'got {chunk_size}.')

  turns = 1 if resample is None else 1 + resample.rounds
  rows_of = lambda step: order.indices(
      seed, step, turns * batch_size, len(prompts.tokens))

  def draw(step, turn, state, frozen, metrics):
    at = rows_of(step)[turn * batch_size:][:batch_size]
    whole = lambda part: types.with_base(frozen.base, part)
    params = whole(state.params)
    guide = {} if state.targets is None else {'guide': whole(state.targets)}
    key, shards = streams.child(state.key, 'sampler'), meshes.row_parts()
    size, parts = -(-batch_size // (shards * multiple)) * shards * multiple, []
    for rows, _ in sharding.chunks(size, chunk_size, shards):
      prompt_rows = at[rows % batch_size]
      chunk = sharding.shard_batch((
          prompts.tokens[prompt_rows], prompts.lengths[prompt_rows],
          (rows + turn * batch_size).astype(np.int32)))
      parts.append(sampler(params, *chunk[:2], key, chunk[2], **guide))
    batch = (_join(parts, size, batch_size)
             if len(parts) > 1 or size != batch_size else parts[0])
    if score is None:
      return batch
    scores = np.asarray(score(step, jax.tree.map(
        lambda x: x[:batch_size], processes.whole(batch)), at), np.float32)
    metrics['rollout/bad_rewards'] += np.float32(np.isnan(scores).sum())
    checked = sharding.pad_rows(_without_bad(scores, step), size)
    return _scored(batch, *sharding.shard_batch(checked))

  def source(step, state, frozen):
    metrics = {} if score is None else {'rollout/bad_rewards': np.float32(0)}
    draw_at = lambda turn: draw(step, turn, state, frozen, metrics)
    if resample is None:
      batch = draw_at(0)
    else:
      batch, filled = _fill(
          draw_at, lambda batch: resample.varied(batch, state, frozen),
          size=batch_size, rounds=turns)
      batch = sharding.shard_batch(sharding.pad_rows(
          batch, multiple * meshes.row_parts()))
      metrics |= filled
    rollout = annotated(batch, state, frozen)
    return rollout.replace(metrics=rollout.metrics | metrics)

  return Numbered(rows_of, source)
