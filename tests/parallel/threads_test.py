"""Tests for rlhf_jax.parallel.threads."""

import contextvars
import subprocess
import sys
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.parallel import meshes
from rlhf_jax.parallel import threads


def cells(x, y, samples):
  """[B, K] each, of arrays [B, D], [B] and [K]."""
  return {'sum': (x.sum(-1) + y)[:, None] * (1 + samples[None]),
          'row': jnp.broadcast_to(x[:, None], (len(x), len(samples), 3))}


class PartsTest(parameterized.TestCase):

  @parameterized.parameters(
      (15, 1, (1, 1)), (16, 1, (2, 1)), (4, 4, (2, 1)), (64, 1, (2, 1)),
      (191, 1, (1, 1)), (192, 1, (3, 1)), (256, 1, (4, 1)), (130, 2, (2, 1)),
      (512, 1, (8, 1)), (4096, 4, (8, 1)), (1, 64, (1, 2)), (1, 512, (1, 8)),
      (3, 16, (1, 2)), (3, 7, (1, 1)), (5, 128, (1, 8)), (5, 103, (5, 1)))
  def test_parts(self, rows, columns, parts):
    self.assertEqual(threads.parts(rows, columns), parts)
    self.assertEqual((rows % parts[0], columns % parts[1]), (0, 0))

  @parameterized.parameters((1, 1), (2, 1), (3, 1), (1, 2), (1, 4))
  def test_in_parts(self, *parts):
    x = np.arange(18.).reshape(6, 3).astype(np.float32)
    y, samples = jnp.arange(6.) ** 2, np.arange(4)
    shapes = []
    def function(*arrays):
      shapes.append([array.shape for array in arrays])
      return jax.jit(cells)(*arrays)
    out = threads.in_parts(function, x, y, samples, parts=parts)
    jax.tree.map(np.testing.assert_array_equal, out, cells(x, y, samples))
    rows, columns = 6 // parts[0], 4 // parts[1]
    self.assertEqual(
        shapes, [[(rows, 3), (rows,), (columns,)]] * max(parts))
    for leaf in jax.tree.leaves(out):
      self.assertIsInstance(leaf, jax.Array)

  def test_they_run_at_once(self):
    barrier = threading.Barrier(2, timeout=10)
    def function(x, samples):
      barrier.wait()
      return x[:, None] + samples
    with mock.patch.object(threads, '_cores', lambda: 2):
      out = threads.in_parts(
          function, np.arange(4), np.arange(2), parts=(2, 1))
    np.testing.assert_array_equal(out, [[0, 1], [1, 2], [2, 3], [3, 4]])

  def test_one_core_is_enough(self):
    with mock.patch.object(threads, '_cores', lambda: 1):
      out = threads.in_parts(
          lambda x, y: x[:, None] * y, np.arange(6), np.arange(2), parts=(3, 1))
    np.testing.assert_array_equal(out, np.arange(6)[:, None] * [0, 1])

  def test_they_run_under_the_mesh_in_use(self):
    seen = []
    def function(x, y):
      seen.append(meshes.devices_in_use())
      return x[:, None] * y
    mesh = meshes.make(devices=jax.devices()[3:4])
    for expected in (None, mesh):
      with jax.set_mesh(mesh) if expected else mock.MagicMock():
        threads.in_parts(function, np.arange(2), np.arange(1), parts=(2, 1))
      self.assertEqual(seen[-2:], [expected] * 2)

  def test_an_error_is_that_of_the_call(self):
    def function(x, y):
      raise ValueError(f'row {x[0]}')
    with self.assertRaisesRegex(ValueError, 'row 0'):
      threads.in_parts(function, np.arange(2), np.arange(1), parts=(2, 1))

  def test_on_host(self):
    x = {'a': np.zeros(2), 'b': None}
    self.assertTrue(threads.on_host())
    self.assertTrue(threads.on_host(x, jnp.zeros(2), jax.random.key(0)))
    inside = []
    jax.jit(lambda y: inside.append(threads.on_host(x, [y])))(1.)
    self.assertEqual(inside, [False])
    with jax.set_mesh(meshes.make(devices=jax.devices()[:1])):
      self.assertTrue(threads.on_host(x))
    with jax.set_mesh(meshes.make(devices=jax.devices()[:2])):
      self.assertFalse(threads.on_host(x))
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      self.assertFalse(threads.on_host(x))

  def test_on_host_with_arrays_of_several_devices(self):
    one, two = (jax.make_mesh((n,), ('x',), (jax.sharding.AxisType.Auto,),
                              devices=jax.devices()[:n]) for n in (1, 2))
    for mesh, expected in ((one, True), (two, False)):
      x = jax.device_put(np.zeros(2), jax.sharding.NamedSharding(
          mesh, jax.sharding.PartitionSpec('x')))
      self.assertEqual(threads.on_host(x), expected)
      with jax.set_mesh(mesh):  # of other axes than ours
        self.assertEqual(threads.on_host(np.zeros(2)), expected)

  def test_few_parts_of_columns(self):
    for most, parts in ((1, (6, 1)), (7, (6, 1)), (8, (1, 8))):
      self.assertEqual(threads.parts(12, 64, most_columns=most), parts)
    self.assertEqual(threads.parts(1, 512, most_columns=1), (1, 1))

  def test_they_run_under_the_contexts_in_use(self):
    variable = contextvars.ContextVar('variable', default=0)
    read = lambda: (
        jax.config.jax_threefry_partitionable, jax.config.jax_debug_nans,
        jax.config.jax_default_matmul_precision,
        jax.config.jax_default_prng_impl, variable.get())
    outside = read()
    with (jax.threefry_partitionable(False), jax.debug_nans(True),
          jax.default_matmul_precision('highest'),
          jax.default_prng_impl('rbg')):
      token = variable.set(1)
      within = read()
      seen = threads.at_once([read] * 3)
      variable.reset(token)
    self.assertNotEqual(within, outside)
    self.assertEqual(seen, [within] * 3)
    self.assertEqual(threads.at_once([read] * 3), [outside] * 3)

  @parameterized.parameters(jax.vmap, jax.jit)
  def test_within_a_transformation(self, transform):
    def function(x):
      return x + sum(threads.at_once([lambda: 1, lambda: 2]))
    with jax.set_mesh(meshes.make(devices=jax.devices()[:1])):
      np.testing.assert_array_equal(transform(function)(jnp.zeros(2)), 3)

  def test_after_the_main_thread(self):
    program = """
import threading
from rlhf_jax.parallel import threads
def work():
  threading.main_thread().join()
  print(threads.at_once([lambda: 1, lambda: 2]))
threading.Thread(target=work).start()
"""
    out = subprocess.run([sys.executable, '-c', program], check=True,
                         capture_output=True, text=True)
    self.assertEqual(out.stdout, '[1, 2]\n')

  def test_cores(self):
    self.assertBetween(threads._cores(), 1, 4096)


if __name__ == '__main__':
  absltest.main()
