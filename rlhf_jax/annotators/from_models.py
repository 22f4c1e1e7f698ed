"""Annotators that read parameters: scores, log-probabilities, values."""

from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.annotators import running
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import ensembles
from rlhf_jax.ops import kl
from rlhf_jax.ops import nucleus
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import scale as scale_lib


def scores(batch: types.Batch, config: transformer.Config,
           params: types.Params, *,
           scale: Mapping[str, jax.Array] | None = None, weight: float = 1.0,
           squash: Callable[[jax.Array], jax.Array] = lambda x: x,
           **aggregate) -> types.Batch:
  """Scores with an ensemble, leaves [E, ...], and aggregates the members.

  Args:
    batch: tokens and mask. If it has `scores`, of other rewards say, those of
      the ensemble are added to them.
    config: shape of the reward models.
    params: their parameters.
    scale: of `rewards.scale.standardize`, applied before the members are
      combined; None leaves their scores raw.
    weight: of the ensemble's score in the sum.
    squash: of the aggregate, before its weight.
    **aggregate: `kind` and the rest of `ops.ensembles.aggregate`.

  Returns:
    The batch with `member_scores` f32[E, B, K], standardised if `scale` is
    given, without `weight`, and `scores` f32[B, K].
  """
  members = reward_models.score_members(
      config, params, batch.tokens, batch.mask)
  if scale is not None:
    members = scale_lib.standardize(members, scale)
  total = weight * squash(ensembles.aggregate(members, **aggregate))
  if batch.scores is not None:
    total = batch.scores + total
  return batch.replace(member_scores=members, scores=total)


def ref_logprobs(batch: types.Batch, config: transformer.Config,
                 params: types.Params, *,
                 temperature: float = 1.0) -> types.Batch:
  """Log-probabilities under the frozen reference, f32[B, K, T], in nats."""
  out = policy.forward(config, params, batch, temperature=temperature)
  return batch.replace(ref_logprobs=jax.lax.stop_gradient(out.logprobs))


def old_logprobs(batch: types.Batch, config: transformer.Config,
                 params: types.Params, *, temperature: float = 1.0,
                 guide: nucleus.Guide | None = None) -> types.Batch:
  """Log-probabilities under the policy that sampled, f32[B, K, T], in nats.

  In place of the sampler's own: in bfloat16 its steps with a cache round
  otherwise than a forward pass does, which would move the ratios of the first
  update from 1, and at the border of a nucleus may let in another token.
  `temperature` and `guide` are those of the sampler.
  """
  out = policy.forward(
      config, params, batch, temperature=temperature, guide=guide)
  return batch.replace(old_logprobs=jax.lax.stop_gradient(out.logprobs))


def reference_point(batch: types.Batch, config: transformer.Config,
                    params: types.Params) -> types.Batch:
  """The reference point of KTO, of the policy as it is.

  Run it with each step, on the whole batch, see `chain.before_step`.

  Args:
    batch: tokens, mask and `ref_logprobs` [B, 2, T], of the responses to learn
      from and of responses to other prompts (`pipeline.unpaired`).
    config: shape of the policy.
    params: its parameters; read without dropout.

  Returns:
    The batch [B, 1, T] of the former, with `reference_points` f32[B, 1], in
    nats, which are all the same. The others have served.
  """
  ref_logprobs, = running.need(batch, 'ref_logprobs')
  chex.assert_axis_dimension(batch.mask, 1, 2)
  if batch.packed is not None:
    raise ValueError('the rows of a batch are cut, and were packed before.')
  tokens, mask = batch.tokens[:, 1:], batch.mask[:, 1:]
  out = policy.forward(config, params, types.Batch(tokens, mask))
  point = kl.reference_point(out.logprobs, ref_logprobs[:, 1:], mask)
  batch = jax.tree.map(lambda x: x[:, :1] if x.ndim > 1 else x, batch)
  return batch.replace(
      reference_points=jnp.broadcast_to(point, batch.mask.shape[:2]))


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
