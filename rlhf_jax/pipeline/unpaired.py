"""Responses that were liked or were not, beside responses to other prompts.

Ethayarajh et al. 2024, https://arxiv.org/abs/2402.01306, section 4: the
reference point of KTO is estimated on pairs (x, y'), y' being the response to
another prompt than x. The paper's code and TRL turn the responses of each
micro-batch by one place. Here that is done once, over all the data, so that
the reference is asked once; batches are in an order of their own, and their y'
are not the same responses as their y.
"""

from collections.abc import Mapping

import numpy as np

from rlhf_jax import errors
from rlhf_jax import types

LABELS = (('liked', 'disliked'), ('chosen', 'rejected'))  # groups of a log


def sides(groups: list[str]) -> tuple[str, str] | None:
  """The groups that are liked and disliked; None without both."""
  return next((names for names in LABELS if {*names} <= {*groups}), None)


def select(log: Mapping[str, np.ndarray], groups: list[str]) -> types.Batch:
  """Every response of the two groups, each with one to another prompt.

  Args:
    log: tokens, mask [N, K, T] and group [N, K].
    groups: names of the groups.

  Returns:
    Batch [N', 2, T] in the order of the log: first the response, then the
    same prompt with another's. `targets` f32[N', 2] are 1 where the first is
    liked, else 0; of the second nobody has said anything, and it has 0.

  Raises:
    ConfigError: the log has not both groups, no response of them, or no other
      prompts to turn to.
  """
  names = sides(groups)
  if names is None:
    raise errors.ConfigError(
        'the log has no labels: its responses must be of the groups liked and '
        'disliked (files of the kind unpaired) or chosen and rejected, and '
        f'they are of {", ".join(groups)}')
  liked, disliked = (log['group'] == groups.index(name) for name in names)
  at = np.nonzero(log['mask'].any(axis=-1) & (liked | disliked))
  tokens, mask = log['tokens'][at], log['mask'][at]
  if not len(tokens):
    raise errors.ConfigError(
        f'the log has no response of the groups {" and ".join(names)}')
  return types.Batch(*(np.stack(x, axis=1) for x in zip(
      (tokens, mask), mismatched(tokens, mask))), targets=np.stack(
          [liked[at], np.zeros(len(tokens))], axis=1).astype(np.float32))


def mismatched(tokens: np.ndarray, mask: np.ndarray
               ) -> tuple[np.ndarray, np.ndarray]:
  """Each prompt with the response of a row that has another prompt.

  Every response is used once, so that the matched and the mismatched ones are
  the same. Where each row has a prompt of its own it is that of the next row,
  and the last one has that of the first.

  Args:
    tokens: i32[N, T], prompt then response then padding.
    mask: bool[N, T], true on response tokens, of which each row has some.

  Returns:
    tokens i32[N, T] and mask bool[N, T]; a response that does not fit is cut.

  Raises:
    ConfigError: more than half of the responses are to one prompt.
  """
  starts, lengths = mask.argmax(axis=-1)[:, None], mask.sum(axis=-1)[:, None]
  number = {}
  prompts = np.array([number.setdefault(row[:start].tobytes(), len(number))
                      for row, start in zip(tokens, starts[:, 0])], int)
  most = np.bincount(prompts).max()
  if 2 * most > len(tokens):
    raise errors.ConfigError(
        f'{most} of {len(tokens)} liked and disliked responses are to one '
        'prompt; at most half may be, since each needs one to another prompt')
  # Side by side, a prompt's responses are no longer than the turn is wide.
  order = np.argsort(prompts, kind='stable')
  other = np.empty_like(order)
  other[order] = np.roll(order, -most)
  place = np.arange(tokens.shape[1])[None] - starts  # in the response
  inside = (place >= 0) & (place < lengths[other])
  theirs = np.take_along_axis(
      tokens[other], np.where(inside, starts[other] + place, 0), axis=1)
  return np.where(place < 0, tokens, np.where(inside, theirs, 0)), inside
