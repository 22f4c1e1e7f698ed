"""Headers of GGUF files: metadata, and where the tensors are.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A file
comes from somebody else, so what it says is checked against its size before it
is believed. The reader of the package `gguf` is not used: it takes seconds for
a vocabulary, and on some damaged files it does not end.
"""

import mmap
import os
import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax import errors
from rlhf_jax.models import directory

_SCALARS = {  # numpy dtypes of the types of metadata, little-endian
    0: 'u1', 1: 'i1', 2: '<u2', 3: '<i2', 4: '<u4', 5: '<i4', 6: '<f4',
    7: '?', 10: '<u8', 11: '<i8', 12: '<f8'}
_STRING, _ARRAY = 8, 9
_MAX_ENTRIES = 2**16  # of metadata, and of tensors; large models have 2,000
_MAX_DIMENSIONS = 4  # of GGML


class Tensor(NamedTuple):
  """What a header says of one tensor."""

  shape: tuple[int, ...]  # the last dimension varies fastest
  kind: int  # a gguf.GGMLQuantizationType
  start: int  # bytes from the start of the file


class File(NamedTuple):
  """A mapped file whose header is sound; sizes of tensors are not checked."""

  path: pathlib.Path
  raw: mmap.mmap
  metadata: dict[str, Any]  # scalars, strings, arrays, lists of strings
  tensors: dict[str, Tensor]


def read(path: str | os.PathLike) -> File:
  """Maps a file and reads its header; the package gguf is not needed.

  Raises:
    CheckpointError: the file is missing, is not a regular file, or has no
      sound header: wrong magic, other version, truncated, a name twice, or
      data outside it.
  """
  path = pathlib.Path(path)
  with directory.open_file(path) as stream:
    if stream.read(4) != b'GGUF':
      raise unsound(path, 'it does not start with GGUF')
    try:
      raw = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
      raise errors.CheckpointError(
          f'cannot map {path}: {error.strerror}') from error
  try:
    return File(path, raw, *_Header(raw).parse())
  except (ValueError, struct.error) as error:
    raise unsound(path, errors.first_line(error)) from error


class _Header:
  """Reads the header from front to back; ValueError where it is unsound."""

  def __init__(self, raw: mmap.mmap):
    self._raw = raw
    self._at = len(b'GGUF')

  def parse(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors, by name."""
    version, num_tensors, num_metadata = self._numbers('IQQ')
    if version not in (2, 3):
      raise ValueError(f'version {version} is not 2 or 3, little-endian')
    if max(num_tensors, num_metadata) > _MAX_ENTRIES:
      raise ValueError(f'{num_tensors} tensors and {num_metadata} metadata')
    metadata = self._named(num_metadata, lambda: self._value(
        self._numbers('I')[0]))
    tensors = self._named(num_tensors, self._tensor)
    alignment = metadata.get('general.alignment', 32)
    if not isinstance(alignment, int) or alignment < 1:
      raise ValueError(f'general.alignment is {alignment!r:.80}')
    base = -(-self._at // alignment) * alignment
    return metadata, {name: tensor._replace(start=base + tensor.start)
                      for name, tensor in tensors.items()}

  def _named(self, count: int, entry) -> dict[str, Any]:
    entries = {}
    for _ in range(count):
      name = self._text()
      if name in entries:
        raise ValueError(f'{directory.quote(name)} occurs twice')
      entries[name] = entry()
    return entries

  def _numbers(self, codes: str) -> tuple[int, ...]:
    values = struct.unpack_from(f'<{codes}', self._raw, self._at)
    self._at += struct.calcsize(f'<{codes}')
    return values

  def _text(self) -> str:
    length, = self._numbers('Q')
    if length > len(self._raw) - self._at:
      raise ValueError(f'a text of {length} bytes at byte {self._at}')
    self._at += length
    return self._raw[self._at - length:self._at].decode()

  def _array(self, dtype: str, count: int) -> np.ndarray:
    if count * np.dtype(dtype).itemsize > len(self._raw) - self._at:
      raise ValueError(f'{count} numbers at byte {self._at}')
    # A copy of what may be a vocabulary; so it does not keep the file open.
    values = np.frombuffer(self._raw, dtype, count, self._at).copy()
    self._at += values.nbytes
    return values

  def _value(self, kind: int) -> Any:
    if kind == _STRING:
      return self._text()
    if kind in _SCALARS:
      return self._array(_SCALARS[kind], 1)[0].item()
    if kind != _ARRAY:
      raise ValueError(f'metadata of the unknown type {kind}')
    kind, count = self._numbers('IQ')
    if kind == _STRING:  # ends, at the latest, with the file
      return [self._text() for _ in range(count)]
    if kind not in _SCALARS:
      raise ValueError(f'an array of the unknown type {kind}')
    return self._array(_SCALARS[kind], count)

  def _tensor(self) -> Tensor:
    dimensions, = self._numbers('I')
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
      raise ValueError(f'a tensor of {dimensions} dimensions')
    *shape, kind, start = self._numbers('Q' * dimensions + 'IQ')
    return Tensor(tuple(shape[::-1]), kind, start)


def unsound(path: pathlib.Path, what: str) -> errors.CheckpointError:
  return errors.CheckpointError(
      f'{path} is not sound GGUF: {what}; get the file again')
