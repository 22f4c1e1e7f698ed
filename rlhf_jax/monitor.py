"""What a policy is worth while it is trained: one row of numbers.

Every evaluation answers the same prompts with the same random numbers and
scores them without the noise and penalties of training, so that two rows
differ by the policy alone. Sources: Coste et al. 2024,
https://arxiv.org/abs/2310.02743 (gold and proxy scores over sqrt(KL));
Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740 (perplexity, diversity,
length, variance); Baheti et al. 2024, https://arxiv.org/abs/2305.14718
(distinct-n); objectives.md, sections 5.1 and 11.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import evaluate
from rlhf_jax import files
from rlhf_jax import policy
from rlhf_jax import rewards
from rlhf_jax import sampling
from rlhf_jax import sharding
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import transformer
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import kl
from rlhf_jax.ops import masked
from rlhf_jax.ops import texts as texts_lib

_HEADS = ('value_head', 'value_trunk', 'reward_head', 'q_heads')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One response to each of B prompts, and what is thought of them."""

  row: dict[str, float]  # the columns of `Monitor`
  tokens: np.ndarray  # i32[B, T], prompt, response, padding
  mask: np.ndarray  # bool[B, T], true on response tokens
  gold: np.ndarray  # f64[B]
  proxy: np.ndarray  # f64[B]
  rule: np.ndarray | None  # f64[B], where there is a rule
  length: np.ndarray  # i64[B], tokens without EOS


def decode(tokenizer: tokenizer_lib.Tokenizer, tokens: np.ndarray,
           mask: np.ndarray) -> tuple[list[str], list[str]]:
  """Texts of rows.

  Args:
    tokenizer: of the tokens.
    tokens: i32[..., T], prompt, response, padding; N rows in all.
    mask: bool[..., T], true on response tokens, somewhere in each row.

  Returns:
    (prompts, responses), N texts each, without special tokens.
  """
  width = tokens.shape[-1]
  rows = list(zip(tokens.reshape(-1, width), mask.reshape(-1, width)))
  return ([tokenizer.decode(row[:at.argmax()]) for row, at in rows],
          [tokenizer.decode(row[at], continuation=True) for row, at in rows])


@functools.partial(jax.jit, static_argnames=('config', 'temperature'))
def _logprobs(config, params, batch, temperature):
  return policy.forward(
      config, params, batch, temperature=temperature).logprobs


@jax.jit
def _divergences(logprobs, reference, mask):
  """Each estimate f32[B], summed over the tokens of a response."""
  return {kind: masked.masked_sum(
      kl.estimate(logprobs, reference, kind=kind), mask, axis=-1)
          for kind in kl.KINDS}


def _finite(name: str, scores: Any, count: int, what: str) -> np.ndarray:
  """Scores f64[B]; a RewardError says which of them is no number."""
  scores = np.asarray(scores, np.float64)
  if scores.shape != (count,):
    raise errors.RewardError(
        f'{name} gave scores of shape {scores.shape} for {count} evaluation '
        f'prompts ({what}); it has to give one number for each')
  bad = np.flatnonzero(~np.isfinite(scores))
  if bad.size:
    raise errors.RewardError(
        f'{name} gave {scores[bad[0]]} for evaluation prompt {bad[0]} '
        f'({what}; {bad.size} of {count} are not finite); mend it, train it '
        'again, or choose another')
  return scores


def _with_error(name: str, values: np.ndarray) -> dict[str, float]:
  """Mean over prompts and its standard error, NaN for one prompt."""
  return {name: float(values.mean()),
          f'{name}_se': float(evaluate.standard_error(values))}


def _divergence(logprobs, reference, mask) -> dict[str, float]:
  """KL from the reference by all estimators, from [B, T], in nats."""
  sums = {kind: np.asarray(x, np.float64)
          for kind, x in _divergences(logprobs, reference, mask).items()}
  row = {f'kl_{kind}': float(sums[kind].mean()) for kind in kl.KINDS}
  return row | {'sqrt_kl': math.sqrt(row['kl_k2'])}


