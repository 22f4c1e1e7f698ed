"""Tests for rlhf_jax.data.order."""

import time

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from rlhf_jax.data import order

SIZES = ((4, 10), (5, 10), (10, 10), (7, 3), (25, 4), (1, 1), (3, 1), (8, 997))


class OrderTest(parameterized.TestCase):

  @parameterized.parameters(*SIZES)
  def test_every_epoch_is_a_permutation(self, batch_size, num_examples):
    steps = -(-5 * num_examples // batch_size)
    stream = np.concatenate(
        [order.indices(3, s, batch_size, num_examples) for s in range(steps)]
    )
    epochs = stream[: 5 * num_examples].reshape(5, num_examples)
    np.testing.assert_array_equal(
        np.sort(epochs, axis=1),
        np.broadcast_to(np.arange(num_examples), epochs.shape),
    )

  @parameterized.parameters(*SIZES)
  def test_any_start_equals_the_uninterrupted(self, batch_size, num_examples):
    whole = [order.indices(0, s, batch_size, num_examples) for s in range(40)]
    order._permutation.cache_clear()
    for step in (39, 0, 17, 17, 38):  # backwards and repeated as well
      batch = order.indices(0, step, batch_size, num_examples)
      self.assertEqual(batch.shape, (batch_size,))
      self.assertEqual(batch.dtype, np.int64)
      np.testing.assert_array_equal(batch, whole[step])

  @parameterized.parameters(1, 3, 7, 64)
  def test_stream_does_not_depend_on_the_batch_size(self, batch_size):
    batches = [order.indices(9, s, batch_size, 50) for s in range(200)]
    stream = np.concatenate(batches)[:200]
    np.testing.assert_array_equal(stream, order.indices(9, 0, 200, 50))

  def test_epochs_and_seeds_differ(self):
    epochs = [tuple(order.indices(s, e, 50, 50)) for s in (0, 1, 2**64 - 1)
              for e in range(10)]
    self.assertLen(set(epochs), 30)
    self.assertNotIn(tuple(range(50)), epochs)

  def test_positions_are_uniform(self):
    first = [order.indices(0, e, 10, 10)[0] for e in range(2000)]
    counts = np.bincount(first, minlength=10)
    # 9 degrees of freedom: 27.9 is exceeded once in a thousand seeds.
    self.assertLess(((counts - 200) ** 2 / 200).sum(), 27.9)

  def test_order_is_for_ever(self):
    # A run from an older version must go on with the same examples.
    np.testing.assert_array_equal(order.indices(1, 2, 8, 10), GOLDEN)

  def test_caller_cannot_spoil_the_cache(self):
    order.indices(0, 0, 10, 10)[:] = 0
    self.assertLen(set(order.indices(0, 0, 10, 10)), 10)
    self.assertFalse(order._permutation(0, 0, 10).flags.writeable)

  def test_costs_microseconds(self):
    order.indices(0, 0, 64, 50_000)
    started = time.perf_counter()
    for step in range(700):
      order.indices(0, step, 64, 50_000)
    self.assertLess((time.perf_counter() - started) / 700, 1e-3)

  @parameterized.parameters(
      ('seed', -1, 0, 1, 1), ('seed', 2**64, 0, 1, 1), ('step', 0, -1, 1, 1),
      ('batch_size', 0, 0, 0, 1), ('num_examples', 0, 0, 1, 0),
  )
  def test_rejects(self, name, *args):
    with self.assertRaisesRegex(ValueError, name):
      order.indices(*args)


GOLDEN = [7, 8, 2, 1, 4, 2, 0, 6]


if __name__ == '__main__':
  absltest.main()
