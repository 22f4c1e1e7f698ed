"""Logged responses by the prompt that they answer: read, checked, written.

Whatever can be said of a log before its texts become tokens.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import inspect
import pathlib
import tempfile
from typing import Any

from rlhf_jax import streams
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import formats
from rlhf_jax.data import kinds
from rlhf_jax.data import logged
from rlhf_jax.data import options as options_lib
from rlhf_jax.data import readers
from rlhf_jax.data import tasks

Example = list[logged.Logged]  # what was answered to one prompt, best first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(options_lib.Texts):
  """Which log, and what of it, beside what `options.Texts` has.

  Attributes:
    kind: of the file, one of `kinds.KINDS`; None: a task's, or that which the
      columns of the file are of.
    path: file or directory; this or a task, which is written first.
    task: one of `tasks`; its tokenizer, unless one is named, has whole words.
    num_rows: of a task.
    format: of the prompts, see `formats`; None: the kind's.
    demonstrations: groups whose first row in an example is a demonstration;
      None: the kind's, of most any.
    target: score that the gold model learns, where there is no world.
    max_samples: K, the most rows of an example that are kept, best first.
    others: arguments of `tasks.write` for a task, of `logged.read` for a
      path, as pairs.
  """

  kind: str | None = None
  path: str | None = None
  task: str | None = None
  num_rows: int | None = None
  format: str | None = None
  demonstrations: tuple[str, ...] | None = None
  target: str | None = None
  max_samples: int = 2
  others: tuple[tuple[str, Any], ...] = ()

  def __post_init__(self):
    super().__post_init__()
    if (self.path is None) == (self.task is None):
      raise ValueError(
          f'give either path or task, got {self.path!r} and {self.task!r}')
    if self.task is not None and self.kind not in (None, self.task):
      raise ValueError(
          f'kind must be that of task {self.task!r}, got {self.kind!r}')
    named = self.kind or self.task
    if named not in (None, *kinds.KINDS):
      raise ValueError(
          f'{"kind" if self.task is None else "task"} must be one of '
          f'{", ".join(kinds.KINDS)}, got {named!r}')
    if self.task is None and self.num_rows is not None:
      raise ValueError(f'num_rows is of a task, got {self.num_rows} and a path')
    if self.task is not None and self.num_rows is None:
      raise ValueError(
          f'num_rows must be given for task {self.task!r}, got None')
    if self.max_samples < 1:
      raise ValueError(f'max_samples must be >= 1, got {self.max_samples}')

  @property
  def row_kind(self) -> str:
    """The kind of the rows; DataError where a file's cannot be told."""
    return self.kind or self.task or _kind_of(self.path, self.others)

  @property
  def source(self) -> str:
    """What a message calls the log."""
    return self.path or self.task

  @property
  def prompt_format(self) -> str:
    """The name of the format that prompts are written in."""
    return self.format or kinds.KINDS[self.row_kind].format

  @property
  def shown_groups(self) -> tuple[str, ...] | None:
    """The groups of demonstrations; None: any."""
    return self.demonstrations or kinds.KINDS[self.row_kind].demonstrations


def read(options: Options, seed: int) -> readers.Read:
  """The rows of a file, or of a task that is written for it.

  Args:
    options: of the log.
    seed: of the study, whose stream 'task' writes the texts of a task.

  Raises:
    DataError: the file is missing or malformed.
    ValueError: one of `options.others` is unknown or out of range.
  """
  if options.task is None:
    return logged.read_once(options.path, options.row_kind,
                            options.max_bad_rows, options.others)
  return _read_task(options.task, options.num_rows,
                    streams.number(seed, 'task'), options.others)


@functools.lru_cache(maxsize=4)
def _kind_of(path: str, others: tuple) -> str:
  others = dict(others)
  return logged.kind_of(path, split=others.get('split'),
                        columns=dict(others.get('columns', ())))


@functools.lru_cache(maxsize=4)
def _read_task(task: str, num_rows: int, seed: int, others: tuple
               ) -> readers.Read:
  with tempfile.TemporaryDirectory() as directory:
    file = pathlib.Path(directory) / f'{task}{tasks.SUFFIXES[task]}'
    tasks.write(task, file, num_rows=num_rows, seed=seed, **dict(others))
    return logged.read(file, task)


def split(options: Options, seed: int) -> tuple[list[Example], list[Example]]:
  """Examples of training prompts, and one of each held-out prompt.

  Args:
    options: of the log.
    seed: of the study, see `corpus.split_by_prompt`. A prompt that was
      answered often is held out more often.

  Raises:
    DataError: as `read`, or there are too few prompts.
    ValueError: as `read`.
  """
  by_number = {}
  for row in read(options, seed).rows:
    by_number.setdefault(row.example, []).append(row)
  examples = [rows[:options.max_samples] for rows in by_number.values()]
  keyed = [(prompt_of(example[0]), example) for example in examples]
  corpus_lib.check_prompts(len({prompt for prompt, _ in keyed}),
                           options.num_eval_prompts, options.source)
  training, held_out = corpus_lib.split_by_prompt(
      keyed, seed, options.num_eval_prompts)
  return ([example for _, example in training],
          [example for _, example in held_out])


def prompt_of(row: logged.Logged) -> tuple:
  """All that a row answers; rows that agree in it answer one prompt."""
  return row.prompt, row.input, row.history, row.turns


def check_names(options: Options, rows: Sequence[logged.Logged]):
  """Raises ValueError if a group or the target is not in the log."""
  in_log, scores = groups(rows), score_names(rows)
  if options.demonstrations is not None and not (
      {*options.demonstrations} & {*in_log}):
    raise ValueError(f'demonstrations must name groups of the log '
                     f'({", ".join(in_log)}), got {options.demonstrations!r}')
  if options.target is not None and options.target not in scores:
    raise ValueError(
        f'target must be a score of the log '
        f'({", ".join(scores) or "it has none"}), got {options.target!r}')


def groups(rows: Iterable[logged.Logged]) -> tuple[str, ...]:
  """The groups of rows, in the order of `corpus.Log.groups`."""
  return tuple(sorted({row.group for row in rows}))


def score_names(rows: Iterable[logged.Logged]) -> list[str]:
  """The scores that some of the rows have."""
  return sorted({name for row in rows for name, _ in row.scores})


def writer(options: Options) -> Callable[[logged.Logged], coders.Texts]:
  """A function that gives a row its format.

  It raises ValueError if the format has no place for what a row has.
  """
  return write_in(options.prompt_format)


def write_in(name: str) -> Callable[[logged.Logged], coders.Texts]:
  """A function that gives a row the format of a name, see `writer`."""
  write = formats.get(name)
  takes = inspect.signature(write).parameters

  def apply(row):
    if row.turns:
      if 'messages' not in takes:
        chats = ', '.join(sorted(set(formats.DIALOGUES) - {'hh'}))
        raise ValueError(
            f'format {name!r} has no place for the turns before '
            f'{row.prompt[:80]!r}; give a format of conversations: {chats}')
      turns = (*row.turns, ('user', row.prompt))
      return write(response=row.response, messages=[
          {'role': role, 'content': content} for role, content in turns])
    if 'history' in takes:
      return write(row.prompt, row.response, row.input, history=row.history)
    if row.history:
      raise ValueError(f'format {name!r} has no place for the history of '
                       f'{row.prompt[:80]!r}')
    return write(row.prompt, row.response, row.input)

  return apply
