"""Flags of a command: read, refused in one line, explained by --help."""

from collections.abc import Sequence
import sys

from absl import flags

from rlhf_jax import errors


class Helped(Exception):  # noqa: N818 - no error: what was asked for is said
  """--help was given, and has been answered."""


def define_texts(values: flags.FlagValues, **helps: str):
  """Adds flags that take a text and are absent unless given.

  Args:
    values: to which they are added.
    **helps: what --help says, by name.
  """
  for name, what in helps.items():
    flags.DEFINE_string(name, None, what, flag_values=values)


def parse(values: flags.FlagValues, argv: Sequence[str], doc: str, *,
          most: int = 0) -> list[str]:
  """Reads the flags of a command into `values`.

  Args:
    values: with the flags that there are.
    argv: name of the command, flags and words.
    doc: docstring of its module, for --help.
    most: words beside flags that it takes at most.

  Returns:
    The words.

  Raises:
    ConfigError: a flag is unknown, missing or has no such value.
    Helped: --help was given.
  """
  if asks_for_help(argv):
    print(doc, values.get_help(), sep='\n')
    raise Helped
  try:
    _, *words = values([argv[0], *argv[1:]])
  except flags.Error as error:
    text = ' '.join(str(error).split()).replace('flag --', '--')
    raise errors.ConfigError(f'{text}; see {argv[0]} --help') from error
  if len(words) > most:
    hint = ('' if words[most].startswith('-')
            else f'; write --<name>=<value>, see {argv[0]} --help')
    raise errors.ConfigError(f'{words[most]!r} is no flag{hint}')
  return words


def asks_for_help(argv: Sequence[str]) -> bool:
  """Whether one of the arguments is a flag for help."""
  return bool({'--help', '-h', '-help', '--helpfull'} & {*argv[1:]})


def require(values: flags.FlagValues, argv: Sequence[str], *names: str):
  """ConfigError unless these flags are given."""
  absent = [f'--{name}' for name in names if not values[name].value]
  if absent:
    raise errors.ConfigError(
        f'give {" and ".join(absent)}; see {argv[0]} --help')


def progress(message: str):
  """Says on stderr what a command is at, so that stdout can be read on."""
  print(message, file=sys.stderr, flush=True)
