"""Tests for rlhf_jax.running."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import types
from rlhf_jax.annotators import arithmetic
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import running
from rlhf_jax.ops import advantages

NAN = np.nan
# [Ex 5.1], and its k1, k2 and k3.
GAP = (.3, -.2, .1)
SUMS = {'kl_k1': .2, 'kl_k2': .07, 'kl_k3': .067058}


def _batch(scores, gap=GAP, **fields):
  """Responses of a token for each log-ratio; the NaN of `scores` are missing.

  What stands beside a response, or instead of a missing one, is NaN.
  """
  scores = np.float32(scores)
  mask = np.pad(np.ones(len(gap), bool), 1) & ~np.isnan(scores)[..., None]
  logprobs = lambda x: np.where(mask, np.pad(x, 1) - 1, NAN).astype(np.float32)
  return jax.tree.map(jnp.asarray, types.Batch(
      tokens=np.zeros(mask.shape, np.int32), mask=mask, scores=scores,
      old_logprobs=logprobs(gap), ref_logprobs=logprobs(np.zeros(len(gap))),
      **fields))


def _state(nodes=(), seed=0, kl_coef=None):
  return types.TrainState(
      step=jnp.int32(0), params=None, opt_state=None,
      key=jax.random.key(seed),
      statistics=running.init(nodes, kl_coef=kl_coef))


def _node(name, **kwargs):
  return {'name': name, **kwargs}


class InitTest(absltest.TestCase):

  def test_has_what_the_nodes_use(self):
    nodes = [_node('noise', sigma=1.), _node('kl_scores', kl_coef=.2)]
    self.assertEqual(running.init(nodes), {})
    actual = running.init([
        *nodes, _node('moving_average'), _node('scale_scores'),
        _node('adapt_kl_coef', target=6., horizon=100.)])
    self.assertCountEqual(actual, ['kl_coef', 'baseline', 'score_moments'])
    np.testing.assert_allclose(actual.pop('kl_coef'), .2)
    for leaf in jax.tree.leaves(actual):
      self.assertEqual((leaf, leaf.dtype, leaf.shape), (0, np.float32, ()))

  def test_a_controller_starts_above_zero(self):
    control = _node('adapt_kl_coef', target=6., horizon=100.)
    given = running.init([control], kl_coef=.3)['kl_coef']
    self.assertEqual((given, given.dtype), (np.float32(.3), np.float32))
    for nodes, kwargs in (([control], {}), ([control], {'kl_coef': 0.}), (
        [_node('kl_rewards', kl_coef=0.), control], {})):
      with self.assertRaisesRegex(ValueError, 'kl_coef must be > 0'):
        running.init(nodes, **kwargs)

  def test_missing_entries_are_named(self):
    for name, kwargs, entry in (
        ('moving_average', {}, 'baseline'),
        ('scale_scores', {}, 'score_moments'),
        ('adapt_kl_coef', dict(target=6., horizon=1.), 'kl_coef')):
      for state in (None, _state(), _state().replace(statistics=None)):
        with self.assertRaisesRegex(ValueError, f"'{entry}'.*running.init"):
          running.RUNNING[name](_batch([[1., 2.]]), state, **kwargs)


class NoiseTest(absltest.TestCase):

  def test_is_normal_and_of_each_sample_its_own(self):
    batch = _batch(np.full((200, 20), 7.), gap=(0.,))
    state = _state()
    out, after = running.noise(batch, state, sigma=3.)
    self.assertIs(after, state)
    drawn = np.asarray(out.scores - batch.scores)
    self.assertAlmostEqual(drawn.mean(), 0, delta=.2)  # 4 of its deviations
    self.assertAlmostEqual(drawn.std(), 3, delta=.15)
    # Between the samples of a prompt as much as between prompts.
    self.assertAlmostEqual(drawn.std(axis=1, ddof=1).mean(), 3, delta=.1)
    self.assertAlmostEqual(drawn.mean(axis=1).std(), 3 / 20**.5, delta=.15)

  def test_comes_from_the_key_and_scales_with_sigma(self):
    batch = _batch([[1., 2., 3., 6.]])
    draw = lambda sigma, seed: running.noise(
        batch, _state(seed=seed), sigma=sigma)[0].scores
    np.testing.assert_array_equal(draw(1., 0), draw(1., 0))
    np.testing.assert_array_equal(draw(0., 0), batch.scores)
    self.assertGreater(np.abs(draw(1., 0) - draw(1., 1)).min(), 1e-3)
    np.testing.assert_allclose(
        draw(3., 0) - batch.scores, 3 * (draw(1., 0) - batch.scores),
        rtol=1e-5)
    with self.assertRaisesRegex(ValueError, 'sigma must be >= 0, got -1'):
      draw(-1., 0)

  def test_reaches_rloo(self):
    # [Ex 7.6] what the samples of a prompt share does not.
    batch = _batch([[1., 2., 3., 6.]])
    actual = lambda b: arithmetic.leave_one_out(b).advantages
    expected = [[-8 / 3, -4 / 3, 0, 4]]
    for given in (batch, batch.replace(scores=batch.scores + 7)):
      np.testing.assert_allclose(actual(given), expected, atol=1e-6)
    noisy, _ = running.noise(batch, _state(), sigma=1.)
    self.assertGreater(np.abs(actual(noisy) - actual(batch)).max(), .1)


class ScaleScoresTest(parameterized.TestCase):

  def _fold(self, rollouts, **kwargs):
    state, actual = _state([_node('scale_scores')]), []
    step = jax.jit(functools.partial(running.scale_scores, **kwargs))
    for scores in rollouts:
      batch, state = step(_batch(scores), state)
      actual.append(batch.scores)
    return actual, state.statistics['score_moments']

  def test_running_by_hand(self):
    # Deviations, ddof 1, of 1 and 2, then of 1, 2, 3, 6; nothing is centred.
    actual, seen = self._fold([[[1., 2.]], [[3.], [6.]]])
    np.testing.assert_allclose(
        actual[0], [[2**.5, 2 * 2**.5]], rtol=1e-6)
    np.testing.assert_allclose(
        actual[1], np.array([[3], [6]]) / (14 / 3)**.5, rtol=1e-6)
    self.assertEqual((seen.count, seen.mean), (4, 3))

  def test_first_by_hand(self):
    actual, seen = self._fold([[[1., 2.]], [[3.], [6.]], [[1e4]]],
                              kind='first')
    np.testing.assert_allclose(
        np.concatenate([np.ravel(x) for x in actual]),
        np.array([1, 2, 3, 6, 1e4]) * 2**.5, rtol=1e-6)
    self.assertEqual((seen.count, seen.mean), (2, 1.5))

  def test_missing_and_broken_scores_do_not_count(self):
    actual, seen = self._fold([[[1., NAN], [2., np.inf]], [[3.], [6.]]])
    np.testing.assert_allclose(
        actual[0], np.array([[1, NAN], [2, np.inf]]) * 2**.5, rtol=1e-6)
    self.assertEqual((seen.count, seen.mean), (4, 3))

  def test_equal_scores_stay(self):
    actual, _ = self._fold([[[4., 4.]], [[4.]]])
    np.testing.assert_array_equal(actual[0], [[4, 4]])
    with self.assertRaisesRegex(ValueError, "kind.*'ref'"):
      self._fold([[[1.]]], kind='ref')


class MovingAverageTest(parameterized.TestCase):

  def test_by_hand(self):
    # [Ex 7.1], with a missing response.
    state = _state().replace(statistics={
        'baseline': {'mean': jnp.float32(.5), 'count': jnp.float32(4)}})
    out, state = running.moving_average(_batch([[1., NAN], [.2, NAN]]), state)
    np.testing.assert_allclose(out.advantages, [[.5, 0], [-.3, 0]], rtol=1e-6)
    logprobs = np.array([[-3., 0], [-2., 0]])
    self.assertAlmostEqual(
        float(-(out.advantages * logprobs).sum() / 2), .45, 6)
    np.testing.assert_allclose(
        state.statistics['baseline']['mean'], .533333, rtol=1e-5)
    self.assertEqual(state.statistics['baseline']['count'], 6)

  @parameterized.parameters(None, .9)
  def test_is_that_of_ops(self, decay):
    step = jax.jit(functools.partial(running.moving_average, decay=decay))
    state, mean, count = _state([_node('moving_average')]), 0., 0
    for size in (3, 1, 5):
      scores = np.random.default_rng(size).normal(5, 1, (size, 2))
      out, state = step(_batch(scores), state)
      baseline, mean, count = advantages.moving_average(
          mean, count, jnp.float32(scores), ema_decay=decay)
      np.testing.assert_allclose(
          out.advantages, scores - baseline, rtol=1e-5, atol=1e-5)
      seen = state.statistics['baseline']
      np.testing.assert_allclose(
          (seen['mean'], seen['count']), (mean, count), rtol=1e-6)

  @parameterized.parameters(None, .9)
  def test_missing_and_broken_scores_do_not_count(self, decay):
    state = _state([_node('moving_average')])
    for scores in ([[NAN]], [[2., np.inf, 4.]], [[NAN]]):
      out, state = running.moving_average(_batch(scores), state, decay=decay)
      np.testing.assert_array_equal(
          out.advantages, np.where(np.isnan(scores), 0, scores))
    self.assertEqual(state.statistics['baseline'], {'mean': 3, 'count': 2})

  @parameterized.parameters(1., -.1)
  def test_rejects_decay(self, decay):
    with self.assertRaisesRegex(ValueError, f'decay.*{decay}'):
      running.moving_average(
          _batch([[1.]]), _state([_node('moving_average')]), decay=decay)


class KlTest(parameterized.TestCase):

  def test_by_hand(self):
    # [Ex 5.3]
    batch = _batch([[1.5, NAN]])
    out, state = running.kl_rewards(batch, None, kl_coef=.1)
    np.testing.assert_allclose(
        out.rewards[0], [[0, -.03, .02, 1.49, 0], [0] * 5], atol=1e-6)
    self.assertIsNone(state)
    out, _ = running.kl_scores(batch, None, kl_coef=.1)
    np.testing.assert_allclose(out.scores[0, 0], 1.48, rtol=1e-6)

  @parameterized.parameters('kl_scores', 'kl_rewards')
  def test_the_adapted_coefficient_comes_first(self, name):
    batch, field = _batch([[1.5, 2.]]), name.removeprefix('kl_')
    run = lambda statistics, kl_coef: getattr(running.RUNNING[name](
        batch, _state().replace(statistics=statistics), kl_coef=kl_coef)[0],
                                              field)
    plain = run({}, .1)
    for statistics, kl_coef in (({'kl_coef': jnp.float32(.1)}, 9.),
                                (None, .1), ({}, jnp.float32(.1))):
      np.testing.assert_allclose(run(statistics, kl_coef), plain, rtol=1e-6)
    # A 0 in the row is no penalty, whatever is adapted for the loss.
    np.testing.assert_array_equal(
        run({'kl_coef': jnp.float32(.1)}, 0.), run({}, 0.))
    self.assertGreater(np.abs(run({}, 0.) - plain).max(), .01)

  def test_no_penalty_needs_no_reference(self):
    batch = _batch([[1.5, -2.]]).replace(
        old_logprobs=None, ref_logprobs=None)
    out, _ = running.kl_rewards(batch, None, kl_coef=0.)
    np.testing.assert_array_equal(
        out.rewards[0], [[0, 0, 0, 1.5, 0], [0, 0, 0, -2, 0]])

  @parameterized.parameters('kl_scores', 'kl_rewards')
  def test_missing_fields_are_named(self, name):
    for field in ('scores', 'old_logprobs', 'ref_logprobs'):
      with self.assertRaisesRegex(ValueError, f'batch.{field} is None'):
        running.RUNNING[name](
            _batch([[1.]]).replace(**{field: None}), None, kl_coef=.1)


class AdaptTest(parameterized.TestCase):

  def _adapt(self, scores, kl):
    nodes = [_node('adapt_kl_coef', target=6., horizon=1e4)]
    step = jax.jit(functools.partial(
        running.adapt_kl_coef, target=6., horizon=1e4))
    _, state = step(_batch(scores, gap=[kl / 3] * 3),
                    _state(nodes, kl_coef=.1))
    return state.statistics['kl_coef']

  @parameterized.parameters((9., .100512), (3., .099488), (6.3, .100128))
  def test_by_hand(self, kl, expected):
    # [Ex 5.4], of 256 responses; a mean over tokens would be a third of it.
    np.testing.assert_allclose(
        self._adapt(np.zeros((128, 2)), kl), expected, rtol=1e-5)

  def test_missing_responses_do_not_count(self):
    scores = np.full((128, 2), NAN)
    np.testing.assert_allclose(self._adapt(scores, 9.), .1, rtol=1e-6)
    scores[:, 0] = 0  # 128 of them: .1 * (1 + .2 * 128 / 10000)
    np.testing.assert_allclose(self._adapt(scores, 9.), .100256, rtol=1e-6)

  def test_a_broken_response_does_not_break_the_coefficient(self):
    nodes = [_node('adapt_kl_coef', target=6., horizon=1e4)]
    batch = _batch(np.zeros((128, 2)), gap=[3.])
    batch = batch.replace(
        old_logprobs=batch.old_logprobs.at[:, 0, 1].set(-jnp.inf))
    _, state = running.adapt_kl_coef(
        batch, _state(nodes, kl_coef=.1), target=2., horizon=1e4)
    np.testing.assert_allclose(
        state.statistics['kl_coef'], .100256, rtol=1e-6)


class MetricsTest(absltest.TestCase):

  def test_by_hand(self):
    batch = _batch([[1., NAN], [4., 1.]])
    batch = batch.replace(  # the last response is of one token, EOS or not
        mask=batch.mask.at[1, 1, 2:].set(False),
        member_scores=jnp.array([[[1., NAN], [3., 1.]],
                                 [[3., NAN], [3., 1.]],
                                 [[2., NAN], [0., 1.]]]),
        rewards=jnp.full((2, 2, 5), .5).at[..., 0].set(NAN),
        advantages=jnp.array([[2., NAN], [4., 3.]]))
    actual = running.metrics(batch)
    expected = {
        'score': 2, 'score_std': 2**.5, 'length': 7 / 3,
        'reward': 3.5 / 3, 'advantage_std': (2 / 3)**.5,
        # [Ex 3.2]: variances 2/3 and 2, of the population, and 0.
        'ensemble_variance': 8 / 9,
        # Twice the sums of [Ex 5.1] and once its first token.
        'kl_k1': (.4 + .3) / 3, 'kl_k2': (.14 + .045) / 3,
        'kl_k3': (2 * SUMS['kl_k3'] + .040818) / 3}
    chex.assert_trees_all_close(
        actual, {f'rollout/{k}': jnp.float32(v) for k, v in expected.items()},
        rtol=2e-5)

  def test_measures_what_is_there(self):
    batch = _batch([[1., 3.]])
    actual = running.metrics(batch)
    self.assertEqual(actual['rollout/reward'], 2)  # no rewards: the scores
    for name, value in SUMS.items():
      np.testing.assert_allclose(actual[f'rollout/{name}'], value, rtol=2e-5)
    bare = types.Batch(tokens=batch.tokens, mask=batch.mask)
    self.assertEqual(running.metrics(bare), {'rollout/length': 3})
    tokens = running.metrics(bare.replace(advantages=jnp.where(
        bare.mask, jnp.arange(5.), NAN)))
    np.testing.assert_allclose(
        tokens['rollout/advantage_std'], (2 / 3)**.5, rtol=1e-6)
    # Returns -1, 0, 1 and errors 1, 1, 4: variances 2/3 and 2.
    returns = jnp.where(bare.mask, jnp.arange(5.) - 2, NAN)
    values = returns - jnp.where(bare.mask, jnp.array([0, 1., 1, 4, 0]), NAN)
    explained = running.metrics(bare.replace(
        returns=returns, old_values=values))['rollout/explained_variance']
    np.testing.assert_allclose(explained, -2, rtol=1e-6)
    empty = running.metrics(_batch([[NAN, NAN]]))
    for name, value in empty.items():
      self.assertEqual(value, 0, name)


class EndToEndTest(absltest.TestCase):
  """REINFORCE with all that an online run can have, over three rollouts."""

  NODES = (
      _node('scale_scores'), _node('clip_scores', limit=1.5),
      _node('missing_eos', eos_id=9, penalty=.5),
      _node('kl_scores', kl_coef=.1), _node('moving_average'),
      _node('adapt_kl_coef', target=.1, horizon=100.))

  def _rollouts(self):
    rng = np.random.default_rng(0)
    for _ in range(3):
      scores = rng.normal(2, 1, (4, 2))
      scores[1, 0] = NAN
      batch = _batch(scores, gap=rng.normal(0, .3, 4))
      yield batch.replace(tokens=jnp.asarray(
          rng.choice([3, 9], batch.tokens.shape)))

  CHAIN = staticmethod(jax.jit(chain_lib.chain(NODES, {})))

  def _run(self, change=lambda batch: batch):
    state, actual = _state(self.NODES), []
    for batch in self._rollouts():
      batch, state = self.CHAIN(change(batch), state, None)
      actual.append(batch.advantages)
    self.assertEqual(self.CHAIN._cache_size(), 1)  # the state keeps its types
    return np.stack(actual), state.statistics

  def test_against_numpy(self):
    actual, statistics = self._run()
    raw, shaped, kl_coef = [], [], .1
    for batch, mine in zip(self._rollouts(), actual):
      there = np.asarray(batch.mask.any(-1))
      scores = np.float64(batch.scores)[there]
      raw.extend(scores)
      scores = np.clip(scores / np.std(raw, ddof=1), -1.5, 1.5)
      done = ((np.asarray(batch.tokens) == 9) & batch.mask).any(-1)[there]
      self.assertBetween(done.sum(), 1, 7)
      gap = np.asarray(batch.old_logprobs - batch.ref_logprobs)[there]
      kl = np.nansum(gap, axis=-1)
      scores = scores - .5 * ~done - kl_coef * kl
      np.testing.assert_allclose(
          mine[there], scores - (np.mean(shaped) if shaped else 0), rtol=1e-4)
      np.testing.assert_array_equal(mine[~there], 0)
      shaped.extend(scores)
      kl_coef *= 1 + np.clip(kl.mean() / .1 - 1, -.2, .2) * 7 / 100
    np.testing.assert_allclose(statistics['kl_coef'], kl_coef, rtol=1e-5)
    np.testing.assert_allclose(
        statistics['baseline']['mean'], np.mean(shaped), rtol=1e-5)
    self.assertEqual(statistics['baseline']['count'], 21)

  def test_padding_and_missing_responses_are_inert(self):
    def other(batch):
      fill = lambda x, value: jnp.where(batch.mask, x, value)
      return batch.replace(
          scores=jnp.where(batch.mask.any(-1), batch.scores, 77.),
          old_logprobs=fill(batch.old_logprobs, -3e4),
          ref_logprobs=fill(batch.ref_logprobs, 5.),
          tokens=fill(batch.tokens, 9))
    chex.assert_trees_all_equal(self._run(other), self._run())

  def test_the_order_of_the_prompts_does_not_matter(self):
    at = np.array([2, 0, 3, 1])
    actual, statistics = self._run(
        lambda batch: jax.tree.map(lambda x: x[at], batch))
    whole, same = self._run()
    np.testing.assert_allclose(actual, whole[:, at], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(statistics, same, rtol=1e-6)


if __name__ == '__main__':
  absltest.main()
