"""Published tokenizers in their several files, to and from `tokenizers`.

Nothing here encodes: `Tokenizer.from_directory`, `from_gguf`,
`from_llama2c` and `save_directory` are thin calls of these functions.
"""

from collections.abc import Sequence
import json
import os
import pathlib
import struct
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors

from rlhf_jax import errors
from rlhf_jax.data import native
from rlhf_jax.models import directory as directory_lib
from rlhf_jax.models import gguf_header
from rlhf_jax.storage import files

# llama.cpp's name of a pre-tokenizer, and whether digits are split one by one.
_GGUF_SPLITS = {'gpt-2': False, 'default': False, 'smollm': True}
_GGUF_CONTROL, _GGUF_USER_DEFINED = 3, 4
# Files that name tokens, beside tokenizer.json.
_DECLARATIONS = (
    'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json')
_LLAMA2C_BYTES = 3  # the id of byte 0; below it <unk>, BOS, EOS
_LONGEST_PIECE = 1024  # bytes; each is cut everywhere, for its merges


class Loaded(NamedTuple):
  """A backend, and what its files say of it."""

  backend: tokenizers.Tokenizer
  pad: str | None
  bos: str | None
  eos: str | None
  control: Sequence[str] = ()  # further control tokens
  chat_template: str | None = None  # somebody else's program: see `templates`
  adds_bos: bool | None = None  # whether texts begin with BOS; None: unsaid


def from_directory(path: str | os.PathLike,
                   pad: str | None = None) -> Loaded:
  """Reads a Hugging Face directory, offline and without its Python code.

  How texts are split is said by tokenizer.json where there is one; names of
  special tokens, and what stands in for tokenizer.json, by transformers.

  Args:
    path: with tokenizer.json, or files that transformers can convert.
    pad: name of another padding token; that of the directory is then left out
      where only its settings know it, for no model has a row for it.

  Raises:
    CheckpointError: `models.directory.check` refuses it.
    ConfigError: transformers makes no fast tokenizer of it.
  """
  path = directory_lib.check(path)
  import transformers  # seconds; only for this
  try:
    with native.guarded():
      loaded = transformers.AutoTokenizer.from_pretrained(
          str(path), local_files_only=True, trust_remote_code=False)
      # A copy: ours is changed, and the library may keep its own.
      backend = tokenizers.Tokenizer.from_str(
          loaded.backend_tokenizer.to_str())
      if (path / 'tokenizer.json').exists():
        unused = loaded.pad_token if pad not in (
            None, loaded.pad_token) else None
        backend = _as_in_file(path, backend, unused)
  except Exception as error:  # no fast backend, no files, malformed files
    raise errors.ConfigError(
        f'{path}: transformers cannot make a fast tokenizer of it '
        f'({errors.first_line(error)}); it needs tokenizer.json, or '
        'config.json beside vocab.json and merges.txt') from error
  template = loaded.chat_template
  if isinstance(template, dict):
    template = template.get('default')
  has = lambda name: name is not None and backend.token_to_id(name) is not None
  roles = (loaded.pad_token, loaded.bos_token, loaded.eos_token)
  return Loaded(backend, *(name if has(name) else None for name in roles),
                tuple(filter(has, loaded.all_special_tokens)), template,
                adds_bos(backend, loaded.bos_token))


def adds_bos(backend: tokenizers.Tokenizer, bos: str | None) -> bool:
  """Whether the backend, by itself, begins a text with BOS."""
  first = backend.encode('a', add_special_tokens=True).ids[:1]
  plain = backend.encode('a', add_special_tokens=False).ids[:1]
  return (bos is not None and first == [backend.token_to_id(bos)]
          and first != plain)


def _as_in_file(
    path: pathlib.Path, backend: tokenizers.Tokenizer, unused: str | None
) -> tokenizers.Tokenizer:
  """The tokenizer of tokenizer.json, and what the files beside it add.

  For some model types transformers takes from the file no more than the
  vocabulary and splits texts by rules of its own (Qwen2), or adds tokens that
  it expects of the type, which have no row in the model (GPT-NeoX).

  Args:
    path: of the directory.
    backend: what transformers made of it.
    unused: a token that is left out where no other comes after it.
  """
  own = tokenizers.Tokenizer.from_file(str(path / 'tokenizer.json'))
  todo = [directory_lib.read_json(path, name) for name in _DECLARATIONS
          if (path / name).exists()]
  declared = set()
  while todo:
    item = todo.pop()
    if isinstance(item, str):
      declared.add(item)
    elif isinstance(item, list | dict):
      todo.extend(item)  # keys too: added_tokens.json has tokens there
      todo.extend(item.values() if isinstance(item, dict) else ())
  added = sorted(backend.get_added_tokens_decoder().items())
  if added and added[-1][1].content == unused:
    del added[-1]
  for id_, token in added:
    if token.content in declared and own.token_to_id(token.content) is None:
      (own.add_special_tokens if token.special else own.add_tokens)([token])
      if own.token_to_id(token.content) != id_:
        raise ValueError(
            f'token {token.content!r} has the id {id_}, which is not the next '
            'after those of tokenizer.json')
  return own


