"""Tests for rlhf_jax.objectives.ilql."""

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import numpy as np
import twin

from rlhf_jax import types
from rlhf_jax.objectives import ilql
from rlhf_jax.ops import advantages
from rlhf_jax.ops import logprobs as logprobs_lib

CONTRACT = {'settings': [
    {}, {'beta': .5}, {'discount': 1., 'expectile': .5, 'cql_coef': 0.},
    {'awac_coef': 0.}]}

SETTINGS = {'discount': .9, 'expectile': .8, 'cql_coef': .3, 'awac_coef': .7,
            'beta': .5}
SETTING_CASES = ({}, SETTINGS, {**SETTINGS, 'beta': 0.})


def _example(final_value=.3):
  """[Ex 8.5] as loss arguments, [1, 1, 4]: a prompt token, two, padding.

  Logits of step t predict token t + 1, so the two actions stand at 1 and 2.
  """
  rows = lambda *x: np.float32(np.pad(x, [(0, 2), (0, 0)]))[None, None]
  tokens = np.array([[[0, 0, 1, 0]]])
  q = rows([.4, .1], [.2, .7]), rows([.3, .2], [0, .9])
  targets = rows([.35, 0], [.1, .6]), rows([.25, 0], [.3, .8])
  taken = lambda x: np.take_along_axis(
      np.roll(x, 1, axis=2), tokens[..., None], axis=-1)[..., 0]
  logprob = lambda x: logprobs_lib.token_logprobs(x, tokens)
  mask = np.array([[[False, True, True, False]]])
  zeros = np.zeros(mask.shape, np.float32)
  rewards = advantages.shape_rewards(
      np.float32([[1]]), zeros, zeros, mask, kl_coef=0.)
  return {
      'logprobs': logprob(rows([0, .5], [1, 0])),
      'q_values': tuple(map(taken, q)),
      'q_logprobs': tuple(map(logprob, q)),
      'target_q_values': tuple(map(taken, targets)),
      'values': np.float32([[[np.nan, .4, .5, final_value]]]),
      'rewards': rewards, 'mask': mask}


def _inputs(seed=0, b=2, k=2, t=5):
  """Loss arguments, with two heads; the first response is empty."""
  rng = np.random.default_rng(seed)
  f = lambda: rng.normal(size=(b, k, t)).astype(np.float32)
  logprob = lambda: -rng.exponential(size=(b, k, t)).astype(np.float32)
  start = rng.integers(1, 3, size=(b, k, 1))
  length = rng.integers(1, 4, size=(b, k, 1))
  mask = (np.arange(t) >= start) & (np.arange(t) < start + length)
  mask[0, 0] = False
  return {
      'logprobs': logprob(), 'q_values': (f(), f()),
      'q_logprobs': (logprob(), logprob()), 'target_q_values': (f(), f()),
      'values': f(), 'rewards': f(), 'mask': mask}


def _pack(inputs):
  """f32[6, B, K, T], what is trained."""
  return np.stack([inputs['logprobs'], *inputs['q_values'],
                   *inputs['q_logprobs'], inputs['values']])


def _unpack(x):
  return {'logprobs': x[0], 'q_values': (x[1], x[2]),
          'q_logprobs': (x[3], x[4]), 'values': x[5]}


def _twin(x, at, inputs, discount=.99, expectile=.7, cql_coef=.1, awac_coef=1.,
          beta=0.):
  """Mean over tokens, one by one; targets and weights are made from `at`."""
  total, count = 0., 0
  for i in np.ndindex(inputs['mask'].shape[:2]):
    steps = np.flatnonzero(inputs['mask'][i])
    for place, t in enumerate(steps):
      here = (*i, t)
      later = (at[(5, *i, steps[place + 1])] if place + 1 < len(steps) else 0.)
      target = inputs['rewards'][here] + discount * later
      smallest = min(float(q[here]) for q in inputs['target_q_values'])
      u = smallest - x[(5, *here)]
      weight = np.exp(beta * (smallest - at[(5, *here)]))
      total += sum((x[(h, *here)] - target)**2 for h in (1, 2))
      total += (expectile if u >= 0 else 1 - expectile) * u**2
      total += cql_coef * -sum(x[(h, *here)] for h in (3, 4))
      total += awac_coef * weight * -x[(0, *here)]
      count += 1
  return total / count


def _jit(kwargs):
  return jax.jit(lambda x, fixed: twin.mean(
      ilql.ilql_loss(**{**fixed, **_unpack(x)}, **kwargs)))


