"""The tools that disturb studies notice what they are for."""

import functools
import itertools
import pathlib
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest

from rlhf_jax import errors
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files
from tools import chaos
from tools import damage
from tools import sweep


def draw(context, *, seed):
  for name in 'ab':
    files.save_arrays(context.directory / f'{name}.npz',
                      x=np.arange(3) + seed + ord(name))
  files.write_jsonl(context.directory / 'metrics.jsonl', [
      {'step': i, 'time': i, 'loss': seed + i} for i in range(3)])
  (context.directory / 'model.json').write_text(f'{{"seed": {seed}}}')
  return {'x': seed, 'tokens_per_second': seed}


def study(workdir: pathlib.Path, seed: int) -> pathlib.Path:
  run_lib.run_study(
      [run_lib.Stage(f'seed_{seed}/draw', functools.partial(draw, seed=seed))],
      workdir, config={'study': 'x', 'seeds': [seed]})
  return workdir


CLOCK = itertools.count()


def report(context, *, gold):
  (context.directory / 'results.csv').write_text(
      f'run,time,gold\none,{next(CLOCK)},{gold}\n')
  return {'figure': str(context.directory / 'figure.png')}


def test_where_and_when_are_no_difference(tmp_path):
  def contents(name, gold):
    run_lib.run_study(
        [run_lib.Stage('report', functools.partial(report, gold=gold))],
        tmp_path / name, config={'study': 'x'})
    return damage.contents(tmp_path / name)
  one = contents('a', 1)
  assert damage.differences(contents('b', 1), one) == []
  assert 'report/results.csv' in damage.differences(contents('c', 2), one)


@pytest.fixture(name='pair')
def _pair(tmp_path):
  return study(tmp_path / 'a', 0), study(tmp_path / 'b', 1)


def test_no_damage_is_believed(pair):
  counts = sweep.run(*pair, seed=0, flips=8)
  assert set(counts) == set(damage.KINDS)
  # config.json, result.json, two arrays, metrics and model, in every way.
  assert sum(x.total() for x in counts.values()) == 6 * (5 + 8)
  for kind, outcomes in counts.items():
    assert not outcomes['silent'], kind
    assert outcomes['refused'] + outcomes['again'] > 3, kind
  assert damage.differences(*map(damage.contents, (pair[0], pair[0]))) == []


def test_what_is_believed_is_printed(pair, monkeypatch, capsys):
  """A reader that looks at nothing but the result."""
  monkeypatch.setattr(workdirs, 'read_intact', workdirs.read_record)
  monkeypatch.setattr(sweep, 'read', lambda workdir, path, config: (
      path.exists() and path.read_bytes()))
  counts = sweep.run(*pair, seed=0, flips=1)
  assert counts['flip']['silent'] == 6
  assert 'SILENT flip     seed_0/draw/a.npz' in capsys.readouterr().out


def test_contents_are_those_of_no_clock(pair, tmp_path):
  ours = damage.contents(pair[0])
  again = study(tmp_path / 'c', 0)
  path = again / 'seed_0/draw/metrics.jsonl'
  assert damage.differences(ours, damage.contents(again)) == []
  record = workdirs.read_record(path.parent)
  path.write_text(path.read_text().replace('"time": 1', '"time": 7'))
  workdirs.write_record(path.parent, record)
  assert damage.differences(ours, damage.contents(again)) == []
  path.write_text(path.read_text().replace('"loss": 1', '"loss": 7'))
  with pytest.raises(errors.CheckpointError, match='not as the stage left it'):
    damage.contents(again)
  workdirs.write_record(path.parent, record)
  assert damage.differences(ours, damage.contents(again)) == [
      'seed_0/draw/metrics.jsonl']


@pytest.mark.parametrize('line, expected', [
    ('CONFIG: x was made from another y; choose another --workdir, or '
     '--redo=seed_0/sft makes it again', (['--redo=seed_0/sft'], None)),
    ('CHECKPOINT: 4 is damaged (x); make it again with --redo=sft',
     (['--redo=sft'], None)),
    ('CHECKPOINT: /w/config.json is damaged, or was edited; delete it and '
     'give the command', ([], pathlib.Path('/w/config.json'))),
    ('CHECKPOINT: /w/log.txt is a link, which is not followed; remove it',
     ([], pathlib.Path('/w/log.txt'))),
    ('CONFIG: no', None)])
def test_the_way_on(line, expected):
  assert chaos.way_on(chaos.End(4, f'noise\nrlhf_jax: {line}\n')) == expected


@pytest.fixture(autouse=True)
def _unforked(monkeypatch):
  """A study is read in the process of the test."""
  monkeypatch.setattr(chaos, 'contents', damage.contents)


class Scripted(chaos.Chaos):
  """Commands that need no process: they do what they are told and end."""

  def __init__(self, folder, ends):
    super().__init__(folder, [], seed=3)
    self._ends, self.flags = list(ends), []

  def run(self, name, *more, **kwargs):
    self.flags.append(more)
    end = self._ends.pop(0)
    if end.code == 0:
      shutil.copytree(self.folder / 'peace', self.folder / name,
                      dirs_exist_ok=True)
      if end.output:
        workdirs.write_record(self.folder / name / 'seed_0/draw', {
            'result': {'x': end.output}, 'seconds': 1})
    return type('', (), {'end': lambda self, **kwargs: end})()


def scripted(folder, *ends):
  study(folder / 'peace', 0)
  study(folder / 'other', 1)
  actual = Scripted(folder, [chaos.End(*end) for end in ends])
  actual._reference = damage.contents(folder / 'peace')
  (folder / 'x').mkdir()
  return actual


def test_a_round_ends_where_the_study_does(tmp_path):
  actual = scripted(
      tmp_path, (-9, ''), (75, ''), (4, 'rlhf_jax: x; --redo=draw'), (0, ''))
  actual.round('x')
  assert actual.divergences == []
  assert actual.flags[-1] in ((), ('--redo=draw',))
  assert actual.events.total() >= 3
  assert not (tmp_path / 'x').exists()


@pytest.mark.parametrize('ends, what', [
    ([(0, 'another')], 'another end: seed_0/draw/result.json'),
    ([(1, 'Traceback')], 'ended with 1'), ([(-11, '')], 'ended with -11'),
    ([(2, 'rlhf_jax: CONFIG: no')] * 9, 'no way on: rlhf_jax: CONFIG: no')])
def test_divergences_are_seen_and_kept(tmp_path, ends, what):
  actual = scripted(tmp_path, *ends)
  actual.rng = random.Random(0)  # whose first event is no full disk
  actual.round('x')
  (line,) = actual.divergences
  assert what in line
  assert (tmp_path / 'divergence_1/output.txt').exists()


FORKS = """
import functools, pathlib, signal, sys
from tools import chaos
command = lambda *words: chaos.Command(functools.partial(
    chaos.front_door, ['rlhf-jax', *words]))
end = command('run', '--nothing').end()
print(end.code, end.line)
print(command('list').end(number=signal.SIGKILL).code)
print(*chaos.contents(pathlib.Path(sys.argv[1])))
"""


def test_a_process_is_told_apart(tmp_path):
  """A mistake, one that a signal has ended, and one that reads a study."""
  done = subprocess.run(
      [sys.executable, '-c', FORKS, study(tmp_path, 0)], cwd=chaos.ROOT,
      capture_output=True, text=True, timeout=300)
  refused, killed, names = done.stdout.splitlines()
  assert refused.startswith('2 rlhf_jax: CONFIG: Unknown'), done.stderr
  assert killed == '-9'
  assert 'seed_0/draw/a.npz' in names.split()
