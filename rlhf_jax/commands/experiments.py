"""Lists the experiments: what each claims, and whether it was run.

  rlhf-jax list [word ...] [--directory=experiments]

Words select those whose name or claim has all of them. The minutes are those
of the results beside the configs, all seeds together, on the machine that is
said there.
"""

import ast
import pathlib
import re
from typing import NamedTuple

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.storage import files


class Experiment(NamedTuple):
  """What the docstring of a config says, and what stands beside it."""

  path: pathlib.Path
  title: str
  claim: str
  sizes: tuple[str, ...]
  minutes: float | None  # of its results; None: not yet run

  def page(self) -> str:
    """A few lines of text."""
    state = ('not yet run' if self.minutes is None
             else f'run, {self.minutes:.0f} minutes')
    return (f'{self.path}  [{", ".join(self.sizes)}; {state}]\n'
            f'  {self.title}\n  {self.claim}')


def read(directory: pathlib.Path) -> list[Experiment]:
  """The experiments below a directory, in order; none of them is imported.

  Raises:
    DataError: a config cannot be read.
  """
  return [_experiment(path) for path in sorted(directory.glob('*/*.py'))]


def _experiment(path: pathlib.Path) -> Experiment:
  try:
    doc = ast.get_docstring(ast.parse(path.read_bytes())) or ''
  except (OSError, SyntaxError, ValueError) as error:
    raise errors.DataError(
        f'{path}: cannot be read: {errors.first_line(error)}') from None
  parts = [' '.join(part.split()) for part in doc.split('\n\n')]
  claim = next((part.removeprefix('Claim: ') for part in parts
                if part.startswith('Claim:')), '')
  return Experiment(path, parts[0], claim,
                    tuple(re.findall(r'(?<=\s):(\w+)', doc)), _minutes(path))


def _minutes(path: pathlib.Path) -> float | None:
  """Of all stages of its results."""
  stages = path.parent / 'results' / path.stem / 'stages.jsonl'
  if not stages.exists():
    return None
  return sum(line['stage_seconds'] for line in files.read_jsonl(stages)) / 60


def run(argv: list[str]):
  """Parses and lists.

  Args:
    argv: name of the command, words and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  flags.DEFINE_string('directory', 'experiments', 'with the experiments',
                      flag_values=values)
  words = arguments.parse(values, argv, __doc__, most=9)
  directory = pathlib.Path(values.directory)
  if not directory.is_dir():
    raise errors.DataError(
        f'--directory={directory}: there is no such directory; experiments '
        'stand in the repository, not in the package: clone it')
  pages = [one.page() for one in read(directory)]
  matches = [page for page in pages
             if all(word.lower() in page.lower() for word in words)]
  for page in matches:
    print(page)
  if not matches:
    arguments.progress(f'none of {len(pages)} experiments has all of the words '
                       f'{", ".join(words)}')
