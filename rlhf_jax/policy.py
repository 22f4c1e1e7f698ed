"""One forward pass of a policy: [B, K, T] -> PolicyOutput."""

import jax

from rlhf_jax import types
from rlhf_jax.models import transformer
from rlhf_jax.ops import logprobs as logprobs_lib


def forward(
    config: transformer.Config,
    params: types.Params,
    batch: types.Batch,
    *,
    temperature: float = 1.0,
) -> types.PolicyOutput:
  """Log-probability and entropy of every token of a batch.

  Args:
    config: shape of the policy.
    params: its parameters.
    batch: only `tokens` i32[B, K, T] is read; rows are contiguous and padded
      on the right, so causality alone hides the padding.
    temperature: of the sampler whose actions these are; ratios against
      `old_logprobs` are 1 only with the same value.

  Returns:
    PolicyOutput with `logprobs` and `entropy`, f32[B, K, T], in nats. Under
    jit, the one that is not read costs nothing.
  """
  rows = batch.tokens.reshape(-1, batch.tokens.shape[-1])
  hidden = transformer.hidden_states(config, params, rows)
  unembed = transformer.unembedding(params)
  logprobs, entropy = logprobs_lib.from_hidden(
      hidden, unembed, rows, temperature=temperature)
  shape = lambda x: x.reshape(batch.tokens.shape)
  return jax.tree.map(shape, types.PolicyOutput(logprobs, entropy))
