"""Tests for rlhf_jax.stages.policy_parts."""

import json
import pathlib
import tempfile
import types

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.models import transformer
from rlhf_jax.pipeline import policies

CONFIG = transformer.Config(vocab_size=7, hidden_size=4, intermediate_size=8,
                            num_layers=1, num_heads=2)
KEY = jax.random.key(3)


def decoder(value):
  """What stands for a decoder."""
  return {'embed': jnp.full((7, 4), value), 'layers': {'q': jnp.full(3, value)},
          'norm': jnp.full(4, value), 'unembed': jnp.full((7, 4), -value)}


def add(trunk, trainable=None, **changes):
  given = dict(mlp=True, scale=.5, trunk=trunk)
  return policies.add_value_head(
      trainable or decoder(1.), given | changes, CONFIG, KEY,
      reference=decoder(2.), reward={
          'trunk': {'embed': jnp.arange(6.).reshape(2, 3)},
          'head': {'weight': jnp.arange(8.).reshape(2, 4)}},
      reward_config='that of the reward models')


class ValueHeadTest(parameterized.TestCase):

  def test_shared(self):
    found, config = add('shared')
    self.assertIsNone(config)
    self.assertEqual(found.keys(), {*decoder(1.), 'value_head'})
    self.assertEqual(found['value_head']['weight'].shape, (8,))
    self.assertGreater(jnp.abs(found['value_head']['weight']).max(), 0)
    plain, _ = add('shared', mlp=False, scale=0.)
    np.testing.assert_array_equal(plain['value_head']['weight'], jnp.zeros(4))

  def test_separate_is_a_copy_of_the_reference(self):
    reference = decoder(2.)
    found, config = policies.add_value_head(
        decoder(1.), dict(mlp=False, scale=1., trunk='separate'), CONFIG, KEY,
        reference=reference)
    self.assertIs(config, CONFIG)
    self.assertNotIn('unembed', found['value_trunk'])
    np.testing.assert_array_equal(found['value_trunk']['embed'],
                                  reference['embed'])
    # A step that donates it leaves the reference as it is.
    jax.tree.map(lambda x: x.delete(), found['value_trunk'])
    np.testing.assert_array_equal(reference['embed'], jnp.full((7, 4), 2.))
    np.testing.assert_array_equal(found['embed'], jnp.full((7, 4), 1.))

  def test_reward_is_the_first_member(self):
    found, config = add('reward')
    self.assertEqual(config, 'that of the reward models')
    np.testing.assert_array_equal(found['value_trunk']['embed'], [0, 1, 2])
    np.testing.assert_array_equal(found['value_head']['weight'], [0, 1, 2, 3])

  @parameterized.parameters(*policies.TRUNKS)
  def test_policy_is_not_changed(self, trunk):
    trainable = decoder(1.)
    found, _ = add(trunk, trainable)
    self.assertNotIn('value_head', trainable)
    for name, x in trainable.items():
      self.assertIs(found[name], x)


class Watch:
  """A monitor of which everything is known."""

  def __call__(self, params, *, step):
    self.params = params
    return types.SimpleNamespace(row={'gold': params + step, 'kl_k1': 0.})

  def texts(self, found, count):
    return [{'response': f'{found.row["gold"]}'}] * count

  def final_rows(self, found):
    return [{'gold': found.row['gold']}, {'gold': -1.}]


class EvaluatorTest(absltest.TestCase):

  def test_files_and_rows(self):
    directory = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory()))
    evaluate = policies.evaluator(
        types.SimpleNamespace(directory=directory), Watch(), texts=2,
        num_steps=6, params=lambda state: 100 * state,
        counts=lambda step: {'updates': 4 * step})
    self.assertEqual(evaluate(3, 1), {'updates': 12, 'gold': 103, 'kl_k1': 0})
    read = lambda name: json.loads((directory / name).read_text())
    self.assertEqual(read('texts/000003.json'), [{'response': '103'}] * 2)
    self.assertFalse((directory / 'final.jsonl').exists())
    self.assertEqual(evaluate(6, 2)['gold'], 206)
    self.assertEqual(read('texts/000006.json'), [{'response': '206'}] * 2)
    rows = (directory / 'final.jsonl').read_text().splitlines()
    self.assertEqual([json.loads(row)['gold'] for row in rows], [206, -1])

  def test_of_a_run_that_goes_on(self):
    directory = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory()))
    for _ in range(2):
      policies.evaluator(
          types.SimpleNamespace(directory=directory), Watch(), texts=1,
          num_steps=0, params=float, counts=lambda step: {})(0, 1)
    self.assertLen((directory / 'final.jsonl').read_text().splitlines(), 2)


if __name__ == '__main__':
  absltest.main()
