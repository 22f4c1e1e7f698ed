"""The fields of a config.json, one at a time, each checked as it is read.

What a field may not be is refused with its name, its value, and what there is.
"""

import json
import math
from typing import Any

from rlhf_jax import errors
from rlhf_jax.models import config as config_lib

Config = config_lib.Config

_ACTIVATIONS = {  # several names for one function
    'silu': 'silu', 'swish': 'silu', 'relu': 'relu',
    'gelu': 'gelu', 'gelu_python': 'gelu',
    'gelu_new': 'gelu_new', 'gelu_fast': 'gelu_new',
    'gelu_accurate': 'gelu_new', 'gelu_pytorch_tanh': 'gelu_new',
    'gelu_python_tanh': 'gelu_new'}
_MAX = 2**31 - 1


class Fields:
  """The fields of a config.json, checked and ticked off as they are read."""

  def __init__(self, raw: dict[str, Any]):
    self.raw = raw
    self.read: set[str] = set()

  def get(self, names: str, default: Any = None) -> Any:
    """The value under one of the names, which are separated by spaces."""
    settings = {n: self.raw[n] for n in names.split() if n in self.raw}
    self.read.update(settings)
    values = list(settings.values())
    if any(value != values[0] for value in values):
      raise errors.ConfigError(
          f'{" and ".join(settings)} are the same setting and differ: '
          f'{", ".join(map(show, values))}; remove one')
    return values[0] if values else default

  def whole(self, names: str, default: int | None, *, least: int = 1,
            most: int = _MAX) -> int:
    """An integer in a range."""
    value = self.get(names, default)
    if type(value) is not int or not least <= value <= most:
      refuse(names, value, f'it must be a whole number, {least} to {most}')
    return value

  def maybe(self, names: str, default: int | None = None) -> int | None:
    """A whole number >= 1, or None where it is null."""
    if self.get(names, default) is None:
      return None
    return self.whole(names, default)

  def number(self, name: str, default: float | None) -> float:
    """A finite number > 0."""
    value = self.get(name, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
      refuse(name, value, 'it must be a number > 0')
    return float(value)

  def flag(self, name: str, default: bool) -> bool:
    """True or false."""
    value = self.get(name, default)
    if type(value) is not bool:
      refuse(name, value, 'it must be true or false')
    return value

  def activation(self, name: str, default: str) -> str:
    """One of `config.ACTIVATIONS`, under any of its names."""
    value = self.get(name, default)
    if not isinstance(value, str) or value not in _ACTIVATIONS:
      refuse(name, value, f'there are {", ".join(sorted(_ACTIVATIONS))}')
    return _ACTIVATIONS[value]


def show(value: Any) -> str:
  """A value from a file, as JSON, short and on one line."""
  text = json.dumps(value)
  return text if len(text) <= 80 else f'{text[:80]}...'


def refuse(names: str, value: Any, needed: str):
  """Raises ConfigError: a field, its value, and what there is."""
  raise errors.ConfigError(
      f'{names.partition(" ")[0]} is {show(value)}; {needed}')


def read_rope(f: Fields, *, base: str, part: str, fraction: float
              ) -> dict[str, Any]:
  """Rotary settings, as transformers 4 or 5 writes them.

  Args:
    f: the fields.
    base: name of the base frequency outside `rope_parameters`.
    part: name of the fraction of the head that turns.
    fraction: its default.

  Returns:
    Arguments of `config.make_config`.

  Raises:
    ConfigError: a scaling that is not one of `config.RopeScaling`, a number
      out of range, or the two ways of writing them disagree.
  """
  rope = {k: v or {} for k in ('rope_parameters', 'rope_scaling')
          for v in [f.get(k)]}
  for name, value in rope.items():
    if not isinstance(value, dict) or any(
        isinstance(v, dict) for v in value.values()):
      refuse(name, value, 'it must be one set of numbers for all layers')
  new, old = rope.values()
  if new and old and new != old:
    raise errors.ConfigError('rope_parameters and rope_scaling differ: '
                             f'{show(new)} and {show(old)}; remove one')
  inner = Fields(new or old)
  numbers = []
  for name, outer, default in (
      ('rope_theta', base, 10_000.0),
      ('partial_rotary_factor', part, fraction)):
    numbers.append(inner.number(name, f.number(outer, default)))
    if f.number(outer, numbers[-1]) != numbers[-1]:
      raise errors.ConfigError(
          f'{outer} is {show(f.get(outer))} and {name} in rope_parameters '
          f'{numbers[-1]:g}; remove one')
  theta, fraction = numbers
  if fraction > 1:
    refuse(part, fraction, 'it must be at most 1')
  kind = inner.get('rope_type type', 'default')
  if kind not in ('default', 'linear', 'llama3'):
    refuse('rope_type', kind, 'there are "default", "linear", "llama3"')
  scaling = None
  if kind == 'linear':
    scaling = dict(kind=kind, factor=inner.number('factor', None))
  if kind == 'llama3':
    scaling = dict(
        kind=kind, factor=inner.number('factor', None),
        low_frequency_factor=inner.number('low_freq_factor', None),
        high_frequency_factor=inner.number('high_freq_factor', None),
        original_length=inner.whole(
            'original_max_position_embeddings',
            f.raw.get('max_position_embeddings')))
  return dict(rope_theta=theta, rotary_fraction=fraction, rope_scaling=scaling)


def write_rope(c: Config, base: str) -> dict[str, Any]:
  """Rotary settings as transformers 4 writes and 5 reads them."""
  scaling = c.rope_scaling
  if scaling is not None:
    scaling = dict(rope_type=scaling.kind, factor=scaling.factor) | (
        {} if scaling.kind == 'linear' else dict(
            low_freq_factor=scaling.low_frequency_factor,
            high_freq_factor=scaling.high_frequency_factor,
            original_max_position_embeddings=scaling.original_length))
  return {base: c.rope_theta, 'rope_scaling': scaling}
