"""Every config of experiments/: it loads, it says enough, its smoke size runs.

A config file that is added is found by itself.
"""

import atexit
import csv
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIGURE_3 = 'experiments/coste2024_reward_model_ensembles/fig3_best_of_n.py'
CONFIGS = sorted(str(path.relative_to(ROOT))
                 for path in (ROOT / 'experiments').glob('*/*.py'))
SIZES = ('smoke', 'laptop', 'full')
TABLES = sorted(str(path.relative_to(ROOT)) for path in
                (ROOT / 'experiments').glob('*/results/*/summary.md'))
FIELDS = ('Run', 'Sizes', 'Hardware', 'Measured', 'Differs')


def environment() -> dict[str, str]:
  """One device, so that a run is what a user would see."""
  return os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


def command(config: str, workdir, *arguments: str) -> list[str]:
  return [sys.executable, '-m', 'rlhf_jax.main', f'--config={config}',
          f'--workdir={workdir}', *arguments]


def launch(config: str, workdir, *arguments: str):
  """Runs the front door to its end."""
  return subprocess.run(
      command(config, workdir, *arguments), cwd=ROOT, env=environment(),
      capture_output=True, text=True, timeout=600)


def smoke(config: str = FIGURE_3):
  """The workdir and the process of a finished smoke study, one a session."""
  return _smoke(config)


@functools.cache
def _smoke(config: str):
  workdir = pathlib.Path(tempfile.mkdtemp(prefix='rlhf_jax_smoke_'))
  atexit.register(shutil.rmtree, workdir, ignore_errors=True)
  return workdir, launch(f'{config}:smoke', workdir)


