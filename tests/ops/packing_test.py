"""Tests for rlhf_jax.ops.packing: packed rows say what rows say."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import nucleus
from rlhf_jax.ops import packing
from rlhf_jax.rewards import models as reward_models

WIDTH, VOCAB = 12, 23
FAMILIES = {
    'rotary': dict(family='llama', num_kv_heads=1),
    'learned': dict(family='gpt2', max_positions=WIDTH),
    'windows': dict(family='llama', windows=(3, 0)),
    'parallel': dict(family='gpt_neox', rotary_fraction=.5),
}


def _config(name):
  return transformer.make_config(
      vocab_size=VOCAB, hidden_size=8, num_layers=2, num_heads=2,
      **FAMILIES[name])


def _batch(count=6, responses=2, seed=0):
  """Ragged rows, one of them without a response and one full."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(3, WIDTH + 1, size=(count, responses))
  lengths[0] = (0, WIDTH)[:responses]
  column = np.arange(WIDTH)
  return types.Batch(
      tokens=rng.integers(0, VOCAB, size=(
          count, responses, WIDTH)).astype(np.int32),
      mask=(column >= 2) & (column < lengths[..., None]))


def _packed(batch, layout=packing.WHOLE):
  return packing.pack(batch, packing.size_of(batch, layout), layout)


