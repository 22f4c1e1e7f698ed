"""Implicit language Q-learning (ILQL) on logged responses.

Snell et al. 2023, https://arxiv.org/abs/2206.11871, as trlX computes it, with
Q heads i, values V of the state before a token and slowly moving targets Q';
objectives.md 8.6. Per token, sg() detached:

  u = sg(min_i Q'_i) - V,  y = sg(r + discount * V_next)
  q      sum_i (Q_i - y)^2
  value  |expectile - 1[u < 0]| * u^2
  cql    sum_i -log softmax(Q_i over the vocabulary)
  awac   sg(exp(beta * u)) * -log pi
  loss = q + value + cql_coef * cql + awac_coef * awac

Sums over the heads, not means, and no 1/2 on `q`. V_next is 0 after the last
token. Only the language model has the gradient of `awac`. The targets move in
`ops.q_learning.polyak_every`, which shifts the sampler's logits too.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.ops import ratios


def _check(discount, expectile, **coefficients):
  if not 0 <= discount <= 1:
    raise ValueError(f'discount must be in [0, 1], got {discount}.')
  if not 0 < expectile < 1:
    raise ValueError(f'expectile must be in (0, 1), got {expectile}.')
  for name, value in coefficients.items():
    if not value >= 0:
      raise ValueError(f'{name} must be >= 0, got {value}.')


def ilql_loss(
    logprobs: jax.Array,
    q_values: tuple[jax.Array, ...],
    q_logprobs: tuple[jax.Array, ...],
    target_q_values: tuple[jax.Array, ...],
    values: jax.Array,
    rewards: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 0.99,
    expectile: float = 0.7,
    cql_coef: float = 0.1,
    awac_coef: float = 1.0,
    beta: float = 0.0,
) -> types.LossOutput:
  """Temporal difference, expectile value, CQL and AWAC losses of each token.

  Args:
    logprobs: float[B, K, T], policy log-probability of each token, in nats.
    q_values: one float[B, K, T] per Q head, its value of each token.
    q_logprobs: the same, log-softmax of the head over the vocabulary.
    target_q_values: the same, value under the head's target; detached.
    values: float[B, K, T], of the state before each token.
    rewards: float[B, K, T], in units of the values: the score on the last
      token, standardised over the data set (`ops.advantages.shape_rewards`
      with kl_coef=0).
    mask: bool[B, K, T], true on response tokens, which are contiguous.
    discount: of the next value, in [0, 1].
    expectile: tau, in (0, 1); 0.5 is half the squared error.
    cql_coef: >= 0.
    awac_coef: >= 0.
    beta: sharpness of the AWAC weight, per unit of value, >= 0; 0 imitates.

  Returns:
    LossOutput with unit = token: every array is f32[B, K, T]. Metrics are the
    four terms before their coefficients.

  Raises:
    ValueError: if an argument is out of range, or there is no Q head.
    AssertionError: if shapes, dtypes or numbers of heads disagree.
  """
  _check(discount, expectile, cql_coef=cql_coef, awac_coef=awac_coef, beta=beta)
  heads = (q_values, q_logprobs, target_q_values)
  if not len(q_values):
    raise ValueError('q_values must hold at least one head, got none.')
  chex.assert_equal(len(q_values), len(q_logprobs))
  chex.assert_equal(len(q_values), len(target_q_values))
  inputs = (logprobs, *heads, values, rewards)
  leaves = jax.tree.leaves(inputs)
  chex.assert_rank(logprobs, 3)
  chex.assert_equal_shape([*leaves, mask])
  chex.assert_type([*leaves, mask], [float] * len(leaves) + [bool])

  logprobs, q_values, q_logprobs, target_q_values, values, rewards = (
      jax.tree.map(lambda x: jnp.where(mask, x, 0).astype(jnp.float32), inputs))
  # Values of padding are 0 by now, and so is the one after the last token.
  later = jnp.pad(values[..., 1:], [(0, 0), (0, 0), (0, 1)])
  target = jax.lax.stop_gradient(rewards + discount * later)  # y
  smallest = jnp.min(jnp.stack(target_q_values), axis=0)
  gap = jax.lax.stop_gradient(smallest) - values  # u
  slope = jnp.where(gap < 0, 1 - expectile, expectile)
  weight = jax.lax.stop_gradient(ratios.ratio(beta * gap))
  terms: dict[str, Any] = {
      'ilql/q': sum((q - target)**2 for q in q_values),
      'ilql/value': slope * gap**2,
      'ilql/cql': -sum(q_logprobs),
      'ilql/awac': -weight * logprobs,
  }
  terms = {name: jnp.where(mask, x, 0) for name, x in terms.items()}
  loss = (terms['ilql/q'] + terms['ilql/value']
          + cql_coef * terms['ilql/cql'] + awac_coef * terms['ilql/awac'])
  return types.LossOutput(loss, mask.astype(jnp.float32), terms)


def objective(out, batch, **kwargs) -> types.LossOutput:
  """Binds `ilql_loss` to a batch with rewards [B, K, T]."""
  names = ('logprobs', 'q_values', 'q_logprobs', 'target_q_values', 'values')
  fields = {name: getattr(out, name) for name in names}
  fields['rewards'] = batch.rewards
  for name, value in fields.items():
    if value is None:
      raise ValueError(f'{name} is None: no model or annotator filled it.')
  return ilql_loss(**fields, mask=batch.mask, **kwargs)
