"""What shapes say of bytes is what states take that are really placed."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import worlds

from rlhf_jax import train
from rlhf_jax.models import convert
from rlhf_jax.models import heads
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding
from rlhf_jax.pipeline import policies
from rlhf_jax.pipeline import reward_parts
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.studies import shapes as shapes_lib

VOCABULARY, MEMBERS, KEY = 256, 4, jax.random.key(0)
MODEL = worlds.MODEL | {'dtype': 'bfloat16'}
AXES = dict(member=2, fsdp=2, tensor=2)
TX = train.optimizer(learning_rate=1., num_steps=1)


class World:
  """Of a reference and reward models alone."""

  reference = property(lambda self: self)
  config = pretrained.config(MODEL, VOCABULARY)

  def unfrozen(self, role):
    if role == 'proxies':
      return reward_models.RewardModels(
          self.config, reward_models.init_members(
              self.config, jax.random.split(KEY, MEMBERS)))
    self.params = transformer.init(self.config, KEY)
    return self


class ShapesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.shapes = shapes_lib.Shapes(meshes.planned(AXES, 8), VOCABULARY)
    self.enter_context(worlds.devices(8, **AXES, data=1))

  def check(self, params, placed, members=0):
    trained, rest = self.shapes.state(params, members)
    self.assertEqual(trained, sharding.device_bytes(placed.params))
    self.assertEqual(trained + rest, sharding.device_bytes(placed))

  @parameterized.parameters(*policies.TRUNKS)
  def test_value_heads(self, trunk):
    value = {'trunk': trunk, 'mlp': True, 'scale': 1.}
    model = self.shapes.parts(MODEL)
    self.assertIsNone(model.base)
    added, own = self.shapes.value_head(
        model.config, value, shapes_lib.Model(MODEL, MEMBERS))
    self.assertEqual(own, None if trunk == 'shared' else World.config)
    params = policies.add_value_head(
        World(), transformer.init(World.config, KEY), value, KEY)
    self.check({**model.trainable, **added}, train.place_state(
        params, TX, KEY))

  def test_reward_models(self):
    config, params, base = self.shapes.rewards(
        shapes_lib.Model(MODEL, MEMBERS))
    self.assertIsNone(base)
    keys = jax.random.split(KEY, MEMBERS)
    self.check(params, train.place_state(
        reward_models.init_members(config, keys), TX, keys, members=MEMBERS),
               MEMBERS)

  @parameterized.parameters(
      dict(lora=dict(rank=2, alpha=4.)), dict(trainable_layers=1),
      dict(trainable_layers=0))
  def test_reward_models_of_a_part(self, **tuning):
    """Members have what is trained, and share what is not."""
    path = worlds.folder() / 'model'
    config = transformer.make_config(
        'llama', vocab_size=VOCABULARY, hidden_size=16, num_layers=2,
        num_heads=2)
    convert.save(path, config, transformer.init(config, KEY))
    node = dict(path=str(path), dtype='bfloat16', **tuning)
    _, own, base = self.shapes.rewards(shapes_lib.Model(node, MEMBERS))
    config, trunk, frozen = reward_parts.start(node, VOCABULARY, KEY)
    keys = jax.random.split(KEY, MEMBERS)
    self.check(own, train.place_state(
        reward_models.born(config, keys, trunk, members=MEMBERS), TX, keys,
        members=MEMBERS), MEMBERS)
    self.assertEqual(self.shapes.place(base), sharding.device_bytes(
        transformer.frozen(config, frozen)))
    value = {'trunk': 'reward', 'mlp': True, 'scale': 1.}
    added, _ = self.shapes.value_head(
        World.config, value, shapes_lib.Model(node, MEMBERS))
    whole = reward_models.init(config, KEY)
    self.assertEqual(
        jax.tree.map(lambda x: x.shape, added['value_trunk']),
        jax.tree.map(lambda x: x.shape, whole['trunk']))

  def test_frozen(self):
    """In the numbers of the computation, half as wide."""
    config, params = self.shapes.policy(MODEL)
    placed = sharding.shard_params(transformer.frozen(
        config, transformer.init(config, KEY)))
    self.assertEqual(self.shapes.place(params), sharding.device_bytes(placed))
    self.assertLess(self.shapes.place(params), self.shapes.place(
        transformer.abstract(config)))

  def test_a_head_is_placed(self):
    """By the rules of its names, whole on each device."""
    head = heads.init_prompt_value(KEY, 16, num_heads=2)
    self.assertEqual(self.shapes.place(head), sharding.device_bytes(
        sharding.shard_params(head)))


if __name__ == '__main__':
  absltest.main()
