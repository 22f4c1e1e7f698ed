"""KV-cached sampling: one compiled program, early stop, explicit key.

Prompts are right-padded; token t of every response goes to cache slot P + t,
so that one `dynamic_update_slice` serves all rows, and the gap behind a short
prompt is masked. The returned batch has no gap (see `types`).

Each token is drawn by inverting the cumulative distribution at one uniform
number that belongs to (key, row, t). So a row's sample does not depend on
what else is in the batch, and a token costs one random number, not V.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import types
from rlhf_jax.models import cached
from rlhf_jax.models import decoding
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import nucleus
from rlhf_jax.ops import q_learning
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import processes
from rlhf_jax.parallel import threads

# Rows that a CPU decodes at once: as fast as more of them, and their cache
# stays in the processor's; measured with 127 thousand and 7 million parameters.
SLOTS = 64


def filter_logits(logits: jax.Array, *, top_k: int = 0,
                  top_p: float = 1.0) -> jax.Array:
  """Sets to -inf what top-k and then top-p (nucleus) sampling exclude.

  Args:
    logits: f32[..., V], already divided by the temperature.
    top_k: how many of the largest to keep; 0 keeps all. Ties at the border
      are kept.
    top_p: keep the smallest set of largest probabilities that reaches this
      mass (Holtzman et al. 2020); 1 keeps all.

  Returns:
    f32[..., V].
  """
  if top_k and top_k < logits.shape[-1]:
    border = jax.lax.top_k(logits, top_k)[0][..., -1:]
    logits = jnp.where(logits < border, -jnp.inf, logits)
  if top_p < 1.0:
    # Never empty, so that no row needs `nucleus.restrict`'s care for padding.
    allowed = nucleus.nucleus(logits, top_p=top_p)
    logits = jnp.where(allowed, logits, -jnp.inf)
  return logits


def _draw(logits: jax.Array, uniform: jax.Array) -> jax.Array:
  """The first token whose cumulative probability exceeds `uniform`.

  XLA's parallel sum is not monotone to the last bit and may rise at a token
  of weight 0; a draw that lands there takes the likeliest token instead.
  """
  weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
  mass = jnp.cumsum(weights, axis=-1)
  total = mass[..., -1]
  # Rounding may lift the product to the total itself, which no token exceeds.
  point = jnp.minimum(uniform * total, jnp.nextafter(total, 0.0))
  # Counting is three times as fast as argmax on a CPU and means the same.
  token = jnp.sum(mass <= point[..., None], axis=-1, dtype=jnp.int32)
  sound = jnp.take_along_axis(weights, token[..., None], axis=-1)[..., 0] > 0
  best = lambda: jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return jax.lax.cond(jnp.all(sound), lambda: token,
                      lambda: jnp.where(sound, token, best()))


def _choose(logits, uniform, temperature, top_k, top_p):
  """A token of each row of logits [B, V], divided by the temperature."""
  if temperature == 0.0:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return _draw(filter_logits(logits, top_k=top_k, top_p=top_p), uniform)


def _logprob(logits, token):
  """log softmax of logits [B, V] at one token [B] of each row."""
  chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
  return chosen - jax.nn.logsumexp(logits, axis=-1)


def _uniforms(key, row_ids, samples, max_new_tokens):
  """f32[B * K, N], a function of (key, row id, sample, t) alone."""
  def row(row_id, sample):
    row_key = jax.random.fold_in(jax.random.fold_in(key, row_id), sample)
    return jax.random.uniform(row_key, (max_new_tokens,))
  rows = jax.vmap(lambda i: jax.vmap(lambda k: row(i, k))(samples))(row_ids)
  return rows.reshape(-1, max_new_tokens)


def _shift(params, hidden, logits, beta):
  """Logits [B, V] shifted by the heads that read hidden [B, D], normalised.

  V of the state is left at 0: all tokens share it, and the softmax drops it.
  """
  def q_values(head):
    states, weight, bias = heads.q_map(head, hidden)
    out = jnp.einsum('...d,vd->...v', states, weight.astype(states.dtype),
                     preferred_element_type=jnp.float32)
    return out if bias is None else out + jnp.broadcast_to(bias, out.shape)
  return q_learning.shift_logits(
      logits, tuple(map(q_values, params['target_q_heads'])),
      jnp.zeros(len(logits)), beta=beta)


def _possible(logits, early, *, num_tokens, eos_ids):
  """Logits [B, V] without rows beyond the tokenizer's, and EOS where early."""
  at = jnp.arange(logits.shape[-1])[None]
  if num_tokens < logits.shape[-1]:
    logits = jnp.where(at < num_tokens, logits, -jnp.inf)
  if early is not None:  # bool[] or bool[B]
    ends = jnp.isin(at, jnp.array(eos_ids)) & early.reshape(-1, 1)
    logits = jnp.where(ends, -jnp.inf, logits)
  return logits


