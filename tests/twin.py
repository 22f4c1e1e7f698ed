"""Central differences of a float64 NumPy function, for gradient twins."""

import numpy as np


def gradient(fn, x, step=1e-6):
  """d fn / d x for fn: f64 array -> float, one entry at a time."""
  x = np.array(x, np.float64)
  result = np.zeros_like(x)
  for index in np.ndindex(x.shape):
    above, below = x.copy(), x.copy()
    above[index] += step
    below[index] -= step
    result[index] = (fn(above) - fn(below)) / (2 * step)
  return result
