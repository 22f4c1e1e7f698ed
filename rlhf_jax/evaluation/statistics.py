"""Numbers that studies report, with their standard errors.

Sources: Coste et al. 2024, https://arxiv.org/abs/2310.02743 (curves, win
rate); Ahmadian et al. 2024, https://arxiv.org/abs/2402.14740 (perplexity,
length, variance); Baheti et al. 2024, https://arxiv.org/abs/2305.14718 (means
over instances). Diversity is in `ops.texts`, judges are in `judging`.
"""

from collections.abc import Sequence

import numpy as np


def as_floats(name: str, x: np.ndarray, ndim: int) -> np.ndarray:
  """f64 copy of `x`, for functions that report numbers.

  Args:
    name: what the caller calls it.
    x: any numbers.
    ndim: number of axes it must have.

  Returns:
    f64 of the same shape.

  Raises:
    ValueError: if it has other axes, is empty, or holds NaN, which would be
      lost in a comparison.
  """
  x = np.array(x, np.float64)
  if x.ndim != ndim or not x.size:
    raise ValueError(f'{name} must have {ndim} axes and a value, '
                     f'got shape {x.shape}.')
  if np.isnan(x).any():
    where = tuple(int(i) for i in np.argwhere(np.isnan(x))[0])
    raise ValueError(f'{name} holds NaN, first at {where}.')
  return x


def same_shape(**arrays: np.ndarray):
  """Raises a ValueError with names and shapes unless all shapes agree."""
  if len({x.shape for x in arrays.values()}) > 1:
    shapes = ', '.join(f'{name} {x.shape}' for name, x in arrays.items())
    raise ValueError(f'Shapes must agree, got {shapes}.')


def standard_error(x: np.ndarray, axis: int = 0) -> np.ndarray:
  """Standard error of the mean along `axis` (ddof 1); NaN for one value."""
  x = np.asarray(x, np.float64)
  if x.shape[axis] < 2:
    return np.full(np.delete(x.shape, axis), np.nan)[()]
  return x.std(axis=axis, ddof=1) / np.sqrt(x.shape[axis])


def furthest(x: np.ndarray) -> np.ndarray:
  """bool[N]: where a curve is beyond all before, such as a KL that goes back.

  What is measured elsewhere is of no policy of the furthest KL.

  Args:
    x: f[N], in the order of training.
  """
  return np.diff(np.maximum.accumulate(x), prepend=-np.inf) > 0


def pair_accuracy(scores: np.ndarray) -> np.ndarray:
  """Share of pairs [..., N, 2] whose first score is higher; a tie is wrong.

  Raises:
    ValueError: if `scores` has another last axis, is empty or holds NaN.
  """
  scores = np.asarray(scores)
  if scores.ndim < 2 or scores.shape[-1] != 2 or not scores.size:
    raise ValueError(f'scores must be [..., N, 2], got shape {scores.shape}.')
  if np.isnan(scores).any():
    raise ValueError(f'scores must not be NaN, got {np.isnan(scores).sum()}.')
  return (scores[..., 0] > scores[..., 1]).mean(axis=-1)


def perplexity(logprobs: np.ndarray, mask: np.ndarray) -> float:
  """Perplexity of a corpus: exp(sum of -log-probability / sum of tokens).

  Ahmadian et al. 2024, section 4.2, of the chosen test responses under the
  trained policy. Not the mean of the responses' perplexities, which weighs
  short responses more.

  Args:
    logprobs: float[...], in nats, <= 0; anything, NaN too, off the mask.
    mask: bool[...], true on response tokens, EOS included.

  Returns:
    Perplexity per token, >= 1; NaN if a token's log-probability is.

  Raises:
    ValueError: if shapes or dtypes disagree, no token counts, or a
      log-probability is positive.
  """
  mask, logprobs = np.asarray(mask), np.asarray(logprobs)
  same_shape(logprobs=logprobs, mask=mask)
  if mask.dtype != bool or not mask.any():
    raise ValueError('mask must be bool and true somewhere, got '
                     f'{mask.dtype}[{mask.shape}] with {mask.sum()} true.')
  logprobs = logprobs[mask].astype(np.float64)
  # Rounding in the vocabulary's logsumexp may leave a hair above 0.
  if (logprobs > 1e-3).any():
    raise ValueError(f'logprobs must be <= 0, got {logprobs.max()}.')
  with np.errstate(over='ignore'):
    return float(np.exp(-logprobs.sum() / logprobs.size))


