"""Tests for rlhf_jax.runner.reuse: stages that another study has made already.

Two tiny studies without jax: `base` draws numbers, `teacher` adds to them.
"""

import errno
import functools
import json
import os
import shutil

import numpy as np
import pytest

from rlhf_jax import errors
from rlhf_jax.runner import code
from rlhf_jax.runner import context
from rlhf_jax.runner import reuse as reuse_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import stop
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files
from rlhf_jax.storage import metrics

RUNS = []


def draw(context, *, seed, training=None):
  RUNS.append(context.directory.name)
  folder = context.directory / 'checkpoints' / '4'
  folder.mkdir(parents=True, exist_ok=True)
  files.save_arrays(folder / 'leaf.npz', x=np.arange(3) + seed)
  with metrics.MetricsWriter(context.directory / 'metrics.jsonl') as writer:
    writer.write(4, {'loss': seed})
  return {'loss': seed + .5}


def add(context, *, parts, more, training=None):
  RUNS.append(context.directory.name)
  leaves = [files.load_arrays(
      context.directory_of(part) / 'checkpoints/4/leaf.npz')['x']
            for part in parts['drawn']]
  files.save_arrays(context.directory / 'sum.npz', x=sum(leaves) + more)
  return {'sum': int(sum(leaves).sum()) + more}


def other(context, *, seed, training=None):
  return draw(context, seed=seed)


def stage(name, run, inputs=None, **kwargs):
  return run_lib.Stage(name, functools.partial(run, **kwargs),
                       inputs=inputs or {})


def make_stages(base='base', teacher='teacher', *, seed=1, run=draw, **kwargs):
  kwargs = {'training': {'save_every': 4, 'log_every': 1}} | kwargs
  return [stage(base, run, seed=seed, **kwargs),
          stage(teacher, add, parts={'drawn': (base,)}, more=2)]


def launch(workdir, stages, reuse=(), **kwargs):
  """Runs a study; the names of the stages that were run and not reused."""
  RUNS.clear()
  run_lib.run_study(stages, workdir, config={}, reuse=reuse, **kwargs)
  return list(RUNS)


def tree(directory):
  return {str(p.relative_to(directory)): p.read_bytes() if p.is_file() else None
          for p in sorted(directory.rglob('*'))}


@pytest.fixture
def source(tmp_path):
  """A finished study."""
  assert launch(tmp_path / 'source', make_stages()) == ['base', 'teacher']
  return tmp_path / 'source'


def test_by_recipe_and_not_by_name(source, tmp_path, capsys):
  before, workdir = tree(source), tmp_path / 'new'
  shutil.copytree(source, tmp_path / 'copy')
  # At another pace too.
  stages = make_stages('seed_1/teacher', 'seed_1/gold', training=None)
  # The first workdir that has a stage wins.
  assert launch(workdir, stages, [source, tmp_path / 'copy']) == []
  assert capsys.readouterr().out.splitlines()[-2:] == [
      f'{"seed_1/teacher":<38} reused from {source / "base"}',
      f'{"seed_1/gold":<38} reused from {source / "teacher"}']
  assert 'reused from' in (workdir / 'log.txt').read_text()
  for old, new in (('base', 'seed_1/teacher'), ('teacher', 'seed_1/gold')):
    assert tree(workdir / new) == tree(source / old)
  assert run_lib.read_result(workdir, 'seed_1/gold') == {'sum': 8}
  assert tree(source) == before


def test_the_source_may_be_deleted(source, tmp_path):
  """And what was taken over can be taken over again."""
  workdir = tmp_path / 'new'
  launch(workdir, make_stages('b', 't'), [source])
  shutil.rmtree(source)
  assert launch(workdir, make_stages('b', 't')) == []
  more = [*make_stages('b', 't'), stage(
      'sum', add, parts={'drawn': ['b', 'b']}, more=0)]
  assert launch(tmp_path / 'third', more, [workdir]) == ['sum']
  assert run_lib.read_result(tmp_path / 'third', 'sum') == {'sum': 12}


