"""Tests of mutants.py and its list; the mutants are run by `make mutants`."""

import ast
import functools
import pathlib
import tempfile
import textwrap

from absl.testing import absltest
from absl.testing import parameterized
import mutants

SOURCE = '''
LIMIT, OTHER = 1, 2


@cached
def twice(x):
  return x + x


class Scale:
  limit = 3

  def __call__(self, x):
    return x + self.limit
'''


class MutantsTest(absltest.TestCase):

  def test_each_is_one_change_that_still_parses(self):
    self.assertEqual(mutants.unresolved(mutants.every()), [])
    tree = functools.cache(lambda path: ast.dump(ast.parse(path.read_text())))
    for mutant in mutants.every():
      path, source = mutants.change(mutant)
      self.assertNotEqual(tree(path), ast.dump(ast.parse(source)), mutant)

  def test_enough_of_them(self):
    every = mutants.every()
    self.assertGreaterEqual(len(every), 400)
    self.assertLen(set(every), len(every))

  def test_each_has_tests(self):
    for module in {mutants.module_of(x.symbol) for x in mutants.every()}:
      self.assertNotEmpty(mutants.tests_of(module), module)
      for path, *_ in mutants.selections(module):
        self.assertTrue((mutants.ROOT / path).exists(), f'{module}: {path}')


class FindTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.package = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory()), 'lib')
    (self.package / 'ops').mkdir(parents=True)
    for name, source in (('one', SOURCE), ('ops/two', SOURCE),
                         ('ops/__init__', ''), ('three', 'def alone(): 1')):
      (self.package / f'{name}.py').write_text(source)

  @parameterized.parameters(
      ('alone', 'three', 1, 1), ('three', 'three', 1, 1),
      ('one', 'one', 1, 14), ('one.LIMIT', 'one', 2, 2),
      ('one.OTHER', 'one', 2, 2), ('two.twice', 'ops/two', 5, 7),
      ('one.Scale', 'one', 10, 14),
      ('two.Scale.__call__', 'ops/two', 13, 14),
      ('ops', 'ops/__init__', 1, 0))
  def test_lines(self, name, module, first, last):
    symbol = mutants.find(name, self.package)
    self.assertEqual(symbol.path, self.package / f'{module}.py')
    self.assertEqual((symbol.start + 1, symbol.end), (first, last))

  @parameterized.parameters(
      ('gone', '', 'gone: there is no such symbol'),
      ('wice', '', 'there is no such symbol'),
      ('twice', '', 'twice is lib.one.twice, lib.ops.two.twice; say which'),
      ('one.Scale.limit', '', 'there is no such symbol'),
      ('one.twice', 'x', "one.twice: 'x' stands 3 times in it"),
      ('one.twice', 'limit', "one.twice: 'limit' stands 0 times in it"))
  def test_what_is_not_there_once(self, name, old, message):
    with self.assertRaisesRegex(mutants.UnresolvedError, message):
      mutants.change(mutants.Mutant(name, old, ''), self.package)

  def test_the_change_stays_in_its_symbol(self):
    path, source = mutants.change(
        mutants.Mutant('one.Scale.__call__', 'x + ', 'x - '), self.package)
    self.assertEqual(path, self.package / 'one.py')
    self.assertEqual(source, SOURCE.replace(
        'x + self.limit', 'x - self.limit'))
    self.assertIn('x + x', source)
    self.assertEqual(path.read_text(), SOURCE)


class ReadTest(parameterized.TestCase):

  def _read(self, text):
    path = pathlib.Path(self.enterContext(
        tempfile.TemporaryDirectory()), 'some.diff')
    path.write_text(textwrap.dedent(text))
    return mutants.read(path)

  def test_paragraphs(self):
    self.assertEqual(self._read('''\
        kl.estimate
        -  a
        -
        -  --b
        +++c

        _shift
        -q
        '''), [('kl.estimate', '  a\n\n  --b', '++c'), ('_shift', 'q', '')])

  @parameterized.parameters(
      'kl', 'kl\n+a', 'kl\n+a\n-b', 'kl\n-a\n+b\n-c', 'kl\n-a\n b')
  def test_paragraphs_that_say_nothing(self, text):
    with self.assertRaisesRegex(ValueError, "some.diff: .* under 'kl'"):
      self._read(text)


class MainTest(absltest.TestCase):

  def test_selections(self):
    self.assertEqual(list(mutants.selections('objectives/ppo')), [
        ('tests/objectives/ppo_test.py',),
        ('tests/contract_test.py', '-k', 'ppo'),
        ('tests/estimators_test.py',)])
    self.assertEqual(list(mutants.selections('studies/run_checks')), [
        ('tests/studies/online_test.py',),
        ('tests/studies/offline_test.py',), ('tests/wiring',)])
    self.assertEqual(list(mutants.selections('runner/run')), [
        ('tests/runner/run_test.py',)])

  def test_words_select_a_file_or_what_a_mutant_has(self):
    wiring = mutants.read(mutants.FAULTS / 'wiring.diff')
    self.assertEqual(mutants.every(['wiring']), wiring)
    self.assertEqual(mutants.every([wiring[0].old]), wiring[:1])

  def test_a_failure_is_what_the_first_test_said(self):
    directory = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    path = directory / 'mutants_try_test.py'
    path.write_text('def test_a(): pass\n\n'
                    'def test_b(): assert 1 == 2, "the\\n  sum"\n\n'
                    'def test_c(): assert False\n')
    failure = mutants.failure((str(path),))
    self.assertEqual(failure.run, (str(path),))
    self.assertRegex(failure.message, 'try_test.py::test_b: .*Error: the sum')
    self.assertIsNone(mutants.failure((str(path), '-k', 'test_a')))
    other = directory / 'mutants_import_test.py'
    other.write_text('import absent')
    self.assertIn("No module named 'absent'",
                  mutants.failure((str(other),)).message)

  def test_no_mutant_has_the_word(self):
    self.assertEqual(mutants.main(['--check', 'no such word']), 2)
    self.assertEqual(mutants.main(['--check', 'objectives/ppo']), 0)


if __name__ == '__main__':
  absltest.main()
