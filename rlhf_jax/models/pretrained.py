"""A model node of a config: made from scratch, or loaded from a file.

  {family, hidden_size, ...}     fresh parameters, see `config.make_config`
  {path, ...}                    a Hugging Face directory, a .gguf file or a
                                 llama2.c .bin file; takes the place of a shape
  {name: 'smollm2', ...}         from the package of the extra [smollm2]

Beside them, for the computation: dtype, remat, attention, dropout; and for
what is trained: `lora` (arguments of `lora.init`; rank 0 is none), `quantize`
(the frozen base in NF4) or `trainable_layers` (the last n alone; 0 is nothing
but a head, of a reward model). A field that is None is as good as absent.
"""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.models import config as config_lib
from rlhf_jax.models import convert
from rlhf_jax.models import directory
from rlhf_jax.models import gguf_file
from rlhf_jax.models import llama2c
from rlhf_jax.models import lora
from rlhf_jax.models import quantize
from rlhf_jax.models import transformer
from rlhf_jax.parallel import sharding
from rlhf_jax.storage import files

_COMPUTATION = ('dtype', 'remat', 'attention', 'dropout')
_TRAINING = ('lora', 'quantize', 'trainable_layers')
_NAMES = {'smollm2': gguf_file.smollm2_path}


class Model(NamedTuple):
  """A decoder in two parts: `{**base, **trainable}` is what runs."""

  config: transformer.Config
  trainable: types.Params
  base: types.Params | None  # frozen; None: everything is trained


def source(node: dict[str, Any]) -> pathlib.Path | None:
  """Where a node's weights come from; None: from an initialisation.

  Raises:
    ConfigError: an unknown name, a path and a name, or no such file.
  """
  name, path = node.get('name'), node.get('path')
  if name is None and path is None:
    return None
  if name is not None and path is not None:
    raise errors.ConfigError(
        f'a model is named {name!r} and has a path {path!r}; give one of them')
  if name is not None:
    if name not in _NAMES:
      raise errors.ConfigError(f'no model is named {name!r}; there are '
                               f'{", ".join(_NAMES)}, or give a path')
    return _NAMES[name]()
  path = pathlib.Path(path)
  if not path.exists():
    raise errors.ConfigError(
        f'{path}: there is no such model directory or file')
  return path


def absolute(node: dict[str, Any]) -> dict[str, Any]:
  """The node with an absolute path, which stays true in another directory."""
  if node.get('path') is None:
    return node
  return node | {'path': str(pathlib.Path(node['path']).absolute())}


def fingerprint(node: dict[str, Any]) -> str | None:
  """SHA-256 of everything that a node's weights come from; None if fresh."""
  path = source(node)
  if path is None:
    return None
  if path.is_dir():
    directory.check(path)  # what is opened here is a plain file
  return files.fingerprint(path, ('.json', '.safetensors'))


def _reader(path: pathlib.Path):
  """The module that reads a directory or file: load, load_config."""
  if path.is_dir():
    return convert
  readers = {'.gguf': gguf_file, '.bin': llama2c}
  if path.suffix not in readers:
    raise errors.ConfigError(
        f'{path}: is no Hugging Face directory, .gguf or llama2.c .bin file')
  return readers[path.suffix]


def _split(node):
  """Fields of the shape, of the computation, and of what is trained."""
  fields = {k: v for k, v in node.items() if v is not None}
  take = lambda names: {k: fields.pop(k) for k in names if k in fields}
  training = take(_TRAINING)
  if not training.get('lora', {}).get('rank'):
    training.pop('lora', None)
  if not training.get('quantize'):
    training.pop('quantize', None)
  computation = take(_COMPUTATION)
  take(('path', 'name'))
  known = {field.name for field in dataclasses.fields(config_lib.Config)}
  for field in fields:
    if field not in known:
      raise errors.ConfigError(f'{field} is no field of a model; there are '
                               f'{", ".join(sorted(known))}')
  return fields, computation, training


def _check_training(path, training, dropout):
  if path is None and training:
    raise errors.ConfigError(
        f'a model has {", ".join(sorted(training))} but neither path nor '
        'name: a part of fresh weights would stay random')
  if 'lora' in training and 'trainable_layers' in training:
    raise errors.ConfigError(
        'lora and trainable_layers are both given; choose one')
  if 'quantize' in training and 'lora' not in training:
    raise errors.ConfigError(
        'quantize needs lora: weights in 4 bits are not trained')
  if training.get('trainable_layers') == 0 and dropout:
    raise errors.ConfigError(
        f'dropout is {dropout} and trainable_layers 0: heads learn from a '
        'trunk that is read as it is; give dropout 0')


