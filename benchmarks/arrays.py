"""Rows whose peer is NumPy or the plain form of the same in JAX."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from benchmarks import measure
from rlhf_jax.ops import best_of_n
from rlhf_jax.ops import logprobs


def products(quick: bool) -> measure.Case:
  """A matrix product, the most that the cores can calculate."""
  n = 512 if quick else 2048
  x = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
  return measure.Case(
      ours=_times(jnp.dot, x, x, 2e-9 * n**3),
      peer=lambda: (x @ x).size and 2e-9 * n**3,
      unit='GFLOP/s', note=f'XLA and NumPy, float32, {n} x {n}')


def reading(quick: bool) -> measure.Case:
  """A matrix times a vector, the most that the memory can be read."""
  n = 2048 if quick else 8192
  x = np.random.default_rng(0).normal(size=(n, n)).astype(np.float32)
  return measure.Case(
      ours=_times(jnp.dot, x, x[0], 4e-9 * n**2),
      peer=lambda: (x @ x[0]).size and 4e-9 * n**2,
      unit='GB/s',
      note=f'XLA and NumPy, {n} x {n} times a vector, float32')


def _times(function, x, y, amount):
  x, y, program = jnp.asarray(x), jnp.asarray(y), jax.jit(function)

  def run():
    jax.block_until_ready(program(x, y))
    return amount

  return run


def numpy_curve(proxy: np.ndarray, gold: np.ndarray, ns) -> np.ndarray:
  """`best_of_n.curve` in vectorised NumPy, ties averaged: f64[B, len(ns)].

  Args:
    proxy: float[B, N].
    gold: float[B, N].
    ns: ints in [1, N].
  """
  rows, count = proxy.shape
  order = np.argsort(proxy, axis=1)
  ordered = np.take_along_axis(proxy, order, axis=1)
  starts = np.ones(proxy.shape, bool)
  starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
  group = np.cumsum(starts) - 1
  totals = np.bincount(group, np.take_along_axis(gold, order, axis=1).ravel())
  gold = (totals / np.bincount(group))[group].reshape(rows, count)
  choose = lambda n, k: (
      special.gammaln(n + 1) - special.gammaln(k + 1)
      - special.gammaln(np.maximum(n - k, 0) + 1))
  i, n = np.arange(count)[:, None], np.asarray(ns)[None]
  weights = np.where(i >= n - 1, np.exp(
      choose(i, n - 1) - choose(count, n)), 0)  # P(rank i is the best of n)
  return gold @ weights


def curve(quick: bool) -> measure.Case:
  """Best-of-n curves of one proxy at all n."""
  rows, count = (20, 400) if quick else (1000, 12_600)
  proxy, gold = np.random.default_rng(0).normal(
      size=(2, rows, count)).astype(np.float32)
  proxy = np.round(proxy, 3)  # with ties, as of responses that are the same
  ns = np.unique(np.geomspace(1, count, 20).astype(int)).tolist()
  return measure.Case(
      ours=lambda: len(best_of_n.curves(proxy, {'gold': gold}, ns)['gold']),
      peer=lambda: len(numpy_curve(proxy, gold, ns)), unit='prompts/s',
      note=f'vectorised NumPy; {rows} x {count} samples, {len(ns)} values of '
           'n, ties averaged')


def _whole(hidden, unembed, tokens):
  """By logits f32[B, T, V], all of them."""
  logits = jnp.einsum('btd,vd->btv', hidden, unembed,
                      preferred_element_type=jnp.float32)
  return (logprobs.token_logprobs(logits, tokens),
          logprobs.token_entropy(logits, tokens))


def _chunked(hidden, unembed, tokens):
  out = logprobs.from_hidden(hidden, unembed, tokens)
  return out.logprobs, out.entropy


@functools.cache
def _losses(quick: bool):
  """Ours and the plain form compiled, what they take, and which shapes."""
  b, t, d, v = (2, 33, 16, 1024) if quick else (8, 129, 256, 50_257)
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (b, t, d))
  unembed = jax.random.normal(keys[1], (v, d)) * d**-0.5
  tokens = jax.random.randint(keys[2], (b, t), 0, v)

  def program(function):
    def loss(hidden, unembed):
      taken, entropy = function(hidden, unembed, tokens)
      return -jnp.mean(taken) - 0.01 * jnp.mean(entropy)
    return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(
        hidden, unembed).compile()

  return ([program(x) for x in (_chunked, _whole)], (hidden, unembed),
          f'whole logits; [{b}, {t}], {d} features, vocabulary {v}, a loss of '
          'log-probabilities and entropies with its gradient')


def logprobs_time(quick: bool) -> measure.Case:
  programs, args, note = _losses(quick)
  tokens = math.prod(args[0].shape[:2])
  ours, peer = (lambda p=p: jax.block_until_ready(p(*args)) and tokens
                for p in programs)
  return measure.Case(ours=ours, peer=peer, unit='tokens/s', note=note)


def logprobs_memory(quick: bool) -> dict[str, Any]:
  """What the compiled programs ask for beside arguments and results."""
  programs, _, note = _losses(quick)
  ours, peer = (p.memory_analysis().temp_size_in_bytes / 2**20
                for p in programs)
  return {'ours': ours, 'peer': peer, 'unit': 'MiB', 'ratio': peer / ours,
          'cpu_ratio': None, 'note': note}
