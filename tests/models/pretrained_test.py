"""A loaded model through a study and out again: path, adapters, export."""

import json
import pathlib
import shutil
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.commands import export
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer
from rlhf_jax.models import adapters
from rlhf_jax.models import convert
from rlhf_jax.models import pretrained
from rlhf_jax.models import quantize
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import artifacts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import parameters
from rlhf_jax.runner import run as run_lib
from rlhf_jax.studies import nodes
from rlhf_jax.studies import plan

LORA = dict(rank=2, alpha=4., targets='layers/(q|v|down)', dropout=.1)


def config(**model) -> dict:
  """The smoke config of figure 3 on texts, with a loaded policy."""
  study = worlds.on_files(worlds.get_config(worlds.FIGURE_3, 'smoke'))
  study['policy']['model'].update(
      path=str(worlds.loaded() / 'model'), **model)
  return study


def inputs(config):
  return plan.inputs(config, plan.plan(config))


def run(workdir, config, only):
  run_lib.run_study(plan.plan(config), workdir, only=only,
                    config=config | {'inputs': inputs(config)})


def logits(config, params):
  rows = np.arange(24).reshape(2, 12)
  return jax.jit(transformer.logits, static_argnums=0)(config, params, rows)


class StudyTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))

  def export(self, **kwargs):
    export.export(self.workdir / 'seed_0/sft', self.workdir / 'adapter',
                  **kwargs)
    return self.workdir / 'adapter'

  @parameterized.named_parameters(
      ('whole', {}, None),
      ('adapters', dict(lora=LORA), ('adapter',)),
      ('four_bits', dict(lora=LORA, quantize=True), ('adapter',)),
      ('last_layer', dict(trainable_layers=1), (
          'norm', 'top_layers', 'unembed')))
  def test_trains_what_it_is_told(self, model, trained):
    study = config(**model)
    run(self.workdir, study, ['seed_0/sft'])
    node = study['policy']['model']
    start = pretrained.init(node, 270, jax.random.key(0))
    if trained is not None:
      self.assertEqual(tuple(sorted(start.trainable)), trained)
    _, source = convert.load(worlds.loaded() / 'model')
    shape, params = artifacts.restore_policy(self.workdir / 'seed_0/sft')
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
      self.assertEqual(adapter_config['base_model_name_or_path'],
                       str(worlds.loaded() / 'model'))
      parts = artifacts.restore_parts(self.workdir / 'seed_0/sft')
      _, again = adapters.load(self.workdir / 'adapter', parts.config)
      added = {**parts.base, 'adapter': again}
      np.testing.assert_allclose(
          logits(parts.config, added), logits(shape, params), atol=1e-5)
    else:
      with self.assertRaisesRegex(errors.ConfigError, 'no adapter'):
        self.export(adapter=True)
    # Out again, and the same model.
    export.export(self.workdir / 'seed_0/sft', self.workdir / 'out')
    out_config, out = convert.load(self.workdir / 'out')
    np.testing.assert_array_equal(
        logits(out_config, out), logits(shape, params))
    self.assertEqual(tokenizer.Tokenizer.from_directory(
        self.workdir / 'out').encode(['my dear']),
        tokenizer.Tokenizer.from_directory(
            worlds.loaded() / 'model').encode(['my dear']))

  def test_every_stage_with_control_tokens(self):
    """Padded rows of the model, chat format, pair and gold on one model."""
    study = config(lora=LORA)
    study['data']['files'].update(format='open_assistant',
                                  preference_format='open_assistant')
    study['data'].update(num_pair_prompts=40)
    study['force_eos'], study['label_noise'] = (False,), (0.,)
    study['proxy'].update(held_out=8)
    run(self.workdir, study, [])
    self.assertTrue((
        self.workdir / plan.final(study) / 'figure.png').exists())
    stage = 'seed_0/as_sampled/noise_0/proxies'
    export.export(self.workdir / stage, self.workdir / 'out', member=1)
    shape, params = convert.load_reward(self.workdir / 'out')
    ensemble = artifacts.restore_rewards(self.workdir / stage)
    self.assertEqual(ensemble.config.vocab_size, shape.vocab_size)
    self.assertEqual(ensemble.num_members, 2)
    np.testing.assert_array_equal(
        params['head']['weight'], ensemble.params['head']['weight'][1])
    with self.assertRaisesRegex(errors.ConfigError, '--member=2.* 0 to 1'):
      export.export(self.workdir / stage, self.workdir / 'two', member=2)

  def test_reward_models_that_are_parts_of_a_model(self):
    """An adapted gold model, and heads on a trunk that nobody trains."""
    study = config()
    model = study['policy']['model']['path']
    study['policy']['num_steps'] = study['proxy']['sft']['num_steps'] = 0
    study['gold']['model'].update(path=model, lora=LORA)
    study['proxy']['model'].update(path=model, trainable_layers=0)
    study['data'].update(num_pair_prompts=40)
    study['force_eos'], study['label_noise'] = (False,), (0.,)
    study['proxy'].update(held_out=8)
    run(self.workdir, study, [])
    _, source = convert.load(pathlib.Path(model))
    for stage, moved in (('gold', True), ('as_sampled/noise_0/proxies', False)):
      stage, out = self.workdir / 'seed_0' / stage, self.workdir / 'out' / stage
      export.export(stage, out)
      models = artifacts.restore_rewards(stage)
      rows = np.arange(24).reshape(2, 12)
      for member in range(models.num_members):
        shape, params = convert.load_reward(
            out / f'member_{member}' if models.num_members > 1 else out)
        scores = reward_models.score(shape, params, rows, rows > 0)
        ours = reward_models.score(models.config, parameters.take(
            models.params, member), rows, rows > 0)
        np.testing.assert_allclose(
            scores - ours, (scores - ours)[0], atol=1e-4)  # but for the bias
        q = params['trunk']['layers']['q']['kernel']
        self.assertEqual(
            np.abs(q - source['layers']['q']['kernel']).max() > 1e-6, moved)
        np.testing.assert_array_equal(
            params['trunk']['embed'], source['embed'])

  def test_models_of_two_vocabularies(self):
    study = config()
    study['gold']['model']['path'] = str(worlds.loaded() / 'model')
    plan.plan(study)
    other = self.workdir / 'other'
    shutil.copytree(worlds.loaded() / 'model', other)
    tokenizer.Tokenizer.train_bpe(
        ['unlike other texts'], vocab_size=270).save_directory(other)
    study['gold']['model']['path'] = str(other)
    with self.assertRaisesRegex(
        errors.ConfigError, 'config.gold.model: .*another id.*one vocabulary'):
      plan.plan(study)

  def test_another_model_in_its_place(self):
    study = config()
    before = inputs(study)
    moved = self.workdir / 'model'
    shutil.copytree(worlds.loaded() / 'model', moved)
    study['policy']['model']['path'] = str(moved)
    digest = before[f'model {worlds.loaded() / "model"}']
    self.assertEqual(inputs(study)[f'model {moved}'], digest)
    weights = moved / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    self.assertNotEqual(inputs(study)[f'model {moved}'], digest)


