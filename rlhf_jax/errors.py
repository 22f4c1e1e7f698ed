"""What a user can get wrong, and the exit code that says which.

`main` prints one line, `rlhf_jax: <CODE>: <message>`, and exits with
`exit_code`. A message names what is wrong, where, and what to do. Anything
that is not a `UserError` is a bug of ours and keeps its traceback.
"""

from collections.abc import Iterable
import difflib
import sys
import traceback


class UserError(Exception):
  """A mistake or an event outside the program; shown as one line."""

  code = 'ERROR'
  exit_code = 1


class ConfigError(UserError):
  """A config field is unknown, mistyped, out of range or contradictory."""

  code = 'CONFIG'
  exit_code = 2


class DataError(UserError):
  """An input file is missing, malformed or does not fit."""

  code = 'DATA'
  exit_code = 3


class CheckpointError(UserError):
  """A checkpoint or a result on disk is missing, damaged or foreign."""

  code = 'CHECKPOINT'
  exit_code = 4


class NumericsError(UserError):
  """A loss or gradient stopped being finite."""

  code = 'NUMERICS'
  exit_code = 5

  def __init__(self, message: str, skipped: range = range(0)):
    """`skipped`: the steps, from 0, whose batches gave no update."""
    super().__init__(message)
    self.skipped = skipped


class RewardError(UserError):
  """A reward function failed or returned something unusable."""

  code = 'REWARD'
  exit_code = 6


class WorkdirLockedError(UserError):
  """Another process owns the workdir."""

  code = 'LOCKED'
  exit_code = 7


class TopologyError(UserError):
  """The mesh does not fit devices or model, a stage their memory."""

  code = 'TOPOLOGY'
  exit_code = 8


class LostProcessError(TopologyError):
  """Another process of the run has died."""


class Interrupted(UserError):  # noqa: N818 - an event, not an error
  """SIGTERM or Ctrl-C; state is saved and the same command goes on."""

  code = 'INTERRUPTED'
  exit_code = 75


def last_line(error: UserError) -> str:
  """What a program says last, whatever an error's message holds."""
  return f'rlhf_jax: {error.code}: {" ".join(str(error).split())}'


def first_line(error: BaseException) -> str:
  """The first line of an exception, short enough for a message."""
  text = str(error).strip().partition('\n')[0]
  return f'{type(error).__name__}: {text[:200]}'


def of_user(error: BaseException, module: str) -> str:
  """`first_line` of what a user's function raised, and in which line.

  Args:
    error: as it was caught.
    module: of the function; of its frames, the innermost says the line.
  """
  path = getattr(sys.modules.get(module), '__file__', None)
  line = next((f' ({frame.filename}:{frame.lineno})' for frame in reversed(
      traceback.extract_tb(error.__traceback__)) if frame.filename == path), '')
  return f'{first_line(error)}{line}'


def nearest(name: str, choices: Iterable[str]) -> str:
  """What a mistyped name may have meant, and what there is, for a message."""
  choices = list(choices)
  near = difflib.get_close_matches(name, choices, n=1)
  return (f'did you mean {near[0]!r}? ' if near else '') + (
      f'there are {", ".join(choices)}')
