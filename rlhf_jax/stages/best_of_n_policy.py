"""Best-of-n as a policy: what a trained one leaves, for every n.

Coste et al. 2024, section 5.1 and equations 1, 7 and 8. Nothing is trained or
sampled here, so runs that differ in their aggregate share samples and scores.
"""

from collections.abc import Mapping
import math
from typing import Any

import numpy as np

from rlhf_jax.evaluation import statistics
from rlhf_jax.ops import best_of_n
from rlhf_jax.ops import ensembles
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import picks
from rlhf_jax.storage import files

NEEDS, READS = ('reference', 'gold', 'pairs', 'scores', 'proxies'), ()


def run(context, *, seed: int, data: dict, upstream: Mapping[str, Any],
        proxy: Mapping[str, Any]) -> dict:
  """Writes evaluation.jsonl and final.jsonl, as `stages.online_policy` does.

  A line of evaluation.jsonl is one n of 1, 2, 4, ... and N: `step` and
  `samples` are n, every `kl` is the analytic one in nats, the others are
  unbiased estimates, means over all evaluation prompts with their standard
  errors. final.jsonl has those of each prompt at N, in which `response` is
  null (Coste et al. 2024, appendix F.9).

  Args:
    context: of the stage.
    seed: of the study.
    data: config node of the corpus.
    upstream: stages by role, see `artifacts`.
    proxy: component of kind 'proxy', see `rewards.nodes`, by whose
      'aggregate' the best are chosen; the study refuses one whose score would
      be scaled or squashed.
  """
  world = artifacts.World(context, data, seed, upstream)
  scores = picks.load(context, upstream, proxy['standardize'])
  score = proxy['weight'] * np.asarray(ensembles.aggregate(
      scores.pop('members'), **proxy['aggregate']), np.float32)
  ns = picks.grid(score.shape[1])
  curves = {name: x.astype(np.float64) for name, x in best_of_n.curves(
      score, _watched(world, scores, score), ns).items()}
  with context.writer('evaluation') as writer:
    writer.truncate(-1)  # what an interrupted run has left
    for i, n in enumerate(ns):
      row = _row(n, {name: curve[:, i] for name, curve in curves.items()})
      writer.write(n, row)
  files.write_jsonl(
      context.directory / 'final.jsonl',
      _final_rows(world.corpus, {k: x[:, -1] for k, x in curves.items()}))
  return {'gold': row['gold'], 'proxy': row['proxy'], 'n': ns[-1]}


def _watched(world, scores, proxy) -> dict[str, np.ndarray]:
  """What is followed as n grows, each [B, N], in the units of a policy."""
  mean, std = (world.gold.scale[k][0] for k in ('mean', 'std'))
  watched = {'proxy': proxy, 'gold': (scores['gold'] - mean) / std}
  unit = world.rule_unit()
  if unit is not None:
    watched['rule'] = (scores['rule'] - unit[0]) / unit[1]
  finished = 1 - scores['unfinished']
  return watched | {'length': scores['length'] - finished,  # without EOS
                    'unfinished': scores['unfinished']}


def _row(n: int, values: dict[str, np.ndarray]) -> dict[str, float]:
  """One evaluation, of the estimates [B] at this n."""
  divergence = max(float(best_of_n.kl(n)), 0.0)
  row = {'updates': 0, 'samples': n}
  for name in ('proxy', 'gold', 'rule'):
    if name in values:
      row |= {name: values[name].mean(),
              f'{name}_se': statistics.standard_error(values[name])}
  row |= {f'kl_k{i}': divergence for i in (1, 2, 3)}
  row['sqrt_kl'] = math.sqrt(divergence)
  return row | {name: values[name].mean() for name in ('length', 'unfinished')}


def _final_rows(corpus, values: dict[str, np.ndarray]) -> list[dict]:
  """What is known of each prompt: expectations, of no one response."""
  prompts, decode = corpus.eval_prompts, corpus.tokenizer.decode
  absent = {'response': None, 'reference': None, 'reference_gold': None,
            'rule': None}
  return [
      absent | {'prompt': decode(tokens[:length])} | {
          name: float(values[name][i])
          for name in ('gold', 'proxy', 'rule', 'length') if name in values}
      for i, (tokens, length) in enumerate(
          zip(prompts.tokens, prompts.lengths))]
