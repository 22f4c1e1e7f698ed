"""A study by the flags of `run`, of `train`, or of a workdir that has one."""

import pathlib

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.commands import config_files
from rlhf_jax.commands import launch
from rlhf_jax.commands import train
from rlhf_jax.runner import workdirs


def configure(argv: list[str], doc: str) -> tuple[
    dict, list[str], flags.FlagValues]:
  """The config, what to say of it, and the other flags.

  Args:
    argv: name of the command, and flags.
    doc: see `arguments.parse`.

  Raises:
    UserError: of whatever kind.
  """
  names = {word.lstrip('-').partition('=')[0] for word in argv[1:]}
  if 'algorithm' in names:
    return train.configure(argv, doc)
  values = flags.FlagValues()
  launch.define(values)
  flags.DEFINE_boolean('print_config', False, 'print the config too',
                       flag_values=values)
  if 'config' in names:
    return config_files.parse(values, argv, doc), [], values
  if arguments.asks_for_help(argv):
    train.define(values)  # those flags are taken as well
  arguments.parse(values, argv, doc)
  if values.workdir and pathlib.Path(values.workdir, workdirs.CONFIG).exists():
    return config_of(pathlib.Path(values.workdir)), [], values
  if values.workdir:
    raise errors.DataError(
        f'--workdir={values.workdir}: there is no study in it (no '
        f'{workdirs.CONFIG}); check the path, or give --config or the flags of '
        'train')
  raise errors.ConfigError(
      'give --config=<file>[:<size>], the flags of train, or the --workdir of '
      f'a study; see {argv[0]} --help')


def config_of(workdir: pathlib.Path) -> dict:
  """The config that a study was run with.

  Raises:
    CheckpointError: it is damaged.
    ConfigError: an older version has made the study.
  """
  config = workdirs.read_config(workdir)
  if 'study' not in config:
    raise errors.CheckpointError(
        f'{workdir / workdirs.CONFIG} is damaged: it has no study; restore it')
  del config['layout']  # of the workdir, no field
  return config
