"""Tests for rlhf_jax.models.tensors."""

import gc
import json
import mmap
import os
import pathlib
import struct
import tempfile
import time
import tracemalloc
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from rlhf_jax import errors
from rlhf_jax.models import directory
from rlhf_jax.models import tensors
from rlhf_jax.storage import files

try:
  import safetensors
  import safetensors.numpy
except ImportError:
  safetensors = None

MEBIBYTE = 2**20
BF16 = ml_dtypes.bfloat16


def _file(header, body=b'', length=None):
  """Bytes of a file; a header that is not bytes is written as JSON."""
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  length = len(header) if length is None else length
  return struct.pack('<Q', length) + header + body


def _entry(start, end, shape=None, dtype='F32'):
  shape = [(end - start) // 4] if shape is None else shape
  return {'dtype': dtype, 'shape': shape, 'data_offsets': [start, end]}


GOOD = _file({'a': _entry(0, 8), 'b': _entry(8, 12)}, b'\0' * 12)
ATTACKS = {  # F20: what it is, its bytes, what the message says
    'truncated_body': (GOOD[:-1], 'end at byte'),
    'truncated_header': (GOOD[:20], 'cannot have a header of'),
    'length_2_60': (_file(b'{}', length=2**60), 'cannot have a header of'),
    'empty': (b'', 'only 0 bytes'),
    'offset_beyond': (_file({'a': _entry(0, 400)}, b'\0' * 8), 'end at byte'),
    'hole': (_file({'a': _entry(0, 4), 'b': _entry(8, 12)}, b'\0' * 12),
             "'b' starts at byte"),
    'overlap': (_file({'a': _entry(0, 8), 'b': _entry(4, 12)}, b'\0' * 12),
                "'b' starts at byte"),
    'shape_overflow': (_file(
        {'a': _entry(0, 0, [2**32, 2**32])}), 'too large'),
    'pickle': (b'\x80\x04\x95' + b'x' * 100, 'pickle refused'),
    'duplicate': (_file(
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b'\0' * 4),
                  "'a' occurs twice"),
}
MORE_ATTACKS = {
    'seven_bytes': (b'\x02\0\0\0\0\0\0', 'only 7 bytes'),
    'length_one_more': (_file(b'{}', length=3), 'cannot have a header'),
    'header_too_large': (_file(b'{}'.ljust(2**24 + 1)), 'cannot have a header'),
    'no_header': (_file(b''), 'not valid JSON'),
    'no_tensors': (_file({}), 'no tensors'),
    'only_metadata': (_file({'__metadata__': {'format': 'pt'}}), 'no tensors'),
    'list': (_file([1]), 'not an object'),
    'space_first': (_file(b' ' + GOOD[8:-12], b'\0' * 12), 'not an object'),
    'metadata_number': (_file({'__metadata__': {'a': 1}, 'a': _entry(0, 0)}),
                        '__metadata__'),
    'metadata_list': (_file({'__metadata__': [], 'a': _entry(0, 0)}),
                      '__metadata__'),
    'left_over': (GOOD + b'\0', 'end at byte'),
    'hole_in_front': (_file({'a': _entry(4, 8)}, b'\0' * 8),
                      "'a' starts at byte"),
    'same_bytes_twice': (_file({'a': _entry(0, 4), 'b': _entry(0, 4)},
                               b'\0' * 4), "'b' starts at byte"),
    'size_more': (_file({'a': _entry(0, 8, [3])}, b'\0' * 8),
                  r'8 bytes for F32\[3'),
    'size_less': (_file({'a': _entry(0, 8, [1])}, b'\0' * 8),
                  r'8 bytes for F32\[1'),
    'half_a_byte': (_file({'a': _entry(0, 1, [3], 'F4')}, b'\0'), '1 bytes'),
    'reversed': (_file({'a': _entry(8, 0, [2])}, b'\0' * 8), '-8 bytes'),
    'negative_shape': (_file({'a': _entry(0, 4, [-1, -1])}, b'\0' * 4),
                       'has shape'),
    'negative_offset': (_file({'a': _entry(-4, 0, [1])}), 'offsets'),
    'bool_shape': (_file({'a': _entry(0, 4, [True])}, b'\0' * 4), 'has shape'),
    'float_shape': (_file({'a': _entry(0, 4, [1.0])}, b'\0' * 4), 'has shape'),
    'text_shape': (_file({'a': _entry(0, 4, '1')}, b'\0' * 4), 'has shape'),
    'one_offset': (_file({'a': {'dtype': 'F32', 'shape': [],
                                'data_offsets': [0]}}), 'offsets'),
    'zero_times_huge': (_file({'a': _entry(0, 0, [2**62, 2**62, 0])}),
                        'too large'),
    'dimension_2_64': (_file({'a': _entry(0, 0, [2**64, 0])}), 'has shape'),
    'many_dimensions': (_file({'a': _entry(0, 4, [1] * 65)}, b'\0' * 4),
                        'too large'),
    'huge_shape': (_file({'a': _entry(0, 4, [2**62] * 100_000)}, b'\0' * 4),
                   'too large'),
    'unknown_dtype': (_file({'a': _entry(0, 4, [1], 'F33')}, b'\0' * 4),
                      "unknown dtype 'F33'"),
    'list_dtype': (_file({'a': _entry(0, 4, [1], ['F32'])}, b'\0' * 4),
                   'unknown dtype'),
    'null_entry': (_file({'a': None}), 'does not have just'),
    'no_dtype': (_file({'a': {'shape': [0], 'data_offsets': [0, 0]}}),
                 'does not have just'),
    'one_key_more': (_file({'a': _entry(0, 0) | {'code': 'x'}}),
                     'does not have just'),
    'key_twice_in_entry': (_file(
        b'{"a":{"dtype":"F32","shape":[0],"shape":[0],"data_offsets":[0,0]}}'),
                           "'shape' occurs twice"),
    'not_utf8': (_file(b'{"\xff":1}'), 'utf-8'),
    'nested': (_file(b'{"a":' * 100_000), 'not valid JSON'),
    'long_number': (_file(b'{"a":' + b'9' * 10_000 + b'}'), 'not valid JSON'),
    'zip': (b'PK\x03\x04' + b'x' * 100, 'pickle refused'),
    'npy': (b'\x93NUMPY' + b'x' * 100, 'pickle refused'),
    'ascii_pickle': (b'cposix\nsystem\n', 'not sound'),
    'line_break_in_name': (_file({'a\nb': _entry(0, 4)}), r"|'a\\nb'"),
}
_FUZZ = hypothesis.settings(
    max_examples=80, deadline=None, derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck))


