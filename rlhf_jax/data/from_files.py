"""A corpus of demonstrations, and perhaps human preferences, in files."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from rlhf_jax import types
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import formats
from rlhf_jax.data import options as options_lib
from rlhf_jax.data import readers
from rlhf_jax.data import rows as rows_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options_lib.Texts):
  """What of which files, beside what `options.Texts` has.

  Attributes:
    path: Alpaca-style demonstrations, a file that `tables` reads.
    preferences: Anthropic HH pairs, likewise; None: there are none.
    format: of demonstrations and prompts, see `formats`.
    preference_format: of preferences, whose prompts are dialogues; None: the
      same if it takes dialogues, or else 'hh'.
    num_demonstrations: at most so many; None: all.
  """

  path: str
  preferences: str | None = None
  format: str = 'alpaca'
  preference_format: str | None = None
  num_demonstrations: int | None = None


def from_files(*, seed: int, **fields: Any) -> corpus_lib.Corpus:
  """Reads demonstrations (Alpaca) and human preferences (Anthropic HH).

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
  pairs = _pairs(options)
  sides = [list(side) for side in zip(*pairs)]  # chosen, rejected
  coder = coders.own_tokenizer(
      options, training + [text for side in sides for text in side])
  encode = functools.partial(coders.encode, coder, options)
  demonstrations, held_out = encode(training), encode(held_out)
  sides = [encode(side) for side in sides]
  at = corpus_lib.repeated(len(training), options.num_pair_prompts)
  return corpus_lib.Corpus(
      tokenizer=coder,
      demonstrations=corpus_lib.single(demonstrations),
      pair_prompts=corpus_lib.Prompts(
          demonstrations.prompts[at], demonstrations.prompt_lengths[at]),
      eval_prompts=corpus_lib.as_prompts(held_out),
      eval_demonstrations=corpus_lib.single(held_out),
      max_response_length=options.max_response_length,
      preferences=types.Batch(
          tokens=np.stack([side.tokens for side in sides], axis=1),
          mask=np.stack([side.mask for side in sides], axis=1),
      ) if sides else None,
      format=options.format,
      summary=_summary(options, coder.vocab_size, demonstrations, sides))


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
  texts = _demonstrations(options)
  for pair in _pairs(options):
    texts += pair
  coders.check_texts(options, coders.named_tokenizer(node), texts)


def num_preferences(node: Mapping[str, Any]) -> int:
  """Usable pairs of the files that a node names."""
  return len(_pairs(options_lib.bind(Options, node)))


_read_alpaca = functools.lru_cache(maxsize=2)(readers.read_alpaca)
_read_hh = functools.lru_cache(maxsize=2)(readers.read_hh)


def _read(options: Options) -> tuple[readers.Read, ...]:
  """Demonstrations and, if there are any, preferences, to the last row."""
  files = [_read_alpaca(options.path, max_bad_rows=options.max_bad_rows)]
  if options.preferences is not None:
    files.append(_read_hh(
        options.preferences, max_bad_rows=options.max_bad_rows))
  return tuple(files)


def _demonstrations(options: Options) -> list[coders.Texts]:
  """All demonstrations in their format; DataError if too few prompts."""
  rows = _read(options)[0].rows
  prompts = {(row.instruction, row.input) for row in rows}
  corpus_lib.check_prompts(
      len(prompts), options.num_eval_prompts, options.path)
  write = formats.get(options.format)
  return [write(row.instruction, row.output, row.input) for row in rows]


def _pairs(options: Options) -> list[tuple[coders.Texts, coders.Texts]]:
  """(chosen, rejected) of all preferences in their format."""
  write = formats.get(options.preference_format or (
      options.format if options.format in formats.DIALOGUES else 'hh'))
  return [(write(row.prompt, row.chosen), write(row.prompt, row.rejected))
          for read in _read(options)[1:] for row in read.rows]


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
