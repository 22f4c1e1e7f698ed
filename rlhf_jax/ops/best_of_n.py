"""Best-of-n: its KL, its selection and its unbiased curve.

Coste et al. 2024, https://arxiv.org/abs/2310.02743, eq. 1 and eq. 7 to 8,
after Nakano et al. 2021, https://arxiv.org/abs/2112.09332, appendix I.
"""

from collections.abc import Mapping, Sequence
import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.parallel import threads

_CHUNK = 16  # prompts at a time; bounds memory, does not change the result
_SCORES = 2**17  # of a part on the host: ten times what starting it takes


def kl(n: jax.Array | int) -> jax.Array:
  """KL from the base policy to best-of-n, log n - (n - 1) / n, in nats.

  Exact for continuous scores without ties, an upper bound otherwise (eq. 1).

  Args:
    n: int or array of ints, >= 1; not checked under jit.

  Returns:
    f32, the shape of `n`.

  Raises:
    ValueError: if `n` < 1.
  """
  if not isinstance(n, jax.core.Tracer):
    if np.any(np.asarray(n) < 1):
      raise ValueError(f'n must be >= 1, got {n}.')
    return _kl(np.asarray(n, np.float32))
  return _kl(n)


@jax.jit
def _kl(n):
  n = jnp.asarray(n, jnp.float32)
  return jnp.log(n) - (n - 1) / n


def _refuse_nan(**arrays: jax.Array | np.ndarray) -> None:
  for name, x in arrays.items():
    if not isinstance(x, jax.core.Tracer) and np.isnan(x).any():
      raise ValueError(f'{name} must not be NaN, got {int(np.isnan(x).sum())} '
                       f'of {x.size}.')


def select(scores: jax.Array) -> jax.Array:
  """Index i32[B] of the highest of scores [B, K]; the first on ties.

  Raises:
    ValueError: if a score is NaN, which would count as the highest; not
      checked under jit.
    AssertionError: if `scores` does not have two axes.
  """
  chex.assert_rank(scores, 2)
  _refuse_nan(scores=scores)
  return jnp.argmax(scores, axis=1).astype(jnp.int32)


def _weights(count: int, sizes: Sequence[int]) -> np.ndarray:
  """f32[len(sizes), count]: P(i-th lowest of `count` is the best of n drawn).

  C(i - 1, n - 1) / C(count, n) as n / count * prod_{j > i} (j - n) / (j - 1),
  in float64 on the host. The factor at j = n is 0, which clears all ranks
  below n.
  """
  n = np.asarray(sizes, float)[:, None]
  ratio = np.minimum((n - 1) / np.arange(1, count), 1)
  with np.errstate(divide='ignore'):  # log 0 where the product is to be 0
    tail = np.cumsum(np.log1p(-ratio)[:, ::-1], axis=1)[:, ::-1]
  weights = n / count * np.exp(np.pad(tail, ((0, 0), (0, 1))))
  return weights.astype(np.float32)


def _average_ties(proxy: jax.Array, gold: jax.Array) -> jax.Array:
  """Replaces gold [N] by its mean over each run of equal proxy [N]."""
  starts = jnp.concatenate([jnp.zeros(1, bool), proxy[1:] != proxy[:-1]])
  group = jnp.cumsum(starts)
  total = lambda x: jax.ops.segment_sum(
      x, group, proxy.size, indices_are_sorted=True)
  return (total(gold) / jnp.maximum(total(jnp.ones_like(gold)), 1))[group]


