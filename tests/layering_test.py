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
    'errors', 'types', 'streams', 'parallel', 'ops', 'storage', 'objectives',
    'testing',
    'models', 'policy', 'sampling', 'data', 'rewards', 'annotators',
    'evaluation', 'algorithms', 'sources', 'train', 'runner',
    'reports', 'pipeline', 'stages', 'studies', 'doctor', 'configs', 'commands',
    'main', '__main__')
RANK = {name: i for i, name in enumerate(ORDER)}
# Not that way round either: a loss knows no model, a model no loss.
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
    'runner.run.run_study': 'what a command may be told',
    'sources.online': 'what a rollout is made of',
    'models.transformer.Block.__call__': 'a Linen module',
    'models.transformer.extend': 'what one step of a cache needs',
}
MOST_IN_A_FILE = 350  # lines: near 300
LARGE = {
    'data.formats': 'one function for each prompt format',
    'data.tokenizer': 'one class, what reads it and what it reads',
    'models.families': 'one table, a paragraph for each family',
    'models.transformer': 'one decoder, cached and not',
    'storage.checkpoint': 'one class: what it writes is what it verifies',
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
  """{dotted name below rlhf_jax: source}; packages by their own name."""
  return {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix(
      '.__init__'): path.read_text() for path in sorted(ROOT.rglob('*.py'))}


def _circle(sources):
  """The modules of an import circle, empty without one."""
  def module(target):  # may end in what the module defines
    name = target.removeprefix('rlhf_jax.')
    return name if name in sources else name.rpartition('.')[0]
  graph = {name: {module(target) for target in _imports(source)
                  if target.startswith('rlhf_jax.')}
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
      named = isinstance(child, ast.FunctionDef | ast.ClassDef)
      below = f'{name}.{child.name}' if named else name
      yield from walk(child, below)
      if isinstance(child, ast.FunctionDef):
        doc = child.body[:1] if ast.get_docstring(child) else []
        lines = [x.end_lineno - x.lineno + 1 for x in (child, *doc)]
        a = child.args
        names = [x.arg for x in a.posonlyargs + a.args + a.kwonlyargs]
        yield below, lines[0] - sum(lines[1:]), len(names) - (
            names[:1] in (['self'], ['cls']))
  for module, source in sources.items():
    yield from walk(ast.parse(source), module)


def _over_budget(sources):
  """Names of functions that are too long, and of those that take too much."""
  functions = list(_functions(sources))
  return ([name for name, lines, _ in functions if lines > MOST_LINES],
          [name for name, _, count in functions if count > MOST_ARGUMENTS])


def _experiment_faults(source):
  """What is wrong with the imports of an experiment config, in words.

  It may import what experiments share, but no other config.
  """
  shared = [[path.stem] for path in EXPERIMENTS.glob('*.py')]
  for target in _imports(source):
    parts = target.split('.')
    if (parts[0] == 'ml_collections' or parts[0] in sys.stdlib_module_names
        or target.startswith('rlhf_jax.configs')):
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
    for source in ('import jax', 'from rlhf_jax import train',
                   'from experiments import other',
                   'from experiments.coste2024_reward_model_ensembles import '
                   'fig3_best_of_n'):
      self.assertLen(list(_experiment_faults(source)), 1)

  def test_circles_are_found(self):
    for x, y, package in (
        ('from rlhf_jax.a import y', 'def f():\n  from rlhf_jax.a import x',
         ''),
        ('from rlhf_jax.a.y import f', 'import rlhf_jax.a.x', ''),
        ('from rlhf_jax.a import f', '', 'from rlhf_jax.a import x')):
      sources = {'a': package, 'a.x': x, 'a.y': y, 'a.z': ''}
      self.assertContainsSubset({'a.x'}, _circle(sources))
      self.assertEmpty(_circle({**sources, 'a.x': ''}))

  def test_sound_imports_pass(self):
    for name, source in (
        ('ops', 'from rlhf_jax.ops import masked\nimport jax'),
        ('rewards', 'from rlhf_jax.parallel import sharding'),
        ('main', 'from rlhf_jax.studies import plan')):
      self.assertEmpty(list(_package_faults(name, source)))
    self.assertEmpty(list(_experiment_faults(
        'from rlhf_jax.configs import base\nfrom experiments import coste2024\n'
        'import ml_collections\nimport math')))


class BudgetTest(absltest.TestCase):

  def test_functions(self):
    """Those that are over, no more and no fewer than are listed."""
    sources = {name: source for name, source in _modules().items()
               if name.partition('.')[0] not in BELOW}
    self.assertGreater(len(list(_functions(sources))), 500)
    long, wide = _over_budget(sources)
    self.assertCountEqual(LONG, long)
    self.assertCountEqual(WIDE, wide)

  def test_what_is_over_is_found(self):
    body = ' = 0\n  '.join('x' * (MOST_LINES - 1)) + ' = 0'
    few, many = (', '.join(f'a{i}' for i in range(n))
                 for n in (MOST_ARGUMENTS, MOST_ARGUMENTS + 1))
    for source, long, wide in (
        (f'def f({few}):\n  """Doc.\n\n  Doc."""\n  {body}', [], []),
        (f'def f():\n  {body}\n  x = 0', ['m.f'], []),
        (f'def f(*, {many}): 1', [], ['m.f']),
        (f'class C:\n  def f(self, {few}): 1', [], []),
        (f'class C:\n  def f(self, {many}): 1', [], ['m.C.f']),
        (f'def f():\n  with x:\n    def g({many}): 1', [], ['m.f.g'])):
      self.assertEqual(_over_budget({'m': source}), (long, wide), source)

  def test_rooms(self):
    sources = _modules()
    for name, source in sources.items():
      if name.startswith('stages.'):
        self.assertLessEqual(source.count('\n'), 150, name)
        self.assertIn('\ndef run(context', source, name)
    self.assertCountEqual(
        [name for name, source in sources.items()
         if source.count('\n') > MOST_IN_A_FILE], LARGE)
    root = [path.name for path in ROOT.glob('*.py')]
    self.assertLessEqual(len(root), 11, root)


if __name__ == '__main__':
  absltest.main()
