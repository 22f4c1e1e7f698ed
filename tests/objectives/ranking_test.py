"""Tests for rlhf_jax.objectives.ranking."""

import functools
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import bradley_terry
from rlhf_jax.objectives import ranking
from rlhf_jax.ops import moments

CONTRACT = {'responses': 4, 'settings': [
    {}, {'kind': 'choice'}, {'kind': 'pairwise'}]}

RANKED = np.float32([[2, 1, .5]])
FOUR = np.float32([[1, 0, -1, 2]])
LOSSES = {'plackett_luce': ranking.plackett_luce_loss,
          'pairwise': ranking.pairwise_loss}
JITTED = {kind: jax.jit(fn) for kind, fn in LOSSES.items()}
CHOICE = jax.jit(ranking.choice_loss)
PAIR = jax.jit(bradley_terry.bradley_terry_loss)


@functools.partial(jax.jit, static_argnums=2)
def _ranked(scores, mask, kind):
  return twin.mean(LOSSES[kind](scores, mask))


@jax.jit
def _chosen(scores, choice, mask):
  return twin.mean(ranking.choice_loss(scores, choice, mask))


def _logsumexp(x):
  return np.max(x) + np.log(np.sum(np.exp(x - np.max(x))))


def _ranked_twin(scores, mask, kind):
  """Prompt by prompt, absent responses taken out of the list first."""
  losses = []
  for row, present in zip(scores, mask):
    r = row[present]
    if len(r) < 2:
      continue
    if kind == 'plackett_luce':
      losses.append(
          sum(_logsumexp(r[k:]) - r[k] for k in range(len(r) - 1)))
    else:
      pairs = itertools.combinations(r, 2)
      losses.append(np.mean([np.log1p(np.exp(y - x)) for x, y in pairs]))
  return np.mean(losses)


def _chosen_twin(scores, choice, mask):
  return np.mean([
      _logsumexp(r[m]) - r[c] for r, c, m in zip(scores, choice, mask)
      if m.sum() > 1 and m[c]])


def _inputs(seed, b=6, k=4):
  """Scores, and a mask with gaps; a prompt with one response, and with none."""
  rng = np.random.default_rng(seed)
  mask = rng.random((b, k)) < .7
  mask[0], mask[1], mask[2] = True, False, np.arange(k) == seed % k
  return (2 * rng.normal(size=(b, k))).astype(np.float32), mask


class RankingLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 2.6] log(e^2 + e + e^.5) - 2 = .464 and log(1 + e^-.5) = .474.
      ('plackett_luce', .938446),
      # [Ex 2.1] mean of softplus(-1), softplus(-1.5), softplus(-.5).
      ('pairwise', .329584))
  def test_by_hand(self, kind, expected):
    out = self.variant(LOSSES[kind])(RANKED)
    np.testing.assert_allclose(out.loss, [expected], atol=1e-6)
    np.testing.assert_array_equal(out.weight, [1])

  @parameterized.parameters(*LOSSES)
  @twin.few
  @twin.randomised
  def test_twin(self, kind, seed):
    scores, mask = _inputs(seed)
    twin.assert_equal(lambda x: _ranked(x, mask, kind),
                      lambda x: _ranked_twin(x, mask, kind), scores)

  @parameterized.parameters(*LOSSES)
  def test_two_responses_are_a_pair(self, kind):
    scores = _inputs(0, b=9, k=2)[0]
    out = JITTED[kind](scores)
    expected = PAIR(scores)
    np.testing.assert_allclose(out.loss, expected.loss, rtol=1e-5)
    for name in ('accuracy', 'pair_accuracy'):
      np.testing.assert_array_equal(
          out.metrics[f'reward/{name}'], expected.metrics['reward/accuracy'])
    grad = lambda fn: jax.grad(lambda x: fn(x).loss.sum())(scores)
    np.testing.assert_allclose(
        grad(JITTED[kind]), grad(PAIR), atol=1e-6)

  @parameterized.parameters(*LOSSES)
  def test_absent_is_as_if_removed(self, kind):
    # Presence need not be a prefix; a gap may hold NaN or inf.
    nan, inf = np.nan, np.inf
    scores = np.float32([[nan, 2, 1, -inf, .5], [2, inf, nan, 1, .5]])
    mask = np.isfinite(scores)
    fn = lambda x, m=None: JITTED[kind](x, m).loss
    step = lambda x, m=None: jax.value_and_grad(
        lambda x: fn(x, m).sum() / len(x))(x)
    value, grad = step(scores, mask)
    expected, expected_grad = step(np.repeat(RANKED, 2, 0))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(
        grad[mask], np.ravel(expected_grad), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(grad[~mask], 0)

  @parameterized.parameters(*LOSSES)
  def test_fewer_than_two_have_no_weight(self, kind):
    mask = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]], bool)
    scores = np.where(mask, np.repeat(RANKED, 4, 0), np.nan)
    out = JITTED[kind](scores, mask)
    np.testing.assert_array_equal(out.weight, [0, 0, 1, 1])
    np.testing.assert_array_equal(out.loss[:2], 0)
    chex.assert_tree_all_finite(out)
    grad = jax.grad(lambda x: JITTED[kind](x, mask).loss.sum())(scores)
    np.testing.assert_array_equal(grad[:2], 0)
    chex.assert_tree_all_finite(grad)

  def test_metrics_by_hand(self):
    # In order; all reversed; the first two tied; one of three pairs reversed.
    scores = np.float32([[3, 2, 1], [1, 2, 3], [2, 2, 1], [3, 1, 2]])
    for fn in JITTED.values():
      metrics = fn(scores).metrics
      np.testing.assert_array_equal(
          metrics['reward/accuracy'], [1, 0, 0, 1])
      np.testing.assert_allclose(
          metrics['reward/pair_accuracy'], [1, 0, 2 / 3, 2 / 3], rtol=1e-6)
    # The best that is present counts, not the first place.
    mask = np.array([[False, True, True]] * 4)
    metrics = JITTED['plackett_luce'](scores, mask).metrics
    for name in ('accuracy', 'pair_accuracy'):
      np.testing.assert_array_equal(
          metrics[f'reward/{name}'], [1, 0, 1, 0])
    # An absent one is no rival, even where all scores are negative.
    metrics = JITTED['pairwise'](scores - 9, mask[:, ::-1]).metrics
    np.testing.assert_array_equal(metrics['reward/accuracy'], [1, 0, 0, 1])

  def test_is_a_likelihood_of_rankings(self):
    # Over all 3! orders of the same scores, exp(-loss) sums to 1.
    orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1],
                       [2, 1, 0]])
    loss = JITTED['plackett_luce'](RANKED[0][orders]).loss
    np.testing.assert_allclose(np.exp(-loss).sum(), 1, rtol=1e-6)

  @parameterized.parameters(*LOSSES)
  def test_extremes(self, kind):
    scores = np.float32([[1e4, 0, -1e4], [-1e4, 0, 1e4], [1e4, 1e4, 1e4]])
    value, grad = jax.value_and_grad(
        lambda x: JITTED[kind](x).loss.sum())(scores)
    # Plackett-Luce: 0, 2e4 + 1e4, log 6. Pairs: 0, 4e4 / 3, log 2.
    expected = 3e4 + np.log(6) if kind == 'plackett_luce' else (
        4e4 / 3 + np.log(2))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    chex.assert_tree_all_finite(grad)

  @parameterized.parameters(*LOSSES)
  def test_only_gaps_count(self, kind):
    shifted = JITTED[kind](RANKED + 5).loss
    np.testing.assert_allclose(shifted, JITTED[kind](RANKED).loss, rtol=1e-6)

  @parameterized.parameters(*LOSSES)
  def test_rejects(self, kind):
    mask = np.ones((1, 3), bool)
    for args in ((RANKED[0],), (RANKED.astype(int),), (RANKED, mask[:, 1:]),
                 (RANKED, mask.astype(np.float32))):
      with self.assertRaises(AssertionError):
        LOSSES[kind](*args)


class ChoiceLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters(
      # [Ex 2.3] logsumexp = 2.440190, less 2, less 0.
      (3, .440190, 1), (1, 2.440190, 0))
  def test_by_hand(self, choice, expected, accuracy):
    out = self.variant(ranking.choice_loss)(FOUR, np.array([choice]))
    np.testing.assert_allclose(out.loss, [expected], atol=1e-6)
    np.testing.assert_array_equal(out.weight, [1])
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [accuracy])

  def test_printed_sign_is_a_likelihood(self):
    # Trap 4: as printed, the sum of log-softmax is -.440190, and minimising it
    # would lower the score of the choice.
    value, grad = jax.value_and_grad(
        lambda x: CHOICE(x, np.array([3])).loss.sum())(FOUR)
    self.assertAlmostEqual(float(value), .440190, 6)
    # softmax - one-hot; the chosen one has e^2 / e^2.440190 = .643914.
    np.testing.assert_allclose(grad[0, 3], .643914 - 1, atol=1e-6)
    np.testing.assert_allclose(grad.sum(), 0, atol=1e-6)

  def test_standardised_scores_by_hand(self):
    # [Ex 2.3] mean .5, population std 1.118034: gain 1 / std = .894427, bias
    # -mean / std = -.447214. The bias leaves the loss as it is:
    # log(e^.894427 + 1 + e^-.894427 + e^1.788854) - 1.788854.
    gain, bias = 1 / jnp.std(FOUR), -jnp.mean(FOUR) / jnp.std(FOUR)
    np.testing.assert_allclose([gain, bias], [.894427, -.447214], atol=1e-6)
    np.testing.assert_allclose(
        moments.normalize(FOUR, jnp.mean(FOUR), jnp.std(FOUR)),
        gain * FOUR + bias, atol=1e-6)
    choice = np.array([3])
    loss = CHOICE(gain * FOUR + bias, choice).loss
    np.testing.assert_allclose(
        loss, CHOICE(gain * FOUR, choice).loss, rtol=1e-6)
    np.testing.assert_allclose(loss, [.497334], atol=1e-6)

  @twin.few
  @twin.randomised
  def test_twin(self, seed):
    scores, mask = _inputs(seed)
    choice = np.random.default_rng(seed).integers(4, size=6)
    twin.assert_equal(lambda x: _chosen(x, choice, mask),
                      lambda x: _chosen_twin(x, choice, mask), scores)

  def test_two_responses_are_a_pair(self):
    scores = _inputs(0, b=9, k=2)[0]
    first = CHOICE(scores, np.zeros(9, int))
    second = CHOICE(scores, np.ones(9, int))
    expected = PAIR(scores)
    np.testing.assert_allclose(first.loss, expected.loss, rtol=1e-5)
    np.testing.assert_array_equal(first.metrics['reward/accuracy'],
                                  expected.metrics['reward/accuracy'])
    np.testing.assert_allclose(
        second.loss, PAIR(scores[:, ::-1]).loss,
        rtol=1e-5)

  def test_absent_is_left_out(self):
    # Without the last: log(e + 1 + e^-1) - 1; it may hold anything. The
    # second prompt's choice is absent, the third has nothing to choose from.
    scores = np.float32([[1, 0, -1, np.nan]] * 3)
    mask = np.isfinite(scores)
    mask[2, 1:] = False
    choice = np.array([0, 3, 0])
    step = lambda x: CHOICE(x, choice, mask)
    out = step(scores)
    self.assertAlmostEqual(
        float(out.loss[0]), np.log(np.e + 1 + 1 / np.e) - 1, 6)
    np.testing.assert_array_equal(out.weight, [1, 0, 0])
    chex.assert_tree_all_finite(out)
    grad = jax.grad(lambda x: step(x).loss.sum())(scores)
    chex.assert_tree_all_finite(grad)
    np.testing.assert_array_equal(grad[~mask], 0)

  def test_a_tie_is_wrong(self):
    out = CHOICE(np.float32([[1, 1], [1, 0]]), np.array([0, 0]))
    np.testing.assert_array_equal(out.metrics['reward/accuracy'], [0, 1])

  def test_extremes(self):
    scores = np.float32([[1e4, 0, -1e4]] * 2)
    step = jax.value_and_grad(
        lambda x: CHOICE(x, np.array([0, 2])).loss.sum())
    value, grad = step(scores)
    self.assertEqual(value, 2e4)
    np.testing.assert_array_equal(grad, [[0, 0, 0], [1, 0, -1]])

  @parameterized.parameters(-1, 4)
  def test_choice_out_of_range(self, choice):
    choice = np.array([choice])
    for make in (np.asarray, jnp.asarray):
      with self.assertRaisesRegex(ValueError, f'choice.*{choice[0]}'):
        ranking.choice_loss(FOUR, make(choice))
    # Under jit it cannot raise; it is not a silent 0 either.
    out = jax.jit(ranking.choice_loss)(FOUR, choice)
    self.assertTrue(np.isnan(out.loss[0]))
    np.testing.assert_array_equal(out.weight, [1])

  def test_rejects(self):
    choice, mask = np.array([1]), np.ones((1, 4), bool)
    for args in ((FOUR[0], choice), (FOUR, choice[None]),
                 (FOUR, np.float32([1])), (FOUR, choice, mask[:, 1:]),
                 (FOUR, np.array([1, 1]))):
      with self.assertRaises(AssertionError):
        ranking.choice_loss(*args)


