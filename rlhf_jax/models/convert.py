"""Hugging Face directories <-> parameters, bit for bit.

A model is read without torch and without ever being in memory twice: its
files are mapped, and each tensor goes to its place in a stack of layers. All
that is wrong with a directory is said at once. What is written loads in
`transformers`, as AutoModelForCausalLM or, for reward models,
AutoModelForSequenceClassification with one label.
"""

from collections.abc import Iterator, Mapping
import logging
import os
import pathlib
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.models import directory as directories
from rlhf_jax.models import families
from rlhf_jax.models import heads
from rlhf_jax.models import names as names_lib
from rlhf_jax.models import tensors as tensors_lib
from rlhf_jax.models import transformer
from rlhf_jax.storage import files

_logger = logging.getLogger(__name__)
_LISTED = 10  # problems that a message spells out


def load_config(directory: str | os.PathLike) -> transformer.Config:
  """Reads the shape alone; arguments and errors are those of `load`."""
  directory = directories.check(directory)
  try:
    return families.from_json(directories.read_config(directory))
  except errors.ConfigError as error:
    raise errors.ConfigError(f'{directory / "config.json"}: {error}') from error


def load(
    directory: str | os.PathLike,
    *,
    dtype: Any = None,
    allow_extra: bool = False,
) -> tuple[transformer.Config, types.Params]:
  """Reads a language model.

  Args:
    directory: with config.json and safetensors, of a family of
      `models.families`; that of a bare trunk will do if embeddings are tied.
    dtype: of all parameters; None: as in the file.
    allow_extra: whether tensors that the model does not have are left out,
      and named in the log, rather than refused.

  Returns:
    Its shape, with what else config.json says in `extra`, and parameters as
    numpy arrays, see `models.transformer`.

  Raises:
    ConfigError: config.json asks for what the decoder does not have.
    CheckpointError: the directory is refused (`models.directory`), a file is
      not sound (`models.tensors`), or tensors are missing, superfluous, of a
      wrong shape or dtype, or not finite.
    ValueError: `dtype` is not one of float32, float16, bfloat16.
  """
  config, flat = _import(directory, dtype, allow_extra, classifier=False)
  return config, traverse_util.unflatten_dict(flat, sep='/')


def load_reward(
    directory: str | os.PathLike, *, dtype: Any = None,
    allow_extra: bool = False) -> tuple[transformer.Config, types.Params]:
  """Reads a reward model, as `load` does a language model.

  transformers scores the last token that is not padding, `rewards.score` the
  last of the response: the same, unless the padding is the EOS too.

  Returns:
    Its shape and {'trunk': ..., 'head': {'weight' [D], 'bias' []}}, see
    `rewards.init`; the bias, which transformers has not, is 0.
  """
  config, flat = _import(directory, dtype, allow_extra, classifier=True)
  weight = flat.pop('head/weight')
  return config, {
      'trunk': traverse_util.unflatten_dict(flat, sep='/'),
      'head': {'weight': weight, 'bias': np.zeros((), weight.dtype)}}


def save(
    directory: str | os.PathLike,
    config: transformer.Config,
    params: types.Params,
    *,
    extra: dict[str, Any] | None = None,
):
  """Writes a language model that transformers loads.

  Args:
    directory: made if it is missing; must not hold a model.
    config: its shape.
    params: as `transformer.init` makes them, float32, float16 or bfloat16;
      adapters merged, layers in one stack, nothing quantised.
    extra: fields of config.json beside its shape, such as eos_token_id, in
      place of those in `config.extra`.

  Raises:
    ConfigError: no model of transformers has this shape.
    CheckpointError: a model is there already, or the disk refuses.
    ValueError: `params` are not those of `config`.
  """
  _export(directory, config, _flatten(params), extra, classifier=False)


def save_reward(
    directory: str | os.PathLike,
    config: transformer.Config,
    params: types.Params,
    *,
    extra: dict[str, Any] | None = None,
):
  """Writes a reward model that transformers loads, see `save`.

  Args:
    directory: see `save`.
    config: shape of the trunk.
    params: as `rewards.init` makes them. The head's bias must be 0, since
      transformers has none.
    extra: see `save`. Here or in `config.extra` there must be a pad_token_id,
      by which transformers finds the last token; it should not be the EOS.
  """
  bias = float(params['head']['bias'])
  if bias:
    raise ValueError(
        f'the head has bias {bias:g}, and a score of transformers has none; '
        'set it to 0, and subtract it from whatever scores are compared with')
  flat = _flatten(params['trunk']) | {'head/weight': params['head']['weight']}
  _export(directory, config, flat, extra, classifier=True)