# Loads and plans every size, and says what that imported or started.
LOAD = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location('loaded', sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
out = {'doc': module.__doc__, 'default': module.get_config().size,
       'locked': {}, 'seeds': {}, 'names': {}, 'final': {}}
configs = {size: module.get_config(size) for size in sys.argv[2:]}
out['jax'] = sorted({'jax', 'rlhf_jax'} & set(sys.modules))
from rlhf_jax import studies
for size, config in configs.items():
  study = studies.get(config.study)
  out['locked'][size] = config.is_locked
  out['seeds'][size] = list(config.seeds)
  out['names'][size] = [s.name for s in study.plan(config.to_dict())]
  out['final'][size] = study.final(config.to_dict())
from jax._src import xla_bridge
out['backends'] = sorted(xla_bridge._backends)
try:
  module.get_config('tiny')
except ValueError as error:
  out['unknown'] = str(error)
print(json.dumps(out))
"""


@functools.cache
def loaded(config: str) -> dict:
  done = subprocess.run(
      [sys.executable, '-c', LOAD, config, *SIZES], cwd=ROOT,
      env=environment(), capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


class ExperimentsTest(parameterized.TestCase):

  def test_they_are_found(self):
    self.assertIn(FIGURE_3, CONFIGS)

  @parameterized.parameters(CONFIGS)
  def test_sizes_load_locked_and_without_jax(self, config):
    out = loaded(config)
    self.assertEqual(out['locked'], dict.fromkeys(SIZES, True))
    self.assertEqual(out['default'], 'laptop')
    self.assertEqual(out['jax'], [])
    for name in ('tiny', *SIZES):
      self.assertIn(name, out['unknown'])

  @parameterized.parameters(CONFIGS)
  def test_plans_touch_no_device(self, config):
    out = loaded(config)
    self.assertEqual(out['backends'], [])
    for size in SIZES:
      names = out['names'][size]
      self.assertLen(set(names), len(names))
      self.assertEqual(names[-1], out['final'][size])
      for seed in out['seeds'][size]:
        self.assertTrue(any(n.startswith(f'seed_{seed}/') for n in names))

  @parameterized.parameters(CONFIGS)
  def test_docstring(self, config):
    text = loaded(config)['doc']
    for field in FIELDS:
      self.assertRegex(text, rf'(?m)^{field}: +\S')
    for size in SIZES:
      self.assertIn(f':{size}', text)
    # The command is this file's, and works when pasted.
    run = re.search(r'Run: +((?:.*\\\n)*.*)', text)[1]
    self.assertIn(config, run)
    self.assertIn('--workdir=', run)
    self.assertTrue(run.startswith('python -m rlhf_jax.main '))

  @parameterized.parameters(CONFIGS)
  def test_smoke_ends_in_a_figure(self, config):
    workdir, done = smoke(config)
    self.assertEqual(done.returncode, 0, done.stderr)
    last = pathlib.Path(done.stdout.splitlines()[-1])
    self.assertTrue(last.is_relative_to(workdir.resolve()), last)
    self.assertEqual(last.read_bytes()[:8], b'\x89PNG\r\n\x1a\n')
    self.assertNotIn('Warning', done.stderr)
    self.assertNotIn('Traceback', done.stderr)
    status = json.loads((workdir / 'status.json').read_text())
    self.assertEqual((status['state'], status['exit_code']), ('complete', 0))
    # What was read from outside is pinned with the config: here, nothing.
    written = json.loads((workdir / 'config.json').read_text())
    self.assertEqual(written['inputs'], {})


class DevicesTest(absltest.TestCase):

  def test_two_devices(self):
    """The whole study, whose numbers differ by rounding only."""
    with tempfile.TemporaryDirectory() as workdir:
      two = environment() | {
          'NPROC': '4',  # see conftest
          'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}
      done = subprocess.run(
          command(f'{FIGURE_3}:smoke', workdir,
                  '--config.force_eos=(True,)',
                  '--config.label_noise=(0.25,)'),
          cwd=ROOT, env=two, capture_output=True, text=True, timeout=600)
      self.assertEqual(done.returncode, 0, done.stderr)
      rows = [[r for r in csv.DictReader(
          (pathlib.Path(d) / 'report_seeds_0/results.csv').open())
               if (r['force_eos'], r['label_noise']) == ('True', '0.25')]
              for d in (workdir, smoke()[0])]
    self.assertLen(rows[0], len(rows[1]))
    for a, b in zip(*rows):
      self.assertAlmostEqual(float(a['length']), float(b['length']), delta=1.5)
      self.assertEqual((a['method'], a['n']), (b['method'], b['n']))


class ResultsTest(parameterized.TestCase):
  """No number in a README that a results file does not hold."""

  @parameterized.parameters(TABLES)
  def test_the_readme_shows_the_table(self, table):
    path = ROOT / table
    readme = (path.parents[2] / 'README.md').read_text()
    self.assertIn(path.read_text().strip(), readme)

  def test_the_front_page_quotes_it(self):
    table = (ROOT / FIGURE_3).parent / 'results/fig3_best_of_n/summary.md'
    quoted = [line for line in (ROOT / 'README.md').read_text().splitlines()
              if line.startswith(('| as sampled', '| forced'))]
    self.assertLen(quoted, 4)
    self.assertContainsSubset(quoted, table.read_text().splitlines())

  @parameterized.parameters(TABLES)
  def test_the_table_is_that_of_its_numbers(self, table):
    """Recomputed from results.csv, seed by seed."""
    folder = (ROOT / table).parent
    with open(folder / 'results.csv') as stream:
      rows = list(csv.DictReader(stream))
    with open(folder / 'summary.csv') as stream:
      summary = list(csv.DictReader(stream))
    seeds = sorted({row['seed'] for row in rows})
    for line in summary:
      eos = str(line['EOS'] == 'forced')
      noise = float(line['noise'].rstrip('%')) / 100
      curves = [[float(r['gold']) for r in sorted(
          (r for r in rows if r['seed'] == seed and r['force_eos'] == eos
           and abs(float(r['label_noise']) - noise) < 1e-6
           and r['method'] == line['method']), key=lambda r: int(r['n']))]
                for seed in seeds]
      final = [curve[-1] for curve in curves]
      drop = [max(curve) - curve[-1] for curve in curves]
      self.assertAlmostEqual(float(line['final']), np.mean(final), places=5)
      self.assertAlmostEqual(float(line['drop']), np.mean(drop), places=5)
      if len(seeds) > 1:
        self.assertAlmostEqual(
            float(line['drop_se']),
            np.std(drop, ddof=1) / len(seeds) ** 0.5, places=5)
      self.assertEqual(int(line['seeds']), len(seeds))


if __name__ == '__main__':
  absltest.main()
