"""Tests of the list in mutants.py; the mutants are run by `make mutants`."""

import ast
import pathlib

from absl.testing import absltest
import mutants

import rlhf_jax

SOURCE = pathlib.Path(rlhf_jax.__path__[0])


class MutantsTest(absltest.TestCase):

  def test_each_is_one_change_that_still_parses(self):
    for path, old, new in mutants.every():
      source = (SOURCE / path).read_text()
      self.assertEqual(source.count(old), 1, f'{path}: {old!r}')
      self.assertNotEqual(ast.dump(ast.parse(source)), ast.dump(
          ast.parse(source.replace(old, new))), f'{path}: {old!r}')

  def test_enough_of_them(self):
    found = mutants.every()
    self.assertGreaterEqual(len(found), 60)
    self.assertLen(set(found), len(found))
    for path in mutants.MUTANTS:
      test = mutants.test_of(path)
      self.assertTrue(pathlib.Path(__file__).with_name(test).exists(), test)


if __name__ == '__main__':
  absltest.main()
