"""Tests for rlhf_jax.ops.best_of_n."""

import itertools
import math
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax.ops import best_of_n
from rlhf_jax.ops import ensembles
from rlhf_jax.parallel import threads


def _brute_force(proxy, gold, n):
  """Mean over all subsets of size n of gold at the highest proxy."""
  total = []
  for subset in itertools.combinations(range(len(proxy)), n):
    best = max(proxy[i] for i in subset)
    total.append(np.mean([gold[i] for i in subset if proxy[i] == best]))
  return np.mean(total)


_curve = jax.jit(best_of_n.curve, static_argnums=2)


class KlTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 4.1] log n - (n - 1) / n.
    n = np.array([1, 2, 4, 16, 128, 1024, 12500])
    np.testing.assert_allclose(
        self.variant(best_of_n.kl)(n),
        [0, .193147, .636294, 1.835089, 3.859843, 5.932448, 8.433564],
        atol=1e-6)
    self.assertAlmostEqual(math.sqrt(best_of_n.kl(12500)), 2.904060, 5)

  def test_rejects(self):
    for bad in (0, np.array([2, 0])):
      with self.assertRaisesRegex(ValueError, 'n must be.*0'):
        best_of_n.kl(bad)


class SelectTest(absltest.TestCase):

  def test_first_of_the_highest(self):
    out = best_of_n.select(np.float32([[1, 4, 4], [0, -1, -2]]))
    np.testing.assert_array_equal(out, [1, 0])
    self.assertEqual(out.dtype, jnp.int32)


class CurveTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 4.2] n = 2: weights 0, 1/6, 2/6, 3/6; n = 3: 0, 0, 1/4, 3/4. The
    # second prompt is the first, shuffled, with higher scores throughout.
    proxy = np.float32([[0, 1, 2, 3], [4.5, 2.5, 5.5, 3.5]])
    gold = np.float32([[1, 4, 2, 3], [2, 1, 3, 4]])
    out = self.variant(
        lambda p, g: best_of_n.curve(p, g, (1, 2, 3, 4)))(proxy, gold)
    np.testing.assert_allclose(
        out, [[2.5, 2.833333, 2.75, 3.]] * 2, rtol=1e-6)

  @parameterized.parameters(
      # [Ex 4.3] n = 2, weights 0, 1/3, 2/3 on gold 5, 1, 3 or 5, 3, 1, or on
      # 5, 2, 2.
      ([5, 1, 3], False, 2.333333), ([5, 3, 1], False, 1.666667),
      ([5, 1, 3], True, 2.), ([5, 3, 1], True, 2.))
  def test_ties_by_hand(self, gold, average_ties, expected):
    out = best_of_n.curve(np.float32([[0, 1, 1]]), np.float32([gold]), [2],
                          average_ties=average_ties)
    np.testing.assert_allclose(out, [[expected]], rtol=1e-6)

  @parameterized.parameters(*range(1, 9))
  @twin.few
  @twin.randomised
  def test_brute_force(self, count, seed):
    rng = np.random.default_rng(seed)
    ns = tuple(range(1, count + 1))
    for levels in (2, 3, 1000):  # many ties, some, next to none
      proxy = rng.integers(0, levels, (3, count)).astype(np.float32)
      gold = rng.normal(size=(3, count)).astype(np.float32)
      expected = [[_brute_force(p, g, n) for n in ns]
                  for p, g in zip(proxy, gold)]
      np.testing.assert_allclose(
          _curve(proxy, gold, ns), expected, atol=1e-5)
      golds = {'gold': gold, 'proxy': proxy}
      actual = best_of_n.curves(proxy, golds, ns)
      for name, x in golds.items():
        self.assertEqual(actual[name].dtype, np.float32)
        np.testing.assert_allclose(
            actual[name], _curve(proxy, x, ns), rtol=1e-6, atol=1e-5)

  @parameterized.parameters(1, 16, 37)
  def test_prompts_are_apart(self, rows):
    rng = np.random.default_rng(rows)
    proxy = rng.integers(0, 40, (rows, 30)).astype(np.float32)
    golds = {name: rng.normal(size=(rows, 30)).astype(np.float32)
             for name in 'ab'}
    with mock.patch.object(best_of_n, '_SCORES', 1):  # 16 prompts at a time
      out = best_of_n.curves(proxy, golds, (1, 4, 30))
    for i in range(rows):
      one = best_of_n.curves(
          proxy[i:i + 1], {name: x[i:i + 1] for name, x in golds.items()},
          (1, 4, 30))
      for name in golds:
        np.testing.assert_allclose(out[name][i], one[name][0], atol=1e-6)

  @parameterized.parameters(
      (3000, 4, 1), (300, 1000, 3), (100, 12800, 7), (0, 3, 1))
  def test_a_part_is_worth_a_thread(self, rows, count, parts):
    x = np.zeros((rows, count), np.float32)
    with mock.patch.object(
        threads, 'at_once', wraps=threads.at_once) as at_once:
      out = best_of_n.curves(x, {'x': x}, (1,))['x']
    self.assertLen(at_once.call_args.args[0], parts)
    self.assertEqual(out.shape, (rows, 1))

  @parameterized.parameters('mean', 'worst_case', 'uncertainty_weighted')
  def test_gold_follows_the_aggregate(self, kind):
    # Trap 16: the paper's code leaves gold in the order of the first member,
    # here the reverse of every aggregate's; the best two by it are the worst.
    members = np.float32([[[3, 2, 1, 0]], [[0, 4, 8, 12]], [[1, 4, 7, 10]]])
    if kind == 'worst_case':
      members[0] += 20
    gold = np.float32([[1, 2, 3, 4]])
    proxy = ensembles.aggregate(
        members, kind=kind, uncertainty_coef=.01)
    self.assertTrue(np.all(np.diff(proxy) > 0))
    # n = 2 has weights 1/6, 2/6, 3/6 on the second best to the best.
    np.testing.assert_allclose(
        _curve(proxy, gold, (2, 4)), [[20 / 6, 4]], rtol=1e-6)
    np.testing.assert_allclose(
        _curve(members[0], gold, (2, 4)), [[10 / 6, 1]], rtol=1e-6)

  def test_monte_carlo(self):
    # Eq. 6 as it stands: draw n of the samples, keep the best by proxy.
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 20)).astype(np.float32)
    draws = rng.permuted(np.tile(np.arange(20), (20000, 1)), axis=1)[:, :4]
    best = draws[np.arange(20000), np.argmax(proxy[draws], axis=1)]
    out = _curve(proxy[None], gold[None], (4,))
    # Standard error of the mean about 1 / sqrt(20000) = .007.
    np.testing.assert_allclose(out, [[gold[best].mean()]], atol=.03)

  def test_order_of_samples_and_prompts_is_irrelevant(self):
    rng = np.random.default_rng(0)
    proxy = rng.integers(0, 4, (40, 12)).astype(np.float32)
    gold = rng.normal(size=proxy.shape).astype(np.float32)
    ns = (1, 3, 12)
    base = _curve(proxy, gold, ns)
    order = rng.permutation(12)
    chex.assert_trees_all_close(
        _curve(proxy[:, order], gold[:, order], ns), base, atol=1e-5)
    rows = rng.permutation(40)
    chex.assert_trees_all_close(
        _curve(proxy[rows], gold[rows], ns), base[rows], atol=1e-6)

  def test_ends_and_monotone_proxy(self):
    rng = np.random.default_rng(0)
    proxy, gold = rng.normal(size=(2, 3, 50)).astype(np.float32)
    out = _curve(proxy, gold, (1, 50))
    np.testing.assert_allclose(out[:, 0], gold.mean(axis=1), atol=1e-6)
    top = best_of_n.select(proxy)
    np.testing.assert_allclose(
        out[:, 1], gold[np.arange(3), top], rtol=1e-6)
    own = _curve(proxy, proxy, tuple(range(1, 51)))
    self.assertTrue(np.all(np.diff(own, axis=1) > 0))

  def test_weights_by_hand(self):
    # [Ex 4.2] C(i - 1, n - 1) / C(4, n).
    np.testing.assert_allclose(
        best_of_n._weights(4, (1, 2, 3, 4)),
        [[1 / 4] * 4, [0, 1 / 6, 2 / 6, 3 / 6], [0, 0, 1 / 4, 3 / 4],
         [0, 0, 0, 1]], atol=1e-6)

  @parameterized.parameters(1, 7, 100)
  def test_weights_add_up(self, count):
    weights = best_of_n._weights(count, range(1, count + 1))
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    self.assertGreaterEqual(weights.min(), 0)
    # Ranks below n are never the best of n.
    np.testing.assert_array_equal(np.tril(weights, -1), 0)

  def test_weights_at_the_size_of_the_paper(self):
    # [Ex 4.4] float32 lgamma gives 1.011269 at N = 12600, n = 512.
    ns = (1, 16, 512, 8192, 12500, 12600)
    weights = np.asarray(best_of_n._weights(12600, ns), np.float64)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    exact = np.array([math.comb(i - 1, 511) / math.comb(12600, 512)
                      for i in range(12400, 12601, 50)])
    np.testing.assert_allclose(weights[2, 12399::50], exact, rtol=1e-5)

  def test_takes_bfloat16(self):
    x = jnp.ones((2, 4), jnp.bfloat16)
    self.assertEqual(best_of_n.curve(x, x, [2]).dtype, jnp.float32)

  @parameterized.parameters(
      ([], 'ns'), ([0], 'n = 0 with N = 4'), ([2, 5], 'n = 5 with N = 4'))
  def test_rejects(self, ns, message):
    x = np.zeros((2, 4), np.float32)
    with self.assertRaisesRegex(ValueError, message):
      best_of_n.curve(x, x, ns)
    with self.assertRaises(ValueError):
      best_of_n.curves(x, {'gold': x}, ns)

  def test_rejects_shapes(self):
    x = np.zeros((2, 4), np.float32)
    with self.assertRaises(AssertionError):
      best_of_n.curve(x, x[:, :3], [1])

  def test_memory(self):
    """A thousand prompts of the paper stay under 2 GB (read, not run)."""
    x = jax.ShapeDtypeStruct((1000, 12600), jnp.float32)
    fn = lambda p, g: best_of_n.curve(p, g, (1, 512, 12500))
    memory = jax.jit(fn).lower(x, x).compile().memory_analysis()
    self.assertLess(
        memory.temp_size_in_bytes + memory.argument_size_in_bytes, 1e9)


if __name__ == '__main__':
  absltest.main()
