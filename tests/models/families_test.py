"""Tests for rlhf_jax.models.families."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import transformers

from rlhf_jax import errors
from rlhf_jax.models import config as config_lib
from rlhf_jax.models import families

# As published, without the fields that say nothing of the shape.
PUBLISHED = {
    'openai-community/gpt2': (
        dict(model_type='gpt2', activation_function='gelu_new', n_ctx=1024,
             n_embd=768, n_head=12, n_layer=12, n_positions=1024,
             layer_norm_epsilon=1e-5, vocab_size=50257, resid_pdrop=.1),
        config_lib.make_config(
            'gpt2', vocab_size=50257, hidden_size=768, num_layers=12,
            num_heads=12)),
    'EleutherAI/gpt-neo-125m': (
        dict(model_type='gpt_neo', activation_function='gelu_new',
             attention_layers=['global', 'local'] * 6,
             attention_types=[[['global', 'local'], 6]], hidden_size=768,
             intermediate_size=None, max_position_embeddings=2048,
             num_heads=12, num_layers=12, vocab_size=50257, window_size=256,
             layer_norm_epsilon=1e-5),
        config_lib.make_config(
            'gpt_neo', vocab_size=50257, hidden_size=768, num_layers=12,
            num_heads=12, windows=[0, 256] * 6)),
    'EleutherAI/gpt-j-6b': (
        dict(model_type='gptj', activation_function='gelu_new', n_embd=4096,
             n_head=16, n_inner=None, n_layer=28, n_positions=2048,
             rotary=True, rotary_dim=64, scale_attn_weights=True,
             tie_word_embeddings=False, vocab_size=50400),
        config_lib.make_config(
            'gptj', vocab_size=50400, hidden_size=4096, num_layers=28,
            num_heads=16, rotary_fraction=.25)),
    'EleutherAI/pythia-70m': (
        dict(model_type='gpt_neox', hidden_act='gelu', hidden_size=512,
             intermediate_size=2048, layer_norm_eps=1e-5,
             max_position_embeddings=2048, num_attention_heads=8,
             num_hidden_layers=6, rotary_emb_base=10000, rotary_pct=.25,
             tie_word_embeddings=False, use_parallel_residual=True,
             vocab_size=50304, torch_dtype='float16'),
        config_lib.make_config(
            'gpt_neox', vocab_size=50304, hidden_size=512, num_layers=6,
            num_heads=8)),
    'meta-llama/Llama-2-7b': (
        dict(model_type='llama', hidden_act='silu', hidden_size=4096,
             intermediate_size=11008, num_attention_heads=32,
             num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1,
             rms_norm_eps=1e-5, rope_scaling=None, vocab_size=32000,
             tie_word_embeddings=False),
        config_lib.make_config(
            'llama', vocab_size=32000, hidden_size=4096, num_layers=32,
            num_heads=32, intermediate_size=11008)),
    'meta-llama/Llama-3.2-1B': (
        dict(model_type='llama', attention_bias=False, head_dim=64,
             hidden_act='silu', hidden_size=2048, intermediate_size=8192,
             max_position_embeddings=131072, mlp_bias=False,
             num_attention_heads=32, num_hidden_layers=16,
             num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=500000.,
             rope_scaling=dict(
                 factor=32., high_freq_factor=4., low_freq_factor=1.,
                 original_max_position_embeddings=8192, rope_type='llama3'),
             tie_word_embeddings=True, vocab_size=128256),
        config_lib.make_config(
            'llama', vocab_size=128256, hidden_size=2048, num_layers=16,
            num_heads=32, num_kv_heads=8, intermediate_size=8192,
            rope_theta=500000., tie_embeddings=True,
            rope_scaling=dict(kind='llama3', factor=32.))),
    'mistralai/Mistral-7B-v0.1': (
        dict(model_type='mistral', hidden_act='silu', hidden_size=4096,
             intermediate_size=14336, num_attention_heads=32,
             num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-5,
             rope_theta=10000., sliding_window=4096, vocab_size=32000),
        config_lib.make_config(
            'mistral', vocab_size=32000, hidden_size=4096, num_layers=32,
            num_heads=32, num_kv_heads=8, intermediate_size=14336,
            windows=[4096] * 32)),
    'Qwen/Qwen2-0.5B': (
        dict(model_type='qwen2', hidden_act='silu', hidden_size=896,
             intermediate_size=4864, max_window_layers=24,
             num_attention_heads=14, num_hidden_layers=24,
             num_key_value_heads=2, rms_norm_eps=1e-6, rope_theta=1e6,
             sliding_window=131072, tie_word_embeddings=True,
             use_sliding_window=False, vocab_size=151936),
        config_lib.make_config(
            'qwen2', vocab_size=151936, hidden_size=896, num_layers=24,
            num_heads=14, num_kv_heads=2, intermediate_size=4864,
            rope_theta=1e6, tie_embeddings=True)),
    'Qwen/Qwen3-0.6B': (
        dict(model_type='qwen3', attention_bias=False, head_dim=128,
             hidden_act='silu', hidden_size=1024, intermediate_size=3072,
             max_window_layers=28, num_attention_heads=16,
             num_hidden_layers=28, num_key_value_heads=8, rms_norm_eps=1e-6,
             rope_scaling=None, rope_theta=1e6, sliding_window=None,
             tie_word_embeddings=True, use_sliding_window=False,
             vocab_size=151936),
        config_lib.make_config(
            'qwen3', vocab_size=151936, hidden_size=1024, num_layers=28,
            num_heads=16, num_kv_heads=8, intermediate_size=3072,
            head_size=128, rope_theta=1e6, tie_embeddings=True)),
}
SMALL = dict(vocab_size=40, hidden_size=16, num_hidden_layers=2,
             num_attention_heads=4)
ROPE_3 = dict(rope_type='llama3', factor=2., low_freq_factor=1.,
              high_freq_factor=4., original_max_position_embeddings=16)


def _json(family, **kwargs):
  small = dict(SMALL)
  if family == 'gpt_neo':
    small['attention_types'] = [[['global', 'local'], 1]]
  if family == 'gpt_neox':
    small['hidden_size'] = 32  # a quarter of a head turns
  if family == 'gptj':
    small['rotary_dim'] = 2
  if family in ('qwen2', 'qwen3', 'mistral'):
    small['num_key_value_heads'] = 2
  return small | dict(model_type=family) | kwargs


def _shape(config):
  return config.replace(extra='')


class ReadTest(parameterized.TestCase):

  @parameterized.named_parameters((k, *v) for k, v in PUBLISHED.items())
  def test_published(self, raw, expected):
    self.assertEqual(_shape(families.from_json(raw)), expected)

  @parameterized.parameters(*families.FAMILIES)
  def test_defaults_are_those_of_transformers(self, family):
    theirs = transformers.CONFIG_MAPPING[family]().to_dict()
    self.assertEqual(_shape(families.from_json(theirs)),
                     _shape(families.from_json(dict(model_type=family))))

  @parameterized.parameters(
      ({}, {}), (dict(rope_theta=7.), dict(rope_theta=7.)),
      (dict(rope_theta=7., rope_scaling=dict(type='linear', factor=2.)),
       dict(rope_type='linear', rope_theta=7., factor=2.)),
      (dict(rope_theta=7., rope_scaling=ROPE_3), dict(rope_theta=7., **ROPE_3)),
      (dict(rope_scaling=dict(rope_type='default')), None))
  def test_rope_of_transformers_4_and_5(self, old, new):
    self.assertEqual(
        _shape(families.from_json(_json('llama', **old))),
        _shape(families.from_json(_json('llama', rope_parameters=new))))

  def test_rope_of_neox(self):
    old = families.from_json(_json(
        'gpt_neox', rotary_pct=.5, rotary_emb_base=50,
        rope_scaling=dict(type='linear', factor=2.)))
    new = families.from_json(_json('gpt_neox', rope_parameters=dict(
        rope_type='linear', rope_theta=50., partial_rotary_factor=.5,
        factor=2.)))
    self.assertEqual(_shape(old), _shape(new))
    self.assertEqual(old.rotary_size, 4)
    self.assertEqual(old.rope_theta, 50)
    self.assertEqual(old.rope_scaling.factor, 2)

  def test_llama3_was_trained_on_what_it_says_or_on_its_length(self):
    for given, expected in ((None, 99), (16, 16)):
      scaling = {k: v for k, v in ROPE_3.items() if k[:2] != 'or'}
      if given:
        scaling['original_max_position_embeddings'] = given
      actual = families.from_json(_json(
          'llama', rope_scaling=scaling, max_position_embeddings=99))
      self.assertEqual(actual.rope_scaling.original_length, expected)
      self.assertEqual(
          families.to_json(actual)['max_position_embeddings'], 99)

  @parameterized.parameters(
      ('qwen2', {}, ()),
      ('qwen2', dict(use_sliding_window=True, max_window_layers=1), (0, 5)),
      ('qwen2', dict(use_sliding_window=True, max_window_layers=2), ()),
      ('qwen2', dict(use_sliding_window=True, max_window_layers=9,
                     layer_types=['sliding_attention', 'full_attention']),
       (5, 0)),
      ('qwen3', dict(use_sliding_window=True, max_window_layers=0), (5, 5)),
      ('mistral', {}, (5, 5)), ('mistral', dict(sliding_window=None), ()),
      ('mistral', dict(layer_types=['sliding_attention'] * 2), (5, 5)),
      ('llama', dict(layer_types=['full_attention'] * 2), ()),
      ('gpt_neo', dict(window_size=3), (0, 3)),
      ('gpt_neo', dict(attention_types=[[['global'], 2]]), ()))
  def test_windows(self, family, change, expected):
    raw = _json(family, **(dict(sliding_window=5) | change))
    self.assertEqual(families.from_json(raw).windows, expected)

  @parameterized.parameters(
      ('gpt2', {}, 'attention_scale', None),
      ('gpt2', dict(scale_attn_weights=False), 'attention_scale', 1.),
      ('gpt2', dict(scale_attn_by_inverse_layer_idx=True), 'scale_by_depth',
       True),
      ('gpt2', dict(n_inner=None), 'intermediate_size', 64),
      ('gpt2', dict(n_inner=7), 'intermediate_size', 7),
      ('gpt2', dict(n_positions=7), 'max_positions', 7),
      ('gpt2', dict(tie_word_embeddings=False), 'tie_embeddings', False),
      ('gpt_neo', {}, 'attention_scale', 1.),
      ('gpt_neo', dict(attention_types=[[['local'], 1], [['global'], 1]]),
       'windows', (256, 0)),
      ('gptj', {}, 'residual', 'shared'),
      ('gptj', dict(tie_word_embeddings=True), 'tie_embeddings', True),
      ('gpt_neox', {}, 'residual', 'parallel'),
      ('gpt_neox', dict(use_parallel_residual=False), 'residual',
       'sequential'),
      ('gpt_neox', dict(attention_bias=False), 'attention_bias', False),
      ('gpt_neox', dict(attention_bias=False), 'output_bias', False),
      ('gpt_neox', dict(rotary_pct=1), 'rotary_fraction', 1.),
      ('gpt_neox', dict(layer_norm_eps=.5), 'norm_epsilon', .5),
      ('llama', {}, 'num_kv_heads', 4),
      ('llama', dict(num_key_value_heads=None), 'num_kv_heads', 4),
      ('llama', dict(num_key_value_heads=1), 'num_kv_heads', 1),
      ('llama', dict(head_dim=None), 'head_size', 4),
      ('llama', dict(head_dim=6), 'head_size', 6),
      ('llama', dict(attention_bias=True), 'attention_bias', True),
      ('llama', dict(attention_bias=True), 'output_bias', True),
      ('llama', dict(mlp_bias=True), 'mlp_bias', True),
      ('llama', dict(rms_norm_eps=.5), 'norm_epsilon', .5),
      ('mistral', dict(num_attention_heads=8, num_key_value_heads=None),
       'num_kv_heads', 8),
      ('qwen2', {}, 'attention_bias', True),
      ('qwen2', {}, 'output_bias', False),
      ('qwen3', {}, 'head_size', 128),
      ('qwen3', {}, 'qk_norm', True),
      ('qwen3', dict(attention_bias=True), 'output_bias', True))
  def test_flags(self, family, change, field, expected):
    actual = getattr(families.from_json(_json(family, **change)), field)
    self.assertEqual((actual, type(actual)), (expected, type(expected)))

  def test_rotary_dim_is_kept(self):
    for size in range(2, 150):
      for turned in range(2, size + 1, 2):
        config = families.from_json(_json(
            'gptj', hidden_size=4 * size, rotary_dim=turned))
        self.assertEqual(config.rotary_size, turned)
    self.assertEqual(families.to_json(config)['rotary_dim'], turned)

  @parameterized.parameters('gelu_new', 'gelu_pytorch_tanh', 'gelu_fast')
  def test_names_of_one_activation(self, name):
    actual = families.from_json(_json('llama', hidden_act=name))
    self.assertEqual(actual.activation, 'gelu_new')


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      # Of what we do not have.
      ('llama', dict(model_type='gemma2'), 'model_type', 'gemma2', 'mistral'),
      ('llama', dict(model_type=None), 'model_type', 'null'),
      ('llama', dict(model_type=['llama']), 'model_type'),
      ('gpt2', dict(activation_function='quick_gelu'), 'activation_function',
       'quick_gelu', 'gelu_new'),
      ('llama', dict(hidden_act='relu2'), 'hidden_act', 'relu2', 'silu'),
      ('gpt2', dict(add_cross_attention=True), 'add_cross_attention', 'true'),
      ('gpt2', dict(pruned_heads={'0': [1]}), 'pruned_heads'),
      ('llama', dict(is_encoder_decoder=True), 'is_encoder_decoder'),
      ('llama', dict(quantization_config=dict(bits=4)), 'quantization_config',
       '"bits": 4'),
      ('llama', dict(rope_scaling=dict(type='dynamic', factor=2.)),
       'rope_type', 'dynamic', 'llama3'),
      ('qwen2', dict(rope_parameters=dict(rope_type='yarn', factor=4.)),
       'rope_type', 'yarn'),
      ('llama', dict(rope_parameters=dict(full_attention={})),
       'rope_parameters'),
      ('llama', dict(partial_rotary_factor=.5), 'partial_rotary_factor', '0.5'),
      ('qwen3', dict(rope_parameters=dict(partial_rotary_factor=.5)),
       'partial_rotary_factor', '0.5'),
      ('gptj', dict(rotary_dim=None), 'rotary_dim', 'null'),
      ('gptj', dict(rotary_dim=6), 'rotary_dim', '6', '4'),
      ('gptj', dict(rotary_dim=3), 'rotate', '3'),
      ('gpt_neox', dict(rotary_pct=1.5), 'rotary_pct', '1.5'),
      ('gpt_neo', dict(attention_types=[[['global', 'strided'], 1]]),
       'attention_types', 'strided'),
      ('gpt_neo', dict(attention_types=[[['global'], 3]]), 'attention_types'),
      ('gpt_neo', dict(attention_types=[[['global'], 10**9]]),
       'attention_types'),
      ('gpt_neo', dict(attention_types='local'), 'attention_types'),
      ('qwen2', dict(layer_types=['chunked_attention'] * 2), 'layer_types',
       'chunked_attention'),
      ('qwen2', dict(layer_types=['full_attention']), 'layer_types'),
      ('qwen2', dict(layer_types=['sliding_attention'] * 2), 'layer_types'),
      ('mistral', dict(layer_types=['full_attention'] * 2), 'layer_types',
       '4096'),
      ('llama', dict(layer_types=['sliding_attention'] * 2), 'layer_types'),
      # Of what cannot be.
      ('llama', dict(num_hidden_layers=0), 'num_hidden_layers', '0'),
      ('llama', dict(num_hidden_layers=10**9), 'num_hidden_layers'),
      ('llama', dict(hidden_size='16'), 'hidden_size', '"16"'),
      ('llama', dict(hidden_size=True), 'hidden_size', 'true'),
      ('llama', dict(hidden_size=16.), 'hidden_size', '16.0'),
      ('llama', dict(hidden_size=18, head_dim=4), 'hidden_size', '18'),
      ('llama', dict(num_key_value_heads=3), 'num_kv_heads', '3'),
      ('llama', dict(rms_norm_eps=0), 'rms_norm_eps', '0'),
      ('llama', dict(rope_theta='big'), 'rope_theta', '"big"'),
      ('llama', dict(attention_bias='no'), 'attention_bias', '"no"'),
      ('llama', dict(rope_scaling=dict(type='linear')), 'factor', 'null'),
      ('llama', dict(rope_scaling=dict(type='linear', factor=.5)), 'factor',
       '0.5'),
      ('llama', dict(rope_scaling=7), 'rope_scaling', '7'),
      ('llama', dict(rope_scaling=ROPE_3 | dict(high_freq_factor=1.)),
       'high_frequency_factor'),
      ('mistral', dict(sliding_window=0), 'sliding_window', '0'),
      # Of what contradicts itself.
      ('gpt2', dict(n_embd=32), 'n_embd', 'hidden_size', '32', '16'),
      ('llama', dict(rope_theta=5., rope_parameters=dict(rope_theta=6.)),
       'rope_theta', '5', '6'),
      ('llama', dict(rope_scaling=dict(type='linear', factor=2.),
                     rope_parameters=dict(type='linear', factor=3.)),
       'rope_scaling', 'rope_parameters'),
      ('gpt_neox', dict(rotary_pct=.5, rope_parameters=dict(
          partial_rotary_factor=.25)), 'rotary_pct', 'partial_rotary_factor'))
  def test_reading(self, family, change, *words):
    families.from_json(_json(family))
    with self.assertRaises(errors.ConfigError) as caught:
      families.from_json(_json(family, **change))
    message = str(caught.exception)
    self.assertNotIn('\n', message)
    self.assertLess(len(message), 300)
    for word in words:
      self.assertIn(word, message)

  @parameterized.parameters(
      ('llama', dict(windows=(4, 4)), 'windows'),
      ('llama', dict(qk_norm=True), 'qk_norm'),
      ('llama', dict(norm='layer'), 'norm'),
      ('llama', dict(attention_bias=True), 'output_bias'),
      ('llama', dict(rotary_fraction=.5), 'rotary_fraction'),
      ('llama', dict(residual='parallel'), 'residual'),
      ('llama', dict(attention_scale=1.), 'attention_scale'),
      ('mistral', dict(windows=(0, 4)), 'windows'),
      ('mistral', dict(attention_bias=True), 'attention_bias'),
      ('qwen2', dict(windows=(3, 4)), 'windows'),
      ('qwen2', dict(attention_bias=False), 'attention_bias'),
      ('gpt2', dict(attention_scale=.1), 'attention_scale'),
      ('gpt2', dict(mlp='gated'), 'mlp'),
      ('gpt2', dict(num_kv_heads=2), 'num_kv_heads'),
      ('gpt2', dict(head_size=4), 'head_size'),
      ('gpt2', dict(attention_bias=False), 'attention_bias'),
      ('gpt_neo', dict(attention_scale=None), 'attention_scale'),
      ('gptj', dict(rope_theta=7.), 'rope_theta'),
      ('gptj', dict(unembed_bias=False), 'unembed_bias'),
      ('gpt_neox', dict(residual='shared'), 'residual'),
      ('gpt_neox', dict(output_bias=False), 'output_bias'))
  def test_writing(self, family, change, name):
    config = config_lib.make_config(
        family, vocab_size=40, hidden_size=32, num_layers=2, num_heads=4)
    families.to_json(config)
    with self.assertRaisesRegex(errors.ConfigError, f'^{name} is '):
      families.to_json(config.replace(**change))

  def test_writing_another_family(self):
    config = config_lib.make_config(
        'llama', vocab_size=40, hidden_size=32, num_layers=2, num_heads=4)
    with self.assertRaisesRegex(errors.ConfigError, '"mamba".*gpt_neox'):
      families.to_json(config.replace(family='mamba'))


class WriteTest(parameterized.TestCase):

  @parameterized.named_parameters((k, *v) for k, v in PUBLISHED.items())
  def test_round_trip(self, raw, _):
    config = families.from_json(raw)
    written = json.loads(json.dumps(families.to_json(config)))
    self.assertEqual(families.from_json(written), config)

  def test_other_fields_are_kept(self):
    raw = _json('llama', eos_token_id=[7, 8], initializer_range=.01,
                attention_dropout=.5, architectures=['X'], torch_dtype='int8',
                _name_or_path='x', transformers_version='3')
    config = families.from_json(raw)
    self.assertIsInstance(hash(config), int)
    self.assertEqual(config.dropout, 0)
    written = families.to_json(config)
    for name in ('eos_token_id', 'initializer_range', 'attention_dropout'):
      self.assertEqual(written[name], raw[name])
    self.assertNotIn('bos_token_id', written)
    self.assertNoCommonElements(
        written, ['torch_dtype', '_name_or_path', 'transformers_version'])
    self.assertEqual(written['architectures'], ['LlamaForCausalLM'])

  def test_what_is_computed_does_not_matter(self):
    config = families.from_json(_json('llama'))
    self.assertEqual(families.to_json(config), families.to_json(config.replace(
        dtype='bfloat16', remat='full', dropout=.1, attention='xla',
        adapter_scale=2.)))

  def test_extra_fields(self):
    config = families.from_json(_json('gpt2', eos_token_id=7, bos_token_id=8))
    written = families.to_json(config, extra=dict(eos_token_id=9))
    self.assertEqual(written['eos_token_id'], 9)
    self.assertEqual(written['bos_token_id'], 8)
    for name in ('n_embd', 'model_type', 'torch_dtype'):
      with self.assertRaisesRegex(ValueError, f'extra has {name}'):
        families.to_json(config, extra={name: 1})

  def test_fresh_models_have_nobody_elses_ids(self):
    written = families.to_json(config_lib.make_config(
        'gpt2', vocab_size=40, hidden_size=32, num_layers=2, num_heads=4))
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
      self.assertIsNone(written[name])

  def test_classifier(self):
    config = families.from_json(_json('gpt_neox'))
    written = families.to_json(config, classifier=True)
    self.assertEqual(
        written['architectures'], ['GPTNeoXForSequenceClassification'])
    self.assertEqual(written['id2label'], {'0': 'LABEL_0'})

  @parameterized.parameters(*families.FAMILIES)
  def test_transformers_reads_it(self, family):
    name = 'rotary_emb_base' if family == 'gpt_neox' else 'rope_theta'
    config = families.from_json(_json(family, **{name: 50.}))
    theirs = transformers.CONFIG_MAPPING[family].from_dict(
        families.to_json(config))
    self.assertEqual(
        _shape(families.from_json(theirs.to_dict())), _shape(config))


if __name__ == '__main__':
  absltest.main()