def is_partial(node: dict[str, Any]) -> bool:
  """Whether only a part of a node's model is trained."""
  return bool(_split(node)[2])


def is_frozen(node: dict[str, Any]) -> bool:
  """Whether nothing of a node's model is trained, but a head on it."""
  return node.get('trainable_layers') == 0


def config(node: dict[str, Any], vocab_size: int) -> transformer.Config:
  """The shape of a node's model, without its weights or adapters.

  Arguments and errors are those of `init`.
  """
  shape, computation, training = _split(node)
  path = source(node)
  _check_training(path, training, computation.get('dropout'))
  try:
    if path is None:
      return config_lib.make_config(
          vocab_size=vocab_size, **shape, **computation)
    model_config = _reader(path).load_config(path).replace(**computation)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'a model: {error}') from None
  if model_config.vocab_size < vocab_size:
    raise errors.ConfigError(
        f'{path} has {model_config.vocab_size} embeddings and the tokenizer '
        f'{vocab_size} tokens; use the tokenizer that the model came with')
  return model_config


def check(node: dict[str, Any], vocab_size: int, length: int) -> Model:
  """Raises at once what `init` would raise later; reads no weights.

  Args:
    node: see the top of this module.
    vocab_size: see `init`.
    length: tokens of the rows that the model will read.

  Returns:
    Of `abstract`.
  """
  shapes = abstract(node, vocab_size)
  try:
    transformer.check_length(shapes.config, length)
  except ValueError as error:
    raise errors.ConfigError(f'a model: {error}') from None
  return shapes


def abstract(node: dict[str, Any], vocab_size: int) -> Model:
  """The shapes of what `init` makes; reads no weights, touches no device.

  Arguments and errors are those of `init`.
  """
  shape, training = config(node, vocab_size), _split(node)[2]
  configs = []

  def make(params):
    model = _partition(shape, params, training, jax.random.key(0))
    configs.append(model.config)
    return model[1:]

  try:
    trainable, base = jax.eval_shape(make, transformer.abstract(shape))
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'a model: {error}') from None
  return Model(configs[0], trainable, base)


def init(node: dict[str, Any], vocab_size: int, key: jax.Array) -> Model:
  """Makes or loads the model of a node, parameters in float32.

  Args:
    node: see the top of this module.
    vocab_size: tokens of the tokenizer; the vocabulary of a fresh model, and
      at most that of a loaded one.
    key: of an initialisation, of the decoder or of its adapters.

  Raises:
    ConfigError: a field is unknown, or does not fit the file.
    CheckpointError: the file is damaged, foreign or refused.
  """
  shape, training = config(node, vocab_size), _split(node)[2]
  path = source(node)
  if path is None:
    params = sharding.born(transformer.init, key, static=(shape,))
  else:
    params = sharding.shard_params(
        _reader(path).load(path, dtype='float32')[1])
  try:
    model = _partition(shape, params, training, key)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'a model: {error}') from None
  # What is made of a loaded model, such as its 4 bits, has no place yet.
  return model._replace(base=sharding.shard_params(model.base))


def _partition(config, params, training, key) -> Model:
  if 'lora' in training:
    config, adapter = lora.init(
        config, params, jax.random.fold_in(key, 1), **training['lora'])
    if 'quantize' in training:
      params = quantize.quantize_params(params)
    return Model(config, {'adapter': adapter}, params)
  if training.get('trainable_layers') == 0:
    return Model(config, {}, params)
  if 'trainable_layers' in training:
    base, top = lora.split_layers(params, training['trainable_layers'])
    return Model(config, top, base)
  return Model(config, params, None)


def finish(model: Model) -> types.Params:
  """The ordinary parameters of a model: adapters merged, layers in one stack.

  A base in 4 bits is what it stands for, not what it was made from.
  """
  if model.base is None:
    return model.trainable
  if 'adapter' in model.trainable:
    base = quantize.dense(model.base, 'float32')
    return lora.merge(model.config, base, model.trainable['adapter'])
  return lora.join_layers({**model.base, **model.trainable})
