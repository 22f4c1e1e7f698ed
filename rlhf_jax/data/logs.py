"""A corpus of logged responses with their groups and scores, for offline RL.

From a file or directory that `logged` reads, or from a task of `tasks`, which
is written and read in the same way. Prompts are split as those of files are:
all that was logged for a held-out prompt is left out of the log.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import examples as examples_lib
from rlhf_jax.data import kinds
from rlhf_jax.data import logged
from rlhf_jax.data import options as options_lib
from rlhf_jax.data import readers
from rlhf_jax.data import reviews
from rlhf_jax.data import rows as rows_lib
from rlhf_jax.data import screening
from rlhf_jax.data import task_reviews
from rlhf_jax.data import tasks
from rlhf_jax.data import tokenizer as tokenizer_lib

Example = examples_lib.Example
Options = examples_lib.Options
SIDES = ('chosen', 'rejected')  # groups that make a pair


def from_logged(*, seed: int, **fields: Any) -> corpus_lib.Corpus:
  """Reads logged responses, or writes some first.

  Args:
    seed: of the study, which decides on the held-out prompts and on the texts
      of a task.
    **fields: of `Options`; others are of `tasks.write` for a task, of
      `logged.read` for a path.

  Returns:
    A corpus with `log`; its `preferences` are the examples that have a
    'chosen' and a 'rejected' row, `eval_splits` the parts of the data if it
    names several, and `pair_references` and `eval_references` the right
    answers if every prompt asked has one. For task 'reddit' the splits are
    `reviews.split_of`, and with the task's own tokenizer `world` is that of
    the reviews.

  Raises:
    DataError: a file is missing or malformed, or holds too few prompts.
    TypeError, ValueError: a field is unknown, missing or out of range.
  """
  options = _bind(fields)
  read = examples_lib.read(options, seed)
  examples_lib.check_names(options, read.rows)
  training, held_out = examples_lib.split(options, seed)
  rows = [row for example in training for row in example]
  write = examples_lib.writer(options)
  coder, world = _tokenizer(options, map(write, rows))
  encode = lambda some: coders.encode(coder, options, map(write, some))
  encoded = encode(rows)
  whole = _fitting(options, training, encoded.cut)
  left_out = len(training) - len(whole)
  if left_out:
    training, rows = whole, [row for example in whole for row in example]
    encoded = encode(rows)
  log = _log(training, encoded, coder.pad_id)
  preferences, identical = _preferences(options, log)
  best = encode([_demonstration(options, example) or example[0]
                 for example in held_out])
  shown = _shown(options, training)
  demonstrations = types.Batch(tokens=encoded.tokens[shown][:, None],
                               mask=encoded.mask[shown][:, None])
  starts = _starts(training)[
      corpus_lib.repeated(len(training), options.num_pair_prompts)]
  return corpus_lib.Corpus(
      tokenizer=coder, demonstrations=demonstrations,
      pair_prompts=corpus_lib.Prompts(
          encoded.prompts[starts], encoded.prompt_lengths[starts]),
      pair_references=_references(rows[at] for at in starts),
      eval_prompts=corpus_lib.as_prompts(best),
      eval_demonstrations=corpus_lib.single(best),
      eval_references=_references(example[0] for example in held_out),
      eval_splits=_splits(options, held_out),
      max_response_length=options.max_response_length,
      preferences=preferences, world=world,
      log=log, log_target=options.target, format=options.prompt_format,
      summary={'examples': len(training), 'long_prompts': left_out,
               'identical_pairs': identical,
               **_summary(read, coder, demonstrations, encoded)})


def check(node: Mapping[str, Any]):
  """Raises at once what `from_logged` would raise later.

  Args:
    node: {name, **fields}, see `load`.

  Raises:
    DataError: the file is missing or malformed, or holds too few prompts.
    ConfigError: a tokenizer or a format does not fit.
    TypeError, ValueError: a field is unknown, missing or out of range.
  """
  options = _bind(node)
  if not kinds.KINDS[options.row_kind].answers:
    raise errors.DataError(
        f'{options.source} has prompts and no responses, so that there is '
        'nothing to learn from offline; give it as config.data.path to an '
        'algorithm that samples')
  rows = examples_lib.read(options, 0).rows
  examples_lib.check_names(options, rows)
  examples_lib.split(options, 0)
  write = examples_lib.writer(options)
  coder = None
  if options.tokenizer or options.task:
    coder, _ = _tokenizer(options, ())
  # Every row, since one with turns may stand anywhere.
  coders.check_texts(options, coder, [write(row) for row in rows])


def training(node: Mapping[str, Any], seed: int = 0) -> list[Example]:
  """The examples of training prompts, with the split of a seed.

  Args:
    node: {name, **fields}, which has passed `check`.
    seed: of the study.
  """
  return _training(_bind(node), seed)


@functools.lru_cache(maxsize=4)
def _training(options: Options, seed: int) -> list[Example]:
  return examples_lib.split(options, seed)[0]


def num_preferences(node: Mapping[str, Any], seed: int = 0) -> int:
  """Chosen and rejected pairs of training prompts."""
  return sum({*SIDES} <= {row.group for row in example}
             for example in training(node, seed))


def num_scored(node: Mapping[str, Any]) -> int:
  """Responses to training prompts that have the score `target`."""
  target = _bind(node).target
  return sum(target in dict(row.scores)
             for example in training(node) for row in example)


def group_names(node: Mapping[str, Any]) -> tuple[str, ...]:
  """The groups of the responses to training prompts."""
  return examples_lib.groups(
      row for example in training(node) for row in example)


def _bind(node: Mapping[str, Any]) -> Options:
  return options_lib.bind(Options, node, others='others')


def _tokenizer(options: Options, texts: Iterable[coders.Texts]
               ) -> tuple[tokenizer_lib.Tokenizer, reviews.Reviews | None]:
  """The tokenizer that is named, a task's, or one trained on the texts."""
  if options.tokenizer or options.task is None:
    return coders.own_tokenizer(options, texts), None
  if options.task == 'reddit':  # prompts of the world, word for word
    world = reviews.Reviews(**{name: value for name, value in options.others
                               if name not in task_reviews.OPTIONS})
    return world.tokenizer, world
  words = tasks.vocabulary(options.task, **dict(options.others))
  return tokenizer_lib.Tokenizer.word_level(words), None


