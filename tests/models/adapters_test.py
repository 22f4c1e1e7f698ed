"""Tests for rlhf_jax.models.adapters; against PEFT itself: peers/peft_test."""

import functools
import json
import pathlib
import pickle
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy

from rlhf_jax import errors
from rlhf_jax.models import adapters
from rlhf_jax.models import lora
from rlhf_jax.models import transformer

V, L, D = 13, 2, 16


@functools.cache
def _model(family):
  config = transformer.make_config(
      family, vocab_size=V, hidden_size=D, num_layers=L, num_heads=2,
      intermediate_size=24, **({} if family == 'llama' else
                               dict(rotary_fraction=.5)
                               if family != 'gpt2' else {}))
  return config, jax.jit(transformer.init, static_argnums=0)(
      config, jax.random.key(0))


def _trained(family, targets='layers/(q|k|v|o|gate|up|down)', rank=2):
  config, adapter = lora.init(
      *_model(family), jax.random.key(1), rank=rank, alpha=3, targets=targets,
      dropout=.25)
  rng = np.random.default_rng(2)
  return config, jax.tree.map(
      lambda x: np.asarray(x + rng.normal(size=x.shape), np.float32), adapter)


class RoundTripTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    held = tempfile.TemporaryDirectory()
    self.addCleanup(held.cleanup)
    self.directory = pathlib.Path(held.name) / 'adapter'

  def _raw(self):
    return json.loads((self.directory / 'adapter_config.json').read_text())

  def _tensors(self):
    return safetensors.numpy.load_file(
        self.directory / 'adapter_model.safetensors')

  def _save(self, family='llama', **kwargs):
    config, adapter = _trained(family, **kwargs)
    adapters.save(self.directory, config, adapter, base='a/base')
    return config, adapter

  @parameterized.product(
      family=('llama', 'gpt2', 'gptj', 'gpt_neox'),
      targets=('layers/(q|k|v|o|gate|up|down)', 'layers/(q|v)'))
  def test_exact(self, family, targets):
    config, adapter = self._save(family, targets=targets)
    again, actual = adapters.load(self.directory, _model(family)[0])
    self.assertEqual(again, config)
    self.assertEqual(again.adapter_scale, 1.5)
    self.assertEqual(again.adapter_dropout, .25)
    jax.tree.map(np.testing.assert_array_equal, actual, adapter)

  def test_names_and_numbers(self):
    _, adapter = self._save(targets='layers/(q|down)')
    raw, tensors = self._raw(), self._tensors()
    self.assertEqual((raw['r'], raw['lora_alpha']), (2, 3))
    self.assertEqual(raw['base_model_name_or_path'], 'a/base')
    self.assertEqual(raw['target_modules'],
                     ['mlp.down_proj', 'self_attn.q_proj'])
    self.assertEqual(raw['rank_pattern'], {})
    self.assertLen(tensors, 8)
    path = 'base_model.model.model.layers.1.mlp.down_proj.'
    factors = adapter['layers']['down']
    np.testing.assert_array_equal(
        tensors[f'{path}lora_A.weight'], factors['a'][1].T)
    np.testing.assert_array_equal(
        tensors[f'{path}lora_B.weight'], factors['b'][1].T)

  def test_rotary_pairs_of_gptj(self):
    """Its file has the turned dimensions of a head as neighbours."""
    _, adapter = self._save('gptj', targets='layers/(q|v)')
    path = 'base_model.model.transformer.h.0.attn.'
    order = [0, 2, 1, 3, 4, 5, 6, 7]  # of heads of 8, half of them turned
    order = np.concatenate([order, np.add(order, 8)])
    for name, at in (('q', order), ('v', np.arange(16))):
      np.testing.assert_array_equal(
          self._tensors()[f'{path}{name}_proj.lora_B.weight'],
          adapter['layers'][name]['b'][0].T[at])

  def test_one_map_of_gpt2(self):
    """q and v as one adapter of rank 4 of the map that holds k as well."""
    _, adapter = self._save('gpt2', targets='layers/(q|v|o)')
    raw, tensors = self._raw(), self._tensors()
    self.assertEqual(raw['r'], 2)
    self.assertEqual(raw['rank_pattern'], {'attn.c_attn': 4})
    self.assertEqual(raw['alpha_pattern'], {'attn.c_attn': 6})
    self.assertTrue(raw['fan_in_fan_out'])
    a, b = (tensors[f'base_model.model.transformer.h.1.attn.c_attn.lora_{x}'
                    '.weight'] for x in 'AB')
    self.assertEqual((a.shape, b.shape), ((4, D), (3 * D, 4)))
    factors = adapter['layers']
    for i, name in enumerate('qkv'):
      product = (factors[name]['a'][1] @ factors[name]['b'][1]
                 if name != 'k' else np.zeros((D, D)))
      np.testing.assert_allclose(
          (b @ a)[i * D:(i + 1) * D].T, product, atol=1e-5)

  def test_untrained_one_map(self):
    """Nothing says whose the ranks are, and so each has all of them."""
    config, adapter = lora.init(
        *_model('gpt2'), jax.random.key(1), rank=2, alpha=3)
    adapters.save(self.directory, config, adapter, base='x')
    actual = adapters.load(self.directory, config)[1]['layers']
    self.assertEqual(actual['k']['a'].shape, (L, D, 6))
    self.assertEqual(actual['o']['a'].shape, (L, D, 2))
    np.testing.assert_array_equal(actual['k']['b'], 0)

  def test_other_dtypes_are_cast(self):
    _, adapter = self._save()
    path = self.directory / 'adapter_model.safetensors'
    tensors = {k: v.astype(ml_dtypes.bfloat16)
               for k, v in self._tensors().items()}
    safetensors.numpy.save_file(tensors, path)
    actual = adapters.load(self.directory, _model('llama')[0])[1]
    leaf = adapter['layers']['q']['a'].astype(ml_dtypes.bfloat16)
    self.assertEqual(actual['layers']['q']['a'].dtype, np.float32)
    np.testing.assert_array_equal(actual['layers']['q']['a'], leaf)

  @parameterized.parameters(
      ('use_dora', True), ('modules_to_save', ['lm_head']), ('bias', 'all'),
      ('layer_replication', [[0, 1]]), ('lora_bias', True),
      ('peft_type', 'LOHA'), ('task_type', 'SEQ_CLS'),
      ('init_lora_weights', 'pissa'), ('target_parameters', ['x']),
      ('trainable_token_indices', [1]), ('a_field_of_the_future', 1),
      ('r', 0), ('r', 2.5), ('r', None), ('r', True), ('lora_alpha', -1),
      ('lora_alpha', 'x'), ('lora_dropout', 1), ('lora_dropout', 'x'),
      ('rank_pattern', [1]), ('rank_pattern', {'(a+)+': 2}),
      ('alpha_pattern', {'q_proj': 0}))
  def test_refused_fields(self, name, value):
    self._save()
    raw = self._raw() | {name: value}
    (self.directory / 'adapter_config.json').write_text(json.dumps(raw))
    with self.assertRaisesRegex(
        errors.ConfigError, f"adapter_config.json: '{name}' is ") as caught:
      adapters.load(self.directory, _model('llama')[0])
    self.assertNotIn('\n', str(caught.exception))

  def test_patterns_and_rank_stabilised_scale(self):
    """They are folded into b, since a decoder has one scale."""
    _, adapter = self._save(targets='layers/(q|down)')
    raw = self._raw() | {'use_rslora': True, 'alpha_pattern': {'q_proj': 12}}
    (self.directory / 'adapter_config.json').write_text(json.dumps(raw))
    config, actual = adapters.load(self.directory, _model('llama')[0])
    self.assertAlmostEqual(config.adapter_scale, 3 / 2**.5)
    for name, factor in (('q', 4), ('down', 1)):
      np.testing.assert_allclose(actual['layers'][name]['b'],
                                 factor * adapter['layers'][name]['b'],
                                 rtol=1e-6)

  def test_patterns_may_name_a_layer(self):
    _, adapter = self._save(targets='layers/(q|down)')
    raw = self._raw() | {'alpha_pattern': {
        'layers.1.self_attn.q_proj': 6, 'layers.0.mlp.down_proj': 1.5}}
    path = self.directory / 'adapter_config.json'
    path.write_text(json.dumps(raw))
    alpha = raw['lora_alpha']
    actual = adapters.load(self.directory, _model('llama')[0])[1]['layers']
    for name, alphas in (('q', (alpha, 6)), ('down', (1.5, alpha))):
      factor = np.float32(alphas) / alpha
      np.testing.assert_allclose(
          actual[name]['b'],
          factor[:, None, None] * adapter['layers'][name]['b'], rtol=1e-6)
    path.write_text(json.dumps(raw | {
        'rank_pattern': {'layers.1.self_attn.q_proj': 4}}))
    tensors = self._tensors()
    for key in tensors:
      if 'layers.1.self_attn.q_proj' in key:
        tensors[key] = np.concatenate(
            [tensors[key]] * 2, axis=int('lora_B' in key))
    safetensors.numpy.save_file(
        tensors, self.directory / 'adapter_model.safetensors')
    with self.assertRaisesRegex(
        errors.CheckpointError,
        r"q_proj' has another rank in another layer \(2 to 4\)"):
      adapters.load(self.directory, _model('llama')[0])

  @parameterized.named_parameters(
      ('missing', lambda t, k: t.pop(k), 'is missing'),
      ('shape', lambda t, k: t.update({k: t[k][:, :-1].copy()}), 'has shape'),
      ('nan', lambda t, k: t.update({k: t[k] * np.nan}), 'has a NaN'),
      ('foreign', lambda t, k: t.update({'lm_head.lora_A.weight': t[k]}),
       'is no factor of a linear map'),
      ('layer', lambda t, k: t.update({k.replace('.0.', '.2.'): t[k]}),
       r"layers.2.self_attn.q_proj.lora_A.weight' is no factor"))
  def test_refused_tensors(self, spoil, message):
    self._save()
    tensors = self._tensors()
    spoil(tensors, 'base_model.model.model.layers.0.self_attn.q_proj.lora_A'
          '.weight')
    safetensors.numpy.save_file(
        tensors, self.directory / 'adapter_model.safetensors')
    with self.assertRaisesRegex(errors.CheckpointError, message):
      adapters.load(self.directory, _model('llama')[0])

  def test_another_model(self):
    self._save('gpt2')
    with self.assertRaisesRegex(errors.CheckpointError, 'of this llama model'):
      adapters.load(self.directory, _model('llama')[0])

  def test_pickle_is_refused(self):
    self._save()
    (self.directory / 'adapter_model.safetensors').unlink()
    (self.directory / 'adapter_model.bin').write_bytes(pickle.dumps({}))
    with self.assertRaisesRegex(errors.CheckpointError, 'pickle refused'):
      adapters.load(self.directory, _model('llama')[0])

  def test_no_config(self):
    self._save()
    (self.directory / 'adapter_config.json').unlink()
    with self.assertRaisesRegex(errors.CheckpointError, 'adapter_config.json'):
      adapters.load(self.directory, _model('llama')[0])
    (self.directory / 'adapter_config.json').write_text('[]')
    with self.assertRaisesRegex(errors.ConfigError, 'is not an object'):
      adapters.load(self.directory, _model('llama')[0])

  def test_save_rejects(self):
    config, adapter = self._save()
    with self.assertRaisesRegex(errors.CheckpointError, 'is there already'):
      adapters.save(self.directory, config, adapter, base='x')
    other = self.directory / 'other'
    q = adapter['layers']['q']
    for layers, message in (
        ({}, 'no factors'), ({'x': q}, 'layers/x; there are'),
        ({'down': q}, r'layers/down has shapes'),
        ({'q': {'a': q['a'], 'b': q['b'][:, :1]}}, 'layers/q has shapes')):
      with self.assertRaisesRegex(ValueError, message):
        adapters.save(other, config, {'layers': layers}, base='x')
    self.assertFalse(other.exists())

  def test_arrays_of_jax(self):
    config, adapter = _trained('llama')
    adapters.save(self.directory, config,
                  jax.tree.map(jnp.asarray, adapter), base='x')
    actual = adapters.load(self.directory, config)[1]
    jax.tree.map(np.testing.assert_array_equal, actual, adapter)


if __name__ == '__main__':
  absltest.main()