def _disagreement(members: np.ndarray) -> dict[str, float]:
  """Each member's mean, and the variance over members, from [E, B]."""
  row = {f'member_{i}': float(x.mean()) for i, x in enumerate(members)}
  for ddof, name in enumerate(
      ('ensemble_variance', 'ensemble_variance_unbiased')):
    row[name] = float(np.asarray(
        ensembles.variance(members, ddof=ddof), np.float64).mean())
  return row


def _variety(responses: Sequence[str]) -> dict[str, float]:
  """Distinct-n of all responses, n-gram diversity within each."""
  return {f'distinct_{n}': texts_lib.distinct(responses, n)
          for n in (1, 2, 3)} | {
              f'diversity_{n}': texts_lib.ngram_diversity(responses, n)
              for n in (1, 2)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitor:
  """Evaluates a policy, (params, step=...) -> Evaluation, always alike.

  Rows are split over all devices, and all monitors of the same shapes run the
  same programs.

  Columns of `Evaluation.row`, means over prompts; those in brackets only where
  there is what they need, `_se` the standard error of the mean:

    proxy, proxy_se: what training maximises, without noise, KL penalty or
      clipping: `weight` times the aggregate of the members, and `functions`.
    [member_0, ...]: each reward model, standardised if they are.
    [ensemble_variance, ensemble_variance_unbiased]: over these members, ddof
      0 and 1 (Coste et al. 2024, Fig. 10).
    gold, gold_se, [rule, rule_se]: in standard deviations of the SFT policy's
      samples, from their mean.
    kl_k1, kl_k2, kl_k3: KL from the reference by `ops.kl.estimate`, summed
      over response tokens, in nats. Under the softmax at the sampler's
      temperature, at 1 if it is greedy, before top-k and top-p.
    sqrt_kl: of kl_k2 (Coste et al. 2024, equation 10).
    length: response tokens without EOS.
    unfinished: share of responses without EOS.
    distinct_1 to distinct_3, diversity_1, diversity_2: see `ops.texts`.
    [perplexity]: of the chosen completions of the same prompts, per token, at
      temperature 1.
    reward_variance: of the proxy, the population's.

  diversity_n is NaN where every response is shorter than n words, standard
  errors where there is one prompt.

  Attributes:
    config: shape of the policy and of the reference.
    reference: parameters of the initial policy.
    reward_config: shape of the reward models; read only with `reward`.
    reward: their parameters, leaves [E, ...]; None: `functions` alone.
    reward_scale: 'mean' and 'std', f[E], by which members are standardised;
      None: they are not.
    aggregate: arguments of `ops.ensembles.aggregate`.
    gold_config: shape of the gold reward model.
    gold: its parameters, leaves [1, ...].
    gold_scale: mean and s.d. of its scores of the SFT policy's samples.
    rule_scale: the same of the rule; None: no rule.
    corpus: its first `eval_prompts` are answered.
    num_prompts: B.
    sampler: temperature, top_k, top_p and the like of `sampling.sample`.
    key: of every evaluation's samples.
    functions: programmatic rewards, with a method (prompts, responses, step)
      -> f[B] named `score`, or None.
    weight: of the ensemble beside `functions`.
    chunk_size: responses computed at a time, rounded up to the devices.

  Raises:
    ValueError: if `num_prompts`, `chunk_size`, a scale or the rewards are out
      of range.
  """

  config: transformer.Config
  reference: types.Params
  reward_config: transformer.Config | None
  reward: types.Params | None
  reward_scale: dict[str, np.ndarray] | None
  aggregate: dict[str, Any]
  gold_config: transformer.Config
  gold: types.Params
  gold_scale: tuple[float, float]
  rule_scale: tuple[float, float] | None
  corpus: corpus_lib.Corpus
  num_prompts: int
  sampler: dict[str, Any]
  key: jax.Array
  functions: Any = None
  weight: float = 1.0
  chunk_size: int = 256

  def __post_init__(self):
    known = len(self.corpus.eval_prompts.tokens)
    if not 1 <= self.num_prompts <= known:
      raise ValueError(f'num_prompts must be in [1, {known}], the prompts held '
                       f'out, got {self.num_prompts}.')
    if self.chunk_size < 1:
      raise ValueError(f'chunk_size must be >= 1, got {self.chunk_size}.')
    for name in ('gold_scale', 'rule_scale'):
      scale = getattr(self, name)
      if scale is not None and not (
          np.isfinite(scale).all() and scale[1] > 0):
        raise ValueError(f'{name} must be a finite mean and a standard '
                         f'deviation > 0, got {scale}.')
    if self.reward is None and self.functions is None:
      raise ValueError('reward or functions must be given, got neither.')

  def __call__(self, params: types.Params, *, step: int) -> Evaluation:
    """Samples, scores and measures.

    Args:
      params: of the policy; heads beside the decoder are not read.
      step: rollouts so far, for `functions` and for messages.

    Raises:
      RewardError: a reward model, or `functions`, gives a score that is not
        finite, or not one for each prompt.
    """
    # Without their heads, policies of all methods run the same programs.
    params = {k: v for k, v in params.items() if k not in _HEADS}
    temperature = float(self.sampler.get('temperature', 1.0) or 1.0)
    batch = self._sample(params)
    tokens, mask = batch.tokens[:, 0], batch.mask[:, 0]
    prompts, responses = decode(self.corpus.tokenizer, tokens, mask)
    gold = self._gold(tokens, mask, f'response at step {step}')
    rule = self._rule(tokens, mask)
    members = self._members(tokens, mask, step)
    proxy = self._proxy(members, prompts, responses, step)
    row = _with_error('proxy', proxy)
    if members is not None:
      row |= _disagreement(members)
    row |= _with_error('gold', gold)
    if rule is not None:
      row |= _with_error('rule', rule)
    row |= _divergence(
        *(self._logprobs(p, batch, temperature)
          for p in (params, self.reference)), mask)
    eos_id = self.corpus.tokenizer.eos_id
    length = evaluate.response_lengths(tokens, mask, eos_id=eos_id)
    ended = (mask & (tokens == eos_id)).any(axis=-1)
    row |= {'length': float(length.mean()),
            'unfinished': float(1 - ended.mean())}
    row |= _variety(responses)
    chosen = self._chosen()
    if chosen is not None:
      row['perplexity'] = evaluate.perplexity(
          self._logprobs(params, chosen, 1.0), chosen.mask[:, 0])
    row['reward_variance'] = evaluate.reward_variance(proxy)
    return Evaluation(row, tokens, mask, gold, proxy, rule, length)

  def texts(self, evaluation: Evaluation, count: int) -> list[dict[str, Any]]:
    """The first responses, to be read: prompt, response, gold, proxy.

    Args:
      evaluation: of this monitor.
      count: how many; all where there are fewer.
    """
    prompts, responses = decode(
        self.corpus.tokenizer, evaluation.tokens[:count],
        evaluation.mask[:count])
    return [{'prompt': prompt, 'response': response, 'gold': float(gold),
             'proxy': float(proxy)} for prompt, response, gold, proxy in zip(
                 prompts, responses, evaluation.gold, evaluation.proxy)]

  def final_rows(self, evaluation: Evaluation) -> list[dict[str, Any]]:
    """What is known of each prompt, as JSON values.

    Args:
      evaluation: of this monitor.

    Returns:
      For each prompt: prompt, response, reference (the chosen completion),
      gold, reference_gold (the gold score of the reference, on the same
      scale), proxy, rule, length in tokens. None where there is none.

    Raises:
      RewardError: the gold reward model's score of a reference is not finite.
    """
    absent = [None] * len(evaluation.tokens)
    references, reference_gold = absent, absent
    chosen = self._chosen()
    if chosen is not None:
      rows = chosen.tokens[:, 0], chosen.mask[:, 0]
      references = decode(self.corpus.tokenizer, *rows)[1]
      reference_gold = self._gold(*rows, 'chosen completion')
    rule = absent if evaluation.rule is None else evaluation.rule
    columns = {'reference': references, 'reference_gold': reference_gold,
               'rule': rule, 'length': evaluation.length}
    rows = self.texts(evaluation, len(absent))
    return [files.jsonable(row | dict(zip(columns, values, strict=True)))
            for row, *values in zip(rows, *columns.values(), strict=True)]

  def _by_chunk(self, function: Callable, *arrays: np.ndarray) -> Any:
    """`function` of all rows, chunk by chunk on all devices, to the host."""
    mesh, rows = sharding.make_mesh(), len(arrays[0])
    parts, found = mesh.shape['data'], []
    size = -(-min(self.chunk_size, rows) // parts) * parts
    for start in range(0, rows, size):
      # The last chunk is filled up, so that it runs the same program.
      at = np.resize(np.arange(start, min(start + size, rows)), size)
      found.append(jax.device_get(function(*sharding.shard_batch(
          [x[at] for x in arrays], mesh))))
    return jax.tree.map(lambda *x: np.concatenate(x)[:rows], *found)

  def _sample(self, params) -> types.Batch:
    """One response to each prompt, [B, 1, T]."""
    corpus, coder = self.corpus, self.corpus.tokenizer
    params, key = sharding.shard_params(
        (params, self.key), sharding.make_mesh())
    def draw(prompts, lengths, row_ids):
      return sampling.sample(
          self.config, params, prompts, lengths, key, num_samples=1,
          max_new_tokens=corpus.max_response_length, eos_id=coder.eos_id,
          pad_id=coder.pad_id, num_tokens=coder.vocab_size, row_ids=row_ids,
          **self.sampler)
    at = np.arange(self.num_prompts)
    prompts = corpus.eval_prompts
    return self._by_chunk(draw, prompts.tokens[at], prompts.lengths[at], at)

  def _logprobs(self, params, batch, temperature) -> np.ndarray:
    """f32[B, T] of each token of `batch` [B, 1, T], in nats."""
    params = sharding.shard_params(params, sharding.make_mesh())
    compute = lambda tokens, mask: _logprobs(
        self.config, params, types.Batch(tokens, mask), temperature)
    return self._by_chunk(compute, batch.tokens, batch.mask)[:, 0]

  def _chosen(self) -> types.Batch | None:
    """The chosen completions of the prompts, [B, 1, T]."""
    rows = self.corpus.eval_demonstrations
    if rows is None:
      return None
    return jax.tree.map(lambda x: x[:self.num_prompts], rows)

  def _gold(self, tokens, mask, what) -> np.ndarray:
    """f64[B], in standard deviations of the SFT policy's samples."""
    scores = rewards.score_rows(self.gold_config, self.gold, tokens, mask,
                                chunk_size=self.chunk_size)[0]
    mean, std = self.gold_scale
    return (_finite('the gold reward model', scores, len(tokens), what)
            - mean) / std

  def _rule(self, tokens, mask) -> np.ndarray | None:
    """f64[B], likewise."""
    if self.rule_scale is None:
      return None
    mean, std = self.rule_scale
    return (self.corpus.world.rule(tokens, mask).astype(np.float64)
            - mean) / std

  def _members(self, tokens, mask, step) -> np.ndarray | None:
    """f64[E, B], standardised if they are in training."""
    if self.reward is None:
      return None
    scores = rewards.score_rows(self.reward_config, self.reward, tokens, mask,
                                chunk_size=self.chunk_size)
    members = np.stack([
        _finite(f'reward model member_{i}', x, len(tokens),
                f'response at step {step}') for i, x in enumerate(scores)])
    if self.reward_scale is None:
      return members
    mean, std = (np.asarray(self.reward_scale[k], np.float64)[:, None]
                 for k in ('mean', 'std'))
    return (members - mean) / np.where(std == 0, 1, std)

  def _proxy(self, members, prompts, responses, step) -> np.ndarray:
    """f64[B]."""
    proxy = np.zeros(len(prompts))
    if members is not None:
      proxy += self.weight * np.asarray(
          ensembles.aggregate(members, **self.aggregate), np.float64)
    if self.functions is not None:
      proxy += _finite(
          'the reward functions',
          self.functions.score(prompts, responses, step), len(prompts),
          f'response at step {step}')
    return proxy
