"""Ids of prompts and responses to the padded rows of a batch."""

from collections.abc import Sequence
import itertools
from typing import NamedTuple

import numpy as np


class EncodedRows(NamedTuple):
  """N rows; P is max_prompt_length, R is max_response_length."""

  prompts: np.ndarray  # i32[N, P], right-padded
  prompt_lengths: np.ndarray  # i32[N], >= 1
  tokens: np.ndarray  # i32[N, P + R], prompt, response, padding, no gaps
  mask: np.ndarray  # bool[N, P + R], true on the response and its EOS
  cut: np.ndarray  # bool[N], whether the prompt has lost its front
  truncated_responses: int  # these have no EOS

  @property
  def truncated_prompts(self) -> int:
    """How many prompts have lost their front."""
    return int(self.cut.sum())


def assemble(
    prompts: Sequence[tuple[list[int], int]],
    responses: Sequence[list[int]],
    *,
    max_prompt_length: int,
    max_response_length: int,
    pad_id: int,
) -> EncodedRows:
  """Cuts prompts at their front and responses at their end, and pads.

  Args:
    prompts: N times (ids, how many of them stay in front when it is cut).
    responses: N times ids.
    max_prompt_length: P >= 1.
    max_response_length: R >= 1.
    pad_id: fills rows up on the right.
  """
  heads = [_cut_front(ids, keep, max_prompt_length) for ids, keep in prompts]
  tails = [ids[:max_response_length] for ids in responses]
  width = max_prompt_length + max_response_length
  starts, ends = _lengths(heads), _lengths(heads) + _lengths(tails)
  columns = np.arange(width)
  return EncodedRows(
      prompts=_pad(heads, max_prompt_length, pad_id),
      prompt_lengths=starts,
      tokens=_pad([h + t for h, t in zip(heads, tails)], width, pad_id),
      mask=(columns >= starts[:, None]) & (columns < ends[:, None]),
      cut=np.array([len(ids) > max_prompt_length for ids, _ in prompts], bool),
      truncated_responses=sum(len(ids) > max_response_length
                              for ids in responses),
  )


def _cut_front(ids: list[int], keep: int, length: int) -> list[int]:
  """The first `keep` and the last of `ids`, at most `length` together."""
  if len(ids) <= length:
    return ids
  front = ids[:min(keep, length)]
  return front + ids[len(ids) - (length - len(front)):]


def _lengths(rows: Sequence[Sequence[int]]) -> np.ndarray:
  return np.fromiter(map(len, rows), np.int32, len(rows))


def _pad(rows: Sequence[list[int]], width: int, pad_id: int) -> np.ndarray:
  """i32[N, width], rows filled up on the right."""
  lengths = _lengths(rows)
  out = np.full((len(rows), width), pad_id, np.int32)
  flat = np.fromiter(
      itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())
  )
  out[np.arange(width) < lengths[:, None]] = flat
  return out
