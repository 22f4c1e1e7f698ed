"""Texts to token ids and back, and to the rows of a batch.

A thin layer over Hugging Face `tokenizers`. It promises what training needs:
control ids (padding, BOS, EOS, and every other special token) come from this
module and never from a text, and a prompt and its response are encoded
apart, so that the boundary between them is a token boundary in training
exactly as it is in sampling.

Some tokenizers (LLaMA's) add a space before a text. Here they do so where a
prompt begins, and after a control token where they always do so themselves;
a response that follows text is a continuation, and gets no space that the
text does not have.
"""

from collections.abc import Iterable, Mapping, Sequence
import copy
import itertools
import os
import pathlib
import re
import types

import numpy as np
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers

from rlhf_jax import errors
from rlhf_jax.data import backends
from rlhf_jax.data import formats
from rlhf_jax.data import native
from rlhf_jax.data import pieces as pieces_lib
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.models import directory as directory_lib
from rlhf_jax.storage import files

PAD = '<pad>'
BOS = '<bos>'
EOS = '<eos>'

# Added tokens of this form are control tokens, whatever their file says.
_CONTROL = re.compile(r'<\|.*\|>|</?s>', re.DOTALL)
_UNKNOWN = ('<unk>', '[UNK]')  # these may come from a text


class Tokenizer:
  """Encodes text without ever making a control id out of it.

  Attributes:
    pad_id, bos_id, eos_id: control ids; bos_id is None if there is none.
      Padding may be EOS, and BOS may be EOS: masks come from lengths.
    eos_ids: all that end a response; `eos_id`, which is written, is the first.
    ends: the names of the others.
    control: ids of all control tokens, by name.
    vocab_size: the largest id + 1, holes counted.
    adds_bos: whether prompts begin with BOS unless told otherwise: a loaded
      tokenizer does as it always does, which for GPT-2, Pythia and SmolLM2 is
      not to; ours does.
    chat_template: the source that came with it, if any; see `templates`.
    stop: strings that end a response as EOS does, see `ending_at`.
    stops: of them, of `ops.stops.table`; None: there are none.
  """

  def __init__(
      self,
      backend: tokenizers.Tokenizer,
      *,
      pad: str = PAD,
      bos: str | None = BOS,
      eos: str | Sequence[str] = EOS,
      control: Sequence[str] = (),
      chat_template: str | None = None,
      adds_bos: bool | None = None,
  ):
    """Takes over a backend.

    Control tokens are those that the backend calls special, those named
    here, and added tokens that look like one: '<|...|>', '<s>', '</s>'.
    Other added tokens (runs of spaces in Pythia's) are found in texts.

    Args:
      backend: an object that nobody else uses.
      pad: its padding token; may be the same as eos.
      bos: its token for the front of a prompt; may be the same as eos, or
        None: it has none.
      eos: its token for the end of a response; or several, the first of which
        is written.
      control: further control tokens; those that it does not have are added
        at the end of the vocabulary.
      chat_template: kept, not run.
      adds_bos: whether prompts begin with BOS unless told otherwise; None: if
        there is one.

    Raises:
      ConfigError: pad, bos or eos is not in the vocabulary.
    """
    eos, *ends = [eos] if isinstance(eos, str) else dict.fromkeys(eos)
    roles = [name for name in (pad, bos, eos) if name is not None]
    _check_roles(backend, [*roles, *ends])
    added = backend.get_added_tokens_decoder().values()
    names = dict.fromkeys([*roles, *control, *(
        x.content for x in added if x.special or _CONTROL.fullmatch(x.content)
    )])
    # Special, and split as text all the same: '<eos>' in a text is spelled out.
    backend.add_special_tokens(list(names))
    backend.no_padding()
    backend.no_truncation()
    self._backends = (backend, backends.without_prefix(backend))
    for each in self._backends:
      each.encode_special_tokens = True
    self._prefix_only_first = backends.prefix_only_first(backend)
    self.roles = {'pad': pad, 'bos': bos, 'eos': eos}
    self.pad_id, self.eos_id = map(backend.token_to_id, (pad, eos))
    self.ends = tuple(ends)
    self.eos_ids = (self.eos_id, *map(backend.token_to_id, ends))
    self.bos_id = None if bos is None else backend.token_to_id(bos)
    self.control: Mapping[str, int] = types.MappingProxyType(
        {name: backend.token_to_id(name) for name in names})
    self.chat_template = chat_template
    self.stop, self.stops = (), None
    self.adds_bos = bos is not None and adds_bos is not False
    from_text = {*_UNKNOWN, getattr(backend.model, 'unk_token', None)}
    self._names = {id_: name for name, id_ in self.control.items()
                   if name in roles or name not in from_text}
    # Not the number of tokens: ids may have holes, embeddings may not.
    self.vocab_size: int = max(backend.get_vocab().values()) + 1

  @classmethod
  def train_bpe(
      cls, texts: Iterable[str], *, vocab_size: int,
      control: Sequence[str] = (),
  ) -> 'Tokenizer':
    """Learns a byte-level BPE, in which every text round-trips.

    Args:
      texts: what to learn the merges from.
      vocab_size: at least 259 (3 special tokens at 0, 1, 2 and 256 bytes)
        and one for each of control, else ValueError; a small corpus may give
        fewer tokens than this.
      control: further control tokens, from 3 on.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = list(dict.fromkeys([PAD, BOS, EOS, *control]))
    if vocab_size < len(special) + len(alphabet):
      raise ValueError(
          f'vocab_size must be >= {len(special) + len(alphabet)}, got '
          f'{vocab_size}'
      )
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return cls(backend, control=control)

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
      bos: str | None = BOS,
      eos: str = EOS,
      control: Sequence[str] = (),
      adds_bos: bool | None = None,
      chat_template: str | None = None,
  ) -> 'Tokenizer':
    """Loads a tokenizer.json, ours or a published one.

    Args:
      path: the file.
      pad: its padding token.
      bos: its token for the front of a prompt, or None.
      eos: its token for the end of a response.
      control: further control tokens; see `Tokenizer`.
      adds_bos: see `Tokenizer`.
      chat_template: see `Tokenizer`.

    Raises:
      DataError: the file is missing or is not a tokenizer.
      ConfigError: a special token is not in it.
    """
    try:
      text = pathlib.Path(path).read_text(encoding='utf-8')
      with native.guarded():
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
      return cls(backend, pad=pad, bos=bos, eos=eos, control=control,
                 adds_bos=adds_bos, chat_template=chat_template)
    except errors.ConfigError as error:
      raise errors.ConfigError(f'{path}: {error}') from None

  @classmethod
  def from_directory(
      cls,
      path: str | os.PathLike,
      *,
      pad: str | None = None,
      bos: str | None = None,
      eos: str | None = None,
      control: Sequence[str] = (),
  ) -> 'Tokenizer':
    """Loads the tokenizer of a Hugging Face directory, offline.

    Args:
      path: the directory; one with tokenizer.json alone will do, but has no
        names of special tokens, so that eos has to be given (unless it is
        one of ours).
      pad: its padding token; None: the directory's, or else eos.
      bos: its token for the front of a prompt; None: the directory's, which
        may be none; '': none.
      eos: its token for the end of a response; None: the directory's, and
        those that its generation_config.json names besides.
      control: further control tokens; see `Tokenizer`.

    Raises:
      CheckpointError: see `models.directory.check`; or what ends a response by
        generation_config.json is no token.
      ConfigError: there is no tokenizer that can be used, or no EOS.
    """
    loaded = backends.from_directory(path, pad)
    return cls._from(path, loaded, pad, bos,
                     eos or _ends(path, loaded), control)

  @classmethod
  def from_gguf(
      cls,
      path: str | os.PathLike,
      *,
      pad: str | None = None,
      bos: str | None = None,
      eos: str | None = None,
      control: Sequence[str] = (),
  ) -> 'Tokenizer':
    """Loads the byte-level BPE of a GGUF file; arguments of from_directory.

    Raises:
      ConfigError: the tokenizer is of another kind, or has no EOS.
      CheckpointError: the file is missing or unsound.
    """
    return cls._from(path, backends.from_gguf(path), pad, bos, eos, control)

  @classmethod
  def from_llama2c(
      cls,
      path: str | os.PathLike,
      *,
      pad: str | None = None,
      bos: str | None = None,
      eos: str | None = None,
      control: Sequence[str] = (),
  ) -> 'Tokenizer':
    """Loads a tokenizer.bin of llama2.c; arguments of from_directory.

    Raises:
      DataError: the file is missing or is not such a tokenizer.
    """
    return cls._from(path, backends.from_llama2c(path), pad, bos, eos, control)

  @classmethod
  def _from(cls, path, loaded, pad, bos, eos, control):
    """What the caller says, or else the files, or else our own names."""
    has = lambda name: loaded.backend.token_to_id(name) is not None
    if not loaded.backend.encode('a', add_special_tokens=False).ids:
      # transformers makes an empty one where there are no files.
      raise errors.ConfigError(
          f'{path}: holds no tokenizer, or one that knows no text; name '
          'another with config.data.files.tokenizer')
    ours = has(PAD) and has(EOS)  # tokenizer.json alone, written by `save`
    eos = eos or loaded.eos or (EOS if ours else None)
    if eos is None:
      raise errors.ConfigError(
          f'{path}: the tokenizer does not say which token is its EOS; name '
          'it with eos')
    first = eos if isinstance(eos, str) else eos[0]
    pad = pad or loaded.pad or (PAD if ours else first)
    if bos is None:
      bos = loaded.bos or (BOS if ours and has(BOS) else None)
    try:
      return cls(loaded.backend, pad=pad, bos=bos or None, eos=eos,
                 control=(*loaded.control, *control),
                 chat_template=loaded.chat_template,
                 adds_bos=loaded.adds_bos if loaded.bos else None)
    except errors.ConfigError as error:
      raise errors.ConfigError(f'{path}: {error}') from None

  def save(self, path: str | os.PathLike):
    """Writes a tokenizer.json, the whole of it or nothing."""
    files.write_text(path, self._backends[0].to_str(pretty=True))

  def save_directory(self, path: str | os.PathLike):
    """Writes a directory that AutoTokenizer of transformers loads.

    Raises CheckpointError if it cannot be written.
    """
    backends.save_directory(
        path, self._backends[0], control=list(self.control),
        chat_template=self.chat_template, begin=self.adds_bos, **self.roles)

  def differs_from(self, other: 'Tokenizer') -> str | None:
    """A token that has another id in another vocabulary, None if there is none.

    A vocabulary that only goes on where the other ends does not differ.
    """
    ours, theirs = (t._backends[0].get_vocab() for t in (self, other))
    shared = min(len(ours), len(theirs))
    return next((token for token, id_ in ours.items()
                 if id_ < shared and theirs.get(token) != id_), None)

  def id_of(self, name: str) -> int:
    """The id of a control token or another added token; '' is EOS.

    Raises ConfigError if it has none of that name.
    """
    if name == formats.END.name:
      return self.eos_id
    if name in self.control:
      return self.control[name]
    for id_, token in self._backends[0].get_added_tokens_decoder().items():
      if token.content == name:
        return id_
    raise errors.ConfigError(
        f'the tokenizer has no control token {name!r}, which the prompt '
        f'format needs; load it with control=({name!r},), which makes the '
        'vocabulary larger, or choose another format')

  def encode(
      self, texts: Sequence[str], *, continuation: bool = False
  ) -> list[list[int]]:
    """N texts to N lists of ids; no special token added, none recognised.

    Args:
      texts: N strings.
      continuation: whether text comes before them, so that a tokenizer that
        begins a text with a space does not.

    Raises:
      DataError: a word is not in a closed vocabulary.
    """
    if isinstance(texts, str):
      raise TypeError('texts must be a sequence of strings, got one string')
    texts = list(texts)
    encode = self._backends[continuation].encode_batch_fast
    try:
      with native.guarded():
        rows = [e.ids for e in encode(texts, add_special_tokens=False)]
    except TypeError:
      raise
    except RuntimeError as error:
      raise errors.DataError(
          f'the tokenizer gives up on one of {len(texts)} texts ({error}): a '
          'pattern of its tokenizer.json takes for ever; take another '
          'tokenizer') from None
    except Exception as error:  # the library raises no narrower type
      raise errors.DataError(self._unknown_word(texts) or str(error)) from None
    return [row if self._names.keys().isdisjoint(row)
            else self._spell_out(text, continuation)
            for row, text in zip(rows, texts)]

  def _spell_out(self, text: str, continuation: bool) -> list[int]:
    """Ids of a text in which the backend sees a control token after all.

    A model whose vocabulary has the name as a piece can do so. The text is
    cut in the middle of each such piece, and what is left encoded apart.
    """
    backend = self._backends[continuation]
    encoding = backend.encode(text, add_special_tokens=False)
    pieces = [(self._names[id_], start, end)
              for id_, (start, end) in zip(encoding.ids, encoding.offsets)
              if id_ in self._names]
    if not pieces:
      return encoding.ids
    cuts = [0, *((start + end) // 2 for _, start, end in pieces), len(text)]
    try:
      if any(end - start < 2 for _, start, end in pieces):
        raise ValueError('one character')
      return [id_ for start, end in itertools.pairwise(cuts)
              for id_ in self._spell_out(
                  text[start:end], continuation or start > 0)]
    except Exception:  # a vocabulary of whole words has no parts of them
      raise errors.DataError(
          f'a text has the control token {pieces[0][0]!r}, which this '
          f'tokenizer cannot spell out: {text[:80]!r}'
      ) from None

  def _unknown_word(self, texts: Sequence[str]) -> str | None:
    for index, text in enumerate(texts):
      for word in text.split():
        if self._backends[0].token_to_id(word) is None:
          return f'text {index}: word {word!r} is not in the vocabulary'
    return None

  def decode(
      self, ids: Iterable[int], *, continuation: bool = False
  ) -> str:
    """Decodes one row of ids, skipping padding, BOS and EOS.

    Args:
      ids: of one text.
      continuation: whether text comes before it; otherwise a tokenizer that
        begins a text with a space takes one away again.
    """
    hidden = (self.pad_id, self.bos_id, *self.eos_ids)
    kept = [int(i) for i in ids if int(i) not in hidden]
    return self._backends[continuation].decode(kept, skip_special_tokens=False)

  def spell(self, ids: Iterable[int]) -> str:
    """Decodes one row of ids with all of its control tokens, by their names."""
    return self._backends[0].decode(
        [int(i) for i in ids], skip_special_tokens=False)

  def pieces(self) -> tuple[list[bytes], list[bytes]]:
    """What each id adds to the bytes of a response: as its first, and later.

    Padding, BOS and EOS add nothing, and neither does an id without a token;
    other control tokens add their names, as in `decode`.

    Raises:
      ConfigError: what a token adds depends on the one before it.
    """
    hidden = {self.pad_id, self.bos_id, *self.eos_ids}
    first, later = pieces_lib.pieces(self._backends[True], self.vocab_size)
    return tuple([b'' if i in hidden else piece for i, piece in enumerate(x)]
                 for x in (first, later))

  def ending_at(self, strings: Sequence[str]) -> 'Tokenizer':
    """A copy for responses that end at these strings too.

    A control token may be among them, by its name: another EOS.

    Raises:
      ConfigError: a string is empty, or a token has no text of its own.
    """
    other = copy.copy(self)
    other.stop = tuple(strings)
    try:
      from rlhf_jax.ops import stops  # jax, which texts alone do not need

      other.stops = stops.table(other.stop, *self.pieces())
    except ValueError as error:
      raise errors.ConfigError(f'stop: {error}') from None
    return other

  def finished(self, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Whether responses ended by themselves, bool[...]: `endings.finished`."""
    from rlhf_jax.ops import endings

    return endings.finished(tokens, mask, self.eos_ids, self.stops)

  def _runs(self, text: formats.Text) -> list[str | int]:
    """Control ids and the texts between them; '' is no text."""
    runs = []
    for part in (text,) if isinstance(text, str) else text:
      if isinstance(part, formats.Special):
        runs.append(self.id_of(part.name))
      elif not isinstance(part, str):  # an id would go in unchecked
        raise TypeError(f'a part must be str or Special, got {part!r}')
      elif runs and isinstance(runs[-1], str):
        runs[-1] += part
      elif part:
        runs.append(part)
    return runs

  def _encode_runs(
      self, rows: Sequence[Sequence[str | int]]
  ) -> list[list[list[int]]]:
    """The ids of every run of every row, in two calls of the backend."""

    def continues(row, index):
      if not index:
        return False
      return isinstance(row[index - 1], str) or self._prefix_only_first

    texts = ([], [])
    for row in rows:
      for index, run in enumerate(row):
        if not isinstance(run, int):
          texts[continues(row, index)].append(run)
    ids = [iter(self.encode(each, continuation=bool(flag)))
           for flag, each in enumerate(texts)]
    return [[[run] if isinstance(run, int) else next(ids[continues(row, index)])
             for index, run in enumerate(row)] for row in rows]

  def _head(
      self, runs: Sequence[str | int], ids: Sequence[list[int]], add_bos: bool
  ) -> tuple[list[int], int]:
    """The ids of a prompt, and how many of them stay when it is cut."""
    leading = itertools.takewhile(lambda run: isinstance(run, int), runs)
    head, keep = list(itertools.chain.from_iterable(ids)), len(list(leading))
    if add_bos and head[:1] != [self.bos_id]:
      return [self.bos_id, *head], keep + 1
    return head, keep

  def encode_rows(
      self,
      prompts: Sequence[formats.Text],
      responses: Sequence[formats.Text],
      *,
      max_prompt_length: int,
      max_response_length: int,
      add_bos: bool | None = None,
  ) -> rows_lib.EncodedRows:
    """Encodes prompts and responses into rows of a batch.

    A prompt that is too long loses its front, but neither its BOS nor the
    control tokens that it starts with (<|prompter|>): the text after them is
    what is cut, a role that is written in text (ChatML's) with it. A response
    that is too long, its EOS counted, loses its end and has no EOS. An empty
    response is its EOS, so that every row has a response token. A prompt that
    starts with BOS, or a response that ends with EOS, gets no second one.

    Args:
      prompts: N texts, or tuples of parts; see `formats`.
      responses: N texts, or tuples of parts.
      max_prompt_length: P >= 1, BOS included.
      max_response_length: R >= 1, EOS included.
      add_bos: whether prompts start with BOS; None: see `adds_bos`.

    Raises:
      ValueError: a length is below 1, N differs, add_bos without a BOS, or a
        response has EOS before its end.
      ConfigError: a part names a control token that there is not.
      DataError: a prompt has no token (only without BOS), or a word is not
        in a closed vocabulary.
    """
    if max_prompt_length < 1 or max_response_length < 1:
      raise ValueError(
          'max_prompt_length and max_response_length must be >= 1, got '
          f'{max_prompt_length} and {max_response_length}'
      )
    if isinstance(prompts, str) or isinstance(responses, str):
      raise TypeError('prompts and responses must be sequences, got one string')
    if len(prompts) != len(responses):
      raise ValueError(f'{len(prompts)} prompts, {len(responses)} responses')
    add_bos = self.adds_bos if add_bos is None else add_bos
    if add_bos and self.bos_id is None:
      raise ValueError('add_bos is true, but the tokenizer has no BOS')
    return rows_lib.assemble(
        *self._ids(prompts, responses, add_bos), pad_id=self.pad_id,
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length)

  def _ids(
      self, prompts: Sequence[formats.Text], responses: Sequence[formats.Text],
      add_bos: bool,
  ) -> tuple[list[tuple[list[int], int]], list[list[int]]]:
    """Whole prompts, see `_head`, and whole responses with their EOS."""
    prompts, responses = (
        [self._runs(text) for text in texts] for texts in (prompts, responses))
    rows = self._encode_runs([p + r for p, r in zip(prompts, responses)])
    heads, tails = [], []
    for index, (prompt, row) in enumerate(zip(prompts, rows)):
      head, keep = self._head(prompt, row[:len(prompt)], add_bos)
      tail = list(itertools.chain.from_iterable(row[len(prompt):]))
      if not head:
        raise errors.DataError(f'prompt {index} has no token; set add_bos')
      if self.eos_id in tail[:-1]:
        raise ValueError(f'response {index} has EOS before its end')
      heads.append((head, keep))
      tails.append(tail if tail[-1:] == [self.eos_id] else
                   [*tail, self.eos_id])
    return heads, tails


