"""Where responses end: the one test of an EOS."""

import jax
import numpy as np


def finished(tokens: jax.Array | np.ndarray, mask: jax.Array | np.ndarray,
             eos_id: int) -> jax.Array | np.ndarray:
  """Whether each response ends in an EOS, not at the budget of its tokens.

  Args:
    tokens: i32[..., T].
    mask: bool[..., T], true on response tokens.
    eos_id: of the tokenizer.

  Returns:
    bool[...]; False of a missing response. Of NumPy arrays a NumPy array.
  """
  return (mask & (tokens == eos_id)).any(axis=-1)
