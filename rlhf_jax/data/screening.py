"""What becomes of texts that lose what matters when they are cut to length.

Policies, fields of `options.Texts`:

  long_prompts      of training prompts over max_prompt_length: 'cut' takes off
                    their front, 'drop' leaves out all that answers one,
                    'refuse' is an error; held-out prompts are cut
  identical_pairs   of pairs whose sides are the same tokens: 'drop' leaves them
                    out, 'keep' does not, 'refuse' is an error; a policy that
                    learns from the pairs of a log never sees them
"""

from typing import Any

import numpy as np

from rlhf_jax import errors

LONG_PROMPTS = ('cut', 'drop', 'refuse')
IDENTICAL_PAIRS = ('drop', 'keep', 'refuse')


def check(options: Any):
  """ValueError for a policy that there is not."""
  for name, policies in (('long_prompts', LONG_PROMPTS),
                         ('identical_pairs', IDENTICAL_PAIRS)):
    value = getattr(options, name)
    if value not in policies:
      raise ValueError(
          f'{name} must be one of {", ".join(policies)}, got {value!r}')


def prompts(options: Any, cut: np.ndarray, source: str) -> np.ndarray:
  """Which prompts stay, bool[N].

  Args:
    options: of the corpus.
    cut: bool[N], which of them are longer than they may be.
    source: of the prompts, for messages.

  Raises:
    DataError: the policy refuses, or leaves none.
  """
  count = int(cut.sum())
  if options.long_prompts == 'cut' or not count:
    return np.ones(len(cut), bool)
  what = (f'{source}: {count} of {len(cut)} prompts have more than '
          f'{options.max_prompt_length} tokens')
  if options.long_prompts == 'refuse':
    raise errors.DataError(
        f"{what}, and long_prompts is 'refuse'; raise max_prompt_length, or "
        "give 'cut' or 'drop'")
  if count == len(cut):
    raise errors.DataError(f'{what}; raise max_prompt_length')
  return ~cut


def pairs(options: Any, chosen: np.ndarray, rejected: np.ndarray, source: str
          ) -> np.ndarray:
  """Which pairs stay, bool[N].

  Args:
    options: of the corpus.
    chosen: i32[N, T], rows of tokens.
    rejected: likewise.
    source: of the pairs, for messages.

  Raises:
    DataError: the policy refuses, or leaves none.
  """
  same = (chosen == rejected).all(axis=-1)
  count = int(same.sum())
  if options.identical_pairs == 'keep' or not count:
    return np.ones(len(same), bool)
  what = (f'{source}: {count} of {len(same)} pairs are the same tokens once '
          f'responses end after {options.max_response_length}')
  if options.identical_pairs == 'refuse':
    raise errors.DataError(
        f"{what}, and identical_pairs is 'refuse'; raise max_response_length, "
        "or give 'drop'")
  if count == len(same):
    raise errors.DataError(f'{what}; raise max_response_length')
  return ~same
