"""Every config of experiments/: it loads, it says enough, its smoke size runs.

A config file that is added is found by itself.
"""

import atexit
import csv
import functools
import importlib.util
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

from experiments import base
from rlhf_jax.studies import offline
from rlhf_jax.studies import online

ROOT = pathlib.Path(__file__).resolve().parents[1]
COSTE = 'coste2024_reward_model_ensembles'
AHMADIAN = 'ahmadian2024_back_to_basics'
ZHU = 'zhu2023_advantage_induced_policy_alignment'
FIGURE_3 = f'experiments/{COSTE}/fig3_best_of_n.py'
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


# Loads and plans every size and every option that a docstring names, and says
# what that imported or started. One process, since imports take longest.
LOAD = """
import importlib.util, json, re, sys, traceback
def load(path):
  spec = importlib.util.spec_from_file_location('loaded', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  out = {'doc': module.__doc__, 'default': module.get_config().size,
         'locked': {}, 'seeds': {}, 'names': {}, 'final': {}}
  sizes = ['smoke', 'laptop', 'full', *re.findall(
      r':((?:smoke|laptop|full),[\\w=.,]*\\w)', module.__doc__)]
  configs = {size: module.get_config(size) for size in sizes}
  out['jax'] = sorted({'jax', 'rlhf_jax'} & set(sys.modules))
  try:
    module.get_config('tiny')
  except ValueError as error:
    out['unknown'] = str(error)
  return out, configs
def plan(out, configs):
  from rlhf_jax import studies
  from jax._src import xla_bridge
  for size, config in configs.items():
    study = studies.get(config.study)
    out['locked'][size] = config.is_locked
    out['seeds'][size] = list(config.seeds)
    out['names'][size] = [s.name for s in study.plan(config.to_dict())]
    out['final'][size] = study.final(config.to_dict())
  out['backends'] = sorted(xla_bridge._backends)
found = {}
for step in ('load', 'plan'):
  for path in sys.argv[1:]:
    try:
      if step == 'load':
        found[path] = load(path)
      elif 'error' not in found[path][0]:
        plan(*found[path])
    except Exception:
      found[path] = {'error': traceback.format_exc()}, None
print(json.dumps({path: out for path, (out, _) in found.items()}))
"""


@functools.cache
def _loaded() -> dict:
  done = subprocess.run(
      [sys.executable, '-c', LOAD, *CONFIGS], cwd=ROOT,
      env=environment(), capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def loaded(config: str) -> dict:
  out = _loaded()[config]
  assert 'error' not in out, out['error']
  return out


# Runs the smoke studies one after the other, each with the stages of those
# before. One process, so that none compiles what another has compiled.
SMOKE = """
import importlib.util, json, pathlib, sys, traceback
from rlhf_jax import errors, studies, study
root, first, *paths = sys.argv[1:]
made, out = [first], {}
for path in paths:
  workdir = pathlib.Path(root, str(len(out)))
  try:
    spec = importlib.util.spec_from_file_location('smoked', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config('smoke').to_dict()
    module = studies.get(config['study'])
    study.run_study(module.plan(config), workdir, reuse=made,
                    config=config | {'inputs': module.inputs(config)})
    out[path] = {'workdir': str(workdir), **study.read_result(
        workdir, module.final(config))}
    made.append(workdir)
  except errors.Interrupted:
    raise
  except Exception:
    out[path] = {'error': traceback.format_exc()}
print(json.dumps(out))
"""


@functools.cache
def _smokes() -> tuple[dict, str]:
  """What became of every smoke study but that of figure 3, and stderr."""
  first, done = smoke()
  assert done.returncode == 0, done.stderr
  root = tempfile.mkdtemp(prefix='rlhf_jax_smokes_')
  atexit.register(shutil.rmtree, root, ignore_errors=True)
  done = subprocess.run(
      [sys.executable, '-c', SMOKE, root, str(first),
       *(path for path in CONFIGS if path != FIGURE_3)],
      cwd=ROOT, env=environment(), capture_output=True, text=True,
      timeout=900)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1]), done.stderr


