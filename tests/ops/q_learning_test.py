"""Tests for rlhf_jax.ops.q_learning."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import sampling
from rlhf_jax.ops import q_learning


def _trees(seed=0):
  """(targets, online) of one structure."""
  rng = np.random.default_rng(seed)
  tree = lambda: {'head': [jnp.asarray(rng.normal(size=shape), jnp.float32)
                           for shape in ((2, 3), (3,))]}
  return tree(), tree()


def _logits(seed=0, shape=(3, 5)):
  """(logits, target_q_values, values)."""
  rng = np.random.default_rng(seed)
  f = lambda *s: rng.normal(size=s).astype(np.float32)
  return f(*shape), (f(*shape), f(*shape)), f(*shape[:-1])


class PolyakTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 8.5] .001 * .4 + .999 * .35: the rate is the online net's (trap 21).
    fn = self.variant(lambda *x: q_learning.polyak(*x, rate=.001))
    out = fn({'q': jnp.float32([.35])}, {'q': jnp.float32([.4])})
    np.testing.assert_allclose(out['q'], [.35005], rtol=1e-7)

  @parameterized.parameters(.01, .3, 1.)
  def test_twin(self, rate):
    targets, online = _trees()
    chex.assert_trees_all_close(
        q_learning.polyak(targets, online, rate=rate),
        jax.tree.map(lambda t, o: t + rate * (np.float64(o) - np.float64(t)),
                     targets, online), rtol=1e-5)

  def test_fixed_point_and_limit(self):
    targets, online = _trees()
    chex.assert_trees_all_close(
        q_learning.polyak(online, online, rate=.3), online, rtol=1e-6)
    chex.assert_trees_all_equal(
        q_learning.polyak(targets, online, rate=1.), online)
    for _ in range(100):
      targets = q_learning.polyak(targets, online, rate=.3)
    chex.assert_trees_all_close(targets, online, rtol=1e-5)

  @chex.variants(with_jit=True, without_jit=True)
  def test_every(self):
    targets, online = _trees()
    fn = self.variant(lambda t, o, step: q_learning.polyak_every(
        t, o, step, rate=.1, every=3))
    moved = q_learning.polyak(targets, online, rate=.1)
    for step in range(1, 8):
      chex.assert_trees_all_close(
          fn(targets, online, step), moved if step in (3, 6) else targets,
          rtol=1e-6)

  def test_every_step(self):
    targets, online = _trees()
    for step in (1, 2):
      chex.assert_trees_all_equal(
          q_learning.polyak_every(targets, online, step, rate=.1, every=1),
          q_learning.polyak(targets, online, rate=.1))

  @parameterized.parameters(('rate', 0.), ('rate', 1.5), ('every', 0))
  def test_rejects(self, name, value):
    kwargs = {'rate': .1, 'every': 1, name: value}
    with self.assertRaisesRegex(ValueError, f'{name}.*{value}'):
      q_learning.polyak_every(*_trees(), 1, **kwargs)

  def test_rejects_other_trees(self):
    targets, online = _trees()
    for change in (lambda x: x[:1], lambda x: x.astype(jnp.bfloat16)):
      with self.assertRaises(AssertionError):
        q_learning.polyak(targets, jax.tree.map(change, online), rate=.1)
    with self.assertRaises(AssertionError):
      q_learning.polyak(targets, {'head': online['head'][:1]}, rate=.1)


class ShiftLogitsTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_by_hand(self):
    # [Ex 8.6] min(.35, .25) = .25 and 0; logit gap .5 - 4 * .25 = -.5, so the
    # second has probability sigmoid(-.5); V moves both alike.
    q = np.float32([.35, 0]), np.float32([.25, 0])
    fn = self.variant(lambda *x: q_learning.shift_logits(*x, beta=4.))
    out = fn(np.float32([0, .5]), q, np.float32(.4))
    # log_softmax -.974077, -.474077; plus 4 * (-.15, -.4).
    np.testing.assert_allclose(out, [-1.574077, -2.074077], rtol=1e-6)
    np.testing.assert_allclose(
        jax.nn.softmax(out), [.622459, .377541], rtol=1e-5)

  def test_twin(self):
    logits, targets, values = _logits()
    out = q_learning.shift_logits(logits, targets, values, beta=.7)
    for i, row in enumerate(np.float64(logits)):
      smallest = [min(x) for x in zip(*(q[i] for q in targets))]
      expected = row - np.log(np.sum(np.exp(row)))
      expected += .7 * (np.array(smallest) - values[i])
      np.testing.assert_allclose(out[i], expected, rtol=1e-5)

  def test_without_beta_it_is_the_language_model(self):
    """So is what top-k then leaves of it."""
    logits, targets, values = _logits()
    out = q_learning.shift_logits(logits, targets, values, beta=0.)
    np.testing.assert_allclose(out, jax.nn.log_softmax(logits), rtol=1e-6)
    probs = lambda x: jax.nn.softmax(
        sampling.filter_logits(jnp.asarray(x), top_k=2))
    np.testing.assert_allclose(probs(out), probs(logits), rtol=1e-5)

  def test_value_changes_no_probability(self):
    logits, targets, values = _logits()
    out = [q_learning.shift_logits(logits, targets, v, beta=2.)
           for v in (values, values + 3)]
    np.testing.assert_allclose(out[1], out[0] - 6, rtol=1e-4)
    np.testing.assert_allclose(
        *(jax.nn.softmax(x) for x in out), rtol=1e-4)

  def test_a_forbidden_token_stays_so(self):
    logits, targets, values = _logits()
    logits[:, 1] = -np.inf
    out = q_learning.shift_logits(logits, targets, values, beta=2.)
    np.testing.assert_array_equal(out[:, 1], -np.inf)
    self.assertTrue(np.all(np.isfinite(np.delete(out, 1, axis=1))))

  def test_bfloat16_in_float32_out(self):
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), _logits())
    high = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    out = q_learning.shift_logits(*low, beta=2.)
    self.assertEqual(out.dtype, jnp.float32)
    np.testing.assert_allclose(
        out, q_learning.shift_logits(*high, beta=2.), rtol=1e-6)

  def test_rejects(self):
    logits, targets, values = _logits()
    with self.assertRaisesRegex(ValueError, 'beta.*-1'):
      q_learning.shift_logits(logits, targets, values, beta=-1.)
    with self.assertRaisesRegex(ValueError, 'target_q_values'):
      q_learning.shift_logits(logits, (), values, beta=1.)
    for args in ((logits[..., 1:], targets, values),
                 (logits, targets, values[1:]),
                 (logits, targets, logits),
                 (logits, (targets[0], targets[1][..., 1:]), values),
                 (logits.astype(int), targets, values)):
      with self.assertRaises(AssertionError):
        q_learning.shift_logits(*args, beta=1.)


if __name__ == '__main__':
  absltest.main()
