"""Rows whose peer is ourselves at another size: what more of a thing costs."""

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from benchmarks import libraries
from benchmarks import measure
from rlhf_jax import objectives
from rlhf_jax import policy
from rlhf_jax import types
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.studies import programs

DEVICES = 8
_ROOT = pathlib.Path(__file__).resolve().parents[1]


def _step(config, count, width):
  rows = libraries.tokens_of(config, count, width)
  mask = np.broadcast_to(np.arange(width) > 0, rows.shape)
  return libraries.step(
      functools.partial(policy.forward, config), objectives.get('sft'),
      libraries.params_of(config),
      types.Batch(tokens=rows[:, None], mask=mask[:, None]))


def tokens(quick: bool) -> measure.Case:
  """A step of as many tokens in long rows and in short ones."""
  config = libraries.llama(quick)
  short, long = (8, 64) if quick else (128, 1024)
  return measure.Case(
      ours=_step(config, 2, long),
      peer=_step(config, 2 * long // short, short), unit='tokens/s',
      note=f'ourselves at {short} tokens a row, here {long}; the model of sft, '
      f'a step of {2 * long} tokens')


def shape(quick: bool) -> tuple[transformer.Config, int, int]:
  """A model, rows and tokens of a row, of which no part is in a loop.

  Of a loop a compiler counts one turn: there is one layer, and a vocabulary of
  one chunk.
  """
  config = libraries.llama(quick, vocabulary=2048)
  count, width = (8, 16) if quick else (64, 128)
  return dataclasses.replace(config, num_layers=1), count, width


def flops(quick: bool, count: int) -> float:
  """Of one of `count` devices, in a training step, as it is compiled."""
  config, rows, width = shape(quick)
  with jax.set_mesh(meshes.make(devices=jax.devices()[:count])):
    return programs.figures(programs.lower(programs.policy_step(
        config, transformer.abstract(config), None, rows=rows, length=width),
        'cpu').compile()).flops


def devices(quick: bool) -> dict[str, Any]:
  """What one of eight has to calculate, against one alone."""
  code = ('import json; from benchmarks import scaling; print(json.dumps('
          f'[scaling.flops({quick}, n) for n in ({DEVICES}, 1)]))')
  ours, peer = json.loads(subprocess.run(
      [sys.executable, '-c', code], cwd=_ROOT, check=True, text=True,
      stdout=subprocess.PIPE, env=os.environ | {
          'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(DEVICES)}).stdout)
  _, rows, width = shape(quick)
  return {'ours': ours / 1e6, 'peer': peer / 1e6, 'unit': 'MFLOP',
          'ratio': peer / ours, 'cpu_ratio': None,
          'note': f'ourselves on one device; of one of {DEVICES}, as compiled, '
          f'a step of SFT of one layer, {rows} x {width} tokens'}
