"""What one GPU gives: its limits, a train step, decoding, an RLOO step.

Run:  python benchmarks/gpu.py [--out=FILE.json]   (8 minutes at most)
      python benchmarks/gpu.py --tiny              (a CPU, to see that it runs)

A row is a line of JSON. `mfu` is the share of the products' rate that the card
is sold with (an H100's, unless --peak), `mfu_measured` that of a large matrix
product on this card; `bandwidth` and `bandwidth_measured` likewise, of the
bytes that a token of decoding must read. Aim: .45 and .60. The last row is a
smoke study on this device against the same on the CPU.

Not yet run on a GPU.
"""

import argparse
import csv
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault('XLA_PYTHON_CLIENT_MEM_FRACTION', '.9')

import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax import algorithms
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import sampling
from rlhf_jax import sources
from rlhf_jax import train
from rlhf_jax import types
from rlhf_jax.annotators import chain as chain_lib
from rlhf_jax.annotators import from_models
from rlhf_jax.models import transformer
from rlhf_jax.rewards import models as reward_models

# Pythia: layers, features, heads, vocabulary.
SHAPES = {'410m': (24, 1024, 16, 50_304), '1.4b': (24, 2048, 16, 50_304),
          'tiny': (2, 64, 2, 512)}
STUDY = 'experiments/coste2024_reward_model_ensembles/fig3_best_of_n.py:smoke'
ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass
class Bench:
  """Rows so far, and what the card can do."""

  peak: float  # FLOP/s
  bandwidth: float  # B/s
  budget: float  # seconds after which no further row begins
  flops: float = 1.  # measured
  bytes: float = 1.
  start: float = dataclasses.field(default_factory=time.time)
  rows: list = dataclasses.field(default_factory=list)

  def note(self, name: str, spent: list[float], **more):
    row = {'name': name, 'ms_min': 1e3 * min(spent),
           'ms_median': 1e3 * statistics.median(spent),
           'ms_max': 1e3 * max(spent), **more}
    self.rows.append(row)
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v
                      for k, v in row.items()}), flush=True)

  def attempt(self, function, *args):
    name = ' '.join(map(str, (function.__name__, *args)))
    if time.time() - self.start > self.budget:
      print(f'{name}: left out, {self.budget:.0f} s are over', flush=True)
      return
    try:
      function(self, name, *args)
    except Exception as error:  # out of memory, no cuDNN: others still count
      print(f'{name}: {type(error).__name__}: {str(error)[:200]}', flush=True)
    jax.clear_caches()


def config(name, remat='none', attention=None):
  layers, width, heads, vocabulary = SHAPES[name]
  return transformer.make_config(
      'gpt_neox', vocab_size=vocabulary, hidden_size=width, num_layers=layers,
      num_heads=heads, dtype='bfloat16', remat=remat, attention=attention)


def seconds(function, repeats=5):
  """Times of calls after one to compile."""
  jax.block_until_ready(function())
  spent = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(function())
    spent.append(time.perf_counter() - began)
  return spent


def fresh(shape):
  return jax.jit(functools.partial(transformer.init, shape))(jax.random.key(0))


def tokens(shape, *size):
  return np.random.default_rng(0).integers(
      4, shape.vocab_size - 1, size).astype(np.int32)


def products(params):
  """Numbers in the matrices that a token goes through."""
  return sum(x.size for x in jax.tree.leaves(params)) - params['embed'].size


def limits(bench, name, n):
  x = jnp.ones((n, n), jnp.bfloat16)
  product = jax.jit(lambda x: jax.lax.fori_loop(
      0, 8, lambda _, y: (y @ x) * jnp.bfloat16(1 / n), x))
  spent = seconds(lambda: product(x))
  bench.flops = 16 * n**3 / min(spent)
  bench.note(f'{name}: product', spent, tflops=bench.flops / 1e12)
  big = jnp.ones(n * n * 16, jnp.float32)
  copy = jax.jit(lambda x: x + 1)
  spent = seconds(lambda: copy(big))
  bench.bytes = 8 * big.size / min(spent)
  bench.note(f'{name}: copy', spent, gb_s=bench.bytes / 1e9)


def sft(bench, name, size, batch, width, remat, attention):
  """A step as the stage `sft` makes it: float32 parameters, AdamW."""
  shape = config(size, remat, attention)
  params = fresh(shape)
  numbers = products(params)
  tx = train.optimizer(learning_rate=1e-5, num_steps=100)
  step = jax.jit(train.make_train_step(
      functools.partial(policy.forward, shape), objectives.get('sft'), tx),
                 donate_argnums=0)
  rows = tokens(shape, batch, 1, width)
  data = types.Batch(tokens=rows, mask=np.ones(rows.shape, bool))
  state = [train.place_state(params, tx, jax.random.key(0))]
  del params

  def call():
    state[0], metrics = step(state[0], data)
    return metrics

  spent = seconds(call)
  work = batch * width * (6 * numbers  # the causal half of attention
                          + 6 * shape.num_layers * shape.hidden_size * width)
  rate = work / statistics.median(spent)
  bench.note(name, spent, tokens_s=batch * width / statistics.median(spent),
             mfu=rate / bench.peak, mfu_measured=rate / bench.flops)


