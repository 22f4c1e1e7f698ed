"""Runs the study of a config.

  python -m rlhf_jax.main --config=experiments/<dir>/<file>.py:<size> \\
      --workdir=runs/<name> [--stages=sft,gold] [--reuse=runs/<other>] \\
      [--config.<field>=<value> ...]

The same command again goes on where it was; a finished study does nothing.
A user's mistake is one line on stderr and an exit code (`errors`).
"""

import ast
import logging
import os
import pathlib
import sys

from absl import app
from absl import flags
from ml_collections import config_flags

from rlhf_jax import errors
from rlhf_jax.parallel import processes
from rlhf_jax.runner import cluster
from rlhf_jax.runner import run as run_lib
from rlhf_jax.studies import memory
from rlhf_jax.studies import plan
from rlhf_jax.studies import programs

# Before anything imports transformers or touches a device.
ENVIRONMENT = {
    'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error',
    # As much of a GPU as a plan counts on; jax takes less by itself.
    'XLA_PYTHON_CLIENT_MEM_FRACTION': str(memory.USABLE)}

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'path/to/config.py[:size]', lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', None, 'where everything is written')
_STAGES = flags.DEFINE_list(
    'stages', [], 'run only these stages; names or patterns')
_REUSE = flags.DEFINE_list(
    'reuse', [], 'workdirs of other studies. A stage that is complete in one '
    'of them, under whatever name, is taken over and not run if it was made '
    'from the same arguments, input files, earlier stages and version of '
    'rlhf_jax. The files are hard links, or copies across file systems: '
    'the other workdir may be deleted, and may be in use')
_PLAN = flags.DEFINE_string(
    'plan', None, 'run nothing; say what each stage needs of one device of a '
    'machine, such as v5e:4x4 or h100x8; alone: of this one. Where libtpu is '
    'installed, also what the compiler for a slice says')
_COORDINATOR = flags.DEFINE_string(
    'coordinator', None, 'host:port of process 0, where several run together; '
    "'auto' asks the environment, as on TPU VMs; under SLURM, Open MPI and GKE "
    'they find each other without')
_NUM_PROCESSES = flags.DEFINE_integer(
    'num_processes', None, 'how many run together')
_PROCESS_ID = flags.DEFINE_integer(
    'process_id', None, 'which of them this is, from 0')
_HEARTBEAT = flags.DEFINE_integer(
    'heartbeat', 15, 'seconds of silence after which a process counts as dead')


def _fail(error: errors.UserError) -> int:
  line = ' '.join(str(error).split())
  print(f'rlhf_jax: {error.code}: {line}', file=sys.stderr, flush=True)
  return error.exit_code


def _prepare():
  """Quiet, and with compiled programs kept between runs."""
  for name in ('absl', 'jax', 'orbax'):
    logging.getLogger(name).setLevel(logging.ERROR)
  import jax

  if not jax.config.jax_compilation_cache_dir:
    cache = pathlib.Path.home() / '.cache' / 'rlhf_jax' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(cache))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def _reason(error: Exception, argv: list[str]) -> str:
  """What went wrong and in which argument, without a library's noise."""
  while 'Traceback' in str(error) or isinstance(error, OSError):
    cause = error.__cause__ or error.__context__
    if cause is None:
      break
    error = cause
  # The text of a KeyError is a repr of its message.
  text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
  text = text.replace("module 'config_config'", 'it')
  if isinstance(error, flags.Error):
    return f'{text}; see --help'
  if isinstance(error, KeyError | AttributeError):
    for argument in argv:
      field = argument.partition('=')[0].lstrip('-')
      if any(f"'{name}'" in text for name in field.split('.')[1:]):
        hint = text.partition('\n')[2] or 'See the config file for them.'
        return f'{field} is no field of the config. {hint}'
  given = _config_argument(argv)
  if not _config_path(argv).is_file():
    return f'--config={given}: there is no such file; check the path'
  return f'--config={given} cannot be loaded: {type(error).__name__}: {text}'


def _config_path(argv: list[str]) -> pathlib.Path:
  return pathlib.Path(_config_argument(argv).partition(':')[0])


def _config_argument(argv: list[str]) -> str:
  """The value of --config, given as one argument or two."""
  for argument, following in zip(argv, [*argv[1:], '']):
    name, equals, value = argument.lstrip('-').partition('=')
    if argument.startswith('-') and name == 'config':
      return value if equals else following
  return ''


