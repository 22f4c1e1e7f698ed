"""Faults that the tests must notice: python tests/mutants.py [word ...]

Each is a small change of the package: a sign, a detach, a mask, an off-by-one,
a sum for a mean, an order, an argument that is not passed on. They stand in
`faults/`, one a paragraph:

  prompt_advantages
  -scores - values[:, None]
  +scores + values[:, None]

which is a symbol, the text that is taken out, and the text that is put in its
place, all of them once. A symbol is a function, a class, a method, a constant
or a module, by as much of the end of its dotted name as no other symbol of the
package has; so code may move without a change here. The text stands once in
the symbol, decorators included.

In a copy of the repository the change is made and the tests of that module are
run; where they do not notice, the laws or whole rollouts. What the first test
that fails says is printed. A mutant that no test notices has survived, and the
exit code is 1; it is 2 if the tests fail without any. Words select the mutants
whose symbol, path or text contains one of them, or whose file in `faults/` has
that name: `wiring`. With `--check` nothing is run: what names no symbol, or no
text of it, is printed, and the exit code is 1. `mutants_test.py` checks the
same.
"""

import argparse
import ast
import collections
from collections.abc import Iterable, Iterator, Sequence
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'rlhf_jax'
FAULTS = ROOT / 'tests' / 'faults'
COPIED = ('rlhf_jax', 'tests', 'experiments')  # and setup.cfg
# Imported once, in the process that all others are forked from.
PRELOADED = ['chex', 'flax', 'hypothesis', 'jax', 'optax', 'pytest', 'scipy']
# Modules without a test file of their name, and those that are about them.
TESTS = {
    'commands/evaluate': ('commands/commands',),
    'commands/models': ('commands/commands',),
    'commands/score': ('commands/commands',),
    'configs/choices': ('configs/training',),
    'configs/templates': ('configs/fields',),
    'configs/texts': ('configs/training',),
    'data/chats': ('data/kinds',),
    'data/common_kinds': ('data/kinds',),
    'data/hub': ('data/tables',),
    'data/task_reviews': ('data/tasks',),
    'doctor/models': ('doctor/doctor',),
    'doctor/rewards': ('doctor/doctor',),
    'doctor/texts': ('doctor/doctor',),
    'pipeline/reward_directory': ('commands/commands',),
    'reports/page_claims': ('reports/page',),
    'reports/page_figures': ('reports/page',),
    'reports/page_samples': ('reports/page',),
    'reports/page_study': ('reports/page',),
    'runner/context': ('runner/run', 'runner/trust'),
    'runner/stop': ('runner/run',),
    'runner/voice': ('runner/run',),
    'stages/loaded_rewards': ('stages/preferences', 'stages/features'),
    'models/cached': ('sampling',),
    'studies/estimates': ('studies/memory',),
    'studies/labels': ('stages/feedback', 'configs/training'),
    'studies/footprints': ('studies/memory',),
    'studies/offline_checks': ('studies/offline',),
    'studies/programs': ('studies/memory', 'parallel/devices'),
    'studies/run_checks': ('studies/online', 'studies/offline'),
}
# What counts the work of a device.
DEVICES = ('parallel/sharding', 'train')
# What is run last, by package: laws, or whole rollouts.
LAST = {
    **dict.fromkeys(('ops', 'objectives'), 'tests/estimators_test.py'),
    **dict.fromkeys(('', 'annotators', 'parallel', 'pipeline', 'rewards',
                     'stages', 'studies'), 'tests/wiring'),
}
Run = tuple[str, ...]  # arguments of pytest
WIDTH = 240  # characters of what a failing test said


class Mutant(NamedTuple):
  symbol: str
  old: str
  new: str

  def __str__(self):
    return f'{self.symbol}: {self.old.strip()!r} -> {self.new.strip()!r}'


class Symbol(NamedTuple):
  """Lines `start` to `end` - 1 of a file, counted from 0."""
  name: str  # dotted, from the package on
  path: pathlib.Path
  start: int
  end: int


class UnresolvedError(ValueError):
  """A mutant's symbol or text is not there, or there more than once."""


def read(path: pathlib.Path) -> list[Mutant]:
  """The mutants of a file of `faults/`."""
  mutants = []
  for paragraph in path.read_text().strip('\n').split('\n\n'):
    symbol, *lines = paragraph.split('\n')
    signs = ''.join(line[:1] for line in lines)
    num_old = signs.count('-')
    if not num_old or signs != '-' * num_old + '+' * (len(lines) - num_old):
      raise ValueError(
          f'{path.name}: the lines under {symbol!r} must begin with -, at '
          f'least one, then with +; they begin with {signs!r}.')
    mutants.append(Mutant(symbol, '\n'.join(x[1:] for x in lines[:num_old]),
                          '\n'.join(x[1:] for x in lines[num_old:])))
  return mutants


