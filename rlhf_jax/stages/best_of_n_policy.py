"""Best-of-n as a policy: what a trained one leaves, for every n.

Coste et al. 2024, section 5.1 and equations 1, 7 and 8. Nothing is trained or
sampled here, so runs that differ in their aggregate share samples and scores.
"""

import math

import jax.numpy as jnp
import numpy as np

from rlhf_jax.evaluation import statistics
from rlhf_jax.ops import best_of_n
from rlhf_jax.ops import ensembles
from rlhf_jax.pipeline import artifacts
from rlhf_jax.stages import best_of_n as best_of_n_stage
from rlhf_jax.stages import scores as scores_lib
from rlhf_jax.storage import files
from rlhf_jax.storage import metrics


def _watched(context, corpus, known, proxy, pairs) -> dict[str, np.ndarray]:
  """What is followed as n grows, each [B, N], in units of `policy.run`."""
  gold_scale, rule_scale = artifacts.score_scales(context, corpus, pairs)
  unit = lambda values, scale: (values - scale[0]) / scale[1]
  watched = {'proxy': proxy, 'gold': unit(known['gold'], gold_scale)}
  if rule_scale is not None:
    watched['rule'] = unit(known['rule'], rule_scale)
  finished = 1 - known['unfinished']
  return watched | {'length': known['length'] - finished,  # without EOS
                    'unfinished': known['unfinished']}


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


def run(context, *, seed: int, data: dict, policy: str, pairs: str,
        scores: str, proxies: str, aggregate: dict, weight: float,
        standardize: bool) -> dict:
  """Writes evaluation.jsonl and final.jsonl, as `policy.run` does.

  A line of evaluation.jsonl is one n of 1, 2, 4, ... and N: `step` and
  `samples` are n, every `kl` is the analytic one in nats, the others are
  unbiased estimates, means over all evaluation prompts with their standard
  errors. final.jsonl has those of each prompt at N, in which `response` is
  null (Coste et al. 2024, appendix F.9).

  Args:
    context: of the stage.
    seed: of the corpus.
    data: config node of the corpus.
    policy: stage that holds the SFT policy, which has written the samples.
    pairs: stage whose responses set the zero and the unit of gold scores.
    scores: stage that holds the scores of the samples.
    proxies: stage that holds the ensemble.
    aggregate: of `ops.ensembles.aggregate`, by which the best are chosen.
    weight: of the aggregate, in the proxy score.
    standardize: members to mean 0 and deviation 1 on held-out responses
      before they are combined.
  """
  corpus = artifacts.load_corpus(context, data, seed, policy)
  known = files.load_arrays(context.directory_of(scores) / 'scores.npz')
  members = known.pop('members')
  if standardize:
    members = scores_lib.standardized(context, proxies, members)
  proxy = weight * np.asarray(
      ensembles.aggregate(members, **aggregate), np.float32)
  ns = best_of_n_stage.grid(proxy.shape[1])
  curves = {
      name: np.asarray(best_of_n.curve(
          jnp.asarray(proxy), jnp.asarray(values, jnp.float32), ns),
                       np.float64)
      for name, values in _watched(
          context, corpus, known, proxy, pairs).items()}
  with metrics.MetricsWriter(context.directory / 'evaluation.jsonl') as writer:
    writer.truncate(-1)  # what an interrupted run has left
    for i, n in enumerate(ns):
      row = _row(n, {name: curve[:, i] for name, curve in curves.items()})
      writer.write(n, row)
  files.write_jsonl(
      context.directory / 'final.jsonl',
      _final_rows(corpus, {k: curve[:, -1] for k, curve in curves.items()}))
  return {'gold': row['gold'], 'proxy': row['proxy'], 'n': ns[-1]}
