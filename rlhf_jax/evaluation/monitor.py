"""What a policy is worth while it is trained: one row of numbers.

Every evaluation answers the same prompts with the same random numbers and
scores them without the noise and penalties of training, so that two rows
differ by the policy alone. Sources: Coste et al. 2024,
https://arxiv.org/abs/2310.02743 (gold and proxy scores over sqrt(KL));
Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740 (perplexity, diversity,
length, variance); Baheti et al. 2024, https://arxiv.org/abs/2305.14718
(distinct-n); objectives.md, sections 5.1 and 11.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import types
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.evaluation import columns
from rlhf_jax.evaluation import statistics
from rlhf_jax.evaluation import texts as texts_lib
from rlhf_jax.models import transformer
from rlhf_jax.ops import ensembles
from rlhf_jax.parallel import sharding
from rlhf_jax.rewards import components as components_lib
from rlhf_jax.rewards import finite as finite_lib
from rlhf_jax.storage import files

Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (tokens, mask)
_HEADS = ('value_head', 'value_trunk', 'reward_head', 'q_heads',
          'target_q_heads')


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One response to each of B prompts, and what is thought of them."""

  row: dict[str, float]  # see `columns`
  tokens: np.ndarray  # i32[B, T], prompt, response, padding
  mask: np.ndarray  # bool[B, T], true on response tokens
  # f64[B], the total of the components, if any; NaN where one drops it.
  proxy: np.ndarray | None
  components: dict[str, np.ndarray]  # f32[B] by name
  gold: np.ndarray | None  # f64[B], where there is a gold model
  rule: np.ndarray | None  # f64[B], where there is a rule
  log_ratio: np.ndarray  # f64[B], policy over reference, in nats
  members: np.ndarray | None  # f32[E, B] of an ensemble, where there is one


@dataclasses.dataclass(frozen=True)
class Setting:
  """How the responses of every evaluation are drawn."""

  corpus: corpus_lib.Corpus
  num_prompts: int  # B, the first of its `eval_prompts`
  sampler: Mapping[str, Any]  # temperature, top_k, top_p and the like
  key: jax.Array  # of every evaluation's samples
  # Of `sampling.sample`, as ILQL samples (objectives.md 8.6), in nats per unit
  # of value; None: samples are the language model's.
  value_shift: float | None = None
  chunk_size: int = 256  # responses computed at a time at most

  def __post_init__(self):
    count = len(self.corpus.eval_prompts.tokens)
    if not 1 <= self.num_prompts <= count:
      raise ValueError(f'num_prompts must be in [1, {count}], the prompts held '
                       f'out, got {self.num_prompts}.')
    if self.chunk_size < 1:
      raise ValueError(f'chunk_size must be >= 1, got {self.chunk_size}.')


@functools.partial(jax.jit, static_argnames=('config', 'temperature'))
def token_logprobs(config, params, tokens, mask, temperature):
  """f32[B, K, T] of each token, in nats; one program for all policies."""
  return policy.forward(config, params, types.Batch(tokens, mask),
                        temperature=temperature).logprobs


