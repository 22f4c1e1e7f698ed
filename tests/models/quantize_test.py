"""Tests for rlhf_jax.models.quantize."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax.models import lora
from rlhf_jax.models import quantize
from rlhf_jax.models import transformer

B, T, V = 2, 6, 11


def _normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


_dense = jax.jit(quantize.dense, static_argnames='dtype')


def _reference(weight):
  """NF4 with double quantisation of one matrix, block by block in NumPy."""
  flat, absmax, codes = weight.T.ravel(), [], []
  for start in range(0, flat.size, 64):
    block = flat[start:start + 64]
    absmax.append(np.abs(block).max())
    scaled = block / absmax[-1] if absmax[-1] else block
    codes.append(np.abs(scaled[:, None] - quantize.NF4).argmin(1))
  absmax = np.array(absmax)
  offset, kept = absmax.mean(), []
  for start in range(0, absmax.size, 256):
    group = absmax[start:start + 256] - offset
    scale = np.abs(group).max() or 1
    nearest = np.abs(group[:, None] / scale - quantize.DYNAMIC).argmin(1)
    kept.extend(quantize.DYNAMIC[nearest] * scale + offset)
  out = [quantize.NF4[c] * m for c, m in zip(codes, kept, strict=True)]
  return np.concatenate(out).reshape(weight.T.shape).T


class Nf4Test(parameterized.TestCase):

  @parameterized.parameters(
      (64, 64), (48, 40), (50, 3), (5, 7), (1, 1), (130, 257))
  def test_equals_numpy(self, rows, columns):
    """Sizes that are multiples of a block, and sizes that are not."""
    weight = np.stack([_normal(rows, columns), 3 * _normal(
        rows, columns, seed=1)])
    small = quantize.nf4(weight)
    self.assertEqual(small.shape, weight.shape)
    actual = _dense(small, dtype='float32')
    for mine, matrix in zip(actual, weight, strict=True):
      expected = _reference(matrix)
      # What lies in the middle of two values may go either way.
      same = np.isclose(mine, expected, atol=1e-5)
      self.assertGreaterEqual(same.mean(), .99)

  def test_codes(self):
    """Values of the format come back as they are."""
    weight = np.tile(np.concatenate([quantize.NF4] * 4), 3).reshape(3, 64).T
    small = quantize.nf4(weight)
    np.testing.assert_allclose(_dense(small), weight, atol=1e-7)
    self.assertEqual(small.codes.dtype, np.uint8)
    self.assertEqual(small.codes.shape, (96,))
    np.testing.assert_array_equal(
        small.codes[:8], [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef])

  def test_zeros(self):
    weight = _normal(64, 40)
    weight[:, 3] = 0  # a whole block
    actual = _dense(quantize.nf4(weight))
    np.testing.assert_array_equal(actual[:, 3], 0)
    self.assertTrue(np.isfinite(actual).all())
    np.testing.assert_array_equal(_dense(quantize.nf4(0 * weight)), 0)

  def test_error_of_each_weight_is_within_its_bound(self):
    """Half the gap of the codes, and what the magnitude itself has lost."""
    weight = np.random.default_rng(0).standard_t(3, (192, 320)).astype('f')
    small = quantize.nf4(weight)
    error = np.abs(_dense(small) - weight).T.reshape(-1, 64)
    blocks = weight.T.reshape(-1, 64)
    absmax = np.abs(blocks).max(1)
    gaps, spacing = np.diff(quantize.NF4), np.diff(quantize.DYNAMIC).max()
    self.assertLess(spacing, .0142)
    groups = np.abs(absmax - absmax.mean())
    # -1 is no value, but the lowest is only half a spacing above it.
    lost = spacing / 2 * np.array([
        groups[i - i % 256:i - i % 256 + 256].max()
        for i in range(len(groups))])
    scaled = blocks / absmax[:, None]
    at = np.clip(np.searchsorted(quantize.NF4, scaled) - 1, 0, 14)
    bound = gaps[at] / 2 * absmax[:, None] + lost[:, None]
    np.testing.assert_array_less(error, bound * (1 + 1e-5) + 1e-7)
    self.assertGreater((error / bound).max(), .85)

  def test_error_and_size_of_normal_weights(self):
    weight = _normal(2, 512, 512)
    small = quantize.nf4(weight)
    error = np.linalg.norm(_dense(small) - weight) / np.linalg.norm(weight)
    self.assertBetween(error, .088, .096)
    per_weight = quantize.nbytes(small) / weight.size
    self.assertAlmostEqual(per_weight, .5 + 1 / 64 + 4 / 64 / 256, delta=1e-4)
    self.assertLess(per_weight, .517)

  @parameterized.parameters(jnp.float32, jnp.bfloat16, jnp.float16)
  def test_dtypes(self, dtype):
    weight = jnp.asarray(_normal(64, 8), dtype)
    small = quantize.nf4(weight)
    self.assertEqual(quantize.dense(small).dtype, dtype)
    self.assertEqual(_dense(small, dtype='bfloat16').dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
        _dense(small, dtype='float32').astype(dtype), _dense(small))

  def test_layers_and_members_are_apart(self):
    weight = _normal(3, 2, 64, 20) * np.array([1, 10, 100.], 'f')[
        :, None, None, None]
    whole = quantize.nf4(weight)
    self.assertEqual(whole.shape, weight.shape)
    self.assertEqual(whole.matrix, (64, 20))
    for leaf in jax.tree.leaves(whole):
      self.assertEqual(leaf.shape[:2], (3, 2))
    chex.assert_trees_all_equal(whole, jax.vmap(quantize.nf4)(weight))
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x[1, 1], whole), quantize.nf4(weight[1, 1]))
    np.testing.assert_allclose(
        jax.vmap(quantize.dense)(whole), quantize.dense(whole), rtol=1e-6)

  def test_nan_spoils_its_own_matrix(self):
    weight = _normal(2, 64, 20)
    weight[1, 5, 6] = np.nan
    actual = _dense(quantize.nf4(weight))
    self.assertTrue(np.isnan(actual[1]).all())
    self.assertTrue(np.isfinite(actual[0]).all())

  def test_rejects(self):
    for weight, actual in ((np.ones(4, 'f'), r'float32\[4\]'),
                           (np.ones((2, 2), 'i'), r'int32\[2, 2\]')):
      with self.assertRaisesRegex(ValueError, f'weight must .* got {actual}'):
        quantize.nf4(weight)


@functools.cache
def _model():
  config = transformer.make_config(
      'llama', vocab_size=V, hidden_size=64, num_layers=3, num_heads=4,
      intermediate_size=128)
  params = jax.jit(transformer.init, static_argnums=0)(
      config, jax.random.key(0))
  config, adapter = lora.init(
      config, params, jax.random.key(1), rank=2, alpha=4)
  adapter = jax.tree.map(
      lambda x: x + .05 * _normal(*x.shape, seed=x.size), adapter)
  return config, params, quantize.quantize_params(params), adapter


def _rows(seed=0):
  return np.random.default_rng(seed).integers(0, V, (B, T), np.int32)


_logits = jax.jit(transformer.logits, static_argnums=0)


class ModelTest(parameterized.TestCase):

  def test_which_are_quantised(self):
    _, params, small, _ = _model()
    for name in ('embed', 'unembed', 'norm'):
      self.assertIs(small[name], params[name])
    for name, entry in small['layers'].items():
      self.assertEqual(
          quantize.is_quantized(entry.get('kernel')), 'kernel' in entry, name)
    some = quantize.quantize_params(params, 'layers/(q|down)')['layers']
    self.assertTrue(quantize.is_quantized(some['q']['kernel']))
    self.assertIs(some['k']['kernel'], params['layers']['k']['kernel'])
    self.assertLess(
        quantize.nbytes(small['layers']),
        .6 * sum(x.size for x in jax.tree.leaves(params['layers'])))
    chex.assert_trees_all_equal(quantize.dense(params), params)
    for targets, actual in (('embed', 'embed, which is no'), ('x', 'nothing')):
      with self.assertRaisesRegex(ValueError, f'{actual}.*layers/down'):
        quantize.quantize_params(params, targets)
    with self.assertRaisesRegex(ValueError, 'layers/down is quantised alread'):
      quantize.quantize_params(small)

  def test_forward_is_that_of_the_dense_weights(self):
    config, params, small, adapter = _model()
    given = {**small, 'adapter': adapter}
    actual = _logits(config, given, _rows())
    dense = {**quantize.dense(small), 'adapter': adapter}
    np.testing.assert_allclose(
        actual, _logits(config, dense, _rows()), atol=1e-5)
    full = _logits(config, {**params, 'adapter': adapter}, _rows())
    self.assertBetween(np.abs(actual - full).max(), 1e-3, 1)
    merged = lora.merge(config, small, adapter)
    self.assertEqual(merged['layers']['q']['kernel'].dtype, jnp.float32)
    np.testing.assert_allclose(
        actual, _logits(config, merged, _rows()), atol=1e-5)

  def test_sampler_equals_the_training_forward(self):
    config, _, small, adapter = _model()
    params = {**small, 'adapter': adapter}
    batch = sampling.sample(
        config, params, _rows()[:, :2], np.array([2, 1]), jax.random.key(5),
        num_samples=2, max_new_tokens=3, eos_id=2, pad_id=0)
    out = jax.jit(policy.forward, static_argnums=0)(config, params, batch)
    np.testing.assert_allclose(
        np.where(batch.mask, out.logprobs, 0), batch.old_logprobs, atol=1e-5)

  def test_gradient_of_adapters_is_that_on_the_dense_base(self):
    """For two members on one base; `lora_test` has the train step."""
    config, _, small, adapter = _model()
    loss = lambda a, base: jnp.square(transformer.logits(
        config, {**base, 'adapter': a}, _rows())).mean()
    grad = jax.jit(jax.vmap(jax.grad(loss), in_axes=(0, None)))
    members = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), adapter)
    actual = grad(members, small)
    for path, leaf in jax.tree_util.tree_leaves_with_path(actual):
      for one in leaf:
        self.assertGreater(np.abs(one).max(), 0, jax.tree_util.keystr(path))
    chex.assert_trees_all_close(
        actual, grad(members, quantize.dense(small)), atol=1e-5)

  def test_no_dense_weight_is_kept_for_the_backward_pass(self):
    """What the gradient keeps, and how much memory its program takes."""
    config, params, small, adapter = _model()
    kernels = sum(entry['kernel'].size * 4 for entry in params[
        'layers'].values() if 'kernel' in entry)

    def kept(config, base, apply=transformer.logits):
      run = lambda a, base: apply(config, {**base, 'adapter': a}, _rows())
      residuals = jax.eval_shape(
          lambda a, base: jax.vjp(lambda a: run(a, base), a)[1],
          adapter, base)
      loss = lambda a, base: jnp.square(run(a, base)).sum()
      memory = jax.jit(jax.grad(loss)).lower(
          adapter, base).compile().memory_analysis()
      return quantize.nbytes(residuals), memory.temp_size_in_bytes

    actual, temporary = kept(config, small)
    # The codes, the adapter, the layers' inputs, and what is not in layers.
    self.assertLess(actual, .5 * kernels)
    self.assertLess(temporary, .9 * kernels)  # one layer of three, dense
    # Made dense before the scan, all of them are kept.
    def eager(config, params, rows):
      params = {**params, 'layers': quantize.dense(params['layers'])}
      return transformer.logits(config, params, rows)
    actual, temporary = kept(config, small, eager)
    self.assertGreater(actual, kernels)
    self.assertGreater(temporary, kernels)


if __name__ == '__main__':
  absltest.main()
