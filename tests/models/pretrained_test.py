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
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer
from rlhf_jax.models import adapters
from rlhf_jax.models import convert
from rlhf_jax.models import pretrained
from rlhf_jax.models import quantize
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.runner import run as run_lib
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
  found['gold'].update(held_out=8)
  found['policy']['model'].update(path=str(world() / 'model'), **model)
  return found


def run(workdir, config, only):
  run_lib.run_study(best_of_n.plan(config), workdir, only=only,
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
    shape, params = artifacts.restore_policy(
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
      made = artifacts.restore_trained(self.workdir / 'seed_0/sft', node, 270)
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
    run(self.workdir, given, [])
    self.assertTrue((
        self.workdir / best_of_n.final(given) / 'figure.png').exists())
    stage = 'seed_0/as_sampled/noise_0/proxies'
    export.export(self.workdir, stage, self.workdir / 'out', member=1)
    shape, found = convert.load_reward(self.workdir / 'out')
    node = given['proxy']['model']
    members = artifacts.restore_members(
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


class PlanTest(parameterized.TestCase):
  """What would fail in a stage fails before anything is written."""

  @parameterized.named_parameters(
      ('targets', dict(lora=LORA | dict(targets='layers/zzz')), 'layers/zzz'),
      ('pattern', dict(lora=LORA | dict(targets='(')), 'regular expression'),
      ('rank', dict(lora=LORA | dict(rank=-4)), 'rank'),
      ('no_layer', dict(trainable_layers=0), '0'),
      ('layers', dict(trainable_layers=9), '9'),
      ('dtype', dict(dtype='float99'), "dtype .*'float99'"))
  def test_model(self, model, message):
    with self.assertRaisesRegex(
        errors.ConfigError, f'config.policy.model: .*{message}'):
      best_of_n.plan(config(**model))

  @parameterized.named_parameters(
      ('control', dict(format='llama3'), 'begin_of_text'),
      ('rows', dict(control=tuple(f'<|{i}|>' for i in range(40))), '288 emb'),
      ('format', dict(format='hh'), 'no place for the input'),
      ('dialogue', dict(preference_format='llama9'), "'llama9'"),
      ('no_text', dict(tokenizer='EMPTY'), 'holds no tokenizer'))
  def test_texts(self, files, message):
    given = config()
    if files.get('tokenizer'):
      empty = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
      (empty / 'config.json').write_text('{"model_type": "gpt2"}')
      files = dict(tokenizer=str(empty))
    given['data']['files'].update(files)
    if files.get('format') == 'hh':
      given['data']['path'] = str(world() / 'input.json')
      (world() / 'input.json').write_text(json.dumps(
          [x | {'input': 'more'} for x in ALPACA]))
    with self.assertRaisesRegex(errors.ConfigError, message):
      best_of_n.plan(given)

  def test_too_long_for_learned_positions(self):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    shape = transformer.make_config(
        'gpt2', vocab_size=288, hidden_size=8, num_layers=1, num_heads=1,
        max_positions=48)
    convert.save(path / 'm', shape, jax.jit(
        transformer.init, static_argnums=0)(shape, jax.random.key(0)))
    given = config()
    given['gold']['model']['path'] = str(path / 'm')
    with self.assertRaisesRegex(
        errors.ConfigError, 'config.gold.model: .*56 tokens .* 48'):
      best_of_n.plan(given)

  def test_gold_without_pairs(self):
    given = config()
    given['gold']['held_out'] = 30
    with self.assertRaisesRegex(
        errors.ConfigError, 'gold.held_out is 30 of 40 pairs'):
      best_of_n.plan(given)

  def test_gold_reads_what_it_judges(self):
    given = config()
    files = given['data']['files']
    files.update(format='open_assistant')
    for named, expected in ((None, 2), ('hh', 0)):
      files['preference_format'] = named
      rows = load_lib.load(best_of_n.data_config(given), 0)
      prompter = rows.tokenizer.id_of('<|prompter|>')
      found = (rows.preferences.tokens == prompter).any(-1).sum(-1)
      self.assertEqual(found.tolist(), [expected] * 40)


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

  def tokenizer(self, kind, **kwargs):
    directory = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    coder = tokenizer.Tokenizer.train_bpe(
        ['text'], vocab_size=270, control=kwargs.pop('control', ()))
    coder.save(directory / 'tokenizer.json')
    roles = dict(coder.roles, control=list(coder.control), adds_bos=True,
                 chat_template=None)
    return export._tokenizer(
        directory, {'kind': kind, 'tokenizer': roles | kwargs})

  def test_tokenizer_goes_on_as_it_was(self):
    """Texts begin as in training, and the template is not lost."""
    for adds_bos in (True, False):
      coder = self.tokenizer(
          'policy', adds_bos=adds_bos, chat_template='{{ x }}')
      self.assertEqual(coder.adds_bos, adds_bos)
      self.assertEqual(coder.chat_template, '{{ x }}')

  def test_padding_of_a_reward_model_is_not_its_eos(self):
    eos = tokenizer.EOS
    self.assertEqual(self.tokenizer('policy', pad=eos).pad_id, 2)
    coder = self.tokenizer('reward', pad=eos, control=('<|pad|>',))
    self.assertIn(coder.pad_id, (0, coder.id_of('<|pad|>')))
    control = [tokenizer.BOS, eos]
    with self.assertRaisesRegex(errors.ConfigError, 'both .*<eos>'):
      export._tokenizer(pathlib.Path('x'), {
          'kind': 'reward', 'tokenizer': dict(
              pad=eos, bos=tokenizer.BOS, eos=eos, control=control)})

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
