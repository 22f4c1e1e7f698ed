"""Low-rank adapters on disk, as the library PEFT writes and reads them.

A directory holds adapter_config.json and adapter_model.safetensors, with two
factors for each linear map of each layer. GPT-2 and GPT-NeoX keep q, k and v
in one matrix, and PEFT adapts that as one map: our three adapters of rank r
become one of rank 3r, block-diagonal in its second factor, and an adapter of
the one map becomes three that share the first factor. No function changes.
"""

from collections.abc import Iterator
import dataclasses
import json
import math
import os
import pathlib
import re
from typing import Any

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.models import config as config_lib
from rlhf_jax.models import directory as directories
from rlhf_jax.models import names as names_lib
from rlhf_jax.models import tensors as tensors_lib
from rlhf_jax.models import transformer
from rlhf_jax.storage import files

Config = config_lib.Config
_FILE = 'adapter_config.json'
_STEM = 'adapter_model'
# Fields that are read, and values of others that change no forward pass. Any
# other field of PEFT must be absent or empty, so that none is missed.
_READ = ('r', 'lora_alpha', 'lora_dropout', 'rank_pattern', 'alpha_pattern',
         'use_rslora')
_ANY = (
    'auto_mapping', 'base_model_name_or_path', 'exclude_modules',
    'fan_in_fan_out', 'inference_mode', 'layers_pattern',
    'layers_to_transform', 'megatron_core', 'peft_version',
    'qalora_group_size', 'revision', 'target_modules')
_VALUES = {
    'peft_type': ('LORA',), 'task_type': ('CAUSAL_LM', None),
    'bias': ('none', None),
    # Others change the base, which is then not the one that is named.
    'init_lora_weights': (True, False, None, 'gaussian', 'orthogonal', 'eva')}


@dataclasses.dataclass(frozen=True)
class _Module:
  """A linear map of PEFT, in every layer."""

  path: str  # with {} for the index of a layer
  names: tuple[str, ...]  # ours: one, or q, k and v
  layout: names_lib.Layout

  @property
  def suffix(self) -> str:
    return self.path.split('{}.')[1]

  @property
  def is_conv(self) -> bool:
    """Whether the weight is [in, out], as in GPT-2."""
    return self.layout in (names_lib.SAME, names_lib.COLUMNS)

  def keys(self, layer: int) -> list[str]:
    path = f'base_model.model.{self.path.format(layer)}'
    return [f'{path}.lora_{x}.weight' for x in 'AB']

  def join(self, parts: list[np.ndarray], config: Config) -> np.ndarray:
    """lora_B [all outputs, r] of b [r, out] of each name."""
    # As a weight whose inputs are the r ranks.
    joined = self.layout.join(parts, config)
    return joined.T if self.is_conv else joined

  def split(self, b: np.ndarray, config: Config) -> list[np.ndarray]:
    return list(self.layout.split(b.T if self.is_conv else b, config))


def _modules(config: Config) -> Iterator[_Module]:
  for rule in names_lib.table(config).rules:
    kinds = [leaf.split('/') for leaf in rule.leaves]
    if all(kind[0] == 'layers' and kind[-1] == 'kernel' for kind in kinds):
      yield _Module(rule.name.removesuffix('.weight'),
                    tuple(kind[1] for kind in kinds), rule.layout)


def _sizes(config: Config) -> dict[str, tuple[int, int]]:
  """Inputs and outputs of each linear map, by our name."""
  params = jax.eval_shape(lambda: transformer.init(config, jax.random.key(0)))
  return {name: entry['kernel'].shape[1:]
          for name, entry in params['layers'].items() if 'kernel' in entry}


