"""Win rates of trained policies, by gold scores or by a judge over HTTP.

Coste et al. 2024, Appendix F.9, compare gold scores of two policies prompt by
prompt (objectives.md 11.6); Ahmadian et al. 2024 and Baheti et al. 2024 ask a
language model to compare responses, mostly with those of people (11.7).
"""

from collections.abc import Callable, Mapping, Sequence
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
from rlhf_jax.storage import files

REFERENCE = 'reference'


def check(policies: Sequence[Mapping[str, Any]], against: str,
          judge: Mapping[str, Any]):
  """Raises ConfigError for what `run` would refuse; asks and reads nothing."""
  _make_judge(judge, {}, time.sleep)
  runs = {(policy['run'], policy['seed']) for policy in policies}
  if not any(run != against for run, _ in runs):
    raise errors.ConfigError('the win rates compare no run with another')
  for seed in sorted({seed for _, seed in runs}):
    if against != REFERENCE and (against, seed) not in runs:
      raise errors.ConfigError(
          f'the win rates are against {against!r}, which is no run of seed '
          f'{seed}; there are {REFERENCE}, '
          f'{", ".join(sorted(run for run, of in runs if of == seed))}')


def _make_judge(node: Mapping[str, Any], gold: dict[tuple[str, str], float],
                sleep: Callable[[float], None]) -> judging.Judge:
  """The judge of a config node; `gold` is by prompt and response."""
  makers = {
      'gold': functools.partial(
          judging.score_judge, lambda prompt, text: gold[prompt, text]),
      'http': functools.partial(http_judge.http_judge, sleep=sleep)}
  arguments = dict(node)
  kind = arguments.pop('kind', None)
  if kind not in makers:
    raise errors.ConfigError(
        f'the judge of the win rates has kind {kind!r}; there are '
        f'{", ".join(makers)}')
  try:
    return makers[kind](**arguments)
  except (TypeError, ValueError) as error:
    raise errors.ConfigError(f'the judge of the win rates: {error}') from None


class _Answers:
  """A judge's answers, each on its way to the disk before the next is asked."""

  def __init__(self, path: pathlib.Path, judge: Mapping[str, Any]):
    self._path, self._judge, self._known = path, dict(judge), {}
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
      return open(self._path, 'a+b', buffering=0)
    except OSError as error:
      raise errors.CheckpointError(
          f'cannot write {self._path}: {error.strerror}') from error

  def _learn(self, number: int, line: bytes):
    try:
      row = json.loads(line)
      if row['answer'] not in judging.CHOICES:
        raise ValueError(row['answer'])
      self._known[row['question']] = row['answer']
    except (ValueError, LookupError, TypeError) as error:
      raise errors.CheckpointError(
          f'{self._path}:{number} is damaged; delete the line to ask '
          'again') from error

  def ask(self, judge: judging.Judge, query: Sequence[str | None],
          **labels) -> str:
    """The answer to (prompt, a, b, reference), which is asked only once."""
    question = files.digest([self._judge, *query])
    if question not in self._known:
      answer = judge(*query)
      row = {**labels, 'answer': answer, 'question': question}
      self._append(json.dumps(row).encode() + b'\n')
      self._known[question] = answer
    return self._known[question]

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


def _final_rows(context, stage: str, num_prompts: int) -> list[dict]:
  """The first rows of what a policy answered after its training."""
  path = context.directory_of(stage) / 'final.jsonl'
  try:
    with open(path, 'rb') as stream:
      rows = [json.loads(line)
              for line in itertools.islice(stream, num_prompts)]
  except (OSError, ValueError) as error:
    raise errors.CheckpointError(
        f'cannot read {path}: {errors.first_line(error)}; delete the '
        'result.json beside it to make it again') from error
  if len(rows) < num_prompts:
    raise errors.ConfigError(
        f'the win rates need {num_prompts} prompts, but {path} has '
        f'{len(rows)}; lower num_prompts')
  return rows


def _others(rows: Sequence[dict], compared: Sequence[dict] | None
            ) -> list[dict]:
  """The other response to each prompt, as rows of 'response' and 'gold'."""
  if compared is None:
    return [{'response': row.get(REFERENCE),
             'gold': row.get('reference_gold')} for row in rows]
  if [row['prompt'] for row in rows] != [row['prompt'] for row in compared]:
    raise errors.CheckpointError(
        'two runs of a seed were evaluated on different prompts; delete '
        'their result.json to make them again')
  return list(compared)


