"""One forward pass of a policy: [B, K, T] -> PolicyOutput."""

import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import logprobs as logprobs_lib


def forward(
    config: transformer.Config,
    params: types.Params,
    batch: types.Batch,
    targets: types.Params | None = None,
    *,
    temperature: float = 1.0,
) -> types.PolicyOutput:
  """Everything that a policy and its heads say about each token of a batch.

  Args:
    config: shape of the policy.
    params: its parameters; beside the decoder's, 'value_head' (of
      `heads.init_scalar`) and 'q_heads' (of `heads.init_q`) where there are
      any.
    batch: only `tokens` i32[B, K, T] is read; rows are contiguous and padded
      on the right, so causality alone hides the padding.
    targets: a slowly moving copy of `params['q_heads']`.
    temperature: of the sampler whose actions these are; ratios against
      `old_logprobs` are 1 only with the same value.

  Returns:
    PolicyOutput with `logprobs` and `entropy`, f32[B, K, T], in nats, and
    what the heads give. Under jit, what is not read costs nothing.
  """
  rows = batch.tokens.reshape(-1, batch.tokens.shape[-1])
  hidden = transformer.hidden_states(config, params, rows)
  before = hidden[:, :-1]  # the states in which tokens 1, 2, ... are emitted
  unembed = transformer.unembedding(params)
  out = logprobs_lib.from_hidden(
      hidden, unembed, rows, temperature=temperature)
  found = {'logprobs': out.logprobs, 'entropy': out.entropy}
  if 'value_head' in params:
    found['values'] = logprobs_lib.align(
        heads.scalar(params['value_head'], before))
  if 'q_heads' in params:
    read = [logprobs_lib.from_hidden(hidden, head, rows)
            for head in params['q_heads']]
    found['q_values'] = tuple(x.logits for x in read)
    found['q_logprobs'] = tuple(x.logprobs for x in read)
  if targets is not None:
    # The token's own row of the head: no vocabulary is projected.
    dot = lambda head: jnp.einsum('...d,...d->...', before,
                                  head[rows[:, 1:]].astype(hidden.dtype),
                                  preferred_element_type=jnp.float32)
    found['target_q_values'] = tuple(
        jax.lax.stop_gradient(logprobs_lib.align(dot(head)))
        for head in targets)
  shape = lambda x: x.reshape(batch.tokens.shape)
  return jax.tree.map(shape, types.PolicyOutput(**found))
