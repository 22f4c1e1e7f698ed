"""Tests for rlhf_jax.data.options."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax.data import options as options_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cake:
  size: int
  layers: tuple[str, ...] = ('plain',)
  others: tuple = ()


class BindTest(parameterized.TestCase):

  def test_fields_and_defaults(self):
    node = dict(name='cake', size=3, layers=None)
    self.assertEqual(options_lib.bind(Cake, node), Cake(size=3))
    self.assertEqual(
        options_lib.bind(Cake, node | dict(layers=['a', 'b'])),
        Cake(size=3, layers=('a', 'b')))
    self.assertEqual(node, dict(name='cake', size=3, layers=None))

  def test_others(self):
    cake = options_lib.bind(
        Cake, dict(size=3, z={'b': [1], 'a': 2}, c=4, none=None),
        others='others')
    self.assertEqual(cake.others, (('c', 4), ('z', (('a', 2), ('b', (1,))))))
    self.assertEqual(hash(cake), hash(dataclasses.replace(cake)))
    self.assertEqual(options_lib.bind(
        Cake, dict(size=3), others='others'), Cake(size=3))

  @parameterized.parameters(
      (dict(size=3, cream=1), 'cream is no field; there are layers, others, s'),
      (dict(), '^size must be given$'),
      (dict(size=None, layers=()), '^size must be given$'),
      (dict(size=3, b=1, a=2), '^b, a is no field'))
  def test_names_the_field(self, node, message):
    with self.assertRaisesRegex(TypeError, message):
      options_lib.bind(Cake, node)

  def test_the_place_of_others_is_no_field(self):
    cake = options_lib.bind(Cake, dict(size=1, others=5), others='others')
    self.assertEqual(cake.others, (('others', 5),))

  def test_every_option_of_texts_is_described(self):
    for field in dataclasses.fields(options_lib.Texts):
      self.assertIn(f'    {field.name}: ', options_lib.Texts.__doc__)


if __name__ == '__main__':
  absltest.main()
