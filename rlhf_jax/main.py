"""The front door: `rlhf-jax <command>`, and one line for every mistake.

`python -m rlhf_jax <command>` is the same. Without a command, flags alone are
those of `run`. A user's mistake is one line on stderr and an exit code
(`errors`).
"""

import contextlib
import errno
import importlib
import os
import signal
import sys
import traceback

from rlhf_jax import __version__
from rlhf_jax import errors

# Before anything imports transformers.
ENVIRONMENT = {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error'}
COMMANDS = {
    'train': 'a policy or reward models, on your own data',
    'run': 'the study of a config',
    'plan': 'what a study needs of a machine; runs nothing',
    'list': 'the experiments: claim, sizes, what was run',
    'show': 'the config and the stages of a study',
    'generate': 'answers of a trained policy; a chat',
    'score': 'responses by reward models',
    'evaluate': 'a policy on held-out prompts, against another',
    'compare': 'the curves of several workdirs',
    'report': 'a page of workdirs: figures, samples, config, recipe',
    'export': 'a trained model, for transformers',
    'doctor': 'checks of your model, data and config',
    'figures': 'draws those of the experiments again, from their results',
    'verdicts': 'what the results say of what the papers claim',
}
_MODULES = {'list': 'experiments'}  # where the name is a word of Python's
_CATCHES = ('generate',)  # Ctrl-C itself: it ends a chat
_INTERRUPTED = errors.Interrupted(
    'nothing was written; run the same command to start')
_USAGE = f'''rlhf-jax {__version__}: reinforcement learning from human \
feedback in JAX

  rlhf-jax <command> [--<flag>=<value> ...]

{chr(10).join(f'  {name:<9} {what}' for name, what in COMMANDS.items())}

rlhf-jax <command> --help says more.'''


def _fail(error: errors.UserError) -> int:
  with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
    print(errors.last_line(error), file=sys.stderr, flush=True)
  return error.exit_code


def _leave(unused_number, unused_frame):
  """Of Ctrl-C, until a study listens.

  An exception would do with luck only: while modules are loaded it becomes
  another, and where it is raised in a callback, as jax has one for the garbage
  collector, Python prints it and goes on.
  """
  with contextlib.suppress(OSError):
    os.write(2, f'{errors.last_line(_INTERRUPTED)}\n'.encode())
  os._exit(_INTERRUPTED.exit_code)


def _command(words: list[str]) -> tuple[str, list[str]]:
  """The command of what was typed, and the rest."""
  if words and words[0].startswith('-'):
    return 'run', words
  if not words or words[0] == 'help':
    return 'help', words[1:]
  if words[0] not in COMMANDS:
    raise errors.ConfigError(
        f'{words[0]!r} is no command; {errors.nearest(words[0], COMMANDS)}')
  return words[0], words[1:]


def run(argv: list[str]) -> int:
  """Runs a command; returns the exit code.

  Args:
    argv: name of the program, command and flags.
  """
  from rlhf_jax.commands import arguments

  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  try:
    name, words = _command(list(argv[1:]))
    if name == 'help' or (words in (['--help'], ['-h']) and argv[1:] == words):
      print(_USAGE)
    elif words == ['--version'] and argv[1:] == words:
      print(f'rlhf-jax {__version__}')
    else:
      module = importlib.import_module(
          f'rlhf_jax.commands.{_MODULES.get(name, name)}')
      if name in _CATCHES and signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
      module.run([f'rlhf-jax {name}', *words])
    if sys.stdout is not None:
      sys.stdout.flush()  # here, where what it raises is caught
  except arguments.Helped:
    pass
  except errors.LostProcessError as error:
    os._exit(_fail(error))  # there is nobody to take leave of
  except errors.UserError as error:
    return _fail(error)
  except KeyboardInterrupt:
    return _fail(_INTERRUPTED)
  except BrokenPipeError:  # as of `| head`
    _drop_output()
    return 1
  except OSError as error:
    if error.filename is not None or error.errno not in (
        errno.ENOSPC, errno.EIO):  # not the output: a bug
      raise
    _drop_output()
    return _fail(errors.DataError(
        f'cannot print to stdout: {error.strerror}; send it elsewhere'))
  return 0


def _drop_output():
  """What is left of it cannot be printed, and would be when Python ends."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _misses(error: ModuleNotFoundError) -> bool:
  """Whether it is a line of this package that imports what is not there."""
  frames = [frame.filename for frame in traceback.extract_tb(
      error.__traceback__) if not frame.filename.startswith('<frozen')]
  return frames[-1].startswith(os.path.dirname(os.path.abspath(__file__)))


def main():
  """Entry point of `rlhf-jax` and `python -m rlhf_jax`."""
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _leave)
  if os.getcwd() not in map(os.path.abspath, sys.path):
    sys.path.insert(0, os.getcwd())  # where a user's modules are
  try:
    code = run(sys.argv)
  except ModuleNotFoundError as error:
    if not _misses(error):
      raise
    code = _fail(errors.ConfigError(
        f'{error.name} is not installed in {sys.executable}; run '
        '.venv/bin/python -m rlhf_jax, which `make demo` makes, or pip install '
        '-e . into this Python'))
  sys.exit(code)


if __name__ == '__main__':
  main()
