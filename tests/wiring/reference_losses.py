"""Every loss that trains a policy or a reward model, in float64.

objectives.md, sections 1, 2.1, 6 to 9. Nothing of the package is imported.
Each is (out, batch, **arguments) -> (loss, weight): `out` of
`reference_models`, `batch` a dict of arrays, loss and weight of one unit. What
is minimised is `mean` of them. Whatever is said to be detached is so here by
`fixed`; the gradient is automatic.

Axes: B prompts, K responses, T tokens.
"""

import jax
import jax.numpy as jnp

fixed = jax.lax.stop_gradient


def mean(loss, weight):
  """sum(loss * weight) / sum(weight), over all units of a batch at once."""
  return jnp.where(weight > 0, loss * weight, 0).sum() / weight.sum()


def _masked(x, mask):
  return jnp.where(mask, x, 0)


def _sequences(batch):
  """The weight of a response, and a sum over its tokens."""
  mask = batch['mask']
  return (mask.any(axis=-1).astype(float),
          lambda x: _masked(x, mask).sum(axis=-1))


def _surrogate(log_ratio, advantage, clip):
  """min(r A, clip(r) A), to maximise; clip None, a half-width or a pair."""
  ratio = jnp.exp(log_ratio)
  if clip is None:
    return ratio * advantage
  low, high = clip if isinstance(clip, tuple) else (clip, clip)
  return jnp.minimum(
      ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)


def _k3(d):
  return jnp.exp(-d) - 1 + d


def value(out, batch, clip=None):
  """objectives.md 6.4, of each token; without a clip 8.3."""
  error = (out['values'] - fixed(batch['returns']))**2
  if clip is not None:
    old = fixed(batch['old_values'])
    limited = jnp.clip(out['values'], old - clip, old + clip)
    error = jnp.maximum(error, (limited - fixed(batch['returns']))**2)
  return .5 * error


def ppo(out, batch, clip_ratio=.2, ratio='token', value_coef=1., value_clip=.2,
        kl_penalty_coef=0., kl_coef=0., entropy_coef=0.):
  """6.3 to 6.6: clipped, unclipped, without a ratio, KL penalties."""
  advantage = fixed(batch['advantages'])
  log_ratio = out['logprobs'] - fixed(batch['old_logprobs'])
  loss = -(advantage * out['logprobs'] if ratio == 'none'
           else _surrogate(log_ratio, advantage, clip_ratio))
  loss += kl_penalty_coef * (jnp.exp(log_ratio) - 1 - log_ratio)
  if kl_coef:
    loss += kl_coef * _k3(out['logprobs'] - fixed(batch['ref_logprobs']))
  loss += value_coef * value(out, batch, value_clip)
  if entropy_coef:
    loss -= entropy_coef * out['entropy']
  return loss, batch['mask'].astype(float)


def reinforce(out, batch, ratio='none', clip_ratio=None, aggregate='sequence',
              kl_coef=0., constant_length=None):
  """7.1, 7.2 and the GRPO family: one advantage for each response."""
  mask, (present, total) = batch['mask'], _sequences(batch)
  advantage = fixed(batch['advantages'])
  lengths = jnp.maximum(mask.sum(axis=-1), 1)
  if ratio != 'none':
    log_ratio = out['logprobs'] - fixed(batch['old_logprobs'])
  if ratio in ('sequence', 'sequence_mean'):
    whole = total(log_ratio) / (lengths if ratio == 'sequence_mean' else 1)
    return -_surrogate(whole, advantage, clip_ratio), present
  terms = advantage[..., None] * out['logprobs'] if ratio == 'none' else (
      _surrogate(log_ratio, advantage[..., None] + 0 * log_ratio, clip_ratio))
  loss = -terms
  if kl_coef:
    loss += kl_coef * _k3(out['logprobs'] - fixed(batch['ref_logprobs']))
  if aggregate == 'token':
    return loss, mask.astype(float)
  divisor = {'sequence': 1, 'sequence_mean': lengths,
             'constant': constant_length}[aggregate]
  return total(loss) / divisor, present


def apa(out, batch, beta, value_coef=1.):
  """8.1 and 8.3."""
  residual = (out['logprobs'] - fixed(batch['ref_logprobs'])
              - fixed(batch['advantages']) / beta)
  return (residual**2 + value_coef * value(out, batch),
          batch['mask'].astype(float))


def awr(out, batch, beta, value_coef=1.):
  """8.2 and 8.3."""
  weight = jnp.exp(fixed(batch['advantages']) / beta)
  return (-weight * out['logprobs'] + value_coef * value(out, batch),
          batch['mask'].astype(float))


def sft(out, batch, aggregate='token'):
  """1.1: L_tok, L_sum and L_seq."""
  present, total = _sequences(batch)
  if aggregate == 'token':
    return -out['logprobs'], batch['mask'].astype(float)
  divisor = 1 if aggregate == 'sequence' else jnp.maximum(
      batch['mask'].sum(axis=-1), 1)
  return -total(out['logprobs']) / divisor, present


def dpo(out, batch, kind='dpo', beta=None, tau=None, reference_free=False,
        label_smoothing=0., robust=False):
  """7.4 to 7.6; robust: Chowdhury, Kini and Natarajan 2024."""
  present, total = _sequences(batch)
  ratio = total(out['logprobs'])
  if not reference_free:
    ratio -= total(fixed(batch['ref_logprobs']))
  gap = ratio[:, 0] - ratio[:, 1]
  weight = present.min(axis=1)
  if kind == 'ipo':
    return (gap - 1 / (2 * tau))**2, weight
  right, wrong = (jnp.logaddexp(0, sign * beta * gap) for sign in (-1, 1))
  if robust:
    return ((1 - label_smoothing) * right - label_smoothing * wrong
            ) / (1 - 2 * label_smoothing), weight
  return (1 - label_smoothing) * right + label_smoothing * wrong, weight


