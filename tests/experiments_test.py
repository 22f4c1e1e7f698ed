"""Every config of experiments/: it loads, it says enough, it is planned.

A config file that is added is found by itself. A smoke study is run for each
distinct kind of study, of data and of figure; of the others, every size and
every option is planned.
"""

import functools
import json
import pathlib
import re
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import worlds

from rlhf_jax.configs import base
from rlhf_jax.storage import files
from rlhf_jax.studies import nodes

CONFIGS = sorted(str(path.relative_to(worlds.ROOT))
                 for path in (worlds.ROOT / 'experiments').glob('*/*.py'))
SIZES = ('smoke', 'laptop', 'full')
COSTE, AHMADIAN, BAHETI, ZHU = (
    worlds.COSTE, worlds.AHMADIAN, worlds.BAHETI, worlds.ZHU)
FIELDS = ('Run', 'Sizes', 'Hardware', 'Measured', 'Differs')


# Loads and plans every size and every option that a docstring names, and says
# what that imported or started. One process, since imports take longest.
LOAD = """
import importlib.util, json, re, sys, traceback
def load(path):
  spec = importlib.util.spec_from_file_location('loaded', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  out = {'doc': module.__doc__, 'default': module.get_config().size,
         'locked': {}, 'seeds': {}, 'names': {}, 'final': {}, 'inputs': {}}
  sizes = ['smoke', 'laptop', 'full', *re.findall(
      r':((?:smoke|laptop|full),[\\w=.,]*\\w)', module.__doc__)]
  configs = {size: module.get_config(size) for size in sizes}
  out['jax'] = sorted(
      name for name in sys.modules if name.partition('.')[0] == 'jax'
      or name.startswith('rlhf_jax.')
      and not name.startswith('rlhf_jax.configs'))
  try:
    module.get_config('tiny')
  except ValueError as error:
    out['unknown'] = str(error)
  return out, configs
measured = {}
def plan(out, configs):
  from rlhf_jax.studies import memory, plan
  from jax._src import xla_bridge
  for size, config in configs.items():
    out['locked'][size] = config.is_locked
    out['seeds'][size] = list(config.seeds)
    config = config.to_dict()
    log = config['data']['logged']  # whose texts of a grammar take longest
    log['num_rows'] = log['num_rows'] and min(log['num_rows'], 2_000)
    stages = plan.plan(config)
    out['names'][size] = [stage.name for stage in stages]
    out['final'][size] = plan.final(config)
    out['inputs'][size] = plan.inputs(config, stages)
    if size == 'full' and config['study'] not in measured:  # one of each kind
      first = f'seed_{config["seeds"][0]}/'
      measured[config['study']] = out['memory'] = {
          use.stage: use.peak for use in memory.uses(
              config, [s for s in stages if s.name.startswith(first)], 8)}
  out['backends'] = sorted(xla_bridge._backends)
outs = {}
task = lambda path: str(outs[path][1] and (
    outs[path][1]['smoke'].data.logged.task))
for step in ('load', 'plan'):
  # One task after the other, since only the last logs are kept.
  paths = sys.argv[1:] if step == 'load' else sorted(outs, key=task)
  for path in paths:
    try:
      if step == 'load':
        outs[path] = load(path)
      elif 'error' not in outs[path][0]:
        plan(*outs[path])
    except Exception:
      outs[path] = {'error': traceback.format_exc()}, None
print(json.dumps({path: out for path, (out, _) in outs.items()}))
"""