def _flatten(params: types.Params) -> dict[str, Any]:
  return traverse_util.flatten_dict(params, sep='/')


def _shapes(config: transformer.Config, classifier: bool
            ) -> dict[str, tuple[int, ...]]:
  """Of every parameter, by its path."""
  params = jax.eval_shape(
      lambda: transformer.init(config, jax.random.key(0)))
  if classifier:
    params = heads.trunk(params)
  shapes = {k: v.shape for k, v in _flatten(params).items()}
  if classifier:
    shapes['head/weight'] = (config.hidden_size,)
  return shapes


def _import(directory, dtype, allow_extra, *, classifier):
  """(config, parameters by path) of a directory."""
  if dtype is not None:
    dtype = np.dtype(dtype)
    if dtype not in tensors_lib.DTYPES.values():
      raise ValueError(
          f'dtype must be float32, float16 or bfloat16, got {dtype}.')
  config = load_config(directory)
  directory = pathlib.Path(directory)
  path = directory / 'config.json'
  tensors = tensors_lib.read(directories.weight_files(directory))
  if config.num_layers > len(tensors):
    raise errors.CheckpointError(
        f'{path} has {config.num_layers} layers, and the weights beside it are '
        f'{len(tensors)} tensors; get both from the same model')
  reader = _Reader(config, tensors, classifier, dtype)
  reader.run(allow_extra)
  if reader.problems:
    first = '; '.join(reader.problems[:_LISTED])
    more = len(reader.problems) - _LISTED
    raise errors.CheckpointError(
        f'{directory}: {len(reader.problems)} tensors are not those of its '
        f'config.json ({config.family}): {first}'
        + (f'; and {more} more' if more > 0 else ''))
  if reader.cast:
    _logger.warning('%s: %s', directory, reader.cast)
  if reader.left_out:
    _logger.warning('%s: not read: %s', directory, ', '.join(reader.left_out))
  return config, reader.params


class _Reader:
  """Puts tensors where they belong, and notes what does not."""

  def __init__(self, config, tensors, classifier, dtype):
    self._config = config
    self._tensors = tensors
    self._dtype = dtype
    self._table = names_lib.table(config, classifier=classifier)
    self._shapes = _shapes(config, classifier)
    self._prefix = self._find_prefix()
    self.params: dict[str, np.ndarray] = {}
    self.problems: list[str] = []
    self.left_out: list[str] = []
    self.cast = ''

  def _find_prefix(self) -> str:
    """What names of the trunk lack, '' or the whole prefix."""
    prefix = self._table.prefix
    names = {rule.name.format(0) for rule in self._table.rules}
    bare = {name.removeprefix(prefix) for name in names
            if name.startswith(prefix)}
    weights = self._tensors.specs.keys()
    return prefix if len(bare & weights) > len(names & weights) else ''

  def run(self, allow_extra: bool):
    expected = set()
    for rule in self._table.rules:
      for layer, name in rule.names(self._config):
        name = self._stored(rule, name.removeprefix(self._prefix))
        expected.add(name)
        self._place(rule, layer, name)
    buffers = re.compile(
        f'({re.escape(self._table.prefix)})?({self._table.buffers})')
    for name in self._tensors:
      if name in expected or buffers.fullmatch(name):
        continue
      if name == self._table.unembed and self._config.tie_embeddings:
        self._compare(name)
      elif allow_extra:
        self.left_out.append(directories.quote(name))
      else:
        self._note(name, 'is not of this model')

  def _stored(self, rule: names_lib.Rule, name: str) -> str:
    """The name of a tensor in the file: tied embeddings may have the other."""
    other, names = self._table.unembed, self._tensors.specs
    tied = rule.leaves == ('embed',) and self._config.tie_embeddings
    return other if tied and name not in names and other in names else name

  def _note(self, name: str, what: str):
    self.problems.append(f'{directories.quote(name)} {what}')

  def _place(self, rule: names_lib.Rule, layer: int | None, name: str):
    """Copies one tensor into the parameters that it holds."""
    if name not in self._tensors.specs:
      return self._note(name, 'is missing')
    spec, whole = self._tensors.specs[name], self._shapes[rule.leaves[0]]
    shape = rule.layout.shape(whole[1:] if rule.layered else whole)
    if spec.shape != shape:
      return self._note(
          name, f'has shape {list(spec.shape)} and not {list(shape)}')
    if spec.dtype not in tensors_lib.DTYPES:
      return self._note(name, f'has dtype {spec.dtype}, which is not one of '
                        f'{", ".join(tensors_lib.DTYPES)}')
    file_dtype = tensors_lib.DTYPES[spec.dtype]
    dtype = self._dtype or file_dtype
    if rule.leaves[0] not in self.params:  # pages are taken as they are filled
      self.params |= {k: np.empty(self._shapes[k], dtype) for k in rule.leaves}
    stacks = [self.params[k] for k in rule.leaves]
    if stacks[0].dtype != dtype:
      return self._note(name, f'has dtype {file_dtype}, and that of another '
                        f'layer is {stacks[0].dtype}; choose a dtype for all')
    tensor = self._tensors[name]
    if not np.isfinite(tensor).all():
      return self._note(name, 'has a NaN or an infinity')
    at = ... if layer is None else layer
    with np.errstate(over='ignore'):
      for stack, part in zip(
          stacks, rule.layout.split(tensor, self._config), strict=True):
        stack[at] = part
    if file_dtype != dtype:
      self.cast = f'parameters of dtype {file_dtype} are cast to {dtype}'
      if not all(np.isfinite(stack[at]).all() for stack in stacks):
        self._note(name, f'does not fit into {dtype}')

  def _compare(self, name: str):
    """An unembedding beside tied embeddings must be the embedding."""
    embed = next(r.name for r in self._table.rules if r.leaves == ('embed',))
    embed = embed.removeprefix(self._prefix)
    specs = self._tensors.specs
    if embed not in specs or not (
        (specs[name].dtype, specs[name].shape)
        == (specs[embed].dtype, specs[embed].shape)
        and np.array_equal(self._tensors[name], self._tensors[embed])):
      self._note(name, f'is not {directories.quote(embed)}, though '
                 'tie_word_embeddings is true')


