"""Tests for rlhf_jax.pipeline.bases: what lies under a trained part."""

import shutil

from absl.testing import absltest
from absl.testing import parameterized
import jax
import worlds

from rlhf_jax import errors
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import bases
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files

ADAPTER = dict(lora=dict(rank=2, alpha=4., targets='layers/q'))
PARTS = (ADAPTER, dict(trainable_layers=1), dict(trainable_layers=0))


def stage(kind, **tuning):
  """A stage that has trained a part of a model of its own, and that model."""
  folder = worlds.folder()
  model = folder / 'model'
  shutil.copytree(worlds.loaded_node()['path'], model)
  node = dict(path=str(model), **tuning)
  context = worlds.Context(folder, folder / 'stage')
  context.directory.mkdir()
  coder = worlds.corpus().tokenizer
  config, trunk, _ = start = reward_parts.start(
      node, coder.vocab_size, jax.random.key(1))
  params = start.trainable if kind == 'policy' else reward_models.init(
      config, jax.random.key(2), trunk=trunk)
  with checkpoint.Checkpointer(context.directory / 'checkpoints') as saver:
    saver.save(0, params)
  artifacts.write_model(context, kind, node, coder, texts=None)
  return context.directory, model


def change(model):
  weights = model / 'model.safetensors'
  data = bytearray(weights.read_bytes())
  data[-1] ^= 1
  weights.write_bytes(data)


def restore(kind, directory):
  return {'policy': artifacts.restore_policy,
          'reward': artifacts.restore_rewards}[kind](directory)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(
      *(('reward', x) for x in PARTS), *(('policy', x) for x in PARTS[:2]))
  def test_another_base_is_refused(self, kind, tuning):
    directory, model = stage(kind, **tuning)
    restore(kind, directory)
    change(model)
    with self.assertRaisesRegex(
        errors.CheckpointError, f'stage .* has changed: {model}; restore'):
      restore(kind, directory)
    shutil.move(model, model.with_name('elsewhere'))
    with self.assertRaisesRegex(
        errors.ConfigError, f'{model}: there is no such model'):
      restore(kind, directory)

  def test_nothing_lies_under_what_is_trained_as_a_whole(self):
    directory, model = stage('reward')
    change(model)
    restore('reward', directory)
    self.assertIsNone(bases.digest(dict(path=str(model))))

  def test_heads_that_load_no_base_ask_for_none(self):
    directory, model = stage('reward', trainable_layers=0)
    change(model)
    self.assertNotIn('base', artifacts.restore_rewards(
        directory, with_base=False).params)

  def test_a_stage_of_an_earlier_commit_is_believed(self):
    directory, model = stage('reward', **ADAPTER)
    told = files.read_json(directory / 'model.json')
    self.assertEqual(told.pop('base'), bases.digest(told['model']))
    files.write_json(directory / 'model.json', told)
    change(model)
    restore('reward', directory)


if __name__ == '__main__':
  absltest.main()
