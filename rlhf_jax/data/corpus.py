"""What a study trains and samples on, from the small world or from files.

Both give the same thing: demonstrations for SFT, prompts for preference
pairs, prompts held out for evaluation, and what the gold reward model learns
from: the world's rule, or human preferences.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import itertools
import pathlib
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax import files
from rlhf_jax import types
from rlhf_jax.data import formats
from rlhf_jax.data import readers
from rlhf_jax.data import reviews
from rlhf_jax.data import tokenizer as tokenizer_lib

FILES = ('path', 'preferences', 'tokenizer')  # fields that name one


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Right-padded prompts."""

  tokens: np.ndarray  # i32[N, P]
  lengths: np.ndarray  # i32[N]


@dataclasses.dataclass(frozen=True)
class Log:
  """N prompts with up to K logged responses each, the best one first."""

  tokens: np.ndarray  # i32[N, K, T]
  mask: np.ndarray  # bool[N, K, T]; false throughout a missing response
  group: np.ndarray  # i32[N, K], index into `groups`; -1: missing
  groups: tuple[str, ...]  # such as 'chosen' and 'rejected'
  scores: dict[str, np.ndarray]  # f32[N, K] each, NaN where there is none
  references: tuple[str, ...] | None = None  # right answer of each prompt


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Everything a study reads; T = prompt length + response length."""

  tokenizer: tokenizer_lib.Tokenizer
  demonstrations: types.Batch  # [N, 1, T]
  pair_prompts: Prompts
  eval_prompts: Prompts
  max_response_length: int
  preferences: types.Batch | None = None  # [N, 2, T], chosen first
  eval_demonstrations: types.Batch | None = None  # [N, 1, T], of eval_prompts
  world: reviews.Reviews | None = None  # the rule and the damage
  eval_splits: tuple[str, ...] | None = None  # a name for each eval prompt
  eval_references: tuple[str, ...] | None = None  # right answers, likewise
  log: Log | None = None  # of training prompts alone
  log_target: str | None = None  # score of the log that gold is fitted to
  summary: dict = dataclasses.field(default_factory=dict)

  def fingerprint(self) -> str:
    """SHA-256 of all tokens: the same texts, split and encoded alike.

    Without the held-out completions and right answers, which nothing is
    trained on.
    """
    held = (self.demonstrations.tokens, self.pair_prompts.tokens,
            self.eval_prompts.tokens)
    if self.preferences is not None:
      held += (self.preferences.tokens,)
    if self.log is not None:
      held += (self.log.tokens, self.log.mask, self.log.group,
               *(self.log.scores[name] for name in sorted(self.log.scores)))
    return files.digest([files.array_digest(x) for x in held])


def as_prompts(rows: tokenizer_lib.EncodedRows) -> Prompts:
  """The prompts of encoded rows."""
  return Prompts(rows.prompts, rows.prompt_lengths)


def single(rows: tokenizer_lib.EncodedRows) -> types.Batch:
  """Encoded rows as a batch of one sample per prompt, [N, 1, T]."""
  return types.Batch(tokens=rows.tokens[:, None], mask=rows.mask[:, None])


def from_reviews(
    *,
    seed: int,
    num_demonstrations: int,
    num_pair_prompts: int,
    num_eval_prompts: int,
    max_response_length: int,
    max_prompt_length: int = reviews.PROMPT_LENGTH,
    **world,
) -> Corpus:
  """Writes the corpus of one seed from the grammar.

  Args:
    seed: of the texts; the vocabulary and the rule do not depend on it.
    num_demonstrations: reviews for SFT.
    num_pair_prompts: prompts for preference pairs.
    num_eval_prompts: prompts for best-of-n.
    max_response_length: tokens, EOS included.
    max_prompt_length: tokens, BOS included.
    **world: of `reviews.Reviews`.
  """
  world = reviews.Reviews(**world)

  def write(count, part):
    prompts, texts = world.write(count, seed * 10 + part)
    return world.tokenizer.encode_rows(
        prompts, texts, max_prompt_length=max_prompt_length,
        max_response_length=max_response_length), prompts

  demonstrations, _ = write(num_demonstrations, 0)
  held_out, prompts = write(num_eval_prompts, 2)
  return Corpus(
      tokenizer=world.tokenizer,
      demonstrations=single(demonstrations),
      pair_prompts=as_prompts(write(num_pair_prompts, 1)[0]),
      eval_prompts=as_prompts(held_out),
      eval_demonstrations=single(held_out),
      max_response_length=max_response_length,
      world=world,
      eval_splits=tuple(reviews.split_of(prompts)),
      summary={
          'demonstrations': num_demonstrations,
          'vocabulary': world.tokenizer.vocab_size,
          'unfinished_demonstrations':
              demonstrations.truncated_responses / num_demonstrations,
      })


def split_by_prompt(texts: list[tuple], seed: int, num_eval_prompts: int
                    ) -> tuple[list[tuple], list[tuple]]:
  """Training texts, and one text for each held-out prompt.

  By prompt, because a prompt may have several rows.

  Args:
    texts: tuples whose first entry is the prompt.
    seed: of the order.
    num_eval_prompts: prompts held out.
  """
  order = np.random.Generator(np.random.Philox(seed)).permutation(len(texts))
  by_prompt = {}
  for i in order:
    by_prompt.setdefault(texts[i][0], []).append(texts[i])
  groups = list(by_prompt.values())
  return ([text for group in groups[num_eval_prompts:] for text in group],
          [group[0] for group in groups[:num_eval_prompts]])


def from_files(
    *,
    seed: int,
    path: str,
    preferences: str,
    num_pair_prompts: int,
    num_eval_prompts: int,
    max_prompt_length: int,
    max_response_length: int,
    vocab_size: int = 4096,
    tokenizer: str | None = None,
    pad: str | None = None,
    bos: str | None = None,
    eos: str | None = None,
    control: tuple[str, ...] = (),
    format: str = 'alpaca',
    preference_format: str | None = None,
    max_bad_rows: int = 0,
    num_demonstrations: int | None = None,
) -> Corpus:
  """Reads demonstrations (Alpaca) and human preferences (Anthropic HH).

  Args:
    seed: of the split into training and evaluation prompts.
    path: Alpaca-style .json, .jsonl or .jsonl.gz.
    preferences: Anthropic HH pairs, .jsonl or .jsonl.gz.
    num_pair_prompts: prompts for pairs; training prompts are repeated where
      there are fewer.
    num_eval_prompts: prompts held out from training.
    max_prompt_length: tokens, BOS included; longer ones lose their front.
    max_response_length: tokens, EOS included.
    vocab_size: of the byte-level BPE trained on the texts.
    tokenizer: what to use instead, see `load_tokenizer`.
    pad: its padding token, where it does not say so itself.
    bos: its token for the front of a prompt, likewise.
    eos: its token for the end of a response, likewise.
    control: further control tokens that a format needs.
    format: of demonstrations and prompts, see `formats`.
    preference_format: of preferences, whose prompts are dialogues; None: the
      same if it takes dialogues, or else 'hh'.
    max_bad_rows: bad rows to drop in each file instead of stopping.
    num_demonstrations: at most so many; None: all.

  Raises:
    DataError: a file is missing or malformed, or holds too few prompts.
  """
  rows, pairs = _read(path, preferences, max_bad_rows, num_eval_prompts)
  write = formats.get(format)
  texts = [write(r.instruction, r.output, r.input) for r in rows.rows]
  training, held_out = split_by_prompt(texts, seed, num_eval_prompts)
  training = training[:num_demonstrations]
  pair = formats.get(_preference_format(format, preference_format))
  sides = [[pair(p.prompt, getattr(p, side)) for p in pairs.rows]
           for side in ('chosen', 'rejected')]
  if tokenizer is not None:
    coder = load_tokenizer(tokenizer, pad, bos, eos, control)
  else:
    coder = train_tokenizer(
        [*training, *sides[0], *sides[1]], vocab_size, control)

  def encode(texts):
    return coder.encode_rows(
        [p for p, _ in texts], [r for _, r in texts],
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length)

  demonstrations = encode(training)
  chosen, rejected = map(encode, sides)
  held_out = encode(held_out)
  prompts = as_prompts(demonstrations)
  # Repeats of a prompt are neighbours, so that pairs held out from the front
  # share at most one prompt with the rest.
  repeated = np.sort(np.resize(np.arange(len(training)), num_pair_prompts))
  stack = lambda name: np.stack(
      [getattr(chosen, name), getattr(rejected, name)], axis=1)
  share = lambda x: float(x.truncated_responses / len(x.tokens))
  return Corpus(
      tokenizer=coder,
      demonstrations=single(demonstrations),
      pair_prompts=Prompts(prompts.tokens[repeated], prompts.lengths[repeated]),
      eval_prompts=as_prompts(held_out),
      eval_demonstrations=single(held_out),
      max_response_length=max_response_length,
      preferences=types.Batch(tokens=stack('tokens'), mask=stack('mask')),
      summary={
          'demonstrations': len(training),
          'preferences': len(pairs.rows),
          'vocabulary': coder.vocab_size,
          'dropped_rows': len(rows.bad) + rows.empty + len(pairs.bad)
                          + pairs.empty,
          'cut_prompts': float(demonstrations.truncated_prompts
                               / len(training)),
          'unfinished_demonstrations': share(demonstrations),
          'unfinished_preferences': (share(chosen) + share(rejected)) / 2,
      })


def _preference_format(format, preference_format):
  return preference_format or (
      format if format in formats.DIALOGUES else 'hh')


def num_preferences(config: dict) -> int:
  """Usable pairs of a node whose name is 'files' or 'logged'."""
  if config['name'] == 'logged':
    return _logs().num_preferences(config)
  return len(_read(config['path'], config['preferences'],
                   config.get('max_bad_rows', 0),
                   config['num_eval_prompts'])[1].rows)


def _check_formats(config, coder, rows, pairs):
  name = config.get('format') or 'alpaca'
  write = formats.get(name)
  pair = formats.get(_preference_format(name, config.get('preference_format')))
  texts = [write(r.instruction, r.output, r.input) for r in rows.rows]
  texts += [pair(p.prompt, side) for p in pairs.rows
            for side in (p.chosen, p.rejected)]
  check_texts(config, coder, texts)


def check_texts(config: dict, coder: tokenizer_lib.Tokenizer | None,
                texts: list[tuple[formats.Text, formats.Text]]):
  """ValueError or ConfigError if prompts and responses cannot be encoded.

  Args:
    config: node of the corpus.
    coder: its tokenizer; None: one that is to be trained on the texts.
    texts: in their format; the first and the last are tried.
  """
  names = tuple(config.get('control') or ())
  if coder is not None:
    for prompt, response in (texts[0], texts[-1]):
      coder.encode_rows([prompt], [response], max_prompt_length=1,
                        max_response_length=1)
    return
  specials = {part for text in (*texts[0], *texts[-1])
              if not isinstance(text, str) for part in text
              if isinstance(part, formats.Special) and part != formats.END}
  least = 259 + len(specials | {formats.Special(name) for name in names})
  if config.get('vocab_size', 4096) < least:
    raise ValueError(f'vocab_size must be >= {least} (256 bytes, the special '
                     f'tokens), got {config["vocab_size"]}')


def train_tokenizer(
    rows: Iterable[tuple[formats.Text, formats.Text]], vocab_size: int,
    control: Sequence[str],
) -> tokenizer_lib.Tokenizer:
  """A BPE of the texts, with the control tokens that their format needs."""
  texts, names = [], dict.fromkeys(control)
  for text in itertools.chain.from_iterable(rows):
    for part in (text,) if isinstance(text, str) else text:
      if isinstance(part, str):
        texts.append(part)
      elif part != formats.END:
        names[part.name] = None
  return tokenizer_lib.Tokenizer.train_bpe(
      texts, vocab_size=vocab_size, control=tuple(names))


def load_tokenizer(
    path: str, pad: str | None = None, bos: str | None = None,
    eos: str | None = None, control: tuple[str, ...] = (),
) -> tokenizer_lib.Tokenizer:
  """A tokenizer from a Hugging Face directory or from a file.

  Args:
    path: a directory, tokenizer.json, .gguf, or llama2.c's tokenizer .bin.
    pad: name of its padding token; None: what it says itself, or ours.
    bos: name of its BOS, likewise.
    eos: name of its EOS, likewise.
    control: further control tokens.

  Raises:
    ConfigError: a token is not in it.
    CheckpointError: the directory is refused.
    DataError: the file is missing or malformed.
  """
  names = {k: v for k, v in dict(pad=pad, bos=bos, eos=eos).items()
           if v is not None} | {'control': tuple(control)}
  make = tokenizer_lib.Tokenizer
  if pathlib.Path(path).is_dir():
    return make.from_directory(path, **names)
  if path.endswith('.gguf'):
    return make.from_gguf(path, **names)
  if path.endswith('.bin'):
    return make.from_llama2c(path, **names)
  return make.from_file(path, **names)


def named_tokenizer(config: dict) -> tokenizer_lib.Tokenizer | None:
  """The tokenizer that a node names, by `load_tokenizer`; None: none."""
  if not config.get('tokenizer'):
    return None
  return load_tokenizer(config['tokenizer'], **{
      k: config[k] for k in ('pad', 'bos', 'eos', 'control')
      if config.get(k)})


@functools.lru_cache(maxsize=2)
def _read(path: str, preferences: str, max_bad_rows: int,
          num_eval_prompts: int) -> tuple[readers.Read, readers.Read]:
  """Demonstrations and preferences, checked to the last row."""
  rows = readers.read_alpaca(path, max_bad_rows=max_bad_rows)
  pairs = readers.read_hh(preferences, max_bad_rows=max_bad_rows)
  prompts = {(row.instruction, row.input) for row in rows.rows}
  if len(prompts) < num_eval_prompts + 1:
    raise errors.DataError(
        f'{path}: {len(prompts)} usable prompts, but {num_eval_prompts} '
        'are to be held out for evaluation; lower config.data.'
        'num_eval_prompts or give more data')
  return rows, pairs


def _logs():
  """The module of logged responses, which builds on this one."""
  from rlhf_jax.data import logs
  return logs


@functools.lru_cache(maxsize=4)  # a study compares up to three logs
def _load(seed: int, items: tuple) -> Corpus:
  kwargs = dict(items)
  name = kwargs.pop('name')
  builders: dict[str, Callable[..., Corpus]] = {
      'reviews': from_reviews, 'files': from_files,
      'logged': _logs().from_logged}
  if name not in builders:
    raise errors.ConfigError(f'config.data.name is {name!r}; there are '
                             f'{", ".join(sorted(builders))}')
  return builders[name](seed=seed, **kwargs)


def load(config: dict, seed: int) -> Corpus:
  """The corpus of a config node {name, **kwargs}; kept for the next stage.

  Fields that are None are left out. The stages of a study ask for the same
  corpus one after the other, and it is a pure function of its arguments.
  """
  return _load(seed, freeze(
      {k: v for k, v in config.items() if v is not None}))


def freeze(value: Any) -> Any:
  """A config's value that can be hashed: lists and nodes become tuples."""
  if isinstance(value, Mapping):
    return tuple(sorted((k, freeze(v)) for k, v in value.items()))
  if isinstance(value, list | tuple):
    return tuple(freeze(v) for v in value)
  return value


