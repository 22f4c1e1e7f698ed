"""What a model directory may hold, checked before a byte of weights is read.

A model directory comes from somebody else. Nothing in it may run code, be
reached outside it, or hang or exhaust the reader, so it is checked by names
and file kinds first; JSON is read next, under a cap, by our own parser; only
then are the weights opened, by `tensors`.

Read: safetensors and JSON, by us, and tokenizers and their templates, by
`transformers`. Never opened: pickles (a pytorch_model.bin beside safetensors,
as in many published models, is simply not looked at), Python files, and other
subdirectories.
"""

from collections.abc import Collection, Iterator
import json
import os
import pathlib
import stat
from typing import Any, BinaryIO

from rlhf_jax import errors

MAX_JSON_BYTES = 16 * 2**20
MAX_VOCABULARY_BYTES = 64 * 2**20  # of tokenizer.json and vocab.json
_VOCABULARIES = ('tokenizer.json', 'vocab.json')
# What readers of models open by themselves, besides *config.json.
_OTHER_JSON = (
    *_VOCABULARIES, 'added_tokens.json', 'chat_template.json',
    'model_index.json', 'special_tokens_map.json',
)
_PICKLES = (
    '.bin', '.ckpt', '.dill', '.joblib', '.npy', '.npz', '.pickle', '.pkl',
    '.pt', '.pth',
)
# Keys of a config that make transformers or diffusers run downloaded Python.
_CODE_KEYS = frozenset({'auto_map', 'custom_pipelines', 'trust_remote_code'})
# A path of its author's disk is in many published models; nobody opens it.
_IDLE_KEYS = frozenset({'special_tokens_map_file'})
_TEMPLATES = 'additional_chat_templates'  # the subdirectory that is read


