"""Many responses to each evaluation prompt, with their gold scores.

The raw material of best-of-n. Written in shards of a few prompts, so that a
killed run samples no shard twice.
"""

import functools
import time

import jax
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files
from rlhf_jax.storage import metrics


def _responses(draw, prompts, index, calls):
  """All responses to one prompt, tokens and mask [N, T]."""
  at = slice(index, index + 1)
  parts = [draw(prompts=prompts.tokens[at], prompt_lengths=prompts.lengths[at],
                row_ids=np.arange(1) + index * calls + call)
           for call in range(calls)]
  join = lambda name: np.concatenate(
      [np.asarray(getattr(p, name)[0]) for p in parts])
  return join('tokens'), join('mask')


def _scored(corpus, score, tokens, mask) -> dict[str, np.ndarray]:
  """What a shard holds, from tokens and mask [b, N, T]."""
  arrays = {'gold_scores': score(tokens, mask)[0]}
  if corpus.world is not None:
    arrays['rule'] = corpus.world.rule(tokens, mask)
  small = np.uint16 if corpus.tokenizer.vocab_size < 2**16 else np.int32
  return dict(arrays, tokens=tokens.astype(small), mask=mask)


def run(context, *, seed: int, data: dict, policy: str, policy_model: dict,
        gold: str, gold_model: dict, force_eos: bool, num_samples: int,
        sampler: dict, shard_prompts: int = 4,
        samples_per_call: int = 512) -> dict:
  """Samples N responses a prompt; `shard_<i>.npz` then hold [b, N, T].

  Each shard has tokens, mask, gold_scores [b, N] and, in the small world, the
  rule [b, N].

  Args:
    context: of the stage.
    seed: of the samples.
    data: config node of the corpus.
    policy: stage that holds the SFT policy.
    policy_model: its shape.
    gold: stage that holds the gold reward model.
    gold_model: its shape.
    force_eos: see `sampling.sample`.
    num_samples: N, a multiple of `samples_per_call` or below it.
    sampler: temperature, top_k, top_p.
    shard_prompts: prompts a shard.
    samples_per_call: rows sampled at once for one prompt; small enough that
      their key-value cache stays in the processor's cache.
  """
  corpus = artifacts.load_corpus(context, data, seed, policy)
  vocab_size = corpus.tokenizer.vocab_size
  config, params = artifacts.load_policy(
      context, policy, policy_model, vocab_size)
  gold_config = pretrained.config(gold_model, vocab_size)
  score = functools.partial(
      reward_models.score_rows, gold_config,
      artifacts.load_members(context, gold, gold_config, None))
  prompts, totals = corpus.eval_prompts, {'sampling': 0.0, 'scoring': 0.0}
  per_call = min(samples_per_call, num_samples)
  calls = num_samples // per_call
  draw = functools.partial(
      sampling.sample, config, params,
      key=jax.random.fold_in(jax.random.key(seed), 3), num_samples=per_call,
      max_new_tokens=corpus.max_response_length,
      eos_id=corpus.tokenizer.eos_id, pad_id=corpus.tokenizer.pad_id,
      num_tokens=vocab_size,
      force_eos=force_eos, **sampler)

  def shard(start):
    at = range(start, min(start + shard_prompts, len(prompts.tokens)))
    began = time.monotonic()
    rows = [_responses(draw, prompts, index, calls) for index in at]
    tokens, mask = (np.stack(x) for x in zip(*rows))
    drawn = time.monotonic()
    arrays = _scored(corpus, score, tokens, mask)
    totals['sampling'] += drawn - began
    totals['scoring'] += time.monotonic() - drawn
    return arrays

  starts = range(0, len(prompts.tokens), shard_prompts)
  unfinished, lengths, fresh = [], [], 0
  with metrics.progress(len(starts), 0, 'samples') as bar:
    for number, start in enumerate(starts):
      path = context.directory / f'shard_{number:04d}.npz'
      if not path.exists():
        context.stop.check(f'shard {number} of {len(starts)}')
        arrays = shard(start)
        files.save_arrays(path, **arrays)
        fresh += int(arrays['mask'].sum())
      else:
        arrays = files.load_arrays(path)
      ended = rows_lib.finished(
          arrays['tokens'], arrays['mask'], corpus.tokenizer.eos_id)
      unfinished.append(1 - ended.mean())
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
