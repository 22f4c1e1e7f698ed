"""A corpus of logged responses with their groups and scores, for offline RL.

From a file or directory that `logged` reads, or from a task of `tasks`, which
is written and read in the same way. Prompts are split as those of files are:
all that was logged for a held-out prompt is left out of the log.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import inspect
import pathlib
import tempfile

import numpy as np

from rlhf_jax import errors
from rlhf_jax import types
from rlhf_jax.data import coders
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import formats
from rlhf_jax.data import logged
from rlhf_jax.data import readers
from rlhf_jax.data import reviews
from rlhf_jax.data import task_reviews
from rlhf_jax.data import tasks
from rlhf_jax.data import tokenizer as tokenizer_lib

Log = corpus_lib.Log
FORMATS = tasks.FORMATS | {'hh': 'hh', 'rows': 'alpaca'}  # of each kind

Example = list[logged.Logged]  # what was answered to one prompt, best first


def from_logged(
    *,
    seed: int,
    num_pair_prompts: int,
    num_eval_prompts: int,
    max_prompt_length: int,
    max_response_length: int,
    kind: str | None = None,
    path: str | None = None,
    task: str | None = None,
    num_rows: int | None = None,
    vocab_size: int = 4096,
    tokenizer: str | None = None,
    pad: str | None = None,
    bos: str | None = None,
    eos: str | None = None,
    control: tuple[str, ...] = (),
    format: str | None = None,
    max_bad_rows: int = 0,
    demonstrations: tuple[str, ...] | None = None,
    target: str | None = None,
    max_samples: int = 2,
    **options,
) -> corpus_lib.Corpus:
  """Reads logged responses, or writes some first.

  Args:
    seed: of the split into training and evaluation prompts, and of the texts
      of a task.
    num_pair_prompts: prompts for pairs; training prompts are repeated where
      there are fewer.
    num_eval_prompts: prompts held out from training. A prompt that was
      answered often is held out more often.
    max_prompt_length: tokens, BOS included; longer ones lose their front.
    max_response_length: tokens, EOS included.
    kind: of the file, one of `logged.KINDS`; of a task it is the task's.
    path: file or directory; this or a task.
    task: one of `tasks`.
    num_rows: of a task.
    vocab_size: of the byte-level BPE trained on the texts of a file.
    tokenizer: what to use instead, see `corpus.load_tokenizer`; a task has
      one of whole words.
    pad: its padding token, where it does not say so itself.
    bos: its token for the front of a prompt, likewise.
    eos: its token for the end of a response, likewise.
    control: further control tokens that a format needs.
    format: of the prompts, see `formats`; None: the kind's (`FORMATS`).
    max_bad_rows: bad rows to drop instead of stopping.
    demonstrations: groups whose first row in an example is a demonstration;
      None: the first row of every example is.
    target: score that the gold model learns, where there is no world.
    max_samples: K, the most rows of an example that are kept, best first.
    **options: of `tasks.write` for a task, of `logged.read` for a path.

  Returns:
    A corpus with `log`; its `preferences` are the examples that have a
    'chosen' and a 'rejected' row, `eval_splits` the parts of the data if it
    names several, and `eval_references` the right answers if every held-out
    prompt has one. For task 'reddit' the splits are `reviews.split_of`, and
    with the task's own tokenizer `world` is that of the reviews.

  Raises:
    DataError: a file is missing or malformed, or holds too few prompts.
    ValueError: an argument is out of range or names nothing in the log.
  """
  kind = _kind(kind, path, task)
  read = _read(kind, path, seed, num_rows, max_bad_rows,
               corpus_lib.freeze(options))
  examples = _examples(read, max_samples)
  _check_prompts(examples, path or task, num_eval_prompts)
  _check_names(read.rows, demonstrations, target)
  write = _writer(formats.get(format or FORMATS[kind]))
  training, held_out = (
      [example for _, example in part] for part in corpus_lib.split_by_prompt(
          [(_prompt(example[0]), example) for example in examples], seed,
          num_eval_prompts))
  rows = [row for example in training for row in example]
  coder, world = _tokenizer(
      task, options, map(write, rows), vocab_size, control, tokenizer and dict(
          tokenizer=tokenizer, pad=pad, bos=bos, eos=eos, control=control))

  def encode(rows):
    texts = [write(row) for row in rows]
    return coder.encode_rows(
        [prompt for prompt, _ in texts], [response for _, response in texts],
        max_prompt_length=max_prompt_length,
        max_response_length=max_response_length)

  encoded = encode(rows)
  log = _log(training, encoded, coder.pad_id)
  shown = _places(training, demonstrations)
  if not shown:
    raise errors.DataError(
        f'{path or task}: no training prompt has a demonstration of the groups '
        f'{", ".join(demonstrations)}; give more data')
  single = types.Batch(tokens=encoded.tokens[shown][:, None],
                       mask=encoded.mask[shown][:, None])
  ended = (single.mask & (single.tokens == coder.eos_id)).any(axis=-1)
  # Repeats of a prompt are neighbours, as in `corpus.from_files`.
  asked = np.asarray(_places(training, None))[
      np.sort(np.resize(np.arange(len(training)), num_pair_prompts))]
  best = encode([_demonstration(example, demonstrations) or example[0]
                 for example in held_out])
  answers = tuple(example[0].reference for example in held_out)
  return corpus_lib.Corpus(
      tokenizer=coder,
      demonstrations=single,
      pair_prompts=corpus_lib.Prompts(
          encoded.prompts[asked], encoded.prompt_lengths[asked]),
      eval_prompts=corpus_lib.as_prompts(best),
      eval_demonstrations=corpus_lib.single(best),
      max_response_length=max_response_length,
      preferences=_preferences(log),
      world=world,
      eval_splits=_splits(held_out, task),
      eval_references=answers if all(answers) else None,
      log=log,
      log_target=target,
      summary={
          'examples': len(training),
          'responses': len(rows),
          'demonstrations': len(shown),
          'vocabulary': coder.vocab_size,
          'dropped_rows': len(read.bad) + read.empty + read.skipped,
          'cut_prompts': float(encoded.truncated_prompts / len(rows)),
          'unfinished_demonstrations': float(1 - ended.mean()),
          'unfinished_responses':
              float(encoded.truncated_responses / len(rows)),
      })


def check(config: dict):
  """Raises at once what `from_logged` would raise later.

  Args:
    config: node {name, **kwargs} without its seed, as for `corpus.load`.

  Raises:
    DataError: the file is missing or malformed.
    ConfigError: a tokenizer or a format does not fit.
    ValueError, TypeError: a field is out of range, missing or unknown.
  """
  node, read = _bind(config)
  examples = _examples(read, node['max_samples'])
  _check_prompts(
      examples, node['path'] or node['task'], node['num_eval_prompts'])
  _check_names(read.rows, node['demonstrations'], node['target'])
  kind = _kind(node['kind'], node['path'], node['task'])
  write = _writer(formats.get(node['format'] or FORMATS[kind]))
  texts = [write(row) for row in (read.rows[0], read.rows[-1])]
  coder = coders.named_tokenizer(config)
  if coder is None and node['task'] is not None:
    coder, _ = _tokenizer(node['task'], node['options'], (), 0, (), None)
  coders.check_texts(config, coder, texts)


def training(config: dict, seed: int = 0) -> list[Example]:
  """The examples of training prompts, with the split of a seed.

  Args:
    config: node {name, **kwargs}, as for `check`, which it has passed.
    seed: of the study.
  """
  return _training(corpus_lib.freeze(config), seed)


@functools.lru_cache(maxsize=4)
def _training(config: tuple, seed: int) -> list[Example]:
  node, read = _bind(dict(config), seed)
  examples = _examples(read, node['max_samples'])
  kept, _ = corpus_lib.split_by_prompt(
      [(_prompt(example[0]), example) for example in examples], seed,
      node['num_eval_prompts'])
  return [example for _, example in kept]


def num_preferences(config: dict, seed: int = 0) -> int:
  """Chosen and rejected pairs of training prompts."""
  return sum({'chosen', 'rejected'} <= {row.group for row in example}
             for example in training(config, seed))


def num_scored(config: dict, seed: int = 0) -> int:
  """Responses to training prompts that have the score `target`."""
  return sum(config['target'] in dict(row.scores)
             for example in training(config, seed) for row in example)


def group_names(config: dict, seed: int = 0) -> tuple[str, ...]:
  """The groups of the responses to training prompts."""
  return _groups([row for example in training(config, seed)
                  for row in example])


def _bind(config: dict, seed: int = 0) -> tuple[dict, readers.Read]:
  """The arguments of `from_logged` with its defaults, and what it reads."""
  bound = inspect.signature(from_logged).bind(seed=seed, **{
      k: v for k, v in config.items() if v is not None and k != 'name'})
  bound.apply_defaults()
  node = bound.arguments
  return node, _read(
      _kind(node['kind'], node['path'], node['task']), node['path'], seed,
      node['num_rows'], node['max_bad_rows'],
      corpus_lib.freeze(node['options']))


def _kind(kind: str | None, path: str | None, task: str | None) -> str:
  """The kind of rows; ValueError unless path or task says what to read."""
  if (path is None) == (task is None):
    raise ValueError(f'give either path or task, got {path!r} and {task!r}')
  if task is not None and kind not in (None, task):
    raise ValueError(f'kind must be that of task {task!r}, got {kind!r}')
  found = kind or task
  if found not in FORMATS:
    raise ValueError(f'{"kind" if task is None else "task"} must be one of '
                     f'{", ".join(FORMATS)}, got {found!r}')
  return found


@functools.lru_cache(maxsize=4)
def _read(kind: str, path: str | None, seed: int, num_rows: int | None,
          max_bad_rows: int, options: tuple) -> readers.Read:
  """The rows of a file, or of a task that is written for it."""
  if path is not None:
    if num_rows is not None:
      raise ValueError(f'num_rows is of a task, got {num_rows} and a path')
    named = {k: dict(v) if k == 'columns' else v for k, v in options}
    return logged.read(path, kind, max_bad_rows=max_bad_rows, **named)
  if num_rows is None:
    raise ValueError(f'num_rows must be given for task {kind!r}, got None')
  with tempfile.TemporaryDirectory() as directory:
    file = pathlib.Path(directory) / f'{kind}{tasks.SUFFIXES[kind]}'
    tasks.write(kind, file, num_rows=num_rows, seed=seed, **dict(options))
    return logged.read(file, kind)


def _examples(read: readers.Read, max_samples: int) -> list[Example]:
  """Rows that answer one prompt together, in the order of the file."""
  if max_samples < 1:
    raise ValueError(f'max_samples must be >= 1, got {max_samples}')
  found = {}
  for row in read.rows:
    found.setdefault(row.example, []).append(row)
  return [rows[:max_samples] for rows in found.values()]


def _prompt(row: logged.Logged) -> tuple:
  return row.prompt, row.input, row.history


def _check_prompts(examples: Sequence[Example], source: str,
                   num_eval_prompts: int):
  prompts = {_prompt(example[0]) for example in examples}
  if len(prompts) < num_eval_prompts + 1:
    raise errors.DataError(
        f'{source}: {len(prompts)} usable prompts, but {num_eval_prompts} '
        'are to be held out for evaluation; lower config.data.'
        'num_eval_prompts or give more data')


def _check_names(rows: Sequence[logged.Logged],
                 demonstrations: Sequence[str] | None, target: str | None):
  groups, scores = _groups(rows), _scores(rows)
  if demonstrations is not None and not {*demonstrations} & {*groups}:
    raise ValueError('demonstrations must name groups of the log '
                     f'({", ".join(groups)}), got {demonstrations!r}')
  if target is not None and target not in scores:
    raise ValueError(f'target must be a score of the log '
                     f'({", ".join(scores) or "it has none"}), got {target!r}')


def _groups(rows: Sequence[logged.Logged]) -> tuple[str, ...]:
  return tuple(sorted({row.group for row in rows}))


def _scores(rows: Sequence[logged.Logged]) -> list[str]:
  return sorted({name for row in rows for name, _ in row.scores})


def _writer(write: formats.Format) -> Callable[
    [logged.Logged], tuple[formats.Text, formats.Text]]:
  """A function that gives a row its format.

  It raises ValueError if the format has no place for what a row has.
  """
  takes_history = 'history' in inspect.signature(write).parameters

  def apply(row):
    if takes_history:
      return write(row.prompt, row.response, row.input, history=row.history)
    if row.history:
      raise ValueError(f'format {write.__name__!r} has no place for the '
                       f'history of {row.prompt[:80]!r}')
    return write(row.prompt, row.response, row.input)

  return apply


def _tokenizer(
    task: str | None, options: dict, texts: Iterable[tuple], vocab_size: int,
    control: Sequence[str], named: dict | None,
) -> tuple[tokenizer_lib.Tokenizer, reviews.Reviews | None]:
  """The tokenizer that is named, a task's, or one trained on the texts."""
  if named:
    return coders.named_tokenizer(named), None
  if task is None:
    return coders.train_tokenizer(texts, vocab_size, control), None
  if task == 'reddit':  # its prompts are those of the world, word for word
    world = reviews.Reviews(**{k: v for k, v in options.items()
                               if k not in task_reviews.OPTIONS})
    return world.tokenizer, world
  words = tasks.vocabulary(task, **options)
  return tokenizer_lib.Tokenizer.word_level(words), None


