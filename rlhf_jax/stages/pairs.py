"""Preference pairs: two responses of the policy to each prompt, gold scores.

The labels are not made here: every ensemble of a study flips its own share of
them (`stages.proxies`), and the texts and their gold scores are shared.
"""

import jax

from rlhf_jax import files
from rlhf_jax import rewards
from rlhf_jax.models import pretrained
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
  corpus = common.load_corpus(context, data, seed, policy)
  coder = corpus.tokenizer
  config, params = common.load_policy(
      context, policy, policy_model, coder.vocab_size)
  gold_config = pretrained.config(gold_model, coder.vocab_size)
  tokens, mask = common.sample_rows(
      context, corpus, config, params,
      jax.random.fold_in(jax.random.key(seed), 1),
      num_prompts=len(corpus.pair_prompts.tokens), num_samples=2,
      chunk_size=CHUNK, force_eos=force_eos, **sampler)
  members = common.load_members(context, gold, gold_config, None)
  scores = rewards.score_rows(gold_config, members, tokens, mask)[0]
  files.save_arrays(context.directory / 'pairs.npz', tokens=tokens, mask=mask,
                    gold_scores=scores)
  finished = common.finished(tokens, mask, coder.eos_id)
  return {'pairs': len(tokens), 'unfinished': float(1 - finished.mean()),
          'gold_mean': float(scores.mean()), 'gold_std': float(scores.std()),
          'response_tokens': float(mask.sum(axis=-1).mean())}