class PlaceTest(parameterized.TestCase):

  def test_by_hand(self):
    # 6 opens a row, 5 another; 4 goes to the first, 3 to the second, 2 there.
    row, column, number = packing.place(np.array([2, 6, 3, 5, 4, 0]), 10)
    np.testing.assert_array_equal(row, [1, 0, 1, 1, 0, 0])
    np.testing.assert_array_equal(column, [8, 0, 5, 0, 6, 0])
    self.assertEqual(number, 2)

  @parameterized.parameters(range(5))
  def test_pieces_are_apart_and_near_the_fewest_rows(self, seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 20, size=50)
    row, column, number = packing.place(lengths, 20)
    taken = np.zeros((number, 20), int)
    for r, c, length in zip(row, column, lengths, strict=True):
      taken[r, c:c + length] += 1
    self.assertEqual(taken.max(), 1)
    self.assertEqual(taken.sum(), lengths.sum())
    self.assertLessEqual(number, 11 / 9 * -(-lengths.sum() // 20) + 1)

  def test_none(self):
    self.assertEqual(packing.place(np.zeros(3, int), 4)[2], 0)

  def test_rejects(self):
    with self.assertRaisesRegex(ValueError, '9 tokens.*rows of 8'):
      packing.place(np.array([3, 9]), 8)


class LayoutTest(parameterized.TestCase):

  @parameterized.product(shards=(1, 2), microbatches=(1, 3))
  def test_groups_are_what_a_device_reads_in_a_microbatch(
      self, shards, microbatches):
    rows = np.arange(12)
    layout = packing.Layout(shards, microbatches)
    groups = layout.groups(rows)
    # As `train` cuts: every so many-th row, of which each device has a block.
    expected = [part for block in np.split(rows, shards)
                for part in [block[m::microbatches]
                             for m in range(microbatches)]]
    np.testing.assert_array_equal(groups, expected)
    np.testing.assert_array_equal(layout.batch(groups), rows)


class PackTest(absltest.TestCase):

  def test_each_piece_stands_once(self):
    batch = _batch()
    packed = _packed(batch).packed
    tokens = packed.tokens.reshape(-1)
    for piece, (row, mask, start) in enumerate(zip(
        batch.tokens.reshape(-1, WIDTH), batch.mask.reshape(-1, WIDTH),
        packed.starts.ravel(), strict=True)):
      at = np.flatnonzero(packed.segments.reshape(-1) == piece + 1)
      length = np.flatnonzero(mask)[-1] + 1 if mask.any() else 0
      self.assertLen(at, length)
      if length:
        np.testing.assert_array_equal(at, start + np.arange(length))
        np.testing.assert_array_equal(tokens[at], row[:length])
    self.assertLess(packed.tokens.shape[1], batch.mask.any(-1).sum())

  def test_the_size_is_of_the_largest_group_and_member(self):
    batch = _batch()
    groups = packing.Layout(2)
    halves = [jax.tree.map(lambda x, at=at: x[at], batch)
              for at in (slice(3), slice(3, 6))]
    sizes = [packing.size_of(half) for half in halves]
    self.assertNotEqual(*sizes)
    largest = packing.Size(*np.max(sizes, axis=0))
    self.assertEqual(packing.size_of(batch, groups), largest)
    members = jax.tree.map(lambda *x: np.stack(x), *halves)
    self.assertEqual(packing.size_of(members), largest)
    both = _packed(members).packed
    for member, half in enumerate(halves):
      chex.assert_trees_all_equal(
          jax.tree.map(lambda x, at=member: x[at], both),
          packing.pack(half, largest).packed)


def _everything(config):
  """A policy with all heads, so that every output is compared."""
  keys = jax.random.split(jax.random.key(0), 4)
  scalar = lambda key: heads.init_scalar(key, config.hidden_size)
  return transformer.init(config, keys[0]) | {
      'value_head': scalar(keys[1]), 'reward_head': scalar(keys[2]),
      'q_heads': heads.init_q(keys[3], config.hidden_size, VOCAB)}


class LawTest(parameterized.TestCase):

  @parameterized.parameters(
      ('rotary', packing.Layout(3)), *[(f, packing.WHOLE)
                                       for f in list(FAMILIES)[1:]])
  def test_a_policy_says_the_same(self, family, layout):
    config, batch = _config(family), _batch()
    params = _everything(config)
    forward = jax.jit(functools.partial(policy.forward, config))

    def read(batch):
      out = forward(params, batch, params['q_heads'])
      scores, out = out.scores, out.replace(scores=None)
      keep = lambda x: jnp.where(batch.mask, x, 0)
      return jax.tree.map(keep, out), jnp.where(
          batch.mask.any(-1), scores, 0), out.logprobs[..., 0]

    plain, packed = read(batch), read(_packed(batch, layout))
    chex.assert_trees_all_close(plain, packed, atol=2e-6)
    self.assertGreater(float(jnp.abs(plain[0].logprobs).max()), 1)

  @parameterized.parameters('learned', 'windows')
  def test_and_has_the_same_gradient(self, family):
    config, batch = _config(family), _batch()
    params = transformer.init(config, jax.random.key(1))
    weight = jax.random.normal(jax.random.key(2), batch.mask.shape)

    @jax.jit
    @jax.grad
    def gradient(params, batch):
      out = policy.forward(config, params, batch)
      return jnp.mean(jnp.where(
          batch.mask, weight * out.logprobs + out.entropy, 0))

    chex.assert_trees_all_close(
        gradient(params, batch), gradient(params, _packed(batch)), atol=1e-6)

  @parameterized.parameters(
      ('learned', False), ('windows', False), ('rotary', True))
  def test_a_reward_model_too(self, family, per_step):
    config, batch = _config(family), _batch()
    params = reward_models.init(config, jax.random.key(3))
    there = batch.mask if per_step else batch.mask.any(-1)

    @jax.jit
    @jax.value_and_grad
    def both(params, batch):
      out = reward_models.forward(config, params, batch, per_step=per_step)
      read = out.step_rewards if per_step else out.scores
      return jnp.mean(jnp.where(there, read, 0) ** 2)

    chex.assert_trees_all_close(
        both(params, batch), both(params, _packed(batch)), atol=1e-6)

  def test_padding_may_hold_any_token(self):
    config, batch = _config('rotary'), _batch()
    params = transformer.init(config, jax.random.key(1))
    packed = _packed(batch)
    blank = packed.packed.segments == 0
    self.assertTrue(blank.any())
    other = packed.replace(packed=packed.packed.replace(
        tokens=np.where(blank, VOCAB - 1, packed.packed.tokens)))
    read = lambda batch: jnp.where(
        batch.mask, policy.forward(config, params, batch).logprobs, 0)
    np.testing.assert_array_equal(read(packed), read(other))

  def test_rejects(self):
    config, batch = _config('rotary'), _packed(_batch())
    params = transformer.init(config, jax.random.key(1))
    rows, segments = packing.rows(batch)
    with self.assertRaisesRegex(ValueError, 'exclude each other'):
      transformer.hidden_states(
          config, params, rows, rows > 0, segments=segments)
    with self.assertRaisesRegex(ValueError, 'no packed rows'):
      policy.forward(config, params, batch,
                     guide=nucleus.Guide(params, 0.9))


if __name__ == '__main__':
  absltest.main()