def test_arrays_are_links_and_what_grows_is_a_copy(source, tmp_path):
  workdir = tmp_path / 'new'
  launch(workdir, make_stages(), [source])
  leaf = 'base/checkpoints/4/leaf.npz'
  assert os.path.samefile(source / leaf, workdir / leaf)
  before = tree(source)
  # As a stage does that runs again after its result was deleted.
  with metrics.MetricsWriter(workdir / 'base/metrics.jsonl') as writer:
    writer.truncate(0)
  (workdir / 'base/result.json').write_text('{}')
  draw(context.StageContext(workdir, 'base', stop.StopSignal()), seed=9)
  assert files.load_arrays(workdir / leaf)['x'].tolist() == [9, 10, 11]
  assert tree(source) == before


def test_across_file_systems(source, tmp_path, monkeypatch):

  def link(*unused_args, **unused_kwargs):
    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

  monkeypatch.setattr(os, 'link', link)
  workdir = tmp_path / 'new'
  assert launch(workdir, make_stages(), [source]) == []
  for name in ('base', 'teacher'):
    assert tree(workdir / name) == tree(source / name)
  leaf = 'base/checkpoints/4/leaf.npz'
  assert not os.path.samefile(source / leaf, workdir / leaf)


@pytest.mark.parametrize('change', [
    dict(seed=2), dict(seed=1.), dict(run=other),
    dict(training={'save_every': 4, 'evaluate_every': 2})])
def test_a_change_reaches_what_depends_on_it(source, tmp_path, change):
  assert launch(tmp_path / 'new', make_stages(**change), [source]) == [
      'base', 'teacher']


def test_a_change_leaves_what_does_not_depend_on_it(source, tmp_path):
  stages = [make_stages()[0],
            stage('teacher', add, parts={'drawn': ('base',)}, more=3)]
  assert launch(tmp_path / 'new', stages, [source]) == ['teacher']


def test_other_inputs(source, tmp_path):
  both = ['base', 'teacher']
  of = lambda digest: make_stages(inputs={'path': digest})
  assert launch(tmp_path / 'a', of('ab12'), [source]) == both
  assert launch(tmp_path / 'b', of('cd34'), [source, tmp_path / 'a']) == both
  assert launch(tmp_path / 'c', of('ab12'), [source, tmp_path / 'a']) == []


def test_other_code(source, tmp_path, monkeypatch, capsys):
  """Of what depends on it too, until somebody says that it is the same."""
  of = code.of
  monkeypatch.setattr(code, 'of', lambda function, modules: of(
      function, modules) | {'jax': '99'} if function is draw else of(
          function, modules))
  assert launch(tmp_path / 'new', make_stages(), [source]) == [
      'base', 'teacher']
  said = capsys.readouterr().out
  reason = 'is not reused: it was made by other code (jax '
  assert f'{source / "base"} {reason}' in said
  assert launch(tmp_path / 'kept', make_stages(), [source],
                accept_code_change=True) == []


def _directory(path):
  path.mkdir(parents=True)
  return path


def locate(context):
  RUNS.append(context.directory.name)
  return {'figures': [{'path': str(context.directory / 'figure.png')}]}


def test_a_result_that_holds_an_absolute_path(tmp_path):
  for name in ('source', 'new'):
    stages = [stage('report', locate)]
    assert launch(tmp_path / name, stages, [tmp_path / 'source'][
        :name == 'new']) == ['report']
    actual = run_lib.read_result(tmp_path / name, 'report')
    assert actual['figures'][0]['path'].startswith(str(tmp_path / name))


def test_twice_in_one_workdir(tmp_path):
  stages = [*make_stages('a', 'b'), *make_stages('c', 'd'),
            *make_stages('e', 'f', seed=2)]
  assert launch(tmp_path, stages) == ['a', 'b', 'e', 'f']
  shutil.rmtree(tmp_path / 'c')
  assert launch(tmp_path, stages) == []
  assert tree(tmp_path / 'c') == tree(tmp_path / 'a')


