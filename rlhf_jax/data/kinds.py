"""Kinds of entries of data files, and which of them an entry is.

  kind               one entry                                     groups
  pairs              prompt, chosen, rejected; texts or messages,  chosen,
                     the prompt apart or what both begin with      rejected
  comparisons        two answers and who won (SHP, LLMBar,         chosen,
                     PandaLM, TL;DR)                               rejected
  ranked             answers with ranks or scores                  chosen,
                     (UltraFeedback, Nectar, HelpSteer)            other,
                                                                   rejected
  unpaired           prompt, completion, label (KTO)               liked,
                                                                   disliked
  messages           a conversation, also ShareGPT's               demonstration
  instructions       instruction, input, output (Alpaca);          demonstration
                     prompt and completion
  prompts            a prompt, or turns that end with the user's  prompt
  rows               prompt, response, reward, and optional ones   its column
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

`common_kinds` and `log_kinds` have the fields of each.
"""

from collections.abc import Callable, Iterable, Mapping
import difflib
from typing import Any, NamedTuple

from rlhf_jax.data import chats
from rlhf_jax.data import common_kinds
from rlhf_jax.data import log_kinds
from rlhf_jax.data import readers
from rlhf_jax.data import tables

_CHATS = chats.MESSAGES
_PROMPTS = common_kinds.PROMPTS


class Kind(NamedTuple):
  """How entries of one kind are read, and told from others."""

  read: Callable[..., list[readers.Logged | None]]
  # An entry of the kind has all columns of one of these, where a tuple within
  # stands for any of its names.
  columns: tuple[tuple[str | tuple[str, ...], ...], ...]
  format: str = 'alpaca'  # of prompts, unless another is named
  optional: tuple[str, ...] = ()  # further columns that it reads
  # Groups whose first row of an example is a demonstration; None: of any.
  demonstrations: tuple[str, ...] | None = None
  answers: bool = True  # whether entries have responses; else prompts alone


# Those with more to know them by come first.
KINDS = {
    'hh_scored': Kind(
        log_kinds.hh_scored, (('prefix', 'suffix', 'reward'),), 'hh'),
    'hh': Kind(log_kinds.hh, (('chosen', 'rejected'),), 'hh'),
    'pairs': Kind(
        common_kinds.pairs, (('chosen', 'rejected'),), optional=(
            *_PROMPTS, *_CHATS, 'input', 'system', 'score_chosen',
            'score_rejected')),
    'comparisons': Kind(common_kinds.comparisons, (
        ('history', 'human_ref_A', 'human_ref_B', 'labels'),
        ('output_1', 'output_2', 'label'),
        ('response1', 'response2', 'annotator1'),
        ('response_a', 'response_b', 'preference'),
        ('info', 'summaries', 'choice')), optional=(*_PROMPTS, 'input')),
    'ranked': Kind(common_kinds.ranked, (
        ('prompt', 'answers'), (_PROMPTS, 'completions'),
        ('prompt', 'response', 'helpfulness')),
        optional=common_kinds.ATTRIBUTES),
    'unpaired': Kind(common_kinds.unpaired, (
        ('label', _PROMPTS, ('completion', 'response', 'output')),
        ('label', _CHATS)), optional=('input', 'system'),
        demonstrations=('liked',)),
    'messages': Kind(
        common_kinds.messages, ((_CHATS,),), 'chatml', optional=('system',)),
    'rows': Kind(log_kinds.rows, (('prompt', 'response', 'reward'),),
                 optional=log_kinds.ROW[3:]),
    'stack_exchange': Kind(
        log_kinds.stack_exchange, (('question', 'answers'),),
        'stack_exchange'),
    'reddit': Kind(
        log_kinds.reddit, (('parent_text', 'text', 'score'),), 'reddit_pair'),
    'grounded_dialogue': Kind(log_kinds.grounded_dialogue, (
        ('knowledge', 'history', 'response'), ('utterances',),
        ('evidence', 'history', 'response'), ('dialog',)),
        'grounded_dialogue'),
    'comet': Kind(log_kinds.comet, (
        ('head', 'relation', ('tail', 'tails')),), 'comet'),
    'gsm8k': Kind(
        log_kinds.gsm8k, (('question', ('answer', 'ground_truth')),),
        'stack_exchange'),
    'instructions': Kind(common_kinds.instructions, (
        ('instruction', 'output'), ('instruction', 'instances'),
        ('source', 'target'),
        (_PROMPTS, ('completion', 'response', 'output'))),
        optional=('input', 'system')),
    # Nothing but these: responses under other names are not overlooked.
    'prompts': Kind(
        common_kinds.prompts, ((_PROMPTS,), (_CHATS,)),
        optional=('input', 'system', 'reference', 'id', 'prompt_id', 'split'),
        answers=False),
}


