"""Tests for rlhf_jax.annotate."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import annotate
from rlhf_jax import policy
from rlhf_jax import rewards
from rlhf_jax import types
from rlhf_jax.models import transformer

V, E, B, K, T = 9, 3, 2, 3, 5
CONFIG = transformer.make_config(
    'llama', vocab_size=V, hidden_size=8, num_layers=1, num_heads=2,
    intermediate_size=12)


@functools.cache
def _batch():
  rng = np.random.default_rng(0)
  mask = np.arange(T) < rng.integers(2, T + 1, size=(B, K, 1))
  mask[..., 0] = False
  logprobs = lambda: jnp.asarray(-rng.random((B, K, T)), jnp.float32)
  return types.Batch(
      tokens=jnp.asarray(rng.integers(0, V, (B, K, T))),
      mask=jnp.asarray(mask), scores=jnp.array([[1., 4., 4.], [3., 0., -6.]]),
      old_logprobs=logprobs(), ref_logprobs=logprobs())


@functools.cache
def _ensemble():
  return jax.jit(rewards.init_members, static_argnums=0)(
      CONFIG, jax.random.split(jax.random.key(0), E))


_score = jax.jit(rewards.score, static_argnums=0)
_annotate_scores = jax.jit(annotate.scores, static_argnums=1, static_argnames=(
    'kind', 'uncertainty_coef', 'member'))


class AnnotateTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(), lambda x: x.mean(0)),
      (dict(kind='worst_case'), lambda x: x.min(0)),
      (dict(kind='uncertainty_weighted', uncertainty_coef=.3),
       lambda x: x.mean(0) - .3 * x.var(0)),
      (dict(kind='single', member=2), lambda x: x[2]))
  def test_scores(self, kwargs, combine):
    batch = _annotate_scores(_batch(), CONFIG, _ensemble(), **kwargs)
    members = np.stack([
        _score(CONFIG, jax.tree.map(lambda x, i=i: x[i], _ensemble()),
               batch.tokens, batch.mask) for i in range(E)])
    self.assertEqual(batch.member_scores.shape, (E, B, K))
    np.testing.assert_allclose(batch.member_scores, members, atol=1e-5)
    np.testing.assert_allclose(batch.scores, combine(members), atol=1e-5)
    np.testing.assert_array_equal(batch.tokens, _batch().tokens)

  def test_ref_logprobs(self):
    params = jax.jit(transformer.init, static_argnums=0)(
        CONFIG, jax.random.key(0))
    one = annotate.ref_logprobs(_batch(), CONFIG, params).ref_logprobs
    np.testing.assert_allclose(
        one, policy.forward(CONFIG, params, _batch()).logprobs, atol=1e-6)
    half = annotate.ref_logprobs(
        _batch(), CONFIG, params, temperature=.5).ref_logprobs
    np.testing.assert_allclose(half, policy.forward(
        CONFIG, params, _batch(), temperature=.5).logprobs, atol=1e-6)
    self.assertGreater(np.abs(one - half).max(), .1)
    grads = jax.grad(lambda p: annotate.ref_logprobs(
        _batch(), CONFIG, p).ref_logprobs.sum())(params)
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0)

  def test_kl_scores(self):
    batch = _batch()
    gap = np.where(batch.mask, batch.old_logprobs - batch.ref_logprobs, 0)
    out = annotate.kl_scores(batch, kl_coef=.7)
    np.testing.assert_allclose(
        out.scores, batch.scores - .7 * gap.sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(
        annotate.kl_scores(batch, kl_coef=0.).scores, batch.scores)

  def test_leave_one_out(self):
    np.testing.assert_allclose(
        annotate.leave_one_out(_batch()).advantages,
        [[1 - 4, 4 - 2.5, 4 - 2.5], [3 + 3, 0 + 1.5, -6 - 1.5]], rtol=1e-6)

  def test_keep_best_takes_the_first_on_ties(self):
    batch = _batch()
    out = annotate.keep_best(batch)
    for b, best in ((0, 1), (1, 0)):
      for k in range(K):
        np.testing.assert_array_equal(
            out.mask[b, k], batch.mask[b, k] if k == best else False)
    np.testing.assert_array_equal(out.tokens, batch.tokens)
    self.assertEqual(out.mask.dtype, bool)


if __name__ == '__main__':
  absltest.main()