@st.composite
def _models(draw):
  """Tensors of random names, shapes, dtypes, strides and bits."""
  names = draw(st.lists(
      st.text(st.characters(exclude_categories=['Cs']), max_size=9).filter(
          lambda name: name != '__metadata__'),
      min_size=1, max_size=5, unique=True))
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  model = {}
  for name in names:
    dtype = np.dtype(draw(st.sampled_from([np.float32, np.float16, BF16])))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    raw = rng.bytes(dtype.itemsize * int(np.prod(shape, dtype=int)))
    array = np.frombuffer(raw, dtype).reshape(shape)
    model[name] = array.T if draw(st.booleans()) else array
  return model


class TensorsTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    holder = tempfile.TemporaryDirectory()
    self.addCleanup(holder.cleanup)
    self.path = pathlib.Path(holder.name)
    self.file = self.path / 'model.safetensors'

  def load(self, stem='model'):
    return tensors.read(directory.weight_files(self.path, stem=stem))

  def assert_same(self, actual, expected):
    """Names, dtypes, shapes and bits, NaN payloads and -0 included."""
    self.assertEqual(actual.keys(), expected.keys())
    for name, array in expected.items():
      self.assertEqual(actual[name].dtype, array.dtype)
      self.assertEqual(actual[name].shape, array.shape)
      self.assertEqual(actual[name].tobytes(), array.tobytes())