class ObjectiveTest(parameterized.TestCase):

  def _batch(self):
    scores, present = _inputs(0)
    mask = np.repeat(present[..., None], 3, -1)
    mask[..., 0] = False
    labels = np.eye(4, dtype=np.float32)[[2, 0, 0, 1, 1, 3]]
    return scores, present, types.Batch(
        tokens=np.zeros(mask.shape, int), mask=mask, targets=labels)

  def test_binds(self):
    scores, present, batch = self._batch()
    out = types.PolicyOutput(scores=scores)
    chex.assert_trees_all_equal(
        ranking.objective(out, batch),
        ranking.plackett_luce_loss(scores, present))
    chex.assert_trees_all_equal(
        ranking.objective(out, batch, kind='pairwise'),
        ranking.pairwise_loss(scores, present))
    present = np.ones_like(present)
    batch = batch.replace(mask=np.ones_like(batch.mask))
    chex.assert_trees_all_equal(
        ranking.objective(out, batch, kind='choice'),
        ranking.choice_loss(scores, np.array([2, 0, 0, 1, 1, 3])))

  def test_choice_is_among_the_present(self):
    scores = np.float32([[1, 0, -1, 2]] * 3)
    mask = np.ones((3, 4, 2), bool)
    mask[0, 3], mask[1, 1] = False, False
    labels = np.eye(4, dtype=np.float32)[[0, 1, 1]]
    labels[0, 3], labels[2] = np.nan, 0  # no label: nothing was chosen
    out = jax.jit(lambda x: ranking.objective(
        types.PolicyOutput(scores=x), types.Batch(
            tokens=np.zeros(mask.shape, int), mask=mask, targets=labels),
        kind='choice'))(scores)
    np.testing.assert_array_equal(out.weight, [1, 0, 0])
    self.assertAlmostEqual(
        float(out.loss[0]), np.log(np.e + 1 + 1 / np.e) - 1, 6)
    chex.assert_tree_all_finite(out)

  def test_rejects(self):
    scores, _, batch = self._batch()
    out = types.PolicyOutput(scores=scores)
    with self.assertRaisesRegex(ValueError, "kind.*'best'"):
      ranking.objective(out, batch, kind='best')
    with self.assertRaisesRegex(ValueError, 'targets'):
      ranking.objective(out, batch.replace(targets=None), kind='choice')
    with self.assertRaisesRegex(ValueError, 'scores'):
      ranking.objective(types.PolicyOutput(), batch)
    for bad in (batch.replace(targets=batch.targets[:, 1:]),
                batch.replace(mask=batch.mask[..., 0])):
      with self.assertRaises(AssertionError):
        ranking.objective(out, bad, kind='choice')


if __name__ == '__main__':
  absltest.main()
