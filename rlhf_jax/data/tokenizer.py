"""Texts to token ids and back, and to the padded rows of a batch.

A thin layer over Hugging Face `tokenizers`. It promises what training needs:
control ids (padding, BOS, EOS) come from this module and never from a text,
and a prompt and its response are encoded apart, so that the boundary between
them is a token boundary in training exactly as it is in sampling.
"""

from collections.abc import Iterable, Sequence
import itertools
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from rlhf_jax import errors
from rlhf_jax import files

PAD = '<pad>'
BOS = '<bos>'
EOS = '<eos>'


class EncodedRows(NamedTuple):
  """N rows; P is max_prompt_length, R is max_response_length."""

  prompts: np.ndarray  # i32[N, P], right-padded
  prompt_lengths: np.ndarray  # i32[N], >= 1
  tokens: np.ndarray  # i32[N, P + R], prompt, response, padding, no gaps
  mask: np.ndarray  # bool[N, P + R], true on the response and its EOS
  truncated_prompts: int
  truncated_responses: int  # these have no EOS


class Tokenizer:
  """Encodes text without ever making a control id out of it."""

  def __init__(
      self,
      backend: tokenizers.Tokenizer,
      *,
      pad: str = PAD,
      bos: str = BOS,
      eos: str = EOS,
  ):
    """Takes over a backend; the arguments and errors are `from_file`'s."""
    ids = {name: backend.token_to_id(name) for name in (pad, bos, eos)}
    missing = sorted(name for name, id_ in ids.items() if id_ is None)
    if missing:
      raise errors.ConfigError(
          f'special tokens {", ".join(missing)} are not in the tokenizer; '
          'name its own with pad, bos and eos'
      )
    if pad == eos:
      raise errors.ConfigError(
          f'pad and eos are both {eos!r}; name another token as pad'
      )
    # Known as special and split as text: '<eos>' in a text is spelled out.
    backend.add_special_tokens([pad, bos, eos])
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    self._backend = backend
    self.pad_id: int = ids[pad]
    self.bos_id: int = ids[bos]
    self.eos_id: int = ids[eos]
    self._names = {id_: name for name, id_ in ids.items()}
    # Not the number of tokens: ids may have holes, embeddings may not.
    self.vocab_size: int = max(backend.get_vocab().values()) + 1

  @classmethod
  def train_bpe(
      cls, texts: Iterable[str], *, vocab_size: int
  ) -> 'Tokenizer':
    """Learns a byte-level BPE, in which every text round-trips.

    Args:
      texts: what to learn the merges from.
      vocab_size: at least 259 (3 special tokens at 0, 1, 2 and 256 bytes),
        else ValueError; a small corpus may give fewer tokens than this.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < 3 + len(alphabet):
      raise ValueError(
          f'vocab_size must be >= {3 + len(alphabet)}, got {vocab_size}'
      )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return cls(backend)

  @classmethod
  def word_level(cls, words: Iterable[str]) -> 'Tokenizer':
    """Makes a closed vocabulary for texts of words between white space.

    Args:
      words: the vocabulary; ids count from 3 in its order. ValueError if one
        is empty, repeated, special or has white space.
    """
    vocab = {PAD: 0, BOS: 1, EOS: 2}
    for word in words:
      if word.split() != [word] or word in vocab:
        raise ValueError(
            f'word {word!r} is empty, repeated, special or has white space'
        )
      vocab[word] = len(vocab)
    # The unknown token is not in the vocabulary, so an unknown word raises.
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=''))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return cls(backend)

  @classmethod
  def from_file(
      cls,
      path: str | os.PathLike,
      *,
      pad: str = PAD,
      bos: str = BOS,
      eos: str = EOS,
  ) -> 'Tokenizer':
    """Loads a tokenizer.json, ours or a published one.

    Args:
      path: the file.
      pad: its padding token.
      bos: its token for the front of a prompt; may be the same as eos.
      eos: its token for the end of a response.

    Raises:
      DataError: the file is missing or is not a tokenizer.
      ConfigError: a special token is not in it, or pad is eos.
    """
    try:
      text = pathlib.Path(path).read_text(encoding='utf-8')
      backend = tokenizers.Tokenizer.from_str(text)
    except OSError as error:
      raise errors.DataError(
          f'{path}: cannot be read: {error.strerror}'
      ) from error
    except Exception as error:  # the library raises no narrower type
      raise errors.DataError(
          f'{path}: is not a tokenizer.json: {error}'
      ) from error
    try:
      return cls(backend, pad=pad, bos=bos, eos=eos)
    except errors.ConfigError as error:
      raise errors.ConfigError(f'{path}: {error}') from None

  def save(self, path: str | os.PathLike) -> None:
    """Writes a tokenizer.json, the whole of it or nothing."""
    files.write_text(path, self._backend.to_str(pretty=True))

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """N texts to N lists of ids; no special token added, none recognised.

    Raises DataError if a word is not in a closed vocabulary.
    """
    if isinstance(texts, str):
      raise TypeError('texts must be a sequence of strings, got one string')
    texts = list(texts)
    encode = self._backend.encode_batch_fast
    try:
      rows = [e.ids for e in encode(texts, add_special_tokens=False)]
    except TypeError:
      raise
    except Exception as error:  # the library raises no narrower type
      raise errors.DataError(self._unknown_word(texts) or str(error)) from None
    for row, text in zip(rows, texts):
      # A vocabulary of whole words can know '<eos>' only as the control id.
      if not self._names.keys().isdisjoint(row):
        name = next(self._names[id_] for id_ in row if id_ in self._names)
        raise errors.DataError(
            f'a text has the control token {name!r}, which this tokenizer '
            f'cannot spell out: {text[:80]!r}'
        )
    return rows

  def _unknown_word(self, texts: Sequence[str]) -> str | None:
    for index, text in enumerate(texts):
      for word in text.split():
        if self._backend.token_to_id(word) is None:
          return f'text {index}: word {word!r} is not in the vocabulary'
    return None

  def decode(self, ids: Iterable[int]) -> str:
    """Decodes one row of ids, skipping padding, BOS and EOS."""
    kept = [int(i) for i in ids if int(i) not in self._names]
    return self._backend.decode(kept, skip_special_tokens=False)

  def encode_rows(
      self,
      prompts: Sequence[str],
      responses: Sequence[str],
      *,
      max_prompt_length: int,
      max_response_length: int,
      add_bos: bool = True,
  ) -> EncodedRows:
    """Encodes prompts and responses into rows of a batch.

    A prompt that is too long loses its front, but not its BOS. A response
    that is too long, its EOS counted, loses its end and has no EOS. An empty
    response is its EOS, so that every row has a response token.

    Args:
      prompts: N texts.
      responses: N texts.
      max_prompt_length: P >= 1, BOS included.
      max_response_length: R >= 1, EOS included.
      add_bos: whether prompts start with BOS.

    Raises:
      ValueError: a length is below 1, or N differs.
      DataError: a prompt has no token (only without BOS), or a word is not
        in a closed vocabulary.
    """
    if max_prompt_length < 1 or max_response_length < 1:
      raise ValueError(
          'max_prompt_length and max_response_length must be >= 1, got '
          f'{max_prompt_length} and {max_response_length}'
      )
    if len(prompts) != len(responses):
      raise ValueError(f'{len(prompts)} prompts, {len(responses)} responses')
    front = [self.bos_id] if add_bos else []
    room = max_prompt_length - len(front)
    heads, tails, cut_prompts, cut_responses = [], [], 0, 0
    for ids in self.encode(prompts):
      cut_prompts += len(ids) > room
      heads.append(front + ids[max(len(ids) - room, 0):])
      if not heads[-1]:
        raise errors.DataError(
            f'prompt {len(heads) - 1} has no token; set add_bos'
        )
    for ids in self.encode(responses):
      cut_responses += len(ids) >= max_response_length
      tails.append([*ids, self.eos_id][:max_response_length])
    width = max_prompt_length + max_response_length
    starts, ends = _lengths(heads), _lengths(heads) + _lengths(tails)
    columns = np.arange(width)
    return EncodedRows(
        prompts=_pad(heads, max_prompt_length, self.pad_id),
        prompt_lengths=starts,
        tokens=_pad([h + t for h, t in zip(heads, tails)], width, self.pad_id),
        mask=(columns >= starts[:, None]) & (columns < ends[:, None]),
        truncated_prompts=cut_prompts,
        truncated_responses=cut_responses,
    )


def check_ids(tokens: np.ndarray, vocab_size: int) -> None:
  """Raises DataError unless all 0 <= tokens < vocab_size, padding included.

  To be called on the host before a batch goes to a device: there, an id that
  is too large reads NaN, and a negative one reads another row.
  """
  tokens = np.asarray(tokens)
  if not tokens.size:
    return
  low, high = int(tokens.min()), int(tokens.max())
  if low < 0 or high >= vocab_size:
    raise errors.DataError(
        f'token id {low if low < 0 else high} is outside the vocabulary of '
        f'{vocab_size} tokens; use the tokenizer that the model came with'
    )


def _lengths(rows: Sequence[Sequence[int]]) -> np.ndarray:
  return np.fromiter(map(len, rows), np.int32, len(rows))


def _pad(rows: Sequence[list[int]], width: int, pad_id: int) -> np.ndarray:
  """i32[N, width], rows filled up on the right."""
  lengths = _lengths(rows)
  out = np.full((len(rows), width), pad_id, np.int32)
  flat = np.fromiter(
      itertools.chain.from_iterable(rows), np.int32, int(lengths.sum())
  )
  out[np.arange(width) < lengths[:, None]] = flat
  return out