def save_directory(
    path: str | os.PathLike,
    backend: tokenizers.Tokenizer,
    *,
    pad: str,
    bos: str | None,
    eos: str,
    control: Sequence[str],
    chat_template: str | None,
    begin: bool,
):
  """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json.

  Args:
    path: of a directory; made if it is not there.
    backend: the tokenizer.
    pad: name of the padding token.
    bos: name of the BOS token, if it has one.
    eos: name of the EOS token.
    control: names of further control tokens.
    chat_template: kept as it is, if any.
    begin: whether what loads it is to begin texts with BOS.

  Raises:
    CheckpointError: it cannot be written.
  """
  path = pathlib.Path(path)
  try:
    path.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.CheckpointError(
        f'cannot make the directory {path}: {error.strerror}') from error
  names = {'pad_token': pad, 'eos_token': eos}
  if bos is not None:
    names['bos_token'] = bos
  others = [name for name in control if name not in names.values()]
  config = {
      'tokenizer_class': 'PreTrainedTokenizerFast', **names,
      'clean_up_tokenization_spaces': False,
      'extra_special_tokens': others}
  if chat_template is not None:
    config['chat_template'] = chat_template
  if begin and not adds_bos(backend, bos):
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single=f'{bos} $A', special_tokens=[(bos, backend.token_to_id(bos))])
  files.write_text(path / 'tokenizer.json', backend.to_str(pretty=True))
  files.write_json(path / 'special_tokens_map.json', names)
  files.write_json(path / 'tokenizer_config.json', config)


def from_gguf(path: str | os.PathLike) -> Loaded:
  """Reads the byte-level BPE inside a GGUF file; no weight is read.

  Args:
    path: of a file whose tokenizer.ggml.model is 'gpt2', such as SmolLM2's.

  Raises:
    ConfigError: the tokenizer is of another kind.
    CheckpointError: the file is missing, or it or its tokenizer is unsound.
  """
  path = pathlib.Path(path)
  metadata = gguf_header.read(path).metadata
  field = lambda name: metadata.get(f'tokenizer.{name}')
  kind, split = field('ggml.model'), field('ggml.pre')
  if kind != 'gpt2' or split not in _GGUF_SPLITS:
    raise errors.ConfigError(
        f'{path}: its tokenizer is {kind!r:.80} with {split!r:.80}; a GGUF '
        f"tokenizer must be 'gpt2' with one of "
        f"{', '.join(sorted(_GGUF_SPLITS))}; use the model's tokenizer.json")
  try:
    names, kinds = field('ggml.tokens'), np.asarray(field('ggml.token_type'))
    if kinds.shape != (len(names),):
      raise ValueError(f'{len(names)} tokens, {kinds.size} token types')
    backend = _byte_bpe(names, field('ggml.merges'), _GGUF_SPLITS[split])
    of_kind = lambda code: [
        tokenizers.AddedToken(names[id_], normalized=False)
        for id_ in np.flatnonzero(kinds == code)]
    backend.add_special_tokens(of_kind(_GGUF_CONTROL))
    backend.add_tokens(of_kind(_GGUF_USER_DEFINED))
    roles = [field(f'ggml.{role}_token_id')
             for role in ('padding', 'bos', 'eos')]
    template = field('chat_template')
    return Loaded(
        backend, *(None if id_ is None else names[id_] for id_ in roles),
        chat_template=template if isinstance(template, str) else None,
        adds_bos=field('ggml.add_bos_token') is True)
  except Exception as error:  # of another type or size than they should be
    raise gguf_header.unsound(
        path, f'its tokenizer: {errors.first_line(error)}') from error


def _byte_bpe(
    names: Sequence[str], merges: Sequence[str], single_digits: bool
) -> tokenizers.Tokenizer:
  backend = tokenizers.Tokenizer(models.BPE(
      vocab={name: id_ for id_, name in enumerate(names)},
      merges=[tuple(merge.split(' ', 1)) for merge in merges]))
  bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
  backend.pre_tokenizer = bytes_ if not single_digits else (
      pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                               bytes_]))
  backend.decoder = decoders.ByteLevel()
  return backend