def response_lengths(tokens: np.ndarray, mask: np.ndarray, *,
                     eos_id: int | tuple[int, ...]) -> np.ndarray:
  """Response tokens without the EOS.

  As we read the lengths of Ahmadian et al. 2024, Table 2 (objectives.md 11.4).

  For lengths in words (Baheti et al. 2024) see `texts.mean_words`.

  Args:
    tokens: int[..., T], prompt, response, padding.
    mask: bool[..., T], true on response tokens, EOS included. A response that
      was cut off has no EOS, and all its tokens count.
    eos_id: id of the EOS, or of several; it may also be the padding's.

  Returns:
    i64[...], tokens of each response; report its mean.

  Raises:
    ValueError: if shapes or dtypes disagree.
  """
  tokens, mask = np.asarray(tokens), np.asarray(mask)
  same_shape(tokens=tokens, mask=mask)
  for name, x, kind in (('tokens', tokens, np.integer), ('mask', mask, bool)):
    if x.ndim < 1 or not np.issubdtype(x.dtype, kind):
      raise ValueError(f'{name} must be {kind.__name__}[..., T], got '
                       f'{x.dtype} of shape {x.shape}.')
  return (mask & ~np.isin(tokens, eos_id)).sum(axis=-1)


def reward_variance(scores: np.ndarray) -> float:
  """Population variance over prompts (Ahmadian et al. 2024, section 5.2.1).

  Args:
    scores: float[B], of one sampled response for each test prompt.

  Returns:
    Score units squared.

  Raises:
    ValueError: if `scores` has other axes, is empty or holds NaN.
  """
  return float(as_floats('scores', scores, 1).var())


def variance_reduction(scores: np.ndarray,
                       baseline_scores: np.ndarray) -> float:
  """1 - variance / variance of a baseline method, over the test prompts.

  Ahmadian et al. 2024, section 5.2.1: .27 for REINFORCE with a baseline,
  against vanilla policy gradient.

  Args:
    scores: float[B], as for `reward_variance`.
    baseline_scores: float[C], of the baseline's responses.

  Returns:
    At most 1; negative where the variance is larger than the baseline's.

  Raises:
    ValueError: as `reward_variance`, or if the baseline has no variance.
  """
  base = as_floats('baseline_scores', baseline_scores, 1).var()
  if base == 0:
    raise ValueError('baseline_scores must vary, got variance 0.')
  return float(1 - reward_variance(scores) / base)


def win_rate(gold: np.ndarray, baseline_gold: np.ndarray) -> float:
  """Share of prompts on which one method beats another; a tie is half a win.

  Coste et al. 2024, appendix F.9, which says nothing of ties.

  Args:
    gold: float[B], gold score of the method on each prompt.
    baseline_gold: float[B], of the other method on the same prompts.

  Returns:
    In [0, 1]; .5 against itself.

  Raises:
    ValueError: if shapes disagree, have other axes, are empty or hold NaN.
  """
  gold = as_floats('gold', gold, 1)
  baseline = as_floats('baseline_gold', baseline_gold, 1)
  same_shape(gold=gold, baseline_gold=baseline)
  return float((gold > baseline).mean() + 0.5 * (gold == baseline).mean())


def win_rate_against(gold: np.ndarray, baselines: np.ndarray, *,
                     ddof: int = 1) -> tuple[float, float]:
  """Mean and s.d. of the win rates against each of several methods.

  Coste et al. 2024, Tables 6 and 7: against each of five single reward
  models. The paper does not say which ddof its +- has.

  Args:
    gold: float[B], gold score of the method on each prompt.
    baselines: float[M, B], of the others on the same prompts.
    ddof: of the s.d. over M, 0 or 1.

  Returns:
    (mean, s.d.), shares; the s.d. is NaN for one baseline and ddof 1.

  Raises:
    ValueError: as `win_rate`, or if `ddof` is neither 0 nor 1.
  """
  if ddof not in (0, 1):
    raise ValueError(f'ddof must be 0 or 1, got {ddof}.')
  baselines = as_floats('baselines', baselines, 2)
  rates = np.array([win_rate(gold, row) for row in baselines])
  deviation = rates.std(ddof=ddof) if len(rates) > ddof else np.nan
  return float(rates.mean()), float(deviation)


