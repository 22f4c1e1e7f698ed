"""Typed fields of an entry of a data file; each error names its field."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import numpy as np

from rlhf_jax.data import tables

_MOST = float(np.finfo(np.float32).max)  # what numbers are kept in


def value(entry: Mapping, name: str, types: type | tuple[type, ...],
          expected: str) -> Any:
  """Field `name`, which has to be of one of `types`."""
  if name not in entry:
    raise tables.BadRowError(f'field {name!r} is missing')
  field = entry[name]
  if not isinstance(field, types):
    kind = type(field).__name__
    raise tables.BadRowError(f'field {name!r} must be {expected}, got {kind}')
  return field


def text(entry: Mapping, name: str) -> str:
  """A string."""
  return _encodable(value(entry, name, str, 'a string'), name)


def nullable(entry: Mapping, name: str) -> str:
  """A string; '' if it is null."""
  string = value(entry, name, (str, type(None)), 'a string')
  return '' if string is None else _encodable(string, name)


def optional(entry: Mapping, name: str) -> str:
  """A string; '' if it is null or not there."""
  return nullable(entry, name) if name in entry else ''


def filled(entry: Mapping, name: str) -> str:
  """A string with more in it than white space."""
  string = text(entry, name)
  if not string.strip():
    raise tables.BadRowError(f'field {name!r} is blank')
  return string


def objects(entry: Mapping, name: str, kind: type, expected: str) -> list:
  """A list of values of one type."""
  items = value(entry, name, list, 'a list')
  for item in items:
    if not isinstance(item, kind):
      type_name = type(item).__name__
      raise tables.BadRowError(
          f'field {name!r} must be a list of {expected}, got {type_name} in it')
  return items


def texts(entry: Mapping, name: str) -> list[str]:
  """A list of strings."""
  return [_encodable(item, name)
          for item in objects(entry, name, str, 'strings')]


def number(entry: Mapping, name: str, low: float = -math.inf,
           high: float = math.inf) -> float:
  """A finite number in [low, high], or a string that spells one (CSV)."""
  return _number(value(entry, name, object, ''), name, low, high)


def numbers(entry: Mapping, name: str) -> list[float]:
  """A list of finite numbers."""
  return [_number(item, name)
          for item in objects(entry, name, (int, float), 'numbers')]


def flag(entry: Mapping, name: str) -> bool:
  """True or false, also as 1 or 0."""
  switch = value(entry, name, (bool, int), 'true or false')
  if switch not in (0, 1):
    raise tables.BadRowError(
        f'field {name!r} must be true or false, got {switch}')
  return bool(switch)


def first(entry: Mapping, names: Sequence[str]) -> str | None:
  """The first of `names` that is a field and not null."""
  return next((name for name in names if entry.get(name) is not None), None)


def _encodable(string: str, name: str) -> str:
  try:
    string.encode()
  except UnicodeEncodeError:
    # JSON can spell half of a surrogate pair; no tokenizer can take it.
    raise tables.BadRowError(
        f'field {name!r} has a lone surrogate') from None
  return string


def _number(field: Any, name: str, low: float = -math.inf,
            high: float = math.inf) -> float:
  try:
    if isinstance(field, bool) or not isinstance(field, int | float | str):
      raise TypeError
    number = float(field)
  except (TypeError, ValueError, OverflowError):
    text = repr(field)[:40]
    raise tables.BadRowError(
        f'field {name!r} must be a number, got {text}') from None
  if not abs(number) <= _MOST:
    raise tables.BadRowError(
        f'field {name!r} must be finite in float32, got {number}')
  if not low <= number <= high:
    raise tables.BadRowError(
        f'field {name!r} must be in [{low:g}, {high:g}], got {number:g}')
  return number
