"""Tests for rlhf_jax.pipeline.reward_parts."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import parameters
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files

LORA = dict(rank=2, alpha=4., targets='layers/(q|v)$', dropout=0.)
VOCABULARY = 270  # tokens of the tokenizer; the model has 288
TUNINGS = {'whole': {}, 'adapters': dict(lora=LORA),
           'four_bits': dict(lora=LORA, quantize=True),
           'last_layer': dict(trainable_layers=1),
           'head': dict(trainable_layers=0)}


def node(kind):
  return dict(path=str(worlds.loaded() / 'model'), **TUNINGS[kind])


def ensemble(kind, members=2):
  """What a stage would have trained, all of it moved, and its base."""
  config, trunk, base = reward_parts.start(
      node(kind), VOCABULARY, jax.random.key(1))
  own = reward_models.born(
      config, jax.random.split(jax.random.key(2), members), trunk,
      members=members)
  keys = iter(jax.random.split(jax.random.key(3), 99))
  return config, jax.tree.map(
      lambda x: x + .05 * jax.random.normal(next(keys), x.shape), own), base


def rows():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, VOCABULARY, (4, 2, 12)).astype(np.int32)
  return tokens, np.broadcast_to(np.arange(12) >= 5, tokens.shape)


class PartsTest(parameterized.TestCase):

  @parameterized.parameters(*TUNINGS)
  def test_shapes_are_those_of_what_is_made(self, kind):
    config, own, base = ensemble(kind)
    shapes = reward_parts.abstract(node(kind), VOCABULARY, 2)
    self.assertEqual(shapes.config, config)
    of = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    self.assertEqual(of(shapes.trainable), of(own))
    self.assertEqual(of(shapes.base), of(base))
    self.assertEqual(base is None, kind == 'whole')

  @parameterized.parameters(*TUNINGS)
  def test_a_checkpoint_holds_what_was_trained(self, kind):
    config, own, base = ensemble(kind)
    folder = worlds.folder()
    with checkpoint.Checkpointer(folder / 'checkpoints') as saver:
      saver.save(0, own)
    scale = {'mean': np.float32([1, 2]), 'std': np.float32([3, 4])}
    files.save_arrays(folder / 'scale.npz', **scale)
    again = reward_parts.restore(folder, node(kind), VOCABULARY, 2)
    self.assertEqual(again.config, config)
    self.assertEqual(again.num_members, 2)
    jax.tree.map(np.testing.assert_array_equal, again.params,
                 own | (base or {}))
    jax.tree.map(np.testing.assert_array_equal, dict(again.scale), scale)

  def test_one_model_is_an_ensemble_of_one(self):
    config, own, base = ensemble('adapters', members=1)
    folder = worlds.folder()
    with checkpoint.Checkpointer(folder / 'checkpoints') as saver:
      saver.save(0, parameters.take(own, 0))
    again = reward_parts.restore(folder, node('adapters'), VOCABULARY, None)
    self.assertEqual((again.config, again.num_members), (config, 1))
    jax.tree.map(np.testing.assert_array_equal, again.params, own | base)

  @parameterized.parameters(*TUNINGS)
  def test_the_ordinary_form_scores_alike(self, kind):
    config, own, base = ensemble(kind)
    params = own | (base or {})
    for member in range(2):
      one = parameters.take(params, member)
      whole = reward_parts.finish(config, one)
      self.assertEqual(set(whole), {'trunk', 'head'})
      self.assertTrue({'adapter', 'top_layers'}.isdisjoint(whole['trunk']))
      np.testing.assert_allclose(
          reward_models.score(config, whole, *rows()),
          reward_models.score(config, one, *rows()), atol=1e-4)


if __name__ == '__main__':
  absltest.main()