def check_columns(kind: str, columns: Mapping[str, str]):
  """ValueError for a name that no column of a kind has."""
  names = _known(kind)
  foreign = sorted(set(columns).difference(names))
  if foreign:
    raise ValueError(
        f'columns of kind {kind!r} must be of {", ".join(names)}, got '
        f'{", ".join(foreign)}')


def _known(kind: str) -> list[str]:
  """Every column that a kind reads."""
  return [*dict.fromkeys((*(
      name for some in KINDS[kind].columns for column in some
      for name in _names(column)), *KINDS[kind].optional))]


def renamed(entry: Mapping[str, Any], columns: Mapping[str, str]
            ) -> dict[str, Any]:
  """An entry by the names that its kind has for its columns.

  Args:
    entry: as it is in the file.
    columns: the file's name of some of them, by the kind's name.

  Raises:
    BadRowError: it lacks one of them.
  """
  for column in columns.values():
    if column not in entry:
      raise tables.BadRowError(
          f'field {column!r} is missing; there are {", ".join(entry)}')
  theirs = set(columns.values())
  return {name: value for name, value in entry.items()
          if name not in theirs} | {
              name: entry[column] for name, column in columns.items()}


def detect(entry: Mapping[str, Any]) -> str:
  """The kind of an entry, by its columns.

  Raises:
    ValueError: no kind has them, or there is nothing in them; the message has
      the columns and the two nearest kinds.
  """
  present = {name for name, value in entry.items() if value is not None}
  for kind, (_, alternatives, *_) in KINDS.items():
    if any(_lacks(columns, present) == 0 for columns in alternatives):
      if kind == 'prompts' and present - {*_known(kind)}:
        continue
      if kind == 'messages' and common_kinds.asks(entry):
        continue
      if kind == 'hh' and not str(entry['chosen']).startswith('\n\nHuman:'):
        continue
      return kind
  nearest = sorted(
      ((_distance(columns, present), kind, columns)
       for kind, (_, alternatives, *_) in KINDS.items()
       if kind not in ('hh', 'prompts')
       for columns in alternatives), key=lambda item: item[0])
  candidates, names = [], set()
  for _, kind, columns in nearest:
    if kind not in names and len(names) < 2:
      names.add(kind)
      candidates.append(f'{kind} ({", ".join(map(_name, columns))})')
  raise ValueError(
      f'no kind of data has the columns {", ".join(sorted(entry))}; nearest '
      f'are {" and ".join(candidates)}')


def _name(column: str | tuple[str, ...]) -> str:
  return column if isinstance(column, str) else column[0]


def _names(column: str | tuple[str, ...]) -> tuple[str, ...]:
  return (column,) if isinstance(column, str) else column


def _lacks(columns: Iterable, present: set[str]) -> int:
  return sum(not present & {*_names(column)} for column in columns)


def _distance(columns: tuple, present: set[str]) -> float:
  """In [0, 1]: 0 where all columns are there, less where names are alike."""
  def ratio(name, other):
    if name in other.split('_'):  # 'chosen_instruction'
      return .95
    return difflib.SequenceMatcher(None, name, other).ratio()
  alike = lambda column: max(
      (ratio(name, other.lower()) for name in _names(column)
       for other in present), default=0)
  return sum(1 - alike(column) for column in columns) / len(columns)
