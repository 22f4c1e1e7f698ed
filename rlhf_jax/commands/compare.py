"""Compares the policies of several workdirs: one figure and one table.

  rlhf-jax compare runs/a runs/b [runs/c ...] --output=runs/compared \\
      [--x=step] [--y=proxy,kl_k1] [--columns=proxy,kl_k1,length]

A line is a workdir, or a run of one that has several, its mean over seeds with
the standard error. --x and --y are columns of an evaluation; --y=proxy,kl_k1
means what every policy was measured by. Policies that were measured by
different rewards are drawn as they are: see to it that they are comparable.
"""

import pathlib
from typing import Any

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import workdirs
from rlhf_jax.stages import policy_report

_MOST = 20  # workdirs


class _Across:
  """What a report asks of its study, of stages in several workdirs."""

  def __init__(self, directory: pathlib.Path):
    self.directory = directory

  def directory_of(self, name: str) -> pathlib.Path:
    """The stage of a whole path, complete as `_policies` has seen."""
    return pathlib.Path(name)

  def show(self, text: str):
    """Prints lines as they are."""
    print(text)


def run(argv: list[str]):
  """Parses, reads, draws.

  Args:
    argv: name of the command, workdirs and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  flags.DEFINE_string('output', None, 'directory to write', flag_values=values)
  flags.DEFINE_string('x', 'step', 'step, updates, samples, epoch, kl_k1 or '
                      'sqrt_kl', flag_values=values)
  flags.DEFINE_list('y', ['proxy', 'kl_k1'], 'columns that are drawn',
                    flag_values=values)
  flags.DEFINE_list('columns', [], 'of the table; those of --y if absent',
                    flag_values=values)
  names = arguments.parse(values, argv, __doc__, most=_MOST)
  arguments.require(values, argv, 'output')
  if not names:
    raise errors.ConfigError(
        f'give the workdirs to compare; see {argv[0]} --help')
  policies = [one for name in names for one in _policies(pathlib.Path(name))]
  output = pathlib.Path(values.output)
  try:
    output.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.CheckpointError(
        f'cannot create {output}: {error.strerror}; choose another --output'
        ) from error
  policy_report.run(
      _Across(output), policies=policies, stages=[],
      title=' and '.join(pathlib.Path(name).name for name in names[:3]),
      figure=dict(kind='curves', x=values.x, y=tuple(values.y),
                  columns=tuple(values.columns or values.y), line=('workdir',)))
  print((output / 'figure.png').absolute())


def _policies(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The complete policies of a workdir, as a report takes them.

  Raises:
    DataError: there are none.
  """
  stages = sorted(path.parent.relative_to(workdir) for path in workdir.glob(
      f'seed_*/policies/*/{workdirs.RESULT}'))
  if not stages:
    raise errors.DataError(
        f'{workdir} has no complete policies (seed_<n>/policies/<run>); name '
        'the workdirs of rlhf-jax train or run')
  several = len({stage.name for stage in stages}) > 1
  label = lambda stage: (
      f'{workdir.name}/{stage.name}' if several else workdir.name)
  for stage in stages:
    run_lib.read_result(workdir, str(stage))  # a damaged one is refused
  return [{'stage': str(workdir / stage), 'run': label(stage),
           'seed': int(stage.parts[0].partition('_')[2]),
           'labels': {'workdir': label(stage)}} for stage in stages]