class _Export(Mapping[str, np.ndarray]):
  """Tensors of a model by name, each made when it is asked for."""

  def __init__(self, config, flat, classifier):
    self._config = config
    self._flat = flat
    table = names_lib.table(config, classifier=classifier)
    self._places = {name: (rule, layer) for rule in table.rules
                    for layer, name in rule.names(config)}

  def __getitem__(self, name: str) -> np.ndarray:
    rule, layer = self._places[name]
    at = ... if layer is None else layer
    parts = [np.asarray(self._flat[leaf])[at] for leaf in rule.leaves]
    return rule.layout.join(parts, self._config)

  def __iter__(self) -> Iterator[str]:
    return iter(self._places)

  def __len__(self) -> int:
    return len(self._places)

  def check(self):
    """ValueError if parameters that share a tensor differ in dtype."""
    for rule, _ in self._places.values():
      dtypes = {str(self._flat[leaf].dtype) for leaf in rule.leaves}
      if len(dtypes) > 1:
        raise ValueError(f'{", ".join(rule.leaves)} must be of one dtype, got '
                         f'{", ".join(sorted(dtypes))}.')


def _export(directory, config, flat, extra, *, classifier):
  raw = families.to_json(config, classifier=classifier, extra=extra)
  if classifier and raw.get('pad_token_id') is None:
    raise errors.ConfigError(
        'a reward model needs pad_token_id, by which transformers finds the '
        "last token; give extra={'pad_token_id': ...}")
  if classifier and raw['pad_token_id'] == raw.get('eos_token_id'):
    raise errors.ConfigError(
        f'pad_token_id and eos_token_id are both {raw["pad_token_id"]}, and '
        'transformers would score the token before the EOS; give another '
        'pad_token_id')
  shapes = _shapes(config, classifier)
  problems = [f'{k} is missing' for k in shapes if k not in flat] + [
      f'{k} is not of this model' for k in flat if k not in shapes] + [
      f'{k} has shape {getattr(flat[k], "shape", None)} and not {v}'
      for k, v in shapes.items()
      if k in flat and getattr(flat[k], 'shape', None) != v]
  if problems:
    raise ValueError(
        f'{len(problems)} parameters are not those of config: '
        f'{"; ".join(problems[:_LISTED])}; merge adapters, join layers and '
        'make quantised weights dense first.')
  tensors = _Export(config, flat, classifier)
  tensors.check()
  raw['torch_dtype'] = str(flat['embed'].dtype)
  tensors_lib.write(directory, tensors)
  # Last: without it there is no model.
  files.write_json(pathlib.Path(directory) / 'config.json', raw)
