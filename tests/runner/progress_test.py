"""How far a study is, as status.json and the screen have it."""

import functools
import time

import pytest

from rlhf_jax import errors
from rlhf_jax.runner import bars
from rlhf_jax.runner import progress as progress_lib
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import status
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

NAMES = ('seed_0/sft', 'seed_0/gold', 'seed_1/sft', 'seed_1/gold', 'report')


def study(run, names=NAMES):
  return [run_lib.Stage(name, functools.partial(run, name),
                        quick=name == 'report') for name in names]


def complete(workdir, name, seconds, result=None):
  directory = workdir / name
  directory.mkdir(parents=True)
  workdirs.write_record(directory, {'result': result or {}, 'seconds': seconds})


def progress_of(workdir, number, *names, **kwargs):
  stages = study(print)
  progress = progress_lib.Progress(
      workdir, stages, [s for s in stages if not names or s.name in names],
      **kwargs)
  progress.begin(number)
  return progress


def left(progress):
  seconds = progress.seconds_left()
  return None if seconds is None else round(seconds)


def test_the_grounds_are_what_stages_of_the_workdir_have_taken(tmp_path):
  complete(tmp_path, 'seed_0/sft', 20.)
  assert left(progress_of(tmp_path, 2)) is None  # gold: none yet
  complete(tmp_path, 'seed_0/gold', 5.)
  one = progress_of(tmp_path, 3)
  assert left(one) == 25 and one.later() == ['seed_1/gold', 'report']
  assert one.status() == {
      'stage': 'seed_1/sft', 'stage_number': 3, 'num_stages': 5,
      'seconds_left': pytest.approx(25, abs=1)}
  one.start -= 15
  assert left(one) == 10
  assert left(progress_of(tmp_path, 5)) == 0  # which is quick


def test_of_a_part_of_a_study_other_stages_are_a_ground(tmp_path):
  complete(tmp_path, 'seed_0/sft', 20.)
  assert left(progress_of(tmp_path, 1, 'seed_1/sft')) == 20


def test_what_is_complete_or_taken_over_takes_no_time(tmp_path):
  for name in ('seed_0/sft', 'seed_1/gold'):
    complete(tmp_path, name, 20.)
  one = progress_of(tmp_path, 1, is_ready=lambda name: name == 'seed_0/gold')
  assert left(one) == 20 and one.later() == ['seed_1/sft', 'report']


def test_a_training_that_was_stopped_counts_as_a_whole(tmp_path):
  complete(tmp_path, 'seed_0/sft', 1., {'seconds': 30.})
  assert left(progress_of(tmp_path, 1, 'seed_1/sft')) == 30


def test_a_damaged_result_is_no_ground(tmp_path):
  complete(tmp_path, 'seed_0/sft', 20.)
  for text in ('[]', '{"seconds": 1}', '{'):
    (tmp_path / 'seed_0/sft/result.json').write_text(text)
    assert left(progress_of(tmp_path, 1, 'seed_1/sft')) is None


def test_a_loop_is_a_ground(tmp_path, monkeypatch):
  now = [100.]
  monkeypatch.setattr(time, 'monotonic', lambda: now[0])
  one = progress_of(tmp_path, 1, 'seed_0/sft', 'seed_1/sft')
  with one.loop(10, 0, 'sft') as bar:
    for _ in range(5):
      now[0] += 2
      bar.update()
    assert one.seconds_left() == 10 + 20
  assert one.seconds_left() is None


def test_the_status_has_it(tmp_path, monkeypatch):
  """At the start of a stage, and while its loop goes on."""
  monkeypatch.setattr(bars, '_INTERVAL', 0.0)
  seen = []

  def run(unused_name, context):
    with context.progress(3, 0, 'turns') as bar:
      for _ in range(3):
        time.sleep(.01)
        bar.update()
        seen.append(status.read(tmp_path))
    return {}

  run_lib.run_study(study(run), tmp_path, config={})
  assert [x['stage_number'] for x in seen] == [1] * 3 + [2] * 3 + [3] * 3 + [
      4] * 3 + [5] * 3
  assert {x['num_stages'] for x in seen} == {5}
  assert all(x['seconds_left'] is None for x in seen[:4])
  assert all(0 <= x['seconds_left'] < 5 for x in seen[4:])
  told = status.read(tmp_path)
  assert (told['state'], told['seconds_left']) == ('complete', 0)


def test_a_status_that_cannot_be_written_stops_no_loop(tmp_path, monkeypatch):
  real = files.write_json

  def write(path, value):
    if path.name == status.NAME and value.get('stage') and len(calls) == 1:
      raise errors.CheckpointError('disk full')
    real(path, value)

  calls = []

  def run(unused_name, context):
    calls.append(0)
    with context.progress(2, 0, 'turns') as bar:
      bar.update(2)
    calls.append(0)
    return {}

  monkeypatch.setattr(files, 'write_json', write)
  run_lib.run_study(study(run, ['a']), tmp_path, config={})
  assert len(calls) == 2
