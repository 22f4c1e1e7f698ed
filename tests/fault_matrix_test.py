"""The fault matrix names tests that there are, and counts what they say."""

import ast
import functools
import types

from absl.testing import absltest
import fault_matrix


@functools.cache
def names(path) -> tuple[str, ...]:
  """The tests of a file, as the matrix names them."""
  out = []
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef):
      out.append(node.name)
    elif isinstance(node, ast.ClassDef):
      out += [f'{node.name}::{child.name}' for child in node.body
              if isinstance(child, ast.FunctionDef)]
  return tuple(name for name in out
               if name.rpartition('::')[2].startswith('test_'))


def report(nodeid, when='call', outcome='passed', told=0, reason=None):
  return types.SimpleNamespace(
      nodeid=f'tests/{nodeid}', when=when, duration=.5, longrepr=reason,
      failed=outcome == 'failed', skipped=outcome == 'skipped',
      user_properties=[(fault_matrix.TRIALS, told)])


class MatrixTest(absltest.TestCase):

  def test_every_row_is_there(self):
    self.assertEqual(list(fault_matrix.ROWS),
                     [*(f'F{i}' for i in range(1, 29)), 'C1'])
    for key, row in fault_matrix.ROWS.items():
      self.assertTrue(row.tests or row.lacking, key)

  def test_every_beginning_is_that_of_a_test(self):
    for key, row in fault_matrix.ROWS.items():
      for test in row.tests:
        name, _, beginning = test.partition('::')
        self.assertTrue(any(
            one.startswith(beginning)
            for one in names(fault_matrix.TESTS / name)), (key, test))

  def test_counts(self):
    recorder = fault_matrix.Recorder()
    sweep = 'storage/checkpoint_test.py::test_damage_is_never'
    for one in (report(sweep, 'setup'), report(sweep, told=80),
                report(sweep, 'teardown', told=80),
                report('runner/trust_test.py::test_redo', outcome='failed'),
                report('main_test.py::of_no_row', outcome='failed'),
                report('runner/trust_test.py::test_redo', 'setup', 'skipped',
                       reason=('x.py', 3, 'Skipped: no such machine'))):
      recorder.pytest_runtest_logreport(one)
    lines = recorder.table().splitlines()
    self.assertLen(lines, 2 + len(fault_matrix.ROWS))
    (line,) = [line for line in lines if line.startswith('| F6 |')]
    self.assertEqual(
        line, '| F6 | damaged file | 81 | 1 | 1 | 2.5 | no such machine |')


if __name__ == '__main__':
  absltest.main()