def every(words: Sequence[str] = ()) -> list[Mutant]:
  """All mutants, or those that words select."""
  return [mutant for path in sorted(FAULTS.glob('*.diff'))
          for mutant in read(path) if not words or path.stem in words
          or any(_has(mutant, word) for word in words)]


def _targets(node: ast.AST) -> list[str]:
  """Names that an assignment at the top of a module binds."""
  targets = getattr(node, 'targets', [getattr(node, 'target', None)])
  return [name.id for target in targets if target is not None
          for name in ast.walk(target) if isinstance(name, ast.Name)]


def _below(node: ast.AST, name: str, path: pathlib.Path) -> Iterator[Symbol]:
  """Symbols in the body of a module or class."""
  for child in node.body:
    first = min(x.lineno for x in (
        child, *getattr(child, 'decorator_list', ())))
    if isinstance(child, ast.FunctionDef | ast.ClassDef):
      yield Symbol(f'{name}.{child.name}', path, first - 1, child.end_lineno)
      if isinstance(child, ast.ClassDef):
        yield from _below(child, f'{name}.{child.name}', path)
    elif isinstance(node, ast.Module):
      for target in _targets(child):
        yield Symbol(f'{name}.{target}', path, first - 1, child.end_lineno)


@functools.cache
def symbols(package: pathlib.Path = PACKAGE) -> list[Symbol]:
  """Every module of a package, and what stands in it."""
  out = []
  for path in sorted(package.rglob('*.py')):
    text = path.read_text()
    parts = path.relative_to(package.parent).with_suffix('').parts
    name = '.'.join(x for x in parts if x != '__init__')
    out.append(Symbol(name, path, 0, len(text.splitlines())))
    out.extend(_below(ast.parse(text), name, path))
  return out


@functools.cache
def _by_ending(package: pathlib.Path) -> dict[str, list[Symbol]]:
  """The symbols whose dotted name ends with a key."""
  out = collections.defaultdict(list)
  for symbol in symbols(package):
    parts = symbol.name.split('.')
    for at in range(len(parts)):
      out['.'.join(parts[at:])].append(symbol)
  return dict(out)


def find(name: str, package: pathlib.Path = PACKAGE) -> Symbol:
  """The one symbol whose dotted name is `name` or ends with it.

  Raises:
    UnresolvedError: there is none, or there are several.
  """
  candidates = _by_ending(package).get(name, [])
  if len(candidates) == 1:
    return candidates[0]
  if not candidates:
    raise UnresolvedError(f'{name}: there is no such symbol')
  raise UnresolvedError(
      f'{name} is {", ".join(x.name for x in candidates)}; say which')


def change(mutant: Mutant, package: pathlib.Path = PACKAGE
           ) -> tuple[pathlib.Path, str]:
  """A file, and what its source becomes.

  Raises:
    UnresolvedError: the symbol, or the text in it, is not there once.
  """
  symbol = find(mutant.symbol, package)
  lines = symbol.path.read_text().splitlines(keepends=True)
  body = ''.join(lines[symbol.start:symbol.end])
  count = body.count(mutant.old)
  if count != 1:
    raise UnresolvedError(
        f'{mutant.symbol}: {mutant.old!r} stands {count} times in it')
  return symbol.path, ''.join([
      *lines[:symbol.start], body.replace(mutant.old, mutant.new),
      *lines[symbol.end:]])


def unresolved(mutants: Iterable[Mutant]) -> list[str]:
  """A line about each mutant whose symbol or text is not there once."""
  lines = []
  for mutant in mutants:
    try:
      change(mutant)
    except UnresolvedError as error:
      lines.append(str(error))
  return lines


def module_of(symbol: str) -> str:
  """Where a symbol is: 'ops/kl'."""
  path = find(symbol).path.relative_to(PACKAGE)
  return path.with_suffix('').as_posix()


def tests_of(module: str) -> tuple[str, ...]:
  """The files in tests/ that are about a module: 'ops/kl_test.py'."""
  if (ROOT / 'tests' / f'{module}_test.py').exists():
    return (f'{module}_test.py',)
  return tuple(f'{name}_test.py' for name in TESTS.get(module, ()))


def selections(module: str) -> Iterator[Run]:
  """Arguments of pytest, one run after the other, for a mutant of a module."""
  yield from ((f'tests/{path}',) for path in tests_of(module))
  package, _, stem = module.rpartition('/')
  if package == 'objectives':
    yield 'tests/contract_test.py', '-k', stem
  if module in DEVICES:
    yield ('tests/parallel/devices_test.py',)
  if package in LAST:
    yield (LAST[package],)