_JITTED = [_jit(kwargs) for kwargs in SETTING_CASES]


class IlqlLossTest(parameterized.TestCase):

  @chex.variants(with_jit=True, without_jit=True)
  @parameterized.named_parameters(
      # [Ex 8.5] y = 0 + .99 * .5, 1; Q = (.4, .7), (.3, .9):
      # q: (.095^2 + .3^2 + .195^2 + .1^2) / 2;
      # u = .25 - .4, .6 - .5: value (.3 * .0225 + .7 * .01) / 2;
      # cql: cross-entropies .554355 + .474077 + .644397 + .341154, over 2;
      # awac: .974077 + 1.313262, over 2.
      ('plain', {}, 1.143669, 1.324768),
      # .974077 * e^-.6 + 1.313262 * e^.4.
      ('beta', {'beta': 4.}, 1.246871, 1.427970))
  def test_by_hand(self, kwargs, awac, total):
    out = self.variant(
        lambda x: ilql.ilql_loss(**x, **kwargs))(_example())
    mean = lambda x: float((x * out.weight).sum() / out.weight.sum())
    for name, expected in (('q', .073525), ('value', .006875),
                           ('cql', 1.006991), ('awac', awac)):
      self.assertAlmostEqual(mean(out.metrics[f'ilql/{name}']), expected, 6)
    self.assertAlmostEqual(mean(out.loss), total, 6)

  def test_value_after_the_end_is_not_read(self):
    """The last of the example's states is terminal (trap 21)."""
    step = lambda x: jax.value_and_grad(
        lambda values: twin.mean(ilql.ilql_loss(**{**x, 'values': values})))(
            x['values'])
    chex.assert_trees_all_equal(*(
        step(_example(value)) for value in (.3, 7., np.nan)))
    # Nor is there one at the end of the array, even one without a prompt.
    for start in (0, 1):
      cut = lambda x, start=start: x[..., start:3]
      chex.assert_trees_all_equal(
          ilql.ilql_loss(**jax.tree.map(cut, _example())),
          jax.tree.map(cut, ilql.ilql_loss(**_example())))

  @parameterized.parameters(*range(len(SETTING_CASES)))
  @twin.few
  @twin.randomised
  def test_twin(self, index, seed):
    inputs = _inputs(seed)
    at = _pack(inputs)
    twin.assert_equal(
        lambda x: _JITTED[index](x, inputs),
        lambda x: _twin(x, at.astype(float), inputs, **SETTING_CASES[index]),
        at)

  def test_terms_train_their_own_part(self):
    """Which of the trained outputs each term has a gradient for (trap 21)."""
    inputs = _inputs()
    readers = {'q': (1, 2), 'value': (5,), 'cql': (3, 4), 'awac': (0,)}
    for name, read in readers.items():
      term = lambda x, name=name: ilql.ilql_loss(
          **{**inputs, **_unpack(x)}, beta=.5).metrics[f'ilql/{name}'].sum()
      grad = jax.grad(term)(_pack(inputs))
      for i in range(6):
        self.assertEqual(np.any(grad[i] != 0), i in read, (name, i))

  def test_targets_and_rewards_have_no_gradient(self):
    inputs = _inputs()
    fn = lambda fixed: twin.mean(
        ilql.ilql_loss(**{**inputs, **fixed}, beta=.5))
    fixed = {k: inputs[k] for k in ('target_q_values', 'rewards')}
    for grad in jax.tree.leaves(jax.grad(fn)(fixed)):
      np.testing.assert_array_equal(grad, 0)

  def test_even_expectile_is_half_the_squared_error(self):
    inputs = _inputs()
    out = ilql.ilql_loss(**inputs, expectile=.5)
    gap = np.minimum(*inputs['target_q_values']) - inputs['values']
    np.testing.assert_allclose(
        out.metrics['ilql/value'], np.where(inputs['mask'], gap**2 / 2, 0),
        rtol=1e-5)

  def test_expectile_leans_to_the_high_side(self):
    """u = 1 weighs tau, u = -1 weighs 1 - tau, as does its gradient."""
    inputs = jax.tree.map(lambda x: x[:1, :1, :2], _inputs())
    inputs['mask'] = np.ones((1, 1, 2), bool)
    inputs['target_q_values'] = (np.zeros((1, 1, 2), np.float32),) * 2
    fn = lambda values: ilql.ilql_loss(
        **{**inputs, 'values': values}, expectile=.9).metrics['ilql/value']
    values = np.float32([[[-1, 1]]])
    np.testing.assert_allclose(fn(values), [[[.9, .1]]], rtol=1e-5)
    np.testing.assert_allclose(
        jax.grad(lambda x: fn(x).sum())(values), [[[-1.8, .2]]], rtol=1e-5)

  def test_heads_are_summed(self):
    """A second, equal head doubles q and cql and changes nothing else."""
    inputs = _inputs()
    names = ('q_values', 'q_logprobs', 'target_q_values')
    run = lambda heads: ilql.ilql_loss(
        **{**inputs, **{k: inputs[k][:1] * heads for k in names}}).metrics
    one, two = run(1), run(2)
    for name, factor in (('q', 2), ('cql', 2), ('value', 1), ('awac', 1)):
      np.testing.assert_allclose(
          two[f'ilql/{name}'], factor * one[f'ilql/{name}'], rtol=1e-6)

  def test_without_beta_it_imitates(self):
    inputs = _inputs()
    out = ilql.ilql_loss(**inputs)
    np.testing.assert_allclose(
        out.metrics['ilql/awac'],
        np.where(inputs['mask'], -inputs['logprobs'], 0), rtol=1e-6)

  def test_one_response_is_enough(self):
    inputs = _inputs()
    whole = ilql.ilql_loss(**inputs)
    for i in np.ndindex(2, 2):
      row = lambda x, i=i: x[i][None, None]
      chex.assert_trees_all_close(
          ilql.ilql_loss(**jax.tree.map(row, inputs)),
          jax.tree.map(row, whole), rtol=1e-6)

  def test_padding_is_zero(self):
    inputs = _inputs()
    out = ilql.ilql_loss(**inputs)
    for leaf in jax.tree.leaves(out):
      np.testing.assert_array_equal(leaf[~inputs['mask']], 0)

  def test_survives_a_huge_gap(self):
    inputs = _inputs()
    inputs['values'] = inputs['values'] - 1e4
    out = ilql.ilql_loss(**inputs, beta=4.)
    np.testing.assert_allclose(
        out.metrics['ilql/awac'],
        np.where(inputs['mask'], -inputs['logprobs'] * np.exp(20), 0),
        rtol=1e-5)