def curve(proxy: jax.Array, gold: jax.Array, ns: Sequence[int], *,
          average_ties: bool = True) -> jax.Array:
  """Expected gold score of the best of n by proxy, for each prompt and n.

  Unbiased over all subsets of size n of the N samples. Gold is sorted by each
  prompt's own proxy. (The paper's code leaves the gold of an ensemble in the
  order of its first member.) `curve(proxy, proxy, ns)` is the proxy's curve.

  Args:
    proxy: float[B, N], what best-of-n selects by.
    gold: float[B, N], what is reported.
    ns: Python ints in [1, N], static.
    average_ties: gold of equal proxies is averaged, which equals breaking
      ties at random; false leaves them in the order of the input.

  Returns:
    f32[B, len(ns)], in units of `gold`.

  Raises:
    ValueError: if `ns` is empty or holds an n outside [1, N], or a score is
      NaN (not checked under jit).
    AssertionError: if shapes or dtypes disagree.
  """
  chex.assert_rank(proxy, 2)
  chex.assert_equal_shape([proxy, gold])
  chex.assert_type([proxy, gold], [float, float])
  _refuse_nan(proxy=proxy, gold=gold)
  count = proxy.shape[1]
  sizes = [operator.index(n) for n in ns]
  if not sizes:
    raise ValueError('ns must hold at least one n.')
  for n in sizes:
    if not 1 <= n <= count:
      raise ValueError(f'n must be in [1, N], got n = {n} with N = {count}.')

  def ordered(pair):
    proxy, gold = jax.lax.sort(pair, num_keys=1)
    return _average_ties(proxy, gold) if average_ties else gold

  pair = (proxy.astype(jnp.float32), gold.astype(jnp.float32))
  gold = jax.lax.map(ordered, pair, batch_size=_CHUNK)
  return jnp.matmul(gold, _weights(count, sizes).T,
                    precision=jax.lax.Precision.HIGHEST)


def curves(proxy: np.ndarray, golds: Mapping[str, np.ndarray],
           ns: Sequence[int]) -> dict[str, np.ndarray]:
  """`curve` of several golds by one proxy, on the host.

  Sorts once, which is nearly all of the time, and by NumPy, whose sort is
  several times as fast as XLA's on a CPU; a few prompts at a time, on all
  cores.

  Args:
    proxy: float[B, N], what best-of-n selects by.
    golds: float[B, N] each, what is reported; equal proxies share the mean.
    ns: ints in [1, N].

  Returns:
    f32[B, len(ns)] of each gold.

  Raises:
    ValueError: a score is NaN, or an n outside [1, N].
  """
  _refuse_nan(**{**golds, 'proxy': proxy})
  rows, count = proxy.shape
  if not ns or min(ns) < 1 or max(ns) > count:
    raise ValueError(f'ns must be in [1, {count}], got {list(ns)}.')
  weights = _weights(count, ns).T
  chunk = max(_CHUNK, _SCORES // count)

  def part(first):
    at = slice(first, first + chunk)
    return _of_rows(
        proxy[at], {name: x[at] for name, x in golds.items()}, weights)

  parts = threads.at_once([functools.partial(part, first)
                           for first in range(0, max(rows, 1), chunk)])
  return {name: np.concatenate([x[name] for x in parts]) for name in golds}


def _of_rows(proxy, golds, weights) -> dict[str, np.ndarray]:
  """`curves` of some prompts, with the weights of `_weights`, transposed."""
  rows, count = proxy.shape
  proxy = np.asarray(proxy, np.float32)
  order = np.argsort(proxy, axis=1)
  ordered = np.sort(proxy, axis=1)
  starts = ordered[:, 1:] != ordered[:, :-1]  # of a run of equal proxies
  tied = not starts.all()
  if tied:  # where each run starts, in all rows one after the other
    starts = np.flatnonzero(np.pad(starts, ((0, 0), (1, 0)),
                                   constant_values=True))
    sizes = np.diff(starts, append=rows * count)

  def one(gold):
    gold = np.take_along_axis(np.asarray(gold, np.float32), order, axis=1)
    if tied:
      means = np.add.reduceat(gold.reshape(-1), starts, dtype=float) / sizes
      gold = np.repeat(means, sizes).reshape(rows, count).astype(np.float32)
    return gold @ weights

  return {name: one(gold) for name, gold in golds.items()}