def _log(examples: Sequence[Example], encoded: tokenizer_lib.EncodedRows,
         pad_id: int) -> Log:
  """The log of examples, from all their rows."""
  rows = [row for example in examples for row in example]
  at = (np.repeat(np.arange(len(examples)), [len(x) for x in examples]),
        np.concatenate([np.arange(len(x)) for x in examples]))
  shape = len(examples), at[1].max() + 1

  def place(values, empty, dtype):
    values = np.asarray(values, dtype)
    out = np.full((*shape, *values.shape[1:]), empty, dtype)
    out[at] = values
    return out

  groups = _groups(rows)
  scores = {name: place([dict(row.scores).get(name, np.nan) for row in rows],
                        np.nan, np.float32) for name in _scores(rows)}
  references = tuple(example[0].reference for example in examples)
  tokens = place(encoded.tokens, pad_id, np.int32)
  mask = place(encoded.mask, False, bool)
  group = place([groups.index(row.group) for row in rows], -1, np.int32)
  # A missing response has its prompt all the same: no row is empty.
  alone = np.where(mask[:, :1], pad_id, tokens[:, :1])
  tokens = np.where((group < 0)[..., None], alone, tokens)
  return Log(
      tokens=tokens, mask=mask, group=group, groups=groups, scores=scores,
      references=references if any(references) else None)


