"""Tests for rlhf_jax.models.llama2c."""

import functools
import os
import pathlib
import struct
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import errors
from rlhf_jax.models import llama2c
from rlhf_jax.models import transformer

_ROOT = pathlib.Path(__file__).resolve().parents[2]
SHARED = pathlib.Path(
    os.environ.get('RLHF_JAX_SHARED', _ROOT.parent / 'shared'))
LENGTH = 64  # tokens of a story, so that one program serves all
STORIES = SHARED / 'data/model/stories260K.bin'
_logits = jax.jit(transformer.logits, static_argnums=0)

# dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
TINY = (24, 20, 2, 3, 1, 11, 16)
UNTIED = (24, 20, 2, 3, 3, -11, 16)


def _arrays(header, seed=0):
  """Random arrays by the names of run.c, in the order of the file."""
  dim, hidden, layers, heads, kv_heads, vocab, length = header
  size = dim // heads
  shapes = {
      'token_embedding_table': (abs(vocab), dim),
      'rms_att_weight': (layers, dim), 'wq': (layers, dim, dim),
      'wk': (layers, kv_heads * size, dim),
      'wv': (layers, kv_heads * size, dim), 'wo': (layers, dim, dim),
      'rms_ffn_weight': (layers, dim), 'w1': (layers, hidden, dim),
      'w2': (layers, dim, hidden), 'w3': (layers, hidden, dim),
      'rms_final_weight': (dim,), 'freq_cis_real': (length, size // 2),
      'freq_cis_imag': (length, size // 2)}
  if vocab < 0:
    shapes['wcls'] = (-vocab, dim)
  rng = np.random.default_rng(seed)
  return {name: .4 * rng.normal(size=shape).astype('<f4')
          for name, shape in shapes.items()}


@functools.cache
def _file(header):
  """Bytes of a random model."""
  return struct.pack('<7i', *header) + b''.join(
      array.tobytes() for array in _arrays(header).values())


def _run_c(header, w, tokens):
  """Logits f64[T, V]: `forward` of run.c, token by token, with its cache."""
  dim, _, layers, heads, kv_heads, vocab, _ = header
  size, group = dim // heads, heads // kv_heads
  w = {name: array.astype(np.float64) for name, array in w.items()}
  cache = [([], []) for _ in range(layers)]

  def rmsnorm(x, weight):
    return weight * x / np.sqrt(np.mean(x * x) + 1e-5)

  def rotate(vector, position):
    out = vector.copy()
    for i in range(0, len(vector), 2):
      angle = position / 10000.0 ** ((i % size) / size)
      a, b = vector[i], vector[i + 1]
      out[i] = a * np.cos(angle) - b * np.sin(angle)
      out[i + 1] = a * np.sin(angle) + b * np.cos(angle)
    return out

  logits = []
  for position, token in enumerate(tokens):
    x = w['token_embedding_table'][token].copy()
    for layer in range(layers):
      xb = rmsnorm(x, w['rms_att_weight'][layer])
      q = rotate(w['wq'][layer] @ xb, position)
      keys, values = cache[layer]
      keys.append(rotate(w['wk'][layer] @ xb, position))
      values.append(w['wv'][layer] @ xb)
      out = np.zeros(dim)
      for head in range(heads):
        at = slice(head * size, (head + 1) * size)
        kv = slice(head // group * size, (head // group + 1) * size)
        scores = np.array([q[at] @ k[kv] for k in keys]) / np.sqrt(size)
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        out[at] = sum(p * v[kv] for p, v in zip(weights, values))
      x += w['wo'][layer] @ out
      xb = rmsnorm(x, w['rms_ffn_weight'][layer])
      gate, up = w['w1'][layer] @ xb, w['w3'][layer] @ xb
      x += w['w2'][layer] @ (gate / (1 + np.exp(-gate)) * up)
    x = rmsnorm(x, w['rms_final_weight'])
    logits.append(w['wcls' if vocab < 0 else 'token_embedding_table'] @ x)
  return np.stack(logits)


class Llama2cTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = pathlib.Path(folder.name) / 'model.bin'

  @parameterized.parameters(TINY, UNTIED)
  def test_logits_are_those_of_run_c(self, *header):
    self.path.write_bytes(_file(header))
    config, params = llama2c.load(self.path)
    self.assertEqual(config, llama2c.load_config(self.path))
    self.assertEqual(config.tie_embeddings, header[5] > 0)
    self.assertEqual('unembed' in params, header[5] < 0)
    self.assertEqual(config.extra, '{"max_position_embeddings": 16, '
                     '"bos_token_id": 1, "eos_token_id": 2, '
                     '"pad_token_id": null}')
    shapes = jax.eval_shape(
        lambda key: transformer.init(config, key), jax.random.key(0))
    self.assertEqual(jax.tree.map(lambda x: x.shape, params),
                     jax.tree.map(lambda x: x.shape, shapes))
    tokens = np.random.default_rng(1).integers(0, 11, 16)
    actual = _logits(config, params, tokens[None])[0]
    wanted = _run_c(header, _arrays(header), tokens)
    self.assertGreater(np.std(wanted), .5)
    np.testing.assert_allclose(actual, wanted, atol=1e-4)

  @parameterized.parameters('float32', 'bfloat16', 'float16')
  def test_dtype(self, dtype):
    self.path.write_bytes(_file(TINY))
    params = llama2c.load(self.path, dtype=dtype)[1]
    self.assertEqual({x.dtype for x in jax.tree.leaves(params)},
                     {jnp.dtype(dtype)})
    np.testing.assert_array_equal(
        params['layers']['down']['kernel'][1],
        _arrays(TINY)['w2'][1].T.astype(jnp.dtype(dtype)))

  def test_dtype_is_checked(self):
    with self.assertRaisesRegex(ValueError, "dtype.*'int8'"):
      llama2c.load(self.path, dtype='int8')

  def test_parameters_outlive_the_file(self):
    self.path.write_bytes(_file(TINY))
    _, params = llama2c.load(self.path)
    with open(self.path, 'r+b') as stream:  # in place, under a mapping
      stream.write(bytes(len(_file(TINY))))
    for leaf in jax.tree.leaves(params):
      self.assertGreater(np.min(np.std(leaf, axis=-1)), 0)

  def _refused(self, raw, *texts):
    self.path.write_bytes(raw)
    for function in (llama2c.load, llama2c.load_config):
      with self.assertRaises(errors.CheckpointError) as caught:
        function(self.path)
      message = str(caught.exception)
      self.assertNotIn('\n', message)
      for text in (str(self.path), *texts):
        self.assertIn(text, message)

  @parameterized.parameters(-4, -1, 1, 4, 4096)
  def test_size_must_fit(self, change):
    raw = _file(TINY)
    self._refused((raw + bytes(4096))[:len(raw) + change],
                  f'{len(raw)} bytes', f'{len(raw) + change}')

  @parameterized.parameters(
      (0,), (1,), (-1,), (2**31 - 1,), (-2**31,))
  def test_numbers_of_the_header(self, number):
    for i in range(len(TINY)):
      header = [*TINY]
      header[i] = number
      if header != [*TINY]:  # of kv_heads, 1 is its own
        with self.subTest(i=i):
          self._refused(struct.pack('<7i', *header) + _file(TINY)[28:],
                        'llama2.c')

  def test_without_the_rotary_table(self):
    raw = _file(TINY)
    self._refused(raw[:-4 * 2 * 16 * 4], f'{len(raw)} bytes')

  def test_foreign(self):
    self._refused(b'', '0 bytes')
    self._refused(_file(TINY)[:27], '27 bytes')
    self._refused(struct.pack('<2i', 0x616b3432, 1) + bytes(256), 'version 1')

  @parameterized.parameters(
      b'PK\x03\x04' + bytes(100), b'\x80\x02' + bytes(100), b'\x80\x04K\x01.')
  def test_pickle(self, raw):
    self._refused(raw, 'pickle refused')

  def test_dim_640_is_not_taken_for_a_pickle(self):
    header = (640, 1, 1, 320, 1, 3, 1)
    self.assertEqual(_file(header)[:2], b'\x80\x02')
    self.path.write_bytes(_file(header))
    self.assertEqual(llama2c.load(self.path)[0].hidden_size, 640)

  def test_missing_and_pipe(self):
    with self.assertRaisesRegex(errors.CheckpointError, 'missing'):
      llama2c.load(self.path)
    os.mkfifo(self.path)
    with self.assertRaisesRegex(errors.CheckpointError, 'regular file'):
      llama2c.load(self.path)

  def test_not_finite(self):
    raw = bytearray(_file(TINY))
    raw[28:32] = struct.pack('<f', np.nan)
    self.path.write_bytes(raw)
    with self.assertRaisesRegex(errors.CheckpointError, 'NaN.*embed'):
      llama2c.load(self.path)


def _pieces():
  """The byte strings of tok512.bin."""
  raw = STORIES.with_name('tok512.bin').read_bytes()
  pieces, at = [], 4
  while at < len(raw):
    length, = struct.unpack_from('<i', raw, at + 4)
    pieces.append(raw[at + 8:at + 8 + length])
    at += 8 + length
  return pieces


def _logprob(config, params, tokens):
  """Mean log-probability of tokens after the first, in nats."""
  row = np.pad(tokens, (0, LENGTH - len(tokens)))[None]
  logprobs = np.asarray(jax.nn.log_softmax(_logits(config, params, row)))[0]
  return np.mean([logprobs[t, token] for t, token in enumerate(tokens[1:])])


@absltest.skipUnless(STORIES.is_file(), f'{STORIES} is not here')
class StoriesTest(absltest.TestCase):

  def test_it_tells_a_story(self):
    config, params = llama2c.load(STORIES)
    tokens = np.zeros((1, LENGTH), np.int32)
    tokens[0, 0] = 1  # BOS
    for t in range(LENGTH - 1):  # causality hides what is not yet written
      logits = _logits(config, params, tokens)
      tokens[0, t + 1] = np.argmax(logits[0, t])
    pieces = _pieces()
    text = b''.join(pieces[i] for i in tokens[0, 1:]).decode()
    self.assertStartsWith(text, ' Once upon a time, there was a little girl')
    # -.48 nats a token; -ln(512) = -6.2 of chance.
    self.assertGreater(_logprob(config, params, tokens[0]), -.7)

  def test_a_text_of_somebody_else(self):
    # Written by hand; the model finds its words, and not in another order.
    config, params = llama2c.load(STORIES)
    text = (b' Tom and his dog went to the park. They played with a red ball. '
            b'Tom was very happy.')
    pieces, tokens = _pieces(), [1]
    while text:  # the longest piece; near enough to the tokenizer's own
      best = max((p for p in pieces[259:] if text.startswith(p)), key=len)
      tokens.append(pieces.index(best))
      text = text[len(best):]
    shuffled = [1, *np.random.default_rng(0).permutation(tokens[1:])]
    logprob = _logprob(config, params, tokens)
    self.assertGreater(logprob, -2.2)
    self.assertLess(_logprob(config, params, shuffled), logprob - 2)


if __name__ == '__main__':
  absltest.main()
