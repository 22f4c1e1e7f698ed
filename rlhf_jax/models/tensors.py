"""Safetensors files without torch: read lazily, written whole or not at all.

A file is 8 bytes of header length, a header in JSON, and the tensors
(https://huggingface.co/docs/safetensors). It comes from somebody else, so the
header is checked against the size of the file before anything is believed:
what the `safetensors` library refuses is refused, and also a name given twice,
of which that library silently takes one. Tensors are views of the mapped file:
the operating system reads their pages when they are touched, and a model is
never in memory twice.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
import contextlib
import dataclasses
import json
import math
import mmap
import os
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from rlhf_jax import errors
from rlhf_jax.models import directory as directories
from rlhf_jax.storage import files

DTYPES = {
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'F16': np.dtype(np.float16),
    'F32': np.dtype(np.float32),
}
MAX_HEADER_BYTES = 16 * 2**20  # some 100,000 tensors; the library: 100 MB
# Others may be in a file, as masks are in GPT-NeoX, but not be read.
_BITS = {
    'BOOL': 8, 'F4': 4, 'F6_E2M3': 6, 'F6_E3M2': 6, 'U8': 8, 'I8': 8,
    'F8_E5M2': 8, 'F8_E4M3': 8, 'F8_E8M0': 8, 'F8_E4M3FNUZ': 8,
    'F8_E5M2FNUZ': 8, 'I16': 16, 'U16': 16, 'F16': 16, 'BF16': 16, 'I32': 32,
    'U32': 32, 'F32': 32, 'C64': 64, 'F64': 64, 'I64': 64, 'U64': 64,
}
# The first bytes of pickles of protocols 2 to 5, of zip files, which torch
# and npz use, and of npy, which may hold a pickle.
_PICKLE_STARTS = (b'\x80\x02', b'\x80\x03', b'\x80\x04', b'\x80\x05', b'PK',
                  b'\x93NUMPY')
_PT = {'format': 'pt'}  # transformers asks for it


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a header says of one tensor."""

  dtype: str  # in the format's words, such as 'BF16'
  shape: tuple[int, ...]
  start: int  # bytes from the start of the file, or of its tensors
  nbytes: int


class Tensors(Mapping[str, np.ndarray]):
  """Tensors of one or more files, by name.

  An array is a read-only view of its file, of dtype float32, float16 or
  bfloat16 (of `ml_dtypes`), and lives as long as somebody holds it; one that
  starts at an odd byte, which writers avoid, is a copy. The files must not be
  changed in place meanwhile: a process that touches a view beyond the end of
  a shortened file is killed. To be replaced or deleted does them no harm.
  """

  def __init__(
      self, opened: Sequence[tuple[pathlib.Path, mmap.mmap, dict[str, Spec]]]
  ):
    """Takes over mapped files with their headers; names are unique."""
    self._files = {name: (path, mapped)
                   for path, mapped, header in opened for name in header}
    self.specs: dict[str, Spec] = {
        name: spec for *_, header in opened for name, spec in header.items()}

  def __getitem__(self, name: str) -> np.ndarray:
    """Raises CheckpointError if the dtype is not one of `DTYPES`."""
    spec = self.specs[name]
    path, mapped = self._files[name]
    if spec.dtype not in DTYPES:
      raise errors.CheckpointError(
          f'{path}: {directories.quote(name)} is of dtype {spec.dtype}; '
          f'it must be one of {", ".join(DTYPES)}')
    flat = np.frombuffer(
        mapped, np.uint8, count=spec.nbytes, offset=spec.start)
    if spec.start % DTYPES[spec.dtype].itemsize:  # allowed, and rare
      flat = flat.copy()
      flat.flags.writeable = False
    return flat.view(DTYPES[spec.dtype]).reshape(spec.shape)

  def __iter__(self) -> Iterator[str]:
    return iter(self.specs)

  def __len__(self) -> int:
    return len(self.specs)


def read(
    source: str | os.PathLike | Mapping[pathlib.Path, frozenset[str] | None],
) -> Tensors:
  """Opens safetensors; only headers are read.

  Args:
    source: one file, or the files that `directory.weight_files` returns.

  Raises:
    CheckpointError: a file is not a regular file, or is not sound safetensors:
      truncated, header of more than 16 MiB, not strict JSON or with a name
      twice, tensors with gaps, overlaps, bytes left over or a size that is
      not of their shape and dtype, or no tensors at all; or a shard does not
      hold the names that its index promises, or a name is in two shards.
  """
  if isinstance(source, str | os.PathLike):
    source = {pathlib.Path(source): None}
  opened, owners = [], {}
  for path, promised in source.items():
    mapped, header = _open(path)
    opened.append((path, mapped, header))
    if promised is not None:
      _check_names(path, header.keys(), promised)
    for name in header:
      if name in owners:
        raise errors.CheckpointError(
            f'{directories.quote(name)} is in {owners[name]} and in {path}; '
            'get both files again')
      owners[name] = path
  return Tensors(opened)


