"""What each token adds to the bytes of a text: see `Tokenizer.pieces`."""

import functools
import re

import numpy as np
import tokenizers

from rlhf_jax import errors

_BYTE = re.compile('<0x[0-9A-F]{2}>')


def _byte_of() -> dict[str, int]:
  """The bytes that the characters of byte-level tokens stand for (GPT-2)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  hidden = [x for x in range(256) if x not in printable]
  return {chr(x): x for x in printable} | {
      chr(256 + i): x for i, x in enumerate(hidden)}


def pieces(backend: tokenizers.Tokenizer, count: int
           ) -> tuple[list[bytes], list[bytes]]:
  """What ids 0 to count - 1 add to the bytes of a text: first, and later.

  Bytes, since a token of a byte-level vocabulary may be half a character.

  Raises:
    ConfigError: what a token adds depends on the one before it.
  """
  decode = functools.partial(backend.decode_batch, skip_special_tokens=False)
  added = _pieces(backend, decode, count)
  rng = np.random.default_rng(0)
  rows = rng.choice([i for i, piece in enumerate(added[1]) if piece], (64, 8))
  for row, text in zip(rows, decode(rows.tolist())):
    whole = b''.join([added[0][row[0]], *(added[1][i] for i in row[1:])])
    if '\ufffd' not in text and whole.decode(errors='replace') != text:
      raise errors.ConfigError(
          'the tokenizer decodes a token by those beside it, so that stop '
          f'strings cannot be found: {text!r}')
  return added


def _pieces(backend, decode, count):
  """`pieces`, as if a token did not depend on which come before it."""
  names = [backend.id_to_token(i) or '' for i in range(count)]
  decoder = (backend.decoder and backend.decoder.__getstate__()) or b''
  if b'"ByteLevel"' in decoder:
    bytes_of = _byte_of()
    out = [bytes(map(bytes_of.get, name)) if bytes_of.keys() >= {*name}
           else name.encode() for name in names]
    return out, out
  known = [i for i, name in enumerate(names) if name]
  anchor = known[-1]
  before, = decode([[anchor]])
  first, later = [b''] * count, [b''] * count
  for i, alone, after in zip(known, decode([[i] for i in known]),
                             decode([[anchor, i] for i in known])):
    first[i], later[i] = alone.encode(), after[len(before):].encode()
    if b'"ByteFallback"' in decoder and _BYTE.fullmatch(names[i]):
      first[i] = later[i] = bytes.fromhex(names[i][3:5])
  return first, later
