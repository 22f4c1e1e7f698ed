"""Our decoder against transformers, family by family and flag by flag.

  make test-peers, or for the table: python tests/peers/parity_test.py
"""

import functools
import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

torch = pytest.importorskip(
    'torch', reason='parity with transformers needs torch: make test-peers')
import make_goldens as peers  # noqa: E402
import transformers  # noqa: E402 - of use only with torch

from rlhf_jax import sampling  # noqa: E402
from rlhf_jax.models import convert  # noqa: E402
from rlhf_jax.models import tensors  # noqa: E402
from rlhf_jax.models import transformer  # noqa: E402
from rlhf_jax.rewards import models as reward_models  # noqa: E402

V, WIDTH, NEW = 61, 24, 10
LENGTHS = (WIDTH, 13, 6, 1)
TOLERANCE = 1e-4
_TINY = dict(vocab_size=V, hidden_size=32, num_hidden_layers=2,
             num_attention_heads=4)
_GPT2 = _TINY | dict(n_positions=40)
_NEO = _TINY | dict(max_position_embeddings=40, window_size=5,
                    attention_types=[[['global', 'local'], 1]])
_KIN = _TINY | dict(intermediate_size=48, num_key_value_heads=2)
_LINEAR = dict(rope_type='linear', rope_theta=1e3, factor=3.)
_LLAMA3 = dict(rope_type='llama3', rope_theta=500., factor=8.,
               low_freq_factor=1., high_freq_factor=4.,
               original_max_position_embeddings=12)
_ACTIVATIONS = ('gelu', 'gelu_fast', 'gelu_pytorch_tanh', 'relu', 'silu')
CASES = {
    'gpt2': (_GPT2, {
        'defaults': {}, 'n_inner': dict(n_inner=40),
        'untied': dict(tie_word_embeddings=False),
        'scale_attn_weights off': dict(scale_attn_weights=False),
        'scale_attn_by_inverse_layer_idx': dict(
            scale_attn_by_inverse_layer_idx=True, num_hidden_layers=3),
        'reorder_and_upcast_attn': dict(reorder_and_upcast_attn=True),
        'layer_norm_epsilon': dict(layer_norm_epsilon=.1),
        **{a: dict(activation_function=a) for a in _ACTIVATIONS}}),
    'gpt_neo': (_NEO, {
        'defaults': {}, 'untied': dict(tie_word_embeddings=False),
        'global': dict(attention_types=[[['global'], 2]]),
        'local': dict(attention_types=[[['local'], 2]]),
        'local first': dict(attention_types=[[['local', 'global'], 1]]),
        'window_size': dict(window_size=1),
        'intermediate_size': dict(intermediate_size=40)}),
    'gptj': (_TINY | dict(n_positions=40, rotary_dim=4), {
        'defaults': {}, 'rotary_dim 2': dict(rotary_dim=2),
        'rotary_dim of a head': dict(rotary_dim=8),
        'rotary_dim 6 of 7': dict(hidden_size=28, rotary_dim=6),
        'tied': dict(tie_word_embeddings=True), 'n_inner': dict(n_inner=40)}),
    'gpt_neox': (_TINY | dict(intermediate_size=48), {
        'defaults': {},
        'use_parallel_residual off': dict(use_parallel_residual=False),
        'attention_bias off': dict(attention_bias=False),
        'rotary_pct 1': dict(rotary_pct=1.), 'theta': dict(rotary_emb_base=50),
        'linear rope': dict(rope_parameters=_LINEAR),
        'llama3 rope': dict(rope_parameters=_LLAMA3 | dict(
            partial_rotary_factor=.5)),
        'tied': dict(tie_word_embeddings=True),
        'gelu_new': dict(hidden_act='gelu_new')}),
    'llama': (_KIN, {
        'grouped': {}, 'ungrouped': dict(num_key_value_heads=4),
        'one kv head': dict(num_key_value_heads=1),
        'attention_bias': dict(attention_bias=True),
        'mlp_bias': dict(mlp_bias=True), 'head_dim': dict(head_dim=10),
        'tied': dict(tie_word_embeddings=True),
        'theta': dict(rope_parameters=dict(
            rope_type='default', rope_theta=5e5)),
        'linear rope': dict(rope_parameters=_LINEAR),
        'llama3 rope': dict(rope_parameters=_LLAMA3),
        'rms_norm_eps': dict(rms_norm_eps=.1),
        **{a: dict(hidden_act=a) for a in ('gelu', 'relu')}}),
    'mistral': (_KIN | dict(sliding_window=5), {
        'sliding_window': {}, 'no window': dict(sliding_window=None),
        'head_dim': dict(head_dim=10), 'tied': dict(tie_word_embeddings=True)}),
    'qwen2': (_KIN | dict(sliding_window=5), {
        'defaults': {}, 'tied': dict(tie_word_embeddings=True),
        'max_window_layers': dict(
            use_sliding_window=True, max_window_layers=1),
        'layer_types': dict(use_sliding_window=True, layer_types=[
            'sliding_attention', 'full_attention'])}),
    'qwen3': (_KIN | dict(head_dim=10, sliding_window=5), {
        'defaults': {}, 'tied': dict(tie_word_embeddings=True),
        'attention_bias': dict(attention_bias=True),
        'max_window_layers': dict(
            use_sliding_window=True, max_window_layers=0)}),
}
NAMED = [(f'{family}: {flag}', family, flag)
         for family, (_, flags) in CASES.items() for flag in flags]
