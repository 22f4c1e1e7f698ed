"""Annotators fill the optional fields of a batch: Batch -> Batch.

They run on the whole rollout, before it is cut into minibatches, so a
statistic over samples never depends on how the batch is split. Those that
remember earlier rollouts, or draw, are in `running`.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
from typing import Any

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import policy
from rlhf_jax import rewards
from rlhf_jax import running
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import advantages
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import masked
from rlhf_jax.ops import moments

Annotator = Callable[..., types.Batch]  # (batch, state, frozen, **kwargs)
Chain = Callable[..., tuple[types.Batch, types.TrainState]]


def chain(nodes: Sequence[Mapping[str, Any]],
          models: Mapping[str, Annotator]) -> Chain:
  """One function that applies annotators in order.

  Args:
    nodes: each {'name': ..., **kwargs}: a key of `models`, of
      `running.RUNNING` or of `ARITHMETIC`, sought in that order.
    models: the annotators that need parameters, (batch, state, frozen,
      **kwargs) -> batch, bound to the models of a run.

  Returns:
    (batch, state, frozen) -> (batch, state). Of the state, only `statistics`
    may be another; start them with `running.init`.

  Raises:
    ValueError: if a name or an argument is unknown or missing.
  """
  steps = [_step(dict(node), models) for node in nodes]

  def annotators(batch, state, frozen):
    for step in steps:
      batch, state = step(batch, state, frozen)
    return batch, state

  return annotators


def _step(node, models) -> Chain:
  """One annotator of any kind as (batch, state, frozen) -> (batch, state)."""
  name = node.pop('name', None)
  if name in models:
    model = functools.partial(models[name], **node)
    return lambda batch, state, frozen: (model(batch, state, frozen), state)
  remembers = name in running.RUNNING
  function = (running.RUNNING if remembers else ARITHMETIC).get(name)
  if function is None:
    known = sorted({*models, *running.RUNNING, *ARITHMETIC})
    raise ValueError(
        f'unknown annotator {name!r}; available: {", ".join(known)}. One that '
        'needs parameters has to be bound to them in `models`.')
  try:
    inspect.signature(function).bind(*[None] * (1 + remembers), **node)
  except TypeError as error:
    raise ValueError(f'annotator {name}: {error}.') from None
  if remembers:
    return lambda batch, state, frozen: function(batch, state, **node)
  return lambda batch, state, frozen: (function(batch, **node), state)


def standardize_members(member_scores: jax.Array,
                        scale: Mapping[str, jax.Array]) -> jax.Array:
  """Scores of each member in deviations from its mean, f32[E, ...].

  Reward models agree only up to a shift and a scale, and the minimum over
  members that are not aligned follows the lowest (objectives.md 2.8, 3.1).

  Args:
    member_scores: float[E, ...].
    scale: 'mean' and 'std', f32[E], of each member on held-out responses. Of
      a member whose deviation is 0 only the mean is taken off.

  Raises:
    AssertionError: if `scale` is not of E members.
  """
  mean, std = (jnp.asarray(scale[name]) for name in ('mean', 'std'))
  chex.assert_shape([mean, std], member_scores.shape[:1])
  align = lambda x: x.reshape(-1, *[1] * (member_scores.ndim - 1))
  return moments.normalize(member_scores, align(mean), align(std))


def scores(batch: types.Batch, config: transformer.Config,
           params: types.Params, *,
           scale: Mapping[str, jax.Array] | None = None, weight: float = 1.0,
           **aggregate) -> types.Batch:
  """Scores with an ensemble, leaves [E, ...], and aggregates the members.

  Args:
    batch: tokens and mask. If it has `scores`, of programmatic rewards say,
      those of the ensemble are added to them.
    config: shape of the reward models.
    params: their parameters.
    scale: of `standardize_members`, applied before the members are combined;
      None leaves their scores raw.
    weight: of the ensemble's score in the sum.
    **aggregate: `kind` and the rest of `ops.ensembles.aggregate`.

  Returns:
    The batch with `member_scores` f32[E, B, K], standardised if `scale` is
    given, without `weight`, and `scores` f32[B, K].
  """
  members = rewards.score_members(config, params, batch.tokens, batch.mask)
  if scale is not None:
    members = standardize_members(members, scale)
  found = weight * ensembles.aggregate(members, **aggregate)
  if batch.scores is not None:
    found = batch.scores + found
  return batch.replace(member_scores=members, scores=found)


def ref_logprobs(batch: types.Batch, config: transformer.Config,
                 params: types.Params, *,
                 temperature: float = 1.0) -> types.Batch:
  """Log-probabilities under the frozen reference, f32[B, K, T], in nats."""
  out = policy.forward(config, params, batch, temperature=temperature)
  return batch.replace(ref_logprobs=jax.lax.stop_gradient(out.logprobs))


def old_logprobs(batch: types.Batch, config: transformer.Config,
                 params: types.Params, *,
                 temperature: float = 1.0) -> types.Batch:
  """Log-probabilities under the policy that sampled, f32[B, K, T], in nats.

  In place of the sampler's own: in bfloat16 its steps with a cache round
  otherwise than a forward pass does, which would move the ratios of the first
  update from 1. `temperature` is that of the sampler.
  """
  out = policy.forward(config, params, batch, temperature=temperature)
  return batch.replace(old_logprobs=jax.lax.stop_gradient(out.logprobs))


def old_values(batch: types.Batch, config: transformer.Config,
               params: types.Params, *,
               value_config: transformer.Config | None = None) -> types.Batch:
  """Values f32[B, K, T] of the policy that sampled, by its value head.

  `value_config` is the shape of its 'value_trunk', see `policy.forward`.
  """
  if 'value_head' not in params:
    raise ValueError("the policy has no 'value_head' to annotate values with.")
  out = policy.forward(config, params, batch, value_config=value_config)
  return batch.replace(old_values=jax.lax.stop_gradient(out.values))


def prompt_values(batch: types.Batch, config: transformer.Config,
                  reference: types.Params, head: types.Params, *,
                  max_value: float = 1.0, num_heads: int = 8) -> types.Batch:
  """Values f32[B] of the prompts, by a head on the frozen reference.

  Baheti et al. 2024, section 2.2. What comes before the first response token
  is the prompt.

  Args:
    batch: tokens and mask; the K rows of a prompt begin with it.
    config: shape of the reference.
    reference: its parameters.
    head: of `heads.init_prompt_value`.
    max_value: of `heads.prompt_value`; scores must lie in (0, max_value).
    num_heads: of `heads.prompt_value`.
  """
  row = jnp.argmax(batch.mask.any(axis=-1), axis=1)  # one with a response
  pick = lambda x: jnp.take_along_axis(x, row[:, None, None], axis=1)[:, 0]
  tokens, mask = pick(batch.tokens), pick(batch.mask)
  prompt = jnp.cumsum(mask, axis=-1) == 0
  hidden = transformer.hidden_states(config, reference, tokens)
  return batch.replace(prompt_values=jax.lax.stop_gradient(heads.prompt_value(
      head, hidden, prompt, max_value=max_value, num_heads=num_heads)))


def standardize_scores(batch: types.Batch) -> types.Batch:
  """Scores to mean 0 and deviation 1 (ddof 1) over the whole batch.

  Zhu et al. 2023 normalise logged rewards over the data set (objectives.md
  2.8 and 8.6), so run it on the data set, before it is cut.
  """
  given, = running.need(batch, 'scores')
  present = batch.mask.any(axis=-1)
  found = moments.update(moments.init(), given, present)
  return batch.replace(scores=moments.normalize(
      given, found.mean, moments.std(found)))


def clip_scores(batch: types.Batch, *, limit: float) -> types.Batch:
  """Scores into [-limit, limit]; Coste et al. 2024 take 10."""
  if not limit > 0:
    raise ValueError(f'limit must be > 0, got {limit}.')
  given, = running.need(batch, 'scores')
  return batch.replace(scores=jnp.clip(given, -limit, limit))


def missing_eos(batch: types.Batch, *, eos_id: int,
                penalty: float | None = None,
                value: float | None = None) -> types.Batch:
  """Another score for responses that end without EOS, cut off by the budget.

  objectives.md 5.2. A missing response keeps what it has.

  Args:
    batch: tokens, mask and scores.
    eos_id: a response is finished if this is among its tokens.
    penalty: subtracted from the score, >= 0; TRL takes 1.
    value: replaces the score; -1 in Ziegler et al. 2019.

  Raises:
    ValueError: unless exactly one of `penalty` and `value` is given.
  """
  if (penalty is None) == (value is None):
    raise ValueError('either penalty or value must be given, got penalty='
                     f'{penalty} and value={value}.')
  if penalty is not None and not penalty >= 0:
    raise ValueError(f'penalty must be >= 0, got {penalty}.')
  given, = running.need(batch, 'scores')
  finished = (batch.mask & (batch.tokens == eos_id)).any(axis=-1)
  other = given - penalty if value is None else value
  return batch.replace(scores=jnp.where(
      batch.mask.any(axis=-1) & ~finished, other, given))


def gae(batch: types.Batch, *, discount: float = 1.0,
        gae_lambda: float = 0.95) -> types.Batch:
  """`advantages` and `returns`, f32[B, K, T], from rewards and old values."""
  found, returns = advantages.gae(
      *running.need(batch, 'rewards', 'old_values'), batch.mask,
      discount=discount, gae_lambda=gae_lambda)
  return batch.replace(advantages=found, returns=returns)


def whiten(batch: types.Batch, *, shift_mean: bool = True,
           ddof: int = 0) -> types.Batch:
  """Whitens token advantages over the whole rollout; returns stay as made."""
  return batch.replace(advantages=masked.whiten(
      *running.need(batch, 'advantages'), batch.mask, shift_mean=shift_mean,
      ddof=ddof))


def leave_one_out(batch: types.Batch) -> types.Batch:
  """Advantages f32[B, K] against the mean score of the other samples."""
  return batch.replace(advantages=advantages.leave_one_out(
      *running.need(batch, 'scores'), batch.mask.any(axis=-1)))


def group_normalize(batch: types.Batch, *, scale: bool = True,
                    epsilon: float = 1e-4) -> types.Batch:
  """Advantages f32[B, K] against the samples of the same prompt (GRPO)."""
  return batch.replace(advantages=advantages.group_normalize(
      *running.need(batch, 'scores'), batch.mask.any(axis=-1), scale=scale,
      epsilon=epsilon))


def prompt_advantages(batch: types.Batch) -> types.Batch:
  """Advantages f32[B, K]: the score less the reference's value of the prompt.

  Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2.2:
  A(x, y) = R(x, y) - V_ref(x).
  """
  given, values = running.need(batch, 'scores', 'prompt_values')
  chex.assert_shape(values, given.shape[:1])
  return batch.replace(
      advantages=jax.lax.stop_gradient(given - values[:, None]))


def keep_positive(batch: types.Batch) -> types.Batch:
  """Clears the mask of responses whose advantage [B, K] is not positive.

  Baheti et al. 2024, section 2.2; about a third of their data (section 4.1).
  """
  found, = running.need(batch, 'advantages')
  chex.assert_shape(found, batch.mask.shape[:2])
  return batch.replace(mask=batch.mask & (found > 0)[..., None])


def keep_best(batch: types.Batch) -> types.Batch:
  """RAFT: clears the mask of all but the best-scored sample of each prompt.

  The first on ties; a missing sample is never the best.
  """
  given, = running.need(batch, 'scores')
  chex.assert_shape(given, batch.mask.shape[:2])
  best = jnp.argmax(
      jnp.where(batch.mask.any(axis=-1), given, -jnp.inf), axis=1)
  chosen = jnp.arange(given.shape[1])[None] == best[:, None]
  return batch.replace(mask=batch.mask & chosen[..., None])


# Those that read the batch alone, by the names that rows and configs use.
ARITHMETIC = {f.__name__: f for f in (
    standardize_scores, clip_scores, missing_eos, gae, whiten, leave_one_out,
    group_normalize, prompt_advantages, keep_positive, keep_best)}