def _inside(params, hidden, temperature, top_p):
  """bool[B, V]: the nucleus of a guide whose states are hidden [B, D]."""
  logits = transformer.project(params, hidden) / (temperature or 1.0)
  return nucleus.nucleus(logits, top_p=top_p)


def _ends(token, seen, *, eos_ids, stops):
  """Whether a token [B] ends its response, and the state of its strings."""
  ends = functools.reduce(jnp.logical_or, [token == x for x in eos_ids])
  if stops is None:
    return ends, seen
  seen = stops[seen, token]
  return ends | (seen == len(stops) - 1), seen


@functools.partial(jax.jit, static_argnames=(
    'config', 'min_new_tokens', 'max_new_tokens', 'temperature', 'top_k',
    'top_p', 'eos_ids', 'pad_id', 'force_eos', 'num_tokens', 'value_shift',
    'guide_top_p', 'num_slots'))
def _sample(config, policies, key, stops, prompts, prompt_lengths, row_ids,
            samples, *, min_new_tokens, max_new_tokens, temperature, top_k,
            top_p, eos_ids, pad_id, force_eos, num_tokens, value_shift,
            guide_top_p, num_slots):
  models = [cached.prepare(config, params) for params in policies]
  num_samples = len(samples)
  uniforms = _uniforms(key, row_ids, samples, max_new_tokens)

  def choose(states, uniform, t):
    """Token number t of rows, by a number each; the last perhaps an EOS."""
    hidden, *guide = cached.finish(config, models, states)
    logits = transformer.project(models[0].params, hidden)
    if value_shift is not None:
      logits = _shift(models[0].params, hidden, logits, value_shift)
    scaled = logits / (temperature or 1.0)
    allowed = _possible(
        scaled, t < min_new_tokens if min_new_tokens else None,
        num_tokens=num_tokens, eos_ids=eos_ids)
    if guide:
      inside = _inside(models[1].params, *guide, temperature, guide_top_p)
      allowed = nucleus.restrict(allowed, inside & (allowed > -jnp.inf))
    token = _choose(allowed, uniform, temperature, top_k, top_p)
    if force_eos:
      token = jnp.where(t == max_new_tokens - 1, eos_ids[0], token)
    if guide:
      scaled = nucleus.restrict(scaled, nucleus.include(inside, token))
    return token, _logprob(scaled, token)

  rules = decoding.Rules(
      lambda states, rows, t: choose(
          states, uniforms.at[rows, t].get(mode='clip'), t),
      functools.partial(_ends, eos_ids=eos_ids, stops=stops),
      lambda count: () if stops is None else jnp.zeros(count, jnp.int32),
      num_samples, max_new_tokens, pad_id)
  decode = functools.partial(
      decoding.in_slots, slots=num_slots) if num_slots else decoding.together
  tokens, logprobs, count = decode(
      config, models, rules, prompts, prompt_lengths)
  repeat = lambda x: jnp.repeat(x, num_samples, axis=0)
  rows = decoding.contiguous(
      tokens, repeat(prompts), repeat(prompt_lengths), logprobs, count, pad_id)
  return tuple(x.reshape(-1, num_samples, x.shape[-1]) for x in rows)