def _need(stage: str, name: str, values: Sequence[Any]):
  for i, value in enumerate(values):
    if value is None or value != value:  # NaN
      raise errors.ConfigError(
          f'prompt {i} of {stage} has no {name}; its win rate needs one: '
          'compare with a run, or use data and a judge that have it')


def _sleep(context, seconds: float):
  """Waits, but not once the study has been asked to stop."""
  end = time.monotonic() + seconds
  while (left := end - time.monotonic()) > 0:
    context.stop.check(f'the last answer of {context.directory.name}')
    time.sleep(min(left, .2))


def _ask_twice(context, policy, judge, rows, others, references):
  """`judging.ask_twice`, which may be stopped, with the place of an error.

  The judge is (query, **labels) -> answer.
  """
  label = {'run': policy['run'], 'seed': policy['seed']}
  calls = itertools.count()

  def ask(*query):
    context.stop.check(f'the last answer of {context.directory.name}')
    swapped, i = divmod(next(calls), len(rows))
    try:
      return judge(query, **label, prompt=i, swapped=swapped)
    except (errors.ConfigError, errors.RewardError) as error:
      raise type(error)(f'{policy["stage"]}, prompt {i}: {error}') from error

  return judging.ask_twice(
      ask, [row['prompt'] for row in rows], [row['response'] for row in rows],
      [row['response'] for row in others], references)


def run(context, *, policies: Sequence[dict], against: str, judge: dict,
        num_prompts: int, show_reference: bool = False) -> dict:
  """Writes win_rates.csv, a row for each policy.

  Its columns: run, seed; prompts; kept, the prompts on which both orders
  agree, and agreement, their share; win, tie, lose and neither, shares of the
  kept (`judging.judge_win_rate`); win_rate over all answers, in which no
  preference is half a win (`judging.judge_average`). A judge's answers over
  HTTP are kept in answers.jsonl, and an interrupted stage goes on with them.

  Args:
    context: of the stage.
    policies: {'stage', 'run', 'seed'} of stages with a final.jsonl.
    against: 'reference' (each prompt's own, by a person) or the name of a
      run, which is compared with the others of its seed.
    judge: {'kind': 'gold', 'margin': score units} or {'kind': 'http',
      **arguments of `http_judge.http_judge`}.
    num_prompts: of each policy, the first.
    show_reference: whether the judge sees the reference beside the two
      responses (Zhu et al. 2023), when they are of two runs.

  Raises:
    ConfigError: a run, a reference or a score is not there, or the endpoint
      refuses.
    RewardError: the endpoint does not answer.
    CheckpointError: a file is damaged or cannot be written.
  """
  check(policies, against, judge)
  gold, table = {}, []
  made = _make_judge(judge, gold, functools.partial(_sleep, context))
  # Gold scores are cheap to compare, and of another model for each seed.
  asked = lambda query, **unused_labels: made(*query)
  if judge['kind'] == 'http':
    asked = functools.partial(
        _Answers(context.directory / 'answers.jsonl', judge).ask, made)
  found = {(p['run'], p['seed']): _final_rows(context, p['stage'], num_prompts)
           for p in policies}
  for policy in policies:
    if policy['run'] == against:
      continue
    rows = found[policy['run'], policy['seed']]
    others = _others(rows, None if against == REFERENCE else
                     found[against, policy['seed']])
    values = lambda name, rows: [row.get(name) for row in rows]
    _need(policy['stage'], 'response to compare with',
          values('response', others))
    references = None
    if show_reference and against != REFERENCE:
      references = values(REFERENCE, rows)
      _need(policy['stage'], REFERENCE, references)
    if judge['kind'] == 'gold':
      _need(policy['stage'], 'gold score', values('gold', rows))
      _need(policy['stage'], 'gold score of the response to compare with',
            values('gold', others))
      for row, other in zip(rows, others):
        gold[row['prompt'], row['response']] = row['gold']
        gold[row['prompt'], other['response']] = other['gold']
    both = _ask_twice(context, policy, asked, rows, others, references)
    rates = judging.judge_win_rate(*both)
    table.append({
        'run': policy['run'], 'seed': policy['seed'], 'prompts': num_prompts,
        **rates, 'agreement': rates['kept'] / num_prompts,
        'win_rate': judging.judge_average(*both)})
  files.write_csv(context.directory / 'win_rates.csv', table)
  return {'policies': len(table), 'prompts': num_prompts,
          'win_rate': sum(row['win_rate'] for row in table) / len(table),
          'agreement': sum(row['agreement'] for row in table) / len(table)}
