"""Training a small part of a decoder: low-rank adapters, or the last layers.

An adapter (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685) adds
alpha / rank * x @ a @ b to a linear map of x. It is a pytree of its own,
{'layers': {name: {'a': f32[L, in, r], 'b': f32[L, r, out]}}}, which the
forward pass finds at params['adapter']; the same parameters without that entry
are the model before training, hence the reference policy. On disk: see
`adapters`.
"""

from collections.abc import Callable
import dataclasses
import math

import jax
import jax.numpy as jnp

from rlhf_jax import types
from rlhf_jax.models import config as config_lib
from rlhf_jax.models import quantize

Config = config_lib.Config
_BELOW = ('embed', 'positions')  # all layers


def init(
    config: Config,
    params: types.Params,
    key: jax.Array,
    *,
    rank: int,
    alpha: float,
    targets: str = r'layers/(q|k|v|o|gate|up|down)',
    dropout: float = 0.0,
) -> tuple[Config, types.Params]:
  """Makes an adapter that does nothing yet.

  Args:
    config: shape of the decoder.
    params: of the decoder, possibly quantised; only shapes are read.
    key: of `a`, which is uniform in [-1, 1] / sqrt(in), as PEFT draws it
      (Kaiming with slope sqrt(5)); `b` is 0.
    rank: r, the same for all maps.
    alpha: the product of a and b is multiplied by alpha / rank; for the
      rank-stabilised form (Kalajdzievski 2023) give alpha * sqrt(rank).
    targets: regular expression, for the whole of names such as 'layers/q'.
    dropout: of the adapter's input, where the forward pass has a key.

  Returns:
    The config with `adapter_scale` and `adapter_dropout`, and the adapter.

  Raises:
    ValueError: the pattern matches nothing, or something that is no linear
      map of `layers`; rank < 1 or alpha is not above 0.
  """
  if rank < 1 or not 0 < alpha < math.inf:
    raise ValueError(f'rank must be >= 1 and alpha above 0, got {rank} and '
                     f'{alpha}.')
  lower = {k: v for k, v in params.items() if k != 'top_layers'}
  names = [name.split('/')[1]
           for name in quantize.kernel_names(lower, targets)]
  adapter = {}
  for name, name_key in zip(names, jax.random.split(key, len(names))):
    num_layers, rows, columns = params['layers'][name]['kernel'].shape
    a = jax.random.uniform(
        name_key, (num_layers, rows, rank), minval=-1, maxval=1)
    adapter[name] = {'a': a / math.sqrt(rows),
                     'b': jnp.zeros((num_layers, rank, columns))}
  return dataclasses.replace(
      config, adapter_scale=alpha / rank,
      adapter_dropout=dropout), {'layers': adapter}


def off(params: types.Params) -> types.Params:
  """The parameters without their adapter: the reference policy."""
  return {k: v for k, v in params.items() if k != 'adapter'}


def merge(config: Config, params: types.Params,
          adapter: types.Params) -> types.Params:
  """Adds an adapter into the kernels, which then need none.

  Computed in float32 and rounded once to the kernel's dtype; a quantised
  kernel becomes what it was made from.

  Args:
    config: with the adapter's scale.
    params: of the decoder; an 'adapter' in it is left out.
    adapter: of `init`.
  """
  return _add(params, adapter, lambda w, d: w + config.adapter_scale * d)


def unmerge(config: Config, params: types.Params,
            adapter: types.Params) -> types.Params:
  """Takes an adapter out of the kernels again; see `merge`.

  Floats forget: a weight w comes back within 2 u (|w| + |d|), where d was
  added to it and u is the rounding of its dtype, 2**-24 in float32 and 2**-8
  in bfloat16. Keep the base itself where it must be exact.
  """
  return _add(params, adapter, lambda w, d: w - config.adapter_scale * d)


def _add(params: types.Params, adapter: types.Params,
         add: Callable[[jax.Array, jax.Array], jax.Array]) -> types.Params:
  layers = dict(params['layers'])
  for name, factors in adapter['layers'].items():
    kernel = quantize.dense(layers[name]['kernel'])
    a, b = (factors[k].astype(jnp.float32) for k in 'ab')
    product = jnp.einsum('lir,lro->lio', a, b, precision='highest')
    new = add(kernel.astype(jnp.float32), product).astype(kernel.dtype)
    layers[name] = {**layers[name], 'kernel': new}
  return {**off(params), 'layers': layers}


def split_layers(params: types.Params,
                 num_trainable: int) -> tuple[types.Params, types.Params]:
  """Cuts a decoder below its last layers, for training only those.

  The two parts joined, {**base, **trainable}, are what the forward pass
  reads; `train.make_train_step` does so itself.

  Args:
    params: of a decoder, with heads if it has any.
    num_trainable: layers to train, counted from the top; 2 in Coste et al.
      (2023, https://arxiv.org/abs/2310.02743).

  Returns:
    base: embeddings and the lower layers. Tied embeddings are in it, and so
      is then the output matrix.
    trainable: 'top_layers', the final norm, heads, and the output matrix if
      it is one of its own.

  Raises:
    ValueError: there are not so many layers, or `params` has an adapter or is
      split already.
  """
  for name in ('adapter', 'top_layers'):
    if name in params:
      raise ValueError(f'params has {name!r} and cannot be split; merge or '
                       'join it first.')
  num_layers = jax.tree.leaves(params['layers'])[0].shape[0]
  if not 1 <= num_trainable <= num_layers:
    raise ValueError(f'num_trainable must be in [1, {num_layers}], got '
                     f'{num_trainable}.')
  cut = num_layers - num_trainable
  base = {k: params[k] for k in _BELOW if k in params}
  trainable = {k: v for k, v in params.items() if k not in (*_BELOW, 'layers')}
  base['layers'] = jax.tree.map(lambda x: x[:cut], params['layers'])
  trainable['top_layers'] = jax.tree.map(lambda x: x[cut:], params['layers'])
  return base, trainable


def join_layers(params: types.Params) -> types.Params:
  """The ordinary form of `{**base, **trainable}`, for export.

  Quantised lower layers become dense. Parameters in one stack stay as they
  are.

  Raises:
    ValueError: there is an adapter, which would not fit; merge it first.
  """
  if 'top_layers' not in params:
    return params
  if 'adapter' in params:
    raise ValueError("params has an 'adapter'; merge it first.")
  params = dict(params)
  stacks = [quantize.dense(params[k]) for k in ('layers', 'top_layers')]
  del params['top_layers']
  return {**params, 'layers': jax.tree.map(
      lambda a, b: jnp.concatenate([a, b]), *stacks)}
