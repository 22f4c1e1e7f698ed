"""Logged responses, with what is said of each, from the files of papers.

  kind               one entry                                     group
  hh                 chosen, rejected dialogues (Anthropic HH)     chosen,
                                                                   rejected
  hh_scored          prefix, suffix and reward, each a list of K   chosen,
                     (LoL-RL, PRO), the preferred one first        rejected
  stack_exchange     question, answers [text, votes, accepted]     accepted,
                     (Beeching et al. 2023)                        other
  reddit             parent_text, text, score (LoL-RL's CSV)       up, down
  grounded_dialogue  FaithDial, its audit's CSV, or a dialogue of  edited,
                     Wizard of Wikipedia                           original,
                                                                   human
  comet              head, relation and tail or tails (ATOMIC10X,  model,
                     ATOMIC 2020, generations of COMET)            human
  gsm8k              question, answer; or question, ground_truth   human, or
                     and a solution of each of several models      the model
  rows               prompt, response, reward, and optional ones   its column

`log_kinds` has the fields of each. Files are those of `tables`. As with
`readers`, a file is validated to its end before anything is returned, and
every bad entry is named by its line. A blank response is dropped and counted
as empty, the others of its example stay; a response that a kind leaves out by
its own rule is counted as skipped.
"""

from collections.abc import Callable, Hashable
import dataclasses
import functools
import inspect
import os
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import log_kinds
from rlhf_jax.data import readers
from rlhf_jax.ops import labels

Logged = readers.Logged
Responses = list[Logged | None]  # None is one left out; keys as example

final_answer = log_kinds.final_answer

KINDS: dict[str, Callable[..., Responses | None]] = {
    'hh': log_kinds.hh,
    'hh_scored': log_kinds.hh_scored,
    'stack_exchange': log_kinds.stack_exchange,
    'reddit': log_kinds.reddit,
    'grounded_dialogue': log_kinds.grounded_dialogue,
    'comet': log_kinds.comet,
    'gsm8k': log_kinds.gsm8k,
    'rows': log_kinds.rows,
}
_COLUMNS = {'comet': ('head', 'relation', 'tail')}  # ATOMIC has no header
_BEST_FIRST = {'stack_exchange': ('score', 'votes'), 'rows': ('reward',)}


def read(
    path: str | os.PathLike,
    kind: str,
    *,
    max_bad_rows: int = 0,
    split: str | None = None,
    **options: Any,
) -> readers.Read:
  """Reads a log of responses.

  Args:
    path: a file or directory that `tables` reads.
    kind: one of `KINDS`.
    max_bad_rows: how many bad entries to drop before it becomes an error.
    split: which split of a directory that has several.
    **options: keyword arguments of the function of that kind.

  Returns:
    A `Read` of `Logged`, at least one, grouped by example, the best response
    first; examples are numbered from 0 in the order of the file. `empty`
    counts blank responses and entries without any, `duplicates` repeated
    entries.

  Raises:
    DataError: the file cannot be read, has too many bad entries, or none
      that can be used.
    ValueError: if kind or an option is unknown.
  """
  entries = readers.collect(
      path, _parser(kind, options), max_bad_rows=max_bad_rows, split=split,
      columns=_COLUMNS.get(kind, ()))
  every = [(key, row) for number, group in enumerate(entries.rows)
           for key, row in _keyed(number, group)]
  present = [(key, row) for key, row in every if row is not None]
  filled = [(key, row) for key, row in present if row.response.strip()]
  if not filled:
    raise errors.DataError(
        f'{path}: no usable response: {len(entries.bad)} bad, '
        f'{entries.empty} empty and {len(every)} blank or left out')
  return dataclasses.replace(
      entries,
      rows=_ordered(path, filled, _BEST_FIRST.get(kind, ())),
      empty=entries.empty + len(present) - len(filled),
      skipped=len(every) - len(present),
  )


def _parser(kind: str, options: dict[str, Any]
            ) -> Callable[[dict], tuple[Logged | None, ...] | None]:
  if kind not in KINDS:
    raise ValueError(
        f'kind must be one of {", ".join(sorted(KINDS))}, got {kind!r}')
  function = functools.partial(KINDS[kind], **options)
  try:
    inspect.signature(KINDS[kind]).bind({}, **options)
  except TypeError as error:
    raise ValueError(f'options of kind {kind!r}: {error}') from None

  def parse(entry):
    # Spreadsheets end in such lines; nothing is wrong with them.
    if not any(value or value == 0 for value in entry.values()):
      return None
    responses = function(entry)
    return tuple(responses) if responses else None

  return parse


def _keyed(number: int, group: tuple[Logged | None, ...]):
  """(key of the example, response); a string names one of the whole file."""
  for row in group:
    whole = row is not None and isinstance(row.example, str)
    key = row.example if whole else (number, row and row.example)
    yield key, row


def _ordered(path: str | os.PathLike, keyed: list[tuple[Hashable, Logged]],
             best_first: tuple[str, ...]) -> list[Logged]:
  """Numbers the examples and sorts each of them."""
  numbers = {}
  prompts = {}
  rows = []
  for key, row in keyed:
    rows.append(dataclasses.replace(
        row, example=numbers.setdefault(key, len(numbers))))
    if prompts.setdefault(key, row.prompt) != row.prompt:
      raise errors.DataError(
          f'{path}: prompt_id {key!r} has two prompts, {prompts[key][:40]!r} '
          f'and {row.prompt[:40]!r}')
  if 'votes' in best_first:
    rows = _with_scores(rows)

  def place(row):
    scores = dict(row.scores)
    return row.example, *(-scores.get(name, 0) for name in best_first)

  return sorted(rows, key=place)


def _with_scores(rows: list[Logged]) -> list[Logged]:
  """Adds the score of Zhu et al. 2023 where there are votes."""
  votes = np.array([dict(row.scores).get('votes', 0) for row in rows], int)
  accepted = np.array([row.group == 'accepted' for row in rows])
  scores = np.asarray(labels.upvote_score(votes, accepted)).tolist()
  return [
      dataclasses.replace(row, scores=(*row.scores, ('score', score)))
      if 'votes' in dict(row.scores) else row
      for row, score in zip(rows, scores)
  ]
