"""Tests for rlhf_jax.runner.trust: files are believed by what made them.

The faults of the real world, on studies without jax: `draw` saves what it goes
on from, `add` reads it.
"""

import functools
import json
import shutil

import numpy as np
import pytest

from rlhf_jax import errors
from rlhf_jax.runner import code
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

RUNS, FAILS = [], set()


def draw(context, *, seed, training=None):
  RUNS.append('draw')
  (context.directory / 'shards').mkdir(exist_ok=True)
  for i in range(3):
    path = context.directory / 'shards' / f'{i}.npz'
    if not path.exists():
      files.save_arrays(path, x=np.arange(3) + seed)
      RUNS.append(f'shard {i}')
    if f'shard {i}' in FAILS:
      raise errors.RewardError('failed')
  files.write_json(context.directory / 'notes.json', {'seed': seed})
  return {'seed': seed}


def add(context, *, base, more=0):
  RUNS.append('add')
  if 'add' in FAILS:
    raise errors.RewardError('failed')
  shards = (context.directory_of(base) / 'shards').iterdir()
  total = sum(files.load_arrays(path)['x'].sum() for path in shards)
  files.write_json(context.directory / 'sum.json', {'total': int(total)})
  return {'total': int(total) + more}


def report(context, *, base):
  RUNS.append('report')
  return {'of': context.result_of(base)['total']}


def stages(seed=1, more=0, inputs=None):
  return [
      run_lib.Stage('draw', functools.partial(draw, seed=seed),
                    inputs=inputs or {}),
      run_lib.Stage('add', functools.partial(add, base='draw', more=more)),
      run_lib.Stage('report', functools.partial(report, base='add'),
                    alone=True, quick=True)]


ALL = ['draw', 'shard 0', 'shard 1', 'shard 2', 'add', 'report']


def launch(workdir, plan=None, fails=(), **kwargs):
  """Runs the study; what was run of it."""
  RUNS.clear()
  FAILS.clear()
  FAILS.update(fails)
  run_lib.run_study(plan or stages(), workdir, config={}, **kwargs)
  return list(RUNS)


def interrupt(workdir, where='shard 1', plan=None):
  with pytest.raises(errors.RewardError):
    launch(workdir, plan, fails=[where])


@pytest.fixture
def workdir(tmp_path):
  assert launch(tmp_path / 'study') == ALL
  return tmp_path / 'study'


@pytest.fixture
def edited(monkeypatch):
  """Makes another version of the code of a function, from the call on."""
  of, functions = code.of, []
  monkeypatch.setattr(code, 'of', lambda one, modules: of(one, modules) | (
      {'mine': 'edited'} if one in functions else {}))
  return functions.append


def test_what_is_intact_is_believed(workdir):
  assert launch(workdir) == []
  (workdir / 'draw/.DS_Store').write_text('of somebody else')
  assert launch(workdir) == []


