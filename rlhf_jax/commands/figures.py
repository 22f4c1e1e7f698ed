"""Draws the figures of the experiments again, from the results beside them.

  rlhf-jax figures [word ...] [--directory=experiments]

Words select those whose path has all of them. Nothing is run: the numbers are
those of results.csv and the files beside it, the title and the kind of figure
those of the config. Studies that are one config with several options, such as
`:laptop,best_of_n=3`, are shown together too, beside the figure of the config:
those of best-of-n in best_of_n.png, policies of several widths in by_width.png.
What another config has trained and belongs there, a docstring names after
`Beside:`.
"""

from collections.abc import Iterable, Mapping, Sequence
import pathlib
import re

from absl import flags

from rlhf_jax.commands import arguments
from rlhf_jax.commands import config_files
from rlhf_jax.commands import verdicts
from rlhf_jax.reports import across
from rlhf_jax.reports import redraw
from rlhf_jax.storage import files

# The pictures of several studies by their kind, and what their title adds.
TOGETHER = {'best_of_n': ('best_of_n.png', 'best-of-n'),
            'online': ('by_width.png', 'policies of several widths')}


def configs(paper: pathlib.Path) -> dict[str, str]:
  """The config of each directory of results, as --config takes it.

  A directory has the name of its config, or of a contrast, whose command says
  with which options. The others that a docstring names, such as
  `:laptop,best_of_n=3`, follow the name of the config: `_best_of_n_3`.

  Args:
    paper: directory of its configs, with results and contrasts.
  """
  sources = sorted(paper.glob('*.py'))
  named = {path.stem: f'{path}:laptop' for path in sources}
  for line in files.read_jsonl(paper / verdicts.CONTRASTS):
    match = re.search(r'--config=\S*/([\w.]+\.py:\S+)', line['command'])
    if match and line['figure'] not in named:
      named[line['figure']] = str(paper / match[1])
  for path in sources:
    for options in re.findall(r':laptop,([\w=.,]*\w)', path.read_text()):
      config = f'{path}:laptop,{options}'
      if config not in named.values():
        tag = re.sub('[=,]', '_', options).replace('.', '')
        named[f'{path.stem}_{tag}'] = config
  return named


def run(argv: list[str]):
  """Parses and draws.

  Args:
    argv: name of the command, words and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  flags.DEFINE_string('directory', 'experiments', 'with the experiments',
                      flag_values=values)
  words = arguments.parse(values, argv, __doc__, most=9)
  for paper in verdicts.papers(pathlib.Path(values.directory)):
    named = configs(paper)
    paths = sorted(paper.glob('results/*/figure.png'))
    chosen = [path for path in paths
              if all(word in str(path) for word in words)]
    results = {path.parent.name for path in chosen}
    parts = {stem: names for stem, names in beside(
        named, [path.parent.name for path in paths]).items()
             if results & {*names}}
    studies = {name: redraw.read(paper / 'results' / name, config_files.parse(
        flags.FlagValues(), [argv[0], f'--config={named[name]}'], __doc__))
               for name in dict.fromkeys(
                   name for names in parts.values() for name in names)}
    for path in chosen:
      name = path.parent.name
      if name in studies and redraw.draw(studies[name]):
        print(path)
      else:
        reason = ('a table of what it shows is not there' if name in named
                  else f'no config or contrast is of {name}')
        arguments.progress(f'{path} is left as it is: {reason}')
    for stem, names in parts.items():
      for path in together(paper / 'results' / stem,
                           [studies[name] for name in names]):
        print(path)


def beside(named: Mapping[str, str], names: Iterable[str]
           ) -> dict[str, list[str]]:
  """The results that belong together, by the name of their config's file.

  Args:
    named: of `configs`.
    names: of the directories of results.
  """
  names = [name for name in names if name in named]
  parts: dict[pathlib.Path, list[str]] = {}
  for name in names:
    path = pathlib.Path(named[name].partition(':')[0])
    parts.setdefault(path, []).append(name)
  for path, own in parts.items():
    own += [other for other in re.findall(
        r'^Beside: +(\w+)\.py', path.read_text(), re.MULTILINE)
            if other in names]
  return {path.stem: own for path, own in parts.items()}


def together(directory: pathlib.Path, studies: Sequence[redraw.Study]
             ) -> list[pathlib.Path]:
  """Draws the studies of each kind that differ; their figures.

  Args:
    directory: of the results of the config, for the figures.
    studies: of the config, and what is beside them.
  """
  paths = []
  for kind, (name, what) in TOGETHER.items():
    alike = [study for study in studies if study.config['study'] == kind]
    if len(alike) > 1 and across.differing(alike):
      title = alike[0].config['title'].partition(': ')[0]
      across.draw(alike, directory / name, title=f'{title}: {what}')
      paths.append(directory / name)
  return paths
