"""Programs of Pythia-1.4B's shape, compiled for machines that are not here.

  make test-pods

The compilers for TPU slices and for a node of H100 run without a device. What
they say of memory and of collectives is what a pod would do; nothing is timed.
"""

import dataclasses
import functools
import math
import os
import pathlib
import subprocess
import sys
import time
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental import topologies
import programs as cases
import pytest
import worlds

from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import sharding
from rlhf_jax.studies import estimates
from rlhf_jax.studies import programs

COMPILERS = pathlib.Path(os.environ.get('RLHF_JAX_PODS', '.pods')).absolute()
os.environ['TPU_LIBRARY_PATH'] = str(COMPILERS / 'libtpu' / 'libtpu.so')
# Before jax looks for plugins.
sys.path.insert(0, str(COMPILERS))
HAS_TPU = (COMPILERS / 'libtpu' / 'libtpu.so').exists()
HAS_GPU = (COMPILERS / 'jax_plugins' / 'xla_cuda12').exists()
pytestmark = pytest.mark.skipif(
    not (HAS_TPU or HAS_GPU), reason='compilers are not there: make test-pods')
# 64 prompts of 250 tokens, answered with 230; no parameter is so wide.
PYTHIA = cases.Programs(
    transformer.make_config(
        'gpt_neox', vocab_size=50_304, hidden_size=2048, num_layers=24,
        num_heads=16, dtype='bfloat16', remat='full'),
    prompts=64, samples=1, prompt=250, width=480, new_tokens=230, members=4,
    microbatches=4)
# The sampler's layers are unrolled: as many as a compiler takes in a minute.
SHORT = dataclasses.replace(
    PYTHIA, config=PYTHIA.config.replace(num_layers=4))
H100 = pathlib.Path(__file__).with_name('h100.txt')
# Four members in training are too much for eight times 16 GiB: 16.1 beside the
# 8.4 that they hold.
SHALLOW = dataclasses.replace(
    PYTHIA, config=PYTHIA.config.replace(num_layers=8))
# Machine: GiB of a device, mesh of a policy, mesh of an ensemble.
MACHINES = {
    'v5e:2x4': (16, dict(fsdp=8), dict(member=4, fsdp=2)),
    'v5p:2x2x4': (95, dict(fsdp=16), dict(member=4, fsdp=4)),
    'h100x8': (80, dict(fsdp=8), dict(member=4, data=2))}
ENSEMBLE = ('reward_step', 'scorer')
# What annotates a rollout is made of what the others are.
CASES = [(name, program) for name in MACHINES for program in cases.NAMES
         if program != 'annotators'
         and (HAS_GPU if name.startswith('h100') else HAS_TPU)]
GIB = 2**30


@functools.cache
def devices(name):
  if not name.startswith('h100'):
    return programs.tpu_devices(name)
  return topologies.get_topology_desc(
      'h100', platform='cuda', topology='1x8x1',
      target_config=H100.read_text()).devices


def compiled(name, program):
  """The program for the machine, and what it is called with."""
  gpu = name.startswith('h100')
  shapes = SHORT if program == 'sampler' else PYTHIA
  if (name, program) == ('v5e:2x4', 'reward_step'):
    shapes = SHALLOW
  began = time.process_time()
  axes = MACHINES[name][1 + (program in ENSEMBLE)]
  with (jax.set_mesh(meshes.make(axes, devices(name))),
        programs.quick_compiler()):
    case = getattr(shapes, program)()
    result = programs.lower(case, 'cuda' if gpu else 'tpu').compile(
        {'xla_gpu_autotune_level': 0, 'xla_gpu_enable_triton_gemm': False}
        if gpu else None)
  figures = programs.figures(result)
  print(f'{name} {program}: {figures.held / GIB:.3f} GiB held, '
        f'{figures.beside / GIB:.3f} beside; {figures.collectives}; '
        f'{time.process_time() - began:.0f} CPU s', flush=True)
  return result, case.arguments


class PodsTest(parameterized.TestCase):

  @parameterized.parameters(*CASES)
  def test_fits_and_moves_weights_only(self, name, program):
    result, args = compiled(name, program)
    memory = result.memory_analysis()
    held = memory.argument_size_in_bytes
    self.assertBetween(held, .95 * sharding.device_bytes(args),
                       1.05 * sharding.device_bytes(args))
    self.assertLess(held + memory.temp_size_in_bytes
                    + memory.output_size_in_bytes - memory.alias_size_in_bytes,
                    .92 * MACHINES[name][0] * GIB)
    if program in ('updates', 'reward_step'):  # a state is updated in place
      self.assertGreater(memory.alias_size_in_bytes, .95 * (
          sharding.device_bytes(args[0])))
    if program == 'updates':  # what `--plan` estimates
      config, axes = PYTHIA.config, MACHINES[name][1]
      need = estimates.Estimates(
          meshes.planned(axes, math.prod(axes.values())),
          estimates.Sizes(config.vocab_size, 250, 230))
      gradients = sharding.device_bytes(args[0].params)
      estimate = gradients + need.step(config, PYTHIA.prompts // 4)
      self.assertBetween(
          memory.temp_size_in_bytes, .6 * estimate, 1.6 * estimate)
    widths = {480, 479, 250, 230}  # of rows, prompts and what is sampled
    for (kind, shape), count in programs.collectives(result.as_text()).items():
      activation = len(shape) > 2 and shape[-1] in (2048, 8192) and (
          bool(widths & set(shape[:-1])))
      self.assertFalse(activation, (kind, shape, count))
    if program == 'updates' and name.startswith('h100'):
      self.assertIn('reduce-scatter', {
          kind for kind, _ in programs.collectives(result.as_text())})


@unittest.skipUnless(HAS_TPU, 'libtpu is not there')
class PlanTest(absltest.TestCase):

  def test_compiled_figures_stand_beside_the_plan(self):
    """Of a smoke study; what a step holds is its state, and rows."""
    config = ('experiments/coste2024_reward_model_ensembles/'
              'fig3_best_of_n.py:smoke')
    done = subprocess.run(
        [sys.executable, '-m', 'rlhf_jax.main', f'--config={config}',
         '--plan=v5e:2x4', '--config.mesh.data=1', '--config.mesh.fsdp=8',
         '--config.policy.model.hidden_size=1024',
         '--config.policy.model.intermediate_size=4096',
         '--config.policy.model.num_layers=4',
         '--config.policy.model.num_heads=8'],
        cwd=worlds.ROOT, env=worlds.environment(), capture_output=True,
        text=True, timeout=500)
    self.assertEqual(done.returncode, 0, done.stderr)
    planned, compiled = done.stdout.split('compiled for v5e:2x4 ')
    rows = lambda text: {
        line[:46].partition(' and ')[0].strip(): line[46:].split()
        for line in text.splitlines()
        if line.startswith('seed_')}
    planned, compiled = rows(planned), rows(compiled)
    self.assertIn('seed_0/sft', compiled)
    self.assertContainsSubset(compiled, planned)
    for name, (_, _, flops, *collectives) in compiled.items():
      self.assertGreaterEqual(float(flops), 0, name)
      self.assertTrue(collectives, name)
    trained, optimizer, *_ = map(float, planned['seed_0/sft'])
    self.assertGreater(trained, .01)
    self.assertBetween(float(compiled['seed_0/sft'][0]),
                       .95 * (trained + optimizer),
                       1.05 * (trained + optimizer))


if __name__ == '__main__':
  absltest.main()
