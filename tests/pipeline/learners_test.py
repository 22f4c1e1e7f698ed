"""Tests for rlhf_jax.pipeline.learners."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax
import worlds

from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.configs import base
from rlhf_jax.models import transformer
from rlhf_jax.pipeline import learners
from rlhf_jax.rewards import models as reward_models

CONFIG = transformer.make_config('llama', vocab_size=9, **{
    k: v for k, v in worlds.MODEL.items() if k != 'family'})
OPTIMIZER = base.optimizer(1e-2, warmup_steps=1)


def make(**changes):
  return learners.learner(**{
      'forward': policy.forward, 'config': CONFIG, 'objective': {'name': 'sft'},
      'num_steps': 4, 'optimizer': OPTIMIZER, 'num_microbatches': 1, **changes})


def batch():
  tokens = np.random.default_rng(0).integers(0, 9, (4, 1, 5))
  return types.Batch(tokens=tokens, mask=np.ones(tokens.shape, bool))


class LearnerTest(parameterized.TestCase):

  def test_the_same_for_the_same_arguments(self):
    self.assertIs(make().step, make(optimizer=dict(OPTIMIZER)).step)

  @parameterized.parameters(
      dict(config=CONFIG.replace(num_layers=2)), dict(num_steps=5),
      dict(objective={'name': 'sft', 'aggregate': 'sequence'}),
      dict(num_microbatches=2), dict(optimizer=base.optimizer(1e-3)),
      dict(members=2), dict(forward=reward_models.forward))
  def test_another_for_others(self, **changes):
    self.assertIsNot(make().step, make(**changes).step)

  @parameterized.parameters(0, 1, 2)
  def test_a_step(self, members):
    """Of `train`, by the optimizer that was asked for, of every member."""
    one = make(members=members)
    params = transformer.init(CONFIG, jax.random.key(0))
    stack = lambda tree: jax.tree.map(
        lambda x: np.stack([x] * members), tree) if members else tree
    keys = jax.random.split(jax.random.key(1), members) if members else (
        jax.random.key(1))
    state = train.place_state(stack(params), one.tx, keys, members=members)
    rows = stack(batch())
    for _ in range(2):
      state, _ = one.step(state, rows)
    loss = lambda params: objectives.get('sft')(
        policy.forward(CONFIG, params, batch()), batch()).loss.mean()
    tx = train.optimizer(**OPTIMIZER, num_steps=4)
    expected, opt = params, tx.init(params)
    for _ in range(2):
      updates, opt = tx.update(jax.grad(loss)(expected), opt, expected)
      expected = optax.apply_updates(expected, updates)
    for i in range(members or 1):
      jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(
          x[i] if members else x, y, atol=1e-5), state.params, expected)

  def test_dropout_where_the_model_has_it(self):
    for field in ('dropout', 'adapter_dropout'):
      with mock.patch.object(train, 'make_train_step') as called:
        make(config=CONFIG.replace(**{field: .25}))
      self.assertTrue(called.call_args.kwargs['dropout'])


if __name__ == '__main__':
  absltest.main()
