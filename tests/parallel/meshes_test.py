"""Tests for rlhf_jax.parallel.meshes."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.parallel import meshes


def shape(mesh):
  """Its axes that are not 1."""
  return {name: size for name, size in mesh.shape.items() if size > 1}


class MeshTest(parameterized.TestCase):

  @parameterized.parameters(
      (None, {'data': 8}), ({'data': -1}, {'data': 8}),
      ({'data': -1, 'fsdp': 2, 'tensor': 2}, {'data': 2, 'fsdp': 2,
                                              'tensor': 2}),
      ({'data': 8, 'fsdp': -1}, {'data': 8}),
      ({'member': 4, 'data': -1}, {'member': 4, 'data': 2}),
      ({'fsdp': 8}, {'fsdp': 8}))
  def test_sizes(self, axes, expected):
    before = axes and dict(axes)
    mesh = meshes.make(axes)
    self.assertEqual(shape(mesh), expected)
    self.assertEqual(mesh.axis_names, meshes.AXES)
    self.assertEqual(axes, before)  # a config's own
    self.assertLen(set(mesh.devices.flat), 8)
    devices = jax.devices()[2:5]
    mesh = meshes.make({'data': 3}, devices)
    self.assertEqual(set(mesh.devices.flat), set(devices))

  @parameterized.parameters(
      ({'data': 4}, 'mesh data 4 = 4 but there are 8 devices'),
      ({'data': 4, 'fsdp': 3}, 'data 4 x fsdp 3 = 12 but there are 8'),
      ({'data': -1, 'fsdp': 3}, 'data -1 x fsdp 3 = 3 but there are 8'),
      ({'data': -1, 'fsdp': -1}, 'mesh data and fsdp are -1, which one axis'),
      ({'data': 16}, 'data 16 = 16 but'), ({'data': 0}, 'mesh data is 0; give'),
      ({'data': -1, 'fsdp': 0}, 'mesh fsdp is 0; give'),
      ({'data': -2, 'fsdp': -4}, 'mesh data is -2; give'),
      ({'dta': 8}, "has an axis 'dta'; there are member, data, fsdp, tensor"),
      ({'fsdp': 8, 'dcn': 2}, 'mesh data 1 is not divisible by dcn 2'),
      ({'data': 8, 'dcn': 0}, 'mesh dcn is 0; give'),
      ({'data': 8, 'dcn': 2}, 'dcn 2 does not fit the devices'))
  def test_what_does_not_fit(self, axes, message):
    with self.assertRaisesRegex(errors.TopologyError, message):
      meshes.make(axes)

  def test_two_axes_of_one_device(self):
    """A laptop, on which -1 x -1 is the number of devices."""
    for make in (lambda mesh: meshes.make(mesh, jax.devices()[:1]),
                 meshes.planned, lambda mesh: meshes.planned(mesh, 1)):
      with self.assertRaisesRegex(errors.TopologyError, 'data and fsdp are -1'):
        make({'data': -1, 'fsdp': -1})

  def test_none_is_in_use_where_devices_are_the_callers(self):
    self.assertIsNone(meshes.in_use())
    self.assertEqual(meshes.row_parts(), 1)
    seen = []

    def look(x):
      seen.append(meshes.in_use())
      return x

    jax.pmap(look)(np.ones(8))
    with worlds.devices(8) as mesh:
      jax.shard_map(look, in_specs=PartitionSpec('data'),
                    out_specs=PartitionSpec('data'))(np.ones(8))
      self.assertEqual(seen, [None, None])
      jax.jit(look)(np.ones(8))
      self.assertEqual(seen[-1].shape, jax.sharding.get_mesh().shape)
    del mesh
    other = jax.make_mesh((8,), ('x',), axis_types=(AxisType.Auto,))
    with jax.set_mesh(other):
      self.assertIsNone(meshes.in_use())


if __name__ == '__main__':
  absltest.main()
