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
    (prompts, responses), N texts each, without special tokens. A response is
    cut before the first of `tokenizer.stop` in it.
  """
  def before_stop(text):
    return text[:min((at for at in map(text.find, tokenizer.stop) if at >= 0),
                     default=len(text))]
  width = tokens.shape[-1]
  rows = list(zip(tokens.reshape(-1, width), mask.reshape(-1, width)))
  return ([tokenizer.decode(row[:at.argmax()]) for row, at in rows],
          [before_stop(tokenizer.decode(row[at], continuation=True))
           for row, at in rows])
