"""Independent references: float64 NumPy twins and central differences."""

import hypothesis
from hypothesis import strategies
import jax
import numpy as np

# Random inputs, the same on every run; a failure prints the seed to blame.
randomised = hypothesis.given(seed=strategies.integers(0, 2**32 - 1))
few = hypothesis.settings(
    max_examples=10, deadline=None, derandomize=True, database=None)


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


def assert_equal(fn, reference, x, *, rtol=1e-5, atol=1e-5):
  """Value and gradient of `fn` at x equal those of the float64 `reference`.

  Args:
    fn: f32 array -> f32[], in JAX; jit it, where it is called often.
    reference: f64 array -> float, in NumPy, written from the formula.
    x: where; entries at a kink of the loss are for other tests.
    rtol: relative tolerance.
    atol: absolute tolerance.
  """
  value, grad = jax.value_and_grad(fn)(np.asarray(x, np.float32))
  x = np.asarray(np.asarray(x, np.float32), np.float64)
  np.testing.assert_allclose(value, reference(x), rtol=rtol, atol=atol)
  np.testing.assert_allclose(
      grad, gradient(reference, x), rtol=10 * rtol, atol=atol)


def assert_checks_arrays(loss, arrays, names):
  """`loss` names each array that is None, and refuses wrong shapes and types.

  Args:
    loss: of arrays, [B, K, T] each, the last one the mask.
    arrays: sound ones.
    names: what an error calls those before the mask.
  """
  def replaced(i, x):
    return [x if i == j else y for j, y in enumerate(arrays)]

  for i, name in enumerate(names):
    with np.testing.assert_raises_regex(ValueError, f'^{name} is None'):
      loss(*replaced(i, None))
    with np.testing.assert_raises(AssertionError):
      loss(*replaced(i, arrays[i][..., 1:]))
  for bad in ((*arrays[:-1], arrays[-1].astype(np.float32)),
              [x[0] for x in arrays]):
    with np.testing.assert_raises(AssertionError):
      loss(*bad)


def mean(out):
  """What the train step minimises: sum(loss * weight) / sum(weight)."""
  return (out.loss * out.weight).sum() / out.weight.sum()
