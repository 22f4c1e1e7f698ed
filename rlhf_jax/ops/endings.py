"""Where responses end: the one test of an EOS or a stop string."""

import functools
import operator
from typing import Any

import jax
import numpy as np

from rlhf_jax.ops import stops as stops_lib


def finished(tokens: jax.Array | np.ndarray, mask: jax.Array | np.ndarray,
             eos_id: int | tuple[int, ...],
             stops: jax.Array | np.ndarray | None = None
             ) -> jax.Array | np.ndarray:
  """Whether each response ends by itself, not at the budget of its tokens.

  Args:
    tokens: i32[..., T].
    mask: bool[..., T], true on response tokens.
    eos_id: of the tokenizer; one of several is an end too.
    stops: of `ops.stops.table`: a string that is complete is an end too.

  Returns:
    bool[...]; False of a missing response. Of NumPy arrays a NumPy array.
  """
  eos_ids = (eos_id,) if isinstance(eos_id, int) else eos_id
  ends: Any = functools.reduce(operator.or_, [tokens == x for x in eos_ids])
  ends = (mask & ends).any(axis=-1)
  if stops is None:
    return ends
  complete = stops_lib.completed(stops, tokens, mask)
  return ends | (np.asarray(complete) if isinstance(ends, np.ndarray)
                 else complete)
