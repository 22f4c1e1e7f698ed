"""What a policy is worth while it is trained: one row of numbers.

Every evaluation answers the same prompts with the same random numbers and
scores them without the noise and penalties of training, so that two rows
differ by the policy alone. Sources: Coste et al. 2024,
https://arxiv.org/abs/2310.02743 (gold and proxy scores over sqrt(KL));
Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740 (perplexity, diversity,
length, variance); Baheti et al. 2024, https://arxiv.org/abs/2305.14718
(distinct-n); objectives.md, sections 5.1 and 11.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import sharding
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.evaluation import columns
from rlhf_jax.evaluation import statistics
from rlhf_jax.models import transformer
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import texts as texts_lib
from rlhf_jax.rewards import components as components_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import files

_HEADS = ('value_head', 'value_trunk', 'reward_head', 'q_heads',
          'target_q_heads')


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
  components: dict[str, np.ndarray] | None = None  # f32[B] by name


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Monitor:
  """Evaluates a policy, (params, step=...) -> Evaluation, always alike.

  Rows are split over all devices, and all monitors of the same shapes run the
  same programs.

  Columns of `Evaluation.row`, means over prompts; those in brackets only where
  there is what they need, `_se` the standard error of the mean:

    proxy, proxy_se: what training maximises, without noise, KL penalty or
      clipping: `weight` times the aggregate of the members, and `functions`;
      the total of `components` where there are any.
    [member_0, ...]: each reward model, standardised if they are.
    [ensemble_variance, ensemble_variance_unbiased]: over these members, ddof
      0 and 1 (Coste et al. 2024, Fig. 10).
    [component_<name>, component_<name>_se]: each of `components`, in its
      range, before its weight.
    gold, gold_se, [rule, rule_se]: in standard deviations of the SFT policy's
      samples, from their mean.
    [gold_split_<split>, proxy_split_<split>, and their errors]: of the prompts
      of each of `corpus.eval_splits`, with `components` only.
    kl_k1, kl_k2, kl_k3: KL from the reference by `ops.kl.estimate`, summed
      over response tokens, in nats. Under the softmax at the sampler's
      temperature, at 1 if it is greedy, before top-k and top-p; with
      `value_shift`, of the shifted distribution that sampled.
    sqrt_kl: of kl_k2 (Coste et al. 2024, equation 10).
    length: response tokens without EOS.
    [words]: of a response (Baheti et al. 2024), with `components` only.
    unfinished: share of responses without EOS.
    distinct_1 to distinct_3, diversity_1, diversity_2: see `ops.texts`.
    [perplexity]: of the chosen completions of the same prompts, per token, at
      temperature 1; not with `value_shift`.
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
    components: the rewards by which the policies of a study are compared,
      whatever each maximises; their references are the right answers of
      `corpus.eval_references`, or else the chosen completions. None: `reward`
      and `functions` are.
    value_shift: of `sampling.sample`, as ILQL samples (objectives.md 8.6);
      None: samples are the language model's.
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
  components: components_lib.Components | None = None
  value_shift: float | None = None
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
    if (self.reward, self.functions, self.components) == (None,) * 3:
      raise ValueError('reward, functions or components must be given, got '
                       'none.')

  def __call__(self, params: types.Params, *, step: int) -> Evaluation:
    """Samples, scores and measures.

    Args:
      params: of the policy; heads beside the decoder are not read, but with
        `value_shift` 'target_q_heads'. (The value that ILQL takes from Q is
        the same for every token, so that the softmax does not see it.)
      step: rollouts or optimizer steps so far, for rewards and messages.

    Raises:
      RewardError: a reward model, `functions` or a component gives a score
        that is not finite, or not one for each prompt.
      ValueError: `params` lack what `value_shift` needs.
    """
    if self.value_shift is None:
      # Without their heads, policies of all methods run the same programs.
      params = {k: v for k, v in params.items() if k not in _HEADS}
    batch = self._sample(params)
    tokens, mask = batch.tokens[:, 0], batch.mask[:, 0]
    prompts, responses = decode(self.corpus.tokenizer, tokens, mask)
    gold = self._gold(tokens, mask, f'response at step {step}')
    rule = self._rule(tokens, mask)
    members = self._members(tokens, mask, step)
    parts = None
    if self.components is None:
      proxy = self._proxy(members, prompts, responses, step)
    else:
      parts = self.components(
          tokens, mask, prompts, responses, step=step,
          references=self._answers).values
      proxy = self.components.total(parts).astype(np.float64)
    row = columns.with_error('proxy', proxy)
    if members is not None:
      row |= columns.disagreement(members)
    row |= columns.parts(parts or {})
    row |= columns.with_error('gold', gold)
    if rule is not None:
      row |= columns.with_error('rule', rule)
    if parts is not None and self._splits is not None:
      row |= columns.by_split(self._splits, gold=gold, proxy=proxy)
    row |= self._divergence(params, batch)
    eos_id = self.corpus.tokenizer.eos_id
    length = statistics.response_lengths(tokens, mask, eos_id=eos_id)
    ended = (mask & (tokens == eos_id)).any(axis=-1)
    row['length'] = float(length.mean())
    if parts is not None:
      row['words'] = texts_lib.mean_words(responses)
    row['unfinished'] = float(1 - ended.mean())
    row |= columns.variety(responses)
    chosen = self._chosen()
    if chosen is not None and self.value_shift is None:
      row['perplexity'] = statistics.perplexity(
          self._logprobs(params, chosen, 1.0), chosen.mask[:, 0])
    row['reward_variance'] = statistics.reward_variance(proxy)
    return Evaluation(row, tokens, mask, gold, proxy, rule, length, parts)

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
      scale), proxy, rule, length in tokens; None where there is none. With
      `components` also component_<name> of each, and split.

    Raises:
      RewardError: the gold reward model's score of a reference is not finite.
    """
    absent = [None] * len(evaluation.tokens)
    found = {'reference': self._references or absent,
             'reference_gold': absent,
             'rule': absent if evaluation.rule is None else evaluation.rule,
             'length': evaluation.length}
    chosen = self._chosen()
    if chosen is not None:
      found['reference_gold'] = self._gold(
          chosen.tokens[:, 0], chosen.mask[:, 0], 'chosen completion')
    if evaluation.components is not None:
      found |= {f'component_{name}': values
                for name, values in evaluation.components.items()}
      found['split'] = self._splits or absent
    rows = self.texts(evaluation, len(absent))
    return [files.jsonable(row | dict(zip(found, values, strict=True)))
            for row, *values in zip(rows, *found.values(), strict=True)]

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
          value_shift=self.value_shift, **self.sampler)
    at = np.arange(self.num_prompts)
    prompts = corpus.eval_prompts
    return self._by_chunk(draw, prompts.tokens[at], prompts.lengths[at], at)

  def _divergence(self, params, batch) -> dict[str, float]:
    """KL from the reference, of the distribution that has sampled."""
    temperature = float(self.sampler.get('temperature', 1.0) or 1.0)
    logprobs = (
        batch.old_logprobs[:, 0] if self.value_shift is not None
        else self._logprobs(params, batch, temperature))
    reference = self._logprobs(self.reference, batch, temperature)
    return columns.divergence(logprobs, reference, batch.mask[:, 0])

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

  @functools.cached_property
  def _references(self) -> list[str] | None:
    """Their texts."""
    chosen = self._chosen()
    if chosen is None:
      return None
    return decode(self.corpus.tokenizer, chosen.tokens, chosen.mask)[1]

  @property
  def _answers(self) -> list[str] | None:
    """What the responses of the prompts are compared with."""
    answers = self.corpus.eval_references
    return (self._references if answers is None
            else list(answers[:self.num_prompts]))

  @property
  def _splits(self) -> tuple[str, ...] | None:
    """The part of the data that each prompt is of."""
    splits = self.corpus.eval_splits
    return None if splits is None else tuple(splits[:self.num_prompts])

  def _gold(self, tokens, mask, what) -> np.ndarray:
    """f64[B], in standard deviations of the SFT policy's samples."""
    scores = reward_models.score_rows(self.gold_config, self.gold, tokens, mask,
                                chunk_size=self.chunk_size)[0]
    mean, std = self.gold_scale
    return (columns.finite('the gold reward model', scores, len(tokens), what)
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
    scores = reward_models.score_rows(self.reward_config, self.reward, tokens, mask,
                                chunk_size=self.chunk_size)
    members = np.stack([
        columns.finite(f'reward model member_{i}', x, len(tokens),
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
      proxy += columns.finite(
          'the reward functions',
          self.functions.score(prompts, responses, step), len(prompts),
          f'response at step {step}')
    return proxy
