"""LLaMA weights in the .bin files of github.com/karpathy/llama2.c.

A header of seven int32 (see `_HEADER`) and float32 arrays, little-endian, as
`run.c` maps them; the files of export.py version 1 and later, which start
with a magic number, are refused. There is nothing to find in a file but its
size, so the size must fit to the byte.
"""

import json
import math
import mmap
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.models import directory
from rlhf_jax.models import transformer

_HEADER = ('dim', 'hidden_dim', 'n_layers', 'n_heads', 'n_kv_heads',
           'vocab_size', 'seq_len')
_START = 4 * len(_HEADER)  # bytes
_MAGIC = 0x616b3432  # 'ak42' starts a later version
_DTYPES = ('float32', 'bfloat16', 'float16')


def load_config(path: str | os.PathLike) -> transformer.Config:
  """The shape of the model in a file; errors are those of `load`."""
  return _open(path)[0]


def load(
    path: str | os.PathLike, *, dtype: str = 'float32'
) -> tuple[transformer.Config, types.Params]:
  """Reads a llama2.c model.

  Args:
    path: of a .bin file; Karpathy's stories*.bin are such.
    dtype: of the parameters: 'float32', as the file has them, 'bfloat16' or
      'float16'.

  Returns:
    Its config and its parameters, as `transformer.init` returns them.

  Raises:
    CheckpointError: the file is missing, is another kind (a pickle, a later
      version), is truncated or has bytes left over, or holds NaN or infinity.
    ValueError: another dtype.
  """
  if dtype not in _DTYPES:
    raise ValueError(f'dtype must be one of {_DTYPES}, got {dtype!r}.')
  config, arrays = _open(path)
  bad = [name for name, array in arrays.items()
         if not np.isfinite(array).all()]
  if bad:
    raise errors.CheckpointError(
        f'{path}: NaN or infinity in {", ".join(bad)}; get the file again')
  # Copied: a view of the file would follow what happens to the file.
  copy = lambda x: jax.device_put(np.array(x, jnp.dtype(dtype), order='C'))
  array = lambda name: copy(arrays[name])
  kernel = lambda x: {'kernel': copy(x.swapaxes(1, 2))}
  heads = {'wq': config.num_heads, 'wk': config.num_kv_heads}
  turned = lambda name: kernel(half_split(arrays[name], heads[name]))
  params = {
      'embed': array('embed'),
      'layers': {
          'attention_norm': {'scale': array('attention_norm')},
          'q': turned('wq'), 'k': turned('wk'), 'v': kernel(arrays['wv']),
          'o': kernel(arrays['wo']),
          'mlp_norm': {'scale': array('mlp_norm')},
          'gate': kernel(arrays['w1']), 'up': kernel(arrays['w3']),
          'down': kernel(arrays['w2']),
      },
      'norm': {'scale': array('norm')},
  }
  if not config.tie_embeddings:
    params['unembed'] = array('unembed')
  return config, params


def half_split(weights: np.ndarray, num_heads: int) -> np.ndarray:
  """Orders the outputs of a q or k projection for `transformer.rotate`.

  LLaMA as published rotates dimensions 2i and 2i + 1 of a head together, and
  so do llama2.c and GGUF; here, and in Hugging Face, i and i + h / 2.

  Args:
    weights: [..., num_heads * h, D].
    num_heads: of queries, or of keys.
  """
  *lead, rows, columns = weights.shape
  pairs = weights.reshape(*lead, num_heads, rows // num_heads // 2, 2, columns)
  return pairs.swapaxes(-3, -2).reshape(weights.shape)


def _open(path) -> tuple[transformer.Config, dict[str, np.ndarray]]:
  """The config, and the arrays as read-only views of the mapped file."""
  with directory.open_file(path) as stream:
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(_START)
    config, shapes = _layout(path, start, size)
    try:
      raw = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
      raise errors.CheckpointError(
          f'cannot map {path}: {error.strerror}') from error
  arrays, offset = {}, _START
  for name, shape in shapes.items():
    count = math.prod(shape)
    arrays[name] = np.frombuffer(raw, '<f4', count, offset).reshape(shape)
    offset += 4 * count
  del arrays['rope_cos'], arrays['rope_sin']  # of theta 10,000; `run.c` skips
  return config, arrays


def _layout(path, start: bytes, size: int):
  """The config of a header, and the shapes of the arrays in their order."""
  if len(start) < _START:
    raise _foreign(path, start, f'it has only {size} bytes')
  header = dict(zip(_HEADER, struct.unpack('<7i', start)))
  if header['dim'] == _MAGIC:
    raise _foreign(path, start, 'it is export.py version '
                   f'{header["hidden_dim"]}; export it again as version 0')
  # A negative number says that the classifier has weights of its own.
  tied, vocab_size = header['vocab_size'] > 0, abs(header['vocab_size'])
  try:
    if header['seq_len'] < 1 or header['n_kv_heads'] < 1:
      raise ValueError('n_kv_heads and seq_len must be >= 1')
    config = transformer.make_config(
        'llama', vocab_size=vocab_size, hidden_size=header['dim'],
        intermediate_size=header['hidden_dim'], num_layers=header['n_layers'],
        num_heads=header['n_heads'], num_kv_heads=header['n_kv_heads'],
        tie_embeddings=tied, extra=json.dumps({
            'max_position_embeddings': header['seq_len'], 'bos_token_id': 1,
            'eos_token_id': 2, 'pad_token_id': None}))
  except (ValueError, ZeroDivisionError) as error:
    raise _foreign(path, start, f'its header is {header}') from error
  d, f, l, v = (config.hidden_size, config.intermediate_size,
                config.num_layers, vocab_size)
  q = config.num_heads * config.head_size
  kv = config.num_kv_heads * config.head_size
  rope = (header['seq_len'], config.head_size // 2)
  shapes = {
      'embed': (v, d), 'attention_norm': (l, d), 'wq': (l, q, d),
      'wk': (l, kv, d), 'wv': (l, kv, d), 'wo': (l, d, q), 'mlp_norm': (l, d),
      'w1': (l, f, d), 'w2': (l, d, f), 'w3': (l, f, d), 'norm': (d,),
      'rope_cos': rope, 'rope_sin': rope,
  } | ({} if tied else {'unembed': (v, d)})
  needed = _START + 4 * sum(map(math.prod, shapes.values()))
  if needed != size:
    raise _foreign(path, start, f'its header {header} asks for {needed} bytes '
                   f'and it has {size}')
  return config, shapes


def _foreign(path, start: bytes, what: str) -> errors.CheckpointError:
  if start.startswith((b'PK', b'\x80')):  # torch and zip, and pickle
    return errors.CheckpointError(
        f'pickle refused: {path} is no llama2.c model but looks like a pickle '
        'or an archive; name a directory with safetensors')
  return errors.CheckpointError(
      f'{path} is not a llama2.c model: {what}; get the file again')
