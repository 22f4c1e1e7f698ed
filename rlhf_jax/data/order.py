"""Which examples a step sees, as a pure function of (seed, step).

There is no iterator, so there is no iterator state to save: a resumed run
asks for the same steps and gets the same examples. Position p of the endless
stream is example permutation(seed, p // n)[p % n], and step s covers the
positions from s * batch_size, across the ends of epochs.
"""

import functools

import numpy as np


def indices(
    seed: int, step: int, batch_size: int, num_examples: int
) -> np.ndarray:
  """Returns the examples of one step.

  Args:
    seed: 0 <= seed < 2**64; another seed is another order.
    step: which batch, from 0.
    batch_size: examples per step; may exceed num_examples.
    num_examples: size of the data set.

  Returns:
    i64[batch_size], each in [0, num_examples).

  Raises:
    ValueError: an argument is out of range.
  """
  if not 0 <= seed < 2**64:
    raise ValueError(f'seed must be in [0, 2**64), got {seed}')
  if step < 0:
    raise ValueError(f'step must be >= 0, got {step}')
  if batch_size < 1:
    raise ValueError(f'batch_size must be >= 1, got {batch_size}')
  if num_examples < 1:
    raise ValueError(f'num_examples must be >= 1, got {num_examples}')
  epoch, start = divmod(int(step) * int(batch_size), int(num_examples))
  parts, missing = [], batch_size
  while missing:
    part = _permutation(int(seed), epoch, int(num_examples))[start:][:missing]
    parts.append(part)
    missing -= len(part)
    epoch, start = epoch + 1, 0
  return np.concatenate(parts)


# A step needs one or two epochs; a run has a few streams (prompts, pairs).
@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  """i64[num_examples], a permutation that is read-only."""
  bits = np.random.Philox(key=np.array([seed, epoch], np.uint64))
  # Sorting raw words, because NumPy promises their stream for ever, while
  # Generator.permutation may change with a release and so break a resume.
  permutation = np.argsort(bits.random_raw(num_examples), kind='stable')
  permutation.setflags(write=False)
  return permutation
