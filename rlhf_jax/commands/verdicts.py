"""Writes what the results of the experiments say of the papers' claims.

  rlhf-jax verdicts [--directory=experiments]

From `contrasts.jsonl` of each paper, whose lines are `Contrast`s of
`rlhf_jax.reports.verdicts`, and from its results: `verdicts.csv` beside them,
the table of all of them in README.md of the directory, and how often each word
stands in it in README.md above, between marks, in brackets of contrasts that
were fixed beforehand.
"""

import csv
import io
import itertools
import pathlib

from absl import flags
import numpy as np
from scipy import stats

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.reports import contrasts
from rlhf_jax.reports import pages
from rlhf_jax.reports import verdicts
from rlhf_jax.storage import files

CONTRASTS, VERDICTS, PAGE = 'contrasts.jsonl', 'verdicts.csv', 'README.md'
_HEAD = '''# What the papers claim, and what the results here say

Written by `rlhf-jax verdicts`; nothing in it is typed. "A less B" is A minus B,
by seed. A word comes from the 95 % interval of Student's t over seeds, by the
rule of [`rlhf_jax/reports/verdicts.py`](../rlhf_jax/reports/verdicts.py):

- *holds*: the interval lies wholly on the paper's side, whatever the size.
- *excluded*: the paper's direction lies outside of it, or, where the contrast
  has the paper's number, that number does; the interval may then contain 0.
- *equivalent within* a margin, where the paper says that two are alike; *no
  effect beyond* it, where it says that they differ.
- *unresolved*: none of these. "n seeds would do": with n in all the interval
  would be narrow enough, if mean and deviation stayed as they are. About every
  second time other seeds would be too few, and three know neither well.
- *not comparable*: at equal KL, fewer than three seeds, or no more than half,
  have an evaluation in the range. "By the k of n seeds that are there": some
  have none, which depends on how fast a run moves, so the k are no random ones.

Contrasts that were fixed beforehand say so; all others are exploratory, written
down after their seeds had run, their margins too. With three seeds t asks for
4.3 standard errors: most of what is unresolved is so for want of seeds. Nothing
is corrected for the number of claims: were none true, one in forty would hold
by chance. The column `p` of each verdicts.csv, one-sided, lets you correct; the
project's README says how many then still hold. Results are of small worlds on
two CPU cores, in the units of each paper's own page. Figures that were never
run stand there as "not yet run".
'''
_WORDS = ('holds', 'equivalent', 'no effect', 'excluded', 'unresolved',
          'not comparable', 'not yet run')
_FIXED = 'confirmatory'
_RATE = .025  # one-sided, as the intervals are on the paper's side


def papers(root: pathlib.Path) -> list[pathlib.Path]:
  """Directories of the papers that have contrasts; DataError for none."""
  paths = sorted(path.parent for path in root.glob(f'*/{CONTRASTS}'))
  if not paths:
    raise errors.DataError(
        f'--directory={root}: there is no */{CONTRASTS} in it; experiments '
        'stand in the repository, not in the package: clone it')
  return paths


def rows(paper: pathlib.Path) -> list[dict]:
  """The lines of a paper's verdicts.csv.

  Raises:
    UserError: a contrast is malformed, or its results are not there.
  """
  return [verdicts.row(contrasts.Contrast(**line), paper / 'results')
          for line in files.read_jsonl(paper / CONTRASTS)]


def texts(root: pathlib.Path) -> dict[pathlib.Path, str]:
  """What every file that is written is to hold."""
  page, contents = [_HEAD], {}
  lines_of = {paper: rows(paper) for paper in papers(root)}
  for paper, lines in lines_of.items():
    stream = io.StringIO()
    writer = csv.DictWriter(stream, lines[0], lineterminator='\n')
    writer.writeheader()
    writer.writerows(lines)
    contents[paper / VERDICTS] = stream.getvalue()
    title = (paper / PAGE).read_text().partition('\n')[0].lstrip('# ')
    page.append(f'\n## [{title}]({paper.name}/README.md)\n\n'
                '| claim | paper | ours, with 95 % interval | seeds | word |\n'
                '|---|---|---|---|---|\n')
    page += [f'| {_cell(line["claim"])} | {_cell(line["paper"])} | '
             f'{_cell(_ours(line))} | {line["seeds"]} | {line["word"]}'
             f'{_kind(line)} |\n'
             for line in lines]
  contents[root / PAGE] = ''.join(page)
  contents[root.parent / PAGE] = _summary(root, lines_of)
  return contents


