"""Tests for rlhf_jax.rewards.models."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import decoder_twin
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.rewards import models as reward_models

V, E, B, K, T = 9, 3, 2, 3, 7
CONFIG = transformer.make_config(
    'llama', vocab_size=V, hidden_size=8, num_layers=2, num_heads=2,
    intermediate_size=12)


@functools.cache
def _trunk():
  return jax.jit(transformer.init, static_argnums=0)(
      CONFIG, jax.random.key(0))


@functools.cache
def _members():
  members = reward_models.init_members(
      CONFIG, jax.random.split(jax.random.key(1), E), trunk=_trunk())
  members['head']['bias'] = jnp.arange(1., E + 1)
  return members


def _member(i):
  return jax.tree.map(lambda x: x[i], _members())


_score = jax.jit(reward_models.score, static_argnums=0)
_score_members = jax.jit(reward_models.score_members, static_argnums=0)


def _responses(shape=(B, K), width=T, seed=0):
  """Ragged rows; the last one ends at the edge."""
  rng = np.random.default_rng(seed)
  start = rng.integers(1, 3, size=(*shape, 1))
  end = rng.integers(3, width, size=(*shape, 1))
  end.reshape(-1)[-1] = width
  at = np.arange(width)
  tokens = rng.integers(0, V, size=(*shape, width), dtype=np.int32)
  return tokens, (at >= start) & (at < end), end[..., 0]


class ScoreTest(parameterized.TestCase):

  def test_is_read_at_the_last_response_token(self):
    tokens, mask, end = _responses()
    params = _member(0)
    hidden = jax.jit(transformer.hidden_states, static_argnums=0)(
        CONFIG, params['trunk'], tokens.reshape(-1, T)).reshape(B, K, T, -1)
    last = np.take_along_axis(
        np.asarray(hidden), (end - 1)[..., None, None], axis=2)[:, :, 0]
    expected = last @ np.asarray(params['head']['weight']) + 1
    scores = _score(CONFIG, params, tokens, mask)
    self.assertEqual(scores.shape, (B, K))
    np.testing.assert_allclose(scores, expected, atol=1e-5)

  def test_what_follows_is_inert_what_precedes_is_not(self):
    tokens, mask, end = _responses()
    score = lambda x: np.asarray(_score(CONFIG, _member(0), x, mask))
    behind = np.arange(T) >= end[..., None]
    other = np.where(behind, (tokens + 1) % V, tokens)
    self.assertGreater((other != tokens).sum(), 0)
    np.testing.assert_allclose(score(other), score(tokens), atol=1e-6)
    for t in (np.zeros_like(end), end - 1):
      other = np.where(np.arange(T) == t[..., None], (tokens + 1) % V, tokens)
      self.assertGreater(np.abs(score(other) - score(tokens)).min(), 1e-4)

  def test_empty_response_is_finite(self):
    tokens, mask, _ = _responses()
    chex.assert_tree_all_finite(
        _score(CONFIG, _member(0), tokens, np.zeros_like(mask)))
    with self.assertRaises(AssertionError):
      reward_models.score(CONFIG, _member(0), tokens, mask[:, 0])

  def test_forward_is_score(self):
    tokens, mask, _ = _responses()
    out = jax.jit(reward_models.forward, static_argnums=0)(
        CONFIG, _member(1), types.Batch(tokens, mask))
    np.testing.assert_allclose(
        out.scores, _score(CONFIG, _member(1), tokens, mask), atol=1e-5)
    self.assertIsNone(out.logprobs)


# Learned positions and windows; a bias of the unembedding, one norm.
OTHERS = {
    'gpt_neo': dict(max_positions=T, windows=(0, 2)), 'gptj': {},
    'mistral': dict(windows=(2, 3), num_kv_heads=1)}


class FamilyTest(parameterized.TestCase):

  def _model(self, family):
    config = transformer.make_config(
        family, vocab_size=V, hidden_size=16, num_layers=2, num_heads=2,
        intermediate_size=12, dropout=.5, **OTHERS[family])
    shapes = jax.eval_shape(
        functools.partial(transformer.init, config), jax.random.key(0))
    rng = np.random.default_rng(4)
    trunk = jax.tree.map(lambda x: jnp.asarray(
        .4 * rng.normal(size=x.shape), x.dtype), shapes)
    params = reward_models.init(config, jax.random.key(1), trunk=trunk)
    self.assertEqual(set(trunk) - set(params['trunk']),
                     {'unembed', 'unembed_bias'} & set(trunk))
    return config, params

  @parameterized.parameters(*OTHERS)
  def test_scores_of_rows_padded_on_either_side(self, family):
    """Of every family; dropout is never on."""
    config, params = self._model(family)
    tokens, mask, end = _responses()
    tokens, mask, end = (
        x.reshape(-1, *x.shape[2:]) for x in (tokens, mask, end))
    # The twin knows no dropout, and the whole row no padding.
    expected = [
        decoder_twin.hidden_states(config, params['trunk'], row[:n])[-1]
        @ np.asarray(params['head']['weight'])
        for row, n in zip(tokens, end)]
    np.testing.assert_allclose(
        _score(config, params, tokens, mask), expected, atol=1e-4)
    left, left_mask = (np.stack([np.roll(x, T - n) for x, n in zip(y, end)])
                       for y in (tokens, mask))
    real = np.arange(T) >= T - end[:, None]
    scores = _score(config, params, left, left_mask, real)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    whole = _score(config, params, left.reshape(B, K, T),
                   left_mask.reshape(B, K, T), real.reshape(B, K, T))
    np.testing.assert_allclose(whole, scores.reshape(B, K), atol=1e-5)
    noise = np.where(real, left, (left + 1) % V)
    np.testing.assert_allclose(
        _score(config, params, noise, left_mask, real), scores, atol=1e-5)
    # Without the mask the padding would be read.
    self.assertGreater(np.abs(
        _score(config, params, left, left_mask) - scores).max(), 1e-3)

  def test_adapter_of_the_trunk(self):
    """A low-rank addition scores as the kernel that it is added to."""
    config = CONFIG.replace(adapter_scale=2., adapter_dropout=.5)
    tokens, mask, _ = _responses()
    rng = np.random.default_rng(6)
    draw = lambda *shape: jnp.asarray(.3 * rng.normal(size=shape), 'float32')
    a, b = draw(2, 8, 3), draw(2, 3, 8)
    trunk = _trunk() | {'adapter': {'layers': {'v': {'a': a, 'b': b}}}}
    layers = _trunk()['layers']
    merged = _trunk() | {'layers': layers | {'v': {
        'kernel': layers['v']['kernel'] + 2 * a @ b}}}
    keys = jax.random.split(jax.random.key(1), E)
    make = lambda trunk: reward_models.init_members(config, keys, trunk=trunk)
    adapted = make(trunk)
    self.assertEqual(
        adapted['trunk']['adapter']['layers']['v']['a'].shape, (E, 2, 8, 3))
    scores = _score_members(config, adapted, tokens, mask)
    np.testing.assert_allclose(
        scores, _score_members(config, make(merged), tokens, mask), atol=1e-5)
    plain = _score_members(config, make(_trunk()), tokens, mask)
    self.assertGreater(np.abs(scores - plain).max(), .01)


class MembersTest(parameterized.TestCase):

  def test_one_call_equals_the_loop(self):
    tokens, mask, _ = _responses()
    together = _score_members(CONFIG, _members(), tokens, mask)
    apart = [_score(CONFIG, _member(i), tokens, mask) for i in range(E)]
    self.assertEqual(together.shape, (E, B, K))
    np.testing.assert_allclose(together, apart, atol=1e-5)
    self.assertGreater(np.abs(together[0] - together[1]).min(), 1e-3)

  def test_one_trunk_and_own_heads(self):
    members = _members()
    self.assertNotIn('unembed', members['trunk'])
    for leaf, shared in zip(
        jax.tree.leaves(members['trunk']),
        jax.tree.leaves({k: v for k, v in _trunk().items()
                         if k != 'unembed'}), strict=True):
      for i in range(E):
        np.testing.assert_array_equal(leaf[i], shared)
    weight = members['head']['weight']
    self.assertEqual(weight.shape, (E, 8))
    self.assertLen(np.unique(weight), 8 * E)

  def test_fresh_trunks_differ(self):
    keys = jax.random.split(jax.random.key(1), 2)
    members = jax.jit(
        reward_models.init_members, static_argnums=0)(CONFIG, keys)
    embed = members['trunk']['embed']
    self.assertGreater(np.abs(embed[0] - embed[1]).max(), .1)
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[1], members),
        jax.jit(reward_models.init, static_argnums=0)(CONFIG, keys[1]),
        atol=1e-6)

  @parameterized.parameters(1., .2)
  def test_head_scale(self, scale):
    keys = jax.random.split(jax.random.key(0), 1000)
    members = reward_models.init_members(
        CONFIG, keys, trunk=_trunk(), head_scale=scale)
    weight = np.asarray(members['head']['weight'], np.float64)
    expected = scale**2 / 8  # of a hidden state of size 8
    for variance in (weight**2).mean(axis=0):  # of each weight, over keys
      self.assertAlmostEqual(variance / expected, 1, delta=5 * .002**.5)
    self.assertAlmostEqual((weight**2).mean() / expected, 1, delta=.05)


COUNTED = {'trunk': {}, 'head': {'bias': np.zeros(2)}}


def _fake(config, params, tokens, mask):
  """Two members: a sum of tokens, and the place of the last."""
  del config, params
  tokens, mask = np.asarray(tokens), np.asarray(mask)
  place = np.arange(1, tokens.shape[1] + 1) * mask
  return np.stack([(tokens * mask).sum(-1), place.max(-1)], axis=-1)


class RowsTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 5, 12, 13, 14, 2048)
  def test_chunks_cover_every_row_once(self, chunk_size):
    tokens, mask, end = _responses((13,), width=21)
    shapes, polls = [], []

    def fake(config, params, tokens, mask):
      self.assertLen(polls, len(shapes) + 1)  # once before each
      shapes.append(tokens.shape)
      return _fake(config, params, tokens, mask)

    with mock.patch.object(reward_models, '_score_chunk', fake):
      scores = reward_models.score_rows(
          CONFIG, COUNTED, tokens, mask, chunk_size=chunk_size,
          poll=lambda: polls.append(1))
    np.testing.assert_array_equal(
        scores, [(tokens * mask).sum(-1), end])
    self.assertEqual(scores.dtype, np.float32)
    self.assertLen(shapes, -(-13 // chunk_size))
    self.assertLen(polls, len(shapes))
    self.assertEqual({n for n, _ in shapes}, {min(13, chunk_size)})
    # No wider than the longest row it holds, rounded up.
    widths, longest = [w for _, w in shapes], np.sort(end)
    for i, width in enumerate(widths):
      needed = longest[min((i + 1) * chunk_size, 13) - 1]
      self.assertEqual(width, min(21, -(-needed // 8) * 8))

  def test_chunks_split_over_the_mesh(self):
    """Of 13 rows in chunks of at most 5, each is of 8, a row a device."""
    tokens, mask, end = _responses((13,), width=21)
    placed = []

    def fake(config, params, tokens, mask):
      placed.append((tokens.shape[0], tokens.sharding.spec,
                     len(tokens.sharding.device_set),
                     params['head']['bias'].is_fully_replicated))
      return _fake(config, params, tokens, mask)

    with worlds.devices(8), mock.patch.object(
        reward_models, '_score_chunk', fake):
      scores = reward_models.score_rows(
          CONFIG, COUNTED, tokens, mask, chunk_size=5)
    np.testing.assert_array_equal(scores, [(tokens * mask).sum(-1), end])
    self.assertEqual(placed, [(8, PartitionSpec(meshes.ROWS), 8, True)] * 2)

  @parameterized.parameters(1, 8)
  def test_equals_score_in_any_order_and_in_any_cut(self, num_devices):
    tokens, mask, _ = _responses((10,), width=18)
    expected = _score_members(CONFIG, _members(), tokens, mask)
    shuffle = np.random.default_rng(3).permutation(10)
    for order, chunk_size in ((np.arange(10), 2048), (shuffle, 4)):
      with worlds.devices(num_devices):
        scores = reward_models.score_rows(
            CONFIG, _members(), tokens[order], mask[order],
            chunk_size=chunk_size)
      np.testing.assert_allclose(scores, expected[:, order], atol=1e-5)

  def test_eight_devices_say_what_one_says(self):
    """Of rows with several axes, and more or fewer of them than devices."""
    for shape in ((3, 7), (2,)):
      tokens, mask, _ = _responses(shape, width=18)
      score = lambda t=tokens, m=mask: reward_models.score_rows(
          CONFIG, _members(), t, m)
      one = score()
      with worlds.devices(8):
        eight = score()
      self.assertEqual(eight.shape, (E, *shape))
      np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6)

  def test_parameters_from_one_device_score_on_all(self):
    """As a checkpoint restores them: committed to the first device."""
    tokens, mask, _ = _responses((11,), width=18)
    members = jax.device_put(_members(), jax.devices()[0])
    with worlds.devices(8):
      scores = reward_models.score_rows(CONFIG, members, tokens, mask)
    np.testing.assert_allclose(
        scores, _score_members(CONFIG, _members(), tokens, mask), atol=1e-5)

  def test_poll_may_stop(self):
    tokens, mask, _ = _responses((4,))
    def poll():
      raise KeyboardInterrupt
    with self.assertRaises(KeyboardInterrupt):
      reward_models.score_rows(CONFIG, _members(), tokens, mask, poll=poll)


class ChunkTest(absltest.TestCase):

  def test_fewer_rows_where_they_are_long(self):
    rows = lambda members, width: reward_models.rows_per_chunk(
        CONFIG, members, width, 2048)
    self.assertEqual(rows(5, 32), 2048)
    self.assertEqual(
        rows(5, 776), 2**30 // (4 * 5 * CONFIG.num_heads * 776**2))
    self.assertEqual(rows(5, 10**6), 1)

  def test_a_trunk_of_all_members_reads_once(self):
    tokens, mask, _ = _responses((4,))
    trunk = heads.trunk(transformer.init(CONFIG, jax.random.key(0)))
    members = {'base': trunk, 'head': _members()['head']}
    with mock.patch.object(reward_models, 'rows_per_chunk',
                           return_value=4) as rows:
      scores = reward_models.score_rows(CONFIG, members, tokens, mask)
      reward_models.score_rows(CONFIG, _members(), tokens, mask)
    self.assertEqual([call.args[1] for call in rows.mock_calls], [1, E])
    np.testing.assert_allclose(scores, reward_models.score_members(
        CONFIG, members, tokens, mask), atol=1e-5)

  def test_foreign_tokens(self):
    tokens = np.full((1, 4), CONFIG.vocab_size, np.int32)
    with self.assertRaisesRegex(errors.DataError, 'outside the vocabulary'):
      reward_models.score_rows(CONFIG, _members(), tokens, tokens > 0)


class RewardModelsTest(absltest.TestCase):

  def test_standardised_where_there_is_a_scale(self):
    tokens, mask, _ = _responses()
    raw = np.asarray(_score_members(CONFIG, _members(), tokens, mask))
    bare = reward_models.RewardModels(CONFIG, _members())
    self.assertEqual(bare.num_members, E)
    np.testing.assert_allclose(bare.scores(tokens, mask), raw, atol=1e-5)
    scaled = bare._replace(scale={
        'mean': np.float32([1, -2, 0]), 'std': np.float32([2, .5, 0])})
    np.testing.assert_allclose(
        scaled.scores(tokens, mask),
        [(raw[0] - 1) / 2, (raw[1] + 2) / .5, raw[2]], atol=1e-4)
    np.testing.assert_array_equal(
        scaled.scores(tokens, mask, standardize=False),
        bare.scores(tokens, mask))


if __name__ == '__main__':
  absltest.main()