FIRST = [(family, family, next(iter(flags)))
         for family, (_, flags) in CASES.items()]
# Of flags, those that a cache could get wrong.
CACHED = FIRST + [(f'{family}: {flag}', family, flag) for family, flag in (
    ('gpt2', 'scale_attn_by_inverse_layer_idx'), ('gpt_neo', 'local first'),
    ('gpt_neo', 'window_size'), ('gptj', 'rotary_dim 6 of 7'),
    ('gpt_neox', 'use_parallel_residual off'), ('gpt_neox', 'llama3 rope'),
    ('llama', 'linear rope'), ('llama', 'head_dim'), ('qwen2', 'layer_types'),
    ('qwen3', 'max_window_layers'))]
ERRORS: dict[tuple[str, str], tuple[float, float]] = {}  # error, largest logit


def setUpModule():
  transformers.utils.logging.set_verbosity_error()


def tearDownModule():
  print('\n| family | flag | max error | max logit |\n|---|---|---|---|')
  for (family, flag), (error, scale) in ERRORS.items():
    print(f'| {family} | {flag} | {error:.1e} | {scale:.0f} |')


@functools.cache
def _peer(family, flag):
  shape, flags = CASES[family]
  config = peers.make_config(family, **(shape | flags[flag]))
  return peers.randomize(
      transformers.AutoModelForCausalLM.from_config(config), seed=len(flag))


@functools.cache
def _ours(family, flag):
  with tempfile.TemporaryDirectory() as directory:
    _peer(family, flag).save_pretrained(directory)
    return convert.load(directory)


@functools.cache
def _batch():
  """Left-padded rows, and right-padded ones."""
  return tuple(np.concatenate(x) for x in zip(*(
      peers.rows(V, LENGTHS, WIDTH, left) for left in (True, False)),
      strict=True))


_logits = jax.jit(transformer.logits, static_argnums=0)


def _read_back(directory, auto):
  """A model that we wrote, and what transformers says of its weights."""
  model, report = auto.from_pretrained(
      directory, output_loading_info=True, attn_implementation='eager')
  return model.eval(), {k: v for k, v in report.items() if v}


