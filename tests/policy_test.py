"""Tests for rlhf_jax.policy."""

import functools
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.annotators import from_models
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.ops import logprobs
from rlhf_jax.ops import nucleus
from rlhf_jax.rewards import models as reward_models

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


# Whole programs compile faster than their operations one by one.
_forward = jax.jit(policy.forward, static_argnums=0,
                   static_argnames=('temperature', 'value_config'))
_hidden = jax.jit(transformer.hidden_states, static_argnums=0)
_init = jax.jit(transformer.init, static_argnums=0)


def _with_bias(q_heads):
  """Fresh ones have a bias of 0, which hides that it is left out."""
  return [head | {'bias': jnp.linspace(-1 - i, 1 + i, V)}
          if isinstance(head, dict) else head
          for i, head in enumerate(q_heads)]


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

  @parameterized.product(tied=(False, True), temperature=(1., .5))
  def test_within_a_guide(self, tied, temperature):
    """The whole logits, restricted to its nucleus and to what is there."""
    params, batch = _example(tied)
    guide = nucleus.Guide(_init(CONFIGS[tied], jax.random.key(9)), .5)
    out = jax.jit(lambda batch: policy.forward(
        CONFIGS[tied], params, batch, temperature=temperature,
        guide=guide))(batch)
    own, theirs = (np.float64(jax.vmap(lambda x, p=p: transformer.logits(
        CONFIGS[tied], p, x))(batch.tokens)) / temperature
                   for p in (params, guide.params))
    kept, off = [], 0
    for b, k, t in np.ndindex(B, K, T - 1):
      token, probs = int(batch.tokens[b, k, t + 1]), np.exp(theirs[b, k, t])
      order = np.argsort(-probs)
      before = np.cumsum(probs[order]) - probs[order]
      inside = {*order[before < .5 * probs.sum()].tolist()}
      off += token not in inside
      some = own[b, k, t][[*inside | {token}]]
      logs = some - np.log(np.exp(some).sum())
      self.assertAlmostEqual(
          out.logprobs[b, k, t + 1],
          own[b, k, t, token] - np.log(np.exp(some).sum()), 4)
      self.assertAlmostEqual(
          out.entropy[b, k, t + 1], -(np.exp(logs) * logs).sum(), 4)
      kept.append(len(some))
    self.assertBetween(np.mean(kept), 1.5, V - 2)
    self.assertGreater(off, 0)
    np.testing.assert_array_equal(out.logprobs[..., 0], 0)

  @parameterized.parameters(1, 2, 3)
  def test_a_guide_in_parts(self, positions):
    """Some positions at a time, the last of them fewer."""
    params, batch = _example()
    guide = nucleus.Guide(_init(CONFIGS[False], jax.random.key(9)), .5)
    weights = jnp.cos(jnp.arange(B * K * T)).reshape(B, K, T)

    def loss(params):
      out = policy.forward(CONFIGS[False], params, batch, guide=guide)
      return ((out.logprobs + .3 * out.entropy) * weights).sum()

    whole = jax.jit(jax.value_and_grad(loss))(params)
    with mock.patch.object(policy, 'LOGITS', positions * B * K * V):
      parts = jax.jit(jax.value_and_grad(lambda x: loss(x)))(params)
    chex.assert_trees_all_close(parts, whole, atol=1e-5)

  def test_a_guide_in_numbers(self):
    """[Ex 10.1]"""
    config = transformer.make_config(
        'llama', vocab_size=4, hidden_size=8, num_layers=1, num_heads=2,
        intermediate_size=12)
    params = jax.tree.map(jnp.zeros_like, _init(config, jax.random.key(0)))
    logs = jnp.log(jnp.float32([.5, .3, .15, .05]))
    params |= {'norm': jax.tree.map(jnp.ones_like, params['norm']),
               'embed': jnp.ones((4, 8)),  # and of norm 1 in each feature
               'unembed': jnp.broadcast_to(logs[:, None] / 8, (4, 8))}
    batch = types.Batch(jnp.int32([[[0, 0, 1, 2, 3]]]), jnp.ones((1, 1, 5)))
    out = policy.forward(
        config, params, batch, guide=nucleus.Guide(params, .9))
    np.testing.assert_allclose(
        np.exp(out.logprobs[0, 0, 1:4]), [.526316, .315789, .157895],
        atol=2e-5)
    self.assertAlmostEqual(out.logprobs[0, 0, 2], -1.152680, 4)
    # One that is there though it is outside.
    self.assertAlmostEqual(out.logprobs[0, 0, 4], np.log(.05), 4)

  def test_no_gradient_reaches_the_guide(self):
    params, batch = _example()
    of = lambda params, guide: policy.forward(
        CONFIGS[False], params, batch, guide=nucleus.Guide(guide, .5)
        ).logprobs[..., 1:].sum()
    own, theirs = jax.jit(jax.grad(of, (0, 1)))(
        params, jax.tree.map(lambda x: .9 * x, params))
    self.assertEqual(max(float(jnp.abs(x).max())
                         for x in jax.tree.leaves(theirs)), 0)
    for leaf in jax.tree.leaves(own):
      self.assertTrue(np.isfinite(leaf).all())
      self.assertGreater(np.abs(leaf).max(), 0)

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

  def _states(self):
    """Hidden states f32[B, K, T, 8] of the example."""
    params, batch = _example()
    return _hidden(
        CONFIGS[False], params, batch.tokens.reshape(-1, T)).reshape(
            B, K, T, 8)

  @parameterized.parameters(False, True)
  def test_heads(self, mlp):
    params, batch = _example()
    keys = jax.random.split(jax.random.key(1), 3)
    params = {**params, 'value_head': heads.init_scalar(keys[0], 8, mlp=mlp),
              'q_heads': _with_bias(heads.init_q(keys[1], 8, V, mlp=mlp))}
    targets = _with_bias(heads.init_q(keys[2], 8, V, mlp=mlp))
    out = _forward(CONFIGS[False], params, batch, targets)
    hidden = self._states()
    # Token t is emitted in the state that hidden t - 1 describes.
    np.testing.assert_allclose(
        out.values[..., 1:], heads.scalar(params['value_head'], hidden)[
            ..., :-1], atol=1e-5)
    np.testing.assert_array_equal(out.values[..., 0], 0)

    def table(head):  # [B, K, T, V]
      states, weight, bias = heads.q_map(head, hidden)
      bias = jnp.zeros(V) if bias is None else bias
      return (jnp.einsum('bktd,vd->bktv', states, weight)
              + bias[None, None, None])

    for actual, given in ((out.q_values, params['q_heads']),
                          (out.target_q_values, targets)):
      self.assertLen(actual, 2)
      for q, head in zip(actual, given):
        taken = jnp.take_along_axis(
            table(head)[..., :-1, :], batch.tokens[..., 1:, None], -1)[..., 0]
        np.testing.assert_allclose(q[..., 1:], taken, atol=1e-5)
        np.testing.assert_array_equal(q[..., 0], 0)
    for actual, head in zip(out.q_logprobs, params['q_heads']):
      np.testing.assert_allclose(actual, logprobs.token_logprobs(
          table(head), batch.tokens), atol=1e-5)

  def test_values_of_a_separate_trunk(self):
    """Of its own shape; the policy's trunk then gets no gradient from it."""
    params, batch = _example()
    other = transformer.make_config(
        'gptj', vocab_size=V, hidden_size=16, num_layers=1, num_heads=2)
    keys = jax.random.split(jax.random.key(1))
    trunk = heads.trunk(_init(other, keys[0]))
    params = {**params, 'value_trunk': trunk,
              'value_head': heads.init_scalar(keys[1], 16, mlp=True)}
    values = lambda p: policy.forward(
        CONFIGS[False], p, batch, value_config=other).values
    hidden = _hidden(other, trunk, batch.tokens.reshape(-1, T)).reshape(
        B, K, T, 16)
    out = _forward(CONFIGS[False], params, batch, value_config=other)
    np.testing.assert_allclose(
        out.values[..., 1:],
        heads.scalar(params['value_head'], hidden)[..., :-1], atol=1e-5)
    grads = jax.jit(jax.grad(lambda p: values(p).sum()))(params)
    moved = {name for name, x in grads.items() if any(
        np.any(leaf) for leaf in jax.tree.leaves(x))}
    self.assertEqual(moved, {'value_trunk', 'value_head'})
    shared = {**params, 'value_head': heads.init_scalar(keys[1], 8)}
    same = {**shared, 'value_trunk': heads.trunk(params)}
    del shared['value_trunk']
    np.testing.assert_allclose(  # by default of the policy's shape
        _forward(CONFIGS[False], same, batch).values,
        _forward(CONFIGS[False], shared, batch).values, atol=1e-5)

  def test_reward_head_beside_the_language_model(self):
    """Askell et al.: scores and logprobs of one trunk, from one forward."""
    params, batch = _example()
    mask = batch.mask & (np.arange(T) < np.array(
        [[[3], [4], [6]], [[5], [6], [2]]]))  # the last response is empty
    batch = batch.replace(mask=mask)
    head = heads.init_scalar(jax.random.key(1), 8)
    both = {**params, 'reward_head': head}
    out = _forward(CONFIGS[False], both, batch)
    expected = np.take_along_axis(
        np.asarray(heads.scalar(head, self._states())),
        np.array([[2, 3, 5], [4, 5, 0]])[..., None], axis=-1)[..., 0]
    expected[1, 2] = 0
    np.testing.assert_allclose(out.scores, expected, atol=1e-5)
    scored = jax.jit(reward_models.score, static_argnums=0)(
        CONFIGS[False], {'trunk': heads.trunk(params), 'head': head},
        batch.tokens, mask)
    np.testing.assert_allclose(
        out.scores[:, :2], scored[:, :2], atol=1e-5)
    np.testing.assert_allclose(
        out.logprobs, _forward(CONFIGS[False], params, batch).logprobs,
        atol=1e-6)
    loss = lambda p: objectives.get('preference_lm')(
        policy.forward(CONFIGS[False], p, batch.replace(
            tokens=batch.tokens[:, :2], mask=mask[:, :2])),
        batch.replace(mask=mask[:, :2])).loss.sum()
    grads = jax.jit(jax.grad(loss))(both)
    for leaf in (grads['embed'], grads['unembed'],
                 grads['reward_head']['weight']):
      self.assertTrue(np.any(leaf))

  def test_dropout_only_where_a_key_is_given(self):
    params, batch = _example()
    params = {**params, 'value_trunk': heads.trunk(params),
              'value_head': heads.init_scalar(jax.random.key(1), 8)}
    config = CONFIGS[False].replace(dropout=.3)
    plain = _forward(CONFIGS[False], params, batch)
    chex.assert_trees_all_close(
        _forward(config, params, batch), plain, atol=1e-6)
    annotated = jax.jit(from_models.ref_logprobs, static_argnums=1)(
        batch, config, params).ref_logprobs
    np.testing.assert_allclose(annotated, plain.logprobs, atol=1e-6)
    values = jax.jit(from_models.old_values, static_argnums=1)(
        batch, config, params).old_values
    np.testing.assert_allclose(values, plain.values, atol=1e-6)
    one, same, other = (_forward(config, params, batch,
                                 dropout_key=jax.random.key(s))
                        for s in (0, 0, 1))
    chex.assert_trees_all_equal(one, same)
    for x in (plain, other):
      for name in ('logprobs', 'values'):
        gap = np.abs(getattr(one, name) - getattr(x, name))
        self.assertGreater(gap.max(), .05, name)

  def test_bfloat16_trunk_gives_float32(self):
    params, batch = _example()
    keys = jax.random.split(jax.random.key(1), 3)
    params = {**params, 'value_head': heads.init_scalar(keys[0], 8, mlp=True),
              'reward_head': heads.init_scalar(keys[0], 8),
              'q_heads': heads.init_q(keys[1], 8, V, mlp=True)}
    exact, low = (
        _forward(CONFIGS[False].replace(dtype=dtype), params, batch,
                 params['q_heads']) for dtype in ('float32', 'bfloat16'))
    chex.assert_type(jax.tree.leaves(low), jnp.float32)
    chex.assert_trees_all_close(low, exact, atol=.1)

  def test_targets_have_no_gradient(self):
    params, batch = _example()
    targets = heads.init_q(jax.random.key(2), 8, V)
    grads = jax.grad(lambda p, t: sum(x.sum() for x in policy.forward(
        CONFIGS[False], p, batch, t).target_q_values), (0, 1))(params, targets)
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0)


if __name__ == '__main__':
  absltest.main()
