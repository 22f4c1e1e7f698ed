"""What trained policies have measured, averaged over members and over seeds.

Runs that differ only in the label 'member' are trained on the members of one
ensemble, one at a time. They are averaged within a seed before seeds are
compared, as Coste et al. 2024, https://arxiv.org/abs/2310.02743, plot a single
reward model as the mean over the members.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from rlhf_jax import errors
from rlhf_jax.evaluation import statistics
from rlhf_jax.reports import figures
from rlhf_jax.storage import files


@dataclasses.dataclass(frozen=True)
class Policy:
  """One trained policy. P evaluations, S logged rollouts, B prompts."""

  directory: pathlib.Path
  seed: int
  run: str
  labels: dict[str, Any]
  rows: list[dict]  # of evaluation.jsonl
  evaluation: dict[str, np.ndarray]  # column to f64[P]
  training: dict[str, np.ndarray]  # column to f64[S], smoothed
  prompts: list  # of final.jsonl, where it is asked for
  gold: np.ndarray  # f64[B], of its responses
  rates: Mapping[str, float] | None = None  # of `win_rate_rows`, from a file


def read_rows(path: pathlib.Path) -> list[dict]:
  """The objects of a file of JSON lines, at least one.

  Raises:
    CheckpointError: it is missing, damaged or empty.
  """
  rows = files.read_jsonl(path)
  if not rows:
    raise files.unreadable(path, ValueError('it holds no rows'))
  return rows


def _columns(rows: Sequence[Mapping], names: Iterable[str]
             ) -> dict[str, np.ndarray]:
  """f64[rows] of each name; NaN where a row has null or nothing."""
  return {name: np.array([row.get(name) for row in rows], np.float64)
          for name in names}


def smooth(x: np.ndarray, window: int) -> np.ndarray:
  """Mean of the last `window` values that are finite, fewer at the start.

  Args:
    x: float[S].
    window: values, >= 1.

  Returns:
    f64[S]; NaN where none of the values is finite.
  """
  finite = np.isfinite(x)
  recent = lambda total: total - np.pad(total, (window, 0))[:len(total)]
  with np.errstate(invalid='ignore'):
    return (recent(np.cumsum(np.where(finite, x, 0.0)))
            / recent(np.cumsum(finite)))


def read(context, policies: Sequence[Mapping], figure: Mapping,
         judged: str = '') -> list[Policy]:
  """What policies have measured.

  Args:
    context: of the stage that reads.
    policies: {'stage', 'seed', 'run', 'labels'} of each.
    figure: with its 'kind'; of source 'training' also 'y' and 'window'.
    judged: stage of `win_rates`, whose verdict each policy's last evaluation
      gets as 'win_rate'; '' for none.

  Raises:
    CheckpointError: a stage is not complete, or its files are damaged.
  """
  trained, rates = [], {}
  if judged:
    rates = {(row['run'], row['seed']): float(row['win_rate'])
             for row in files.read_csv(
                 context.directory_of(judged) / 'win_rates.csv')}
  for one in policies:
    directory = context.directory_of(one['stage'])
    rows = read_rows(directory / 'evaluation.jsonl')
    if (one['run'], str(one['seed'])) in rates:
      rows[-1]['win_rate'] = rates[one['run'], str(one['seed'])]
    training, final = {}, []
    if figure.get('source') == 'training':
      training = _columns(read_rows(directory / 'metrics.jsonl'),
                          ('step', *figure['y']))
      training |= {name: smooth(training[name], figure['window'])
                   for name in figure['y']}
    if figure['kind'] == 'win_rates':
      final = read_rows(directory / 'final.jsonl')
    trained.append(Policy(
        directory, one['seed'], one['run'], dict(one['labels']), rows,
        _columns(rows, dict.fromkeys(k for row in rows for k in row)),
        training, [row['prompt'] for row in final],
        _columns(final, ['gold'])['gold']))
  return trained


def measured(policies: Iterable[Policy]) -> set[str]:
  """The columns that the evaluations of any policy have."""
  return {column for policy in policies for column in policy.evaluation}


def stage_rows(context, stages: Iterable[str]) -> list[dict]:
  """Wall time in seconds, recipe and every number that each stage reports."""
  return [{'stage': name, 'stage_seconds': context.seconds_of(name),
           'recipe': context.recipe_of(name), **context.result_of(name)}
          for name in stages]


def matches(labels: Mapping, selection: Mapping) -> bool:
  """Whether a run has all the labels of `selection`."""
  return all(labels.get(name) == value for name, value in selection.items())


def pick(labels: Mapping, names: Iterable[str]) -> dict:
  """The labels of these names; None where a run has none."""
  return {name: labels.get(name) for name in names}


def groups(policies: Sequence[Policy], apart: Iterable[str]
           ) -> list[list[Policy]]:
  """Policies that are averaged: those that differ in seed and member only.

  Args:
    policies: of all runs and seeds.
    apart: labels that keep runs apart; with 'member' among them, members are
      not averaged.
  """
  averaged = {}
  for policy in policies:
    labels = {k: v for k, v in policy.labels.items()
              if k != 'member' or k in apart}
    averaged.setdefault(tuple(sorted(labels.items())), []).append(policy)
  return list(averaged.values())


def by_seed(group: Sequence[Policy]) -> list[list[Policy]]:
  """The members of a group for each seed, in order of the seeds."""
  return [[p for p in group if p.seed == seed]
          for seed in sorted({p.seed for p in group})]


def curves(members: Sequence[Policy], names: Iterable[str],
           source: str = 'evaluation') -> dict[str, np.ndarray]:
  """Means over members, as long as the shortest; NaN where one has nothing.

  Args:
    members: policies of one seed.
    names: columns; each '<name>_se' comes along.
    source: 'evaluation' or 'training'.

  Returns:
    f64[P] for each name. Errors are averaged too: members answer the same
    prompts, so theirs is at most that mean.
  """
  parts = [getattr(member, source) for member in members]
  length = min(len(column) for part in parts for column in part.values())
  missing = np.full(length, np.nan)
  return {name: np.mean([part.get(name, missing)[:length] for part in parts],
                        axis=0)
          for column in names for name in (column, f'{column}_se')}


def curve(group: Sequence[Policy], names: Sequence[str], *,
          source: str = 'evaluation', limit_kl: float | None = None
          ) -> dict[str, np.ndarray]:
  """Means over seeds at each evaluation, and their errors.

  The mean is cut, not the seeds: past the first seed that crosses the limit
  it would otherwise be a mean of those that have not.

  Args:
    group: policies that differ in seed and member only.
    names: columns.
    source: as for `curves`.
    limit_kl: nats, of `statistics.curve_until`; None keeps all.

  Returns:
    For each name, `<name>` and `<name>_se` f64[P]; the error is NaN for one
    seed.
  """
  seeds = [curves(members, (*names, 'sqrt_kl'), source)
           for members in by_seed(group)]
  length = min(len(seed['sqrt_kl']) for seed in seeds)
  points = {}
  for name in names:
    stack = np.stack([seed[name][:length] for seed in seeds])
    points[name] = stack.mean(axis=0)
    points[f'{name}_se'] = statistics.standard_error(stack)
  if limit_kl is None:
    return points
  kl = np.mean([seed['sqrt_kl'][:length] for seed in seeds], axis=0)**2
  _, kept = statistics.curve_until(  # a point without a KL is kept
      np.nan_to_num(kl), np.stack(list(points.values())), limit=limit_kl)
  return dict(zip(points, kept))


def others(policy: Policy, policies: Sequence[Policy], selection: Mapping,
           figure: Mapping) -> list[Policy]:
  """Those that `policy` is compared with: same seed, same `paired_by`."""
  cell = pick(policy.labels, figure['paired_by'])
  return [p for p in policies if p.seed == policy.seed
          and matches(p.labels, selection) and matches(p.labels, cell)]


def win_rate_rows(policy: Policy, policies: Sequence[Policy], figure: Mapping
                  ) -> list[dict]:
  """One row: win rates against the others of a seed, mean and s.d. (ddof 1).

  Coste et al. 2024, appendix F.9: per prompt, the gold score of one response
  after training, against each of the single reward models.

  Returns:
    'opponents', 'win_rate' and 'win_rate_sd', shares; NaN where a gold score
    is. Nothing for a policy that the others are compared with.

  Raises:
    CheckpointError: two policies have answered different prompts.
  """
  if matches(policy.labels, figure['against']):
    return []
  if policy.rates is not None:
    return [policy.rates]
  against = others(policy, policies, figure['against'], figure)
  for other in against:
    if other.prompts != policy.prompts:
      raise errors.CheckpointError(
          f'{policy.directory / "final.jsonl"} answers other prompts than '
          f'{other.directory / "final.jsonl"}; make both again with '
          f'--redo={policy.directory.name},{other.directory.name}')
  gold = [other.gold for other in against]
  scored = gold and np.isfinite([policy.gold, *gold]).all()
  mean, deviation = statistics.win_rate_against(
      policy.gold, np.stack(gold)) if scored else (np.nan, np.nan)
  return [{'opponents': len(gold), 'win_rate': mean, 'win_rate_sd': deviation}]


def _last(members: Sequence[Policy], columns: Sequence[str]
          ) -> dict[str, float]:
  """The last value of each column, and its error, of one seed."""
  of_training = [c for c in columns if c in members[0].training]
  values = curves(members, columns)
  if of_training:
    values |= curves(members, of_training, 'training')
  return {name: curve[-1] for name, curve in values.items()}


def measure(members: Sequence[Policy], policies: Sequence[Policy],
            figure: Mapping, columns: Sequence[str]
            ) -> dict[str, tuple[float, float]]:
  """(value, s.e. over prompts or NaN) of one seed of a group.

  Of each column the last value; of gold `peak` (where its curve is highest),
  `peak_step` and `drop` = peak - last, where it is measured;
  `<column>_above`, the last value less that of the baseline, where the seed
  has one; `win_rate` and `win_rate_sd`.

  Args:
    members: policies of one seed, which are averaged.
    policies: all of the study.
    figure: checked.
    columns: of an evaluation, or of `Policy.training`.
  """
  mine = _last(members, columns)
  row = {c: (mine[c], mine[f'{c}_se']) for c in columns}
  path = curves(members, ('gold', 'step'))
  if np.isfinite(path['gold']).any():
    top = np.nanargmax(path['gold'])
    row['peak'] = path['gold'][top], path['gold_se'][top]
    row['peak_step'] = path['step'][top], np.nan
    row['drop'] = path['gold'][top] - path['gold'][-1], np.nan
  if figure['baseline']:
    base = others(members[0], policies, figure['baseline'], figure)
    if base:
      theirs = _last(base, columns)
      row |= {f'{c}_above': (mine[c] - theirs[c], np.nan) for c in columns}
  if figure['kind'] == 'win_rates':
    rates = [rate for member in members
             for rate in win_rate_rows(member, policies, figure)]
    row |= {name: (np.mean([rate[name] for rate in rates]), np.nan)
            for name in ('win_rate', 'win_rate_sd') if rates}
  return row


def summary(group: Sequence[Policy], policies: Sequence[Policy],
            figure: Mapping, columns: Sequence[str], names: Sequence[str]
            ) -> dict[str, float]:
  """`<name>` and `<name>_se` over the seeds of a group.

  With one seed an error is that over prompts, where there is one.

  Args:
    group: policies that differ in seed and member only.
    policies: all of the study.
    figure: checked.
    columns: as for `measure`.
    names: of what `measure` returns; NaN where no seed has it.
  """
  seeds = [measure(members, policies, figure, columns)
           for members in by_seed(group)]
  row = {}
  for name in names:
    row[name], row[f'{name}_se'] = figures.over_seeds(
        [seed[name] for seed in seeds if name in seed] or [(np.nan, np.nan)])
  return row
