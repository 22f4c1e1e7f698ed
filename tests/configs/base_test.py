"""Tests for rlhf_jax.configs.base."""

from absl.testing import absltest
from absl.testing import parameterized

from rlhf_jax.configs import base
from rlhf_jax.configs import small_worlds
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

# Of the names of all fields at layout 8.
FIELDS = (
    '274ed7b46f865996b905a1fd4ae63c9c08794b29'
    'c191db9bf9aec2a27845392e')


def _names(node, prefix=''):
  for name, value in node.items():
    if hasattr(value, 'items'):
      yield from _names(value, f'{prefix}{name}.')
    else:
      yield prefix + name


class FieldsTest(absltest.TestCase):

  def test_another_field_is_another_layout(self):
    """A config of a workdir is planned again, and lacks what is new."""
    fields = sorted({name for make in (base.online_config, base.offline_config)
                     for name in _names(make('laptop'))})
    self.assertEqual(
        (workdirs.LAYOUT, files.digest(fields)), (9, FIELDS),
        'raise workdirs.LAYOUT, and write down the new number and digest here')


class WorldTest(parameterized.TestCase):

  @parameterized.parameters(*base.WORLDS)
  def test_by_name(self, name):
    config = base.online_config('laptop', name)
    self.assertEqual(config.data.world.to_dict(),
                     small_worlds.WORLDS[name] | {'name': name})
    self.assertEqual(config.gold.kind,
                     'model' if name == 'reviews' else 'rule')


if __name__ == '__main__':
  absltest.main()