def _demonstration(example: Example, groups: Sequence[str] | None
                   ) -> logged.Logged | None:
  """The first row of the groups, if there is one."""
  return next((row for row in example
               if groups is None or row.group in groups), None)


def _places(examples: Sequence[Example], groups: Sequence[str] | None
            ) -> list[int]:
  """Where in all rows the demonstration of each example is that has one."""
  found, start = [], 0
  for example in examples:
    row = _demonstration(example, groups)
    if row is not None:
      found.append(start + example.index(row))
    start += len(example)
  return found


def _preferences(log: Log) -> types.Batch | None:
  """Pairs [N, 2, T], chosen first, of the examples that have both."""
  if not {'chosen', 'rejected'} <= {*log.groups}:
    return None
  is_side = [log.group == log.groups.index(name)
             for name in ('chosen', 'rejected')]
  rows = np.flatnonzero(np.all([side.any(axis=1) for side in is_side], axis=0))
  at = np.stack([side.argmax(axis=1) for side in is_side], axis=1)[rows]
  return types.Batch(tokens=log.tokens[rows[:, None], at],
                     mask=log.mask[rows[:, None], at])


def _splits(held_out: Sequence[Example], task: str | None
            ) -> tuple[str, ...] | None:
  """The part of the data of each held-out prompt, if there are several."""
  if task == 'reddit':
    return tuple(reviews.split_of([example[0].prompt for example in held_out]))
  splits = tuple(example[0].split for example in held_out)
  return splits if len({*splits}) > 1 else None