def finished(config: str) -> tuple[pathlib.Path, pathlib.Path]:
  """The workdir and the figure of a finished smoke study."""
  if config == FIGURE_3:
    workdir, done = smoke()
    assert done.returncode == 0, done.stderr
    return workdir, pathlib.Path(done.stdout.splitlines()[-1])
  out = _smokes()[0][config]
  assert 'error' not in out, out['error']
  return pathlib.Path(out['workdir']), pathlib.Path(out['figure'])


def read(path: pathlib.Path) -> list[dict[str, str]]:
  with open(path, newline='') as stream:
    return list(csv.DictReader(stream))


class ExperimentsTest(parameterized.TestCase):

  def test_they_are_found(self):
    self.assertIn(FIGURE_3, CONFIGS)

  @parameterized.parameters(CONFIGS)
  def test_sizes_load_locked_and_without_jax(self, config):
    out = loaded(config)
    self.assertContainsSubset(SIZES, out['locked'])
    self.assertTrue(all(out['locked'].values()))
    self.assertEqual(out['default'], 'laptop')
    self.assertEqual(out['jax'], [])
    for name in ('tiny', *SIZES):
      self.assertIn(name, out['unknown'])

  @parameterized.parameters(CONFIGS)
  def test_plans_touch_no_device(self, config):
    out = loaded(config)
    self.assertEqual(out['backends'], [])
    for size, names in out['names'].items():
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
    workdir, figure = finished(config)
    self.assertTrue(figure.is_relative_to(workdir.resolve()), figure)
    self.assertEqual(figure.read_bytes()[:8], b'\x89PNG\r\n\x1a\n')
    status = json.loads((workdir / 'status.json').read_text())
    self.assertEqual((status['state'], status['exit_code']), ('complete', 0))
    # What was read from outside is pinned with the config: here, nothing.
    written = json.loads((workdir / 'config.json').read_text())
    self.assertEqual(written['inputs'], {})
    rows = read(figure.with_name('results.csv'))
    self.assertNotEmpty(rows)
    if written['study'] in ('online', 'offline'):  # before, and each step
      module = {'online': online, 'offline': offline}[written['study']]
      self.assertEqual(
          sorted((row['run'], int(row['step'])) for row in rows),
          sorted((name, step)
                 for name, run in module.make_runs(written).items()
                 for step in range(run['num_steps'] + 1)))
    if written['study'] in ('online', 'offline', 'iterated'):
      for row in rows:  # the first policy of every method is the reference
        if row['step'] == '0' and row.get('round', '0') == '0' and (
            not row['run'].startswith('ilql')):  # shifted by its Q values
          self.assertAlmostEqual(float(row['kl_k1']), 0, delta=1e-5)

  def test_smokes_are_quiet(self):
    for stderr in (smoke()[1].stderr, _smokes()[1]):
      self.assertNotIn('Warning', stderr)
      self.assertNotIn('Traceback', stderr)

  def test_smokes_share_their_stages(self):
    """Which a figure of its own would train again without a reason."""
    known = {'None'}  # tasks with a corpus of their own make it once
    for config in CONFIGS:
      if config == FIGURE_3:
        continue
      workdir = finished(config)[0]
      written = json.loads((workdir / 'config.json').read_text())
      corpus = str(written['data']['logged']['task'])
      if corpus in known:
        log = (workdir / 'log.txt').read_text()
        self.assertRegex(log, r'(?m)seed_0/sft +reused from')
        self.assertRegex(log, r'(?m)seed_0/gold +reused from')
      known.add(corpus)


def get_config(config: str, size: str = 'laptop'):
  path = ROOT / 'experiments' / config
  spec = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(size).to_dict()


def policies(config: dict) -> list[dict]:
  """What each run and its reward models are, however they are called."""
  conditions = online.make_conditions(config)
  return [{k: v for k, v in run.items() if k != 'labels'}
          | {'condition': conditions[run['condition']]}
          for run in online.make_runs(config).values()]


