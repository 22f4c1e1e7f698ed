"""Rows of tokens as texts."""

import numpy as np

from rlhf_jax.data import tokenizer as tokenizer_lib


def decode(tokenizer: tokenizer_lib.Tokenizer, tokens: np.ndarray,
           mask: np.ndarray) -> tuple[list[str], list[str]]:
  """Texts of rows.

  Args:
    tokenizer: of the tokens.
    tokens: i32[..., T], prompt, response, padding; N rows in all.
    mask: bool[..., T], true on response tokens, somewhere in each row.

  Returns:
    (prompts, responses), N texts each, without special tokens.
  """
  width = tokens.shape[-1]
  rows = list(zip(tokens.reshape(-1, width), mask.reshape(-1, width)))
  return ([tokenizer.decode(row[:at.argmax()]) for row, at in rows],
          [tokenizer.decode(row[at], continuation=True) for row, at in rows])
