"""Tests for rlhf_jax.objectives.ppo."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import ppo
from rlhf_jax.ops import advantages as advantages_lib
from rlhf_jax.ops import masked

CONTRACT = {'token_advantages': True, 'settings': [
    {}, {'clip_ratio': (.2, .28), 'value_clip': None, 'entropy_coef': .01},
    {'clip_ratio': None, 'kl_penalty_coef': .2, 'value_coef': .1},
    {'ratio': 'none', 'value_clip': None, 'value_coef': 0.},
    {'ratio': 'none', 'kl_penalty_coef': .2, 'value_clip': .1}]}

CASES = [
    {}, {'clip_ratio': (.1, .4)}, {'clip_ratio': None},
    {'clip_ratio': None, 'kl_penalty_coef': .3}, {'kl_penalty_coef': .3},
    {'ratio': 'none'}, {'ratio': 'none', 'kl_penalty_coef': .3}]

# [Ex 6.3] four tokens of one response, and padding.
ADVANTAGES = np.float32([[[1, -1, 1, -1, np.nan]]])
OLD = np.float32([[[-1, -2, -3, -1, np.nan]]])
LOGPROBS = OLD + np.log(np.float32([1.5, 1.5, .5, .5, 1]))
MASK = np.isfinite(OLD)


def _inputs(seed=0, b=3, k=1, t=5):
  """(logprobs, old, advantages, mask); the first response is empty."""
  rng = np.random.default_rng(seed)
  old = -rng.exponential(size=(b, k, t)).astype(np.float32)
  logprobs = old + .4 * rng.normal(size=old.shape).astype(np.float32)
  advantages = rng.normal(size=old.shape).astype(np.float32)
  mask = np.arange(t) < rng.integers(1, t + 1, size=(b, k, 1))
  mask[0, 0] = False
  return logprobs, old, advantages, mask


@functools.partial(jax.jit, static_argnums=4)
def _loss(logprobs, old, advantages, mask, kwargs):
  return twin.mean(
      ppo.ppo_loss(logprobs, old, advantages, mask, **dict(kwargs)))


@functools.partial(jax.jit, static_argnums=4)
def _value_loss(values, old, returns, mask, value_clip):
  return twin.mean(
      ppo.value_loss(values, old, returns, mask, value_clip=value_clip))


def _twin(logprobs, old, advantages, mask, clip_ratio=.2, ratio='token',
          kl_penalty_coef=0.):
  """Mean over tokens, one by one."""
  low, high = clip_ratio if isinstance(clip_ratio, tuple) else (clip_ratio,) * 2
  terms = []
  for i in zip(*np.nonzero(mask)):
    x, y, a = logprobs[i], old[i], advantages[i]
    r = np.exp(x - y)
    loss = -r * a
    if ratio == 'none':
      loss = -a * x
    elif clip_ratio is not None:
      loss = max(-a * r, -a * min(max(r, 1 - low), 1 + high))
    terms.append(loss + kl_penalty_coef * (r - 1 - np.log(r)))
  return np.mean(terms)


class PpoLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 6.3] -(1.2 - 1.5 + .5 - .8) / 4.
      ('clipped', {}, [-1.2, 1.5, -.5, .8], .15),
      # Bounds .8 and 1.28: only the first token moves.
      ('asymmetric', {'clip_ratio': (.2, .28)}, [-1.28, 1.5, -.5, .8], .13),
      # [Ex 6.6] -mean(r A) = 0 and .2 * mean(.094535, .193147).
      ('kl_penalty', {'clip_ratio': None, 'kl_penalty_coef': .2},
       [-1.481093, 1.518907, -.461371, .538629], .028768),
      ('plain', {'clip_ratio': None}, [-1.5, 1.5, -.5, .5], 0))
  def test_by_hand(self, kwargs, losses, expected):
    out = self.variant(lambda *x: ppo.ppo_loss(*x, **kwargs))(
        LOGPROBS, OLD, ADVANTAGES, MASK)
    np.testing.assert_allclose(out.loss, [[[*losses, 0]]], atol=1e-6)
    np.testing.assert_array_equal(out.weight, MASK)
    self.assertAlmostEqual(float(twin.mean(out)), expected, 6)

  @chex.variants(with_jit=True, without_jit=True)
  def test_vanilla_policy_gradient_by_hand(self):
    # [Ex 6.5] A = .98, .91, .69: (.98 + 1.82 + .345) / 3.
    rewards, values = np.float32([[[-.03, .02, 1.49]], [[.5, .6, .8]]])
    mask = np.ones((1, 1, 3), bool)
    a, _ = advantages_lib.gae(rewards[None], values[None], mask, gae_lambda=1.)
    out = self.variant(lambda *x: ppo.ppo_loss(
        x[0], None, *x[1:], ratio='none'))(
            np.float32([[[-1, -2, -.5]]]), a, mask)
    self.assertAlmostEqual(float(twin.mean(out)), 1.048333, 5)
    self.assertEmpty(out.metrics)

  def test_gradient_by_hand(self):
    # [Ex 6.3] -r A / 4 of the tokens that are not clipped: clipping holds
    # back what is favourable already, never what is unfavourable.
    grad = jax.grad(lambda x: _loss(x, OLD, ADVANTAGES, MASK, ()))(LOGPROBS)
    np.testing.assert_allclose(grad, [[[0, .375, -.125, 0, 0]]], atol=1e-6)

  def test_minimum_before_the_advantage_is_another_loss(self):
    # Trap 9, [Ex 6.3]: what the RLHF notes print has loss 0 and holds back
    # the unfavourable tokens instead.
    a, old, mask = ADVANTAGES[..., :4], OLD[..., :4], MASK[..., :4]
    def printed(x):
      r = jnp.exp(x - old)
      return -jnp.mean(jnp.minimum(r, jnp.clip(r, .8, 1.2)) * a)
    value, grad = jax.value_and_grad(printed)(LOGPROBS[..., :4])
    self.assertAlmostEqual(float(value), 0, 6)
    np.testing.assert_allclose(grad, [[[0, 0, -.125, .125]]], atol=1e-6)
    self.assertAlmostEqual(
        float(_loss(LOGPROBS[..., :4], old, a, mask, ())), .15, 6)

  def test_order_of_the_bounds(self):
    # Trap 26: Ahmadian et al. print clip(r, 1 + eps, 1 - eps), which is
    # .8 everywhere. Of a pair, the first is the lower one.
    log_ratio = np.log(np.float32([1.25, 1.25, .75, .75])).reshape(1, 1, 4)
    fn = lambda clip_ratio: ppo.ppo_loss(
        log_ratio, 0 * log_ratio, np.float32([[[1, -1, 1, -1]]]),
        np.ones((1, 1, 4), bool), clip_ratio=clip_ratio).loss[0, 0]
    np.testing.assert_allclose(fn(.2), [-1.2, 1.25, -.75, .8], rtol=1e-6)
    np.testing.assert_allclose(
        fn((.3, .1)), [-1.1, 1.25, -.75, .75], rtol=1e-6)
    np.testing.assert_allclose(
        fn((.1, .3)), [-1.25, 1.25, -.75, .9], rtol=1e-6)

  @parameterized.parameters(*CASES)
  @twin.few
  @twin.randomised
  def test_twin(self, seed, **kwargs):
    logprobs, *rest = _inputs(seed)
    twin.assert_equal(
        lambda x: _loss(x, *rest, tuple(kwargs.items())),
        lambda x: _twin(x, *rest, **kwargs), logprobs)

  @parameterized.parameters(*CASES[:5])
  def test_on_policy_gradient_is_vanilla(self, **kwargs):
    # objectives.md, section 16; the KL penalty is flat at ratio 1.
    _, old, a, mask = _inputs()
    grad = jax.grad(lambda x: _loss(x, old, a, mask, tuple(kwargs.items())))
    plain = jax.grad(
        lambda x: _loss(x, None, a, mask, (('ratio', 'none'),)))
    np.testing.assert_allclose(grad(old), plain(old), atol=1e-6)
    self.assertAlmostEqual(
        float(_loss(old, old, a, mask, tuple(kwargs.items()))),
        -a[mask].mean(), 5)

  def test_actor_critic_raises_good_actions(self):
    # Trap 3: the notes print +log pi * A, which lowers them. One arm pays 1;
    # the gradient on samples is that of the expected reward, by enumeration.
    theta = np.float32([.3, -.2, .5])
    pays = np.float32([0, 1, 0])
    def expected_reward(theta):
      return -jnp.sum(jax.nn.softmax(theta) * pays)
    pi = np.array(jax.nn.softmax(theta))
    def loss(theta):
      out = ppo.ppo_loss(
          jax.nn.log_softmax(theta)[:, None, None], None,
          (pays - pays @ pi)[:, None, None], np.ones((3, 1, 1), bool),
          ratio='none')
      return jnp.sum(pi * out.loss[:, 0, 0])
    np.testing.assert_allclose(
        jax.grad(loss)(theta), jax.grad(expected_reward)(theta), atol=1e-6)

  def test_tokens_count_alike(self):
    # Trap 28: PPO is a mean over tokens, however long the responses are.
    logprobs, old, a, mask = _inputs(2)
    tokens = lambda *x: [y[mask].reshape(1, 1, -1) for y in x]
    np.testing.assert_allclose(
        _loss(logprobs, old, a, mask, ()),
        _loss(*tokens(logprobs, old, a, mask), ()), rtol=1e-5)

  def test_clip_ratio_is_not_read_without_a_ratio(self):
    logprobs, _, a, mask = _inputs()
    out = [ppo.ppo_loss(logprobs, None, a, mask, ratio='none', clip_ratio=x)
           for x in (.2, None, (.1, .9))]
    chex.assert_trees_all_equal(*out)

  def test_only_logprobs_have_a_gradient(self):
    logprobs, old, a, mask = _inputs()
    for kwargs in ((), (('kl_penalty_coef', .3),)):
      grads = jax.grad(lambda old, a, kwargs=kwargs: _loss(
          logprobs, old, a, mask, kwargs), (0, 1))(old, a)
      chex.assert_trees_all_equal(grads, (0 * old, 0 * a))

  def test_metrics_by_hand(self):
    metrics = ppo.ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK).metrics
    np.testing.assert_array_equal(
        metrics['policy/clip_fraction'], [[[1, 0, 0, 1, 0]]])
    # [Ex 6.6] mean .143841.
    kl = metrics['policy/approx_kl']
    self.assertAlmostEqual(float(masked.masked_mean(kl, MASK)), .143841, 5)
    np.testing.assert_array_equal(kl[..., -1], 0)
    penalty = ppo.ppo_loss(LOGPROBS, OLD, ADVANTAGES, MASK, ratio='none',
                           kl_penalty_coef=.2)
    chex.assert_trees_all_equal(penalty.metrics, {'policy/approx_kl': kl})

  def test_adapted_coefficient(self):
    fn = jax.jit(lambda coef: twin.mean(ppo.ppo_loss(
        LOGPROBS, OLD, ADVANTAGES, MASK, clip_ratio=None,
        kl_penalty_coef=coef)))
    self.assertAlmostEqual(float(fn(jnp.float32(.2))), .028768, 6)
    self.assertEqual(jax.grad(fn)(jnp.float32(.2)), 0)

  @parameterized.parameters(
      ('ratio', 'sequence'), ('clip_ratio', 0.), ('clip_ratio', (.2, -.1)),
      ('kl_penalty_coef', -.1))
  def test_rejects(self, name, value):
    with self.assertRaises(ValueError) as context:
      ppo.ppo_loss(*_inputs(), **{name: value})
    self.assertIn(name, str(context.exception))
    self.assertIn(str(value), str(context.exception))

  def test_rejects_shapes(self):
    good = _inputs()
    for at, x in ((1, good[1][..., 1:]), (2, good[2][..., 0]),
                  (0, good[0].astype(int)), (3, good[3].astype(np.float32))):
      with self.assertRaises(AssertionError):
        ppo.ppo_loss(*[x if i == at else y for i, y in enumerate(good)])
    with self.assertRaises(AssertionError):
      ppo.ppo_loss(*[x[:, 0] for x in good])

  def test_rejects_missing(self):
    good = _inputs()
    names = ['logprobs', 'old_logprobs', 'advantages']
    for i, name in enumerate(names):
      with self.assertRaisesRegex(ValueError, f'^{name} is None'):
        ppo.ppo_loss(*[None if i == j else x for j, x in enumerate(good)])
    for coef in (.1, jnp.float32(.1)):
      with self.assertRaisesRegex(ValueError, 'old_logprobs is None'):
        ppo.ppo_loss(good[0], None, *good[2:], ratio='none',
                     kl_penalty_coef=coef)


def _values(seed=0):
  """(values, old_values, returns, mask) on both sides of the clip."""
  values, old, returns, mask = _inputs(seed)
  return values, old, old + .5 * returns, mask


def _value_twin(values, old, returns, mask, value_clip):
  terms = []
  for i in zip(*np.nonzero(mask)):
    error = (values[i] - returns[i])**2
    if value_clip is not None:
      clipped = old[i] + min(max(values[i] - old[i], -value_clip), value_clip)
      error = max(error, (clipped - returns[i])**2)
    terms.append(error / 2)
  return np.mean(terms)


class ValueLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.parameters((.2, .045), (None, .005), (.5, .005))
  def test_by_hand(self, value_clip, expected):
    # [Ex 6.4] .5 * max((.9 - 1)^2, (.7 - 1)^2); unclipped, .5 * .01.
    x = lambda v: np.float32([[[v, np.nan]]])
    out = self.variant(lambda *x: ppo.value_loss(*x, value_clip=value_clip))(
        x(.9), x(.5), x(1), np.array([[[True, False]]]))
    np.testing.assert_allclose(out.loss, [[[expected, 0]]], atol=1e-6)
    np.testing.assert_array_equal(out.weight, [[[1, 0]]])
    if value_clip:
      np.testing.assert_array_equal(
          out.metrics['value/clip_fraction'], [[[value_clip == .2, 0]]])
    else:
      self.assertEmpty(out.metrics)

  def test_default_is_clipped(self):
    chex.assert_trees_all_equal(ppo.value_loss(*_values()), ppo.value_loss(
        *_values(), value_clip=.2))

  @parameterized.parameters(.2, .05, None)
  @twin.few
  @twin.randomised
  def test_twin(self, value_clip, seed):
    values, *rest = _values(seed)
    twin.assert_equal(lambda x: _value_loss(x, *rest, value_clip),
                      lambda x: _value_twin(x, *rest, value_clip), values)

  def test_gradient_by_hand(self):
    # V = 1, G = 0: from .5 the clipped error .7^2 is the smaller one, so that
    # the gradient is V - G; from 1.5, 1.3^2 is larger and has none.
    x = lambda v: np.float32([[[v]]])
    for old, expected in ((.5, 1), (1.5, 0)):
      grad = jax.grad(lambda v, old=old: ppo.value_loss(
          v, x(old), x(0), np.ones((1, 1, 1), bool)).loss.sum())(x(1))
      np.testing.assert_allclose(grad, x(expected), atol=1e-6)

  def test_only_values_have_a_gradient(self):
    values, old, returns, mask = _values()
    grads = jax.grad(lambda old, returns: _value_loss(
        values, old, returns, mask, .05), (0, 1))(old, returns)
    chex.assert_trees_all_equal(grads, (0 * old, 0 * returns))

  @parameterized.parameters(0., -.2)
  def test_rejects(self, value_clip):
    with self.assertRaisesRegex(ValueError, f'value_clip.*{value_clip}'):
      ppo.value_loss(*_values(), value_clip=value_clip)

  def test_rejects_shapes_and_missing(self):
    good = _values()
    for i, name in enumerate(['values', 'old_values', 'returns']):
      with self.assertRaisesRegex(ValueError, f'^{name} is None'):
        ppo.value_loss(*[None if i == j else x for j, x in enumerate(good)])
      with self.assertRaises(AssertionError):
        ppo.value_loss(*[x[:1] if i == j else x for j, x in enumerate(good)])
    with self.assertRaises(AssertionError):
      ppo.value_loss(*[x[0] for x in good])
    ppo.value_loss(good[0], None, *good[2:], value_clip=None)


class ObjectiveTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    logprobs, old, a, self.mask = _inputs(3)
    values, old_values, returns, _ = _values(4)
    self.batch = types.Batch(
        tokens=np.zeros(self.mask.shape, int), mask=self.mask,
        old_logprobs=old, advantages=a, old_values=old_values, returns=returns)
    self.out = types.PolicyOutput(
        logprobs, entropy=np.abs(logprobs), values=values)
    self.policy = ppo.ppo_loss(logprobs, old, a, self.mask, clip_ratio=.1)
    self.value = ppo.value_loss(
        values, old_values, returns, self.mask, value_clip=.3)

  def test_total(self):
    out = ppo.objective(self.out, self.batch, value_coef=.1, value_clip=.3,
                        entropy_coef=.02, clip_ratio=.1)
    entropy = np.where(self.mask, self.out.entropy, 0)
    np.testing.assert_allclose(
        out.loss, self.policy.loss + .1 * self.value.loss - .02 * entropy,
        rtol=1e-6)
    chex.assert_trees_all_equal(out.metrics, {
        **self.policy.metrics, **self.value.metrics,
        'policy/loss': self.policy.loss, 'value/loss': self.value.loss,
        'policy/entropy': entropy})
    np.testing.assert_array_equal(out.weight, self.mask)

  def test_penalty_towards_the_reference(self):
    batch = self.batch.replace(ref_logprobs=self.batch.old_logprobs - .5)
    plain = ppo.objective(self.out, batch)
    out = ppo.objective(self.out, batch, kl_coef=.3, kl_kind='k2')
    gap = np.where(
        self.mask, (self.out.logprobs - batch.ref_logprobs)**2 / 2, 0)
    np.testing.assert_allclose(out.loss, plain.loss + .3 * gap, rtol=1e-5)
    np.testing.assert_allclose(out.metrics['policy/ref_kl'], gap, rtol=1e-5)
    self.assertNotIn('policy/ref_kl', plain.metrics)

  def test_defaults(self):
    chex.assert_trees_all_equal(
        ppo.objective(self.out, self.batch),
        ppo.objective(self.out, self.batch, value_coef=1., value_clip=.2,
                      entropy_coef=0., clip_ratio=.2, ratio='token',
                      kl_penalty_coef=0.))

  def test_reads_what_it_needs(self):
    bare = types.PolicyOutput(self.out.logprobs)
    batch = types.Batch(
        tokens=self.batch.tokens, mask=self.mask,
        advantages=self.batch.advantages)
    out = ppo.objective(bare, batch, value_coef=0., ratio='none')
    self.assertEqual(set(out.metrics), {'policy/loss'})
    out = ppo.objective(self.out.replace(entropy=None), self.batch)
    self.assertNotIn('policy/entropy', out.metrics)
    out = ppo.objective(
        self.out, self.batch.replace(old_values=None), value_clip=None)
    self.assertNotIn('value/clip_fraction', out.metrics)

  @parameterized.parameters(
      ('values', {}), ('entropy', {'entropy_coef': .1}), ('logprobs', {}))
  def test_rejects_missing_output(self, name, kwargs):
    with self.assertRaisesRegex(ValueError, f'{name} is None'):
      ppo.objective(self.out.replace(**{name: None}), self.batch, **kwargs)

  @parameterized.parameters(
      'old_logprobs', 'advantages', 'old_values', 'returns')
  def test_rejects_missing_field(self, name):
    with self.assertRaisesRegex(ValueError, f'{name} is None'):
      ppo.objective(self.out, self.batch.replace(**{name: None}))

  @parameterized.parameters('value_coef', 'entropy_coef')
  def test_rejects(self, name):
    with self.assertRaisesRegex(ValueError, f'{name}.*-0.1'):
      ppo.objective(self.out, self.batch, **{name: -.1})

  def test_targets_know_nothing_of_whitening(self):
    # Trap 8: returns are made before advantages are whitened.
    white = masked.whiten(self.batch.advantages, self.mask)
    out = [ppo.objective(self.out, self.batch.replace(advantages=a))
           for a in (self.batch.advantages, white)]
    np.testing.assert_array_equal(
        *[x.metrics['value/loss'] for x in out])
    self.assertGreater(np.abs(out[0].loss - out[1].loss).max(), .01)


if __name__ == '__main__':
  absltest.main()
