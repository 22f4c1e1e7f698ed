"""Stop strings as a table that a sampler reads one token at a time.

A response ends with the token that completes one of a few strings in its
text. Which token does depends on those before it: a string may begin inside a
token and span several. How much of every string has been written is one state
of an automaton over bytes (Aho and Corasick 1975, for one string that of
Knuth, Morris and Pratt 1977). A token moves it by all of its bytes at once,
so that the table is [states, tokens], and a lookup serves a step.

UTF-8 is self-synchronising: a string is among the bytes of a text if and only
if it is in the text.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def _automaton(strings: Sequence[bytes]) -> np.ndarray:
  """i32[S, 256]: state 0 has seen nothing, S - 1 a whole string, for ever."""
  prefixes = sorted({s[:n] for s in strings for n in range(len(s) + 1)},
                    key=lambda prefix: (len(prefix), prefix))
  complete = lambda prefix: any(s in prefix for s in strings)
  states = {prefix: i for i, prefix in enumerate(
      prefix for prefix in prefixes if not complete(prefix))}
  end = len(states)

  def after(prefix, byte):
    text = prefix + bytes([byte])
    if complete(text):
      return end
    # The longest suffix that some string begins with.
    return next(states[text[at:]] for at in range(len(text) + 1)
                if text[at:] in states)

  # Only a byte that some string has leads anywhere but to the start.
  moves = np.zeros((end + 1, 256), np.int32)
  for prefix, state in states.items():
    for byte in set(b''.join(strings)):
      moves[state, byte] = after(prefix, byte)
  moves[end] = end
  return moves


def _run(moves, states, pieces):
  """i32[N, V]: where each of N states is after the bytes of each token."""
  lengths = np.array([len(piece) for piece in pieces])
  width = max(lengths, default=0)
  padded = np.frombuffer(b''.join(
      piece.ljust(width, b'\0') for piece in pieces), np.uint8)
  padded = padded.reshape(len(pieces), width)
  states = np.repeat(states[:, None], len(pieces), axis=1)
  for at in range(width):
    longer = lengths > at
    states[:, longer] = moves[states[:, longer], padded[longer, at]]
  return states


def table(strings: Sequence[str], first: Sequence[bytes],
          later: Sequence[bytes]) -> np.ndarray:
  """Where each token leads from each state.

  Args:
    strings: that end a response, none empty.
    first: V of them, what each token adds to a text that it begins.
    later: V of them, what each adds after others; see `Tokenizer.pieces`.

  Returns:
    i32[S, V]; a response begins in state 0 and has ended in S - 1.

  Raises:
    ValueError: there is no string, one is empty, or `first` and `later` are
      not of one length.
  """
  encoded = [s.encode() for s in strings]
  if not encoded or not all(encoded):
    raise ValueError('strings must be one or more texts, none of them empty, '
                     f'got {tuple(strings)}.')
  if len(first) != len(later):
    raise ValueError('first and later must have one entry for each token, got '
                     f'{len(first)} and {len(later)}.')
  moves = _automaton(encoded)
  # A token without a text, such as a hidden one, does not begin a response.
  begun = np.where([len(piece) > 0 for piece in first],
                   1 + _run(moves, np.zeros(1, np.int32), first), 0)
  return np.concatenate(
      [begun, 1 + _run(moves, np.arange(len(moves)), later)]).astype(np.int32)


def completed(stops: jax.Array | np.ndarray, tokens: jax.Array | np.ndarray,
              mask: jax.Array | np.ndarray) -> jax.Array:
  """Whether each response has completed a string, bool[...].

  Args:
    stops: of `table`.
    tokens: i32[..., T].
    mask: bool[..., T], true on response tokens.
  """
  stops = jnp.asarray(stops)

  def step(state, at):
    token, real = at
    return jnp.where(real, stops[state, token], state), None

  by_time = [jnp.moveaxis(jnp.asarray(x), -1, 0) for x in (tokens, mask)]
  start = jnp.zeros(mask.shape[:-1], jnp.int32)
  return jax.lax.scan(step, start, tuple(by_time))[0] == len(stops) - 1
