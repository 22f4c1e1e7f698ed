"""Tests for rlhf_jax.ops.endings."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import endings
from rlhf_jax.ops import stops

EOS = 2
TOKENS = np.array([
    [5, 3, EOS, 0],  # ends
    [5, 3, 4, 3],  # runs into the budget
    [EOS, 3, 4, 0],  # an EOS in the prompt
    [5, 3, EOS, EOS],  # padded by the EOS, which is not of the response
    [5, 0, 0, 0]], np.int32)  # no response
MASK = np.array([
    [0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
                bool)
EXPECTED = [True, False, False, False, False]


class FinishedTest(parameterized.TestCase):

  @parameterized.parameters(np, jnp)
  def test_by_hand(self, library):
    out = endings.finished(library.asarray(TOKENS), library.asarray(MASK), EOS)
    self.assertIsInstance(out, library.ndarray)
    self.assertEqual(out.dtype, bool)
    np.testing.assert_array_equal(out, EXPECTED)

  def test_under_jit_with_any_axes(self):
    out = jax.jit(endings.finished, static_argnums=2)(
        TOKENS[:4].reshape(2, 2, 4), MASK[:4].reshape(2, 2, 4), EOS)
    np.testing.assert_array_equal(out, [[True, False], [False, False]])

  @parameterized.parameters(np, jnp)
  def test_several_ids_and_a_string(self, library):
    tokens, mask = library.asarray(TOKENS), library.asarray(MASK)
    np.testing.assert_array_equal(
        endings.finished(tokens, mask, (EOS, 4)),
        [True, True, True, False, False])
    # 3 then 4 completes a string, wherever the EOS is.
    table = stops.table(['ab'], *[[b'', b'', b'', b'a', b'b', b'c']] * 2)
    out = endings.finished(tokens, mask, EOS, table)
    self.assertIsInstance(out, library.ndarray)
    np.testing.assert_array_equal(out, [True, True, True, False, False])
    np.testing.assert_array_equal(
        endings.finished(tokens, mask, 0, table),
        [False, True, True, False, False])

  def test_of_no_rows(self):
    self.assertEqual(
        endings.finished(TOKENS[:0], MASK[:0], EOS).shape, (0,))


if __name__ == '__main__':
  absltest.main()
