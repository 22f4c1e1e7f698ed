"""Tests for rlhf_jax.reports.pages."""

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.reports import pages

BEGIN, END = '<!-- begin of x y -->\n', '<!-- end of x y -->\n'


class PagesTest(parameterized.TestCase):

  def test_only_what_is_between_changes(self):
    path = worlds.folder() / 'page.md'
    path.write_text(f'a\n{BEGIN}old\nolder\n{END}b\n')
    pages.replace(path, 'x y', 'new\n')
    self.assertEqual(path.read_text(), f'a\n{BEGIN}new\n{END}b\n')
    pages.replace(path, 'x y', 'new\n')
    self.assertEqual(path.read_text(), f'a\n{BEGIN}new\n{END}b\n')

  @parameterized.parameters(
      'a\n', f'a\n{BEGIN}', f'{END}{BEGIN}', f'{BEGIN}{END}{BEGIN}',
      f'{BEGIN}{END}{END}', '<!-- begin of x -->\n<!-- end of x -->\n')
  def test_marks_that_are_not_there(self, text):
    path = worlds.folder() / 'page.md'
    path.write_text(text)
    with self.assertRaisesRegex(errors.DataError, 'begin of x y.* end of x y'):
      pages.replace(path, 'x y', 'new\n')
    self.assertEqual(path.read_text(), text)


if __name__ == '__main__':
  absltest.main()
