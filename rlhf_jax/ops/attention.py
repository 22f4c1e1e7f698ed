"""Attention over a cache, in the layout that a decoding step reads fast."""

import jax
import jax.numpy as jnp


def cached(q: jax.Array, keys: jax.Array, values: jax.Array, mask: jax.Array,
           *, scale: float | None = None) -> jax.Array:
  """What `jax.nn.dot_product_attention` gives, of keys and values by head.

  The slots of a head lie together, so that a step reads each once and in
  order, and query heads that share keys are rows of one product.

  Args:
    q: [B, T, N, h], of any float dtype.
    keys: [B, K, S, h], N a multiple of K.
    values: [B, K, S, h].
    mask: bool[B or 1, T, S], true where a query may look; in every row
      somewhere.
    scale: of the logits; None: h ** -.5.

  Returns:
    [B, T, N, h] of q's dtype; logits and softmax are float32.
  """
  batch, length, heads, size = q.shape
  groups = keys.shape[1]
  share = heads // groups
  scale = size ** -0.5 if scale is None else scale
  rows = q.reshape(batch, length, groups, share, size).transpose(
      0, 2, 3, 1, 4).reshape(batch, groups, share * length, size)
  logits = scale * jnp.einsum('bkqd,bksd->bkqs', rows, keys.astype(q.dtype),
                              preferred_element_type=jnp.float32)
  seen = jnp.tile(mask, (1, share, 1))[:, None]
  weights = jax.nn.softmax(
      jnp.where(seen, logits, jnp.finfo(jnp.float32).min), axis=-1)
  out = jnp.einsum('bkqs,bksd->bkqd', weights.astype(q.dtype),
                   values.astype(q.dtype))
  return out.reshape(batch, groups, share, length, size).transpose(
      0, 3, 1, 2, 4).reshape(q.shape)
