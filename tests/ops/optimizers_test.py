"""Tests for rlhf_jax.ops.optimizers; `train_test.py` has its schedules."""

import functools

from absl.testing import absltest
import jax
import numpy as np
import optax

from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import optimizers

SIZES = dict(vocab_size=11, hidden_size=16, num_layers=2, num_heads=2)
RATE, DECAY = .1, .5


class DecayTest(absltest.TestCase):

  def params(self):
    """Of a decoder with every kind of bias, and a head."""
    config = transformer.make_config('gptj', intermediate_size=12, **SIZES)
    keys = jax.random.split(jax.random.key(0))
    shapes = jax.eval_shape(functools.partial(
        transformer.init, config), keys[0])
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        {'policy': shapes, 'value_head': jax.eval_shape(
            lambda key: heads.init_scalar(key, 16, scale=1., mlp=True),
            keys[1])})

  def shrunk(self, **kwargs):
    """The names of what a step without a gradient makes smaller, and not."""
    params = self.params()
    tx = optimizers.adamw(
        learning_rate=RATE, num_steps=9, schedule='constant',
        weight_decay=DECAY, **kwargs)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    names = {True: set(), False: set()}
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(after)):
      changed = bool(np.any(old != new))
      np.testing.assert_allclose(
          new, old * (1 - RATE * DECAY * changed), rtol=1e-6)
      names[changed].add(path[-1].key)
    return names

  def test_biases_and_scales_stay(self):
    names = self.shrunk()
    self.assertEqual(names[True], {'embed', 'unembed', 'kernel', 'weight'})
    self.assertEqual(names[False], {'bias', 'scale', 'unembed_bias'})

  def test_all_if_asked(self):
    names = self.shrunk(decay_all=True)
    self.assertEmpty(names[False])
    self.assertIn('scale', names[True])


if __name__ == '__main__':
  absltest.main()
