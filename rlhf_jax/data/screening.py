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
  if options.long_prompts == 'cut':
    return np.ones(len(cut), bool)
  return _kept(
      options, 'long_prompts', cut, f'{source}: {cut.sum()} of {len(cut)} '
      f'prompts have more than {options.max_prompt_length} tokens',
      'max_prompt_length', "'cut' or 'drop'")


def same(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
  """bool[N]: which rows of tokens i32[N, T] cannot be told apart."""
  return (chosen == rejected).all(axis=-1)


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
  if options.identical_pairs == 'keep':
    return np.ones(len(chosen), bool)
  alike = same(chosen, rejected)
  return _kept(
      options, 'identical_pairs', alike, f'{source}: {alike.sum()} of '
      f'{len(alike)} pairs are the same tokens once responses end after '
      f'{options.max_response_length}', 'max_response_length', "'drop'")


def _kept(options: Any, policy: str, bad: np.ndarray, what: str, length: str,
          others: str) -> np.ndarray:
  """All but the bad ones, unless the policy refuses or none would be left."""
  if not bad.any():
    return ~bad
  if getattr(options, policy) == 'refuse':
    raise errors.DataError(f"{what}, and {policy} is 'refuse'; raise {length}, "
                           f'or give {others}')
  if bad.all():
    raise errors.DataError(f'{what}; raise {length}')
  return ~bad
