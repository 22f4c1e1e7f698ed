"""Frozen base weights in 4 bits (QLoRA, Dettmers et al. 2023).

NF4 (https://arxiv.org/abs/2305.14314, section 3): weights in blocks of 64
are divided by the block's largest magnitude and rounded to one of 16 values,
the quantiles of a normal distribution. Double quantisation: those magnitudes
are kept in 8 bits as well, in blocks of 256, less their mean. Together 0.516
bytes a weight. Layout and numbers are those of `bitsandbytes`
(quantize_4bit with quant_type nf4 and compress_statistics) for a Linear
weight [out, in], so a base means the same weights here and there.
"""

import math
import re
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import types

BLOCK = 64  # weights that share a magnitude
GROUP = 256  # magnitudes that share a scale
# Of bitsandbytes; the paper's appendix E has them with fewer digits.
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
    0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0], np.float32)


def _dynamic_map() -> np.ndarray:
  """The 256 values of 8-bit dynamic quantisation, f32, ascending.

  Seven decades from 1e-6 to 1, each with twice the values of the one below
  (Dettmers 2016, https://arxiv.org/abs/1511.04561).
  """
  values = [0.0, 1.0]
  for i in range(7):
    edges = np.linspace(0.1, 1, 2**i + 1, dtype=np.float32)
    means = np.float32(10.0 ** (i - 6)) * (edges[:-1] + edges[1:]) / 2
    values += [*means, *-means]
  return np.sort(np.array(values, np.float32))


DYNAMIC = _dynamic_map()


@flax.struct.dataclass
class Quantized:
  """Matrices [..., in, out] in NF4, each flattened as [out, in].

  Leading axes, of layers or members, are on every array, so that `scan` and
  `vmap` see one matrix at a time.
  """

  codes: jax.Array  # u8[..., n / 2], two a byte, the earlier one above
  absmax: jax.Array  # u8[..., n / 64], indices into DYNAMIC
  scale: jax.Array  # f32[..., n / 16384], of absmax
  offset: jax.Array  # f32[...], mean of the magnitudes
  matrix: tuple[int, int] = flax.struct.field(pytree_node=False)  # in, out
  dtype: str = flax.struct.field(pytree_node=False)  # before quantisation

  @property
  def shape(self) -> tuple[int, ...]:
    """[..., in, out]."""
    return (*self.offset.shape, *self.matrix)


def is_quantized(leaf: Any) -> bool:
  return isinstance(leaf, Quantized)


def _nearest(x: jax.Array, values: np.ndarray) -> jax.Array:
  """u8 indices of the values nearest to x; of two, the lower."""
  return jnp.searchsorted((values[:-1] + values[1:]) / 2, x).astype(jnp.uint8)


def _blocks(x: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
  """x [n] over the magnitude of its block [m, size], and the magnitudes [m].

  The last block is filled up with zeros.
  """
  x = jnp.pad(x, (0, -x.size % size)).reshape(-1, size)
  largest = jnp.abs(x).max(axis=1)
  # Not 0 / 0 in a block of zeros; a smaller number may count as 0.
  least = jnp.finfo(jnp.float32).tiny
  return x * (1 / jnp.maximum(largest, least))[:, None], largest


@jax.jit
def nf4(weight: jax.Array) -> Quantized:
  """Quantises matrices [..., in, out] of floats, each by itself.

  A matrix that holds a NaN or an infinity becomes NaN as a whole.
  """
  if weight.ndim < 2 or not jnp.issubdtype(weight.dtype, jnp.floating):
    raise ValueError('weight must be floats [..., in, out], got '
                     f'{weight.dtype}{list(weight.shape)}.')
  *lead, rows, columns = weight.shape

  def encode(matrix):
    scaled, absmax = _blocks(matrix.T.astype(jnp.float32).ravel(), BLOCK)
    codes = _nearest(scaled.ravel(), NF4)
    offset = absmax.mean()
    scaled, scale = _blocks(absmax - offset, GROUP)
    return ((codes[::2] << 4) | codes[1::2],
            _nearest(scaled.ravel()[:absmax.size], DYNAMIC), scale, offset)

  # One matrix after the other: no index of all weights is in memory at once.
  arrays = jax.lax.map(encode, weight.reshape(-1, rows, columns))
  return Quantized(
      *(x.reshape(*lead, *x.shape[1:]) for x in arrays),
      matrix=(rows, columns), dtype=str(weight.dtype))


def _dense(leaf: Quantized, dtype) -> jax.Array:
  """The matrices [..., in, out]."""
  rows, columns = leaf.matrix
  lead = leaf.offset.shape
  scale = jnp.repeat(leaf.scale, GROUP, axis=-1)[..., :leaf.absmax.shape[-1]]
  absmax = (jnp.asarray(DYNAMIC)[leaf.absmax] * scale
            + leaf.offset[..., None])
  codes = jnp.stack([leaf.codes >> 4, leaf.codes & 15], axis=-1)
  flat = (jnp.asarray(NF4)[codes.reshape(*lead, -1, BLOCK)]
          * absmax[..., None]).reshape(*lead, -1)
  matrix = flat[..., :rows * columns].reshape(*lead, columns, rows)
  return jnp.swapaxes(matrix, -1, -2).astype(dtype)


def dense(tree: Any, dtype=None) -> Any:
  """The tree with every quantised leaf as an array; others are untouched.

  Args:
    tree: of arrays and `Quantized`.
    dtype: of those arrays; None: what they were before quantisation.
  """
  return jax.tree.map(
      lambda x: _dense(x, dtype or x.dtype) if is_quantized(x) else x,
      tree, is_leaf=is_quantized)


def kernel_names(params: types.Params, targets: str) -> list[str]:
  """Names such as 'layers/q' of the linear maps that a pattern chooses.

  Args:
    params: of a decoder.
    targets: regular expression, for the whole name.

  Raises:
    ValueError: it matches nothing, or something that is not a linear map.
  """
  names = {name: False for name in params} | {
      f'{stack}/{name}': 'kernel' in entry
      for stack in ('layers', 'top_layers')
      for name, entry in params.get(stack, {}).items()}
  try:
    matches = [name for name in names if re.fullmatch(targets, name)]
  except re.error as error:
    raise ValueError(
        f'targets {targets!r} is no regular expression: {error}.') from None
  wrong = [name for name in matches if not names[name]]
  if wrong or not matches:
    kernels = ', '.join(name for name, linear in names.items() if linear)
    raise ValueError(
        f'targets {targets!r} matches '
        f'{wrong[0] + ", which is no linear map" if wrong else "nothing"}; '
        f'there are {kernels}.')
  return sorted(matches)


def quantize_params(
    params: types.Params, targets: str = r'(top_)?layers/(q|k|v|o|gate|up|down)'
) -> types.Params:
  """The parameters with some kernels in NF4.

  Args:
    params: of a decoder.
    targets: pattern for `kernel_names`; the default is all linear maps of the
      layers. Embeddings, norms, biases and the output stay as they are.

  Raises:
    ValueError: see `kernel_names`; or a kernel is quantised already.
  """
  params = dict(params)
  for name in kernel_names(params, targets):
    stack, name = name.split('/')
    entry = params[stack][name]
    if is_quantized(entry['kernel']):
      raise ValueError(f'{stack}/{name} is quantised already.')
    params[stack] = {
        **params[stack], name: {**entry, 'kernel': nf4(entry['kernel'])}}
  return params


def nbytes(tree: Any) -> int:
  """Bytes of all arrays, those of quantised leaves included."""
  return sum(math.prod(x.shape) * x.dtype.itemsize
             for x in jax.tree.leaves(tree))
