"""Runs the study of a config.

  rlhf-jax run --config=experiments/<dir>/<file>.py:<size> \\
      --workdir=runs/<name> [--stages=sft,gold] [--reuse=runs/<other>] \\
      [--plan[=<machine>]] [--config.<field>=<value> ...]

The same command again goes on where it was; a finished study does nothing.
"""

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import config_files
from rlhf_jax.commands import launch


def run(argv: list[str]):
  """Parses, plans, runs.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  argv, values = launch.spelled_out(argv), flags.FlagValues()
  launch.define(values)
  config = config_files.parse(values, argv, __doc__)
  if not config or not (values.workdir or values.plan):
    raise errors.ConfigError(
        'give --config=<file>[:<size>] and --workdir=<directory>')
  launch.launch(config, values)
