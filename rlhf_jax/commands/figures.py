"""Draws the figures of the experiments again, from the results beside them.

  rlhf-jax figures [word ...] [--directory=experiments]

Words select those whose path has all of them. Nothing is run: the numbers are
those of results.csv, the title and the kind of figure those of the config. Of
studies of best-of-n that are one config with several options, such as
`:laptop,best_of_n=3`, best_of_n.png beside the figure of the config shows them
together.
"""

from collections.abc import Mapping
import pathlib
import re
from typing import Any

from absl import flags

from rlhf_jax.commands import arguments
from rlhf_jax.commands import config_files
from rlhf_jax.commands import verdicts
from rlhf_jax.reports import across
from rlhf_jax.reports import redraw
from rlhf_jax.storage import files


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
    stems = {name: _stem(named[name]) for name in (
        path.parent.name for path in paths) if name in named}
    wanted = {stems.get(path.parent.name) for path in chosen}
    planned = {name: config_files.parse(
        flags.FlagValues(), [argv[0], f'--config={named[name]}'], __doc__)
               for name, stem in stems.items() if stem in wanted}
    for path in chosen:
      name = path.parent.name
      if name in planned and redraw.draw(path.parent, planned[name]):
        print(path)
      else:
        reason = ('results.csv does not hold what it shows' if name in named
                  else f'no config or contrast is of {name}')
        arguments.progress(f'{path} is left as it is: {reason}')
    for path in together(paper, named, planned):
      print(path)


def _stem(config: str) -> str:
  """The name of a config's file."""
  return pathlib.Path(config.partition(':')[0]).stem


def together(paper: pathlib.Path, named: Mapping[str, str],
             planned: Mapping[str, Any]) -> list[pathlib.Path]:
  """Draws the studies of best-of-n that are of one config; their figures.

  Args:
    paper: directory of the configs.
    named: of `configs`.
    planned: the config of each directory of results.
  """
  parts: dict[str, list[across.Study]] = {}
  for name, config in planned.items():
    if config['study'] == 'best_of_n':
      rows = redraw.table(paper / 'results' / name / 'results.csv')
      parts.setdefault(_stem(named[name]), []).append(
          across.Study(config, rows))
  drawn = []
  for stem, studies in parts.items():
    if len(studies) > 1 and across.differing(studies):
      path = paper / 'results' / stem / 'best_of_n.png'
      title = studies[0].config['title'].partition(': ')[0]
      across.draw(studies, path, title=f'{title}: best-of-n')
      drawn.append(path)
  return drawn