class Monitor:
  """Evaluates a policy, (params, step=...) -> Evaluation, always alike.

  Rows are split over the mesh in use, and all monitors of the same shapes run
  the same programs.

  `columns` says what each of `Evaluation.row` means.
  """

  def __init__(self, setting: Setting, config: transformer.Config,
               reference: types.Params,
               rewards: components_lib.Components, *,
               gold: Scorer | None = None, rule: Scorer | None = None):
    """Places the reference; evaluates nothing yet.

    Args:
      setting: how responses are drawn.
      config: shape of the policy and of the reference.
      reference: parameters of the initial policy.
      rewards: by which policies are compared, whatever each maximises; the
        right answers are `corpus.eval_references`, or else the chosen
        completions.
      gold: (tokens i32[N, T], mask bool[N, T]) -> f[N], the gold score in
        standard deviations of the initial policy's samples from their mean;
        None: there is no gold model, and no column of it.
      rule: likewise of the rule of the small world.
    """
    self._setting, self._config, self._rewards = setting, config, rewards
    self._reference = sharding.shard_params(reference)
    self._gold, self._rule = gold, rule

  def __call__(self, params: types.Params, *, step: int) -> Evaluation:
    """Samples, scores and measures.

    Args:
      params: of the policy; heads beside the decoder are not read, but with
        `value_shift` 'target_q_heads'. (The value that ILQL takes from Q is
        the same for every token, so that the softmax does not see it.)
      step: rollouts or optimizer steps so far, for rewards and messages.

    Raises:
      RewardError: the gold model, a component or a member of an ensemble gives
        a score that is not finite, or not one for each prompt.
      ValueError: `params` lack what `value_shift` needs.
    """
    setting = self._setting
    if setting.value_shift is None:
      # Without their heads, policies of all methods run the same programs.
      params = {k: v for k, v in params.items() if k not in _HEADS}
    params = sharding.shard_params(params)
    tokens, mask, old_logprobs = self._sample(params)
    coder = setting.corpus.tokenizer
    prompts, responses = texts_lib.decode(coder, tokens, mask)
    what = f'response at step {step}'
    gold = self._score(self._gold, 'the gold reward model', tokens, mask, what)
    rule = self._score(self._rule, 'the rule', tokens, mask, what)
    scored = self._rewards(tokens, mask, prompts, responses, step=step,
                           references=self._answers)
    proxy = None
    if scored.values:
      proxy = self._rewards.total(scored.values).astype(np.float64)
    row = columns.of_scores(proxy, scored, self._splits, gold=gold, rule=rule)
    divergence, log_ratio = self._divergence(
        params, tokens, mask, old_logprobs)
    row |= divergence
    row |= columns.of_texts(
        tokens, mask, responses, coder.eos_ids, coder.stops)
    chosen = self._chosen
    if chosen is not None and setting.value_shift is None:
      row['perplexity'] = statistics.perplexity(
          self._logprobs(params, *chosen, 1.0), chosen[1])
    if proxy is not None:
      row['reward_variance'] = statistics.reward_variance(
          proxy[~np.isnan(proxy)])
    return Evaluation(row, tokens, mask, proxy, scored.values, gold, rule,
                      log_ratio, scored.members)

  def texts(self, evaluation: Evaluation, count: int) -> list[dict[str, Any]]:
    """The first responses, to be read: prompt, response, gold, proxy.

    Args:
      evaluation: of this monitor.
      count: how many; all where there are fewer.
    """
    prompts, responses = texts_lib.decode(
        self._setting.corpus.tokenizer, evaluation.tokens[:count],
        evaluation.mask[:count])
    gold, proxy = (_or_absent(x, len(evaluation.tokens))
                   for x in (evaluation.gold, evaluation.proxy))
    return [files.jsonable({'prompt': prompt, 'response': response,
                            'gold': gold_score, 'proxy': reward})
            for prompt, response, gold_score, reward
            in zip(prompts, responses, gold, proxy)]

  def final_rows(self, evaluation: Evaluation) -> list[dict[str, Any]]:
    """What is known of each prompt, as JSON values.

    Args:
      evaluation: of this monitor.

    Returns:
      For each prompt: prompt, response, reference (the chosen completion),
      gold, reference_gold (the gold score of the reference, on the same
      scale), proxy, rule, length in tokens, kl_k1 (of this response alone, so
      that it may be negative), ensemble_variance, component_<name> of each,
      and split; None where there is none.

    Raises:
      RewardError: the gold reward model's score of a reference is not finite.
    """
    count = len(evaluation.tokens)
    reference_gold = None if self._chosen is None else self._score(
        self._gold, 'the gold reward model', *self._chosen,
        'chosen completion')
    fields = {
        'reference': _or_absent(self._references, count),
        'reference_gold': _or_absent(reference_gold, count),
        'rule': _or_absent(evaluation.rule, count),
        'length': statistics.response_lengths(
            evaluation.tokens, evaluation.mask,
            eos_id=self._setting.corpus.tokenizer.eos_ids),
        'kl_k1': evaluation.log_ratio,
        'ensemble_variance': _or_absent(
            None if evaluation.members is None
            else ensembles.variance(evaluation.members), count)}
    fields |= {f'component_{name}': values
               for name, values in evaluation.components.items()}
    fields['split'] = _or_absent(self._splits, count)
    rows = self.texts(evaluation, count)
    return [files.jsonable(row | dict(zip(fields, values, strict=True)))
            for row, *values in zip(rows, *fields.values(), strict=True)]

  def _map(self, function: Callable, *arrays: np.ndarray) -> Any:
    return sharding.map_rows(
        function, *arrays, chunk_size=self._setting.chunk_size)

  def _sample(self, params) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One response to each prompt: tokens, mask and log-probabilities [B, T].
    """
    setting, key = self._setting, self._setting.key
    corpus, coder = setting.corpus, setting.corpus.tokenizer

    def draw(prompts, lengths, row_ids):
      batch = sampling.sample(
          self._config, params, prompts, lengths, key, num_samples=1,
          max_new_tokens=corpus.max_response_length, eos_id=coder.eos_ids,
          pad_id=coder.pad_id, num_tokens=coder.vocab_size, stops=coder.stops,
          row_ids=row_ids,
          value_shift=setting.value_shift, **setting.sampler)
      return batch.tokens, batch.mask, batch.old_logprobs

    at, prompts = np.arange(setting.num_prompts), corpus.eval_prompts
    return tuple(x[:, 0] for x in self._map(
        draw, prompts.tokens[at], prompts.lengths[at], at))

  def _score(self, scorer: Scorer | None, source, tokens, mask, what
             ) -> np.ndarray | None:
    """f64[N] of a scorer, None without one."""
    if scorer is None:
      return None
    return finite_lib.finite(scorer(tokens, mask), len(tokens), source, what)

  def _divergence(self, params, tokens, mask, old_logprobs
                  ) -> tuple[dict[str, float], np.ndarray]:
    """KL from the reference, of the distribution that has sampled.

    Its estimates, and the log-ratio of each response, f64[B].
    """
    setting = self._setting
    temperature = float(setting.sampler.get('temperature', 1.0) or 1.0)
    logprobs = (
        old_logprobs if setting.value_shift is not None
        else self._logprobs(params, tokens, mask, temperature))
    reference = self._logprobs(self._reference, tokens, mask, temperature)
    return (columns.divergence(logprobs, reference, mask),
            columns.log_ratio(logprobs, reference, mask))

  def _logprobs(self, params, tokens, mask, temperature) -> np.ndarray:
    """f32[B, T] of each token, in nats."""
    compute = lambda tokens, mask: token_logprobs(
        self._config, params, tokens, mask, temperature)
    return self._map(compute, tokens[:, None], mask[:, None])[:, 0]

  @property
  def _chosen(self) -> tuple[np.ndarray, np.ndarray] | None:
    """The chosen completions of the prompts, tokens and mask [B, T]."""
    rows, at = self._setting.corpus.eval_demonstrations, slice(
        self._setting.num_prompts)
    return None if rows is None else (rows.tokens[at, 0], rows.mask[at, 0])

  @functools.cached_property
  def _references(self) -> list[str] | None:
    """Their texts."""
    if self._chosen is None:
      return None
    return texts_lib.decode(self._setting.corpus.tokenizer, *self._chosen)[1]

  @property
  def _answers(self) -> list[str] | None:
    """What the responses of the prompts are compared with."""
    answers = self._setting.corpus.eval_references
    return (self._references if answers is None
            else list(answers[:self._setting.num_prompts]))

  @property
  def _splits(self) -> tuple[str, ...] | None:
    """The part of the data that each prompt is of."""
    splits = self._setting.corpus.eval_splits
    return None if splits is None else tuple(
        splits[:self._setting.num_prompts])


def _or_absent(values: Any, count: int) -> list:
  """A value for each prompt, None where there are none."""
  return [None] * count if values is None else list(values)
