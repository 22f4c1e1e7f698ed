"""Tests for rlhf_jax.models.config."""

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax.models import config as config_lib


class ConfigTest(parameterized.TestCase):

  def test_make_config(self):
    kwargs = dict(vocab_size=5, hidden_size=8, num_layers=1, num_heads=1)
    config = config_lib.make_config('gpt_neox', **kwargs)
    self.assertEqual(config.intermediate_size, 32)
    self.assertEqual(config.rotary_size, 2)
    self.assertEqual(config.residual, 'parallel')
    self.assertEqual(config.num_kv_heads, 1)
    self.assertEqual(config.head_size, 8)
    config = config_lib.make_config('gpt_neox', rotary_fraction=1., **kwargs)
    self.assertEqual(config.rotary_size, 8)
    self.assertEqual(hash(config), hash(
        config_lib.make_config('gpt_neox', rotary_fraction=1., **kwargs)))
    with self.assertRaisesRegex(ValueError, "family .*gpt_neox.*'gpt5'"):
      config_lib.make_config('gpt5', **kwargs)

  @parameterized.parameters(
      ('vocab_size must be >= 1, got 0', dict(vocab_size=0)),
      ('num_layers must be >= 1, got -1', dict(num_layers=-1)),
      ('intermediate_size must be >= 1, got 0', dict(intermediate_size=0)),
      ('hidden_size 16 .* num_heads 3', dict(num_heads=3)),
      ('num_heads 4 .* num_kv_heads 3', dict(num_heads=4, num_kv_heads=3)),
      ('rotary_fraction 0.25 rotates 1 of 4',
       dict(num_heads=4, rotary_fraction=.25)),
      ("norm must be .*'rms', 'layer'.*got 'batch'", dict(norm='batch')),
      ("mlp must be .*'gated', 'plain'.*got 'relu'", dict(mlp='relu')),
      ("activation must be .*'gelu_new'.*got 'tanh'", dict(activation='tanh')),
      ("residual must be .*'shared'.*got 'none'", dict(residual='none')),
      ("remat must be .*'dots'.*got 'all'", dict(remat='all')),
      ("attention must be .*'cudnn'.*got 'flash'", dict(attention='flash')),
      (r'dropout must be in \[0, 1\), got 1', dict(dropout=1)),
      ('adapter_dropout .* got -0.1', dict(adapter_dropout=-.1)),
      ('windows has 1 entries for 2 layers', dict(windows=[4])),
      ('windows must be >= 0', dict(windows=[4, -1])),
      ('max_positions must be >= 1, got 0', dict(max_positions=0)),
      ("rope_scaling.kind .*'llama3', got 'yarn'",
       dict(rope_scaling=dict(kind='yarn', factor=2.))),
      ('rope_scaling.factor must be >= 1, got 0.5',
       dict(rope_scaling=dict(kind='linear', factor=.5))),
      ('low_frequency_factor < high_frequency_factor, got 4.0 and 4.0',
       dict(rope_scaling=dict(kind='llama3', factor=2.,
                              low_frequency_factor=4.))),
  )
  def test_rejects(self, message, kwargs):
    with self.assertRaisesRegex(ValueError, message):
      config_lib.make_config('llama', **(dict(
          vocab_size=5, hidden_size=16, num_layers=2, num_heads=2)
          | kwargs))


if __name__ == '__main__':
  absltest.main()
