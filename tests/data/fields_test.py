"""Tests for rlhf_jax.data.fields."""

import math

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax.data import fields
from rlhf_jax.data import tables

ENTRY = {'text': ' a ', 'blank': ' ', 'null': None, 'half': 'x\ud800', 'one': 1,
         'yes': True, 'spelled': '-2.5', 'list': ['a', 'b'], 'mixed': [1, 'b']}


class FieldsTest(parameterized.TestCase):

  @parameterized.parameters(
      (fields.text, 'text', ' a '), (fields.text, 'blank', ' '),
      (fields.nullable, 'null', ''), (fields.optional, 'absent', ''),
      (fields.optional, 'null', ''), (fields.filled, 'text', ' a '),
      (fields.texts, 'list', ['a', 'b']), (fields.number, 'one', 1.),
      (fields.number, 'spelled', -2.5), (fields.flag, 'yes', True),
      (fields.flag, 'one', True))
  def test_sound(self, read, name, want):
    self.assertEqual(read(ENTRY, name), want)
    self.assertIs(type(read(ENTRY, name)), type(want))

  @parameterized.parameters(
      (fields.text, 'absent', 'is missing'),
      (fields.text, 'one', 'must be a string, got int'),
      (fields.text, 'null', 'must be a string, got NoneType'),
      (fields.text, 'half', 'has a lone surrogate'),
      (fields.optional, 'half', 'has a lone surrogate'),
      (fields.optional, 'one', 'must be a string, got int'),
      (fields.filled, 'blank', 'is blank'),
      (fields.texts, 'mixed', 'must be a list of strings, got int in it'),
      (fields.texts, 'text', 'must be a list, got str'),
      (fields.number, 'yes', 'must be a number, got True'),
      (fields.number, 'text', "must be a number, got ' a '"),
      (fields.number, 'null', 'must be a number, got None'),
      (fields.flag, 'text', 'must be true or false, got str'))
  def test_bad(self, read, name, reason):
    with self.assertRaisesRegex(
        tables.BadRowError, f'^field {name!r} {reason}$'):
      read(ENTRY, name)

  @parameterized.parameters((0., 1., True), (1., 1., True), (1.5, 2., False),
                            (-1., .5, False))
  def test_range_of_a_number(self, low, high, inside):
    read = lambda: fields.number(ENTRY, 'one', low, high)
    if inside:
      self.assertEqual(read(), 1)
    else:
      with self.assertRaisesRegex(
          tables.BadRowError, rf'in \[{low:g}, {high:g}\], got 1'):
        read()

  @parameterized.parameters(math.inf, -math.inf, math.nan, 'nan', 10**400)
  def test_numbers_are_finite(self, value):
    for read, entry in ((fields.number, value), (fields.numbers, [1, value])):
      with self.assertRaises(tables.BadRowError):
        read({'x': entry}, 'x')

  def test_flag_is_of_two(self):
    self.assertIs(fields.flag({'x': 0}, 'x'), False)
    with self.assertRaisesRegex(tables.BadRowError, 'got 2'):
      fields.flag({'x': 2}, 'x')

  def test_first(self):
    self.assertEqual(fields.first(ENTRY, ['absent', 'null', 'one']), 'one')
    self.assertIsNone(fields.first(ENTRY, ['absent', 'null']))


if __name__ == '__main__':
  absltest.main()