def _check_shift(params, value_shift):
  """ValueError unless `params` can be sampled from with `value_shift`."""
  if not 0 <= value_shift < float('inf'):
    raise ValueError(
        f'value_shift must be >= 0 and finite, got {value_shift}.')
  if 'target_q_heads' not in params:
    raise ValueError("params must hold 'target_q_heads' with value_shift, got "
                     f'{", ".join(sorted(params))}.')


def sample(
    config: transformer.Config,
    params: types.Params,
    prompts: jax.Array,
    prompt_lengths: jax.Array,
    key: jax.Array,
    *,
    num_samples: int,
    max_new_tokens: int,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    eos_id: int | tuple[int, ...],
    pad_id: int,
    force_eos: bool = False,
    stops: jax.Array | None = None,
    num_tokens: int | None = None,
    row_ids: jax.Array | None = None,
    value_shift: float | None = None,
    guide: nucleus.Guide | None = None,
    num_slots: int | None = None,
) -> types.Batch:
  """Samples `num_samples` responses to each prompt.

  Args:
    config: shape of the policy.
    params: its parameters; with `value_shift` also 'target_q_heads' (of
      `heads.init_q`). Other heads are not read.
    prompts: i32[B, P], right-padded.
    prompt_lengths: i32[B], tokens, >= 1.
    key: the only source of randomness; the same key gives the same rows, and
      one of threefry, JAX's default, the same however rows are cut.
    num_samples: K.
    max_new_tokens: N; a longer response ends without an EOS.
    min_new_tokens: as many tokens come before any of `eos_id`, as in
      transformers; a stop string or a forced EOS ends a response all the same.
    temperature: divides the logits; 0 is greedy.
    top_k: see `filter_logits`.
    top_p: see `filter_logits`.
    eos_id: ends a response and belongs to it; of several each does.
    pad_id: fills the rest of a row; may equal `eos_id`.
    force_eos: the last possible token is always the (first) EOS, so that no
      response is unfinished.
    stops: of `ops.stops.table`, i32[S, num_tokens]: the token that completes
      a string ends the response and belongs to it, with what that token says
      after the string. None: no string does.
    num_tokens: tokens of the tokenizer; ids from there on, for which a model
      may have padded embeddings, are never drawn. None: all may be.
    row_ids: i32[B], identity of each prompt in the whole data set. Batches
      cut differently then draw the same samples. Default: arange(B).
    value_shift: beta of `q_learning.shift_logits`, which every step's logits
      then go through before top-k and temperature, as ILQL samples (Snell et
      al. 2023; objectives.md 8.6), in nats per unit of value, >= 0; 0 is the
      language model. V is not needed: it cancels. None: no shift.
    guide: a mask policy of the same shape, to whose nucleus at each step the
      policy is restricted before top-k and top-p (NLPO, see `ops.nucleus`);
      where it holds no token of the tokenizer, and for a forced EOS, it gives
      way. It has weights and a cache of its own, and time of its own. None:
      no restriction.
    num_slots: rows that are decoded at once; a row that has ended makes room
      for one that waits (`models.decoding`), and the same is drawn. 0: all of
      them. None: `SLOTS` of many on a CPU, else all. Rows that are split over
      a mesh are all decoded at once. On one CPU, outside of `jax.jit`, rows
      are decoded in several parts side by side (`parallel.threads`), which
      share the slots, one each at least.

  Returns:
    Batch [B, K, P + N] with `tokens`, `mask` and `old_logprobs`: the log
    probability of each sampled token, in nats, under the softmax of
    logits / temperature (of the logits where it is 0), before the EOS is held
    back, top-k and top-p, renormalised within the nucleus of `guide` and that
    token; 0 off the mask. With `value_shift` these are the shifted logits,
    which `policy.forward` does not give; without, at the same temperature, it
    gives the same numbers to 1e-5 in float32. In bfloat16 it does not: 0.012
    off (rms; 0.045 at most of 1,450 tokens, 4 layers of 128 features, CPU),
    which is as far as bfloat16 is from float32; recompute them before ratios.

  Raises:
    ValueError: if a number is out of range, or `params` lack what
      `value_shift` needs.
  """
  if num_samples < 1 or max_new_tokens < 1:
    raise ValueError('num_samples and max_new_tokens must be >= 1, got '
                     f'{num_samples} and {max_new_tokens}.')
  if not 0 <= min_new_tokens <= max_new_tokens:
    raise ValueError(f'min_new_tokens must be in [0, {max_new_tokens}], got '
                     f'{min_new_tokens}.')
  if temperature < 0:
    raise ValueError(f'temperature must be >= 0, got {temperature}.')
  if top_k < 0:
    raise ValueError(f'top_k must be >= 0, got {top_k}.')
  if not 0 < top_p <= 1:
    raise ValueError(f'top_p must be in (0, 1], got {top_p}.')
  if value_shift is not None:
    _check_shift(params, value_shift)
  prompts = jnp.asarray(prompts)
  prompt_lengths = jnp.asarray(prompt_lengths)
  chex.assert_rank([prompts, prompt_lengths], [2, 1])
  chex.assert_type([prompts, prompt_lengths], int)
  transformer.check_length(config, prompts.shape[1] + max_new_tokens)
  eos_ids = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
  if not eos_ids:
    raise ValueError('eos_id must be one id or several, got none.')
  for name, token in (*(('eos_id', x) for x in eos_ids), ('pad_id', pad_id)):
    if not 0 <= token < config.vocab_size:
      raise ValueError(f'{name} must be in [0, {config.vocab_size}), the '
                       f'vocabulary, got {token}.')
  if not isinstance(prompt_lengths, jax.core.Tracer):
    lengths = processes.whole(prompt_lengths)
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > prompts.shape[1]:
      raise ValueError(f'prompt_lengths must be in [1, {prompts.shape[1]}], '
                       f'got {low if low < 1 else high}.')
  num_tokens = config.vocab_size if num_tokens is None else num_tokens
  last = max(*eos_ids, pad_id)
  if not last < num_tokens <= config.vocab_size:
    raise ValueError(f'num_tokens must be in ({last}, {config.vocab_size}], '
                     f'got {num_tokens}.')
  if stops is not None:
    stops = jnp.asarray(stops)
    chex.assert_shape(stops, (None, num_tokens))
  if row_ids is None:
    row_ids = jnp.arange(len(prompts))
  chex.assert_shape([prompt_lengths, row_ids], (len(prompts),))
  if num_slots is None:
    num_slots = SLOTS * (jax.default_backend() == 'cpu')
  if num_slots < 0:
    raise ValueError(f'num_slots must be >= 0, got {num_slots}.')
  policies = (params,) if guide is None else (params, guide.params)
  inputs = prompts, prompt_lengths, jnp.asarray(row_ids), np.arange(num_samples)
  parts = threads.parts(
      len(prompts), num_samples,
      # Each part of columns reads all prompts: a quarter more work at most.
      most_columns=1 + num_samples * max_new_tokens // (4 * prompts.shape[1])
  ) if threads.on_host(policies, key, stops, inputs) else (1, 1)
  num_slots = -(-num_slots // max(parts))
  if (num_slots >= len(prompts) * num_samples // max(parts)
      or meshes.row_parts() > 1):
    num_slots = 0
  draw = functools.partial(
      _sample, config, policies, key, stops, max_new_tokens=max_new_tokens,
      min_new_tokens=min_new_tokens,
      temperature=float(temperature), top_k=top_k, top_p=float(top_p),
      eos_ids=eos_ids, pad_id=pad_id, force_eos=force_eos,
      num_tokens=num_tokens,
      value_shift=None if value_shift is None else float(value_shift),
      guide_top_p=None if guide is None else float(guide.top_p),
      num_slots=num_slots)
  tokens, mask, logprobs = threads.in_parts(draw, *inputs, parts=parts)
  return types.Batch(tokens=tokens, mask=mask, old_logprobs=logprobs)
