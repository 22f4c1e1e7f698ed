"""Many responses to each evaluation prompt, with their gold scores.

The raw material of best-of-n. Written in shards of a few prompts, so that a
killed run samples no shard twice.
"""

from collections.abc import Mapping
import time
from typing import Any

import numpy as np

from rlhf_jax import streams
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.parallel import processes
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.storage import files

NEEDS, READS = ('reference', 'gold'), ('policy',)


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        force_eos: bool, sampler: Mapping[str, Any], num_samples: int,
        call: Mapping[str, int]) -> dict:
  """Samples N responses a prompt; `shard_<i>.npz` then hold [b, N, T].

  Each shard has tokens, mask, gold_scores [b, N] and, in the small world, the
  rule [b, N].

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`: `policy` answers.
    force_eos: see `sampling.sample`.
    sampler: of `rows.Draw`.
    num_samples: N, a multiple of `samples_per_call` or below it.
    call: 'samples_per_call', rows sampled at once for one prompt, small enough
      that their key-value cache stays in the processor's cache; and
      'shard_prompts', prompts a shard.
  """
  world = artifacts.World(context, data, seed, upstream)
  prompts = world.corpus.eval_prompts
  size, totals = call['shard_prompts'], {'sampling': 0.0, 'scoring': 0.0}
  draw = rows_lib.Draw(
      num_samples=min(call['samples_per_call'], num_samples),
      sampler=sampler, force_eos=force_eos, chunk_size=1)

  def shard(start):
    at = range(start, min(start + size, len(prompts.tokens)))
    began = time.monotonic()
    rows = [_responses(world, prompts, index, num_samples, seed, draw)
            for index in at]
    tokens, mask = (np.stack(x) for x in zip(*rows))
    middle = time.monotonic()
    arrays = _scored(world, tokens, mask)
    totals['sampling'] += middle - began
    totals['scoring'] += time.monotonic() - middle
    return arrays

  starts = range(0, len(prompts.tokens), size)
  unfinished, lengths, fresh = [], [], 0
  with context.progress(len(starts), 0, 'samples') as bar:
    for number, start in enumerate(starts):
      path = context.directory / f'shard_{number:04d}.npz'
      if not processes.from_owner(path.exists):
        context.stop.check(f'shard {number} of {len(starts)}')
        arrays = shard(start)
        files.save_arrays(path, owner=context.key, **arrays)
        fresh += int(arrays['mask'].sum())
      else:
        arrays = files.load_arrays(path, owner=context.key)
      unfinished.append(arrays['unfinished'].mean())
      lengths.append(arrays['mask'].sum(axis=-1).mean())
      bar.update(1)
  return {
      'responses': len(prompts.tokens) * num_samples,
      'unfinished': float(np.mean(unfinished)),
      'response_tokens': float(np.mean(lengths)),
      'sampled_tokens_per_second':
          fresh / totals['sampling'] if fresh else None,
      'sampling_seconds': totals['sampling'],
      'scoring_seconds': totals['scoring'],
  }


def _responses(world, prompts, index, num_samples, seed, draw):
  """All responses to one prompt, tokens and mask [N, T]."""
  calls = num_samples // draw.num_samples
  repeated = np.full(calls, index)
  tokens, mask = rows_lib.sample_rows(
      world, world.policy,
      corpus_lib.Prompts(prompts.tokens[repeated], prompts.lengths[repeated]),
      streams.key(seed, 'samples'), draw, first_row=index * calls)
  return (x.reshape(num_samples, -1) for x in (tokens, mask))


def _scored(world, tokens, mask) -> dict[str, np.ndarray]:
  """What a shard holds, from tokens and mask [b, N, T]."""
  corpus = world.corpus
  arrays = {'gold_scores': world.gold.scores(
      tokens, mask, standardize=False)[0]}
  if corpus.world is not None:
    arrays['rule'] = corpus.world.rule(tokens, mask)
  small = np.uint16 if corpus.tokenizer.vocab_size < 2**16 else np.int32
  return dict(arrays, tokens=tokens.astype(small), mask=mask,
              unfinished=1.0 - corpus.tokenizer.finished(tokens, mask))
