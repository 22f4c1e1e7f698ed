"""Responses of policies, compared by a judge whose answers are kept on disk.

Coste et al. 2024, Appendix F.9, compare gold scores of two policies prompt by
prompt (objectives.md 11.6); Ahmadian et al. 2024 and Baheti et al. 2024 ask a
language model to compare responses, mostly with those of people (11.7).
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import time
from typing import Any

from rlhf_jax import errors
from rlhf_jax.evaluation import http_judge
from rlhf_jax.evaluation import judging
from rlhf_jax.reports import results
from rlhf_jax.storage import files

REFERENCE = 'reference'  # what a person has answered


def check(policies: Sequence[Mapping[str, Any]], against: str,
          judge: Mapping[str, Any]):
  """Refuses comparisons that cannot be made; asks and reads nothing.

  Args:
    policies: {'run', 'seed'} of each.
    against: `REFERENCE`, or the name of a run.
    judge: config node, see `stages.win_rates.run`.

  Raises:
    ConfigError: there is nothing to compare, or the judge cannot be made.
  """
  make_judge(judge, {}, time.sleep)
  runs = {(policy['run'], policy['seed']) for policy in policies}
  if not any(run != against for run, _ in runs):
    raise errors.ConfigError('the win rates compare no run with another')
  for seed in sorted({seed for _, seed in runs}):
    if against != REFERENCE and (against, seed) not in runs:
      raise errors.ConfigError(
          f'the win rates are against {against!r}, which is no run of seed '
          f'{seed}; there are {REFERENCE}, '
          f'{", ".join(sorted(run for run, of in runs if of == seed))}')


def make_judge(node: Mapping[str, Any], gold: Mapping[tuple[str, str], float],
               sleep: Callable[[float], None]) -> judging.Judge:
  """The judge of a config node.

  Args:
    node: 'kind', and its arguments.
    gold: score of each (prompt, response), read when 'gold' is asked.
    sleep: waits for seconds, between the requests of 'http'.

  Raises:
    ConfigError: there is no such kind, or it has not these arguments.
  """
  makers = {
      'gold': functools.partial(
          judging.score_judge, lambda prompt, text: gold[prompt, text]),
      'http': functools.partial(http_judge.http_judge, sleep=sleep),
      'function': judging.function_judge}
  arguments = dict(node)
  kind = arguments.pop('kind', None)
  if kind not in makers:
    raise errors.ConfigError(
        f'the judge has kind {kind!r}; there are {", ".join(makers)}')
  try:
    return makers[kind](**arguments)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'the judge: {error}') from None


class Answers:
  """A judge's answers, each on its way to the disk before the next is asked.

  Args:
    path: of the file, JSON lines, each with its SHA-256; an answer that it
      holds is not asked again.
    judge: config node; another node's answers do not count.

  Raises:
    CheckpointError: a line is damaged, or the file cannot be written.
  """

  def __init__(self, path: pathlib.Path, judge: Mapping[str, Any]):
    self._path, self._judge, self._choices = path, dict(judge), {}
    with self._open() as stream:
      stream.seek(0)
      lines, end = stream.readlines(), 0
      for number, line in enumerate(lines, 1):
        if not line.endswith(b'\n'):  # cut short by a crash
          break
        self._learn(number, line)
        end += len(line)
      stream.truncate(end)

  def _open(self):
    try:
      # Unbuffered: a line is one system call.
      return files.open_appending(self._path)
    except OSError as error:
      raise errors.CheckpointError(
          f'cannot write {self._path}: {error.strerror}') from error

  def _learn(self, number: int, line: bytes):
    try:
      row = json.loads(line)
      if row.pop('sha256') != files.digest(row):
        raise ValueError(row)
      self._choices[row['question']] = row['answer']
    except (AttributeError, ValueError, LookupError, TypeError) as error:
      raise errors.CheckpointError(
          f'{self._path}:{number} is damaged, or of a version without SHA-256; '
          'delete such lines to ask again') from error

  def ask(self, judge: judging.Judge, query: Sequence[str | None],
          **labels) -> str:
    """The answer to (prompt, a, b, reference), which is asked only once."""
    question = files.digest([self._judge, *query])
    if question not in self._choices:
      answer = judge(*query)
      row = {**labels, 'answer': answer, 'question': question}
      row['sha256'] = files.digest(row)
      self._append(json.dumps(row).encode() + b'\n')
      self._choices[question] = answer
    return self._choices[question]

  def _append(self, line: bytes):
    with self._open() as stream:
      size = os.fstat(stream.fileno()).st_size
      try:
        if stream.write(line) != len(line):
          raise OSError(None, 'disk full')
      except OSError as error:
        stream.truncate(size)
        raise errors.CheckpointError(
            f'cannot write {self._path}: {error.strerror}; free space and '
            'run the same command again') from error


@dataclasses.dataclass(frozen=True)
class Pairs:
  """The responses of a policy and what each is compared with, to N prompts."""

  policy: Mapping[str, Any]  # 'stage', 'run' and 'seed'
  prompts: list[str]
  responses: list[str]
  others: list[str]
  references: list[str] | None  # what the judge sees beside the two
  gold: dict[tuple[str, str], float]  # by prompt and response, if asked for


def read(context, policy: Mapping[str, Any], num_prompts: int) -> list[dict]:
  """The first rows of what a policy has answered after its training.

  Raises:
    ConfigError: there are fewer.
    CheckpointError: its stage is not complete, or the file is damaged.
  """
  path = context.directory_of(policy['stage']) / 'final.jsonl'
  rows = results.read_rows(path)[:num_prompts]
  if len(rows) < num_prompts:
    raise errors.ConfigError(
        f'the win rates need {num_prompts} prompts, but {path} has '
        f'{len(rows)}; lower num_prompts')
  return rows


def pair(policy: Mapping[str, Any], rows: Sequence[Mapping],
         against: Sequence[Mapping] | None, *, gold: bool,
         show_reference: bool) -> Pairs:
  """Puts each response of a policy beside another one to its prompt.

  Args:
    policy: 'stage', 'run' and 'seed'.
    rows: of its final.jsonl.
    against: those of the other policy; None: each prompt's reference.
    gold: whether the judge reads scores.
    show_reference: whether it reads references, where two policies are
      compared.

  Raises:
    ConfigError: a response or a score is not there.
    CheckpointError: the two have answered different prompts.
  """
  def column(name, rows, what=''):
    values = [row.get(name) for row in rows]
    if what:
      _require(policy['stage'], what, values)
    return values
  prompts, responses = column('prompt', rows), column('response', rows)
  other, scores = 'response to compare with', {}
  if against is None:
    others = column(REFERENCE, rows, other)
  elif prompts == column('prompt', against):
    others = column('response', against, other)
  else:
    raise errors.CheckpointError(
        'two runs of a seed were evaluated on different prompts; delete '
        'their result.json to make them again')
  references = (column(REFERENCE, rows, REFERENCE)
                if show_reference and against is not None else None)
  if gold:
    mine = column('gold', rows, 'gold score')
    theirs = (column('reference_gold', rows, f'gold score of the {other}')
              if against is None
              else column('gold', against, f'gold score of the {other}'))
    # Equal texts tie: of two scores that were stored for them, one counts.
    scores = dict(zip(zip(prompts, responses), mine)) | dict(
        zip(zip(prompts, others), theirs))
  return Pairs(policy, prompts, responses, others, references, scores)


def _require(stage: str, name: str, values: Sequence[Any]):
  """ConfigError if one of the values is None or NaN."""
  for i, value in enumerate(values):
    if value is None or value != value:
      raise errors.ConfigError(
          f'prompt {i} of {stage} has no {name}; its win rate needs one: '
          'compare with a run, or use data and a judge that have it')


def _sleep(context, seconds: float):
  """Waits, but not once the study has been asked to stop."""
  end = time.monotonic() + seconds
  while (left := end - time.monotonic()) > 0:
    context.stop.check(f'the last answer of {context.directory.name}')
    time.sleep(min(left, .2))


def _ask_twice(context, pairs: Pairs, ask: Callable[..., str]
               ) -> tuple[list[str], list[str]]:
  """`judging.ask_twice`, which may be stopped, with the place of an error.

  Args:
    context: of the stage.
    pairs: what is compared.
    ask: (query, **labels) -> answer.
  """
  policy, calls = pairs.policy, itertools.count()

  def judge(*query):
    context.stop.check(f'the last answer of {context.directory.name}')
    swapped, i = divmod(next(calls), len(pairs.prompts))
    try:
      return ask(query, run=policy['run'], seed=policy['seed'], prompt=i,
                 swapped=swapped)
    except (errors.ConfigError, errors.RewardError) as error:
      raise type(error)(f'{policy["stage"]}, prompt {i}: {error}') from error

  return judging.ask_twice(judge, pairs.prompts, pairs.responses, pairs.others,
                           pairs.references)


def choices(context, pairs: Pairs, node: Mapping[str, Any],
            answers: Answers | None) -> tuple[list[str], list[str]]:
  """What a judge says of pairs, in both orders; see `judging.ask_twice`.

  Args:
    context: of the stage, which may be asked to stop.
    pairs: what is compared.
    node: of the judge.
    answers: where they are kept; None: nowhere.

  Raises:
    ConfigError: the endpoint refuses.
    RewardError: it does not answer.
    CheckpointError: an answer cannot be written.
  """
  judge = make_judge(node, pairs.gold, functools.partial(_sleep, context))
  if answers is None:
    ask = lambda query, **unused_labels: judge(*query)
  else:
    ask = functools.partial(answers.ask, judge)
  return _ask_twice(context, pairs, ask)


def win_rates(context, pairs: Pairs, node: Mapping[str, Any],
              answers: Answers | None) -> dict[str, Any]:
  """A row of win_rates.csv, see `stages.win_rates.run`.

  Arguments and errors are those of `choices`.
  """
  decisions = choices(context, pairs, node, answers)
  rates, count = judging.judge_win_rate(*decisions), len(pairs.prompts)
  return {'run': pairs.policy['run'], 'seed': pairs.policy['seed'],
          'prompts': count, **rates, 'agreement': rates['kept'] / count,
          'win_rate': judging.judge_average(*decisions)}
