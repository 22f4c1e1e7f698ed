"""A study that is killed, stopped and damaged ends as one left alone.

  python tools/chaos.py --minutes=10 --seed=0 [--config=FILE:SIZE]
      [--folder=DIRECTORY]

The study is run once in peace, and once with another seed, whose files are
those that are swapped in. Then, for so many minutes, it is run and disturbed
until it is complete, compared bit for bit, and begun again. Processes are
forked from one that has imported everything, and programs are compiled once,
so that a disturbance costs seconds.

The last line is 'N interruptions, 0 divergences', and the exit code 0 only
then. What counts as a divergence: another end, a traceback, or a refusal that
says no way on. The directory of one is kept.
"""

import argparse
import collections
from collections.abc import Callable
import contextlib
import functools
import json
import math
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from typing import NamedTuple
import warnings

if __name__ == '__main__':
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from rlhf_jax import errors
from tools import damage

ROOT = pathlib.Path(__file__).resolve().parents[1]
SIGNALS = {'kill': signal.SIGKILL, 'term': signal.SIGTERM,
           'interrupt': signal.SIGINT, 'hup': signal.SIGHUP}
FILES = {'corrupt': ('flip', 'truncate', 'empty', 'delete'),
         'swap': ('swap',), 'link': ('link',)}
EVENTS = (*SIGNALS, *FILES, 'disk', 'clock')
REFUSED = (2, 3, 4)  # exit codes: config, data, checkpoint
# Complete, stopped, or killed; other signals kill until a study listens.
ENDED = (0, 75, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP)


class End(NamedTuple):
  """How a command has ended."""

  code: int  # negative: a signal
  output: str

  @property
  def line(self) -> str:
    """Its last word."""
    return (self.output.strip().splitlines() or [''])[-1]


class Command:
  """A process, forked from this one, that does something and ends."""

  def __init__(self, action: Callable[[], int]):
    """It runs.

    Args:
      action: gives the exit code. This process itself must not use jax, whose
        threads would be missing in the next one.
    """
    self._output = bytearray()
    reader, writer = os.pipe()  # to which no limit of files applies
    self._pid = os.fork()
    if not self._pid:
      os.dup2(writer, 1)
      os.dup2(writer, 2)
      _do(action)
    os.close(writer)
    self._thread = threading.Thread(target=self._listen, args=[reader])
    self._thread.start()

  def _listen(self, reader: int):
    while text := os.read(reader, 2**16):
      self._output += text
    os.close(reader)

  def end(self, *, number: int | None = None, delay: float = 0.,
          patience: float = 900.) -> End:
    """Waits, and sends a signal after so many seconds if it runs still.

    What does not end within `patience` of that is killed, with code -99.
    """
    began, sent, code = time.monotonic(), number is None, None
    while code is None:
      done, status = os.waitpid(self._pid, os.WNOHANG)
      if done:
        code = os.waitstatus_to_exitcode(status)
      elif not sent and time.monotonic() - began > delay:
        os.kill(self._pid, number)
        sent = True
      elif time.monotonic() - began > delay + patience:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        code = -99
      else:
        time.sleep(.01)
    self._thread.join()
    return End(code, self._output.decode(errors='replace'))


def _do(action: Callable[[], int]):
  """Of a forked process, which ends with it."""
  code = 1
  try:
    code = action()
  except SystemExit as end:
    code = end.code or 0
  except BaseException:
    traceback.print_exc()
  with contextlib.suppress(OSError):
    sys.stdout.flush()
  os._exit(code)


def front_door(argv: list[str], most: int | None = None,
               clock: random.Random | None = None) -> int:
  """A command, as it is typed.

  Args:
    argv: name of the program, command and flags.
    most: bytes of a file, as if the disk were full.
    clock: says how the time of day jumps; None: it does not.
  """
  if most is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
  if clock is not None:
    now = time.time
    time.time = lambda: now() + clock.uniform(-1e6, 1e6)
  from rlhf_jax import main

  sys.argv = argv
  main.main()
  return 0