def decode(bench, name, size, batch, prompt, new):
  shape = config(size)
  params = transformer.frozen(shape, fresh(shape))
  rows, lengths = tokens(shape, batch, prompt), np.full(batch, prompt, np.int32)
  draw = lambda n: lambda: sampling.sample(
      shape, params, rows, lengths, jax.random.key(0), num_samples=1,
      max_new_tokens=n, eos_id=shape.vocab_size - 1, pad_id=0).tokens
  spent, short = seconds(draw(new), 3), seconds(draw(new // 4), 3)
  each = (statistics.median(spent) - statistics.median(short)) / (
      new - new // 4)  # without the prompt
  cache = 2 * shape.num_layers * batch * (prompt + new) * shape.hidden_size
  read = 2 * (products(params) + cache)
  bench.note(name, spent, tokens_s=batch * new / statistics.median(spent),
             step_ms=1e3 * each, bandwidth=read / each / bench.bandwidth,
             bandwidth_measured=read / each / bench.bytes)


def rloo(bench, name, size, prompts, k, width, new):
  """Sample, score and read the reference, update: the parts of a step."""
  shape = config(size, 'full')
  row = algorithms.ALGORITHMS['rloo']
  params = fresh(shape)
  members = reward_models.init_members(
      shape, jax.random.split(jax.random.key(1), 1), trunk=params)
  frozen = types.Frozen(
      reference=transformer.frozen(shape, params),
      reward=transformer.frozen(shape, members))
  tx = train.optimizer(learning_rate=1e-6, num_steps=100)
  annotated = jax.jit(sources.rollout(chain_lib.chain(
      [dict(node) for node in row.annotators], {
          'scores': lambda batch, state, frozen, **kwargs: from_models.scores(
              batch, shape, frozen.reward, **kwargs),
          'ref_logprobs': lambda batch, state, frozen: (
              from_models.ref_logprobs(batch, shape, frozen.reference))})))
  updates = jax.jit(train.make_updates(train.make_train_step(
      functools.partial(policy.forward, shape), row.bind(), tx,
      num_microbatches=min(4, prompts))), donate_argnums=0)
  state = [train.place_state(params, tx, jax.random.key(0)).replace(
      statistics={})]
  rows, lengths = tokens(shape, prompts, width), np.full(
      prompts, width, np.int32)
  draw = lambda: sampling.sample(
      shape, state[0].params, rows, lengths, jax.random.key(2), num_samples=k,
      max_new_tokens=new, eos_id=shape.vocab_size - 1, pad_id=0)
  batch = draw()
  rollout = annotated(batch, state[0], frozen)

  def update():
    state[0], metrics = updates(state[0], rollout)
    return metrics

  parts = {'sample': seconds(draw, 3),
           'annotate': seconds(lambda: annotated(batch, state[0], frozen), 3),
           'update': seconds(update, 3)}
  total = [sum(x) for x in zip(*parts.values())]
  bench.note(name, total, tokens_s=prompts * k * new / statistics.median(total),
             **{f'{part}_ms': 1e3 * statistics.median(x)
                for part, x in parts.items()})


def parity(bench, name):
  """The largest difference of a column of a smoke study from the CPU's."""
  tables, spent = [], []
  for platforms in (jax.default_backend(), 'cpu'):
    with tempfile.TemporaryDirectory() as workdir:
      began = time.perf_counter()
      subprocess.run(
          [sys.executable, '-m', 'rlhf_jax.main', f'--config={STUDY}',
           f'--workdir={workdir}'], cwd=ROOT, check=True,
          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
          env=os.environ | {'JAX_PLATFORMS': platforms,
                            'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'})
      spent.append(time.perf_counter() - began)
      path = pathlib.Path(workdir, 'report_seeds_0', 'results.csv')
      with open(path, newline='') as stream:
        tables.append(list(csv.DictReader(stream)))
  worst = {}
  for one, other in zip(*tables, strict=True):
    for column in ('proxy', 'gold', 'length'):
      far = abs(float(one[column]) - float(other[column]))
      worst[column] = max(far, worst.get(column, 0.))
  bench.note(name, spent, **{f'{k}_apart': v for k, v in worst.items()})


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--tiny', action='store_true')
  parser.add_argument('--peak', type=float, default=989e12, help='FLOP/s')
  parser.add_argument('--bandwidth', type=float, default=3.35e12, help='B/s')
  parser.add_argument('--budget', type=float, default=380,
                      help='seconds after which no further row begins')
  parser.add_argument('--out', type=pathlib.Path)
  flags = parser.parse_args()
  bench = Bench(flags.peak, flags.bandwidth, flags.budget)
  print(jax.devices()[0].device_kind, jax.__version__, flush=True)
  bench.attempt(limits, 256 if flags.tiny else 8192)
  for case in (
      [(sft, 'tiny', 4, 64, 'full', None), (decode, 'tiny', 4, 16, 16),
       (rloo, 'tiny', 4, 2, 16, 8)] if flags.tiny else
      [(sft, '410m', 8, 1024, 'none', None),
       (sft, '410m', 16, 1024, 'full', 'cudnn'),
       (decode, '410m', 64, 128, 128), (rloo, '410m', 32, 4, 128, 128),
       (sft, '1.4b', 8, 1024, 'full', None),
       (sft, '1.4b', 16, 1024, 'full', 'cudnn'),
       (decode, '1.4b', 64, 128, 128)]):
    bench.attempt(*case)
  bench.attempt(parity)
  if flags.out:
    flags.out.write_text(json.dumps(bench.rows, indent=1) + '\n')


if __name__ == '__main__':
  main()