def fingerprints(config: dict) -> dict[str, str]:
  """SHA-256 of the content of each file that `config` names."""
  found = {}
  for field in FILES:
    path = config.get(field)
    if path and field == 'path' and pathlib.Path(path).is_dir():
      found[field] = _directory_fingerprint(pathlib.Path(path))
    elif path:
      found[field] = files.fingerprint(path, ('.json', '.txt', '.model'))
  return found


def _directory_fingerprint(path: pathlib.Path) -> str:
  """SHA-256 of a directory of data, hidden files and caches left out."""
  names = [file.relative_to(path) for file in path.rglob('*')
           if file.is_file()]
  return files.digest({
      name.as_posix(): files.fingerprint(path / name) for name in names
      if not any(part.startswith('.') for part in name.parts)})


def check(config: dict):
  """Raises at once what `load` would raise later; touches no device.

  Raises:
    DataError: a file that `config` names is missing or malformed.
    ConfigError: a field of it is out of range.
  """
  for field in FILES:
    path = config.get(field)
    directory = field == 'tokenizer' or config['name'] == 'logged'
    exists = path and (pathlib.Path.exists if directory
                       else pathlib.Path.is_file)(pathlib.Path(path))
    if path and not exists:
      raise errors.DataError(
          f'{path}: no such file; check --config.data.{field}')
  for field in ('max_prompt_length', 'max_response_length'):
    if config.get(field, 1) < 1:
      raise errors.ConfigError(f'{field} of config.data is {config[field]}; '
                               'give at least 1 token')
  try:
    if config['name'] == 'reviews':
      reviews.Reviews(**{k: v for k, v in config.items() if k in (
          'num_adjectives', 'zipf', 'typo_rate', 'advert_rate',
          'sentences')})
      return
    if config['name'] == 'logged':
      _logs().check(config)
      return
    coder = named_tokenizer(config)
    rows, pairs = _read(
        config['path'], config['preferences'], config.get('max_bad_rows', 0),
        config['num_eval_prompts'])
    _check_formats(config, coder, rows, pairs)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'config.data: {error}') from None
