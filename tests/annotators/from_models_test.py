"""Tests for rlhf_jax.annotators.from_models."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.annotators import from_models
from rlhf_jax.models import heads
from rlhf_jax.models import transformer
from rlhf_jax.rewards import models as reward_models

V, E, B, K, T = 9, 3, 2, 3, 5
CONFIG = transformer.make_config(
    'llama', vocab_size=V, hidden_size=8, num_layers=1, num_heads=2,
    intermediate_size=12)


@functools.cache
def _batch():
  rng = np.random.default_rng(0)
  mask = np.arange(T) < rng.integers(2, T + 1, size=(B, K, 1))
  mask[..., 0] = False
  return types.Batch(
      tokens=jnp.asarray(rng.integers(0, V, (B, K, T))),
      mask=jnp.asarray(mask))


@functools.cache
def _policy():
  return jax.jit(transformer.init, static_argnums=0)(CONFIG, jax.random.key(0))


@functools.cache
def _ensemble():
  return jax.jit(reward_models.init_members, static_argnums=0)(
      CONFIG, jax.random.split(jax.random.key(0), E))


_score = jax.jit(reward_models.score, static_argnums=0)
_annotate_scores = jax.jit(
    from_models.scores, static_argnums=1,
    static_argnames=('kind', 'uncertainty_coef', 'member', 'squash'))


def _members(batch):
  """f32[E, B, K], one member after the other."""
  return np.stack([
      _score(CONFIG, jax.tree.map(lambda x, i=i: x[i], _ensemble()),
             batch.tokens, batch.mask) for i in range(E)])


class ScoresTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(), lambda x: x.mean(0)),
      (dict(kind='worst_case'), lambda x: x.min(0)),
      (dict(kind='uncertainty_weighted', uncertainty_coef=.3),
       lambda x: x.mean(0) - .3 * x.var(0)),
      (dict(kind='single', member=2), lambda x: x[2]))
  def test_members_are_combined(self, kwargs, combine):
    batch = _annotate_scores(_batch(), CONFIG, _ensemble(), **kwargs)
    members = _members(batch)
    self.assertEqual(batch.member_scores.shape, (E, B, K))
    np.testing.assert_allclose(batch.member_scores, members, atol=1e-5)
    np.testing.assert_allclose(batch.scores, combine(members), atol=1e-5)
    np.testing.assert_array_equal(batch.tokens, _batch().tokens)

  def test_members_are_standardised_before_they_are_combined(self):
    batch = _batch().replace(scores=jnp.array([[1., 4., 4.], [3., 0., -6.]]))
    scale = {'mean': jnp.array([5., -1., 0.]), 'std': jnp.array([2., .5, 0.])}
    out = _annotate_scores(batch, CONFIG, _ensemble(), scale=scale, weight=.5,
                           kind='worst_case')
    raw = _members(batch)
    members = np.stack([(raw[0] - 5) / 2, (raw[1] + 1) / .5,
                        raw[2]])  # a deviation of 0
    np.testing.assert_allclose(out.member_scores, members, rtol=1e-5)
    # Half of the minimum, on top of the scores that were there.
    np.testing.assert_allclose(
        out.scores, batch.scores + .5 * members.min(0), rtol=1e-5)

  def test_the_aggregate_is_squashed_and_then_weighted(self):
    square = lambda x: x**2
    out = _annotate_scores(_batch(), CONFIG, _ensemble(), squash=square,
                           weight=-3.)
    members = _members(_batch())
    np.testing.assert_allclose(out.member_scores, members, atol=1e-5)
    np.testing.assert_allclose(
        out.scores, -3 * members.mean(0)**2, rtol=1e-4)


class PolicyTest(parameterized.TestCase):

  @parameterized.parameters('ref_logprobs', 'old_logprobs')
  def test_logprobs(self, name):
    fill = getattr(from_models, name)
    read = lambda *args, **kwargs: getattr(fill(*args, **kwargs), name)
    one = read(_batch(), CONFIG, _policy())
    np.testing.assert_allclose(
        one, policy.forward(CONFIG, _policy(), _batch()).logprobs, atol=1e-6)
    half = read(_batch(), CONFIG, _policy(), temperature=.5)
    np.testing.assert_allclose(half, policy.forward(
        CONFIG, _policy(), _batch(), temperature=.5).logprobs, atol=1e-6)
    self.assertGreater(np.abs(one - half).max(), .1)
    grads = jax.grad(lambda p: read(_batch(), CONFIG, p).sum())(_policy())
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0)

  def test_old_values_are_the_heads_and_detached(self):
    params = dict(
        _policy(), value_head=heads.init_scalar(jax.random.key(1), 8))
    values = lambda p: from_models.old_values(_batch(), CONFIG, p).old_values
    np.testing.assert_allclose(values(params), policy.forward(
        CONFIG, params, _batch()).values, atol=1e-6)
    for leaf in jax.tree.leaves(jax.grad(lambda p: values(p).sum())(params)):
      np.testing.assert_array_equal(leaf, 0)
    # A trunk of its own, and of another shape: rotations are a part of it.
    other = dataclasses.replace(CONFIG, rope_theta=10.)
    params['value_trunk'] = heads.trunk(params)
    np.testing.assert_allclose(
        from_models.old_values(
            _batch(), CONFIG, params, value_config=other).old_values,
        policy.forward(other, params, _batch()).values, atol=1e-6)

  def test_no_value_head(self):
    with self.assertRaisesRegex(ValueError, "no 'value_head' to annotate"):
      from_models.old_values(_batch(), CONFIG, {})

  def test_prompt_values_read_the_prompt_alone(self):
    head = heads.init_prompt_value(jax.random.key(1), 8)
    batch = _batch()
    inside = (np.arange(T) >= 2) & (np.arange(T) < T - 1)  # then padding
    mask = np.broadcast_to(inside, (B, K, T)).copy()
    mask[1, 0] = False  # the prompt is then read from another sample
    batch = batch.replace(mask=jnp.asarray(mask), tokens=batch.tokens.at[
        :, :, :2].set(batch.tokens[:, :1, :2]))
    fn = lambda b, p, h: from_models.prompt_values(
        b, CONFIG, p, h, max_value=5.).prompt_values
    values = fn(batch, _policy(), head)
    hidden = transformer.hidden_states(
        CONFIG, _policy(), batch.tokens[:, 1, :2])
    np.testing.assert_allclose(values, heads.prompt_value(
        head, hidden, np.ones((B, 2), bool), max_value=5.), rtol=1e-5)
    other = batch.replace(tokens=batch.tokens.at[:, :, 2:].set(0))
    np.testing.assert_allclose(fn(other, _policy(), head), values, rtol=1e-6)
    grads = jax.grad(lambda *args: fn(batch, *args).sum(), (0, 1))(
        _policy(), head)
    for leaf in jax.tree.leaves(grads):
      np.testing.assert_array_equal(leaf, 0)


class ReferencePointTest(absltest.TestCase):

  def test_is_of_responses_to_other_prompts(self):
    whole = jax.tree.map(lambda x: x[:, :2], _batch())
    logprobs = policy.forward(CONFIG, _policy(), whole).logprobs
    gap = np.float32([[9., 2.], [9., 1.]])  # nats a token, more than there is
    whole = whole.replace(
        ref_logprobs=logprobs - gap[..., None], targets=jnp.eye(2),
        prompt_values=jnp.ones(2))
    out = jax.jit(from_models.reference_point, static_argnums=1)(
        whole, CONFIG, _policy())
    lengths = whole.mask[:, 1].sum(-1)
    self.assertEqual(out.reference_points.shape, (2, 1))
    np.testing.assert_allclose(
        out.reference_points, (gap[:, 1] * lengths).mean(), rtol=1e-5)
    # They have served: what is learned from is left, as it was.
    for name in ('tokens', 'mask', 'ref_logprobs', 'targets'):
      np.testing.assert_array_equal(
          getattr(out, name), getattr(whole, name)[:, :1])
    np.testing.assert_array_equal(out.prompt_values, whole.prompt_values)
    self.assertIsNone(out.scores)

  def test_no_gradient(self):
    whole = jax.tree.map(lambda x: x[:, :2], _batch())
    whole = whole.replace(ref_logprobs=jnp.full(whole.mask.shape, -9.))
    point, grad = jax.value_and_grad(
        lambda params: from_models.reference_point(
            whole, CONFIG, params).reference_points.sum())(_policy())
    self.assertGreater(point, 0)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), grad)

  def test_what_is_missing(self):
    with self.assertRaisesRegex(ValueError, 'ref_logprobs is None'):
      from_models.reference_point(_batch(), CONFIG, _policy())
    with self.assertRaises(AssertionError):  # K is 3
      from_models.reference_point(_batch().replace(
          ref_logprobs=jnp.zeros((B, K, T))), CONFIG, _policy())


if __name__ == '__main__':
  absltest.main()
