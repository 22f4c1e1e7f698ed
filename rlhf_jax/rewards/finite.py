"""The one check of what scores responses: a finite number for each."""

from typing import Any

import numpy as np

from rlhf_jax import errors


def finite(scores: Any, count: int, source: str, where: str) -> np.ndarray:
  """Scores f64[N].

  Args:
    scores: of N responses.
    count: N.
    source: who gave them, such as 'the gold reward model'.
    where: when, such as 'response at step 40'.

  Raises:
    RewardError: there is not one number for each, or one of them is not
      finite as a float32 number; it says which.
  """
  scores = np.asarray(scores, np.float64)
  if scores.shape != (count,):
    raise errors.RewardError(
        f'{source} gave scores of shape {scores.shape} for {count} responses '
        f'({where}); it has to give one number for each')
  bad = np.flatnonzero(~(np.abs(scores) <= np.finfo(np.float32).max))
  if bad.size:
    raise errors.RewardError(
        f'{source} gave {scores[bad[0]]:.6g} in row {bad[0]} ({where}; '
        f'{bad.size} of {count} are not finite); mend it, train it again, or '
        'choose another')
  return scores
