"""The suite itself: what test modules may import, and where they lie."""

import ast
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = ROOT / 'tests'


def imported(source: str) -> set[str]:
  """The modules that a source imports, wherever it does."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = '.' * node.level + (node.module or '')
      names |= {base, *(f'{base}.{alias.name}' for alias in node.names)}
  return names


def of_tests(names: set[str]) -> set[str]:
  return {name for name in names if name.startswith('.') or any(
      part.endswith('_test') for part in name.split('.'))}


class SuiteTest(parameterized.TestCase):

  def test_no_test_module_imports_another(self):
    """What they share stands in modules of its own, such as worlds.py."""
    for path in sorted(TESTS.rglob('*.py')):
      self.assertEmpty(of_tests(imported(path.read_text())), path)

  @parameterized.parameters(
      'import stages_test', 'import a_test as worlds', 'from . import worlds',
      'def f():\n  from tests.stages import gold_test',
      'from tests.gold_test import corpus')
  def test_faults_are_seen(self, source):
    self.assertNotEmpty(of_tests(imported(source)))

  def test_a_folder_is_a_package(self):
    """So that who reads a module finds its tests, and nothing lies alone."""
    own = {'faults', 'goldens', 'peers', 'pods', 'wiring'}
    packages = {path.name for path in (ROOT / 'rlhf_jax').iterdir()
                if (path / '__init__.py').exists()}
    folders = {path.name for path in TESTS.iterdir()
               if any(path.rglob('*.py'))} - own
    self.assertEqual(folders, packages)

  def test_slow_tests_exist(self):
    """A renamed one would be back among the fast ones without a word."""
    names = (TESTS / 'slow.txt').read_text().split()
    self.assertEqual(names, sorted(set(names)))
    for name in names:
      file, *parts = name.split('::')
      nodes = [ast.parse((TESTS / file).read_text())]
      for part in parts:
        nodes = [node for above in nodes for node in above.body
                 if isinstance(node, (ast.ClassDef, ast.FunctionDef))
                 and node.name == part]
        self.assertNotEmpty(nodes, name)


if __name__ == '__main__':
  absltest.main()