class ReadTest(TensorsTestCase):

  @parameterized.named_parameters(
      (name, *attack) for name, attack in (ATTACKS | MORE_ATTACKS).items())
  def test_malformed(self, content, pattern):
    """F20: each within a second and 50 MB; the largest header has 16 MiB."""
    self.file.write_bytes(content)
    started = time.process_time()  # of others on the machine, none counts
    with self.assertRaisesRegex(errors.CheckpointError, pattern) as caught:
      self.load()
    self.assertLess(time.process_time() - started, 1)
    tracemalloc.start()  # slow
    try:
      with self.assertRaises(errors.CheckpointError):
        self.load()
      self.assertLess(tracemalloc.get_traced_memory()[1], 50e6)
    finally:
      tracemalloc.stop()
    message = str(caught.exception)
    self.assertIn(str(self.file), message)
    self.assertNotIn('\n', message)
    self.assertLess(len(message), 600)
    self.assertEqual(caught.exception.exit_code, 4)

  def test_there_are_ten_attacks(self):
    self.assertLen(ATTACKS, 10)

  def test_good_is_good(self):
    self.file.write_bytes(GOOD)
    self.assert_same(self.load(), {
        'a': np.zeros(2, np.float32), 'b': np.zeros(1, np.float32)})

  def test_empty_tensor_where_another_starts(self):
    raw = _file({'a': _entry(0, 8), 'b': _entry(0, 0), 'c': _entry(8, 8)},
                b'\1' * 8)
    self.file.write_bytes(raw)
    self.assertEqual({name: array.shape for name, array in self.load().items()},
                     {'a': (2,), 'b': (0,), 'c': (0,)})
    if safetensors is not None:
      self.assertLen(safetensors.deserialize(raw), 3)

  def test_every_byte_of_a_header_may_be_damaged(self):
    """Nothing but CheckpointError, and never a view beyond the file."""
    refused = 0
    for position in range(len(GOOD) - 12):
      for flip in (1, 4, 128):
        raw = bytearray(GOOD)
        raw[position] ^= flip
        self.file.write_bytes(raw)
        try:
          self.assertEqual(
              sum(array.nbytes for array in self.load().values()), 12)
        except errors.CheckpointError:
          refused += 1
    self.assertGreater(refused, 2 * (len(GOOD) - 12))

  @hypothesis.given(st.data())
  @_FUZZ
  def test_what_the_library_refuses_is_refused(self, data):
    if safetensors is None:
      self.skipTest('safetensors is not installed')
    small = st.integers(-1, 12)
    entry = st.fixed_dictionaries({
        'dtype': st.sampled_from(['F32', 'BF16', 'U8', 'F4', 'X']),
        'shape': st.lists(small, max_size=3),
        'data_offsets': st.tuples(small, small)})
    header = data.draw(st.dictionaries(
        st.sampled_from('abc'), entry | st.none(), max_size=2))
    raw = _file(header, bytes(data.draw(st.integers(0, 12))))
    self.file.write_bytes(raw)
    try:
      ours = dict(self.load().specs)
    except errors.CheckpointError:
      return
    theirs = dict(safetensors.deserialize(raw))
    self.assertEqual(
        {name: list(spec.shape) for name, spec in ours.items()},
        {name: value['shape'] for name, value in theirs.items()})

  def test_files_of_the_library(self):
    if safetensors is None:
      self.skipTest('safetensors is not installed')
    rng = np.random.default_rng(0)
    model = {
        f'{name}.é': rng.normal(size=(3, 5)).astype(name)
        for name in ('float32', 'float16', 'bfloat16')}
    safetensors.numpy.save_file(model, self.file)
    self.assert_same(self.load(), model)

  @parameterized.parameters(
      ('I64', 8), ('BOOL', 1), ('U8', 1), ('F64', 8), ('F8_E4M3', 1))
  def test_other_dtypes_are_refused_when_asked_for(self, dtype, size):
    self.file.write_bytes(_file(
        {'mask': _entry(0, size, [1], dtype), 'w': _entry(size, size + 4)},
        bytes(size) + np.float32(7).tobytes()))
    actual = self.load()
    self.assertEqual(actual.specs['mask'].dtype, dtype)
    self.assertEqual(actual.specs['mask'].shape, (1,))
    with self.assertRaisesRegex(
        errors.CheckpointError,
        f"'mask' is of dtype {dtype}; it must be one of BF16, F16, F32"):
      actual['mask']
    # Of an odd start too, an array is aligned and holds what it should.
    self.assertTrue(actual['w'].flags.aligned)
    self.assert_same({'w': actual['w']}, {'w': np.full(1, 7, np.float32)})

  def test_mapping(self):
    self.file.write_bytes(GOOD)
    actual = tensors.read(str(self.file))
    self.assertLen(actual, 2)
    self.assertEqual(list(actual), ['a', 'b'])
    self.assertIn('a', actual)
    self.assertNotIn('c', actual)
    with self.assertRaises(KeyError):
      actual['c']
    tensors.write(self.path / 'aligned', actual)  # and so no copy
    for array in (actual['a'],
                  tensors.read(self.path / 'aligned/model.safetensors')['a']):
      with self.assertRaisesRegex(ValueError, 'read-only'):
        array[0] = 1

  def test_lazy(self):
    """Of 2 GiB, nothing is read but what is touched."""
    with open(self.file, 'wb') as stream:
      stream.write(_file(json.dumps({
          'big': _entry(0, 2**31, [2**20, 2**9]),
          'small': _entry(2**31, 2**31 + 8)}).encode().ljust(256)))
      stream.truncate(stream.tell() + 2**31)  # a hole; takes no disk
      stream.seek(0, os.SEEK_END)
      stream.write(np.array([1, 2], np.float32).tobytes())
    before = _resident()
    tracemalloc.start()
    try:
      actual = self.load()
      self.assertEqual(actual['big'].shape, (2**20, 2**9))
      self.assertEqual(actual['big'][-1, -1], 0)
      np.testing.assert_array_equal(actual['small'], [1, 2])
      self.assertLess(tracemalloc.get_traced_memory()[1], MEBIBYTE)
    finally:
      tracemalloc.stop()
    self.assertLess(_resident() - before, 2**30)

  def test_arrays_outlive_the_mapping_and_the_file(self):
    self.file.write_bytes(_file({'a': _entry(0, 8)}, b'\1' * 8))
    before = len(os.listdir('/proc/self/fd'))
    array = self.load()['a']
    gc.collect()
    self.file.unlink()
    self.assertEqual(array.tobytes(), b'\1' * 8)
    del array
    gc.collect()
    self.assertLen(os.listdir('/proc/self/fd'), before)

  def test_other_kinds_of_file(self):
    for path in ('/dev/zero', self.path, self.path / 'missing'):
      with self.assertRaisesRegex(errors.CheckpointError, str(path)):
        tensors.read(path)
    os.mkfifo(self.file)
    with self.assertRaisesRegex(errors.CheckpointError, 'not a regular'):
      tensors.read(self.file)

  def test_no_memory_to_map(self):
    self.file.write_bytes(GOOD)
    with mock.patch.object(mmap, 'mmap', side_effect=OSError(12, 'no memory')):
      with self.assertRaisesRegex(errors.CheckpointError, 'no memory'):
        tensors.read(self.file)