class PlanTest(parameterized.TestCase):
  """What would fail in a stage fails before anything is written."""

  @parameterized.named_parameters(
      ('targets', dict(lora=LORA | dict(targets='layers/zzz')), 'layers/zzz'),
      ('pattern', dict(lora=LORA | dict(targets='(')), 'regular expression'),
      ('rank', dict(lora=LORA | dict(rank=-4)), 'rank'),
      ('layers', dict(trainable_layers=9), '9'),
      ('dtype', dict(dtype='float99'), "dtype .*'float99'"))
  def test_model(self, model, message):
    with self.assertRaisesRegex(
        errors.ConfigError, f'config.policy.model: .*{message}'):
      plan.plan(config(**model))

  @parameterized.named_parameters(
      ('control', dict(format='llama3'), 'begin_of_text'),
      ('rows', dict(control=tuple(f'<|{i}|>' for i in range(40))), '288 emb'),
      ('format', dict(format='hh'), 'no place for the input'),
      ('dialogue', dict(preference_format='llama9'), "'llama9'"),
      ('no_text', dict(tokenizer='EMPTY'), 'holds no tokenizer'))
  def test_texts(self, files, message):
    study = config()
    if files.get('tokenizer'):
      empty = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
      (empty / 'config.json').write_text('{"model_type": "gpt2"}')
      files = dict(tokenizer=str(empty))
    study['data']['files'].update(files)
    if files.get('format') == 'hh':
      path = worlds.folder() / 'input.json'
      path.write_text(json.dumps(
          [x | {'input': 'more'} for x in worlds.ALPACA]))
      study['data']['path'] = str(path)
    with self.assertRaisesRegex(errors.ConfigError, message):
      plan.plan(study)

  def test_too_long_for_learned_positions(self):
    path = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    shape = transformer.make_config(
        'gpt2', vocab_size=288, hidden_size=8, num_layers=1, num_heads=1,
        max_positions=48)
    convert.save(path / 'm', shape, jax.jit(
        transformer.init, static_argnums=0)(shape, jax.random.key(0)))
    study = config()
    study['gold']['model']['path'] = str(path / 'm')
    with self.assertRaisesRegex(
        errors.ConfigError, 'config.gold.model: .*56 tokens .* 48'):
      plan.plan(study)

  def test_gold_without_pairs(self):
    study = config()
    study['gold']['held_out'] = 30
    with self.assertRaisesRegex(
        errors.ConfigError, 'gold.held_out is 30 of 40 pairs'):
      plan.plan(study)

  def test_gold_reads_what_it_judges(self):
    study = config()
    files = study['data']['files']
    files.update(format='open_assistant')
    for named, expected in ((None, 2), ('hh', 0)):
      files['preference_format'] = named
      rows = load_lib.load(nodes.data_config(study), 0)
      prompter = rows.tokenizer.id_of('<|prompter|>')
      roles = (rows.preferences.tokens == prompter).any(-1).sum(-1)
      self.assertEqual(roles.tolist(), [expected] * 40)


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
      ('dropout', dict(path='DIR', trainable_layers=0, dropout=.1),
       'dropout is 0.1'),
      ('remat', dict(path='DIR', remat='some'), "remat .*'some'"))
  def test_refuses(self, node, message):
    node = {k: v.replace('DIR', str(worlds.loaded() / 'model'))
            if isinstance(v, str) else v for k, v in node.items()}
    with self.assertRaisesRegex(errors.ConfigError, message):
      pretrained.init(node, 270, jax.random.key(0))

  def test_more_tokens_than_embeddings(self):
    node = dict(path=str(worlds.loaded() / 'model'))
    self.assertEqual(pretrained.config(node, 288).vocab_size, 288)
    with self.assertRaisesRegex(
        errors.ConfigError, '288 embeddings and the tokenizer 289'):
      pretrained.config(node, 289)

  def test_a_path_takes_the_place_of_a_shape(self):
    node = dict(path=str(worlds.loaded() / 'model'), family='llama',
                hidden_size=8, dtype='bfloat16', remat='full', name=None)
    shape = pretrained.config(node, 9)
    self.assertEqual(shape.family, 'gpt_neox')
    self.assertEqual(shape.hidden_size, 16)
    self.assertEqual((shape.dtype, shape.remat), ('bfloat16', 'full'))

  def test_quantised_base_is_what_is_merged(self):
    node = dict(path=str(worlds.loaded() / 'model'), lora=LORA, quantize=True)
    model = pretrained.init(node, 9, jax.random.key(0))
    self.assertTrue(quantize.is_quantized(
        model.base['layers']['q']['kernel']))
    whole = pretrained.finish(model)
    np.testing.assert_allclose(
        logits(model.config, {**model.base, **model.trainable}),
        logits(model.config, whole), atol=1e-5)


if __name__ == '__main__':
  absltest.main()