def check(directory: str | os.PathLike) -> pathlib.Path:
  """Refuses a directory that is not plain files, safetensors and JSON.

  Only names, kinds and sizes are looked at, and then the JSON of configs and
  tokenizers is read; weights are not opened. A directory without weights,
  such as a tokenizer's, passes.

  Args:
    directory: of one model, adapter or tokenizer, not of a hub's cache.

  Returns:
    The same path.

  Raises:
    CheckpointError: it is not a directory; an entry is a link out of it, a
      pipe, a socket or a device; its only weights are pickles; JSON is
      malformed, repeats a key or is too large; a config asks for code of its
      own (auto_map, trust_remote_code, custom_pipelines) or names a file by a
      path.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise errors.CheckpointError(
        f'{directory} is not a directory; name one that holds config.json '
        'and model.safetensors')
  names = _check_entries(directory)
  if _TEMPLATES in names:
    _check_entries(directory / _TEMPLATES)
  _refuse_pickles(directory, names)
  for name in names:
    if name.endswith('config.json') or name in _OTHER_JSON:
      read_json(directory, name)
  return directory


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
  """Reads config.json; the caller checks its model_type.

  Raises:
    CheckpointError: the file is missing or refused by `read_json`, or has no
      model_type.
  """
  config = read_json(directory, 'config.json')
  model_type = config.get('model_type') if isinstance(config, dict) else None
  if not isinstance(model_type, str):
    raise errors.CheckpointError(
        f'{pathlib.Path(directory) / "config.json"} has no model_type; it is '
        'not the config of a model')
  return config


def end_ids(directory: str | os.PathLike) -> tuple[int, ...]:
  """`eos_token_id` of generation_config.json, one or several; () without it.

  Raises:
    CheckpointError: the file is refused by `read_json`, or has no ids there.
  """
  path = pathlib.Path(directory) / 'generation_config.json'
  if not os.path.lexists(path):
    return ()
  config = read_json(directory, path.name)
  ids = config.get('eos_token_id') if isinstance(config, dict) else config
  ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
  if not all(type(x) is int and x >= 0 for x in ids):
    raise errors.CheckpointError(
        f'{path}: eos_token_id is {quote(str(ids))}; give ids of tokens')
  return tuple(ids)


def read_json(directory: str | os.PathLike, name: str) -> Any:
  """Reads a JSON file of a model directory.

  Args:
    directory: of one model.
    name: of a file in it, without a path.

  Raises:
    CheckpointError: see `inside`; or the file is larger than 16 MiB (64 MiB
      if a vocabulary), malformed, has a key twice, or is a config that asks
      for code of its own or names a file by a path.
  """
  path = inside(directory, name)
  cap = MAX_VOCABULARY_BYTES if name in _VOCABULARIES else MAX_JSON_BYTES
  with open_file(path) as stream:
    raw = stream.read(cap + 1)
  if len(raw) > cap:
    raise errors.CheckpointError(
        f'{path} is larger than {cap >> 20} MiB; no published model has that')
  obj = parse_json(raw, path)
  if name not in _VOCABULARIES:  # a word may have any name, a setting may not
    for key, value in _settings(obj):
      _check_setting(path, key, value)
  return obj


def parse_json(raw: bytes, path: str | os.PathLike) -> Any:
  """Parses strict JSON: UTF-8, no key twice, no NaN or infinity.

  Raises CheckpointError naming `path`.
  """
  try:
    return json.loads(
        raw.decode(), object_pairs_hook=_unique, parse_constant=_not_a_number)
  except (ValueError, RecursionError) as error:
    raise errors.CheckpointError(
        f'{path} is not valid JSON: {errors.first_line(error)}; get the file '
        'again') from error


def weight_files(
    directory: str | os.PathLike, *, stem: str = 'model'
) -> dict[pathlib.Path, frozenset[str] | None]:
  """The safetensors files of a model, all checked and none opened.

  Args:
    directory: of one model.
    stem: 'model', or 'adapter_model' for a PEFT adapter.

  Returns:
    The shards of `<stem>.safetensors.index.json`, sorted, each with the names
    of the tensors that the index promises; or `<stem>.safetensors` alone,
    with None for its names. What `tensors.read` takes.

  Raises:
    CheckpointError: there are none, there are two sets, the index is
      malformed, or a shard is refused by `inside`.
  """
  directory = pathlib.Path(directory)
  single, index = f'{stem}.safetensors', f'{stem}.safetensors.index.json'
  if not os.path.lexists(directory / index):
    if not os.path.lexists(directory / single):
      names = sorted(os.listdir(directory)) if directory.is_dir() else []
      _refuse_pickles(directory, names)
      others = [name for name in names if name.endswith('.safetensors')]
      raise errors.CheckpointError(
          f'{directory} has no {single} and no {index}'
          + (f', only {", ".join(map(quote, others[:3]))}' if others else '')
          + '; name the directory of one model')
    return {inside(directory, single): None}
  shards = _shards(directory, index)
  if single not in shards and os.path.lexists(directory / single):
    raise errors.CheckpointError(
        f'{directory} has two models, {single} and the shards of {index}; '
        'remove the one that is out of date')
  return {
      inside(directory, shard): frozenset(names)
      for shard, names in sorted(shards.items())
  }


def inside(directory: str | os.PathLike, name: str) -> pathlib.Path:
  """The path of a file, by a name that the directory itself may have given.

  Raises:
    CheckpointError: `name` is more than a bare file name, or the file is
      missing, a link out of the directory, or not a regular file.
  """
  directory = pathlib.Path(directory)
  if (name in ('', '.', '..') or not name.isprintable() or len(name) > 255
      or '/' in name or '\\' in name):
    raise errors.CheckpointError(
        f'{directory}: {quote(name)} is not a bare file name; files of a model '
        'must lie in its directory')
  _stays_inside(directory, name)
  _regular(directory / name)
  return directory / name


def open_file(path: str | os.PathLike) -> BinaryIO:
  """Opens a regular file, looking before it does, so that no pipe can hang it.

  Raises CheckpointError naming `path` if it is missing or another kind.
  """
  _regular(path)
  # Should it have become a pipe since: opening that must not wait either.
  opener = lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
  try:
    return open(path, 'rb', opener=opener)
  except OSError as error:
    raise errors.CheckpointError(
        f'cannot open {path}: {error.strerror}') from error


def quote(text: str) -> str:
  """A string of someone else's, on one line and short, for a message."""
  return repr(text if len(text) <= 80 else f'{text[:80]}...')


