"""Event files, read back as TensorBoard does, and what wandb is told."""

import errno
import functools
import struct
import sys
import types

import pytest
from tensorboardX import event_file_writer
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2

from rlhf_jax import errors
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import trackers
from rlhf_jax.storage import files


def events(directory):
  """Of the event files of a directory, in the order in which they are read."""
  for path in sorted(directory.iterdir()):
    data = path.read_bytes()
    while data:
      size, crc = struct.unpack('<QI', data[:12])
      assert crc == record_writer.masked_crc32c(data[:8])
      yield event_pb2.Event.FromString(data[12:12 + size])
      data = data[16 + size:]


def scalars(directory):
  """(step, tag, value) that TensorBoard shows."""
  shown = []
  for event in events(directory):
    if event.session_log.status == event_pb2.SessionLog.START:
      shown = [x for x in shown if x[0] < event.step]
    shown += [(event.step, value.tag, value.simple_value)
              for value in event.summary.value]
  return shown


def train(steps, context):
  with context.writer('metrics') as writer, context.writer('updates') as other:
    for step in steps:
      writer.write(step, {'train/loss': 1 / step, 'nan': float('nan')})
      other.write(step, {'update': 0})
  return {}


def study(*steps):
  return [run_lib.Stage('seed_0/sft', functools.partial(train, steps))]


def test_the_events_are_the_metrics(tmp_path):
  run_lib.run_study(study(1, 2), tmp_path, config={}, log_to=['tensorboard'])
  assert scalars(tmp_path / 'tensorboard/seed_0/sft/metrics') == [
      (1, 'train/loss', 1), (2, 'train/loss', .5)]
  first = next(events(tmp_path / 'tensorboard/seed_0/sft/metrics'))
  assert first.file_version == 'brain.Event:2'
  times = [row['time'] for row in files.read_jsonl(
      tmp_path / 'seed_0/sft/metrics.jsonl')]
  assert [x.wall_time for x in events(
      tmp_path / 'tensorboard/seed_0/sft/metrics')][-2:] == times
  assert not (tmp_path / 'tensorboard/seed_0/sft/updates').exists()
  # The stage has no file more, so it is complete with and without.
  run_lib.run_study(study(1, 2), tmp_path, config={})


def test_a_stage_that_is_made_again_takes_the_place_of_the_first(tmp_path):
  for number, steps in enumerate(((1, 2, 3), (2, 4))):
    follow, = trackers.Trackers(tmp_path, ['tensorboard'], {})('a', 'metrics')
    for step in steps:
      follow({'step': step, 'time': number, 'loss': 10 * number})
    follow._events.close()
    for path in (tmp_path / 'tensorboard/a/metrics').iterdir():
      path.rename(path.with_name(f'{path.name}.{number}'))
  assert scalars(tmp_path / 'tensorboard/a/metrics') == [
      (1, 'loss', 0), (2, 'loss', 10), (4, 'loss', 10)]


def test_nothing_is_written_unless_asked_for(tmp_path):
  run_lib.run_study(study(1), tmp_path, config={})
  assert not (tmp_path / 'tensorboard').exists()


def test_a_full_disk_stops_nothing(tmp_path, monkeypatch, caplog):
  def full(*unused):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(event_file_writer.EventsWriter, 'flush', full)
  run_lib.run_study(study(1, 2, 3), tmp_path, config={},
                    log_to=['tensorboard'])
  assert [r.getMessage().partition(':')[0] for r in caplog.records] == [
      'events are being lost']
  assert len(files.read_jsonl(tmp_path / 'seed_0/sft/metrics.jsonl')) == 3


def test_what_is_not_there_is_refused_before_anything_runs(
    tmp_path, monkeypatch):
  workdir = tmp_path / 'new'
  with pytest.raises(errors.ConfigError, match='only tensorboard and wandb'):
    run_lib.run_study(study(1), workdir, config={}, log_to=['mlflow'])
  monkeypatch.setitem(sys.modules, 'tensorboardX', None)
  with pytest.raises(errors.ConfigError, match=r'rlhf_jax\[tensorboard\]'):
    run_lib.run_study(study(1), workdir, config={}, log_to=['tensorboard'])
  monkeypatch.setitem(sys.modules, 'wandb', None)
  with pytest.raises(errors.ConfigError, match=r'rlhf_jax\[wandb\]'):
    run_lib.run_study(study(1), workdir, config={}, log_to=['wandb'])
  assert not workdir.exists()


class FakeWandb(types.ModuleType):
  """Keeps what it is told; tests/peers/wandb_test.py has the real one."""

  def __init__(self):
    super().__init__('wandb')
    self.runs, self.Settings = [], dict

  def init(self, **keywords):
    run = types.SimpleNamespace(keywords=keywords, rows=[], ends=0)
    run.define_metric = lambda *unused, **kw: None
    run.log = run.rows.append
    run.finish = lambda: setattr(run, 'ends', run.ends + 1)
    self.runs.append(run)
    return run


@pytest.fixture
def wandb(monkeypatch):
  fake = FakeWandb()
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  for name in ('WANDB_MODE', 'WANDB_PROJECT'):
    monkeypatch.delenv(name, raising=False)
  return fake


def test_runs_of_wandb_are_the_metrics(tmp_path, wandb, monkeypatch):
  stages = [*study(1, 2), run_lib.Stage(
      'seed_0/gold', functools.partial(train, (3,)))]
  monkeypatch.setenv('WANDB_PROJECT', 'mine')
  run_lib.run_study(stages, tmp_path, config={'x': 1}, log_to=['wandb'])
  first, second = wandb.runs
  assert first.rows == [{'step': 1, 'train/loss': 1.},
                        {'step': 2, 'train/loss': .5}]
  assert second.rows == [{'step': 3, 'train/loss': .333333}]
  assert (first.ends, second.ends) == (1, 1)
  told = first.keywords
  assert (told['name'], told['group'], told['project'], told['config']) == (
      'seed_0/sft/metrics', tmp_path.name, 'mine', {'x': 1})
  assert told['mode'] == 'offline' and told['dir'] == str(tmp_path)


@pytest.mark.parametrize('call', ['init', 'log', 'finish'])
def test_a_run_that_fails_stops_nothing(tmp_path, wandb, caplog, call):
  def fails(*unused, **unused_too):
    raise RuntimeError('no service')

  real = wandb.init
  def init(**keywords):
    run = real(**keywords)
    setattr(run, call, fails)
    return run

  wandb.init = fails if call == 'init' else init
  stages = [*study(1, 2), run_lib.Stage(
      'seed_0/gold', functools.partial(train, (3,)))]
  run_lib.run_study(stages, tmp_path, config={}, log_to=['wandb'])
  assert [r.getMessage() for r in caplog.records] == [
      f'{stage}/metrics is no longer logged to wandb: RuntimeError: no service'
      for stage in ('seed_0/sft', 'seed_0/gold')]
  assert len(files.read_jsonl(tmp_path / 'seed_0/sft/metrics.jsonl')) == 2
  assert len(files.read_jsonl(tmp_path / 'seed_0/gold/metrics.jsonl')) == 1


def test_runs_of_a_stage_that_fails_are_ended(tmp_path, wandb):
  def fails(context):
    train((1,), context)
    raise ValueError

  with pytest.raises(ValueError):
    run_lib.run_study([run_lib.Stage('a', fails)], tmp_path, config={},
                      log_to=['wandb'])
  run, = wandb.runs
  assert run.ends == 1