class _Listener:
  """A plugin of pytest that keeps what the first failure said."""

  def __init__(self):
    self.message = ''

  def pytest_runtest_logreport(self, report):
    if report.failed and not self.message:
      crash = getattr(report.longrepr, 'reprcrash', None)
      said = crash.message.split() if crash else (
          report.longreprtext.splitlines()[-1].split()[1:])  # E  ImportError
      self.message = f'{report.nodeid}: {" ".join(said)}'[:WIDTH]

  pytest_collectreport = pytest_runtest_logreport  # no import


class Failure(NamedTuple):
  run: Run
  message: str  # 'tests/ops/kl_test.py::Kl::test_k3: AssertionError: ...'


def failure(run: Run) -> Failure | None:
  """The first test that fails; of the repository in the working directory."""
  import pytest
  listener = _Listener()
  code = pytest.main(['-x', '-q', '-p', 'no:cacheprovider', *run],
                     plugins=[listener])
  if code not in (0, 1, 2, 5):  # 2: no import; 5: -k selected nothing
    raise RuntimeError(f'pytest ended with {code} on {" ".join(run)}.')
  return Failure(run, listener.message) if code in (1, 2) else None


def noticed(mutant: Mutant | None, runs: list[Run]) -> Failure | None:
  """The first failure after a change, if any; in its own process."""
  with tempfile.TemporaryDirectory() as directory:
    shutil.copy(ROOT / 'setup.cfg', directory)
    for name in COPIED:
      shutil.copytree(ROOT / name, pathlib.Path(directory, name),
                      ignore=shutil.ignore_patterns('*.png'))
    if mutant is not None:
      path, source = change(mutant)
      pathlib.Path(directory, path.relative_to(ROOT)).write_text(source)
    os.chdir(directory)
    # Studies that tests share must not outlive the change.
    os.environ['RLHF_JAX_TEST_WORLDS'] = str(pathlib.Path(directory, 'worlds'))
    sys.path[:] = [directory] + [
        x for x in sys.path if x not in (str(ROOT), str(ROOT / 'tests'))]
    with open(os.devnull, 'w') as null:
      os.dup2(null.fileno(), 1)
    return next(filter(None, map(failure, runs)), None)


def _fail_alone(pool: concurrent.futures.Executor, runs: Iterable[Run]) -> bool:
  """Whether a run fails without a change: it would notice everything."""
  runs = list(dict.fromkeys(runs))
  for failed in pool.map(
      noticed, [None] * len(runs), ([run] for run in runs)):
    if failed:
      print(f'{" ".join(failed.run)} fails as it is: {failed.message}')
      pool.shutdown(cancel_futures=True)
      return True
  return False


def run_all(mutants: list[Mutant]) -> int:
  """Prints what becomes of each; returns the exit code."""
  runs = [list(selections(module_of(mutant.symbol))) for mutant in mutants]
  context = multiprocessing.get_context('forkserver')
  context.set_forkserver_preload(PRELOADED)
  began, killers = time.monotonic(), []  # a run, or None, of each
  with concurrent.futures.ProcessPoolExecutor(
      os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
    if _fail_alone(pool, (first for first, *_ in runs)):
      return 2
    for mutant, killer in zip(mutants, pool.map(noticed, mutants, runs)):
      killers.append(killer and killer.run)
      print(f'{"killed  " if killer else "SURVIVED"} {mutant}')
      if killer:
        print(f'         by {killer.message}')
      sys.stdout.flush()
    alone = {first for first, *_ in runs} | {None}
    if _fail_alone(pool, (run for run in killers if run not in alone)):
      return 2
  survivors = killers.count(None)
  print(f'{len(mutants) - survivors} of {len(mutants)} mutants killed in '
        f'{time.monotonic() - began:.0f} s')
  return 1 if survivors else 0


def _has(mutant: Mutant, word: str) -> bool:
  """Whether a word is in its symbol, its text or its module's path."""
  try:
    module = module_of(mutant.symbol)
  except UnresolvedError:
    module = ''
  return any(word in part for part in (*mutant, module))


def main(arguments: list[str]) -> int:
  parser = argparse.ArgumentParser(
      prog='tests/mutants.py', description=__doc__.partition(':')[0] + '.')
  parser.add_argument('--check', action='store_true', help=(
      'run nothing, but say what names no symbol or no text of it'))
  parser.add_argument('words', nargs='*', metavar='word', help=(
      'of the symbol, path or text of the mutants, or a file of faults/; '
      'otherwise all of them'))
  options = parser.parse_args(arguments)
  mutants = every(options.words)
  if not mutants:
    print(f'no mutant has {" or ".join(options.words)} in symbol, path, text '
          'or file')
    return 2
  lines = unresolved(mutants)
  for line in lines:
    print(line)
  if options.check or lines:
    print(f'{len(mutants) - len(lines)} of {len(mutants)} mutants resolve')
    return 1 if lines else 0
  return run_all(mutants)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
