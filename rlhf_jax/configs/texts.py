"""What a file of texts holds, as far as a config depends on it."""

import collections
from collections.abc import Mapping
import functools
from typing import Any, NamedTuple

from rlhf_jax import errors
from rlhf_jax.configs import reading
from rlhf_jax.configs import tasks
from rlhf_jax.data import coders
from rlhf_jax.data import examples
from rlhf_jax.data import formats
from rlhf_jax.data import kinds
from rlhf_jax.data import tokenizer as tokenizer_lib
from rlhf_jax.models import pretrained

MOST_ANSWERS = 16  # to one prompt, that a log keeps unless told otherwise
# The format of a model is known by a control token of its tokenizer.
_FORMATS = {'<|im_start|>': 'chatml', '<|start_header_id|>': 'llama3',
            '<|prompter|>': 'open_assistant'}
# Formats that stand for none in particular, and give way to a model's.
_PLAIN = ('alpaca', 'chatml', 'hh')
# What the rows of an algorithm are made of, in words.
_NEEDS = {'preferences': 'pairs of a chosen and a rejected response',
          'rankings': 'two or more responses to a prompt, best first',
          'logged': 'responses with a reward',
          'unpaired': 'responses that are liked or disliked'}


class Survey(NamedTuple):
  """What was counted in a file."""

  kind: str
  format: str
  rows: int  # responses, or prompts alone
  prompts: int  # that differ
  pairs: int
  most_answers: int  # to one prompt, `MOST_ANSWERS` at most
  scores: tuple[str, ...]  # that every response has
  limits: Mapping[str, tuple[float, float]]  # least and largest of each
  groups: tuple[str, ...]
  has_answers: bool


def survey(task: Any, *, prompts: bool) -> Survey:
  """Reads the data of a task.

  Args:
    task: of `configs.training`.
    prompts: whether prompts are what is wanted of it, answered or not.

  Raises:
    DataError: it is missing or malformed, or has no responses where they are
      wanted.
    ConfigError: a column is none of the kind.
  """
  texts = _survey(task)
  if not texts.has_answers and not prompts:
    raise errors.DataError(
        f'{task.data} has prompts alone, and --algorithm={task.algorithm} '
        'learns from responses; give data with responses, or an algorithm '
        'that samples, such as rloo')
  return texts


@functools.lru_cache(maxsize=4)
def _survey(task) -> Survey:
  kind, rows = reading.read(task)
  answers = collections.Counter(row.example for row in rows)
  groups = collections.defaultdict(set)
  for row in rows:
    groups[row.example].add(row.group)
  named = [dict(row.scores) for row in rows]
  scores = [score for score in named[0]
            if all(score in one for one in named)]
  limits = {score: (min(one[score] for one in named),
                    max(one[score] for one in named)) for score in scores}
  return Survey(
      kind, task.format or _format(kind, rows, task), len(rows),
      len({examples.prompt_of(row) for row in rows}),
      sum({'chosen', 'rejected'} <= names for names in groups.values()),
      min(max(answers.values()), MOST_ANSWERS), tuple(scores), limits,
      tuple(sorted({row.group for row in rows})), kinds.KINDS[kind].answers)


def _format(kind: str, rows: list, task: Any) -> str:
  """The model's own format, where it is known by its control tokens."""
  usual = kinds.KINDS[kind].format
  own = None
  if not task.is_fresh and usual in _PLAIN:
    source = pretrained.source(
        {'name' if task.model == 'smollm2' else 'path': task.model})
    if source.suffix != '.bin':
      own = own_format(coders.load_tokenizer(str(source)))
  if own is not None:
    return own
  if any(row.turns for row in rows) and usual not in formats.DIALOGUES:
    return 'chatml'
  return usual


def own_format(coder: tokenizer_lib.Tokenizer) -> str | None:
  """The format whose control tokens a tokenizer has, if there is one."""
  return next((name for token, name in _FORMATS.items()
               if token in coder.control), None)


def count_pairs(path: str) -> int:
  """Pairs of a file of preferences."""
  return _survey(tasks.Task(algorithm=tasks.REWARD, data=path)).pairs


def check(task: Any, texts: Survey, source: str):
  """DataError unless a file has what an algorithm is made of.

  Args:
    task: of `configs.training`.
    texts: of its data.
    source: of the algorithm's row.
  """
  there = {'preferences': texts.pairs, 'rankings': texts.most_answers > 1,
           'unpaired': {'liked', 'disliked'} <= {*texts.groups} or texts.pairs}
  if not there.get(source, True):
    raise errors.DataError(
        f'{task.data}: rows of kind {texts.kind!r} are not '
        f'{_NEEDS[source]}, which --algorithm={task.algorithm} learns from')
  if source == 'logged' and not texts.scores and task.reward is None:
    raise errors.DataError(
        f'{task.data}: no score is said of every response, and '
        f'--algorithm={task.algorithm} learns from a reward; give '
        '--reward=module:function or a column of rewards')


def own_score(task: Any, scores: tuple[str, ...]) -> str | None:
  """The score that a log is measured by, where no other reward is named.

  Raises:
    ConfigError: there are several.
  """
  if len(scores) > 1:
    preferred = [name for name in ('reward', 'score') if name in scores]
    if preferred:
      return preferred[0]
    raise errors.ConfigError(
        f'{task.data} has the scores {", ".join(scores)}; name one by --reward')
  return scores[0] if scores else None


def bound(components: Mapping[str, Any], texts: Survey):
  """Gives logged scores a range, which values of prompts need.

  That of the file, where nothing is below 0; else a sigmoid, as Baheti et al.
  2024 have it.
  """
  for node in components.values():
    if node['kind'] != 'file':
      continue
    low, high = texts.limits[node['column']]
    if low >= 0 and high > 0:
      node.update(squash='clip', range=(0.0, high))
    else:
      node.update(squash='sigmoid')