def save(directory: str | os.PathLike, config: Config, adapter: types.Params,
         *, base: str):
  """Writes an adapter that peft.PeftModel.from_pretrained loads.

  Args:
    directory: made if it is missing; must not hold an adapter.
    config: of the decoder, with the adapter's scale and dropout.
    adapter: of `lora.init`; ranks may differ.
    base: name or path of the model under it, for adapter_config.json.

  Raises:
    ValueError: the adapter is not one of this decoder.
    CheckpointError: an adapter is there already, or the disk refuses.
  """
  layers = jax.tree.map(lambda x: np.asarray(x, np.float32), adapter['layers'])
  sizes = _sizes(config)
  _check(config, layers, sizes)
  tensors, ranks = {}, {}
  for module in _modules(config):
    names = [name for name in module.names if name in layers]
    if not names:
      continue
    ranks[module.suffix] = sum(layers[name]['a'].shape[2] for name in names)
    for i in range(config.num_layers):
      a, b = module.keys(i)
      tensors[a] = np.concatenate(
          [layers[name]['a'][i] for name in names], axis=1).T
      tensors[b] = module.join(
          _blocks([layers[name]['b'][i] if name in layers else
                   np.zeros((0, sizes[name][1]), np.float32)
                   for name in module.names]), config)
  rank, scale = min(ranks.values()), config.adapter_scale
  other = {name: r for name, r in ranks.items() if r != rank}
  tensors_lib.write(directory, tensors, stem=_STEM)
  # Last: without it there is no adapter.
  files.write_json(pathlib.Path(directory) / _FILE, {
      'peft_type': 'LORA', 'task_type': 'CAUSAL_LM',
      'base_model_name_or_path': base, 'inference_mode': True,
      'r': rank, 'lora_alpha': _number(scale * rank),
      'lora_dropout': config.adapter_dropout, 'bias': 'none',
      'target_modules': sorted(ranks),
      'fan_in_fan_out': config.family == 'gpt2',
      'rank_pattern': other,
      'alpha_pattern': {k: _number(scale * r) for k, r in other.items()}})


def _number(x: float) -> int | float:
  return int(x) if float(x).is_integer() else float(x)


def _check(config: Config, layers: types.Params,
           sizes: dict[str, tuple[int, int]]):
  """ValueError unless the factors fit the decoder."""
  if not layers:
    raise ValueError('adapter has no factors.')
  for name, factors in layers.items():
    if name not in sizes:
      raise ValueError(f'adapter has layers/{name}; there are '
                       f'{", ".join(sizes)}.')
    rank = factors['a'].shape[-1]
    expected = [(config.num_layers, sizes[name][0], rank),
                (config.num_layers, rank, sizes[name][1])]
    shapes = [factors[k].shape for k in 'ab']
    if shapes != expected or not rank:
      raise ValueError(f'adapter layers/{name} has shapes {shapes}, and the '
                       f'decoder needs {expected}.')


def _blocks(parts: list[np.ndarray]) -> list[np.ndarray]:
  """Each of b [r, out] with rows of zeros for the ranks of the others."""
  ranks = [len(part) for part in parts]
  return [np.pad(part, ((sum(ranks[:i]), sum(ranks[i + 1:])), (0, 0)))
          for i, part in enumerate(parts)]


def load(directory: str | os.PathLike,
         config: Config) -> tuple[Config, types.Params]:
  """Reads an adapter that PEFT, or `save`, has written.

  The model that it was made for is for the caller to know; only shapes are
  compared.

  Args:
    directory: with adapter_config.json and safetensors.
    config: of the decoder.

  Returns:
    The config with the adapter's scale and dropout, and the adapter, float32
    numpy arrays, see `lora`. Its ranks differ where PEFT's do. Of an adapter
    of q, k and v as one map each has all ranks but those that `save` has
    filled with zeros.

  Raises:
    ConfigError: adapter_config.json asks for more than low-rank additions to
      the linear maps of all layers.
    CheckpointError: the directory is refused (`models.directory`), a file is
      not sound (`models.tensors`), or tensors are missing, superfluous, of a
      wrong shape or dtype, or not finite.
  """
  directory = directories.check(directory)
  settings = _Settings(directory / _FILE, directories.read_json(
      directory, _FILE))
  tensors = tensors_lib.read(directories.weight_files(directory, stem=_STEM))
  problems, layers, known, sizes = [], {}, set(), _sizes(config)
  for module in _modules(config):
    keys = [module.keys(i) for i in range(config.num_layers)]
    flat = {key for pair in keys for key in pair}
    if flat.isdisjoint(tensors):
      continue
    known |= flat
    # Patterns may name a layer.
    ranks, scales = zip(*(settings.of(module.path.format(layer))
                          for layer in range(config.num_layers)))
    inputs = sizes[module.names[0]][0]
    outputs = sum(sizes[name][1] for name in module.names)
    faults = [_fault(tensors, key, shape)
              for pair, rank in zip(keys, ranks, strict=True)
              for key, shape in zip(pair, ((rank, inputs), (outputs, rank)))]
    if len({*ranks}) > 1:  # layers are one array
      faults.append(f'{directories.quote(module.path)} has another rank in '
                    f'another layer ({min(ranks)} to {max(ranks)})')
    problems += filter(None, faults)
    if not any(faults):
      layers |= _read(config, module, tensors, keys,
                      np.float32(scales) / np.float32(settings.scale))
  problems += [f'{directories.quote(key)} is no factor of a linear map of its '
               f'{config.num_layers} layers'
               for key in tensors if key not in known]
  if problems:
    raise errors.CheckpointError(
        f'{directory} is not an adapter of this {config.family} model: '
        f'{"; ".join(problems[:5])}'
        f'{f"; and {len(problems) - 5} more" if len(problems) > 5 else ""}; '
        'use it with the model that it was made for')
  return dataclasses.replace(
      config, adapter_scale=settings.scale,
      adapter_dropout=settings.dropout), {'layers': layers}