def _tell(workdir: pathlib.Path) -> int:
  """Prints what a study has made, or what is wrong with it."""
  try:
    print(json.dumps(damage.contents(workdir)))
    return 0
  except errors.UserError as error:
    print(str(error))
    return error.exit_code


def contents(workdir: pathlib.Path) -> dict:
  """`damage.contents`; CheckpointError where a file is damaged."""
  end = Command(functools.partial(_tell, workdir)).end()
  if end.code in REFUSED:
    raise errors.CheckpointError(end.line)
  if end.code:
    raise RuntimeError(end.output)
  return json.loads(end.line)


def way_on(end: End) -> tuple[list[str], pathlib.Path | None] | None:
  """What a refusal asks for: flags, or a file that is to go; None: nothing."""
  if again := re.search(r'--redo=([^\s,;]+)', end.line):
    return [f'--redo={again[1]}'], None
  if path := re.search(
      r'(/\S+) (?:is damaged, or was edited; delete it|is a link)', end.line):
    return [], pathlib.Path(path[1])
  return None


class Chaos:
  """One study, disturbed."""

  def __init__(self, folder: pathlib.Path, argv: list[str], seed: int):
    """Nothing runs yet.

    Args:
      folder: for workdirs.
      argv: of the command, without its workdir and its seeds.
      seed: of all that is drawn.
    """
    self.folder, self._argv = folder, argv
    self.rng = random.Random(seed)
    self.events, self.divergences = collections.Counter(), []
    self._seconds, self._reference = 0., {}

  def run(self, name: str, *more: str, seeds: str = '(0,)', **kwargs
          ) -> Command:
    return Command(functools.partial(front_door, [
        *self._argv, f'--workdir={self.folder / name}',
        f'--config.seeds={seeds}', *more], **kwargs))

  def peace(self):
    """The two studies that nobody disturbs, and the first again."""
    for name, seeds in (
        ('peace', '(0,)'), ('other', '(1,)'), ('again', '(0,)')):
      began = time.monotonic()
      end = self.run(name, seeds=seeds).end(patience=3600)
      if end.code:
        raise RuntimeError(f'the undisturbed study failed: {end.output}')
      self._seconds = time.monotonic() - began
      print(f'{name}: {self._seconds:.0f} s', flush=True)
    self._reference = contents(self.folder / 'peace')
    self.compare('again')

  def diverge(self, name: str, what: str, output: str = ''):
    """Keeps what has gone wrong."""
    self.divergences.append(what)
    kept = self.folder / f'divergence_{len(self.divergences)}'
    kept.mkdir()
    if (self.folder / name).exists():
      shutil.copytree(self.folder / name, kept, symlinks=True,
                      dirs_exist_ok=True)
    (kept / 'output.txt').write_text(output)
    print(f'DIVERGENCE ({kept}): {what}', flush=True)

  def compare(self, name: str):
    """Of a study that is complete; UserError where a file is damaged."""
    names = damage.differences(
        contents(self.folder / name), self._reference)
    if names:
      self.diverge(name, f'another end: {", ".join(names[:5])}')

  def harm(self, name: str, event: str) -> str:
    """Damages a file, if there is one; says which."""
    workdir, peace = self.folder / name, self.folder / 'peace'
    paths = [*damage.paths(workdir)] if workdir.exists() else []
    if not paths:
      return ''
    path = self.rng.choice(paths)
    kind, place = self.rng.choice(FILES[event]), path.relative_to(workdir)
    damage.damage(path, kind, self.rng, damage.twin(
        peace / place, peace, self.folder / 'other'))
    return f'{kind} {place}'

  def disturb(self, name: str) -> bool:
    """One event; whether the study says that it is complete."""
    event, kwargs, what = self.rng.choice(EVENTS), {}, ''
    if event in FILES:
      what = self.harm(name, event)
      event = event if what else 'kill'  # there is no file yet
    elif event == 'disk':
      kwargs['most'] = int(2 ** self.rng.uniform(8, 17))
    elif event == 'clock':
      kwargs['clock'] = random.Random(self.rng.random())
    number = SIGNALS.get(event)
    if number is None and self.rng.random() < .5:
      number = signal.SIGKILL  # so that a study is not complete at once
    delay = self.rng.uniform(0, .6 * self._seconds)
    end = self.run(name, **kwargs).end(number=number, delay=delay)
    # A signal that has come too late is no interruption.
    self.events[event] += event not in SIGNALS or end.code != 0
    self.events['kill'] += event not in SIGNALS and end.code == -9
    print(f'{event:<10} {what or "-"} {delay:.1f} s: {end.code} '
          f'{end.line[:160] if end.code in REFUSED else ""}', flush=True)
    return self.judge(name, end, event)

  def judge(self, name: str, end: End, event: str) -> bool:
    """Whether the study is complete, after what a refusal asks for."""
    for _ in range(9):  # of one file after the other
      if end.code in ENDED and 'Traceback' not in end.output:
        return end.code == 0
      if 'Traceback' in end.output or end.code not in REFUSED:
        self.diverge(name, f'{event} ended with {end.code}: {end.line}',
                     end.output)
        return False
      if event == 'disk':  # which is not full any more
        return False
      way = way_on(end)
      if way is None:
        break
      flags, path = way
      if path is not None:
        path.unlink(missing_ok=True)
      end = self.run(name, *flags).end()
    self.diverge(name, f'{event}: no way on: {end.line}', end.output)
    return False

  def round(self, name: str, until: float = math.inf):
    """One study from its beginning to its end, or to its divergence.

    Args:
      name: of its workdir.
      until: of `time.monotonic`; from then on it is left alone.
    """
    before, complete = len(self.divergences), False
    while not complete:
      complete = (self.disturb(name) if time.monotonic() < until else
                  self.judge(name, self.run(name).end(), 'the end'))
      if len(self.divergences) > before:
        return
    for _ in range(9):
      try:
        self.compare(name)
        break
      except errors.UserError as error:  # nothing has read that file since
        stage = re.search(r'(seed_\d+/\S+)/[^/]+/\d+: ', str(error))
        flags = [f'--redo={stage[1]}'] if stage else []
      self.judge(name, self.run(name, *flags).end(), 'settling')
    else:
      self.diverge(name, 'it cannot be compared')
    shutil.rmtree(self.folder / name, ignore_errors=True)


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--minutes', type=float, default=2.)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--config', default='tests/configs/chaos.py:smoke')
  parser.add_argument('--folder', type=pathlib.Path)
  known, more = parser.parse_known_args(argv)
  folder = known.folder or pathlib.Path(tempfile.mkdtemp(prefix='chaos_'))
  folder.mkdir(parents=True, exist_ok=True)
  os.environ |= {
      'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '0'}
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(folder / 'programs'))
  os.chdir(ROOT)
  # Of jax, which is not yet used when a process is forked.
  warnings.filterwarnings('ignore', 'os.fork', RuntimeWarning)
  import rlhf_jax.commands.run
  import rlhf_jax.runner.run
  import rlhf_jax.studies.plan  # noqa: F401 - for the processes to be forked

  chaos = Chaos(folder, ['rlhf-jax', 'run', f'--config={known.config}', *more],
                known.seed)
  chaos.peace()
  until, number = time.monotonic() + 60 * known.minutes, 0
  while time.monotonic() < until:
    chaos.round(f'round_{number}', until)
    number += 1
  print(', '.join(f'{count} {event}'
                  for event, count in sorted(chaos.events.items())))
  print(f'{number} studies')
  if not chaos.divergences and known.folder is None:
    shutil.rmtree(folder, ignore_errors=True)
  print(f'{chaos.events.total()} interruptions, '
        f'{len(chaos.divergences)} divergences')
  return int(bool(chaos.divergences))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