def _ends(path: str | os.PathLike, loaded: backends.Loaded) -> list[str]:
  """The directory's EOS, and what else ends a response by its own settings."""
  names = [] if loaded.eos is None else [loaded.eos]
  for id_ in directory_lib.end_ids(path):
    name = loaded.backend.id_to_token(id_)
    if name is None:
      last = loaded.backend.get_vocab_size() - 1
      raise errors.CheckpointError(
          f'{path}/generation_config.json: eos_token_id {id_} is no token; the '
          f'tokenizer has ids up to {last}; correct the file')
    names.append(name)
  return names


def _check_roles(backend: tokenizers.Tokenizer, roles: Sequence[str]):
  missing = sorted({x for x in roles if backend.token_to_id(x) is None})
  if missing:
    raise errors.ConfigError(
        f'special tokens {", ".join(missing)} are not in the tokenizer; '
        'name its own with pad, bos and eos')


def check_vocabulary(tokenizer: Tokenizer, model_vocab_size: int):
  """Raises ConfigError if an id has no row in the embeddings of a model.

  Rows without an id are allowed: models are often padded to a round size.
  """
  if tokenizer.vocab_size > model_vocab_size:
    raise errors.ConfigError(
        f'the tokenizer has ids up to {tokenizer.vocab_size - 1}, a '
        f'vocabulary of {tokenizer.vocab_size}, but the model has only '
        f'{model_vocab_size}; use the tokenizer that the model came with, '
        'make its embeddings larger, or where padding alone is beyond them, '
        'name another token as pad, such as its EOS')


def check_ids(tokens: np.ndarray, vocab_size: int) -> None:
  """Raises DataError unless all 0 <= tokens < vocab_size, padding included.

  To be called on the host before a batch goes to a device: there, an id that
  is too large or negative reads another token's row, or NaN.
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
