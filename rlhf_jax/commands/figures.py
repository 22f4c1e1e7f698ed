"""Draws the figures of the experiments again, from the results beside them.

  rlhf-jax figures [word ...] [--directory=experiments]

Words select those whose path has all of them. Nothing is run: the numbers are
those of results.csv, the title and the kind of figure those of the config.
"""

import pathlib
import re

from absl import flags

from rlhf_jax.commands import arguments
from rlhf_jax.commands import config_files
from rlhf_jax.commands import verdicts
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
    for path in sorted(paper.glob('results/*/figure.png')):
      if not all(word in str(path) for word in words):
        continue
      name = path.parent.name
      config = named.get(name) and config_files.parse(
          flags.FlagValues(), [argv[0], f'--config={named[name]}'], __doc__)
      if config and redraw.draw(path.parent, config):
        print(path)
      else:
        reason = ('results.csv does not hold what it shows' if config else
                  f'no config or contrast is of {name}')
        arguments.progress(f'{path} is left as it is: {reason}')
