"""Adapters against the library PEFT, on models of transformers."""

import functools
import json
import pathlib
import tempfile
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='parity with torch, see [peers]')
peft = pytest.importorskip('peft', reason='parity with PEFT, see [peers]')

import transformers  # noqa: E402 - torch comes first, or the tests are skipped

from rlhf_jax.models import adapters  # noqa: E402
from rlhf_jax.models import convert  # noqa: E402
from rlhf_jax.models import lora  # noqa: E402
from rlhf_jax.models import transformer  # noqa: E402

V = 29
SHAPES = {
    'llama': dict(num_heads=4, num_kv_heads=2),
    'qwen3': dict(num_heads=4, num_kv_heads=2),
    'gpt2': dict(num_heads=4, max_positions=32),
    'gpt_neo': dict(num_heads=4, max_positions=32, windows=(0, 4)),
    'gptj': dict(num_heads=2, rotary_fraction=.5, max_positions=None),
    'gpt_neox': dict(num_heads=4, rotary_fraction=.5),
}
PARTS = {'all': r'layers/(q|k|v|o|gate|up|down)', 'some': 'layers/(q|v|down)'}
MODULES = {
    'gpt2': ['c_attn', 'mlp.c_proj'],
    'gpt_neox': ['query_key_value', 'dense'],
    'gptj': ['q_proj', 'k_proj', 'fc_out'],
    'llama': ['q_proj', 'v_proj', 'down_proj'],
}


@functools.cache
def _model(family):
  config = transformer.make_config(
      family, vocab_size=V, hidden_size=16, num_layers=2, intermediate_size=24,
      **SHAPES[family])
  params = jax.jit(transformer.init, static_argnums=0)(
      config, jax.random.key(0))
  rng = np.random.default_rng(1)
  params = jax.tree.map(
      lambda x: np.asarray(x + .1 * rng.normal(size=x.shape), np.float32),
      params)
  return config, params


def _tokens():
  return np.random.default_rng(2).integers(0, V, (2, 9))


_logits = jax.jit(transformer.logits, static_argnums=0)


class PeftTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    held = tempfile.TemporaryDirectory()
    self.addCleanup(held.cleanup)
    self.directory = pathlib.Path(held.name)

  def _base(self, family):
    config, params = _model(family)
    convert.save(self.directory / 'base', config, params)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        self.directory / 'base', dtype=torch.float32,
        attn_implementation='eager')
    return base.eval()

  def _theirs(self, model):
    with torch.no_grad():
      return model(torch.tensor(_tokens())).logits.numpy()

  @parameterized.parameters(
      *((family, 'all') for family in SHAPES),
      *((family, 'some') for family in ('gpt2', 'gpt_neox', 'gptj')))
  def test_peft_loads_what_is_saved(self, family, part):
    base, (config, params) = self._base(family), _model(family)
    before = self._theirs(base)
    np.testing.assert_allclose(
        before, _logits(config, params, _tokens()), atol=1e-4)
    config, adapter = lora.init(
        config, params, jax.random.key(1), rank=3, alpha=4,
        targets=PARTS[part])
    rng = np.random.default_rng(3)
    adapter = jax.tree.map(
        lambda x: x + .3 * rng.normal(size=x.shape).astype('f'), adapter)
    adapters.save(self.directory / 'adapter', config, adapter,
                  base=str(self.directory / 'base'))
    with warnings.catch_warnings():
      # Such as of missing or unknown keys.
      warnings.simplefilter('error', UserWarning)
      model = peft.PeftModel.from_pretrained(base, self.directory / 'adapter')
    theirs = self._theirs(model.eval())
    mine = _logits(config, params | {'adapter': adapter}, _tokens())
    np.testing.assert_allclose(theirs, mine, atol=1e-4)
    self.assertGreater(np.abs(theirs - before).max(), .1)
    again, actual = adapters.load(self.directory / 'adapter', _model(family)[0])
    self.assertEqual(again, config)
    jax.tree.map(np.testing.assert_array_equal, actual,
                 jax.tree.map(np.asarray, adapter))

  @parameterized.product(family=sorted(MODULES), rslora=(False, True))
  def test_loads_what_peft_saves(self, family, rslora):
    base, (config, params) = self._base(family), _model(family)
    patterns = {MODULES[family][0]: 2}
    model = peft.get_peft_model(base, peft.LoraConfig(
        r=4, lora_alpha=6, lora_dropout=.1, task_type='CAUSAL_LM',
        target_modules=MODULES[family], use_rslora=rslora,
        fan_in_fan_out=family == 'gpt2', rank_pattern=patterns,
        alpha_pattern={MODULES[family][-1]: 16}))
    for name, weight in model.named_parameters():
      if 'lora_B' in name:
        torch.nn.init.normal_(weight, std=.3)
    model.save_pretrained(self.directory / 'adapter')
    config, adapter = adapters.load(self.directory / 'adapter', config)
    self.assertAlmostEqual(config.adapter_scale, 3 if rslora else 1.5)
    self.assertEqual(config.adapter_dropout, .1)
    mine = _logits(config, params | {'adapter': adapter}, _tokens())
    theirs = self._theirs(model.eval())
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    merged = _logits(config, lora.merge(config, params, adapter), _tokens())
    np.testing.assert_allclose(merged, theirs, atol=1e-4)

  def test_initialisation_is_theirs(self):
    """Bounds of a and zeros of b, on a map wide enough to reach the bounds."""
    model = peft.get_peft_model(self._base('llama'), peft.LoraConfig(
        r=64, target_modules=['down_proj']))
    theirs = [p.detach().numpy() for n, p in model.named_parameters()
              if 'lora_A' in n]
    config, params = _model('llama')
    _, adapter = lora.init(config, params, jax.random.key(0), rank=64, alpha=1,
                           targets='layers/down')
    mine = adapter['layers']['down']['a']
    for a in (mine, np.stack(theirs)):
      self.assertAlmostEqual(np.abs(a).max(), 24**-.5, delta=1e-3)
      self.assertAlmostEqual(a.std(), (24 * 3)**-.5, delta=4e-3)

  def test_what_peft_writes_is_read_field_by_field(self):
    """A field that PEFT has added is empty by default, or is known here."""
    raw = json.loads(json.dumps(peft.LoraConfig(
        r=4, target_modules=['q_proj']).to_dict(), default=list))
    raw['peft_type'] = 'LORA'
    adapters._Settings(pathlib.Path('adapter_config.json'), raw)


if __name__ == '__main__':
  absltest.main()