def _summary(root: pathlib.Path,
             lines_of: dict[pathlib.Path, list[dict]]) -> str:
  """The README of the project: how often each word stands, what is excluded."""
  titles, words, excluded = {}, {}, []
  for paper, verdict in lines_of.items():
    titles[paper] = (paper / PAGE).read_text().partition(',')[0].lstrip('# ')
    words[paper] = [
        (next(word for word in _WORDS if line['word'].startswith(word)),
         line['kind'] == _FIXED) for line in verdict]
    excluded += [f'- {titles[paper]}, {line["claim"]} (paper: '
                 f'{line["paper"]}); {_ours(line)}, {line["seeds"]} seeds, '
                 f'{"fixed beforehand" if fixed else "exploratory"}\n'
                 for (word, fixed), line in zip(words[paper], verdict)
                 if word == 'excluded']
  columns = [word for word in _WORDS if any(
      word == other for pairs in words.values() for other, _ in pairs)]
  lines = [f'| paper | claims | {" | ".join(columns)} |\n',
           f'|---|---|{"---|" * len(columns)}\n']
  for paper, pairs in words.items():
    counts = ' | '.join(_count(
        [fixed for other, fixed in pairs if other == word]) for word in columns)
    lines.append(
        f'| [{titles[paper]}]({root.name}/{paper.name}/README.md) | '
        f'{_count([fixed for _, fixed in pairs])} | {counts} |\n')
  lines.append(_corrected([*itertools.chain(*lines_of.values())]))
  if excluded:
    lines += ['\nExcluded, with what was measured and its interval:\n\n',
              *excluded]
  return pages.between(root.parent / PAGE, 'rlhf-jax verdicts', ''.join(lines))


def _corrected(lines: list[dict]) -> str:
  """How many claims hold after a correction for their number."""
  lines = [line for line in lines if line['p']]
  texts = []
  for some in (lines, [x for x in lines if x['kind'] == _FIXED]):
    hold = np.array([line['word'].startswith('holds') for line in some], bool)
    values = np.array([float(line['p']) for line in some])
    left = hold & (stats.false_discovery_control(values) <= _RATE)
    texts.append(f'{left.sum()} of {hold.sum()}')
  return ('\nCorrected for the number of claims, by Benjamini and Hochberg at '
          f'a false discovery rate of {100 * _RATE:g} %, {texts[0]} still '
          'hold; of those that were fixed beforehand, among themselves, '
          f'{texts[1]}.\n')


def _count(fixed: list[bool]) -> str:
  """How many claims, and in brackets how many of them beforehand."""
  return f'{len(fixed)} ({sum(fixed)})' if any(fixed) else str(len(fixed))


def _ours(line: dict) -> str:
  """A contrast and its interval in a cell."""
  if line['mean'] == '':
    return line['contrast'] + ': no run is there' * (
        line['word'] == 'not comparable')
  return (f'{line["contrast"]}: {float(line["mean"]):.2f} '
          f'[{float(line["low"]):.2f}, {float(line["high"]):.2f}]')


def _kind(line: dict) -> str:
  """In brackets, whether a claim was fixed beforehand, and its note."""
  words = ['fixed beforehand'] * (line['kind'] == _FIXED)
  words += [_cell(line['note'])] * bool(line['note'])
  return f' ({"; ".join(words)})' if words else ''


def _cell(text: str) -> str:
  return text.replace('|', '\\|')


def run(argv: list[str]):
  """Parses and writes.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  values = flags.FlagValues()
  flags.DEFINE_string('directory', 'experiments', 'with the experiments',
                      flag_values=values)
  arguments.parse(values, argv, __doc__)
  root = pathlib.Path(values.directory)
  papers(root)  # whose error names the directory as it was typed
  root = root.absolute()
  for path, text in texts(root).items():
    files.write_text(path, text)
    print(path)
