"""One forward pass of a policy: [B, K, T] -> PolicyOutput."""

import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import logprobs as logprobs_lib
from rlhf_jax.ops import masked
from rlhf_jax.ops import nucleus
from rlhf_jax.ops import packing

LOGITS = 2**26  # of the two policies of NLPO each, on all devices at a time


def _restricted(config, params, hidden, rows, guide, temperature):
  """Statistics of tokens in rows [N, T] within the nucleus of a guide.

  The token that is there is always in it, see `nucleus.include`. So many
  positions at a time as have `LOGITS`; those are made again in the backward
  pass, and rows stay on their devices.
  """
  theirs = jax.lax.stop_gradient(
      transformer.hidden_states(config, guide.params, rows))

  def statistics(hidden, theirs, following):
    logits = transformer.project(guide.params, theirs) / temperature
    allowed = nucleus.include(
        nucleus.nucleus(logits, top_p=guide.top_p), following)
    return logprobs_lib.at_targets(
        nucleus.restrict(transformer.project(params, hidden), allowed),
        following, temperature)

  parts = hidden[:, :-1], theirs[:, :-1], rows[:, 1:]
  count, width = parts[2].shape
  size = max(1, LOGITS // (count * config.vocab_size))
  if size >= width:
    return jax.tree.map(logprobs_lib.align, statistics(*parts))

  number = -(-width // size)

  def cut(x):  # [N, width, ...] to [number, N, size, ...]
    x = jnp.pad(x, ((0, 0), (0, number * size - width)) + ((0, 0),) * (
        x.ndim - 2))
    return jnp.swapaxes(x.reshape(count, number, size, *x.shape[2:]), 0, 1)

  out = jax.lax.map(
      jax.checkpoint(lambda part: statistics(*part), prevent_cse=False),
      jax.tree.map(cut, parts))
  return jax.tree.map(lambda x: logprobs_lib.align(
      jnp.swapaxes(x, 0, 1).reshape(count, -1)[:, :width]), out)


def forward(
    config: transformer.Config,
    params: types.Params,
    batch: types.Batch,
    targets: types.Params | None = None,
    *,
    temperature: float = 1.0,
    value_config: transformer.Config | None = None,
    dropout_key: jax.Array | None = None,
    guide: nucleus.Guide | None = None,
) -> types.PolicyOutput:
  """Everything that a policy and its heads say about each token of a batch.

  Args:
    config: shape of the policy.
    params: its parameters; beside the decoder's, where there are any:
      'value_head' (of `heads.init_scalar`), which reads the policy's hidden
      states or those of 'value_trunk' (of `heads.trunk`; Zhu et al. 2023),
      'reward_head' (of `heads.init_scalar`; Askell et al. 2021) and 'q_heads'
      (of `heads.init_q`).
    batch: only `tokens` i32[B, K, T] is read, and `mask` by the reward head;
      rows are contiguous and padded on the right, so causality alone hides
      the padding. With `packed`, those rows are read instead.
    targets: a slowly moving copy of `params['q_heads']`.
    temperature: of the sampler whose actions these are; ratios against
      `old_logprobs` are 1 only with the same value.
    value_config: shape of 'value_trunk'; default `config`.
    dropout_key: of `config.dropout` and `config.adapter_dropout`, for train
      steps alone: ratios against `old_logprobs` are then not 1 even at the
      first of them. None: no dropout.
    guide: a mask policy of the same shape, to whose nucleus the policy is
      restricted (NLPO, see `ops.nucleus`), as `sampling.sample` does; it has
      no dropout and no gradient. It takes a forward pass more and a sort of
      each token's logits, and holds about 9 times 256 MiB of them at a time,
      or 9 times f32[B, K, V], on all devices together.

  Returns:
    PolicyOutput with `logprobs` and `entropy`, f32[B, K, T], in nats, and
    what the heads give. Under jit, what is not read costs nothing.
  """
  rows, segments = packing.rows(batch)
  keys = (None, None)
  if dropout_key is not None:
    keys = jax.random.split(dropout_key)
  hidden = transformer.hidden_states(
      config, params, rows, segments=segments, dropout_key=keys[0])
  if guide is not None:
    if segments is not None:
      raise ValueError('a guide reads no packed rows.')
    out = _restricted(config, params, hidden, rows, guide, temperature)
  else:
    out = logprobs_lib.from_hidden(
        hidden, transformer.unembedding(params, hidden.dtype), rows,
        bias=params.get('unembed_bias'), temperature=temperature)
  fields = {'logprobs': out.logprobs, 'entropy': out.entropy}
  # Tokens 1, 2, ... are emitted in the states before them.
  if 'value_head' in params:
    states = hidden
    if 'value_trunk' in params:
      states = transformer.hidden_states(
          value_config or config, params['value_trunk'], rows,
          segments=segments, dropout_key=keys[1])
    fields['values'] = logprobs_lib.align(
        heads.scalar(params['value_head'], states[:, :-1]))
  if 'q_heads' in params:
    read = []
    for head in params['q_heads']:
      states, weight, bias = heads.q_map(head, hidden)
      read.append(logprobs_lib.from_hidden(states, weight, rows, bias=bias))
    fields['q_values'] = tuple(x.logits for x in read)
    fields['q_logprobs'] = tuple(x.logprobs for x in read)
  if targets is not None:
    fields['target_q_values'] = tuple(
        jax.lax.stop_gradient(logprobs_lib.align(
            heads.q_value(head, hidden[:, :-1], rows[:, 1:])))
        for head in targets)
  shape = lambda x: packing.tokenwise(x, batch)
  fields = jax.tree.map(shape, fields)
  if 'reward_head' in params:
    fields['scores'] = masked.last(
        shape(heads.scalar(params['reward_head'], hidden)), batch.mask)
  return types.PolicyOutput(**fields)
