"""What stands at the bottom of a terminal, seen by one (pyte)."""

import fcntl
import functools
import io
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time

import pyte
import pytest
from rich import console as console_lib

from rlhf_jax.runner import progress as progress_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import screen
from rlhf_jax.runner import status
from rlhf_jax.runner import workdirs

COLUMNS, LINES = 60, 12


class Terminal:
  """A screen, and what has scrolled away above it."""

  def __init__(self):
    self._screen = pyte.HistoryScreen(COLUMNS, LINES, history=1000)
    # As a terminal does; a descriptor of one does it by itself.
    self._stream = pyte.ByteStream(self._screen)

  def feed(self, data: str | bytes):
    if isinstance(data, str):
      data = data.replace('\n', '\r\n').replace('\r\r', '\r').encode()
    self._stream.feed(data)

  @property
  def rows(self) -> list[str]:
    """From the first one on, without empty ones at the end."""
    above = [''.join(line[x].data for x in range(COLUMNS)).rstrip()
             for line in self._screen.history.top]
    rows = above + [row.rstrip() for row in self._screen.display]
    while rows and not rows[-1]:
      rows.pop()
    return rows

  @property
  def cursor(self) -> tuple[int, int]:
    return self._screen.cursor.x, self._screen.cursor.y


def progress_of(workdir, number, names):
  stages = [run_lib.Stage(name, functools.partial(print)) for name in names]
  progress = progress_lib.Progress(workdir, stages, stages)
  progress.begin(number)
  return progress


def drawn(progress, width=COLUMNS) -> list[str]:
  console = console_lib.Console(file=io.StringIO(), width=width)
  console.print(screen.page(progress))
  rows = console.file.getvalue().splitlines()
  assert all(len(row) <= width for row in rows)
  return [row.rstrip() for row in rows]


def test_the_page_of_a_study(tmp_path):
  names = [f'seed_{seed}/{name}' for seed in (0, 1) for name in (
      'sft', 'gold', 'policies/ppo')]
  for name, seconds in zip(names, (100., 200., 3600.)):
    (tmp_path / name).mkdir(parents=True)
    workdirs.write_record(tmp_path / name, {'result': {}, 'seconds': seconds})
  progress = progress_of(tmp_path, 4, names)
  follow, = progress.followers('metrics')
  follow({'step': 20, 'train/loss': .123456, 'rollout/reward': None,
          'rollout/kl_k1': 2., 'train/skipped': 0.})
  progress.followers('evaluation')[0]({'step': 10, 'gold': -1.5})
  progress.followers('updates')[0]({'step': 20, 'train/loss': 9.})
  progress.start -= 61.5
  with progress.loop(10, 5, 'sft'):
    progress.is_shown = True
    first, study, loop, *rest = drawn(progress)
  assert first == 'seed_1/sft, for 0:01:01'
  assert study.startswith('stage 4 of 6  ━') and study.endswith(
      'about 1:03:58 left')  # 38.5 s of this one, 200 and 3600
  assert loop.startswith('sft ') and loop.endswith(
      '5/10, time left unknown')
  assert rest == ['step 20: loss 0.1235  KL 2',
                  'evaluation at step 10: gold -1.5',
                  'then seed_1/gold, seed_1/policies/ppo']
  assert len(drawn(progress)) == 5  # the loop has ended


def test_a_page_is_no_wider_than_the_terminal(tmp_path):
  names = ['seed_0/' + x * 70 for x in 'abcdef']
  progress = progress_of(tmp_path, 1, names)
  assert 'time left unknown' in drawn(progress)[1]
  for width in (200, 60, 30, 10):
    assert len(drawn(progress, width)) == 3
  assert 'and 2 more' in drawn(progress, 400)[2]


def test_whatever_prints_is_kept_and_the_rows_stay_below():
  """At the top, at the bottom where it scrolls, and within a line."""
  terminal, said = Terminal(), []
  rows = ['one  ' * 12, 'two  ' * 12]  # as wide as the terminal
  for number in range(2 * LINES):
    terminal.feed(screen._below(rows))
    said.append(f'noise {number}')
    assert terminal.rows == [*said[:-1], *[''] * (terminal.rows[
        len(said) - 1] == ''), *(x.rstrip() for x in rows)]
    terminal.feed(f'{said[-1]}\n')
  terminal.feed(screen._below(rows) + 'half')
  terminal.feed(screen._below(rows) + ' a line\r')
  terminal.feed(screen._below(rows) + screen._ERASE)
  assert terminal.rows == said
  terminal.feed('half a bar')
  for _ in range(3):
    terminal.feed(screen._below(rows))
  terminal.feed(screen._ERASE + ' and more\n')
  assert terminal.rows == [*said, 'half a bar and more']


