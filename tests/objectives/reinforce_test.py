"""Tests for rlhf_jax.objectives.reinforce."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import reinforce
from rlhf_jax.ops import advantages as advantages_lib

CONTRACT = {'settings': [
    {}, {'aggregate': 'token'},
    {'ratio': 'sequence', 'clip_ratio': .2},
    {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'sequence_mean'},
    {'ratio': 'token', 'clip_ratio': (.2, .28), 'aggregate': 'token'},
    {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'sequence_mean',
     'kl_coef': .04},
    {'aggregate': 'constant', 'constant_length': 3, 'kl_coef': .1,
     'kl_kind': 'k2'},
    {'ratio': 'sequence_mean', 'clip_ratio': (3e-4, 4e-4), 'kl_coef': .1,
     'kl_kind': 'k1'}]}

CASES = [
    {'aggregate': 'sequence'}, {'aggregate': 'token'},
    {'aggregate': 'sequence_mean'}, {'aggregate': 'constant'},
    {'aggregate': 'constant', 'constant_length': 3},
    {'kl_coef': .3, 'kl_kind': 'k2'},
    {'kl_coef': .3, 'aggregate': 'token'},
    {'ratio': 'sequence'}, {'ratio': 'sequence', 'clip_ratio': .2},
    {'ratio': 'sequence', 'kl_coef': .3},
    {'ratio': 'sequence_mean', 'clip_ratio': (.1, .3)},
    {'ratio': 'sequence_mean', 'kl_coef': .3, 'kl_kind': 'k1'},
    {'ratio': 'token'}, {'ratio': 'token', 'clip_ratio': (.1, .3)},
    {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'token'},
    {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'sequence_mean',
     'kl_coef': .3},
    {'ratio': 'token', 'clip_ratio': .2, 'aggregate': 'constant',
     'kl_coef': .3, 'constant_length': 3},
]
WITH_RATIO = [x for x in CASES if 'ratio' in x and 'kl_coef' not in x]


def _inputs(seed=0, b=3, k=2, t=5):
  """(logprobs, old, advantages, mask); the first response is empty."""
  rng = np.random.default_rng(seed)
  old = -rng.exponential(size=(b, k, t)).astype(np.float32)
  logprobs = old + .3 * rng.normal(size=old.shape).astype(np.float32)
  mask = np.arange(t) < rng.integers(1, t + 1, size=(b, k, 1))
  mask[0, 0] = False
  return logprobs, old, rng.normal(size=(b, k)).astype(np.float32), mask


def _ref(seed=0):
  """Log-probabilities of a reference, [3, 2, 5]."""
  rng = np.random.default_rng(seed + 1)
  return -rng.exponential(size=(3, 2, 5)).astype(np.float32)


@functools.partial(jax.jit, static_argnums=5)
def _loss(logprobs, old, advantages, mask, ref, kwargs):
  return twin.mean(reinforce.reinforce_loss(
      logprobs, old, advantages, mask, ref_logprobs=ref, **dict(kwargs)))


def _twin(logprobs, old, advantages, mask, ref, ratio='none', clip_ratio=None,
          aggregate='sequence', kl_coef=0., kl_kind='k3',
          constant_length=None):
  """Loss over the valid units, response by response."""
  low, high = clip_ratio if isinstance(clip_ratio, tuple) else (clip_ratio,) * 2
  total, units = 0., 0
  for i in np.ndindex(advantages.shape):
    valid, a = mask[i], advantages[i]
    if not valid.any():
      continue
    x, d = logprobs[i][valid], (logprobs[i] - ref[i])[valid]
    kl = kl_coef * {'k1': d, 'k2': d**2 / 2, 'k3': np.exp(-d) - 1 + d}[kl_kind]
    log_ratio = (logprobs[i] - old[i])[valid]
    reduce = {'sequence': np.sum, 'sequence_mean': np.mean}.get(ratio)
    if ratio == 'none':
      terms = a * x - kl
    else:
      rho = np.exp(reduce([log_ratio], axis=1) if reduce else log_ratio)
      terms = rho * a
      if clip_ratio is not None:
        terms = np.minimum(terms, np.clip(rho, 1 - low, 1 + high) * a)
      terms = terms - (reduce([kl], axis=1) if reduce else kl)
    divide = {'sequence_mean': len(x),
              'constant': constant_length or len(valid)}
    total -= terms.sum() / divide.get(aggregate, 1)
    units += len(x) if aggregate == 'token' else 1
  return total / units


class ReinforceLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  def test_moving_average_by_hand(self):
    # [Ex 7.1] baseline .5: -(.5 * -3 + -.3 * -2) / 2 = .45.
    logprobs = np.float32([[[-1, -2, np.nan]], [[-2, np.nan, np.nan]]])
    mask = np.isfinite(logprobs)
    out = self.variant(lambda *x: reinforce.reinforce_loss(
        x[0], None, *x[1:]))(logprobs, np.float32([[.5], [-.3]]), mask)
    self.assertAlmostEqual(float(twin.mean(out)), .45, 6)

  def test_leave_one_out_by_hand(self):
    # [Ex 7.2] -(8/3 + 8/3 + 0 - 16) / 4 = 2.666667.
    logprobs = np.float32([[[-1], [-2], [-3], [-4]]])
    a = advantages_lib.leave_one_out(np.float32([[1, 2, 3, 6]]))
    out = reinforce.reinforce_loss(logprobs, None, a, logprobs < 0)
    self.assertAlmostEqual(float(twin.mean(out)), 2.666667, 5)

  @parameterized.parameters('token', 'sequence', 'sequence_mean')
  def test_clipping_by_hand(self, ratio):
    # objectives.md, Ex 6.3: A = 1, -1, 1, -1 at ratios 1.5, 1.5, .5, .5 has
    # terms 1.2, -1.5, .5, -.8; a clipped term has no gradient, others r * A.
    # With one token per response, all ratios are the same.
    old = -np.ones((4, 1, 1), np.float32)
    logprobs = old + np.log(np.float32([1.5, 1.5, .5, .5])).reshape(4, 1, 1)
    a = np.float32([[1], [-1], [1], [-1]])
    fn = lambda x: reinforce.reinforce_loss(
        x, old, a, old < 0, ratio=ratio, clip_ratio=.2)
    out = fn(logprobs)
    np.testing.assert_allclose(
        out.loss[:, 0], [-1.2, 1.5, -.5, .8], rtol=1e-6)
    np.testing.assert_array_equal(
        out.metrics['policy/clip_fraction'][:, 0], [1, 0, 0, 1])
    grad = jax.grad(lambda x: twin.mean(fn(x)))(logprobs)
    np.testing.assert_allclose(
        grad[:, 0, 0], [0, .375, -.125, 0], atol=1e-6)

  @parameterized.parameters(*CASES)
  @twin.few
  @twin.randomised
  def test_twin(self, seed, **kwargs):
    logprobs, *rest = _inputs(seed)
    rest.append(_ref(seed))
    twin.assert_equal(lambda x: _loss(x, *rest, tuple(kwargs.items())),
                      lambda x: _twin(x, *rest, **kwargs), logprobs)

  @parameterized.parameters(*WITH_RATIO)
  def test_on_policy_gradient_is_plain(self, **kwargs):
    """At ratio 1 every form has the gradient of ratio='none'."""
    _, old, a, mask = _inputs()
    plain = {'aggregate': kwargs.get('aggregate', 'sequence')}
    if kwargs['ratio'] == 'sequence_mean':
      plain = {'aggregate': 'sequence_mean'}
    grad = lambda kwargs: jax.grad(
        lambda x: _loss(x, old, a, mask, None, tuple(kwargs.items())))(old)
    np.testing.assert_allclose(grad(kwargs), grad(plain), atol=1e-6)

  def test_tokens_are_summed(self):
    # Trap 14: LP is a sum, so a response said twice as long pulls twice as
    # hard; and trap 28, the mean is over responses, not over tokens.
    logprobs = np.float32([[[-1, -1, -1, -1]], [[-1, -1, np.nan, np.nan]]])
    mask = np.isfinite(logprobs)
    a = np.float32([[1], [1]])
    expected = {'sequence': [.5, .5], 'sequence_mean': [.125, .25],
                'token': [1 / 6, 1 / 6], 'constant': [.125, .125]}
    for aggregate, grads in expected.items():
      grad = jax.grad(lambda x, name=aggregate: _loss(
          x, None, a, mask, None, (('aggregate', name),)))(logprobs)
      np.testing.assert_allclose(
          grad[:, 0, 0], -np.array(grads), rtol=1e-6, err_msg=aggregate)
      np.testing.assert_allclose(grad[0, 0], -grads[0], rtol=1e-6)

  def test_constant_length(self):
    """A fixed budget does not change with the padding; the default does."""
    logprobs, _, a, mask = _inputs()
    wide = [np.pad(x, ((0, 0), (0, 0), (0, 3))) for x in (logprobs, mask)]
    fn = lambda x, m, **k: reinforce.reinforce_loss(
        x, None, a, m, aggregate='constant', **k).loss
    np.testing.assert_allclose(fn(*wide, constant_length=10), fn(
        logprobs, mask, constant_length=10), rtol=1e-6)
    np.testing.assert_allclose(
        fn(*wide) * 8, fn(logprobs, mask) * 5, rtol=1e-6)
    np.testing.assert_allclose(
        fn(logprobs, mask, constant_length=10) * 2, fn(logprobs, mask),
        rtol=1e-6)

  def test_kl_penalty_by_hand(self):
    # [Ex 5.1] d = .3, -.2, .1: k3 .040818, .021403, .004837, sum .067058.
    ref = -np.ones((1, 1, 4), np.float32)
    logprobs = ref + np.float32([.3, -.2, .1, np.nan])
    mask, a = np.isfinite(logprobs), np.zeros((1, 1), np.float32)
    fn = lambda **kwargs: reinforce.reinforce_loss(
        logprobs, logprobs, a, mask, ref_logprobs=ref, kl_coef=2., **kwargs)
    for kwargs, expected in (
        ({}, .134117), ({'kl_kind': 'k1'}, .4), ({'kl_kind': 'k2'}, .14),
        ({'aggregate': 'sequence_mean'}, .044706),
        ({'aggregate': 'constant', 'constant_length': 10}, .013412),
        ({'ratio': 'token'}, .134117), ({'ratio': 'sequence'}, .134117),
        ({'ratio': 'sequence_mean'}, .044706)):
      out = fn(**kwargs)
      np.testing.assert_allclose(out.loss, [[expected]], rtol=1e-4)
      if 'kl_kind' not in kwargs:  # of a token, before kl_coef
        np.testing.assert_allclose(
            out.metrics['policy/ref_kl'], [[.067058 / 3]], rtol=1e-4)
    out = fn(aggregate='token')
    np.testing.assert_allclose(
        out.loss, [[[.081636, .042806, .009675, 0]]], rtol=1e-3)
    np.testing.assert_allclose(
        2 * out.metrics['policy/ref_kl'], out.loss, rtol=1e-6)

  def test_gradient_of_the_kl_penalty(self):
    """By enumeration on three arms: which KL each kind descends."""
    theta, ref = np.float32([.3, -.2, .5]), np.float32([.5, .3, .2])
    pi = np.array(jax.nn.softmax(theta))
    log_pi = jax.nn.log_softmax
    def penalty(theta, kind):
      out = reinforce.reinforce_loss(
          log_pi(theta)[:, None, None], None, np.zeros((3, 1), np.float32),
          np.ones((3, 1, 1), bool), kl_coef=1., kl_kind=kind,
          ref_logprobs=np.log(ref)[:, None, None])
      return jnp.sum(pi * out.loss[:, 0])
    forward = lambda t: -jnp.sum(ref * log_pi(t))
    reverse = lambda t: jnp.sum(jnp.exp(log_pi(t)) * (log_pi(t) - np.log(ref)))
    for kind, expected in (('k3', jax.grad(forward)(theta)),
                           ('k2', jax.grad(reverse)(theta)),
                           ('k1', np.zeros(3))):
      np.testing.assert_allclose(
          jax.grad(penalty)(theta, kind), expected, atol=1e-6, err_msg=kind)

  def test_adapted_coefficient(self):
    inputs = (*_inputs(), _ref())
    fn = jax.jit(lambda coef: twin.mean(reinforce.reinforce_loss(
        *inputs[:4], ref_logprobs=inputs[4], kl_coef=coef)))
    self.assertAlmostEqual(float(fn(jnp.float32(.3))), float(_loss(
        *inputs, (('kl_coef', .3),))), 5)
    self.assertEqual(jax.grad(fn)(jnp.float32(.3)), 0)

  def test_units(self):
    mask = _inputs()[-1]
    for aggregate, unit in (('token', (3, 2, 5)), ('sequence', (3, 2))):
      out = reinforce.reinforce_loss(
          *_inputs(), ratio='token', aggregate=aggregate)
      chex.assert_shape([*jax.tree.leaves(out)], unit)
      valid = mask if aggregate == 'token' else mask.any(-1)
      for x in jax.tree.leaves(out):
        np.testing.assert_array_equal(x[~valid], 0)

  def test_only_logprobs_have_a_gradient(self):
    logprobs, old, a, mask = _inputs()
    for ratio in ('token', 'sequence'):
      grads = jax.grad(lambda old, a, ref, ratio=ratio: _loss(
          logprobs, old, a, mask, ref, (('ratio', ratio), ('kl_coef', .1))),
                       (0, 1, 2))(old, a, _ref())
      for grad in grads:
        np.testing.assert_array_equal(grad, 0)

  def test_survives_a_huge_ratio(self):
    old = np.full((1, 1, 2), -200, np.float32)
    out = reinforce.reinforce_loss(
        np.zeros_like(old), old, np.ones((1, 1), np.float32), old < 0,
        ratio='sequence')
    self.assertTrue(np.all(np.isfinite(out.loss)))

  def test_metrics(self):
    logprobs, old, a, mask = _inputs()
    fn = lambda **kwargs: reinforce.reinforce_loss(
        logprobs, old, a, mask, **kwargs).metrics
    log_ratio = logprobs - old
    k3 = np.exp(log_ratio) - 1 - log_ratio
    token = fn(ratio='token', aggregate='token')['policy/approx_kl']
    np.testing.assert_allclose(token[mask], k3[mask], atol=1e-6)
    np.testing.assert_array_equal(token[~mask], 0)
    mean = lambda x: np.where(mask, x, 0).sum(-1) / np.maximum(mask.sum(-1), 1)
    np.testing.assert_allclose(
        fn(ratio='token')['policy/approx_kl'], mean(k3), atol=1e-6)
    whole = mean(log_ratio)
    np.testing.assert_allclose(
        fn(ratio='sequence_mean')['policy/approx_kl'],
        np.exp(whole) - 1 - whole, atol=1e-6)
    with_kl = reinforce.reinforce_loss(
        logprobs, old, a, mask, ratio='sequence', ref_logprobs=_ref(),
        kl_coef=.1).metrics
    self.assertEqual(set(with_kl), {
        'policy/clip_fraction', 'policy/approx_kl', 'policy/ref_kl'})

  def test_objective_binds(self):
    logprobs, old, a, mask = _inputs()
    batch = types.Batch(
        tokens=np.zeros(mask.shape, int), mask=mask, old_logprobs=old,
        advantages=a, ref_logprobs=_ref())
    out = types.PolicyOutput(logprobs)
    kwargs = {'ratio': 'token', 'kl_coef': .1}
    chex.assert_trees_all_equal(
        reinforce.objective(out, batch, **kwargs),
        reinforce.reinforce_loss(
            logprobs, old, a, mask, ref_logprobs=_ref(), **kwargs))
    plain = reinforce.objective(
        out, batch.replace(old_logprobs=None, ref_logprobs=None))
    self.assertEqual(plain.loss.shape, (3, 2))
    self.assertEmpty(plain.metrics)
    for field, kwargs in (('advantages', {}), ('ref_logprobs', {'kl_coef': .1}),
                          ('old_logprobs', {'ratio': 'token'})):
      with self.assertRaisesRegex(ValueError, f'{field} is None'):
        reinforce.objective(out, batch.replace(**{field: None}), **kwargs)
    with self.assertRaisesRegex(ValueError, '^logprobs is None'):
      reinforce.objective(types.PolicyOutput(), batch)

  @parameterized.parameters(
      ({'ratio': 'tokens'}, "ratio.*'tokens'"),
      ({'aggregate': 'mean'}, "aggregate.*'mean'"),
      ({'ratio': 'sequence', 'aggregate': 'token'}, "aggregate.*'token'"),
      ({'ratio': 'sequence_mean', 'aggregate': 'sequence_mean'},
       "aggregate.*'sequence_mean'"),
      ({'ratio': 'token', 'clip_ratio': 0.}, 'clip_ratio.*0'),
      ({'ratio': 'token', 'clip_ratio': (.2, -.1)}, 'clip_ratio.*-0.1'),
      ({'clip_ratio': .2}, 'clip_ratio=0.2'),
      ({'kl_coef': -.1}, 'kl_coef.*-0.1'),
      ({'kl_kind': 'k4'}, "kl_kind.*'k4'"),
      ({'constant_length': 9}, "constant_length=9.*'sequence'"),
      ({'aggregate': 'constant', 'constant_length': 0}, 'constant_length.*0'),
      ({'aggregate': 'constant', 'constant_length': -3},
       'constant_length.*-3'))
  def test_rejects(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      reinforce.reinforce_loss(*_inputs(), ref_logprobs=_ref(), **kwargs)

  def test_rejects_shapes(self):
    logprobs, old, a, mask = _inputs()
    for args in ((logprobs, old, a[:, :1], mask), (logprobs, old, old, mask),
                 (logprobs, old[..., 1:], a, mask)):
      with self.assertRaises(AssertionError):
        reinforce.reinforce_loss(*args, ratio='token')
    with self.assertRaises(AssertionError):
      reinforce.reinforce_loss(
          logprobs, old, a, mask, kl_coef=.1, ref_logprobs=_ref()[..., 1:])
    with self.assertRaises(AssertionError):
      reinforce.reinforce_loss(logprobs[0], old[0], a[0], mask[0])
    with self.assertRaises(AssertionError):
      reinforce.reinforce_loss(logprobs, old, a, mask.astype(np.float32))


def _group(scores, deviation=True):
  """Advantages of one prompt; our deviation has ddof 1 and 1e-4 added."""
  centered = scores - np.mean(scores)
  return centered / (np.std(scores, ddof=1) + 1e-4) if deviation else centered


def _grpo(x, old, ref, scores, lengths):
  """DeepSeekMath, eq. 3 and 4, one prompt: mean over its samples."""
  total = 0.
  for i, a in enumerate(_group(scores)):
    tokens = []
    for t in range(lengths[i]):
      r, q = np.exp(x[i, t] - old[i, t]), np.exp(ref[i, t] - x[i, t])
      tokens.append(min(r * a, min(max(r, .8), 1.2) * a)
                    - .04 * (q - np.log(q) - 1))
    total += np.sum(tokens) / lengths[i]
  return -total / len(scores)


def _dr_grpo(x, old, ref, scores, lengths):
  """Dr. GRPO: neither the deviation nor the length divides, a budget does."""
  total = 0.
  for i, a in enumerate(_group(scores, deviation=False)):
    for t in range(lengths[i]):
      r = np.exp(x[i, t] - old[i, t])
      total += min(r * a, min(max(r, .8), 1.2) * a)
  return -total / len(scores) / 7


def _dapo(x, old, ref, scores, lengths):
  """DAPO, eq. 8, one prompt: mean over all tokens of its samples."""
  terms = []
  for i, a in enumerate(_group(scores)):
    for t in range(lengths[i]):
      r = np.exp(x[i, t] - old[i, t])
      terms.append(min(r * a, min(max(r, .8), 1.28) * a))
  return -np.mean(terms)


def _gspo(x, old, ref, scores, lengths):
  """GSPO, eq. 5 to 7: s = (pi / pi_old)^(1 / |y|) of the whole response."""
  total = 0.
  for i, a in enumerate(_group(scores)):
    n = lengths[i]
    s = (np.prod(np.exp(x[i, :n])) / np.prod(np.exp(old[i, :n])))**(1 / n)
    total += min(s * a, min(max(s, 1 - 3e-4), 1 + 4e-4) * a)
  return -total / len(scores)


# Arguments of the module docstring, twin, whether A is scaled, and how far
# the policy has moved, in nats.
ROWS = {
    'grpo': ({'ratio': 'token', 'clip_ratio': .2, 'kl_coef': .04,
              'aggregate': 'sequence_mean'}, _grpo, True, .3),
    'dr_grpo': ({'ratio': 'token', 'clip_ratio': .2, 'constant_length': 7,
                 'aggregate': 'constant'}, _dr_grpo, False, .3),
    'dapo': ({'ratio': 'token', 'clip_ratio': (.2, .28),
              'aggregate': 'token'}, _dapo, True, .3),
    'gspo': ({'ratio': 'sequence_mean', 'clip_ratio': (3e-4, 4e-4)}, _gspo,
             True, 1e-3),
}


class FamilyTest(parameterized.TestCase):
  """The rows of the module docstring against the papers' own formulas."""

  @parameterized.parameters(*ROWS)
  @twin.few
  @twin.randomised
  def test_twin(self, name, seed):
    kwargs, expected, scale, moved = ROWS[name]
    rng = np.random.default_rng(seed)
    old, ref = -rng.exponential(size=(2, 4, 5)).astype(np.float32)
    x = old + np.float32(moved) * rng.normal(size=(4, 5)).astype(np.float32)
    scores = rng.normal(size=4).astype(np.float32)
    lengths = rng.integers(1, 6, size=4)
    mask = np.arange(5) < lengths[:, None]
    a = advantages_lib.group_normalize(scores[None], scale=scale)
    twin.assert_equal(
        lambda x: _loss(x[None], old[None], a, mask[None], ref[None],
                        tuple(kwargs.items())),
        lambda x: expected(*np.float64([x, old, ref]), scores, lengths), x)

  def test_rloo_of_trl(self):
    # One iteration: rho = 1, and the gradient is RLOO's.
    _, old, a, mask = _inputs()
    grad = lambda kwargs: jax.grad(
        lambda x: _loss(x, old, a, mask, None, kwargs))(old)
    np.testing.assert_allclose(
        grad((('ratio', 'sequence'), ('clip_ratio', .2))), grad(()),
        atol=1e-6)


if __name__ == '__main__':
  absltest.main()