def from_llama2c(path: str | os.PathLike) -> Loaded:
  """Reads the tokenizer.bin of github.com/karpathy/llama2.c.

  i32 max_token_length, then f32 score, i32 length and UTF-8 bytes for every
  token, little-endian. SentencePiece's BPE: of all neighbours whose
  concatenation is a token, the pair of the highest score is merged first,
  the leftmost among equals; a character without a token becomes its bytes;
  a text starts with a space. Here the scores become an order of merges.
  BOS and EOS (ids 1 and 2) are called '<s>' and '</s>', padding is '<unk>'.

  Raises:
    DataError: the file is missing or is not such a tokenizer.
  """
  try:
    raw = pathlib.Path(path).read_bytes()
    scores, pieces = _read_llama2c(raw)
  except OSError as error:
    raise errors.DataError(
        f'{path}: cannot be read: {error.strerror}') from error
  except (ValueError, struct.error) as error:
    raise errors.DataError(
        f'{path}: is not a llama2.c tokenizer: {errors.first_line(error)}'
    ) from error
  pieces[:_LLAMA2C_BYTES] = ['<unk>', '<s>', '</s>']
  ids = {piece: id_ for id_, piece in enumerate(pieces)}
  first = _LLAMA2C_BYTES + 256  # of the pieces that are text
  order = sorted(range(first, len(pieces)), key=lambda id_: -scores[id_])
  merges = [
      (piece[:cut], piece[cut:])
      for piece in map(pieces.__getitem__, order)
      for cut in range(1, len(piece))
      if piece[:cut] in ids and piece[cut:] in ids]
  backend = tokenizers.Tokenizer(models.BPE(
      ids, merges, unk_token='<unk>', byte_fallback=True))
  backend.normalizer = normalizers.Prepend(' ')
  backend.decoder = decoders.Sequence([
      decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)])
  return Loaded(backend, '<unk>', '<s>', '</s>', adds_bos=True)


def _read_llama2c(raw: bytes) -> tuple[list[float], list[str]]:
  """Scores and pieces; ValueError or struct.error if `raw` has another form."""
  scores, pieces, offset = [], [], 4
  while offset < len(raw):
    score, length = struct.unpack_from('<fi', raw, offset)
    offset += 8
    if not 0 <= length <= min(len(raw) - offset, _LONGEST_PIECE):
      raise ValueError(f'token {len(pieces)} has a length of {length} bytes')
    scores.append(score)
    pieces.append(raw[offset:offset + length].decode())
    offset += length
  bytes_ = [f'<0x{byte:02X}>' for byte in range(256)]
  if pieces[_LLAMA2C_BYTES:_LLAMA2C_BYTES + 256] != bytes_:
    raise ValueError('tokens 3 to 258 are not <0x00> to <0xFF>')
  if len(set(pieces)) < len(pieces):
    raise ValueError('it has a token twice')
  return scores, pieces


def without_prefix(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
  """A copy that neither adds a space before a text nor removes it again.

  Returns:
    `backend` itself if it does neither.
  """
  specs = {name: _spec(backend, name)
           for name in ('normalizer', 'pre_tokenizer', 'decoder')}
  if isinstance(backend.decoder, decoders.ByteLevel):
    del specs['decoder']  # has the field, but does not heed it
  bare = {name: _prefixless(spec) for name, spec in specs.items()
          if _prefixless(spec) != spec}
  if not bare:
    return backend
  return tokenizers.Tokenizer.from_str(
      json.dumps(json.loads(backend.to_str()) | bare))


def prefix_only_first(backend: tokenizers.Tokenizer) -> bool:
  """Whether that space comes at the start, but not after a control token."""
  spec = _spec(backend, 'pre_tokenizer') or {}
  parts = spec.get('pretokenizers', [spec])
  return any(part.get('prepend_scheme') == 'first' for part in parts)


def _spec(backend: tokenizers.Tokenizer, name: str) -> dict | None:
  component = getattr(backend, name)
  return None if component is None else json.loads(component.__getstate__())


def _prefixless(spec: dict | None) -> dict | None:
  """The JSON of a component of a tokenizer, less what is about the prefix."""
  kind = spec['type'] if spec else None
  if kind == 'Prepend' or (kind == 'Strip' and spec.get('content') == ' '
                           and spec['stop'] == 0):
    return None
  if kind == 'Metaspace':
    return {**spec, 'prepend_scheme': 'never'}
  if kind == 'ByteLevel' and spec.get('add_prefix_space'):
    return {**spec, 'add_prefix_space': False}
  if kind == 'Sequence':
    parts = next(key for key, value in spec.items() if isinstance(value, list))
    kept = [_prefixless(part) for part in spec[parts]]
    return {**spec, parts: [part for part in kept if part is not None]}
  return spec