def _check_duplicates(path: pathlib.Path):
  """ConfigError for a name that one dict of a config file gives twice.

  Python would keep the last, so that of two components of one name, or two
  runs, one would be lost without a word.
  """
  try:
    tree = ast.parse(path.read_bytes())
  except (OSError, SyntaxError, ValueError):
    return  # which loading it will say
  for node in ast.walk(tree):
    names = set()
    for key in node.keys if isinstance(node, ast.Dict) else ():
      if not isinstance(key, ast.Constant):
        continue
      if key.value in names:
        raise errors.ConfigError(
            f'{path}:{key.lineno}: {key.value!r} is given twice in one dict; '
            'rename one of them or leave it out')
      names.add(key.value)


def _parse(argv: list[str]) -> dict:
  """Flags to a plain config; every mistake is a ConfigError."""
  # Configs of experiments import what they share, wherever the command is
  # given.
  for parent in _config_path(argv).absolute().parents:
    if (parent / 'experiments').is_dir():
      sys.path.insert(0, str(parent))
      break
  _check_duplicates(_config_path(argv))
  try:
    # The config file itself runs here, and it may raise anything.
    _, *stray = flags.FLAGS(argv)
    config = None if _CONFIG.value is None else _CONFIG.value.to_dict()
  except SystemExit:
    raise
  except Exception as error:
    raise errors.ConfigError(_reason(error, argv)) from error
  if stray:
    raise errors.ConfigError(
        f'{stray[0]!r} is no flag; write --<name>=<value>, see --help')
  if not config or not (_WORKDIR.value or _PLAN.value):
    raise errors.ConfigError(
        'give --config=<file>[:<size>] and --workdir=<directory>')
  if 'study' not in config:
    raise errors.ConfigError(
        'config.study is missing; name a module of rlhf_jax.studies')
  return config


def _show_memory(config: dict, stages: list) -> int:
  """Prints what a plan needs; TopologyError if it does not fit."""
  machine = memory.machine(_PLAN.value)
  uses = memory.uses(config, stages, machine.count)
  run_lib.say(memory.page(uses, machine))
  memory.check(uses, machine)
  if machine.is_slice and programs.has_tpu_compiler():
    for line in memory.compiled(uses, machine, config['mesh']):
      run_lib.say(line)
  return 0


def _num_devices() -> int:
  """Of the machine that is planned for, or of this run."""
  if _PLAN.value:
    return memory.machine(_PLAN.value).count
  import jax
  return jax.device_count()


def run(argv: list[str]) -> int:
  """Parses, plans, runs; returns the exit code."""
  try:
    config = _parse(['--plan=here' if x == '--plan' else x for x in argv])
    for name, value in ENVIRONMENT.items():
      os.environ.setdefault(name, value)
    together = cluster.Cluster(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value,
        _HEARTBEAT.value)
    if together.several:
      cluster.supervise()
      cluster.connect(together)
    stages = plan.plan(config)
    _prepare()
    if any(size == -1 for axis, size in config['mesh'].items()
           if axis != 'data'):
      # Into how many parts models are split is known only now.
      stages = plan.plan(config, _num_devices())
    if _PLAN.value:
      return _show_memory(config, stages)
    run_lib.run_study(
        stages, _WORKDIR.value, only=_STAGES.value, reuse=_REUSE.value,
        config=config | {'inputs': plan.inputs(config, stages)},
        safe_keys=('seeds', 'title', 'training.*', 'mesh.*'))
    _show_figure(config)
  except errors.LostProcessError as error:
    os._exit(_fail(error))  # there is nobody to take leave of
  except errors.UserError as error:
    return _fail(error)
  except KeyboardInterrupt:  # before the study has begun to listen
    return _fail(errors.Interrupted(
        'nothing was written; run the same command to start'))
  return 0


def _show_figure(config: dict):
  """Prints where the study's figure is, if it is there."""
  final = plan.final(config)
  with cluster.losing():
    result = processes.from_owner(
        lambda: run_lib.read_result(_WORKDIR.value, final))
  if result is not None:
    # Not the recorded directory: the workdir may have been moved.
    figure = (pathlib.Path(_WORKDIR.value).absolute() / final
              / pathlib.Path(result['figure']).name)
    run_lib.say(str(figure))


def main():
  """Entry point of `python -m rlhf_jax.main`."""
  if {'--help', '-h', '--helpfull'} & set(sys.argv):
    app.run(lambda argv: None)  # prints the flags and exits
  sys.exit(run(sys.argv))


if __name__ == '__main__':
  main()
