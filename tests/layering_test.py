"""Imports point one way, and nothing outgrows its budget."""

import ast
import graphlib
import pathlib
import sys

from absl.testing import absltest

import rlhf_jax

# Lowest first: a package, or a module at the root, may import only those that
# stand before it.
ORDER = (
    'errors', 'types', 'streams', 'sharding', 'ops', 'storage', 'objectives',
    'models', 'policy', 'sampling', 'data', 'rewards', 'annotators',
    'evaluation', 'algorithms', 'sources', 'train', 'runner', 'reports',
    'pipeline', 'stages', 'studies', 'export', 'main')
RANK = {name: i for i, name in enumerate(ORDER)}
# They meet in `train`, and nowhere else.
STRANGERS = ('models', 'objectives')
ROOT = pathlib.Path(rlhf_jax.__path__[0])
EXPERIMENTS = ROOT.parent / 'experiments'

MOST_LINES, MOST_ARGUMENTS = 60, 8  # of a function, without its docstring
# Functions with more, each with the reason.
LONG = {
    'sampling.sample': 'the promised surface: one check for each argument',
    'train.make_train_step': 'one closure, read from top to bottom',
}
WIDE = {
    'sampling.sample': 'the promised surface',
    'sampling._sample': 'its jitted body, static arguments by name',
    'transformer.Block.__call__': 'a Linen module',
    'transformer.extend': 'what one step of a cache needs',
}
BELOW = ('ops', 'objectives')  # whose losses have what their equations have


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
    yield f'{name} has no place in the order'
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
      yield f'{name} imports {other}, which has no place in the order'
    elif RANK[other] > RANK[name] or STRANGERS == (name, other):
      yield f'{name} imports {other}'


def _modules():
  """{dotted name below rlhf_jax: source} of all modules."""
  return {'.'.join(path.relative_to(ROOT).with_suffix('').parts):
          path.read_text() for path in sorted(ROOT.rglob('*.py'))}


def _circle(sources):
  """The modules of an import circle, empty without one."""
  graph = {name: {target.removeprefix('rlhf_jax.')
                  for target in _imports(source)} & sources.keys()
           for name, source in sources.items()}
  try:
    list(graphlib.TopologicalSorter(graph).static_order())
  except graphlib.CycleError as error:
    return error.args[1]
  return []


def _functions(sources):
  """(name with its module, lines without docstring, arguments) of each."""
  def walk(node, name):
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.FunctionDef | ast.ClassDef):
        yield from walk(child, f'{name}.{child.name}')
        if isinstance(child, ast.FunctionDef):
          lines = child.end_lineno - child.lineno + 1
          if ast.get_docstring(child):
            doc = child.body[0]
            lines -= doc.end_lineno - doc.lineno + 1
          a = child.args
          yield (f'{name}.{child.name}', lines,
                 len(a.posonlyargs + a.args + a.kwonlyargs)
                 - (bool(a.args) and a.args[0].arg == 'self'))
  for module, source in sources.items():
    yield from walk(ast.parse(source), module.rpartition('.')[2])


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
    for name, source in _modules().items():
      package = name.partition('.')[0]
      if package == '__init__':
        self.assertEmpty(list(_imports(source)), name)
        continue
      self.assertEmpty(list(_package_faults(package, source)), name)

  def test_the_order_is_that_of_the_tree(self):
    names = {name.partition('.')[0] for name in _modules()} - {'__init__'}
    self.assertCountEqual(ORDER, names)

  def test_no_circle(self):
    self.assertEmpty(_circle(_modules()))

  def test_experiments_never_import_jax(self):
    for path in sorted(EXPERIMENTS.rglob('*.py')):
      self.assertEmpty(list(_experiment_faults(path.read_text())), str(path))

  def test_faults_are_found(self):
    for name, source, fault in (
        ('models', 'from rlhf_jax import objectives', 'objectives'),
        ('objectives', 'from rlhf_jax.models import heads', 'models'),
        ('objectives', 'import rlhf_jax.models.heads', 'models'),
        ('ops', 'def f():\n  from rlhf_jax import train', 'train'),
        ('rewards', 'from rlhf_jax.evaluation import texts', 'evaluation'),
        ('policy', 'from rlhf_jax.rewards import models', 'rewards'),
        ('train', 'from . import ops', 'relative'),
        ('train', 'from rlhf_jax import helpers', 'no place'),
        ('helpers', '', 'no place'),
    ):
      faults = list(_package_faults(name, source))
      self.assertLen(faults, 1)
      self.assertIn(fault, faults[0])
    self.assertNotEmpty(_circle({
        'a.x': 'from rlhf_jax.a import y', 'a.z': '',
        'a.y': 'def f():\n  from rlhf_jax.a import x'}))
    for source in ('import jax', 'from rlhf_jax import train',
                   'from experiments import other',
                   'from experiments.coste2024_reward_model_ensembles import '
                   'fig3_best_of_n'):
      self.assertLen(list(_experiment_faults(source)), 1)

  def test_sound_imports_pass(self):
    for name, source in (
        ('ops', 'from rlhf_jax.ops import masked\nimport jax'),
        ('rewards', 'from rlhf_jax import sharding'),
        ('main', 'from rlhf_jax.studies import plan')):
      self.assertEmpty(list(_package_faults(name, source)))
    self.assertEmpty(list(_experiment_faults(
        'from experiments import base\nfrom experiments import coste2024\n'
        'import ml_collections\nimport math')))


class BudgetTest(absltest.TestCase):

  def test_functions(self):
    """Those that are over, no more and no fewer than are listed."""
    sources = {name: source for name, source in _modules().items()
               if name.partition('.')[0] not in BELOW}
    functions = list(_functions(sources))
    self.assertGreater(len(functions), 500)
    self.assertCountEqual(LONG, [
        name for name, lines, _ in functions if lines > MOST_LINES])
    self.assertCountEqual(WIDE, [
        name for name, _, count in functions if count > MOST_ARGUMENTS])

  def test_rooms(self):
    sources = _modules()
    for name, source in sources.items():
      if name.startswith('stages.'):
        self.assertLessEqual(source.count('\n'), 150, name)
        if not name.endswith('__init__'):
          self.assertIn('\ndef run(context', source, name)
    root = [name for name in sources if '.' not in name]
    self.assertLessEqual(len(root), 13, root)


if __name__ == '__main__':
  absltest.main()
