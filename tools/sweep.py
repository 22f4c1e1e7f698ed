"""Every file of a finished study, damaged in every way: none is believed.

  python tools/sweep.py --workdir=runs/smoke --other=runs/another_seed
      [--seed=0] [--flips=1] [--most=CASES]

Of both studies, the second with another seed, every file that a study reads
again is damaged in turn (`damage.KINDS`) and read as the next command would.
A case is refused where it raises, made again where the stage no longer counts
as complete, or unharmed where all that is read is what was written. What is
neither is silently wrong; the exit code is 0 where there is none. The
files are put back, each before the next is damaged.
"""

import argparse
import collections
from collections.abc import Iterator
import pathlib
import random
import shutil
import sys
import tempfile
import time

if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from rlhf_jax import errors
from rlhf_jax.commands import launch
from rlhf_jax.commands import studies
from rlhf_jax.runner import workdirs
from tools import damage

Case = tuple[pathlib.Path, str, pathlib.Path | None]


def cases(workdir: pathlib.Path, other: pathlib.Path) -> Iterator[Case]:
  """A file, a kind of damage, and the file of the other study in its place."""
  for path in damage.paths(workdir):
    twin = damage.twin(path, workdir, other)
    for kind in damage.KINDS:
      yield path, kind, twin if kind in ('swap', 'link') else None


def read(workdir: pathlib.Path, path: pathlib.Path, config: dict) -> object:
  """What the next command would read because of a file.

  Args:
    workdir: of the study.
    path: of the file.
    config: what the command says.

  Raises:
    UserError: it is refused.
  """
  if path.parent == workdir:
    workdirs.check_config(workdir, config, launch.SAFE_KEYS)
    return studies.config_of(workdir)
  stage = next(parent for parent in path.parents
               if (parent / workdirs.RESULT).exists()
               or (parent / workdirs.BEGUN).exists()
               or parent == workdir)
  if stage == workdir:
    return None  # its result is gone: it is made again
  record = workdirs.read_intact(stage)
  values = [record]
  for step in damage.steps(stage):
    if step in path.parents:
      values.append(damage.leaves(step))
  return values


def outcome(workdir: pathlib.Path, case: Case, rng: random.Random,
            config: dict, whole: object) -> str:
  """'refused', 'again', 'unharmed', 'same' or 'silent'; all is put back."""
  path, kind, twin = case
  with tempfile.TemporaryDirectory() as folder:
    kept = shutil.copy2(path, folder)
    try:
      if not damage.damage(path, kind, rng, twin):
        return 'same'
      value = read(workdir, path, config)
    except errors.UserError:
      return 'refused'
    finally:
      path.unlink(missing_ok=True)
      shutil.copy2(kept, path)
  if value is None:
    return 'again'
  return 'unharmed' if value == whole else 'silent'


def run(workdir: pathlib.Path, other: pathlib.Path, *, seed: int, flips: int,
        most: int | None = None) -> dict[str, collections.Counter]:
  """Outcomes by kind of damage; what is silently wrong is printed.

  Args:
    workdir: of a finished study, which is changed while this runs.
    other: of one with another seed.
    seed: of the damage.
    flips: bits that are flipped in turn, in each file.
    most: so many cases, drawn from all.
  """
  config = studies.config_of(workdir)
  whole, rng, counts = {}, random.Random(seed), collections.defaultdict(
      collections.Counter)
  every = [case for case in cases(workdir, other)
           for _ in range(flips if case[1] == 'flip' else 1)]
  if most is not None:
    every = rng.sample(every, min(most, len(every)))
  for case in every:
    if case[0] not in whole:  # which takes longer than all else
      whole[case[0]] = read(workdir, case[0], config)
    what = outcome(workdir, case, rng, config, whole[case[0]])
    counts[case[1]][what] += 1
    if what == 'silent':
      print(f'SILENT {case[1]:<8} {case[0].relative_to(workdir)}', flush=True)
  return counts


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  for name in ('workdir', 'other'):
    parser.add_argument(f'--{name}', type=pathlib.Path, required=True)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--flips', type=int, default=1)
  parser.add_argument('--most', type=int)
  known, began = parser.parse_args(argv), time.monotonic()
  counts = run(known.workdir, known.other, seed=known.seed, flips=known.flips,
               most=known.most)
  total = sum(counts.values(), collections.Counter())
  for kind, by_outcome in counts.items():
    print(f'{kind:<9}', '  '.join(
        f'{count} {what}' for what, count in sorted(by_outcome.items())))
  tried = total.total() - total['same']
  print(f'{tried} cases, {total["silent"]} silently wrong '
        f'({time.monotonic() - began:.0f} s)')
  return int(total['silent'] > 0)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