class ArgumentTest(parameterized.TestCase):

  @parameterized.parameters(
      ('discount', -.1), ('discount', 1.1), ('expectile', 0.),
      ('expectile', 1.), ('cql_coef', -1.), ('awac_coef', -1.), ('beta', -1.))
  def test_rejects(self, name, value):
    with self.assertRaisesRegex(ValueError, f'{name}.*{value}'):
      ilql.ilql_loss(**_inputs(), **{name: value})

  def test_rejects_heads(self):
    inputs = _inputs()
    with self.assertRaisesRegex(ValueError, 'q_values'):
      ilql.ilql_loss(**{**inputs, 'q_values': ()})
    for name in ('q_values', 'q_logprobs', 'target_q_values'):
      with self.assertRaises(AssertionError):
        ilql.ilql_loss(**{**inputs, name: inputs[name][:1]})

  def test_rejects_shapes(self):
    inputs = _inputs()
    for name in inputs:
      for change in (lambda x: x[..., 1:], lambda x: x.astype(int)):
        with self.assertRaises(AssertionError, msg=name):
          ilql.ilql_loss(**{**inputs, name: jax.tree.map(change, inputs[name])})
    with self.assertRaises(AssertionError):
      ilql.ilql_loss(**jax.tree.map(lambda x: x[0], inputs))

  def test_objective_binds(self):
    inputs = _inputs()
    rewards, mask = inputs['rewards'], inputs['mask']
    trained = {k: v for k, v in inputs.items() if k not in ('rewards', 'mask')}
    out = types.PolicyOutput(**jax.tree.map(jnp.asarray, trained))
    batch = types.Batch(
        tokens=np.zeros(mask.shape, int), mask=mask, rewards=rewards)
    chex.assert_trees_all_equal(
        ilql.objective(out, batch, beta=2.),
        ilql.ilql_loss(**inputs, beta=2.))
    with self.assertRaisesRegex(ValueError, 'rewards is None'):
      ilql.objective(out, batch.replace(rewards=None))
    for name in ('q_values', 'q_logprobs', 'target_q_values', 'values'):
      with self.assertRaisesRegex(ValueError, f'^{name} is None'):
        ilql.objective(out.replace(**{name: None}), batch)


if __name__ == '__main__':
  absltest.main()