def _log(examples: Sequence[Example], encoded: rows_lib.EncodedRows,
         pad_id: int) -> corpus_lib.Log:
  """The log of examples, from all their rows."""
  rows = [row for example in examples for row in example]
  sizes = [len(example) for example in examples]
  at = (np.repeat(np.arange(len(sizes)), sizes),
        np.concatenate([np.arange(size) for size in sizes]))
  shape = len(sizes), max(sizes)

  def place(values, empty, dtype):
    values = np.asarray(values, dtype)
    out = np.full((*shape, *values.shape[1:]), empty, dtype)
    out[at] = values
    return out

  groups = examples_lib.groups(rows)
  scores = {name: place([dict(row.scores).get(name, np.nan) for row in rows],
                        np.nan, np.float32)
            for name in examples_lib.score_names(rows)}
  references = tuple(example[0].reference for example in examples)
  tokens = place(encoded.tokens, pad_id, np.int32)
  mask = place(encoded.mask, False, bool)
  place_of = {name: i for i, name in enumerate(groups)}
  group = place([place_of[row.group] for row in rows], -1, np.int32)
  # A missing response has its prompt all the same: no row is empty.
  alone = np.where(mask[:, :1], pad_id, tokens[:, :1])
  tokens = np.where((group < 0)[..., None], alone, tokens)
  return corpus_lib.Log(
      tokens=tokens, mask=mask, group=group, groups=groups, scores=scores,
      references=references if any(references) else None)


def _fitting(options: Options, examples: list[Example], cut: np.ndarray
           ) -> list[Example]:
  """The examples whose prompts stay, of bool[all rows] that are cut."""
  first = _starts(examples)
  return [example for example, keep in zip(
      examples, screening.prompts(options, cut[first], options.source)) if keep]


def _demonstration(options: Options, example: Example) -> logged.Logged | None:
  """The first row of the groups of demonstrations, if there is one."""
  groups = options.shown_groups
  return next((row for row in example if groups is None
               or row.group in groups), None)


def _starts(examples: Sequence[Example]) -> np.ndarray:
  """Where in all rows each example begins, i64[N]."""
  return np.cumsum([0, *(len(example) for example in examples[:-1])])


def _shown(options: Options, examples: Sequence[Example]) -> np.ndarray:
  """Where in all rows the demonstrations are, at most one of each example.

  Raises:
    DataError: there are none.
  """
  places = [start + example.index(_demonstration(options, example))
            for start, example in zip(_starts(examples), examples)
            if _demonstration(options, example) is not None]
  if not places:
    raise errors.DataError(
        f'{options.source}: no training prompt has a demonstration of the '
        f'groups {", ".join(options.shown_groups)}; give more data')
  return np.array(places)


def _references(rows: Iterable[logged.Logged]) -> tuple[str, ...] | None:
  """The right answers of rows if each of them has one."""
  answers = tuple(row.reference for row in rows)
  return answers if all(answers) else None


def _preferences(options: Options, log: corpus_lib.Log
                 ) -> tuple[types.Batch | None, int]:
  """Pairs [N, 2, T], chosen first, of the examples that have both.

  None for a log without such groups; and how many were left out.
  """
  if not {*SIDES} <= {*log.groups}:
    return None, 0
  is_side = [log.group == log.groups.index(name) for name in SIDES]
  rows = np.flatnonzero(np.all([side.any(axis=1) for side in is_side], axis=0))
  at = np.stack([side.argmax(axis=1) for side in is_side], axis=1)[rows]
  tokens, mask = log.tokens[rows[:, None], at], log.mask[rows[:, None], at]
  fits = screening.pairs(options, tokens[:, 0], tokens[:, 1], options.source)
  return types.Batch(tokens=tokens[fits], mask=mask[fits]), int((~fits).sum())


def _splits(options: Options, held_out: Sequence[Example]
            ) -> tuple[str, ...] | None:
  """The part of the data of each held-out prompt, if there are several."""
  if options.task == 'reddit':
    return tuple(reviews.split_of([example[0].prompt for example in held_out]))
  splits = tuple(example[0].split for example in held_out)
  return splits if len({*splits}) > 1 else None


def _summary(read: readers.Read, coder: tokenizer_lib.Tokenizer,
             demonstrations: types.Batch, encoded: rows_lib.EncodedRows
             ) -> dict[str, float]:
  """What a run says of its texts; shares are in [0, 1]."""
  ended = (demonstrations.mask & (demonstrations.tokens == coder.eos_id)).any(
      axis=-1)
  num_responses = len(encoded.tokens)
  return {
      'responses': num_responses,
      'demonstrations': len(ended),
      'vocabulary': coder.vocab_size,
      'dropped_rows': len(read.bad) + read.empty + read.skipped,
      'cut_prompts': float(encoded.truncated_prompts / num_responses),
      'unfinished_demonstrations': float(1 - ended.mean()),
      'unfinished_responses':
          float(encoded.truncated_responses / num_responses),
  }
