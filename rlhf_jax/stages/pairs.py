"""Preference pairs: two responses of the policy to each prompt, gold scores.

The labels are not made here: every ensemble of a study flips its own share of
them (`stages.proxies`), and the texts and their gold scores are shared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import files
from rlhf_jax import rewards
from rlhf_jax import sampling
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.models import transformer
from rlhf_jax.stages import common

CHUNK = 256  # prompts sampled at a time


def run(context, *, seed: int, data: dict, policy: str, policy_model: dict,
        gold: str, gold_model: dict, force_eos: bool,
        sampler: dict) -> dict:
  """Samples and scores; `pairs.npz` then holds tokens, mask, gold_scores.

  Args:
    context: of the stage.
    seed: of the samples.
    data: config node of the corpus.
    policy: stage that holds the SFT policy.
    policy_model: its shape.
    gold: stage that holds the gold reward model.
    gold_model: its shape.
    force_eos: see `sampling.sample`.
    sampler: temperature, top_k, top_p.
  """
  corpus = corpus_lib.load(data, seed)
  coder = corpus.tokenizer
  make = functools.partial(
      transformer.make_config, vocab_size=coder.vocab_size)
  config, gold_config = make(**policy_model), make(**gold_model)
  params = common.load_policy(context, policy, config)
  prompts = corpus.pair_prompts
  key = jax.random.fold_in(jax.random.key(seed), 1)
  kept = [], []
  for start in range(0, len(prompts.tokens), CHUNK):
    context.stop.check(f'the start of {context.directory.name}')
    # The last chunk is filled up, so that it runs the same program.
    at = np.arange(start, start + CHUNK) % len(prompts.tokens)
    batch = sampling.sample(
        config, params, prompts.tokens[at], prompts.lengths[at], key,
        num_samples=2, max_new_tokens=corpus.max_response_length,
        eos_id=coder.eos_id, pad_id=coder.pad_id, force_eos=force_eos,
        row_ids=jnp.arange(start, start + CHUNK), **sampler)
    for rows, x in zip(kept, (batch.tokens, batch.mask)):
      rows.append(np.asarray(x))
  tokens, mask = (np.concatenate(x)[:len(prompts.tokens)] for x in kept)
  flat = lambda x: x.reshape(-1, x.shape[-1])
  members = common.load_members(context, gold, gold_config, None)
  scores = rewards.score_rows(
      gold_config, members, flat(tokens), flat(mask))[0].reshape(-1, 2)
  files.save_arrays(context.directory / 'pairs.npz', tokens=tokens,
                         mask=mask, gold_scores=scores)
  finished = (mask & (tokens == coder.eos_id)).any(axis=-1)
  return {'pairs': len(tokens), 'unfinished': float(1 - finished.mean()),
          'gold_mean': float(scores.mean()), 'gold_std': float(scores.std()),
          'response_tokens': float(mask.sum(axis=-1).mean())}
