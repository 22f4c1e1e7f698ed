"""Annotators fill the optional fields of a batch: Batch -> Batch.

They run on the whole rollout, before it is cut into minibatches, so a
statistic over samples never depends on how the batch is split.
"""

import jax
import jax.numpy as jnp

from rlhf_jax import policy
from rlhf_jax import rewards
from rlhf_jax import types
from rlhf_jax.models import transformer
from rlhf_jax.ops import advantages
from rlhf_jax.ops import ensembles


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


def kl_scores(batch: types.Batch, *, kl_coef: float) -> types.Batch:
  """Subtracts kl_coef times the sequence KL (k1) from `scores`.

  Ahmadian et al. 2024, section 2: R(x, y) = r(x, y) - beta log(pi / pi_ref).
  """
  return batch.replace(scores=advantages.kl_scores(
      batch.scores, batch.old_logprobs, batch.ref_logprobs, batch.mask,
      kl_coef=kl_coef))


def leave_one_out(batch: types.Batch) -> types.Batch:
  """Advantages f32[B, K] against the mean score of the other samples."""
  return batch.replace(advantages=advantages.leave_one_out(batch.scores))


def keep_best(batch: types.Batch) -> types.Batch:
  """RAFT: clears the mask of all but the best-scored sample of each prompt."""
  best = jnp.argmax(batch.scores, axis=1)  # the first on ties
  chosen = jnp.arange(batch.scores.shape[1])[None] == best[:, None]
  return batch.replace(mask=batch.mask & chosen[..., None])