@functools.cache
def _loaded() -> dict:
  done = subprocess.run(
      [sys.executable, '-c', LOAD, *CONFIGS], cwd=worlds.ROOT,
      env=worlds.environment(), capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def loaded(config: str) -> dict:
  out = _loaded()[config]
  assert 'error' not in out, out['error']
  return out


class ExperimentsTest(parameterized.TestCase):

  def test_they_are_found(self):
    self.assertContainsSubset(worlds.SMOKES, CONFIGS)

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
    # What is read from outside is pinned with the config: here, nothing.
    self.assertEqual(out['inputs'], {size: {} for size in out['names']})
    for size, names in out['names'].items():
      self.assertLen(set(names), len(names))
      self.assertEqual(names[-1], out['final'][size])
      for seed in out['seeds'][size]:
        self.assertTrue(any(n.startswith(f'seed_{seed}/') for n in names))

  def test_memory(self):
    """Of every kind of study, at full size, over eight devices."""
    measured = [out['memory'] for out in _loaded().values() if 'memory' in out]
    self.assertLen(measured, 5)
    for peaks in measured:
      for stage, peak in peaks.items():
        if stage.endswith('/best_of_n'):
          continue  # it reads and writes files
        self.assertBetween(peak, 2**20, 73 * 2**30, stage)  # of an H100's 80

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



def kinds(config: dict) -> set[tuple[str, str]]:
  """What of a config takes a way of its own through the code."""
  figure = config.get('figure', {'kind': 'best_of_n'})['kind']
  ways = {('study', config['study']), ('figure', figure)}
  if config['study'] == 'offline':
    for log in nodes.logs(config).values():
      ways |= {('log', log['source'])} | {
          ('component', node['kind']) for node in log['components'].values()}
  if config['study'] in ('online', 'offline') and (
      config['judge']['against'] is not None):
    ways.add(('judge', config['judge']['judge']['kind']))
  return ways


class SmokesTest(parameterized.TestCase):

  def test_every_kind_has_one(self):
    """So that a config of another kind is not left out."""
    of_smokes = set().union(*(kinds(worlds.get_config(config, 'smoke'))
                              for config in worlds.SMOKES))
    for config in CONFIGS:
      self.assertContainsSubset(
          kinds(worlds.get_config(config, 'smoke')), of_smokes, config)

  @parameterized.parameters(*worlds.SMOKES)
  def test_it_ends_in_a_figure(self, config):
    workdir, done = worlds.smoke(config)
    figure = pathlib.Path(done['stdout'].splitlines()[-1])
    self.assertTrue(figure.is_relative_to(workdir.resolve()), figure)
    self.assertEqual(figure.read_bytes()[:8], b'\x89PNG\r\n\x1a\n')
    status = files.read_json(workdir / 'status.json')
    self.assertEqual((status['state'], status['exit_code']), ('complete', 0))
    written = files.read_json(workdir / 'config.json')
    rows = worlds.rows(figure.with_name('results.csv'))
    self.assertNotEmpty(rows)
    runs = {'online': nodes.online_runs, 'offline': nodes.offline_runs}.get(
        written['study'])
    if runs:  # before, and each step
      self.assertEqual(
          sorted((row['run'], int(row['step'])) for row in rows),
          sorted((name, step) for name, run in runs(written).items()
                 for step in range(run['num_steps'] + 1)))
    if written['study'] in ('online', 'offline', 'iterated'):
      for row in rows:  # the first policy of every method is the reference
        if row['step'] == '0' and row.get('round', '0') == '0' and (
            not row['run'].startswith('ilql')):  # shifted by its Q values
          self.assertAlmostEqual(float(row['kl_k1']), 0, delta=1e-5)

  @parameterized.parameters(*worlds.SMOKES)
  def test_it_is_quiet(self, config):
    stderr = worlds.smoke(config)[1]['stderr']
    self.assertNotIn('Warning', stderr)
    self.assertNotIn('Traceback', stderr)

  @parameterized.parameters(worlds.FIGURE_3, f'{COSTE}/fig4_ppo.py')
  def test_it_compiles_few_programs(self, config):
    """Each costs a twentieth of a second, however small, cached or not."""
    names = [line['name'] for line in files.read_jsonl(
        worlds.smoke(config)[0].with_name('programs.jsonl'))]
    self.assertBetween(len(names), 3, 40, str(sorted(names)))

  @parameterized.parameters(
      *(config for config in worlds.SMOKES
        if worlds.REUSED.get(config, (worlds.FIGURE_3,))))
  def test_they_share_their_stages(self, config):
    """Which a figure of its own would train again without a reason."""
    log = (worlds.smoke(config)[0] / 'log.txt').read_text()
    self.assertRegex(log, r'(?m)seed_0/sft +reused from')
    self.assertRegex(log, r'(?m)seed_0/gold +reused from')

  @parameterized.parameters(
      (f'{COSTE}/table6_win_rates.py', '.*'),
      (f'{AHMADIAN}/fig2_methods.py', 'rloo_2'),
      (f'{AHMADIAN}/table1_win_rates.py', '.*'),
      (f'{BAHETI}/table2_methods.py', 'a_lol|nll'))
  def test_a_figure_takes_over_the_policies_of_another(self, config, runs):
    log = (worlds.smoke(config)[0] / 'log.txt').read_text()
    policies = re.findall(
        r'(?m)seed_0/policies/(\w+) +(reused from|\d)', log)
    self.assertNotEmpty(policies)
    for run, how in policies:
      self.assertEqual(how == 'reused from', bool(re.fullmatch(runs, run)),
                       run)

  @parameterized.parameters(*worlds.EIGHT)
  def test_eight_devices(self, config):
    """The whole study, whose numbers differ by rounding only."""
    names = ('seed', 'force_eos', 'label_noise', 'method', 'n', 'run', 'step')
    eight, one = ({
        tuple(row.get(name) for name in names): row for row in worlds.rows(
            worlds.smoke(config, count)[0] / 'report_seeds_0/results.csv')}
                  for count in (8, 1))
    self.assertEqual(eight.keys(), one.keys())
    for key, row in one.items():
      for name, value in row.items():
        if name in ('time', *names):
          continue
        try:
          np.testing.assert_allclose(
              float(eight[key][name]), float(value), rtol=1e-3, atol=1e-4,
              err_msg=f'{name} of {key}')
        except ValueError:  # a text
          self.assertEqual(eight[key][name], value, f'{name} of {key}')


def policies(config: dict) -> list[dict]:
  """What each run and its reward models are, however they are called."""
  conditions = nodes.conditions(config)
  return [{k: v for k, v in run.items() if k != 'labels'}
          | {'condition': conditions[run['condition']]}
          for run in nodes.online_runs(config).values()]


def aggregate(policy: dict) -> str:
  return policy['reward']['components']['proxy']['aggregate']['kind']


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
      others = policies(worlds.get_config(other, size))
      for policy in policies(worlds.get_config(one, size)):
        self.assertIn(policy, others)

  @parameterized.parameters('table2_methods.py', 'table3_win_rates.py')
  def test_offline_policies_are_those_of_figure_2(self, name):
    for size in ('laptop', 'full'):
      one, other = (worlds.get_config(f'{BAHETI}/{x}', size)
                    for x in (name, 'fig2_validation_reward.py'))
      self.assertEqual(*map(nodes.logs, (one, other)))
      here, there = map(nodes.offline_runs, (one, other))
      shared = here.keys() & there.keys()
      self.assertNotEmpty(shared)
      for run in shared:
        self.assertEqual(here[run], there[run])

  def test_small_kl_coefficients(self):
    """Figure 4 takes from figure 7 what the paper has chosen."""
    swept = policies(worlds.get_config(f'{COSTE}/fig7_kl_sweep.py'))
    coefs = {}
    for policy in policies(worlds.get_config(f'{COSTE}/fig4_ppo.py')):
      noise = policy['condition']['label_noise']
      kind = aggregate(policy)
      coefs.setdefault((noise, kind), set()).add(policy['kl']['coef'])
      self.assertEqual(policy in swept, noise == 0.25)
    self.assertEqual(coefs.pop((0.25, 'mean')), {0.1})
    self.assertEqual(set.union(*coefs.values()), {0.01})

  @parameterized.parameters(AHMADIAN, ZHU)
  def test_budgets_are_comparable(self, folder):
    """As many responses in a rollout, but where k is what is compared."""
    for path in sorted((worlds.ROOT / folder).glob('*.py')):
      config = worlds.get_config(f'{folder}/{path.name}')
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
      for run in policies(worlds.get_config(config, 'full')):
        each = (run['updates']['num_epochs'] * run['updates']['repeats']
                * run['updates']['num_minibatches'])
        self.assertAlmostEqual(run['num_steps'] * each, steps, delta=each)

  @parameterized.parameters(
      'fig7_kl_sweep.py', 'fig8_model_size.py', 'fig9_data_size.py',
      'fig11_ensemble_size.py', 'fig12_uncertainty_coef.py')
  def test_a_twin_differs_in_the_noise_alone(self, name):
    noisy = policies(worlds.get_config(f'{COSTE}/{name}'))
    twin = policies(worlds.get_config(f'{COSTE}/{name}', 'laptop,noise=0'))
    self.assertLen(twin, len(noisy))
    for one, other in zip(twin, noisy):
      self.assertEqual(one['condition']['label_noise'], 0)
      self.assertEqual(other['condition']['label_noise'], 0.25)
      # But for the mean, whose coefficient figure 4 chooses by the noise.
      if aggregate(one) != 'mean':
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


if __name__ == '__main__':
  absltest.main()