@pytest.mark.parametrize('error', [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
@pytest.mark.parametrize('count', [0, 1, 2])
def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch, error, count):
  workdir, share = tmp_path / 'new', reuse_lib._share
  done = []

  def failing(*args):
    if len(done) == count:
      raise error
    done.append(args)
    share(*args)

  monkeypatch.setattr(reuse_lib, '_share', failing)
  expected = (errors.CheckpointError if isinstance(error, OSError)
              else KeyboardInterrupt)
  with pytest.raises(expected) as caught:
    launch(workdir, make_stages(), [source])
  if expected is errors.CheckpointError:
    assert str(source / 'base') in str(caught.value)
  assert sorted(p.name for p in workdir.iterdir()) == [
      'config.json', 'lock', 'log.txt', 'status.json']
  monkeypatch.undo()
  assert launch(workdir, make_stages(), [source]) == []


def test_what_a_killed_process_leaves_is_removed(source, tmp_path):
  for name, reuse in (('with', [source]), ('without', [])):
    left = _directory(tmp_path / name / '.base.tmp/checkpoints')
    (left / 'half').write_text('half')
    # It is in nobody's way, and nobody takes it.
    workdirs.write_record(left.parent, workdirs.read_record(source / 'base'))
    files.write_json(tmp_path / name / 'config.json',
                     {'layout': workdirs.LAYOUT})
    assert reuse_lib.scan([tmp_path / name]) == {}
    assert launch(tmp_path / name, make_stages(), reuse) == (
        [] if reuse else ['base', 'teacher'])
    assert not (tmp_path / name / '.base.tmp').exists()


def test_it_replaces_what_an_interrupted_run_has_left(source, tmp_path):
  left = _directory(tmp_path / 'new/base/checkpoints/2')
  (left / 'half').write_text('half')
  assert launch(tmp_path / 'new', make_stages(), [source]) == []
  assert tree(tmp_path / 'new/base') == tree(source / 'base')


def test_only_what_is_complete_of_a_running_study(source, tmp_path):
  (source / 'teacher/result.json').unlink()
  with workdirs.locked(source):
    assert launch(tmp_path / 'new', make_stages(), [source]) == ['teacher']


def test_a_linked_folder_is_followed(source, tmp_path):
  """Checkpoints may lie on another disk."""
  (source / 'base/checkpoints').rename(tmp_path / 'disk')
  (source / 'base/checkpoints').symlink_to(tmp_path / 'disk')
  launch(tmp_path / 'new', make_stages(), [source])
  shutil.rmtree(tmp_path / 'disk')
  assert files.load_arrays(tmp_path / 'new/base/checkpoints/4/leaf.npz')


def test_what_cannot_be_read_is_not_left_out(source, tmp_path, monkeypatch):
  scandir = os.scandir

  def failing(path):
    if str(path).endswith('checkpoints'):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', failing)
  with pytest.raises(errors.CheckpointError, match=str(source / 'base')):
    launch(tmp_path / 'new', make_stages(), [source])
  monkeypatch.undo()
  assert not list((tmp_path / 'new').glob('*base*'))


def test_a_damaged_source_is_named(source, tmp_path):
  path = source / 'base/result.json'
  path.write_text(path.read_text().replace('1.5', '1.6'))
  with pytest.raises(errors.CheckpointError, match=str(path)):
    launch(tmp_path / 'new', make_stages(), [source])
  assert not (tmp_path / 'new').exists()


def test_a_study_of_an_older_layout_is_not_taken_over(source, tmp_path):
  config = files.read_json(source / 'config.json')
  assert config.pop('layout') == workdirs.LAYOUT
  files.write_json(source / 'config.json', config)
  before = tree(source)
  with pytest.raises(errors.ConfigError, match='by an older version'):
    launch(tmp_path / 'new', make_stages(), [source])
  assert not (tmp_path / 'new').exists()
  assert tree(source) == before


@pytest.mark.parametrize('name', ['missing', 'empty', 'file'])
def test_no_study_to_reuse(tmp_path, name):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'file').write_text('')
  with pytest.raises(errors.ConfigError) as caught:
    launch(tmp_path / 'new', make_stages(), [tmp_path / name])
  assert f'--reuse={tmp_path / name}: ' in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'new').exists()


def test_the_recipe_is_verified_with_the_result(source):
  path = source / 'base/result.json'
  record = json.loads(path.read_text())
  assert len(record['recipe']) == 64
  path.write_text(json.dumps(record | {'recipe': 64 * '0'}))
  with pytest.raises(errors.CheckpointError, match=str(path)):
    workdirs.read_record(source / 'base')
