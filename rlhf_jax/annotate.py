"""Annotators fill the optional fields of a batch: Batch -> Batch.

They run on the whole rollout, before it is cut into minibatches, so a
statistic over samples never depends on how the batch is split.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import inspect
import numbers
from typing import Any

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import policy
from rlhf_jax import rewards
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import advantages
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import masked
from rlhf_jax.ops import moments

Annotator = Callable[..., types.Batch]  # (batch, state, frozen, **kwargs)


def chain(nodes: Sequence[Mapping[str, Any]],
          models: Mapping[str, Annotator]) -> Annotator:
  """One function that applies annotators in order.

  Args:
    nodes: each {'name': ..., **kwargs}: a function of this module without
      model arguments, or a key of `models`.
    models: the annotators that need parameters or keep a state of their own,
      (batch, state, frozen, **kwargs) -> batch, bound to the models of a run.

  Returns:
    (batch, state, frozen) -> batch.

  Raises:
    ValueError: if a name or an argument is unknown or missing.
  """
  steps = []
  for node in nodes:
    node = dict(node)
    name = node.pop('name', None)
    if name in models:
      steps.append(functools.partial(models[name], **node))
      continue
    if name not in ARITHMETIC:
      raise ValueError(
          f'unknown annotator {name!r}; available: '
          f'{", ".join(sorted({*models, *ARITHMETIC}))}. One that needs '
          'parameters or a state has to be bound to them in `models`.')
    try:
      inspect.signature(ARITHMETIC[name]).bind(None, **node)
    except TypeError as error:
      raise ValueError(f'annotator {name}: {error}.') from None
    function = functools.partial(ARITHMETIC[name], **node)
    steps.append(lambda batch, state, frozen, f=function: f(batch))

  def annotators(batch, state, frozen):
    for step in steps:
      batch = step(batch, state, frozen)
    return batch

  return annotators


def _need(batch: types.Batch, *names: str) -> list[jax.Array]:
  """Fields of a batch; a ValueError names one that nothing has filled."""
  for name in names:
    if getattr(batch, name) is None:
      raise ValueError(f'batch.{name} is None: an annotator that fills it has '
                       'to come before.')
  return [getattr(batch, name) for name in names]


def scores(batch: types.Batch, config: transformer.Config,
           params: types.Params, **aggregate) -> types.Batch:
  """Scores with an ensemble, leaves [E, ...], and aggregates the members.

  Args:
    batch: tokens and mask.
    config: shape of the reward models.
    params: their parameters.
    **aggregate: `kind` and the rest of `ops.ensembles.aggregate`.

  Returns:
    The batch with `member_scores` f32[E, B, K] and `scores` f32[B, K].
  """
  members = rewards.score_members(config, params, batch.tokens, batch.mask)
  return batch.replace(member_scores=members,
                       scores=ensembles.aggregate(members, **aggregate))


def ref_logprobs(batch: types.Batch, config: transformer.Config,
                 params: types.Params, *,
                 temperature: float = 1.0) -> types.Batch:
  """Log-probabilities under the frozen reference, f32[B, K, T], in nats."""
  out = policy.forward(config, params, batch, temperature=temperature)
  return batch.replace(ref_logprobs=jax.lax.stop_gradient(out.logprobs))


def old_values(batch: types.Batch, config: transformer.Config,
               params: types.Params) -> types.Batch:
  """Values f32[B, K, T] of the policy that sampled, by its value head."""
  if 'value_head' not in params:
    raise ValueError("the policy has no 'value_head' to annotate values with.")
  out = policy.forward(config, params, batch)
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
  given, = _need(batch, 'scores')
  present = batch.mask.any(axis=-1)
  found = moments.update(moments.init(), given, present)
  return batch.replace(scores=moments.normalize(
      given, found.mean, moments.std(found)))


def kl_scores(batch: types.Batch, *,
              kl_coef: float | jax.Array) -> types.Batch:
  """Subtracts kl_coef times the sequence KL (k1) from `scores`.

  Ahmadian et al. 2024, section 2: R(x, y) = r(x, y) - beta log(pi / pi_ref).
  """
  given, old, ref = _need(batch, 'scores', 'old_logprobs', 'ref_logprobs')
  return batch.replace(scores=advantages.kl_scores(
      given, old, ref, batch.mask, kl_coef=kl_coef))


def kl_rewards(batch: types.Batch, *,
               kl_coef: float | jax.Array) -> types.Batch:
  """`rewards` f32[B, K, T]: a KL penalty on each token, the score on the last.

  Ziegler et al. 2019, eq. 2; see `ops.advantages.shape_rewards`. Without a
  penalty (kl_coef = 0) no reference is read.
  """
  given, = _need(batch, 'scores')
  if isinstance(kl_coef, numbers.Real) and kl_coef == 0:
    logprobs = [jnp.zeros(batch.mask.shape)] * 2
  else:
    logprobs = _need(batch, 'old_logprobs', 'ref_logprobs')
  return batch.replace(rewards=advantages.shape_rewards(
      given, *logprobs, batch.mask, kl_coef=kl_coef))


def gae(batch: types.Batch, *, discount: float = 1.0,
        gae_lambda: float = 0.95) -> types.Batch:
  """`advantages` and `returns`, f32[B, K, T], from rewards and old values."""
  found, returns = advantages.gae(
      *_need(batch, 'rewards', 'old_values'), batch.mask, discount=discount,
      gae_lambda=gae_lambda)
  return batch.replace(advantages=found, returns=returns)


def whiten(batch: types.Batch, *, shift_mean: bool = True,
           ddof: int = 0) -> types.Batch:
  """Whitens token advantages over the whole rollout; returns stay as made."""
  return batch.replace(advantages=masked.whiten(
      *_need(batch, 'advantages'), batch.mask, shift_mean=shift_mean,
      ddof=ddof))


def leave_one_out(batch: types.Batch) -> types.Batch:
  """Advantages f32[B, K] against the mean score of the other samples."""
  return batch.replace(advantages=advantages.leave_one_out(
      *_need(batch, 'scores'), batch.mask.any(axis=-1)))


def group_normalize(batch: types.Batch, *, scale: bool = True,
                    epsilon: float = 1e-4) -> types.Batch:
  """Advantages f32[B, K] against the samples of the same prompt (GRPO)."""
  return batch.replace(advantages=advantages.group_normalize(
      *_need(batch, 'scores'), batch.mask.any(axis=-1), scale=scale,
      epsilon=epsilon))


def prompt_advantages(batch: types.Batch) -> types.Batch:
  """Advantages f32[B, K]: the score less the reference's value of the prompt.

  Baheti et al. 2024, https://arxiv.org/abs/2305.14718, section 2.2:
  A(x, y) = R(x, y) - V_ref(x).
  """
  given, values = _need(batch, 'scores', 'prompt_values')
  chex.assert_shape(values, given.shape[:1])
  return batch.replace(
      advantages=jax.lax.stop_gradient(given - values[:, None]))


def keep_positive(batch: types.Batch) -> types.Batch:
  """Clears the mask of responses whose advantage [B, K] is not positive.

  Baheti et al. 2024, section 2.2; about a third of their data (section 4.1).
  """
  found, = _need(batch, 'advantages')
  chex.assert_shape(found, batch.mask.shape[:2])
  return batch.replace(mask=batch.mask & (found > 0)[..., None])


def keep_best(batch: types.Batch) -> types.Batch:
  """RAFT: clears the mask of all but the best-scored sample of each prompt.

  The first on ties; a missing sample is never the best.
  """
  given, = _need(batch, 'scores')
  chex.assert_shape(given, batch.mask.shape[:2])
  best = jnp.argmax(
      jnp.where(batch.mask.any(axis=-1), given, -jnp.inf), axis=1)
  chosen = jnp.arange(given.shape[1])[None] == best[:, None]
  return batch.replace(mask=batch.mask & chosen[..., None])


# Those that read no parameters, by the names that rows and configs use.
ARITHMETIC = {f.__name__: f for f in (
    standardize_scores, kl_scores, kl_rewards, gae, whiten, leave_one_out,
    group_normalize, prompt_advantages, keep_positive, keep_best)}