# Two stages; the second counts and never ends. What a library in C prints goes
# to descriptor 2; the size of the terminal is that of the test.
PROGRAM = """
import contextlib, os, sys, time, warnings
from rlhf_jax import errors
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import screen

screen._INTERVAL = .05

def first(context):
  print('printed by a stage')
  return {}

def count(context):
  os.write(2, b'E0000 from C\\n')
  warnings.warn('of Python')
  with context.progress(10**6, 0, 'count') as bar:
    for step in range(10**6):
      bar.update()
      if step == 30:
        print('a table', 'of rows', 'over rows', 'drawn', sep='\\n')
      if 'deaf' not in sys.argv:
        context.stop.check(f'step {step}')
      time.sleep(.01)
  return {}

try:
  run_lib.run_study([run_lib.Stage('first', first),
                     run_lib.Stage('count', count)], sys.argv[1], config={})
except errors.UserError as error:
  with contextlib.suppress(OSError):  # as `main` does
    print(f'rlhf_jax: {error.code}: {error}', file=sys.stderr)
  sys.exit(error.exit_code)
"""


class Run:
  """The program in a terminal, of which it is the foreground."""

  def __init__(self, *arguments, term='xterm-256color', columns=COLUMNS):
    self.terminal = Terminal()
    self._ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ,
                struct.pack('HHHH', LINES, columns, 0, 0))
    self.modes = termios.tcgetattr(theirs)
    self.process = subprocess.Popen(
        ['setsid', '--ctty', sys.executable, '-c', PROGRAM,
         *map(str, arguments)],
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'TERM': term},
        stdin=theirs, stdout=theirs, stderr=theirs)
    self.data, self._theirs = b'', theirs

  def read(self):
    data = os.read(self._ours, 10_000)
    self.terminal.feed(data)
    self.data += data

  def wait_for(self, word):
    while not any(word in row for row in self.terminal.rows):
      self.read()

  def type(self, key):
    os.write(self._ours, key)

  def end(self) -> int:
    """Reads the rest; the exit code."""
    # The program has closed its side when it ends, and we then ours of it.
    reader = threading.Thread(target=self._drain, daemon=True)
    reader.start()
    code = self.process.wait(timeout=60)
    time.sleep(.2)
    assert termios.tcgetattr(self._theirs) == self.modes
    os.close(self._theirs)
    reader.join(10)
    os.close(self._ours)
    return code

  def _drain(self):
    try:
      while True:
        self.read()
    except OSError:  # all have closed it
      pass

  def close(self):
    os.close(self._theirs)
    os.close(self._ours)


SAID = ('printed by a stage', 'first', 'E0000 from C', 'of Python')


def test_ctrl_c_leaves_what_was_said_and_the_error_last(tmp_path):
  run = Run(tmp_path)
  run.wait_for('stage 2 of 2')
  run.wait_for('of Python')
  run.wait_for('over rows')
  while not run.terminal.rows[-1].endswith('left') and (
      not run.terminal.rows[-1].endswith('unknown')):
    run.read()
  bottom = run.terminal.rows[-3:]
  assert bottom[0].startswith('count, for 0:00:')
  assert bottom[2].startswith('count') and '/1000000' in bottom[2]
  run.type(b'\x03')
  assert run.end() == 75
  rows = run.terminal.rows
  text = '\n'.join(rows)
  assert all(word in text for word in SAID)
  assert {'a table', 'of rows', 'over rows', 'drawn'} <= {*rows}
  assert 'stopping after the next save' in text
  last = ''.join(rows[-3:])  # it is wider than the terminal
  assert 'rlhf_jax: INTERRUPTED: saved at step' in last
  assert last.endswith('the same command to go on')
  assert '━' not in text and 'stage 2 of 2' not in text


@pytest.mark.parametrize('number, code', [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_erases_it_too(tmp_path, number, code):
  run = Run(tmp_path, 'deaf')
  run.wait_for('stage 2 of 2')
  run.process.send_signal(number)
  run.wait_for('stopping after the next save')
  run.wait_for('stage 2 of 2')
  run.process.send_signal(number)
  assert run.end() == code
  text = '\n'.join(run.terminal.rows)
  assert 'E0000 from C' in text
  assert '━' not in text and 'stage 2 of 2' not in text


def test_a_terminal_that_is_closed(tmp_path):
  run = Run(tmp_path)
  run.wait_for('stage 2 of 2')
  run.close()
  assert run.process.wait(timeout=60) == 75
  told = status.read(tmp_path)
  assert (told['state'], told['exit_code'], told['stage_number']) == (
      'interrupted', 75, 2)


@pytest.mark.parametrize('kwargs', [{'term': 'dumb'}, {'columns': 0}])
def test_a_terminal_that_cannot_has_lines(tmp_path, kwargs):
  run = Run(tmp_path, **kwargs)
  run.wait_for('count:   0% 0/1000000 [0:00:00<?, ?it/s]')
  run.type(b'\x03')
  assert run.end() == 75
  assert b'\x1b' not in run.data


def test_without_a_terminal_nothing_is_drawn_or_loaded(tmp_path):
  script = ('import sys\nfrom rlhf_jax.runner import run as run_lib\n'
            'run_lib.run_study([run_lib.Stage("a", lambda c: {})], '
            'sys.argv[1], config={})\n'
            'assert "rich.progress_bar" not in sys.modules\n')
  done = subprocess.run([sys.executable, '-c', script, str(tmp_path)],
                        capture_output=True, text=True)
  assert (done.returncode, done.stderr) == (0, '')
  assert '\x1b' not in done.stdout
