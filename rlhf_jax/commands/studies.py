"""A study by the flags of `run` or of `train`, whichever are there."""

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import config_files
from rlhf_jax.commands import launch
from rlhf_jax.commands import train


def configure(argv: list[str], doc: str) -> tuple[
    dict, list[str], flags.FlagValues]:
  """The config, what to say of it, and the other flags.

  Args:
    argv: name of the command, and flags.
    doc: see `arguments.parse`.

  Raises:
    UserError: of whatever kind.
  """
  if any(word.lstrip('-').partition('=')[0] == 'algorithm' for word in argv):
    return train.configure(argv, doc)
  values = flags.FlagValues()
  launch.define(values)
  flags.DEFINE_boolean('print_config', False, 'print the config too',
                       flag_values=values)
  config = config_files.parse(values, argv, doc)
  if not config:
    raise errors.ConfigError(
        f'give --config=<file>[:<size>], or the flags of train; see {argv[0]} '
        '--help')
  return config, [], values
