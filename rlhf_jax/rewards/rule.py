"""The rule of a small world in the place of a gold reward model."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from rlhf_jax.rewards import scale as scale_lib


class Rule(NamedTuple):
  """The true reward itself, as one reward model; see `models.RewardModels`."""

  rule: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of tokens and mask
  scale: dict[str, np.ndarray] | None = None  # 'mean' and 'std', f[1]

  def scores(self, tokens: np.ndarray, mask: np.ndarray, *,
             standardize: bool = True, poll: Callable[[], None] = lambda: None
             ) -> np.ndarray:
    """f32[1, ...] of rows on the host, standardised where there is a scale.

    Args:
      tokens: i32[..., T].
      mask: bool[..., T].
      standardize: False gives the scores as they are.
      poll: called first.
    """
    poll()
    scores = self.rule(tokens, mask)[None]
    if self.scale is None or not standardize:
      return scores
    return np.asarray(scale_lib.standardize(scores, self.scale))