def write(
    directory: str | os.PathLike,
    tensors: Mapping[str, Any],
    *,
    stem: str = 'model',
    max_shard_bytes: int = 5 * 10**9,
    metadata: Mapping[str, str] | None = None,
) -> list[pathlib.Path]:
  """Writes `<stem>.safetensors`, or shards and their index.

  A reader finds all tensors or none: a single file is renamed into place, and
  shards are not found before their index, which is written last.

  Args:
    directory: made if it is missing; may hold other files, but not a model
      of this stem, since overwriting one in place would mix two models.
    tensors: arrays of numpy or jax, float32, float16 or bfloat16, any
      strides. Each is asked for twice and held once.
    stem: 'model', or 'adapter_model' for a PEFT adapter.
    max_shard_bytes: of tensors in one file; a larger tensor has its own.
    metadata: of every file; None: {'format': 'pt'}, as transformers writes.

  Returns:
    The files that were written, in order.

  Raises:
    ValueError: no tensors, a bad name, another dtype, max_shard_bytes < 1.
    CheckpointError: a model is there already, or the disk refuses.
  """
  directory = pathlib.Path(directory)
  shards = _split(tensors, max_shard_bytes)
  index = directory / f'{stem}.safetensors.index.json'
  for path in (directory / f'{stem}.safetensors', index):
    if os.path.lexists(path):
      raise errors.CheckpointError(
          f'{path} is there already; remove it, or write to another directory')
  names = [f'{stem}.safetensors'] if len(shards) == 1 else [
      f'{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors'
      for i in range(len(shards))
  ]
  written = []
  with contextlib.ExitStack() as undo:
    try:
      directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise errors.CheckpointError(
          f'cannot make {directory}: {error.strerror}') from error
    for name, specs in zip(names, shards, strict=True):
      # Before it is there: an interrupt may come when its name is synced.
      undo.callback((directory / name).unlink, missing_ok=True)
      _write_file(directory / name, tensors, specs, metadata or _PT)
      written.append(directory / name)
    if len(shards) > 1:
      weight_map = {key: name for name, specs in zip(names, shards)
                    for key in specs}
      undo.callback(index.unlink, missing_ok=True)
      files.write_json(index, {
          'metadata': {'total_size': sum(
              spec.nbytes for specs in shards for spec in specs.values())},
          'weight_map': dict(sorted(weight_map.items())),
      })
      written.append(index)
    undo.pop_all()  # all is well: nothing is undone
  return written


def _open(path: pathlib.Path) -> tuple[mmap.mmap, dict[str, Spec]]:
  """Maps a file whose header has been found sound."""
  with directories.open_file(path) as stream:
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(8)
    length = int.from_bytes(start, 'little')
    if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
      if start.startswith(_PICKLE_STARTS):
        raise errors.CheckpointError(
            f'pickle refused: {path} is a pickle or an archive under another '
            'name; get the safetensors file from where the model came from')
      raise _unsound(path, f'{size} bytes cannot have a header of {length}'
                     if len(start) == 8 else f'it has only {size} bytes')
    header = _parse_header(path, stream.read(length), size)
    try:
      return mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ), header
    except OSError as error:
      raise errors.CheckpointError(
          f'cannot map {path}: {error.strerror}') from error


def _parse_header(path: pathlib.Path, raw: bytes, size: int) -> dict[str, Spec]:
  """The specs of a header, in the order of the file; no byte left over."""
  header = directories.parse_json(raw, f'the header of {path}')
  if not isinstance(header, dict) or not raw.startswith(b'{'):
    raise _unsound(path, 'its header is not an object')
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(
      isinstance(value, str) for value in metadata.values()):
    raise _unsound(path, '__metadata__ is not strings by name')
  if not header:
    raise _unsound(path, 'it holds no tensors')
  base = 8 + len(raw)
  specs = {name: _parse_spec(path, name, entry, base)
           for name, entry in header.items()}
  ordered = sorted(
      specs.items(), key=lambda item: (item[1].start, item[1].nbytes))
  end = base
  for name, spec in ordered:
    if spec.start != end:
      raise _unsound(path, f'{directories.quote(name)} starts at byte '
                     f'{spec.start}, where {end} was due')
    end += spec.nbytes
  if end != size:
    raise _unsound(path, f'its tensors end at byte {end} of {size}')
  return dict(ordered)


