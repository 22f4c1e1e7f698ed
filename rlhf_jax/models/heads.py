"""Heads that read a decoder's hidden states."""

import jax
import jax.numpy as jnp

from rlhf_jax import types


def init_scalar(key: jax.Array, hidden_size: int, *,
                scale: float = 1.0) -> types.Params:
  """A linear map to one number, weights N(0, scale^2 / hidden_size).

  Stiennon et al. 2020 and lm-human-preferences use N(0, 1 / (d + 1)); the
  initialisation is what tells the members of an ensemble apart (Coste et al.
  2024, section 4.3).
  """
  weight = jax.random.normal(key, (hidden_size,)) * scale * hidden_size ** -0.5
  return {'weight': weight, 'bias': jnp.zeros(())}


def scalar(params: types.Params, hidden: jax.Array) -> jax.Array:
  """f32[...] from hidden states [..., D]."""
  out = jnp.einsum('...d,d->...', hidden, params['weight'],
                   preferred_element_type=jnp.float32)
  return out.astype(jnp.float32) + params['bias']