class ParityTest(parameterized.TestCase):

  @parameterized.named_parameters(NAMED)
  def test_logits(self, family, flag):
    config, params = _ours(family, flag)
    tokens, mask = _batch()
    theirs = peers.logits(_peer(family, flag), tokens, mask)[mask]
    ours = np.asarray(_logits(config, params, tokens.astype('i'), mask))[mask]
    error = np.abs(ours - theirs).max()
    ERRORS[family, flag] = error, np.abs(theirs).max()
    self.assertGreater(np.abs(theirs).max(), 1)
    self.assertLess(error, TOLERANCE)

  @parameterized.named_parameters(FIRST)
  def test_other_lengths_without_padding(self, family, flag):
    config, params = _ours(family, flag)
    for width in (1, 37):
      tokens, mask = peers.rows(V, (width, width), width, False, seed=width)
      theirs = peers.logits(_peer(family, flag), tokens, mask)
      ours = _logits(config, params, tokens.astype('i'))
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)

  @parameterized.named_parameters(CACHED)
  def test_greedy_generation(self, family, flag):
    config, params = _ours(family, flag)
    tokens, mask = peers.rows(V, LENGTHS[1:], 13, True)
    theirs = _peer(family, flag).generate(
        input_ids=torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(mask.astype(int)), do_sample=False,
        max_new_tokens=NEW, eos_token_id=2, pad_token_id=0).numpy()[:, 13:]
    right, _ = peers.rows(V, LENGTHS[1:], 13, False)
    for row, line, length in zip(right, tokens, LENGTHS[1:]):
      row[:length] = line[13 - length:]
    ours = sampling.sample(
        config, params, right.astype('i'), np.array(LENGTHS[1:], 'i'),
        jax.random.key(0), num_samples=1, max_new_tokens=NEW, temperature=0.,
        eos_id=2, pad_id=0)
    for i in range(len(theirs)):
      row = np.asarray(ours.tokens[i, 0])[np.asarray(ours.mask[i, 0])]
      np.testing.assert_array_equal(row, theirs[i][:len(row)])
      self.assertTrue(len(row) == NEW or row[-1] == 2)

  @parameterized.named_parameters(NAMED)
  def test_export(self, family, flag):
    config, params = _ours(family, flag)
    tokens, mask = _batch()
    with tempfile.TemporaryDirectory() as directory:
      convert.save(directory, config, params)
      model, report = _read_back(
          directory, transformers.AutoModelForCausalLM)
    self.assertEmpty(report)
    first = _peer(family, flag)
    self.assertEqual(type(model), type(first))
    for name in ('pad_token_id', 'bos_token_id', 'eos_token_id',
                 'initializer_range'):
      self.assertEqual(getattr(model.config, name),
                       getattr(first.config, name))
    # Of names for one activation, we write one; they round differently.
    np.testing.assert_allclose(
        peers.logits(model, tokens, mask), peers.logits(first, tokens, mask),
        rtol=0, atol=1e-4 if flag in _ACTIVATIONS else 0)

  @parameterized.product(family=tuple(CASES), dtype=('float16', 'bfloat16'))
  def test_bitwise_in_half_precision(self, family, dtype):
    config = peers.make_config(family, **CASES[family][0])
    model = peers.randomize(transformers.AutoModelForCausalLM.from_config(
        config)).to(getattr(torch, dtype))
    with tempfile.TemporaryDirectory() as first, (
        tempfile.TemporaryDirectory()) as second:
      model.save_pretrained(first)
      convert.save(second, *convert.load(first))
      before, after = (tensors.read(pathlib.Path(d, 'model.safetensors'))
                       for d in (first, second))
      self.assertEqual(before.keys(), after.keys())
      for name, x in before.items():
        self.assertEqual(str(x.dtype), dtype)
        self.assertEqual(x.tobytes(), after[name].tobytes(), name)
      self.assertEqual(
          _read_back(second, transformers.AutoModelForCausalLM)[0].dtype,
          getattr(torch, dtype))

  @parameterized.parameters(*CASES)
  def test_fresh_models_load(self, family):
    config = transformer.make_config(
        family, vocab_size=V, hidden_size=32, num_layers=2, num_heads=4)
    params = jax.jit(transformer.init, static_argnums=0)(
        config, jax.random.key(0))
    tokens, mask = _batch()
    with tempfile.TemporaryDirectory() as directory:
      convert.save(directory, config, params, extra=dict(eos_token_id=7))
      model, report = _read_back(directory, transformers.AutoModelForCausalLM)
    self.assertEmpty(report)
    self.assertEqual(model.config.eos_token_id, 7)
    self.assertIsNone(model.config.bos_token_id)
    ours = _logits(config, params, tokens.astype('i'), mask)
    theirs = peers.logits(model, tokens, mask)
    np.testing.assert_allclose(
        np.asarray(ours)[mask], theirs[mask], rtol=0, atol=TOLERANCE)


class RewardParityTest(parameterized.TestCase):

  @parameterized.named_parameters(FIRST)
  def test_import_and_export(self, family, flag):
    scorer = peers.classifier(_peer(family, flag))
    right, mask = peers.rows(V, LENGTHS, WIDTH, False)
    theirs = peers.logits(scorer, right, mask)
    with tempfile.TemporaryDirectory() as first, (
        tempfile.TemporaryDirectory()) as second:
      scorer.save_pretrained(first)
      config, params = convert.load_reward(first)
      convert.save_reward(second, config, params)
      again, report = _read_back(
          second, transformers.AutoModelForSequenceClassification)
      labels = json.loads(
          pathlib.Path(second, 'config.json').read_text())['id2label']
    ours = reward_models.score(config, params, right.astype('i'), mask)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    self.assertGreater(np.ptp(theirs), .1)
    self.assertEmpty(report)
    self.assertLen(labels, 1)
    self.assertEqual(again.config.num_labels, 1)
    np.testing.assert_array_equal(peers.logits(again, right, mask), theirs)
    left = peers.rows(V, LENGTHS, WIDTH, True)  # they are read at the end too
    np.testing.assert_array_equal(
        peers.logits(again, *left), peers.logits(scorer, *left))

  @parameterized.parameters(*CASES)
  def test_fresh_reward_models(self, family):
    config = transformer.make_config(
        family, vocab_size=V, hidden_size=32, num_layers=2, num_heads=4)
    params = reward_models.init(config, jax.random.key(0))
    right, mask = peers.rows(V, LENGTHS, WIDTH, False)
    with tempfile.TemporaryDirectory() as directory:
      convert.save_reward(
          directory, config, params, extra=dict(pad_token_id=0))
      model, report = _read_back(
          directory, transformers.AutoModelForSequenceClassification)
    self.assertEmpty(report)
    ours = reward_models.score(config, params, right.astype('i'), mask)
    np.testing.assert_allclose(
        ours, peers.logits(model, right, mask), rtol=0, atol=TOLERANCE)


if __name__ == '__main__':
  absltest.main()
