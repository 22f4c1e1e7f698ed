"""The loop of a sampler: all rows together, or many rows in few slots.

Responses differ in length, and a batch that waits for its longest decodes
mostly rows that have ended. In slots, as many rows as there are slots are
decoded at once, each at a time of its own, and slots whose rows have ended are
filled from those that wait, a few at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlhf_jax.models import cached
from rlhf_jax.models import transformer


class Rules(NamedTuple):
  """What a sampler says of each token.

  Attributes:
    choose: (states, rows i32[S], t i32[] or i32[S]) -> token i32[S],
      log-probability f32[S]; of a row beyond the last one, anything.
    ends: (token, seen) -> whether it ends its row bool[S], and `seen`.
    seen: S -> what `ends` begins with, a pytree of arrays [S].
    num_samples: K.
    max_new_tokens: T.
    pad_id: of tokens after the end.
  """

  choose: Callable[..., tuple[jax.Array, jax.Array]]
  ends: Callable[..., tuple[jax.Array, Any]]
  seen: Callable[[int], Any]
  num_samples: int
  max_new_tokens: int
  pad_id: int


Responses = tuple[jax.Array, jax.Array, jax.Array]


def together(config: transformer.Config, models: Sequence[cached.Model],
             rules: Rules, prompts: jax.Array, prompt_lengths: jax.Array
             ) -> Responses:
  """Responses of R = B * K rows, row r to prompt r // K, all at once.

  Args:
    config: shape of every decoder.
    models: of `cached.prepare`.
    rules: see there.
    prompts: i32[B, P], right-padded.
    prompt_lengths: i32[B].

  Returns:
    tokens i32[R, T], log-probabilities f32[R, T] and how many of them count,
    i32[R].
  """
  width, new = prompts.shape[1], rules.max_new_tokens
  at = jnp.arange(width + new)[None]
  states = cached.of_one(cached.prefill(
      config, models, prompts, prompt_lengths, num_slots=at.size,
      num_samples=rules.num_samples))
  lengths = jnp.repeat(prompt_lengths, rules.num_samples)
  rows = jnp.arange(len(lengths))
  positions = _positions(at, width, lengths)

  def body(carry):
    t, states, seen, tokens, logprobs, done, count = carry
    token, logprob = rules.choose(states, rows, t)
    token = jnp.where(done, rules.pad_id, token)
    logprob = jnp.where(done, 0.0, logprob)
    tokens = jax.lax.dynamic_update_index_in_dim(tokens, token, t, 1)
    logprobs = jax.lax.dynamic_update_index_in_dim(logprobs, logprob, t, 1)
    count = count + ~done
    ends, seen = rules.ends(token, seen)
    states = cached.extend(
        config, models, states, token, lengths + t,
        _held(at, width, lengths, width + t), width + t, positions)
    return t + 1, states, seen, tokens, logprobs, done | ends, count

  carry = (jnp.int32(0), states, rules.seen(rows.size),
           jnp.full((rows.size, new), rules.pad_id, jnp.int32),
           jnp.zeros((rows.size, new)), jnp.zeros(rows.size, bool),
           jnp.zeros(rows.size, jnp.int32))
  unfinished = lambda c: (c[0] < new) & ~jnp.all(c[5])
  _, _, _, tokens, logprobs, _, count = jax.lax.while_loop(
      unfinished, body, carry)
  return tokens, logprobs, count


def _positions(at, width, lengths) -> jax.Array:
  """Of the token in each slot; there is none in the gap behind a prompt."""
  return jnp.where(at < width, at, at - width + lengths[:, None])


def _held(at, width, lengths, last) -> jax.Array:
  """Which slots hold a token: the prompt's, and the response's to the last."""
  return (at < lengths[:, None]) | ((at >= width) & (at <= last))


class _Loop(NamedTuple):
  """Of S slots."""

  following: jax.Array  # i32[], the first row that no slot has had
  row: jax.Array  # i32[S]; R: none
  t: jax.Array  # i32[S], tokens of the row so far
  idle: jax.Array  # bool[S], the row has ended
  states: list[cached.State]
  seen: Any
  tokens: jax.Array  # i32[R, T]
  logprobs: jax.Array  # f32[R, T]
  count: jax.Array  # i32[R]


def in_slots(config: transformer.Config, models: Sequence[cached.Model],
             rules: Rules, prompts: jax.Array, prompt_lengths: jax.Array, *,
             slots: int) -> Responses:
  """`together`, S rows at a time.

  Args:
    config: shape of every decoder.
    models: of `cached.prepare`.
    rules: see there.
    prompts: i32[B, P], right-padded.
    prompt_lengths: i32[B].
    slots: S, at most R.
  """
  num_samples, new = rules.num_samples, rules.max_new_tokens
  width = prompts.shape[1]
  first = cached.prefill(config, models, prompts, prompt_lengths,
                         num_slots=width + new)
  rows = len(prompt_lengths) * num_samples
  at = jnp.arange(width + new)[None]
  few = max(1, slots // 8)  # ended rows that are worth a refill

  prompt_of = lambda row: jnp.minimum(row, rows - 1) // num_samples

  def begun(row):
    """The states of rows that have read their prompts."""
    return jax.tree.map(lambda x: x[prompt_of(row)], first)

  def fill(loop: _Loop) -> _Loop:
    place = loop.following + jnp.cumsum(loop.idle) - 1
    row = jnp.where(loop.idle, jnp.minimum(place, rows), loop.row)
    select = lambda new, old: jnp.where(
        loop.idle.reshape(-1, *[1] * (old.ndim - 1)), new, old)
    return loop._replace(
        following=jnp.minimum(loop.following + loop.idle.sum(), rows),
        row=row, t=select(0, loop.t), idle=row == rows,
        states=jax.tree.map(select, begun(row), loop.states),
        seen=jax.tree.map(select, rules.seen(slots), loop.seen))

  def step(loop: _Loop) -> _Loop:
    token, logprob = rules.choose(loop.states, loop.row, loop.t)
    put = jnp.where(loop.idle, rows, loop.row)  # beyond: not written
    tokens = loop.tokens.at[put, loop.t].set(token, mode='drop')
    logprobs = loop.logprobs.at[put, loop.t].set(logprob, mode='drop')
    count = loop.count.at[put].add(1, mode='drop')
    ends, seen = rules.ends(token, loop.seen)
    ends |= loop.t + 1 == new
    lengths = prompt_lengths[prompt_of(loop.row)]
    place = jnp.minimum(width + loop.t, at.size - 1)
    states = cached.extend(
        config, models, loop.states, token, lengths + loop.t,
        _held(at, width, lengths, place[:, None]), place,
        _positions(at, width, lengths))
    return loop._replace(
        t=loop.t + 1, idle=loop.idle | ends, states=states, seen=seen,
        tokens=tokens, logprobs=logprobs, count=count)

  def body(loop: _Loop) -> _Loop:
    due = (loop.following < rows) & (
        (loop.idle.sum() >= few) | jnp.all(loop.idle))
    return step(jax.lax.cond(due, fill, lambda x: x, loop))

  row = jnp.arange(slots)
  loop = _Loop(
      jnp.int32(slots), row, jnp.zeros(slots, jnp.int32),
      jnp.zeros(slots, bool), begun(row), rules.seen(slots),
      jnp.full((rows, new), rules.pad_id, jnp.int32), jnp.zeros((rows, new)),
      jnp.zeros(rows, jnp.int32))
  loop = jax.lax.while_loop(
      lambda x: (x.following < rows) | ~jnp.all(x.idle), body, loop)
  return loop.tokens, loop.logprobs, loop.count


def contiguous(tokens: jax.Array, prompts: jax.Array,
               prompt_lengths: jax.Array, logprobs: jax.Array,
               lengths: jax.Array, pad_id: int
               ) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Closes the gap between prompt and response.

  Args:
    tokens: i32[R, T] of the responses.
    prompts: i32[R, P], right-padded.
    prompt_lengths: i32[R].
    logprobs: f32[R, T].
    lengths: i32[R], of the responses.
    pad_id: fills the rest.

  Returns:
    tokens i32[R, P + T], mask bool and log-probabilities f32 of that shape.
  """
  width, new = prompts.shape[1], tokens.shape[1]
  slot = jnp.arange(width + new)[None]
  start = prompt_lengths[:, None]
  at = jnp.clip(slot - start, 0, new - 1)  # [B*K, P+N] into the response
  mask = (slot >= start) & (slot < start + lengths[:, None])
  response = jnp.take_along_axis(tokens, at, axis=1)
  padded = jnp.pad(prompts, ((0, 0), (0, new)))
  row = jnp.where(slot < start, padded, jnp.where(mask, response, pad_id))
  logprobs = jnp.where(mask, jnp.take_along_axis(logprobs, at, axis=1), 0.0)
  return row, mask, logprobs