def _parse_spec(path: pathlib.Path, name: str, entry: Any, base: int) -> Spec:
  """One tensor of a header; `base` is where the tensors start in the file."""
  quoted = directories.quote(name)
  keys = {'dtype', 'shape', 'data_offsets'}
  if not isinstance(entry, dict) or entry.keys() != keys:
    raise _unsound(path, f'{quoted} does not have just {sorted(keys)}')
  dtype, shape, offsets = entry['dtype'], entry['shape'], entry['data_offsets']
  if not isinstance(dtype, str) or dtype not in _BITS:
    raise _unsound(path, f'{quoted} has unknown dtype {dtype!r:.80}')
  if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
    raise _unsound(path, f'{quoted} has shape {shape!r:.80} and offsets '
                   f'{offsets!r:.80}')
  # As in numpy: 64 dimensions and a signed size, even if another one is 0.
  if len(shape) > 64 or math.prod(max(n, 1) for n in shape) >= 2**60:
    raise _unsound(path, f'{quoted} has shape {shape!r:.80}, too large')
  bits = math.prod(shape) * _BITS[dtype]
  if bits != 8 * (offsets[1] - offsets[0]):
    raise _unsound(path, f'{quoted} has {offsets[1] - offsets[0]} bytes for '
                   f'{dtype}{shape!r:.80}')
  return Spec(dtype, tuple(shape), base + offsets[0], bits // 8)


def _naturals(obj: Any) -> bool:
  return isinstance(obj, list) and all(
      type(n) is int and 0 <= n < 2**63 for n in obj)  # a bool is an int too


def _check_names(path: pathlib.Path, present: Set[str], expected: Set[str]):
  missing, extra = sorted(expected - present), sorted(present - expected)
  if missing or extra:
    listed = lambda names: (
        f'{", ".join(map(directories.quote, names[:3]))}'
        f'{f" and {len(names) - 3} more" if len(names) > 3 else ""}')
    raise errors.CheckpointError(
        f'{path} is not the shard of its index: '
        + '; '.join(f'{what} {listed(names)}' for what, names in (
            ('it lacks', missing), ('the index lacks', extra)) if names)
        + '; get the whole model again')


def _unsound(path: pathlib.Path, what: str) -> errors.CheckpointError:
  return errors.CheckpointError(
      f'{path} is not sound safetensors: {what}; get the file again')


def _split(
    tensors: Mapping[str, Any], max_shard_bytes: int
) -> list[dict[str, Spec]]:
  """The specs of every shard; names keep their order from shard to shard."""
  if not tensors or max_shard_bytes < 1:
    raise ValueError(f'max_shard_bytes must be >= 1, got {max_shard_bytes}, '
                     f'and there must be a tensor, got {len(tensors)}')
  words = {dtype: word for word, dtype in DTYPES.items()}
  shards: list[dict[str, Spec]] = []
  total = 0
  for name, array in tensors.items():
    if not isinstance(name, str) or name == '__metadata__':
      raise ValueError(f'{name!r} cannot be the name of a tensor')
    if array.dtype not in words:
      raise ValueError(f'{name}: dtype {array.dtype} is not one of '
                       f'{", ".join(map(str, words))}')
    if not shards or total + array.nbytes > max_shard_bytes:
      shards.append({})
      total = 0
    shards[-1][name] = Spec(
        words[array.dtype], tuple(array.shape), 0, array.nbytes)
    total += array.nbytes
  return [_lay_out(shard) for shard in shards]


def _lay_out(specs: Mapping[str, Spec]) -> dict[str, Spec]:
  """One after the other, in the order of the file."""
  out, end = {}, 0
  # The larger dtype first, as the library does: so every tensor is aligned.
  for name in sorted(specs, key=lambda n: (-_BITS[specs[n].dtype], n)):
    out[name] = dataclasses.replace(specs[name], start=end)
    end += specs[name].nbytes
  return out


def _write_file(
    path: pathlib.Path,
    tensors: Mapping[str, Any],
    specs: Mapping[str, Spec],
    metadata: Mapping[str, str],
):
  header: dict[str, Any] = {'__metadata__': dict(metadata)}
  for name, spec in specs.items():
    header[name] = {'dtype': spec.dtype, 'shape': spec.shape,
                    'data_offsets': [spec.start, spec.start + spec.nbytes]}
  raw = json.dumps(header, ensure_ascii=False, separators=(',', ':')).encode()
  raw += b' ' * (-len(raw) % 8)
  with files.replacing(path) as stream:
    stream.write(len(raw).to_bytes(8, 'little') + raw)
    for name, spec in specs.items():
      flat = np.ascontiguousarray(tensors[name]).reshape(-1)
      if flat.dtype != DTYPES[spec.dtype] or flat.nbytes != spec.nbytes:
        raise ValueError(f'{name} changed while it was written')
      stream.write(flat.view(np.uint8))
