"""Tests for rlhf_jax.rewards.parameters, and of scores by such models."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import worlds

from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import lora
from rlhf_jax.models import transformer
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.rewards import parameters

E = 3
CONFIG = transformer.make_config(
    'llama', vocab_size=50, hidden_size=16, num_layers=3, num_heads=2)
KINDS = ('adapter', 'layers', 'head')


def _trunk():
  return transformer.init(CONFIG, jax.random.key(0))


def _ensemble(kind):
  """The config, and members that differ in all they have of their own."""
  config, trunk = CONFIG, _trunk()
  base, own = {
      'adapter': lambda: (trunk, None), 'head': lambda: (trunk, {}),
      'layers': lambda: lora.split_layers(trunk, 1)}[kind]()
  if own is None:
    config, adapter = lora.init(
        CONFIG, trunk, jax.random.key(1), rank=2, alpha=4.)
    own = {'adapter': adapter}
  members = reward_models.init_members(
      config, jax.random.split(jax.random.key(2), E), trunk=own)
  keys = iter(jax.random.split(jax.random.key(3), 99))
  members = jax.tree.map(
      lambda x: x + .1 * jax.random.normal(next(keys), x.shape), members)
  return config, {'base': heads.trunk(base)} | members


def _rows():
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 50, (5, 2, 17)).astype(np.int32)
  length = rng.integers(9, 18, (5, 2, 1))
  return tokens, (np.arange(17) >= 6) & (np.arange(17) < length)


class ParametersTest(parameterized.TestCase):

  @parameterized.parameters(*KINDS)
  def test_what_is_shared_and_what_is_not(self, kind):
    _, params = _ensemble(kind)
    self.assertEqual('trunk' in params, kind != 'head')
    shared, own = parameters.split(params)
    self.assertEqual(set(shared), {'base'})
    self.assertEqual(shared | own, params)
    self.assertEqual(parameters.num_members(params), E)
    for at, shape in ((2, ()), (slice(1, 2), (1,))):
      one = parameters.take(params, at)
      self.assertIs(one['base'], params['base'])
      self.assertEqual(one['head']['bias'].shape, shape)
      np.testing.assert_array_equal(
          one['head']['weight'], params['head']['weight'][at])
    again = parameters.alone(parameters.take(params, 1))
    jax.tree.map(np.testing.assert_array_equal, again,
                 parameters.take(params, slice(1, 2)))

  def test_all_of_a_trunk_that_is_trained(self):
    params = reward_models.init_members(
        CONFIG, jax.random.split(jax.random.key(2), E))
    self.assertEqual(parameters.split(params), ({}, params))
    self.assertIs(parameters.trunk_of(params)['embed'],
                  params['trunk']['embed'])

  @parameterized.parameters(*KINDS)
  def test_every_member_scores_as_it_does_alone(self, kind):
    config, params = _ensemble(kind)
    tokens, mask = _rows()
    alone = np.stack([reward_models.score(
        config, parameters.take(params, member), tokens, mask)
                      for member in range(E)])
    self.assertGreater(np.abs(alone[0] - alone[1]).min(), 1e-3)
    np.testing.assert_allclose(
        reward_models.score_members(config, params, tokens, mask), alone,
        atol=1e-5)
    np.testing.assert_allclose(reward_models.score_rows(
        config, params, tokens, mask, chunk_size=4), alone, atol=1e-5)
    with worlds.devices(8, data=2, fsdp=2, tensor=2):
      np.testing.assert_allclose(reward_models.score_rows(
          config, params, tokens, mask), alone, atol=1e-5)

  def test_features_stand_for_a_frozen_trunk(self):
    config, params = _ensemble('head')
    tokens, mask = _rows()
    features = reward_models.read_rows(
        config, params['base'], tokens, mask, chunk_size=3)
    self.assertEqual(features.shape, (5, 2, 16))
    # The state at the last token of the response, one row at a time.
    for row, present, got in zip(tokens[:, 1], mask[:, 1], features[:, 1]):
      end = int(np.flatnonzero(present)[-1]) + 1
      whole = transformer.hidden_states(config, params['base'], row[None, :end])
      np.testing.assert_allclose(got, whole[0, -1], atol=1e-5)
    expected = reward_models.score_members(config, params, tokens, mask)
    np.testing.assert_allclose(
        reward_models.score_features(params, features), expected, atol=1e-5)
    # And in a train step, where nothing else is read.
    one = parameters.split(parameters.take(params, 0))[1]
    out = reward_models.forward(config, one, types.Batch(
        tokens=0 * tokens, mask=mask, features=features))
    np.testing.assert_allclose(out.scores, expected[0], atol=1e-5)

  def test_adapters_drop_out_in_training_alone(self):
    config, params = _ensemble('adapter')
    config = config.replace(adapter_dropout=.5)
    one, (tokens, mask) = parameters.take(params, 0), _rows()
    batch = types.Batch(tokens=tokens, mask=mask)
    scores = lambda key: np.asarray(reward_models.forward(
        config, one, batch, dropout_key=key).scores)
    np.testing.assert_allclose(
        scores(None), reward_models.score(config, one, tokens, mask))
    first, second = map(scores, jax.random.split(jax.random.key(0)))
    self.assertGreater(np.abs(first - second).max(), 1e-3)


if __name__ == '__main__':
  absltest.main()
