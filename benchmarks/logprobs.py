"""Time and memory of `ops.logprobs.from_hidden` against whole logits.

Run:  python benchmarks/logprobs.py   (below a minute on two cores)

Each line is one shape of a training step on the output layer, value and
gradient of a loss that reads log-probabilities and entropies: by whole logits
[B, T, V], and by chunks of the vocabulary. Both run in turn, in one process;
times are the best of several, memory is what the compiled program asks for
beside its arguments and results.
"""

import time

import jax
import jax.numpy as jnp

from rlhf_jax.ops import logprobs

SHAPES = [  # B, T, D, V
    (16, 129, 64, 512),
    (8, 129, 256, 8192),
    (4, 129, 256, 50257),
    (8, 129, 64, 50257),
]
REPEATS = 3


def _whole(hidden, unembed, tokens):
  logits = jnp.einsum('btd,vd->btv', hidden, unembed,
                      preferred_element_type=jnp.float32)
  return (logprobs.token_logprobs(logits, tokens),
          logprobs.token_entropy(logits, tokens))


def _chunked(hidden, unembed, tokens):
  out = logprobs.from_hidden(hidden, unembed, tokens)
  return out.logprobs, out.entropy


def _compile(fn, hidden, unembed, tokens):
  def loss(hidden, unembed):
    taken, entropy = fn(hidden, unembed, tokens)
    return -jnp.mean(taken) - 0.01 * jnp.mean(entropy)

  step = jax.jit(jax.value_and_grad(loss, (0, 1)))
  return step.lower(hidden, unembed).compile()


def _seconds(program, *args):
  start = time.perf_counter()
  jax.block_until_ready(program(*args))
  return time.perf_counter() - start


def compare(b, t, d, v):
  """((seconds, temporary bytes) of whole logits, the same of chunks)."""
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (b, t, d))
  unembed = jax.random.normal(keys[1], (v, d)) * d**-0.5
  tokens = jax.random.randint(keys[2], (b, t), 0, v)
  programs = [_compile(fn, hidden, unembed, tokens)
              for fn in (_whole, _chunked)]
  for program in programs:  # the first run touches fresh memory
    _seconds(program, hidden, unembed)
  seconds = zip(*[[_seconds(p, hidden, unembed) for p in programs]
                  for _ in range(REPEATS)])
  return [(min(s), p.memory_analysis().temp_size_in_bytes)
          for s, p in zip(seconds, programs)]


def main():
  print(f'{jax.devices()[0].device_kind}, jax {jax.__version__}')
  print('    B     T     D       V |  whole, ms  ratio | whole, MiB  ratio')
  for shape in SHAPES:
    (time_whole, whole), (time_chunked, chunked) = compare(*shape)
    print('{:5d} {:5d} {:5d} {:7d} |'.format(*shape),
          f'{1e3 * time_whole:10.1f} {time_chunked / time_whole:6.2f} |'
          f' {whole / 2**20:10.1f} {chunked / whole:6.3f}', flush=True)


if __name__ == '__main__':
  main()