def _fault(tensors: tensors_lib.Tensors, key: str,
           shape: tuple[int, ...]) -> str | None:
  """What is wrong with a tensor, in words."""
  if key not in tensors:
    return f'{directories.quote(key)} is missing'
  if tensors.specs[key].shape != shape:
    return (f'{directories.quote(key)} has shape '
            f'{list(tensors.specs[key].shape)} and not {list(shape)}')
  if not np.isfinite(tensors[key]).all():
    return f'{directories.quote(key)} has a NaN or an infinity'
  return None


def _read(config, module, tensors, keys, factor) -> types.Params:
  """The factors of a module by our names; b times `factor`, f32[L]."""
  a = np.stack([tensors[key].T for key, _ in keys]).astype(np.float32)
  split = [module.split(tensors[key], config) for _, key in keys]
  out = {}
  for name, parts in zip(module.names, zip(*split, strict=True), strict=True):
    b = np.stack(parts).astype(np.float32) * factor[:, None, None]
    out[name] = {'a': a, 'b': b, 'used': b.any(axis=(0, 2))}
  if not any(entry['used'].any() for entry in out.values()):
    # Not trained yet, so nothing says which ranks are whose.
    return {name: {'a': a, 'b': out[name]['b']} for name in out}
  if len(out) == 1:
    return {name: {'a': a, 'b': entry['b']} for name, entry in out.items()}
  return {name: {'a': a[:, :, entry['used']], 'b': entry['b'][:, entry['used']]}
          for name, entry in out.items() if entry['used'].any()}


class _Settings:
  """adapter_config.json, checked."""

  def __init__(self, path: pathlib.Path, raw: Any):
    self._path = path
    if not isinstance(raw, dict):
      raise errors.ConfigError(f'{path} is not an object')
    for name, value in raw.items():
      if name in _VALUES:
        if value not in _VALUES[name]:
          self._refuse(name, value, 'it must be one of '
                       f'{", ".join(map(json.dumps, _VALUES[name]))}')
      elif name not in (*_READ, *_ANY) and value:
        self._refuse(name, value, 'only plain LoRA is supported; merge the '
                     'adapter into its model with peft')
    self._rank = self._number('r', raw.get('r'))
    self._alpha = self._number('lora_alpha', raw.get('lora_alpha'))
    self._root = bool(raw.get('use_rslora'))
    dropout = raw.get('lora_dropout') or 0
    self.dropout = float(dropout) if isinstance(dropout, int | float) else -1
    if not 0 <= self.dropout < 1:
      self._refuse('lora_dropout', dropout, 'it must be in [0, 1)')
    self._patterns = [self._pattern(name, raw.get(name) or {})
                      for name in ('rank_pattern', 'alpha_pattern')]
    self.scale = self._scale(self._rank, self._alpha)

  def _refuse(self, name, value, needed):
    raise errors.ConfigError(
        f'{self._path}: {directories.quote(name)} is '
        f'{directories.quote(json.dumps(value))}; {needed}')

  def _number(self, name: str, value: Any) -> int | float:
    if (type(value) not in (int, float) or not 0 < value < 2**31
        or (name in ('r', 'rank_pattern') and type(value) is not int)):
      self._refuse(name, value, 'it must be a number above 0')
    return value

  def _pattern(self, name: str, value: Any) -> dict[str, int | float]:
    """Numbers by the end of a module's path."""
    if not isinstance(value, dict):
      self._refuse(name, value, 'it must be an object')
    for key, number in value.items():
      # PEFT takes any regular expression, and one can run for ever.
      if not re.fullmatch(r'[\w.]+', key):
        self._refuse(name, key, 'its keys must be names of modules')
      self._number(name, number)
    return value

  def _scale(self, rank: int, alpha: float) -> float:
    return alpha / (math.sqrt(rank) if self._root else rank)

  def of(self, path: str) -> tuple[int, float]:
    """Rank and scale of a module."""
    rank, alpha = (
        next((v for k, v in pattern.items() if f'.{path}'.endswith(f'.{k}')),
             default)
        for pattern, default in zip(
            self._patterns, (self._rank, self._alpha), strict=True))
    return rank, self._scale(rank, alpha)
