"""From scores to advantages in float64 NumPy, by the formulas.

objectives.md, sections 2.8, 3, 5 to 9. Nothing of the package is imported.
Axes: E members, B prompts, K responses, T tokens.
"""

import numpy as np


def standardize(members, mean, std):
  """Scores f64[E, B, K] in deviations of each member from its mean, f64[E]."""
  shape = (-1,) + (1,) * (np.ndim(members) - 1)
  return (_wide(members) - _wide(mean).reshape(shape)
          ) / _wide(std).reshape(shape)


def aggregate(members, kind='mean', uncertainty_coef=.5, member=0):
  """Coste et al. 2024, equations 3 to 5: f64[B, K] of f64[E, B, K]."""
  members = _wide(members)
  mean = members.sum(axis=0) / len(members)
  variance = ((members - mean)**2).sum(axis=0) / len(members)
  return {'mean': mean, 'worst_case': np.sort(members, axis=0)[0],
          'uncertainty_weighted': mean - uncertainty_coef * variance,
          'single': members[member]}[kind]


def squash(scores, kind='none', scale=1., limits=(0, 1)):
  """A component's score in its range."""
  x = _wide(scores) / scale
  return {'none': x, 'sigmoid': 1 / (1 + np.exp(-x)),
          'clip': np.clip(x, *limits)}[kind]


def deviation(scores):
  """Standard deviation, ddof 1, of all scores there are: several arrays."""
  flat = np.concatenate([_wide(x).ravel() for x in scores])
  return np.sqrt(((flat - flat.mean())**2).sum() / (len(flat) - 1))


def standardize_log(scores):
  """Zhu et al. 2023: logged scores, all together, to mean 0 and deviation 1."""
  return (_wide(scores) - np.mean(scores, dtype=np.float64)
          ) / deviation([scores])


def missing_eos(scores, tokens, mask, eos_id, penalty=None, value=None):
  """Another score for a response that its budget has cut off."""
  last = mask & (np.cumsum(mask, axis=-1) == mask.sum(-1, keepdims=True))
  ends = np.where(last, tokens, -1).max(axis=-1) == eos_id
  other = _wide(scores) - penalty if value is None else value
  return np.where(ends, scores, other)


def sequence_kl(old, reference, mask):
  """f64[B, K]: k1 of each response, in nats."""
  return np.where(mask, _wide(old) - _wide(reference), 0).sum(axis=-1)


def kl_scores(scores, old, reference, mask, coef):
  """Ahmadian et al. 2024: R = score - coef * log(pi / pi_ref), f64[B, K]."""
  return _wide(scores) - coef * sequence_kl(old, reference, mask)


def kl_rewards(scores, old, reference, mask, coef):
  """Ziegler et al. 2019: a penalty on each token, the score on the last."""
  rewards = np.zeros(mask.shape)
  if coef:
    rewards = np.where(mask, -coef * (_wide(old) - _wide(reference)), 0)
  for row in np.ndindex(mask.shape[:-1]):
    at = np.flatnonzero(mask[row])
    if at.size:
      rewards[row][at[-1]] += scores[row]
  return rewards


def adapted_coef(coef, old, reference, mask, target, horizon):
  """The coefficient of the next rollout (Ziegler et al. 2019, 2.2)."""
  sums = sequence_kl(old, reference, mask)
  error = np.clip(sums.mean() / target - 1, -.2, .2)
  return coef * (1 + error * sums.size / horizon)


def doubled_coef(coef, observed, target):
  """Schulman et al. 2017, section 4: a factor 2 outside target * 1.5^+-1."""
  if observed < target / 1.5:
    return coef / 2
  return coef * 2 if observed > 1.5 * target else coef


def moving_average(scores, earlier):
  """Scores less the mean of all of *earlier* rollouts, 0 at the first."""
  flat = [_wide(x).ravel() for x in earlier]
  return _wide(scores) - (np.concatenate(flat).mean() if flat else 0)


def leave_one_out(scores):
  """Each score less the mean of the others of its prompt, f64[B, K]."""
  scores = _wide(scores)
  return np.stack([
      scores[:, k] - np.delete(scores, k, axis=1).mean(axis=1)
      for k in range(scores.shape[1])], axis=1)


def group_normalize(scores, scale=True, epsilon=1e-4):
  """GRPO: less the prompt's mean, over its deviation (ddof 1) + epsilon."""
  centered = _wide(scores) - np.mean(
      scores, axis=1, keepdims=True, dtype=np.float64)
  if not scale:
    return centered
  variance = (centered**2).sum(axis=1, keepdims=True) / (
      scores.shape[1] - 1)
  return centered / (np.sqrt(variance) + epsilon)


def keep_best(scores, mask):
  """RAFT: the mask of the best response of each prompt alone."""
  kept = np.zeros_like(mask)
  for row, best in enumerate(np.argmax(scores, axis=1)):
    kept[row, best] = mask[row, best]
  return kept


def best_first(scores):
  """Online DPO: places of the responses, i[B, K], by falling score."""
  return np.array([sorted(range(len(row)), key=lambda k, row=row: -row[k])
                   for row in _wide(scores)])


def gae(rewards, values, mask, discount=1., gae_lambda=.95):
  """Advantages and returns f64[B, K, T]; values are 0 after the last token.

  A_t = sum_{s >= t} (discount * lambda)^(s - t) * delta_s.
  """
  advantages = np.zeros(mask.shape)
  for row in np.ndindex(mask.shape[:-1]):
    at = np.flatnonzero(mask[row])
    v = np.append(_wide(values)[row][at], 0.)
    delta = _wide(rewards)[row][at] + discount * v[1:] - v[:-1]
    powers = (discount * gae_lambda) ** np.arange(len(at))
    advantages[row][at] = [
        (powers[:len(at) - t] * delta[t:]).sum() for t in range(len(at))]
  return advantages, np.where(mask, advantages + values, 0)


def whiten(advantages, mask):
  """Tokens of the whole rollout to mean 0, variance 1 (population, 1e-8)."""
  x = _wide(advantages)[mask]
  scaled = (x - x.mean()) / np.sqrt(((x - x.mean())**2).mean() + 1e-8)
  whitened = np.zeros(mask.shape)
  whitened[mask] = scaled
  return whitened


def _wide(x):
  return np.asarray(x, np.float64)
