"""The columns of an evaluation, each from what it is about.

Means over prompts, in this order; those in brackets only where there is what
they need, `_se` the standard error of the mean:

  [proxy, proxy_se]: the total of the rewards, without the noise, KL penalty or
    clipping of training.
  [member_0, ...]: each reward model of an ensemble among the components, as it
    is combined.
  [ensemble_variance, ensemble_variance_unbiased]: over these members, ddof 0
    and 1 (Coste et al. 2024, Fig. 10).
  component_<name>, component_<name>_se: each component, in its range, before
    its weight.
  [bad_rewards]: responses, where a component may drop some (`rewards.nodes`);
    the columns of the rewards are means over the others.
  [gold, gold_se], [rule, rule_se]: in standard deviations of the initial
    policy's samples, from their mean.
  [gold_split_<split>, proxy_split_<split>, and their errors]: of the prompts
    of each of `corpus.eval_splits`.
  kl_k1, kl_k2, kl_k3: KL from the reference by `ops.kl.estimate`, summed over
    response tokens, in nats. Under the softmax at the sampler's temperature,
    at 1 if it is greedy, before top-k and top-p; with `value_shift`, of the
    shifted distribution that sampled.
  sqrt_kl: of kl_k2 (Coste et al. 2024, equation 10).
  length: response tokens without EOS. words: of a response (Baheti et al.
    2024). unfinished: share of responses without EOS.
  distinct_1 to distinct_3, diversity_1, diversity_2: see `ops.texts`.
  [perplexity]: of the chosen completions of the same prompts, per token, at
    temperature 1; not with `value_shift`.
  [reward_variance]: of the proxy, the population's.

diversity_n is NaN where every response is shorter than n words, standard
errors where there is one prompt.
"""

from collections.abc import Mapping, Sequence
import math

import jax
import numpy as np

from rlhf_jax.evaluation import statistics
from rlhf_jax.ops import endings
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import kl
from rlhf_jax.ops import masked
from rlhf_jax.ops import texts as texts_lib
from rlhf_jax.rewards import components as components_lib


def with_error(name: str, values: np.ndarray) -> dict[str, float]:
  """Mean over prompts and its standard error, NaN for one prompt.

  Values that are NaN, of responses that a reward drops, are left out.
  """
  values = values[~np.isnan(values)]
  if not values.size:
    return {name: math.nan, f'{name}_se': math.nan}
  return {name: float(values.mean()),
          f'{name}_se': float(statistics.standard_error(values))}


@jax.jit
def _divergences(logprobs, reference, mask):
  """Each estimate f32[B], summed over the tokens of a response."""
  return {kind: masked.masked_sum(
      kl.estimate(logprobs, reference, kind=kind), mask, axis=-1)
          for kind in kl.KINDS}


def divergence(logprobs, reference, mask) -> dict[str, float]:
  """KL from the reference by all estimators, from [B, T], in nats."""
  sums = {kind: np.asarray(x, np.float64)
          for kind, x in _divergences(logprobs, reference, mask).items()}
  row = {f'kl_{kind}': float(sums[kind].mean()) for kind in kl.KINDS}
  return row | {'sqrt_kl': math.sqrt(row['kl_k2'])}


def log_ratio(logprobs, reference, mask) -> np.ndarray:
  """f64[B], of each response log(policy / reference), in nats; mean is kl_k1.

  Args:
    logprobs: f32[B, T] of the policy.
    reference: likewise.
    mask: bool[B, T], true on response tokens.
  """
  return np.asarray(_divergences(logprobs, reference, mask)['k1'], np.float64)


def disagreement(members: np.ndarray) -> dict[str, float]:
  """Each member's mean, and the variance over members, from [E, B]."""
  row = {f'member_{i}': float(x.mean()) for i, x in enumerate(members)}
  for ddof, name in enumerate(
      ('ensemble_variance', 'ensemble_variance_unbiased')):
    row[name] = float(np.asarray(
        ensembles.variance(members, ddof=ddof), np.float64).mean())
  return row


def variety(responses: Sequence[str]) -> dict[str, float]:
  """Distinct-n of all responses, n-gram diversity within each."""
  return {f'distinct_{n}': texts_lib.distinct(responses, n)
          for n in (1, 2, 3)} | {
              f'diversity_{n}': texts_lib.ngram_diversity(responses, n)
              for n in (1, 2)}


def by_split(splits: Sequence[str], **scores: np.ndarray) -> dict[str, float]:
  """Means [B] of each part of the data, `<name>_split_<split>` and its error.

  Args:
    splits: the part of each prompt, B names.
    **scores: f[B].
  """
  splits, row = np.array(splits), {}
  for split in dict.fromkeys(splits.tolist()):
    for name, values in scores.items():
      row |= with_error(f'{name}_split_{split}', values[splits == split])
  return row


def of_components(components: Mapping[str, np.ndarray]) -> dict[str, float]:
  """`component_<name>` and its error, of f[B] by name."""
  row = {}
  for name, values in components.items():
    row |= with_error(f'component_{name}', values.astype(np.float64))
  return row


def of_scores(proxy: np.ndarray | None, scored: components_lib.Scored,
              splits: Sequence[str] | None, *, gold: np.ndarray | None,
              rule: np.ndarray | None) -> dict[str, float]:
  """What is thought of the responses, as a whole and by split.

  Args:
    proxy: f64[B], the total of the components; None: there are none.
    scored: each of them, f32[B], and the members of an ensemble.
    splits: the part of the data that each prompt is of, B names, or None.
    gold: f64[B], or None.
    rule: f64[B], or None.
  """
  row = {} if proxy is None else with_error('proxy', proxy)
  if scored.members is not None:
    row |= disagreement(scored.members)
  row |= of_components(scored.values)
  if scored.bad is not None:
    row['bad_rewards'] = float(scored.bad.sum())
  optional = {name: values for name, values in (('gold', gold), ('rule', rule))
              if values is not None}
  for name, values in optional.items():
    row |= with_error(name, values)
  if splits is None:
    return row
  optional.pop('rule', None)
  if proxy is not None:
    optional['proxy'] = proxy
  return row | by_split(splits, **optional)


def of_texts(tokens: np.ndarray, mask: np.ndarray, responses: Sequence[str],
             eos_id: int | tuple[int, ...],
             stops: np.ndarray | None = None) -> dict[str, float]:
  """Length in tokens and words, unfinished ones, and their variety.

  Args:
    tokens: i32[B, T].
    mask: bool[B, T], true on response tokens.
    responses: B texts.
    eos_id: of the tokenizer.
    stops: of the tokenizer.
  """
  lengths = statistics.response_lengths(tokens, mask, eos_id=eos_id)
  return {'length': float(lengths.mean()),
          'words': texts_lib.mean_words(responses),
          'unfinished': float(
              1 - endings.finished(tokens, mask, eos_id, stops).mean())
          } | variety(
                  responses)