def _check_entries(directory: pathlib.Path) -> list[str]:
  """The names in a directory, none of which leads out or is a device."""
  try:
    names = sorted(os.listdir(directory))
  except OSError as error:
    raise errors.CheckpointError(
        f'cannot list {directory}: {error.strerror}') from error
  for name in names:
    if (directory / name).is_dir():
      _stays_inside(directory, name)
    else:
      inside(directory, name)
  return names


def _check_setting(path: pathlib.Path, key: str, value: Any):
  if key in _CODE_KEYS and value:
    raise errors.CheckpointError(
        f'{path}: {key} refused: it would run Python that came with the '
        'model; use a model whose architecture is built in, or remove '
        f'{key} if it is one of those')
  if key.endswith(('_file', '_files')) and key not in _IDLE_KEYS:
    for name in value if isinstance(value, list) else [value]:
      if isinstance(name, str) and ('/' in name or '\\' in name):
        raise errors.CheckpointError(
            f'{path}: {quote(key)} is the path {quote(name)}, but files of a '
            'model must lie in its directory; remove that setting')


def _stays_inside(directory: pathlib.Path, name: str):
  root = os.path.realpath(directory)
  target = os.path.realpath(directory / name)
  if os.path.commonpath([root, target]) != root:
    raise errors.CheckpointError(
        f'{directory}: {quote(name)} is a link out of the directory; make a '
        f'copy without links: cp -rL {directory} NEW')


def _regular(path: str | os.PathLike):
  try:
    mode = os.stat(path).st_mode
  except OSError as error:
    raise errors.CheckpointError(
        f'{path} is missing or cannot be read: {error.strerror}; get the whole '
        'model again') from error
  if not stat.S_ISREG(mode):
    raise errors.CheckpointError(
        f'{path} is not a regular file, and is not opened; remove it')


def _refuse_pickles(directory: pathlib.Path, names: Collection[str]):
  pickles = [name for name in names if name.lower().endswith(_PICKLES)]
  if pickles and not any(
      name.endswith(('.safetensors', '.gguf')) for name in names):
    raise errors.CheckpointError(
        f'pickle refused: {directory} has {quote(pickles[0])} and no '
        'safetensors, and to read a pickle is to run what it says; get '
        'model.safetensors from where the model came from, or, if you trust '
        'that, load it with transformers elsewhere and save_pretrained it')


def _shards(directory: pathlib.Path, index: str) -> dict[str, list[str]]:
  """Names of tensors by name of shard; the names of shards are unchecked."""
  obj = read_json(directory, index)
  weight_map = obj.get('weight_map') if isinstance(obj, dict) else None
  if not isinstance(weight_map, dict) or not weight_map:
    raise errors.CheckpointError(
        f'{directory / index} has no weight_map; get the file again')
  shards: dict[str, list[str]] = {}
  for name, shard in weight_map.items():
    if not isinstance(shard, str) or not shard.endswith('.safetensors'):
      kind = ('pickle refused' if str(shard).lower().endswith(_PICKLES)
              else 'not safetensors')
      raise errors.CheckpointError(
          f'{directory / index}: {kind}: {quote(name)} is said to be in '
          f'{quote(str(shard))}; every shard must be a .safetensors file')
    shards.setdefault(shard, []).append(name)
  return shards


def _settings(obj: Any) -> Iterator[tuple[str, Any]]:
  """Keys and values of all dicts in JSON, at any depth."""
  todo = [obj]
  while todo:
    top = todo.pop()
    if isinstance(top, dict):
      yield from top.items()
      todo.extend(top.values())
    elif isinstance(top, list):
      todo.extend(top)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  obj = dict(pairs)
  if len(obj) != len(pairs):
    seen = set()
    for key, _ in pairs:
      if key in seen:
        raise ValueError(f'key {quote(key)} occurs twice')
      seen.add(key)
  return obj


def _not_a_number(text: str):
  raise ValueError(f'{text} is not a JSON number')