class IndexTest(TensorsTestCase):

  def put(self, weight_map, **shards):
    for shard, names in shards.items():
      header = {name: _entry(4 * i, 4 * i + 4) for i, name in enumerate(names)}
      (self.path / f'{shard}.safetensors').write_bytes(
          _file(header, bytes(4 * len(names))))
    (self.path / 'model.safetensors.index.json').write_text(json.dumps({
        'weight_map': {
            name: f'{shard}.safetensors' for name, shard in weight_map.items()
        }}))

  def test_good(self):
    self.put({'a': 'x', 'b': 'y', 'c': 'x'}, x='ac', y='b')
    self.assertCountEqual(self.load(), 'abc')

  @parameterized.parameters(
      ({'a': 'x', 'b': 'y'}, 'a', 'bc', "y.safetensors .* index lacks 'c'"),
      ({'a': 'x', 'b': 'y', 'c': 'y'}, 'a', 'b', "y.safeten.* it lacks 'c'"),
      ({'a': 'y', 'b': 'x'}, 'a', 'b', "lacks 'b'; the index lacks 'a'"),
      ({'a': 'x', 'b': 'y'}, 'a', 'ab', "the index lacks 'a'"),
      ({'a': 'x', 'b': 'y'}, 'a', 'bcdefg', "'c', 'd', 'e' and 2 more"))
  def test_index_and_shards_differ(self, weight_map, x, y, pattern):
    self.put(weight_map, x=x, y=y)
    with self.assertRaisesRegex(errors.CheckpointError, pattern):
      self.load()

  def test_name_in_two_files_without_index(self):
    self.put({'a': 'x'}, x='a', y='a')
    with self.assertRaisesRegex(errors.CheckpointError, "'a' is in .*x.* and"):
      tensors.read({self.path / 'x.safetensors': None,
                    self.path / 'y.safetensors': None})