def simpo(out, batch, beta, margin):
  """Meng, Xia and Chen 2024, eq. 6: means over tokens, no reference."""
  present, total = _sequences(batch)
  reward = beta * total(out['logprobs']) / batch['mask'].sum(axis=-1)
  gap = reward[:, 0] - reward[:, 1] - margin
  return jnp.logaddexp(0, -gap), present.min(axis=1)


def orpo(out, batch, odds_coef):
  """Hong, Lee and Thorne 2024, eq. 3 to 7: P is a mean over tokens."""
  present, total = _sequences(batch)
  p = jnp.exp(total(out['logprobs']) / batch['mask'].sum(axis=-1))
  odds = p / (1 - p)
  loss = -jnp.log(p[:, 0]) + odds_coef * jnp.log1p(odds[:, 1] / odds[:, 0])
  return loss, present.min(axis=1)


def kto(out, batch, beta, desirable_weight=1., undesirable_weight=1.):
  """Ethayarajh et al. 2024, eq. 8: what is left of the largest value."""
  present, total = _sequences(batch)
  ratio = total(out['logprobs'] - fixed(batch['ref_logprobs']))
  gap = beta * (ratio - fixed(batch['reference_points']))
  value = jnp.where(
      batch['targets'] == 1, desirable_weight / (1 + jnp.exp(-gap)),
      undesirable_weight / (1 + jnp.exp(gap)))
  largest = jnp.where(
      batch['targets'] == 1, desirable_weight, undesirable_weight)
  return largest - value, present


def reference_point(logprobs, ref_logprobs, mask):
  """The same, section 4: of responses to other prompts, f64[]."""
  ratio = _masked(logprobs - ref_logprobs, mask).sum(axis=-1)
  present = mask.any(axis=-1)
  return jnp.maximum(ratio.sum() / present.sum(), 0)


def pro(out, batch, sft_coef=.05):
  """9.8, of responses in order, all of them there; raw scores."""
  present, total = _sequences(batch)
  s = total(out['logprobs']) / batch['mask'].sum(axis=-1)
  r, n = fixed(batch['scores']), s.shape[1]
  loss = -sft_coef * (n - 1)**2 * total(out['logprobs'])[:, 0]
  for k in range(n - 1):
    gaps = r[:, k:k + 1] - r[:, k + 1:]
    largest = gaps.max(axis=1)
    own = s[:, k] * largest
    loss += jnp.log(jnp.exp(own) + jnp.exp(s[:, k + 1:] * gaps).sum(axis=1)
                    ) - own
  return loss, present[:, 0]


def ilql(out, batch, discount=.99, expectile=.7, cql_coef=.1, awac_coef=1.,
         beta=0.):
  """8.6: two Q heads, an expectile value, CQL and AWAC."""
  mask, values = batch['mask'], _masked(out['values'], batch['mask'])
  later = jnp.concatenate(
      [values[..., 1:], jnp.zeros_like(values[..., :1])], axis=-1)
  target = fixed(batch['rewards'] + discount * later)
  gap = fixed(jnp.minimum(*out['target_q_values'])) - out['values']
  loss = sum((q - target)**2 for q in out['q_values'])
  loss += jnp.where(gap >= 0, expectile, 1 - expectile) * gap**2
  loss -= cql_coef * sum(out['q_logprobs'])
  loss -= awac_coef * fixed(jnp.exp(beta * gap)) * out['logprobs']
  return loss, mask.astype(float)


def alol(out, batch, variant='a_lol', clip_ratio=.9, kl_coef=0., floor=.1):
  """9.1 to 9.7: A-LOL, its variants, R-LOL, R-GOLD and wBC."""
  mask, (present, total) = batch['mask'], _sequences(batch)
  lp, lp_sum = out['logprobs'], total(out['logprobs'])
  clip = lambda ratio: fixed(jnp.clip(ratio, 1 - clip_ratio, 1 + clip_ratio))
  if variant in ('r_lol', 'gold', 'wbc'):
    amount = fixed(batch['scores'])
  else:
    amount = fixed(jnp.maximum(batch['advantages'], 0))
  if variant in ('ref_free', 'wbc'):
    return -amount * lp_sum, present
  if variant == 'gold':
    return -amount * total(fixed(jnp.maximum(jnp.exp(lp), floor)) * lp), present
  log_ratio = _masked(lp - fixed(batch['ref_logprobs']), mask)
  if variant == 'kl':
    return -amount * lp_sum + kl_coef * total(log_ratio), present
  if variant == 'sequence':
    return -amount * total(clip(jnp.exp(log_ratio)) * lp), present
  return -amount * clip(jnp.exp(total(log_ratio))) * lp_sum, present


def bradley_terry(scores):
  """2.1, of scores f64[B, 2], the chosen response first."""
  loss = jnp.logaddexp(0, scores[:, 1] - scores[:, 0])
  return loss, jnp.ones_like(loss)


# By the names that rows and configs use.
POLICY = {f.__name__: f for f in (
    ppo, reinforce, apa, awr, sft, dpo, simpo, orpo, kto, pro, ilql, alol)}
