"""What the stages of best-of-n share: scored samples, and which n."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlhf_jax.rewards import scale as scale_lib
from rlhf_jax.storage import files


def grid(num_samples: int) -> list[int]:
  """1, 2, 4, ... and N itself."""
  powers = [2**i for i in range(num_samples.bit_length())]
  return [n for n in powers if n < num_samples] + [num_samples]


def load(context: Any, upstream: Mapping[str, Any], standardize: bool
         ) -> dict[str, np.ndarray]:
  """The arrays of a stage `scores`.

  Args:
    context: of the stage that asks.
    upstream: `scores` and `proxies`.
    standardize: members to mean 0 and deviation 1 on held-out responses.
  """
  scores = files.load_arrays(
      context.directory_of(upstream['scores']) / 'scores.npz')
  if standardize:
    scale = files.load_arrays(
        context.directory_of(upstream['proxies']) / 'scale.npz')
    scores['members'] = np.asarray(
        scale_lib.standardize(scores['members'], scale))
  return scores