class SharedTest(parameterized.TestCase):

  @parameterized.parameters(
      (f'{COSTE}/table6_win_rates.py', f'{COSTE}/fig4_ppo.py'),
      (f'{COSTE}/fig27_untruncated.py', f'{COSTE}/fig6_single_kl_sweep.py'),
      (f'{COSTE}/fig6_single_kl_sweep.py', f'{COSTE}/fig7_kl_sweep.py'),
      (f'{COSTE}/table7_win_rates.py', f'{COSTE}/fig8_model_size.py'),
      (f'{AHMADIAN}/fig4_samples.py', f'{AHMADIAN}/fig3_rloo_raft.py'),
      (f'{AHMADIAN}/table1_win_rates.py', f'{AHMADIAN}/fig2_methods.py'),
      (f'{AHMADIAN}/table2_alignment_tax.py', f'{AHMADIAN}/fig2_methods.py'),
  )
  def test_policies_of_a_figure_are_those_of_another(self, one, other):
    for size in ('laptop', 'full'):
      known = policies(get_config(other, size))
      for policy in policies(get_config(one, size)):
        self.assertIn(policy, known)

  @parameterized.parameters('table2_methods.py', 'table3_win_rates.py')
  def test_offline_policies_are_those_of_figure_2(self, name):
    folder = 'baheti2024_leftover_lunch'
    for size in ('laptop', 'full'):
      one, other = (get_config(f'{folder}/{x}', size)
                    for x in (name, 'fig2_validation_reward.py'))
      known, made = map(offline.make_runs, (other, one))
      self.assertEqual(*map(offline.make_logs, (one, other)))
      for run in known.keys() & made.keys():
        self.assertEqual(made[run], known[run])

  def test_small_kl_coefficients(self):
    """Figure 4 takes from figure 7 what the paper has chosen."""
    known = policies(get_config(f'{COSTE}/fig7_kl_sweep.py'))
    coefs = {}
    for policy in policies(get_config(f'{COSTE}/fig4_ppo.py')):
      noise = policy['condition']['label_noise']
      kind = policy['reward']['aggregate']['kind']
      coefs.setdefault((noise, kind), set()).add(policy['kl']['coef'])
      self.assertEqual(policy in known, noise == 0.25)
    self.assertEqual(coefs.pop((0.25, 'mean')), {0.1})
    self.assertEqual(set.union(*coefs.values()), {0.01})

  @parameterized.parameters(AHMADIAN, ZHU)
  def test_budgets_are_comparable(self, folder):
    """As many responses in a rollout, but where k is what is compared."""
    for path in sorted((ROOT / 'experiments' / folder).glob('*.py')):
      config = get_config(f'{folder}/{path.name}')
      if config['study'] != 'online':
        continue
      drawn = {run['rollout']['batch_size'] * run['rollout']['samples']
               for run in policies(config)}
      wide = path.name in ('fig3_rloo_raft.py', 'fig4_samples.py')
      self.assertEqual(drawn, {64, 128} if wide else {64}, path.name)

  def test_optimizer_steps_are_the_papers(self):
    for config, steps in ((f'{COSTE}/fig4_ppo.py', 3_000),
                          (f'{COSTE}/fig26_long_run.py', 10_000),
                          (f'{ZHU}/fig3_apa_awr_ppo.py', 20_000)):
      for run in policies(get_config(config, 'full')):
        each = (run['updates']['num_epochs'] * run['updates']['repeats']
                * run['updates']['num_minibatches'])
        self.assertAlmostEqual(run['num_steps'] * each, steps, delta=each)

  @parameterized.parameters(
      'fig7_kl_sweep.py', 'fig8_model_size.py', 'fig9_data_size.py',
      'fig11_ensemble_size.py', 'fig12_uncertainty_coef.py')
  def test_a_twin_differs_in_the_noise_alone(self, name):
    noisy = policies(get_config(f'{COSTE}/{name}'))
    twin = policies(get_config(f'{COSTE}/{name}', 'laptop,noise=0'))
    self.assertLen(twin, len(noisy))
    for one, other in zip(twin, noisy):
      self.assertEqual(one['condition']['label_noise'], 0)
      self.assertEqual(other['condition']['label_noise'], 0.25)
      # But for the mean, whose coefficient figure 4 chooses by the noise.
      if one['reward']['aggregate']['kind'] != 'mean':
        self.assertEqual(one['kl'], other['kl'])