def weighted_mean(values: np.ndarray, counts: np.ndarray) -> float:
  """Mean over instances from the means over splits.

  Baheti et al. 2024, Table 2: the average reward weighs the four splits by
  their 2210, 2278, 1085 and 2634 instances.

  Args:
    values: float[S], mean of each split.
    counts: float or int[S], instances of each split, >= 0.

  Returns:
    In the units of `values`.

  Raises:
    ValueError: if shapes disagree, have other axes, are empty or hold NaN, or
      `counts` has a negative number or only zeros.
  """
  values = as_floats('values', values, 1)
  counts = as_floats('counts', counts, 1)
  same_shape(values=values, counts=counts)
  if (counts < 0).any() or not counts.any():
    raise ValueError(f'counts must be >= 0 and not all 0, got {counts}.')
  return float(np.average(values, weights=counts))


def curve_until(kl: np.ndarray, values: np.ndarray, *,
                limit: float = 150.0) -> tuple[np.ndarray, np.ndarray]:
  """The points of a curve over sqrt(KL) until it first exceeds a limit.

  Coste et al. 2024 cut their PPO curves there, all but Fig. 27.

  Args:
    kl: float[P], of the policy at each point from its initial one, nats, >= 0.
    values: float[..., P], what is plotted.
    limit: largest KL kept, in nats, >= 0.

  Returns:
    (sqrt(kl) f64[Q], values[..., Q]), in the given order.

  Raises:
    ValueError: if `kl` has other axes, is empty, or holds NaN or a negative
      number, `limit` is negative, or `values` does not end in its axis.
  """
  kl, values = as_floats('kl', kl, 1), np.asarray(values)
  if not limit >= 0:
    raise ValueError(f'limit must be >= 0, got {limit}.')
  if (kl < 0).any():
    raise ValueError(f'kl must be >= 0, got {kl.min()}.')
  if values.shape[-1:] != kl.shape:
    raise ValueError(f'values must end in the axis of kl {kl.shape}, '
                     f'got shape {values.shape}.')
  keep = np.cumsum(kl > limit) == 0
  return np.sqrt(kl[keep]), values[..., keep]


def with_single(curves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Adds 'single', prompt by prompt the mean of 'single_0', 'single_1', ...

  Coste et al. 2024 plot a single reward model as the mean over the members.
  """
  members = [v for k, v in curves.items() if k.startswith('single_')]
  return {'single': np.mean(members, axis=0), **curves}


def best_of_n_summary(
    ns: Sequence[int], gold: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
  """Peak, final value and drop of best-of-n curves, over prompts.

  Args:
    ns: the grid of n, ascending.
    gold: for each method the unbiased estimate f32[B, len(ns)].

  Returns:
    For each method, and for 'single' (the mean of the members): peak_n (where
    the mean curve is highest), peak, final, drop = peak - final, above_single
    = final - final of 'single', and the standard errors over prompts
    '<name>_se'. The drop is >= 0 by definition; its error takes the peak's
    place as given.
  """
  rows, gold = {}, with_single(gold)
  for name, curve in gold.items():
    curve = np.asarray(curve, np.float64)
    top = int(curve.mean(axis=0).argmax())
    parts = {'peak': curve[:, top], 'final': curve[:, -1],
             'drop': curve[:, top] - curve[:, -1],
             'above_single': curve[:, -1] - gold['single'][:, -1]}
    rows[name] = {'peak_n': int(ns[top])}
    for what, values in parts.items():
      rows[name][what] = float(values.mean())
      rows[name][f'{what}_se'] = float(standard_error(values))
  return rows
