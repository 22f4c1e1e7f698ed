"""Short rows beside each other in fewer, full ones: no padding is computed.

Only the layout changes. The batch of a step is the same, each response sees
its own prompt alone, from position 0, and what a forward pass says of packed
rows is put back to [B, K, T] before any objective reads it. So losses and
gradients are those of the batch as it was, but for the order of sums.

A batch is cut into G groups, each in R rows of W tokens: those that one device
reads in one micro-batch, so that nothing moves between devices.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import types


def place(lengths: np.ndarray, width: int
          ) -> tuple[np.ndarray, np.ndarray, int]:
  """First fit, longest first: within 11/9 of the fewest rows there could be.

  Args:
    lengths: i[N], tokens of each piece, 0 to `width`.
    width: W, tokens of a row.

  Returns:
    Row i64[N] and column i64[N] of each piece, and how many rows there are.

  Raises:
    ValueError: a piece is longer than a row.
  """
  if lengths.max(initial=0) > width:
    raise ValueError(f'a piece of {lengths.max()} tokens does not fit into '
                     f'rows of {width}.')
  row, column = np.zeros((2, len(lengths)), np.int64)
  free, number = np.full(len(lengths), width), 0
  for piece in np.argsort(-lengths, kind='stable'):
    if not lengths[piece]:
      break
    row[piece] = np.argmax(free >= lengths[piece])
    column[piece] = width - free[row[piece]]
    free[row[piece]] -= lengths[piece]
    number = max(number, int(row[piece]) + 1)
  return row, column, number


def _lengths(mask: np.ndarray) -> np.ndarray:
  """i[...]: tokens up to the end of each response, 0 where there is none."""
  width = mask.shape[-1]
  return np.where(
      mask.any(axis=-1), width - np.argmax(mask[..., ::-1], axis=-1), 0)


class Layout(NamedTuple):
  """Into how many groups a batch is cut, and how: see `train`, `sharding`."""

  shards: int = 1  # devices that have rows of their own, each in one block
  microbatches: int = 1  # of each block every so many-th prompt

  def groups(self, x: np.ndarray) -> np.ndarray:
    """[G, B / G, ...] of an array [B, ...]."""
    blocks = x.reshape(self.shards, -1, self.microbatches, *x.shape[1:])
    return np.swapaxes(blocks, 1, 2).reshape(
        self.shards * self.microbatches, -1, *x.shape[1:])

  def batch(self, x: np.ndarray) -> np.ndarray:
    """[B, ...] again."""
    blocks = x.reshape(self.shards, self.microbatches, *x.shape[1:])
    return np.swapaxes(blocks, 1, 2).reshape(-1, *x.shape[2:])


WHOLE = Layout()  # one group


class Size(NamedTuple):
  """Of what `pack` makes."""

  rows: int  # R
  pieces: int  # Q, in a row at most


def size_of(batch: types.Batch, layout: Layout = WHOLE) -> Size:
  """What `pack` needs: of the group that needs most.

  Args:
    batch: NumPy arrays, [B, ...]; [E, B, ...] of an ensemble.
    layout: whose groups divide B.
  """
  if batch.mask.ndim == 4:
    return largest(size_of(types.Batch(*member), layout)
                   for member in zip(batch.tokens, batch.mask, strict=True))
  return largest(_size(lengths.ravel(), batch.mask.shape[-1])
                 for lengths in layout.groups(_lengths(np.asarray(batch.mask))))


def largest(sizes) -> Size:
  """In which each of several fits."""
  return Size(*map(max, zip(*sizes, strict=True)))


def _size(lengths, width):
  row, _, number = place(lengths, width)
  return Size(number, int(np.bincount(row[lengths > 0]).max(initial=0)))


def pack(batch: types.Batch, size: Size, layout: Layout = WHOLE
         ) -> types.Batch:
  """The batch with `packed`; all its other fields stay as they are.

  Args:
    batch: NumPy arrays, [B, ...]; [E, B, ...] of an ensemble.
    size: at least that of `size_of`.
    layout: whose groups divide B.
  """
  pieces = zip(batch.tokens, batch.mask, strict=True)
  if batch.mask.ndim == 4:
    members = [_pack(*member, size, layout) for member in pieces]
    packed = jax.tree.map(lambda *x: np.stack(x), *members)
  else:
    packed = _pack(batch.tokens, batch.mask, size, layout)
  return batch.replace(packed=packed)


def _pack(tokens, mask, size, layout):
  width, lengths = tokens.shape[-1], layout.groups(_lengths(mask))
  shape = (len(lengths), size.rows)
  packed, segments = np.zeros((2, *shape, width), np.int32)
  ends = np.zeros((*shape, size.pieces), np.int32)
  starts, slots = np.zeros((2, *lengths.shape), np.int32)
  for group, (pieces, used) in enumerate(
      zip(layout.groups(tokens), lengths, strict=True)):
    row, column, _ = place(used.ravel(), width)
    slot, counts = np.zeros_like(row), np.zeros(size.rows, np.int64)
    for piece in np.flatnonzero(used.ravel()):
      r, c, count = row[piece], column[piece], used.ravel()[piece]
      packed[group, r, c:c + count] = pieces.reshape(-1, width)[piece, :count]
      segments[group, r, c:c + count] = piece + 1
      slot[piece] = counts[r]
      ends[group, r, counts[r]] = c + count - 1
      counts[r] += 1
    starts[group] = (row * width + column).reshape(used.shape)
    slots[group] = (row * size.pieces + slot).reshape(used.shape)
  arrays: Any = (packed, segments, ends,  # NumPy's, of the host
                 layout.batch(starts), layout.batch(slots))
  return types.Packed(*arrays)


def rows(batch: types.Batch) -> tuple[jax.Array, jax.Array | None]:
  """What a decoder reads: tokens i32[N, W], and their segments if packed."""
  if batch.packed is None:
    return batch.tokens.reshape(-1, batch.tokens.shape[-1]), None
  packed = batch.packed
  flat = lambda x: x.reshape(-1, x.shape[-1])
  return flat(packed.tokens), flat(packed.segments)


def _taken(x, places, groups):
  """Entries of x [N, ...] at places i32[B, K, ...] in those of their group."""
  x = x.reshape(groups, -1)
  taken = jnp.take_along_axis(
      x, places.reshape(groups, -1), axis=1, mode='clip')
  return taken.reshape(places.shape)


def tokenwise(x: jax.Array, batch: types.Batch) -> jax.Array:
  """[B, K, T] of what is aligned to the tokens of `rows`, [N, W].

  Padding holds anything finite; t = 0, which is never a target, holds 0 where
  rows were packed: what stands there was emitted in another piece.
  """
  packed = batch.packed
  if packed is None:
    return x.reshape(batch.tokens.shape)
  time = jnp.arange(batch.tokens.shape[-1])[None, None]
  out = _taken(x, packed.starts[..., None] + time, len(packed.tokens))
  return jnp.where(time > 0, out, 0)


def piecewise(x: jax.Array, packed: types.Packed) -> jax.Array:
  """[B, K] of what is aligned to the pieces of packed rows, [N, Q]."""
  return _taken(x, packed.slots, len(packed.tokens))