class BaseTest(absltest.TestCase):

  def test_options(self):
    choices = dict(noise=(0.25, 0.0), by=(None, 'size', 3))
    self.assertEqual(base.options('full', **choices), ('full', 0.25, None))
    self.assertEqual(base.options('full,by=3', **choices), ('full', 0.25, 3))
    self.assertEqual(base.options('a,by=size,noise=0', **choices),
                     ('a', 0.0, 'size'))
    for argument in ('full,noise=1', 'full,noise', 'full,other=0'):
      with self.assertRaisesRegex(
          ValueError, 'does not exist; there are noise=0.25, noise=0, by=s'):
        base.options(argument, **choices)

  def test_tag(self):
    self.assertEqual([base.tag(x) for x in (0.0, 0.01, 0.1, 1.0, 25.0)],
                     ['0', '001', '01', '1', '25'])


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
    self.check((ROOT / table).parent)

  @parameterized.parameters(f'experiments/{COSTE}/fig4_ppo.py',
                            f'experiments/{AHMADIAN}/fig2_methods.py')
  def test_so_are_those_of_smokes(self, config):
    self.check(finished(config)[1].parent)

  def check(self, folder: pathlib.Path):
    """Recomputes summary.csv from results.csv, seed by seed."""
    summary, rows = (read(folder / f'{name}.csv')
                     for name in ('summary', 'results'))
    for line in summary:
      if 'EOS' in line:
        end, of_seeds = 'final', self.best_of_n(line, rows)
      else:
        end = list(line)[list(line).index('members') + 1]
        end = 'gold' if 'gold' in line else end
        of_seeds = self.policies(line, rows, end)
      checked = {end: [curve[-1] for curve in of_seeds]}
      if end in ('final', 'gold'):  # of which the drop is
        checked['drop'] = [max(curve) - curve[-1] for curve in of_seeds]
      self.assertEqual(int(line['seeds']), len(of_seeds))
      for name, values in checked.items():
        self.assertAlmostEqual(float(line[name]), np.mean(values), places=5)
        if len(values) > 1:
          self.assertAlmostEqual(
              float(line[f'{name}_se']),
              np.std(values, ddof=1) / len(values) ** 0.5, places=5)

  def best_of_n(self, line, rows) -> list[list[float]]:
    """The gold curve of each seed."""
    eos = str(line['EOS'] == 'forced')
    noise = float(line['noise'].rstrip('%')) / 100
    return [[float(r['gold']) for r in sorted(
        (r for r in rows if r['seed'] == seed and r['force_eos'] == eos
         and abs(float(r['label_noise']) - noise) < 1e-6
         and r['method'] == line['method']), key=lambda r: int(r['n']))]
            for seed in sorted({row['seed'] for row in rows})]

  def policies(self, line, rows, column) -> list[list[float]]:
    """The curve of each seed, a mean over members."""
    names = list(line)
    labels = names[1:names.index('seeds')]  # after 'run'
    mine = [r for r in rows if all(r[k] == line[k] for k in labels)]
    self.assertLen({r.get('member') for r in mine}, int(line['members']))
    steps = sorted({int(r['step']) for r in mine})
    return [[np.mean([float(r[column]) for r in mine
                      if (r['seed'], int(r['step'])) == (seed, step)])
             for step in steps] for seed in sorted({r['seed'] for r in mine})]


if __name__ == '__main__':
  absltest.main()