def damage(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize('name', [
    'draw/notes.json', 'draw/shards/1.npz', 'draw/result.json'])
@pytest.mark.parametrize('fault', [damage, lambda path: path.unlink(),
                                   lambda path: path.write_text('')])
def test_a_damaged_stage_is_made_again(workdir, capsys, name, fault):
  before = {path.name: path.read_bytes()
            for path in (workdir / 'draw/shards').iterdir()}
  fault(workdir / name)
  again = launch(workdir)
  if name.endswith('result.json') and not (workdir / '.draw.aside').exists():
    assert again == ALL[:1]  # deleted: it goes on from its shards
    return
  assert again == ALL[:4]
  assert '.draw.aside' in capsys.readouterr().out
  assert {path.name: path.read_bytes()
          for path in (workdir / 'draw/shards').iterdir()} == before
  assert launch(workdir) == []


def test_a_file_in_place_of_a_stage(workdir):
  shutil.rmtree(workdir / 'draw')
  (workdir / 'draw').write_text('mine')
  assert launch(workdir) == ALL[:4]
  assert (workdir / '.draw.aside').read_text() == 'mine'


def test_a_file_that_does_not_belong_there(workdir):
  shutil.copy(workdir / 'draw/shards/0.npz', workdir / 'draw/shards/7.npz')
  assert launch(workdir) == ALL[:4]
  assert files.read_json(workdir / 'add/sum.json') == {'total': 18}


def test_a_reader_does_not_believe_it_either(workdir):
  """Where the stage itself is not looked at."""
  damage(workdir / 'draw/shards/0.npz')
  with pytest.raises(errors.CheckpointError, match=r'shards/0\.npz is not as'):
    launch(workdir, only=['add'], redo=['add'])
  with pytest.raises(errors.CheckpointError, match=r'shards/0\.npz is not as'):
    run_lib.read_result(workdir, 'draw')


def test_a_foreign_stage(workdir, tmp_path):
  """Whole, but of another seed."""
  launch(tmp_path / 'other', stages(seed=2))
  shutil.rmtree(workdir / 'draw')
  shutil.copytree(tmp_path / 'other/draw', workdir / 'draw')
  with pytest.raises(errors.ConfigError, match=(
      'draw was made from another config, or another stage than it would be '
      r'now; choose another --workdir, or --redo=draw makes it again')):
    launch(workdir)
  assert launch(workdir, redo=['draw']) == ALL
  assert run_lib.read_result(workdir, 'report') == {'of': 18}


def test_another_config_though_the_file_is_gone(workdir):
  (workdir / 'config.json').unlink()
  with pytest.raises(errors.ConfigError, match='draw was made from another'):
    launch(workdir, stages(seed=2))


def test_other_inputs(workdir):
  with pytest.raises(errors.ConfigError, match='from another input path than'):
    launch(workdir, stages(inputs={'path': 'ab'}))


def test_edited_code_is_refused_until_somebody_says(workdir, edited, capsys):
  edited(draw)
  with pytest.raises(errors.ConfigError, match=(
      r'draw was made by other code \(mine\); --accept_code_change keeps it, '
      r'--redo=draw makes it again, with all that is made from it')):
    launch(workdir)
  assert launch(workdir, accept_code_change=True) == ['report']
  assert 'kept, though made by other code (mine)' in capsys.readouterr().out
  record = workdirs.read_record(workdir / 'draw')
  assert record['code']['mine'] == 'edited'
  assert 'accepted' in record
  assert launch(workdir) == []  # and need not be told again
  edited(add)
  assert launch(workdir, redo=['add']) == ['add', 'report']
  assert 'accepted' not in workdirs.read_record(workdir / 'add')


def test_a_report_is_made_again_without_a_word(workdir, edited):
  edited(report)
  assert launch(workdir) == ['report']


def test_redo(workdir):
  assert launch(workdir, redo=['ad*']) == ['add', 'report']
  with pytest.raises(errors.ConfigError, match="no stage matches 'dd'"):
    launch(workdir, redo=['dd'])


class TestInterrupted:

  def test_goes_on(self, tmp_path):
    interrupt(tmp_path)
    assert launch(tmp_path) == ['draw', 'shard 2', 'add', 'report']
    assert not (tmp_path / 'draw/begun.json').exists()

  def test_by_other_code(self, tmp_path, edited):
    interrupt(tmp_path)
    edited(draw)
    with pytest.raises(errors.ConfigError, match=(
        r'draw was begun by other code \(mine\); --accept_code_change')):
      launch(tmp_path)
    assert launch(tmp_path, accept_code_change=True) == [
        'draw', 'shard 2', 'add', 'report']
    record = json.loads((tmp_path / 'draw/result.json').read_text())
    assert record['code']['mine'] == 'edited'
    assert 'accepted' in record

  def test_by_other_code_and_begun_anew(self, tmp_path, edited):
    interrupt(tmp_path)
    edited(draw)
    assert launch(tmp_path, redo=['draw']) == ALL

  def test_with_nothing_to_go_on_from(self, tmp_path, edited):
    """A reward that fails at once is corrected, and the command given again."""
    interrupt(tmp_path, 'add')
    edited(add)
    assert launch(tmp_path) == ['add', 'report']

  def test_files_of_nobody(self, tmp_path):
    (tmp_path / 'draw/shards').mkdir(parents=True)
    files.save_arrays(tmp_path / 'draw/shards/0.npz', x=np.arange(9))
    assert launch(tmp_path) == ALL
    assert (tmp_path / '.draw.aside/shards/0.npz').exists()
