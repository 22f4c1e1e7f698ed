"""A loaded model through a study and out again: path, adapters, export."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import experiments_test
import jax
import numpy as np

from experiments.coste2024_reward_model_ensembles import fig3_best_of_n
from rlhf_jax import errors
from rlhf_jax import export
from rlhf_jax import study
from rlhf_jax.data import tokenizer
from rlhf_jax.models import adapters
from rlhf_jax.models import convert
from rlhf_jax.models import pretrained
from rlhf_jax.models import quantize
from rlhf_jax.models import transformer
from rlhf_jax.stages import common
from rlhf_jax.studies import best_of_n

ALPACA = [{'instruction': f'count to {i}', 'output': f'it is {i}, my dear'}
          for i in range(40)]
HH = [{'chosen': f'\n\nHuman: is {i} odd?\n\nAssistant: yes dear {i}',
       'rejected': f'\n\nHuman: is {i} odd?\n\nAssistant: no {i}'}
      for i in range(40)]
LORA = dict(rank=2, alpha=4., targets='layers/(q|v|down)', dropout=.1)


@functools.cache
def world() -> pathlib.Path:
  """Texts, and a model with more embeddings than its tokenizer has tokens."""
  top = pathlib.Path(tempfile.mkdtemp(prefix='rlhf_jax_pretrained_'))
  (top / 'alpaca.json').write_text(json.dumps(ALPACA))
  (top / 'hh.jsonl').write_text(''.join(json.dumps(x) + '\n' for x in HH))
  coder = tokenizer.Tokenizer.train_bpe(
      [x['output'] for x in ALPACA], vocab_size=270,
      control=('<|prompter|>', '<|assistant|>'))
  config = transformer.make_config(
      'gpt_neox', vocab_size=288, hidden_size=16, num_layers=3, num_heads=2,
      max_positions=None)
  params = jax.jit(transformer.init, static_argnums=0)(
      config, jax.random.key(5))
  convert.save(top / 'model', config, params)
  coder.save_directory(top / 'model')
  return top


def tearDownModule():
  shutil.rmtree(world())


def config(**model) -> dict:
  """The smoke config of figure 3 on texts, with a loaded policy."""
  found = fig3_best_of_n.get_config('smoke').to_dict()
  found['data'].update(path=str(world() / 'alpaca.json'),
                       preferences=str(world() / 'hh.jsonl'))
  found['data']['files'].update(max_prompt_length=40, max_response_length=16)
  found['policy']['model'].update(path=str(world() / 'model'), **model)
  return found


def run(workdir, config, only):
  study.run_study(best_of_n.plan(config), workdir, only=only,
                  config=config | {'inputs': best_of_n.inputs(config)})


def logits(config, params):
  rows = np.arange(24).reshape(2, 12)
  return jax.jit(transformer.logits, static_argnums=0)(config, params, rows)


class StudyTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))

  def export(self, **kwargs):
    export.export(self.workdir, 'seed_0/sft', self.workdir / 'adapter',
                  **kwargs)
    return self.workdir / 'adapter'

  @parameterized.named_parameters(
      ('whole', {}, None),
      ('adapters', dict(lora=LORA), ('adapter',)),
      ('four_bits', dict(lora=LORA, quantize=True), ('adapter',)),
      ('last_layer', dict(trainable_layers=1), (
          'norm', 'top_layers', 'unembed')))
  def test_trains_what_it_is_told(self, model, trained):
    given = config(**model)
    run(self.workdir, given, ['seed_0/sft'])
    node = given['policy']['model']
    start = pretrained.init(node, 270, jax.random.key(0))
    if trained is not None:
      self.assertEqual(tuple(sorted(start.trainable)), trained)
    source_config, source = convert.load(world() / 'model')
    shape, params = common.restore_policy(
        self.workdir / 'seed_0/sft', node, 270)
    self.assertEqual(shape.vocab_size, 288)
    moved = jax.tree.map(
        lambda a, b: float(np.abs(a - b).max()), params, source)
    kernels = {name: leaf.get('kernel') for name, leaf in
               moved['layers'].items()}
    self.assertGreater(kernels['q'], 1e-5)
    if trained is None:
      self.assertGreater(moved['embed'], 1e-5)
    else:
      self.assertEqual(moved['embed'], 0)
    if trained == ('adapter',):
      self.assertEqual(moved['norm']['scale'], 0)
      (self.assertGreater if model.get('quantize') else self.assertEqual)(
          kernels['up'], 0)  # to the nearest of its 16 values
    if 'trainable_layers' in model:
      stays = jax.tree.map(lambda a, b: float(np.abs(a - b)[:2].max()),
                           params['layers'], source['layers'])
      self.assertEqual(max(jax.tree.leaves(stays)), 0)
    if trained == ('adapter',):
      adapter_config = json.loads((self.export(adapter=True)
                                   / 'adapter_config.json').read_text())
      self.assertEqual(
          adapter_config['base_model_name_or_path'], str(world() / 'model'))
      made = common.restore_trained(self.workdir / 'seed_0/sft', node, 270)
      _, again = adapters.load(self.workdir / 'adapter', made.config)
      added = {**made.base, 'adapter': again}
      np.testing.assert_allclose(
          logits(made.config, added), logits(shape, params), atol=1e-5)
    else:
      with self.assertRaisesRegex(errors.ConfigError, 'no adapter'):
        self.export(adapter=True)
    # Out again, and the same model.
    export.export(self.workdir, 'seed_0/sft', self.workdir / 'out')
    out_config, out = convert.load(self.workdir / 'out')
    np.testing.assert_array_equal(
        logits(out_config, out), logits(shape, params))
    self.assertEqual(tokenizer.Tokenizer.from_directory(
        self.workdir / 'out').encode(['my dear']),
        tokenizer.Tokenizer.from_directory(
            world() / 'model').encode(['my dear']))
    del source_config

  def test_every_stage_with_control_tokens(self):
    """Padded rows of the model, chat format, pair and gold on one model."""
    given = config(lora=LORA)
    given['data']['files'].update(format='open_assistant',
                                  preference_format='open_assistant')
    given['data'].update(num_pair_prompts=40)
    given['force_eos'], given['label_noise'] = (False,), (0.,)
    given['proxy'].update(held_out=8)
    given['gold'].update(held_out=8)
    run(self.workdir, given, [])
    self.assertTrue((
        self.workdir / best_of_n.final(given) / 'figure.png').exists())
    stage = 'seed_0/as_sampled/noise_0/proxies'
    export.export(self.workdir, stage, self.workdir / 'out', member=1)
    shape, found = convert.load_reward(self.workdir / 'out')
    node = given['proxy']['model']
    members = common.restore_members(
        self.workdir / stage, pretrained.config(node, shape.vocab_size), 2)
    np.testing.assert_array_equal(
        found['head']['weight'], members['head']['weight'][1])
    with self.assertRaisesRegex(errors.ConfigError, '--member=2.* 0 to 1'):
      export.export(self.workdir, stage, self.workdir / 'two', member=2)

  def test_models_of_two_vocabularies(self):
    given = config()
    given['gold']['model']['path'] = str(world() / 'model')
    best_of_n.plan(given)
    other = self.workdir / 'other'
    shutil.copytree(world() / 'model', other)
    tokenizer.Tokenizer.train_bpe(
        ['unlike other texts'], vocab_size=270).save_directory(other)
    given['gold']['model']['path'] = str(other)
    with self.assertRaisesRegex(
        errors.ConfigError, 'config.gold.model: .*another id.*one vocabulary'):
      best_of_n.plan(given)

  def test_another_model_in_its_place(self):
    given = config()
    run(self.workdir, given, ['seed_0/sft'])
    before = best_of_n.inputs(given)
    moved = self.workdir / 'model'
    shutil.copytree(world() / 'model', moved)
    given['policy']['model']['path'] = str(moved)
    self.assertEqual(best_of_n.inputs(given), before)
    weights = moved / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    self.assertNotEqual(best_of_n.inputs(given), before)


class NodeTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('fresh', dict(family='llama', hidden_size=8, num_layers=1, num_heads=1,
                     lora=LORA), 'lora but neither path nor name'),
      ('both', dict(path='DIR', name='smollm2'), 'give one of them'),
      ('name', dict(name='smallm2'), "'smallm2'.*smollm2"),
      ('missing', dict(path='DIR/no'), 'no such model'),
      ('kind', dict(path='DIR/config.json'), 'no Hugging Face directory'),
      ('field', dict(path='DIR', hidden_sice=3), 'hidden_sice is no field'),
      ('two_ways', dict(path='DIR', lora=LORA, trainable_layers=1),
       'choose one'),
      ('four_bits', dict(path='DIR', quantize=True), 'quantize needs lora'),
      ('targets', dict(path='DIR', lora=LORA | dict(targets='nothing')),
       'nothing'),
      ('layers', dict(path='DIR', trainable_layers=4), '4'),
      ('remat', dict(path='DIR', remat='some'), "remat .*'some'"))
  def test_refuses(self, node, message):
    node = {k: v.replace('DIR', str(world() / 'model'))
            if isinstance(v, str) else v for k, v in node.items()}
    with self.assertRaisesRegex(errors.ConfigError, message):
      pretrained.init(node, 270, jax.random.key(0))

  def test_more_tokens_than_embeddings(self):
    node = dict(path=str(world() / 'model'))
    self.assertEqual(pretrained.config(node, 288).vocab_size, 288)
    with self.assertRaisesRegex(
        errors.ConfigError, '288 embeddings and the tokenizer 289'):
      pretrained.config(node, 289)

  def test_a_path_takes_the_place_of_a_shape(self):
    node = dict(path=str(world() / 'model'), family='llama', hidden_size=8,
                dtype='bfloat16', remat='full', name=None)
    found = pretrained.config(node, 9)
    self.assertEqual(found.family, 'gpt_neox')
    self.assertEqual(found.hidden_size, 16)
    self.assertEqual((found.dtype, found.remat), ('bfloat16', 'full'))

  def test_quantised_base_is_what_is_merged(self):
    node = dict(path=str(world() / 'model'), lora=LORA, quantize=True)
    model = pretrained.init(node, 9, jax.random.key(0))
    self.assertTrue(quantize.is_quantized(
        model.base['layers']['q']['kernel']))
    whole = pretrained.finish(model)
    np.testing.assert_allclose(
        logits(model.config, {**model.base, **model.trainable}),
        logits(model.config, whole), atol=1e-5)


class ExportTest(absltest.TestCase):

  def test_one_line_errors(self):
    command = [sys.executable, '-m', 'rlhf_jax.export']
    launch = lambda *more: subprocess.run(
        [*command, *more], capture_output=True, text=True,
        cwd=experiments_test.ROOT, env=os.environ | {
            'PYTHONPATH': str(experiments_test.ROOT)})
    with tempfile.TemporaryDirectory() as workdir:
      out = launch(f'--workdir={workdir}', '--stage=sft', '--directory=x')
      self.assertEqual(out.returncode, errors.CheckpointError.exit_code)
      self.assertRegex(out.stderr, r'\Arlhf_jax: CHECKPOINT: .*sft holds no '
                                   r'trained model; .*\n\Z')
    out = launch('--workdir=x')
    self.assertEqual(out.returncode, 2)
    self.assertEqual(out.stderr.count('\n'), 1)
    self.assertIn('--stage', out.stderr)


if __name__ == '__main__':
  absltest.main()
