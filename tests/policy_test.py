"""Tests for rlhf_jax.policy."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import logprobs

B, K, T, V = 2, 3, 6, 9
CONFIGS = {
    tied: transformer.make_config(
        'llama', vocab_size=V, hidden_size=8, num_layers=2, num_heads=2,
        intermediate_size=12, tie_embeddings=tied) for tied in (False, True)}


@functools.cache
def _example(tied=False):
  params = jax.jit(transformer.init, static_argnums=0)(
      CONFIGS[tied], jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, V, (B, K, T), np.int32)
  mask = np.arange(T) >= np.full((B, K, 1), 2)
  return params, types.Batch(tokens=jnp.asarray(tokens), mask=mask)


_forward = jax.jit(policy.forward, static_argnums=0,
                   static_argnames='temperature')


class ForwardTest(parameterized.TestCase):

  @parameterized.product(tied=(False, True), temperature=(1., .5))
  def test_equals_the_whole_logits(self, tied, temperature):
    params, batch = _example(tied)
    out = _forward(CONFIGS[tied], params, batch, temperature=temperature)
    logits = jax.vmap(lambda x: transformer.logits(CONFIGS[tied], params, x))(
        batch.tokens)
    for mine, fn in ((out.logprobs, logprobs.token_logprobs),
                     (out.entropy, logprobs.token_entropy)):
      self.assertEqual(mine.shape, (B, K, T))
      np.testing.assert_allclose(
          mine, fn(logits, batch.tokens, temperature=temperature), atol=1e-5)
    self.assertLess(out.logprobs[..., 1:].max(), 0)
    self.assertIsNone(out.values)

  def test_padding_is_inert(self):
    params, batch = _example()
    other = batch.tokens.at[0, :, 4:].add(1) % V
    one = _forward(CONFIGS[False], params, batch).logprobs
    two = _forward(
        CONFIGS[False], params, batch.replace(tokens=other)).logprobs
    np.testing.assert_allclose(one[0, :, :4], two[0, :, :4], atol=1e-6)
    np.testing.assert_allclose(one[1], two[1], atol=1e-6)
    self.assertGreater(np.abs(one - two)[0, :, 4:].max(), .01)

  def test_gradient_reaches_every_parameter(self):
    params, batch = _example()
    loss = lambda p: policy.forward(
        CONFIGS[False], p, batch).logprobs[..., 2:].sum()
    grads = jax.jit(jax.grad(loss))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
      self.assertGreater(np.abs(leaf).max(), 0, jax.tree_util.keystr(path))

  def test_heads(self):
    params, batch = _example()
    keys = jax.random.split(jax.random.key(1), 3)
    params = {**params, 'value_head': heads.init_scalar(keys[0], 8),
              'q_heads': heads.init_q(keys[1], 8, V)}
    targets = heads.init_q(keys[2], 8, V)
    out = _forward(CONFIGS[False], params, batch, targets)
    flat = batch.tokens.reshape(-1, T)
    hidden = transformer.hidden_states(
        CONFIGS[False], params, flat).reshape(B, K, T, 8)
    # Token t is emitted in the state that hidden t - 1 describes.
    np.testing.assert_allclose(
        out.values[..., 1:], heads.scalar(params['value_head'], hidden)[
            ..., :-1], atol=1e-5)
    np.testing.assert_array_equal(out.values[..., 0], 0)
    for found, head in ((out.q_values, params['q_heads']),
                        (out.target_q_values, targets)):
      self.assertLen(found, 2)
      for q, weight in zip(found, head):
        table = jnp.einsum('bktd,vd->bktv', hidden, weight)
        taken = jnp.take_along_axis(
            table[..., :-1, :], batch.tokens[..., 1:, None], -1)[..., 0]
        np.testing.assert_allclose(q[..., 1:], taken, atol=1e-5)
        np.testing.assert_array_equal(q[..., 0], 0)
    for found, weight in zip(out.q_logprobs, params['q_heads']):
      np.testing.assert_allclose(found, logprobs.token_logprobs(
          jnp.einsum('bktd,vd->bktv', hidden, weight), batch.tokens),
          atol=1e-5)

  def test_targets_have_no_gradient(self):
    params, batch = _example()
    targets = heads.init_q(jax.random.key(2), 8, V)
    grads = jax.grad(lambda p, t: sum(x.sum() for x in policy.forward(
        CONFIGS[False], p, batch, t).target_q_values), (0, 1))(params, targets)
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0)


if __name__ == '__main__':
  absltest.main()
