"""How far a reward model, or an ensemble of them, can be trusted.

A reward model orders the responses of a prompt; an ensemble of them gives a
probability for a pair, and its disagreement should show where it is wrong
(Coste et al. 2024, https://arxiv.org/abs/2310.02743). Bins and expected
calibration error are those of Guo et al. 2017,
https://arxiv.org/abs/1706.04599.
"""

import numpy as np
from scipy import special
from scipy import stats

from rlhf_jax.evaluation import statistics
from rlhf_jax.ops import ensembles


def kendall_tau(scores: np.ndarray, gold: np.ndarray) -> dict[str, float]:
  """Kendall's tau-b between two orders of each prompt's responses, averaged.

  For reward models on more than two responses, as `statistics.pair_accuracy` is
  for two; objectives.md 2.1.

  Args:
    scores: float[N, K], of the judged reward model, K >= 2, higher is better.
    gold: float[N, K], gold scores; for ranks, best first, their negatives.

  Returns:
    tau, in [-1, 1], the mean over the prompts on which it is defined; NaN if
    there is none. left_out, the number of the others: those whose scores, or
    gold scores, are all tied.

  Raises:
    ValueError: if shapes disagree, have other axes, are empty or hold NaN.
  """
  scores = statistics.as_floats('scores', scores, 2)
  gold = statistics.as_floats('gold', gold, 2)
  statistics.same_shape(scores=scores, gold=gold)
  if scores.shape[1] < 2:
    raise ValueError(f'scores must have K >= 2, got shape {scores.shape}.')
  has_order = ((scores != scores[:, :1]).any(axis=1)
               & (gold != gold[:, :1]).any(axis=1))
  taus = [stats.kendalltau(x, y).statistic
          for x, y in zip(scores[has_order], gold[has_order])]
  return {'tau': float(np.mean(taus)) if taus else np.nan,
          'left_out': int((~has_order).sum())}


def intra_ensemble_variance(member_scores: np.ndarray) -> dict[str, float]:
  """How far members disagree, averaged over responses.

  Coste et al. 2024, Fig. 10. The paper's equation 5 is the population's
  variance; its code logs ddof 1.

  Args:
    member_scores: float[E, N].

  Returns:
    ddof_0 and ddof_1, in score units squared; 0 for a single member.

  Raises:
    ValueError: if `member_scores` has other axes, is empty or holds NaN.
  """
  scores = statistics.as_floats('member_scores', member_scores, 2)
  variances = {f'ddof_{ddof}': np.asarray(
      ensembles.variance(scores, ddof=ddof)) for ddof in (0, 1)}
  return {k: float(v.mean(dtype=np.float64)) for k, v in variances.items()}


def _signed_gaps(member_scores: np.ndarray, preferred: np.ndarray):
  """Gap f64[E, N] of preferred to other score, and f64[N], 1 or -1 where that
  is score 0 - score 1 or its opposite."""
  scores = statistics.as_floats('member_scores', member_scores, 3)
  preferred = statistics.as_floats('preferred', preferred, 1)
  if scores.shape[1:] != (*preferred.shape, 2):
    raise ValueError(
        'member_scores must be [E, N, 2] and preferred [N], got shapes '
        f'{scores.shape} and {preferred.shape}.')
  for i, index in enumerate(preferred):
    if index not in (0, 1):
      raise ValueError(f'preferred[{i}] must be 0 or 1, got {index:g}.')
  sign = 1 - 2 * preferred
  return sign * (scores[..., 0] - scores[..., 1]), sign


def _reliability(confidence: np.ndarray, correct: np.ndarray, num_bins: int):
  """Bins of equal width over [.5, 1], low edge included, as dictionaries."""
  edges = np.linspace(0.5, 1, num_bins + 1)[1:-1]
  at = np.searchsorted(edges, confidence, side='right')
  mean = lambda x: float(x.mean()) if x.size else np.nan
  return [{'count': int((at == i).sum()),
           'confidence': mean(confidence[at == i]),
           'accuracy': mean(correct[at == i])} for i in range(num_bins)]


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
  """Rank correlation; NaN if one of the two does not vary."""
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    return np.nan
  return float(stats.spearmanr(x, y).statistic)


def _deviation(gaps: np.ndarray) -> np.ndarray:
  """S.d. over members f64[N] of gaps [E, N]."""
  # From one of them: of identical members it is 0, however their mean rounds.
  return (gaps - gaps[0]).std(axis=0)


def ensemble_calibration(
    member_scores: np.ndarray,
    preferred: np.ndarray,
    *,
    num_bins: int = 10,
    gold_gap: np.ndarray | None = None,
) -> dict[str, float | list]:
  """Whether an ensemble knows how often it is right about pairs.

  p = mean over members of sigmoid(gap) is the probability of the preferred
  response, where gap is its score minus the other's. Confidence is the
  probability of the likelier one, max(p, 1 - p), and accuracy says whether
  that is the preferred one (half at p = .5), so that the order within a pair
  does not matter: chosen first will do.

  Args:
    member_scores: float[E, N, 2].
    preferred: int or bool[N], index of the preferred response, 0 or 1.
    num_bins: of equal width over confidences [.5, 1], >= 1.
    gold_gap: float[N], gold score 0 - gold score 1 in the members' units, or
      None.

  Returns:
    expected_calibration_error: sum over bins of the share of pairs times
      |accuracy - confidence|, in [0, 1].
    brier: mean of (1 - probability of the preferred)^2, in [0, 1].
    nll: mean of -log(probability of the preferred), nats.
    bins: count, confidence and accuracy of each; NaN where it is empty.
    disagreement_spearman: rank correlation of the members' s.d. of the gap
      with |mean gap - gold gap|, in [-1, 1], only with `gold_gap`; high if
      disagreement tells where the ensemble is wrong, NaN if one is constant.

  Raises:
    ValueError: if shapes disagree, have other axes, are empty or hold NaN, or
      `preferred` or `num_bins` is out of range.
  """
  if num_bins < 1:
    raise ValueError(f'num_bins must be >= 1, got {num_bins}.')
  gaps, sign = _signed_gaps(member_scores, preferred)
  p = special.expit(gaps).mean(axis=0)
  # Averaged without leaving the log, so that large gaps stay finite.
  log_p = special.logsumexp(special.log_expit(gaps), axis=0, b=1 / len(gaps))
  bins = _reliability(np.maximum(p, 1 - p), (np.sign(p - 0.5) + 1) / 2,
                      num_bins)
  result = {
      'expected_calibration_error': sum(
          x['count'] * abs(x['accuracy'] - x['confidence'])
          for x in bins if x['count']) / len(p),
      'brier': float(((1 - p)**2).mean()),
      'nll': float(-log_p.mean()),
      'bins': bins,
  }
  if gold_gap is not None:
    gold_gap = statistics.as_floats('gold_gap', gold_gap, 1)
    statistics.same_shape(gold_gap=gold_gap, preferred=p)
    result['disagreement_spearman'] = _spearman(
        _deviation(gaps), np.abs(gaps.mean(axis=0) - sign * gold_gap))
  return result
