"""Win rates of trained policies, by gold scores or by a judge over HTTP."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_jax.reports import comparisons
from rlhf_jax.storage import files

check = comparisons.check  # what a study calls before it trains


def run(context, *, policies: Sequence[Mapping[str, Any]], against: str,
        judge: Mapping[str, Any], num_prompts: int,
        show_reference: bool = False) -> dict:
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
  answers = None  # gold scores are cheap to compare, and differ by seed
  if judge['kind'] == 'http':
    answers = comparisons.Answers(context.directory / 'answers.jsonl', judge)
  rows = {(policy['run'], policy['seed']):
          comparisons.read(context, policy, num_prompts)
          for policy in policies}
  pairs = [comparisons.pair(
      policy, rows[policy['run'], policy['seed']],
      None if against == comparisons.REFERENCE
      else rows[against, policy['seed']],
      gold=judge['kind'] == 'gold', show_reference=show_reference)
           for policy in policies if policy['run'] != against]
  table = [comparisons.win_rates(context, one, judge, answers)
           for one in pairs]
  files.write_csv(context.directory / 'win_rates.csv', table)
  return {'policies': len(table), 'prompts': num_prompts,
          'win_rate': sum(row['win_rate'] for row in table) / len(table),
          'agreement': sum(row['agreement'] for row in table) / len(table)}
