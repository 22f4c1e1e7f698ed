"""A corpus of demonstrations, and perhaps human preferences, in files."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import examples
from rlhf_jax.data import formats
from rlhf_jax.data import kinds
from rlhf_jax.data import logged
from rlhf_jax.data import options as options_lib
from rlhf_jax.data import readers
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data import screening


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options_lib.Texts):
  """What of which files, beside what `options.Texts` has.

  Attributes:
    path: demonstrations, a file of any kind of `kinds`, of which the first
      response to each prompt counts; or prompts alone, whose demonstrations
      are empty and are not to be learned from (`has_answers`).
    preferences: pairs, likewise; None: there are none.
    kind: of the demonstrations; None: by their columns.
    columns: what columns of the demonstrations are called, as pairs, see
      `logged.read`.
    split: of the demonstrations, where a directory has several.
    preference_kind: of the preferences, likewise.
    format: of demonstrations and prompts, see `formats`.
    preference_format: of preferences; None: the same, or 'hh' for dialogues
      of Anthropic HH where it does not take them.
    num_demonstrations: at most so many; None: all.
  """

  path: str
  preferences: str | None = None
  kind: str | None = None
  columns: tuple[tuple[str, str], ...] = ()
  split: str | None = None
  preference_kind: str | None = None
  format: str = 'alpaca'
  preference_format: str | None = None
  num_demonstrations: int | None = None


def from_files(*, seed: int, **fields: Any) -> corpus_lib.Corpus:
  """Reads demonstrations and human preferences.

  Args:
    seed: of the study, which decides on the held-out prompts.
    **fields: of `Options`.

  Raises:
    DataError: a file is missing or malformed, or holds too few prompts.
    TypeError, ValueError: a field is unknown, missing or out of range.
  """
  options = options_lib.bind(Options, fields)
  training, held_out = corpus_lib.split_by_prompt(
      _demonstrations(options), seed, options.num_eval_prompts)
  training = training[:options.num_demonstrations]
  training, answers = [t[:2] for t in training], [t[2] for t in training]
  held_out, eval_answers = [t[:2] for t in held_out], [t[2] for t in held_out]
  pairs = _pairs(options)
  sides = [list(side) for side in zip(*pairs)]  # chosen, rejected
  coder = coders.own_tokenizer(
      options, training + [text for side in sides for text in side])
  encode = functools.partial(coders.encode, coder, options)
  demonstrations, held_out = encode(training), encode(held_out)
  fits = screening.prompts(options, demonstrations.cut, options.path)
  if not fits.all():
    training, answers = ([x for x, keep in zip(some, fits) if keep]
                         for some in (training, answers))
    demonstrations = encode(training)
  sides = [encode(side) for side in sides]
  preferences, identical = _preferences(options, sides)
  at = corpus_lib.repeated(len(training), options.num_pair_prompts)
  return corpus_lib.Corpus(
      tokenizer=coder,
      demonstrations=corpus_lib.single(demonstrations),
      pair_prompts=corpus_lib.Prompts(
          demonstrations.prompts[at], demonstrations.prompt_lengths[at]),
      pair_references=_complete(answers[i] for i in at),
      eval_prompts=corpus_lib.as_prompts(held_out),
      eval_demonstrations=(
          corpus_lib.single(held_out) if _has_answers(options) else None),
      eval_references=_complete(eval_answers),
      max_response_length=options.max_response_length,
      preferences=preferences,
      format=options.format,
      summary={**_summary(options, coder.vocab_size, demonstrations, sides),
               'long_prompts': int((~fits).sum()),
               'identical_pairs': identical})


def _preferences(options: Options, sides: list[rows_lib.EncodedRows]
                 ) -> tuple[types.Batch | None, int]:
  """Pairs [N, 2, T], and how many were left out."""
  if not sides:
    return None, 0
  fits = screening.pairs(options, *(side.tokens for side in sides),
                         options.preferences)
  stack = lambda arrays: np.stack([x[fits] for x in arrays], axis=1)
  return types.Batch(
      tokens=stack([side.tokens for side in sides]),
      mask=stack([side.mask for side in sides])), int((~fits).sum())


def check(node: Mapping[str, Any]):
  """Raises at once what `from_files` would raise later.

  Args:
    node: {name, **fields}, see `load`.

  Raises:
    DataError: a file is missing or malformed, or holds too few prompts.
    ConfigError: a tokenizer or a format does not fit.
    TypeError, ValueError: a field is unknown, missing or out of range.
  """
  options = options_lib.bind(Options, node)
  texts = [text[:2] for text in _demonstrations(options)]
  for pair in _pairs(options):
    texts += pair
  coders.check_texts(options, coders.named_tokenizer(node), texts)


def num_preferences(node: Mapping[str, Any]) -> int:
  """Usable pairs of the files that a node names."""
  return len(_pairs(options_lib.bind(Options, node)))


def has_answers(node: Mapping[str, Any]) -> bool:
  """Whether there are demonstrations, and not prompts alone."""
  return _has_answers(options_lib.bind(Options, node))


def has_references(node: Mapping[str, Any]) -> bool:
  """Whether every prompt has a right answer."""
  return all(text[2] for text in _demonstrations(
      options_lib.bind(Options, node)))


def _has_answers(options: Options) -> bool:
  return kinds.KINDS[_kind(_demonstration_file(options))].answers


def _complete(answers: Iterable[str]) -> tuple[str, ...] | None:
  """Right answers if every prompt has one."""
  answers = tuple(answers)
  return answers if all(answers) else None


class _File(NamedTuple):
  """Which rows of which file."""

  path: str
  kind: str | None
  columns: tuple[tuple[str, str], ...] = ()
  split: str | None = None


def _demonstration_file(options: Options) -> _File:
  return _File(options.path, options.kind, options.columns, options.split)


def _preference_file(options: Options) -> _File:
  return _File(options.preferences, options.preference_kind)


@functools.lru_cache(maxsize=4)
def _kind(file: _File) -> str:
  return file.kind or logged.kind_of(
      file.path, columns=dict(file.columns), split=file.split, advice=(
          '--config.data.files.kind, or .preference_kind, says which it is; '
          '--config.data.files.columns.<name>=<column> what a column is called'
          ))


def _read(options: Options) -> tuple[readers.Read, ...]:
  """Demonstrations and, if there are any, preferences, to the last row."""
  return tuple(logged.read_once(
      file.path, _kind(file), options.max_bad_rows,
      logged.arguments_of(file.columns, file.split))
               for file in (_demonstration_file(options),
                            _preference_file(options))
               if file.path is not None)


def _demonstrations(options: Options) -> list[tuple]:
  """(prompt, response, right answer or '') of all demonstrations.

  In their format; DataError if there are too few prompts.
  """
  groups = kinds.KINDS[_kind(_demonstration_file(options))].demonstrations
  first = {}
  for row in _read(options)[0].rows:
    if groups is None or row.group in groups:
      first.setdefault(row.example, row)
  rows = list(first.values())
  corpus_lib.check_prompts(
      len({(row.prompt, row.input, row.turns) for row in rows}),
      options.num_eval_prompts, options.path)
  write = examples.write_in(options.format)
  return [(*write(row), row.reference) for row in rows]


def _pairs(options: Options) -> list[tuple[coders.Texts, coders.Texts]]:
  """(chosen, rejected) of all preferences in their format."""
  if options.preferences is None:
    return []
  kind = _kind(_preference_file(options))
  write = examples.write_in(options.preference_format or (
      'hh' if kind in ('hh', 'hh_scored')
      and options.format not in formats.DIALOGUES else options.format))
  sides = {}
  for row in _read(options)[1].rows:  # best first
    if row.group == 'chosen':
      sides.setdefault(row.example, {}).setdefault('chosen', row)
    elif row.group == 'rejected':
      sides.setdefault(row.example, {})['rejected'] = row
  pairs = [(write(pair['chosen']), write(pair['rejected']))
           for pair in sides.values() if len(pair) == 2]
  if not pairs:
    raise errors.DataError(
        f'{options.preferences}: rows of kind {kind!r} make no pair of a '
        'chosen and a rejected response; give pairs, comparisons or ranked '
        'answers')
  return pairs


def _summary(options: Options, vocab_size: int,
             demonstrations: rows_lib.EncodedRows,
             sides: list[rows_lib.EncodedRows]) -> dict[str, float]:
  """What a run says of its corpus; shares are in [0, 1]."""
  unfinished = lambda rows: float(rows.truncated_responses / len(rows.tokens))
  summary = {
      'demonstrations': len(demonstrations.tokens),
      'vocabulary': vocab_size,
      'dropped_rows': sum(len(read.bad) + read.empty
                          for read in _read(options)),
      'cut_prompts': float(demonstrations.truncated_prompts
                           / len(demonstrations.tokens)),
      'unfinished_demonstrations': unfinished(demonstrations),
  }
  if sides:
    summary['preferences'] = len(sides[0].tokens)
    summary['unfinished_preferences'] = sum(map(unfinished, sides)) / 2
  return summary
