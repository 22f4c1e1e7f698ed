"""Preference pairs: two responses of a policy to each prompt, gold scores.

The labels are not made here: every ensemble of a study flips its own share of
them (`stages.proxies`), and the texts and their gold scores are shared.
"""

import dataclasses

import jax

from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.models import pretrained
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import rows as rows_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

CHUNK = 256  # prompts sampled at a time


def run(context, *, seed: int, data: dict, policy: str, policy_model: dict,
        gold: str, gold_model: dict, force_eos: bool, sampler: dict,
        sampled_from: str | None = None, first: int = 0,
        num_pairs: int | None = None) -> dict:
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
    sampled_from: stage of another policy that answers; None: the SFT policy.
    first: the pair prompt that is answered first.
    num_pairs: prompts answered from there on; None: all.
  """
  corpus = artifacts.load_corpus(context, data, seed, policy)
  coder = corpus.tokenizer
  prompts = corpus.pair_prompts
  at = slice(first, None if num_pairs is None else first + num_pairs)
  corpus = dataclasses.replace(corpus, pair_prompts=corpus_lib.Prompts(
      prompts.tokens[at], prompts.lengths[at]))
  config, params = artifacts.load_policy(
      context, sampled_from or policy, policy_model, coder.vocab_size)
  key = jax.random.fold_in(jax.random.key(seed), 1)
  if first:  # other prompts, other noise
    key = jax.random.fold_in(key, first)
  gold_config = pretrained.config(gold_model, coder.vocab_size)
  tokens, mask = rows_lib.sample_rows(
      context, corpus, config, params, key,
      num_prompts=len(corpus.pair_prompts.tokens), num_samples=2,
      chunk_size=CHUNK, force_eos=force_eos, **sampler)
  members = artifacts.load_members(context, gold, gold_config, None)
  scores = reward_models.score_rows(gold_config, members, tokens, mask)[0]
  files.save_arrays(context.directory / 'pairs.npz', tokens=tokens, mask=mask,
                    gold_scores=scores)
  finished = rows_lib.finished(tokens, mask, coder.eos_id)
  return {'pairs': len(tokens), 'unfinished': float(1 - finished.mean()),
          'gold_mean': float(scores.mean()), 'gold_std': float(scores.std()),
          'response_tokens': float(mask.sum(axis=-1).mean())}