class WriteTest(TensorsTestCase):

  @hypothesis.given(_models(), st.sampled_from([1, 40, 10**9]))
  @_FUZZ
  def test_round_trip(self, model, max_shard_bytes):
    with tempfile.TemporaryDirectory() as path:
      written = tensors.write(path, model, max_shard_bytes=max_shard_bytes)
      self.assertCountEqual(pathlib.Path(path).iterdir(), written)
      actual = tensors.read(directory.weight_files(path))
      self.assert_same(actual, model)
      for array in actual.values():
        self.assertTrue(array.flags.aligned)
        self.assertTrue(array.flags.c_contiguous)
      # Once more, from the mapped file to another.
      tensors.write(f'{path}/new', actual)
      self.assert_same(tensors.read(f'{path}/new/model.safetensors'), model)
      if safetensors is not None:
        theirs = {}
        for file in written:
          if file.suffix == '.safetensors':
            theirs |= safetensors.numpy.load_file(file)
        self.assert_same(theirs, model)

  def test_shards_by_hand(self):
    ones = np.ones(2, np.float32)  # 8 bytes
    model = {'d': ones, 'a': ones, 'b': np.ones(9, BF16), 'c': ones[:1],
             'e': ones}
    written = tensors.write(self.path, model, max_shard_bytes=16)
    self.assertEqual([path.name for path in written], [
        'model-00001-of-00003.safetensors', 'model-00002-of-00003.safetensors',
        'model-00003-of-00003.safetensors', 'model.safetensors.index.json'])
    self.assertEqual(json.loads(written[-1].read_text()), {
        'metadata': {'total_size': 46},
        'weight_map': {
            'a': 'model-00001-of-00003.safetensors',
            'b': 'model-00002-of-00003.safetensors',
            'c': 'model-00003-of-00003.safetensors',
            'd': 'model-00001-of-00003.safetensors',
            'e': 'model-00003-of-00003.safetensors'}})
    self.assert_same(self.load(), model)

  def test_bytes_by_hand(self):
    tensors.write(self.path, {'e': np.float16([1]), 'f': np.float32([[2]])})
    header = (b'{"__metadata__":{"format":"pt"},'
              b'"f":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
              b'"e":{"dtype":"F16","shape":[1],"data_offsets":[4,6]}}')
    padded = header.ljust(-(-len(header) // 8) * 8)
    self.assertEqual(self.file.read_bytes(),
                     _file(padded, b'\0\0\0\x40\0\x3c'))

  def test_stem_and_metadata(self):
    model = {'lora': np.ones((2, 2), BF16)}
    written = tensors.write(
        self.path, model, stem='adapter_model', metadata={'by': 'test'})
    self.assertEqual(written, [self.path / 'adapter_model.safetensors'])
    self.assert_same(self.load('adapter_model'), model)
    self.assertIn(b'{"__metadata__":{"by":"test"}', written[0].read_bytes())

  def test_arrays_of_jax(self):
    model = {'a': jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}
    tensors.write(self.path, model)
    self.assert_same(self.load(), {'a': np.asarray(model['a'])})

  @parameterized.parameters(
      np.float64, np.int32, np.bool_, '>f4', ml_dtypes.float8_e4m3fn, object)
  def test_other_dtypes(self, dtype):
    model = {'good': np.ones(1, np.float32), 'w': np.ones(1, dtype)}
    with self.assertRaisesRegex(ValueError, 'w: dtype .* bfloat16, float16'):
      tensors.write(self.path, model)
    self.assertEmpty(list(self.path.iterdir()))

  def test_bad_arguments(self):
    ones = np.ones(1, np.float32)
    with self.assertRaisesRegex(ValueError, 'got 0'):
      tensors.write(self.path, {})
    with self.assertRaisesRegex(ValueError, 'max_shard_bytes .* got 0'):
      tensors.write(self.path, {'a': ones}, max_shard_bytes=0)
    for name in ('__metadata__', 3):
      with self.assertRaisesRegex(ValueError, 'name of a tensor'):
        tensors.write(self.path, {name: ones})
    self.assertEmpty(list(self.path.iterdir()))

  @parameterized.parameters(1, 10**9)
  def test_a_model_is_never_overwritten(self, max_shard_bytes):
    model = {'a': np.ones(1, np.float32), 'b': np.ones(1, np.float32)}
    tensors.write(self.path, model, max_shard_bytes=max_shard_bytes)
    for size in (1, 10**9):
      with self.assertRaisesRegex(errors.CheckpointError, 'there already'):
        tensors.write(
            self.path, {'a': model['a'] * 2}, max_shard_bytes=size)
    self.assert_same(self.load(), model)
    tensors.write(self.path, model, stem='adapter_model')  # another stem

  @parameterized.parameters(
      (OSError(28, 'No space left on device'), errors.CheckpointError),
      (KeyboardInterrupt(), KeyboardInterrupt))
  def test_failure_leaves_nothing(self, cause, expected):
    """At every write and rename of three shards and an index."""
    model = {name: np.ones(1, np.float32) for name in 'abc'}
    for target in (os, 'replace'), (os, 'fsync'):
      for count in range(4):
        calls = []
        real = getattr(*target)
        def fail(*args, calls=calls, real=real, count=count):
          calls.append(args)
          if len(calls) > count:
            raise cause
          return real(*args)
        with mock.patch.object(*target, fail), self.assertRaises(expected):
          tensors.write(self.path, model, max_shard_bytes=1)
        self.assertEmpty(list(self.path.iterdir()))
    tensors.write(self.path, model, max_shard_bytes=1)
    self.assert_same(self.load(), model)

  def test_killed_before_the_index_there_is_no_model(self):
    model = {name: np.ones(1, np.float32) for name in 'abc'}
    seen = []
    real = files.replacing
    def spy(path):
      with self.assertRaisesRegex(errors.CheckpointError, 'no model'):
        self.load()
      seen.append(pathlib.Path(path).name)
      return real(path)
    with mock.patch.object(files, 'replacing', spy):
      *shards, index = tensors.write(self.path, model, max_shard_bytes=1)
    self.assertEqual(seen, [path.name for path in (*shards, index)])
    index.unlink()  # shards of a killed process are in nobody's way
    tensors.write(self.path, {'d': model['a']})
    self.assertEqual(list(self.load()), ['d'])

  def test_cannot_make_directory(self):
    self.file.touch()
    with self.assertRaisesRegex(errors.CheckpointError, 'cannot make'):
      tensors.write(self.file / 'below', {'a': np.ones(1, np.float32)})

  def test_array_that_changes(self):
    class Changing(dict):
      def __getitem__(self, name):
        return np.ones(3, np.float32)
    with self.assertRaisesRegex(ValueError, 'a changed'):
      tensors.write(self.path, Changing(a=np.ones(2, np.float32)))
    self.assertEmpty(list(self.path.iterdir()))

  def test_memory(self):
    """Whole tensors are written without a copy, others with one of theirs."""
    array = np.ones((1024, 1024), np.float32)
    tracemalloc.start()
    try:
      tensors.write(self.path / 'a', {str(i): array for i in range(8)})
      self.assertLess(tracemalloc.get_traced_memory()[1], MEBIBYTE)
      tensors.write(self.path / 'b', {str(i): array.T for i in range(8)})
      self.assertLess(tracemalloc.get_traced_memory()[1], 9 * MEBIBYTE)
    finally:
      tracemalloc.stop()


def _resident():
  """Bytes of this process that are in memory."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * os.sysconf('SC_PAGE_SIZE')


if __name__ == '__main__':
  absltest.main()
