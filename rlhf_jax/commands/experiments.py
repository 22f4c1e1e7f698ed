"""Lists the experiments: what each claims, and whether it was run.

  rlhf-jax list [word ...] [--directory=experiments] [--check]

Words select those whose name or claim has all of them. The minutes are those
of the results beside the configs, all seeds together, on the machine that is
said there. --check plans each of them, and says which results are stale: of
which stages that would be made otherwise now.
"""

from collections.abc import Iterator
import pathlib
import re
from typing import NamedTuple

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.commands import config_files
from rlhf_jax.commands import figures
from rlhf_jax.reports import page_claims
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
  doc = page_claims.docstring(path)
  parts = [' '.join(part.split()) for part in doc.split('\n\n')]
  claim = next((part.removeprefix('Claim: ') for part in parts
                if part.startswith('Claim:')), '')
  sizes = dict.fromkeys(re.findall(r'(?<=\s):(\w+)', doc))
  return Experiment(path, parts[0], claim, tuple(sizes), _minutes(path))


def _minutes(path: pathlib.Path) -> float | None:
  """Of all stages of its results."""
  stages = path.parent / 'results' / path.stem / 'stages.jsonl'
  if not stages.exists():
    return None
  return sum(line['stage_seconds'] for line in files.read_jsonl(stages)) / 60


def states(path: pathlib.Path) -> Iterator[tuple[str, str]]:
  """The results that a config is to have: name, and what they are.

  Args:
    path: of the config.

  Raises:
    UserError: a config cannot be planned, or results cannot be read.
  """
  for name, config in figures.configs(path.parent).items():
    if pathlib.Path(config.partition(':')[0]).name != path.name:
      continue
    stages = path.parent / 'results' / name / 'stages.jsonl'
    if stages.exists():
      yield name, _state(config, files.read_jsonl(stages))
    else:
      yield name, f'not yet run: {config.partition(":")[2]}'


def _state(config: str, rows: list[dict]) -> str:
  """Whether stages with these rows would be made so again."""
  from rlhf_jax.runner import recipes
  from rlhf_jax.studies import plan

  keys = {row['stage']: row['recipe'] for row in rows if row.get('recipe')}
  seeds = sorted({int(match[1]) for row in rows if (
      match := re.match(r'seed_(\d+)/', row['stage']))})
  prefix = f'{len(seeds)} seeds, '
  if not keys:
    return prefix + 'made before recipes were kept beside results'
  planned = config_files.parse(flags.FlagValues(), [
      'list', f'--config={config}', f'--config.seeds={tuple(seeds)}'], __doc__)
  stages = plan.with_inputs(planned, plan.plan(planned))
  now = {name: recipe.key for name, recipe in recipes.of_stages(stages).items()
         if recipe is not None}
  other = [name for name, key in keys.items() if now.get(name) != key]
  return prefix + (f'stale: {len(other)} of {len(keys)} stages would be made '
                   f'otherwise, {other[0]} first' if other else
                   'as they would be made now')


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
  flags.DEFINE_boolean('check', False, 'whether to look for stale results',
                       flag_values=values)
  words = arguments.parse(values, argv, __doc__, most=9)
  directory = pathlib.Path(values.directory)
  if not directory.is_dir():
    raise errors.DataError(
        f'--directory={directory}: there is no such directory; experiments '
        'stand in the repository, not in the package: clone it')
  pages = {one.page(): one.path for one in read(directory)}
  matches = [page for page in pages
             if all(word.lower() in page.lower() for word in words)]
  for page in matches:
    print(page)
    for name, state in states(pages[page]) if values.check else ():
      print(f'  {name}: {state}', flush=True)
  if not matches:
    arguments.progress(f'none of {len(pages)} experiments has all of the words '
                       f'{", ".join(words)}')
