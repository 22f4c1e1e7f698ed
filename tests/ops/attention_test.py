"""Tests for rlhf_jax.ops.attention, against jax's own."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from rlhf_jax.ops import attention

B, S, H = 3, 7, 4


def case(length, heads, groups, dtype=jnp.float32):
  """Queries, keys and values by head, and a mask of a cache half full."""
  rng = np.random.default_rng(heads + length)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  at = np.arange(S)
  mask = (at <= 3 + np.arange(length)[:, None])[None] & (
      at != rng.integers(1, 3, (B, 1, 1)))
  return (draw(B, length, heads, H), draw(B, groups, S, H),
          draw(B, groups, S, H), jnp.asarray(mask))


class CachedTest(parameterized.TestCase):

  @parameterized.product(length=(1, 3), heads=((4, 4), (4, 2), (6, 1)),
                         scale=(None, .3))
  def test_equals_attention_of_the_other_layout(self, length, heads, scale):
    q, keys, values, mask = case(length, *heads)
    actual = attention.cached(q, keys, values, mask, scale=scale)
    expected = jax.nn.dot_product_attention(
        q, keys.swapaxes(1, 2), values.swapaxes(1, 2), mask=mask[:, None],
        scale=scale)
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    one = attention.cached(q, keys, values, mask[:1], scale=scale)
    np.testing.assert_allclose(one[0], expected[0], atol=1e-6)

  def test_what_is_not_seen_does_not_matter(self):
    q, keys, values, mask = case(1, 4, 2)
    junk = lambda x: jnp.where(mask[:, 0][:, None, :, None], x, 1e30)
    np.testing.assert_array_equal(
        attention.cached(q, junk(keys), junk(values), mask),
        attention.cached(q, keys, values, mask))

  def test_bfloat16_with_a_softmax_in_float32(self):
    q, keys, values, mask = case(2, 4, 2, jnp.bfloat16)
    actual = attention.cached(q, keys, values, mask)
    self.assertEqual(actual.dtype, jnp.bfloat16)
    exact = attention.cached(*(x.astype(jnp.float32) for x in (
        q, keys, values)), mask)
    np.testing.assert_allclose(
        actual.astype(jnp.float32), exact, atol=2e-2)
    # Keys of another dtype than the queries' are cast to it.
    np.testing.assert_array_equal(actual, attention.cached(
        q, keys.astype(jnp.float32), values.astype(jnp.float32), mask))


if __name__ == '__main__':
  absltest.main()
