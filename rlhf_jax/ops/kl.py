"""Estimators of KL(pi || pi_ref) from samples of pi, and its controllers.

Schulman 2020, http://joschu.net/blog/kl-approx.html, with
d = log pi - log pi_ref:

  k1 = d    k2 = d^2 / 2    k3 = exp(-d) - 1 + d

k1 and k3 are unbiased; k2 and k3 are never negative. trlX computes
exp(d) - 1 - d on the same samples, which estimates chi2 - KL instead.
"""

import numbers

import chex
import jax
import jax.numpy as jnp

from rlhf_jax.ops import masked

KINDS = ('k1', 'k2', 'k3')
LARGEST = 20.0  # nats; exp of more overflows sums long before float32 does


def estimate(logprobs: jax.Array, ref_logprobs: jax.Array, *,
             kind: str = 'k1') -> jax.Array:
  """Per-token estimate; sum it over the response for the sequence KL.

  Args:
    logprobs: float[...], log-probability of each sampled token under the
      policy that sampled it, in nats.
    ref_logprobs: float[...], the same under the reference.
    kind: 'k1', 'k2' or 'k3'. k3 is constant, without gradient, below d = -20.

  Returns:
    f32[...], the shape of `logprobs`, in nats. Padding is not masked here.

  Raises:
    ValueError: if `kind` is unknown.
    AssertionError: if shapes or dtypes disagree.
  """
  if kind not in KINDS:
    raise ValueError(f'kind must be one of {KINDS}, got {kind!r}.')
  chex.assert_equal_shape([logprobs, ref_logprobs])
  chex.assert_type([logprobs, ref_logprobs], float)
  d = logprobs.astype(jnp.float32) - ref_logprobs.astype(jnp.float32)
  if kind == 'k1':
    return d
  if kind == 'k2':
    return 0.5 * d**2
  # Limited on the side that overflows, in both terms: in the exponential alone
  # the gradient there would have the wrong sign.
  d = jnp.maximum(d, -LARGEST)
  return jnp.expm1(-d) + d


def reference_point(logprobs: jax.Array, ref_logprobs: jax.Array,
                    mask: jax.Array) -> jax.Array:
  """How far the policy is from its reference on responses to other prompts.

  Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, section 4: the mean
  over responses of log pi(y' | x) - log pi_ref(y' | x), y' being the response
  to another prompt than x, and 0 where that is negative. It is a statistic
  over the batch, so it belongs in an annotator, never in a loss.

  Args:
    logprobs: float[..., T], policy log-probability of each token of y', in
      nats.
    ref_logprobs: float[..., T], the same under the reference.
    mask: bool[..., T], true on tokens of y'; rows without any do not count.

  Returns:
    f32[], in nats, >= 0, without gradient.

  Raises:
    AssertionError: if shapes or dtypes disagree.
  """
  logprobs, ref_logprobs = masked.clean(
      mask, logprobs=logprobs, ref_logprobs=ref_logprobs)
  ratios = jnp.sum(logprobs - ref_logprobs, axis=-1)
  mean = masked.masked_mean(ratios, mask.any(axis=-1))
  return jax.lax.stop_gradient(jnp.maximum(mean, 0))


def ref_penalty(
    logprobs: jax.Array, ref_logprobs: jax.Array | None, mask: jax.Array, *,
    kl_coef: float | jax.Array, kind: str = 'k3',
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """A KL penalty towards the reference in the loss, token by token.

  On the policy's own samples k3 has, on average, the gradient of
  KL(ref || pi), k2 that of KL(pi || ref), k1 none.

  Args:
    logprobs: float[..., T], current policy, in nats; it carries the gradient.
    ref_logprobs: float[..., T], frozen reference; not read, and may be None,
      with kl_coef=0.
    mask: bool[..., T], true on response tokens.
    kl_coef: loss units per nat, >= 0; f32[] when a controller adapts it.
    kind: of `estimate`.

  Returns:
    f32[..., T], 0 in padding, and the metric 'policy/ref_kl' of that shape,
    in nats; no metric with kl_coef=0.

  Raises:
    ValueError: if `kl_coef` is negative or `kind` unknown.
  """
  if isinstance(kl_coef, numbers.Real):
    if not kl_coef >= 0:
      raise ValueError(f'kl_coef must be >= 0, got {kl_coef}.')
    if kl_coef == 0:
      return jnp.zeros_like(logprobs), {}
  ref, = masked.clean(mask, ref_logprobs=ref_logprobs)
  gap = estimate(logprobs, jax.lax.stop_gradient(ref), kind=kind)
  return jax.lax.stop_gradient(kl_coef) * gap, {'policy/ref_kl': gap}


def adaptive_coef(kl_coef: jax.Array, observed_kl: jax.Array, *,
                  target: float, horizon: float,
                  num_samples: int) -> jax.Array:
  """One step of the proportional controller of the KL coefficient.

  Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2:

    e = clip(KL / target - 1, -0.2, 0.2)
    kl_coef <- kl_coef * (1 + e * num_samples / horizon)

  Args:
    kl_coef: f32[], the coefficient so far.
    observed_kl: f32[], mean over sequences of the *sum* of per-token k1, in
      nats. (APA's code feeds the token mean, which only ever decays.)
    target: nats per sequence, > 0.
    horizon: sequences, > 0.
    num_samples: sequences since the last update, >= 0.

  Returns:
    f32[], the new coefficient.

  Raises:
    ValueError: if `target`, `horizon` or `num_samples` is out of range.
  """
  if not target > 0:
    raise ValueError(f'target must be > 0, got {target}.')
  if not horizon > 0:
    raise ValueError(f'horizon must be > 0, got {horizon}.')
  if not num_samples >= 0:
    raise ValueError(f'num_samples must be >= 0, got {num_samples}.')
  error = jnp.clip(jnp.float32(observed_kl) / target - 1, -0.2, 0.2)
  return jnp.float32(kl_coef) * (1 + error * (num_samples / horizon))


def doubling_coef(kl_coef: jax.Array, observed_kl: jax.Array, *,
                  target: float) -> jax.Array:
  """One step of PPO's own controller of the KL coefficient.

  Schulman et al. 2017, https://arxiv.org/abs/1707.06347, section 4: halved
  where KL < target / 1.5, doubled where KL > 1.5 * target, else kept.

  Args:
    kl_coef: f32[], the coefficient so far.
    observed_kl: f32[], KL(old || current) of the last update, in nats.
    target: in the unit of `observed_kl`, > 0.

  Returns:
    f32[], the new coefficient.

  Raises:
    ValueError: if `target` is not positive.
  """
  if not target > 0:
    raise ValueError(f'target must be > 0, got {target}.')
  observed_kl, kl_coef = jnp.float32(observed_kl), jnp.float32(kl_coef)
  return jnp.where(
      observed_kl < target / 1.5, kl_coef / 2,
      jnp.where(observed_kl > 1.5 * target, 2 * kl_coef, kl_coef))
