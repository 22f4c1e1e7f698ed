"""Imports point one way: a module may import only lower layers."""

import ast
import pathlib
import sys

from absl.testing import absltest

import rlhf_jax

LAYERS = [
    ['types', 'errors'],
    ['ops', 'files', 'programmatic_worker'],
    ['objectives', 'models', 'sharding'],
    ['policy', 'sampling', 'rewards', 'data', 'programmatic', 'workdirs'],
    ['algorithms', 'annotate', 'running', 'sources', 'train', 'evaluate',
     'columns', 'components', 'monitor', 'calibration', 'judging',
     'checkpoint', 'metrics', 'recipes'],
    ['figures', 'study', 'http_judge'],
    ['panels'],
    ['stages'],
    ['studies'],
    ['main', 'export'],
]
RANK = {name: i for i, layer in enumerate(LAYERS) for name in layer}
# Of one layer, but one forward pass, or one check, serves them.
ALLOWED = {('sampling', 'policy'), ('rewards', 'policy'),
           ('rewards', 'data'), ('calibration', 'evaluate'),
           ('monitor', 'evaluate'), ('monitor', 'components'),
           ('monitor', 'columns'), ('columns', 'evaluate'),
           ('annotate', 'running'), ('sources', 'running')}
ROOT = pathlib.Path(rlhf_jax.__path__[0])
EXPERIMENTS = ROOT.parent / 'experiments'


def _imports(source):
  """Dotted names that `source` imports, wherever it does; '.' if relative."""
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = '.' * node.level + (node.module or '')
      yield from (f'{base}.{alias.name}' for alias in node.names)


def _package_faults(name, source):
  """What is wrong with the imports of a module of rlhf_jax, in words."""
  if name not in RANK:
    yield f'{name} has no layer'
    return
  for target in _imports(source):
    parts = target.split('.')
    if target.startswith('.'):
      yield f'{name} has a relative import'
    if parts[0] != 'rlhf_jax':
      continue
    other = parts[1] if len(parts) > 1 else '(the whole package)'
    if other == '__version__':
      continue
    if other not in RANK:
      yield f'{name} imports {other}, which has no layer'
    elif (other != name and RANK[other] >= RANK[name]
          and (name, other) not in ALLOWED):
      yield f'{name} imports {other}'


def _experiment_faults(source):
  """What is wrong with the imports of an experiment config, in words.

  It may import what experiments share, but no other config.
  """
  shared = [[path.stem] for path in EXPERIMENTS.glob('*.py')]
  for target in _imports(source):
    parts = target.split('.')
    if parts[0] in ('ml_collections', 'base') or parts[0] in (
        sys.stdlib_module_names):
      continue
    if parts[0] != 'experiments' or parts[1:2] not in shared:
      yield f'imports {target}'


class LayeringTest(absltest.TestCase):

  def test_imports_point_down(self):
    for path in sorted(ROOT.rglob('*.py')):
      name = path.relative_to(ROOT).parts[0].removesuffix('.py')
      if name == '__init__':
        self.assertEmpty(list(_imports(path.read_text())), str(path))
        continue
      self.assertEmpty(
          list(_package_faults(name, path.read_text())), str(path))

  def test_experiments_never_import_jax(self):
    for path in sorted(EXPERIMENTS.rglob('*.py')):
      self.assertEmpty(list(_experiment_faults(path.read_text())), str(path))

  def test_faults_are_found(self):
    for name, source, fault in (
        ('models', 'from rlhf_jax import objectives', 'objectives'),
        ('objectives', 'from rlhf_jax.models import heads', 'models'),
        ('objectives', 'import rlhf_jax.models.heads', 'models'),
        ('ops', 'def f():\n  from rlhf_jax import train', 'train'),
        ('rewards', 'from rlhf_jax import sampling', 'sampling'),
        ('policy', 'from rlhf_jax import rewards', 'rewards'),
        ('train', 'from . import ops', 'relative'),
        ('train', 'from rlhf_jax import helpers', 'no layer'),
        ('helpers', '', 'no layer'),
    ):
      faults = list(_package_faults(name, source))
      self.assertLen(faults, 1)
      self.assertIn(fault, faults[0])
    for source in ('import jax', 'from rlhf_jax import train',
                   'from experiments import other',
                   'from experiments.coste2024_reward_model_ensembles import '
                   'fig3_best_of_n'):
      self.assertLen(list(_experiment_faults(source)), 1)

  def test_sound_imports_pass(self):
    for name, source in (
        ('ops', 'from rlhf_jax.ops import masked\nimport jax'),
        ('sampling', 'from rlhf_jax import policy'),
        ('main', 'from rlhf_jax import study')):
      self.assertEmpty(list(_package_faults(name, source)))
    self.assertEmpty(list(_experiment_faults(
        'from experiments import base\nfrom experiments import coste2024\n'
        'import ml_collections\nimport math')))


if __name__ == '__main__':
  absltest.main()
