"""Studies under real signals: nothing half-written, nothing run twice."""

import itertools
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import pytest

from rlhf_jax import errors
from rlhf_jax.parallel import meshes
from rlhf_jax.runner import run as run_lib
from rlhf_jax.runner import status as status_lib
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files
from rlhf_jax.storage import metrics

CONFIG = {'seed': 0, 'sft': {'lr': 0.1, 'log_every': 10}}
LAYOUT = {'layout': workdirs.LAYOUT}


def make_stages(calls, names=('seed_0/sft', 'seed_0/rl', 'figure')):

  def run(context):
    calls.append(context.directory.name)
    files.write_json(context.directory / 'data.json', calls)
    return {'loss': 0.25, 'nan': float('nan'), 'stage': context.directory.name}

  return [run_lib.Stage(name, run) for name in names]


def tree(directory):
  return {
      str(path.relative_to(directory)): path.read_bytes()
      for path in sorted(directory.rglob('*')) if path.is_file()}


def status_of(workdir):
  return files.read_json(workdir / 'status.json')


def test_runs_in_order_and_then_not_again(tmp_path, capsys):
  calls = []
  stages = make_stages(calls)
  run_lib.run_study(stages, tmp_path, config=CONFIG)
  assert calls == ['sft', 'rl', 'figure']
  output = capsys.readouterr().out.splitlines()
  assert re.fullmatch(r'seed_0/sft +\d+\.\d s  loss=0.25 nan=nan', output[0])
  record = files.read_json(tmp_path / 'seed_0/rl/result.json')
  assert record['result'] == {'loss': 0.25, 'nan': None, 'stage': 'rl'}
  assert record['seconds'] >= 0
  assert workdirs.read_config(tmp_path) == CONFIG | LAYOUT
  status = status_of(tmp_path)
  assert (status['state'], status['code'], status['exit_code']) == (
      'complete', 'OK', 0)
  run_lib.run_study(stages, tmp_path, config=CONFIG)
  assert calls == ['sft', 'rl', 'figure']
  assert capsys.readouterr().out.count('skipped') == 3
  assert status_of(tmp_path)['state'] == 'complete'


@pytest.mark.parametrize('only, expected', [
    (('rl',), ['rl']), (('seed_0/*',), ['sft', 'rl']), (('fig*', 'sft'),
                                                        ['sft', 'figure'])])
def test_only(tmp_path, only, expected):
  calls = []
  run_lib.run_study(make_stages(calls), tmp_path, config={}, only=only)
  assert calls == expected


def test_only_names_what_there_is(tmp_path):
  workdir = tmp_path / 'new'
  with pytest.raises(errors.ConfigError, match=r"'slf'.*seed_0/sft.*figure"):
    run_lib.run_study(make_stages([]), workdir, config={}, only=('rl', 'slf'))
  assert not workdir.exists()


@pytest.mark.parametrize('names', [
    ('a', 'a'), ('../a',), ('/a',), ('a//b',), ('a/../../b',), ('a/b/c', 'a')])
def test_bad_stage_names(tmp_path, names):
  with pytest.raises(ValueError, match='stage'):
    run_lib.run_study(make_stages([], names), tmp_path, config={})


def test_a_stage_reads_the_results_of_another(tmp_path):

  def after(context):
    assert context.directory_of('first') == tmp_path / 'first'
    context.log('reading')
    return {'seen': context.result_of('first')['loss']}

  stages = [*make_stages([], ('first',)), run_lib.Stage('after', after)]
  with pytest.raises(errors.CheckpointError, match='--stages=first'):
    run_lib.run_study(stages, tmp_path, config={}, only=('after',))
  assert status_of(tmp_path)['state'] == 'failed'
  run_lib.run_study(stages, tmp_path, config={})
  record = files.read_json(tmp_path / 'after/result.json')
  assert record['result'] == {'seen': 0.25}
  assert 'after: reading' in (tmp_path / 'log.txt').read_text()


def test_the_mesh_is_that_of_the_config_and_made_once(tmp_path):
  meshes = []

  def run(context):
    meshes.append(context.mesh)
    return {}

  stages = [run_lib.Stage(name, run) for name in 'ab']
  for config, data in (({}, 8), ({'mesh': {'data': -1}}, 8),
                       ({'mesh': {'data': 4, 'fsdp': -1}}, 4)):
    workdir = tmp_path / files.digest(config)
    run_lib.run_study(stages, workdir, config=config)
    one, other = meshes[-2:]
    assert one.shape['data'] == data and one.size == 8
    assert one is other
  assert len(meshes) == 6


def test_a_stage_runs_on_its_mesh(tmp_path):
  seen = []

  def run(context):
    seen.append((meshes.row_parts(), jax.sharding.get_mesh()))
    assert seen[-1][1] is context.mesh
    return {}

  run_lib.run_study([run_lib.Stage('a', run)], tmp_path,
                    config={'mesh': {'data': 2, 'tensor': 4}})
  assert [parts for parts, _ in seen] == [2]
  assert meshes.in_use() is None


def test_a_mesh_is_made_when_a_stage_runs(tmp_path):
  """So that a study that has nothing to do starts no device."""
  config = {'mesh': {'data': 3}}
  with pytest.raises(errors.TopologyError, match=r'config\.mesh'):
    run_lib.run_study(make_stages([]), tmp_path, config=config)
  assert status_of(tmp_path)['exit_code'] == 8
  run_lib.run_study([], tmp_path, config=config)


def test_a_damaged_result_is_named_and_made_again(tmp_path, capsys):
  calls = []
  run_lib.run_study(make_stages(calls), tmp_path, config={})
  path = tmp_path / 'seed_0/rl/result.json'
  path.write_bytes(path.read_bytes()[:-9])
  run_lib.run_study(make_stages(calls), tmp_path, config={})
  assert calls == ['sft', 'rl', 'figure', 'rl']
  assert f'cannot read {path}' in capsys.readouterr().out


def test_a_refused_config_leaves_the_last_status(tmp_path):
  run_lib.run_study([], tmp_path, config={'seed': 1})
  assert status_of(tmp_path)['state'] == 'complete'
  before = (tmp_path / 'status.json').read_bytes()
  with pytest.raises(errors.ConfigError):
    run_lib.run_study([], tmp_path, config={'seed': 2})
  assert (tmp_path / 'status.json').read_bytes() == before


def test_a_safe_change_is_logged_and_kept(tmp_path, capsys):
  run_lib.run_study([], tmp_path, config=CONFIG)
  safe = {'seed': 0, 'sft': {'lr': 0.1, 'log_every': 5}}
  run_lib.run_study([], tmp_path, config=safe)
  assert 'sft.log_every: 10 -> 5' in capsys.readouterr().out
  assert workdirs.read_config(tmp_path) == safe | LAYOUT
  with pytest.raises(errors.ConfigError, match='log_every'):
    run_lib.run_study([], tmp_path, config=CONFIG, safe_keys=())


def test_a_study_of_an_older_layout_is_left_as_it_is(tmp_path):
  """But for the lock, which names who has looked."""
  files.write_json(tmp_path / 'config.json', CONFIG)
  (tmp_path / 'seed_0').mkdir()
  before, calls = tree(tmp_path), []
  with pytest.raises(errors.ConfigError, match='older version of rlhf_jax'):
    run_lib.run_study(make_stages(calls), tmp_path, config=CONFIG)
  assert not calls
  after = tree(tmp_path)
  del after['lock']
  assert after == before


def test_tuples_are_not_a_change(tmp_path):
  run_lib.run_study([], tmp_path, config={'sizes': (1, 2), 'empty': {}})
  run_lib.run_study([], tmp_path, config={'sizes': [1, 2], 'empty': {}})


def test_a_bug_keeps_its_traceback(tmp_path):

  def run(unused_context):
    return 1 // 0

  stages = [*make_stages([], ('first',)), run_lib.Stage('bad', run)]
  with pytest.raises(ZeroDivisionError):
    run_lib.run_study(stages, tmp_path, config={})
  log = (tmp_path / 'log.txt').read_text()
  assert 'Traceback' in log and 'ZeroDivisionError' in log
  status = status_of(tmp_path)
  assert (status['state'], status['stage'], status['code'],
          status['exit_code']) == ('failed', 'bad', 'BUG', 1)
  assert not (tmp_path / 'bad/result.json').exists()


def test_a_file_in_the_way_of_a_stage(tmp_path):
  (tmp_path / 'seed_0').write_text('')
  with pytest.raises(errors.CheckpointError, match='seed_0'):
    run_lib.run_study(make_stages([]), tmp_path, config={})


def test_handlers_come_back(tmp_path):
  handled = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
  before = [signal.getsignal(n) for n in handled]
  threads = threading.active_count()
  run_lib.run_study(make_stages([]), tmp_path, config={})
  after = [signal.getsignal(n) for n in handled]
  assert before == after
  assert signal.set_wakeup_fd(-1) == -1
  assert threading.active_count() == threads


def test_a_study_may_run_outside_the_main_thread(tmp_path):
  calls = []
  thread = threading.Thread(target=run_lib.run_study, kwargs={
      'stages': make_stages(calls), 'workdir': tmp_path, 'config': {}})
  thread.start()
  thread.join()
  assert len(calls) == 3


# A stage that counts to argv[2], saves each step, and can be deaf: busy in C
# code that no Python handler can interrupt.
PROGRAM = """
import hashlib, sys, time
from rlhf_jax import errors
from rlhf_jax.runner import run as run_lib
from rlhf_jax.storage import files

def count(context):
  path = context.directory / 'step.json'
  step = files.read_json(path) if path.exists() else 0
  while step < int(sys.argv[2]):
    step += 1
    files.write_json(path, step)
    context.show(f'step {step}')  # unlike print, where a terminal may be gone
    if 'deaf' in sys.argv:
      hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
    time.sleep(0.01)
    context.stop.check(f'step {step}')
  return {'step': step}

stages = [run_lib.Stage('first', lambda context: {}),
          run_lib.Stage('count', count)]
try:
  run_lib.run_study(stages, sys.argv[1], config={})
except errors.UserError as error:
  print(f'rlhf_jax: {error.code}: {error}', file=sys.stderr)
  sys.exit(error.exit_code)
"""


def start(workdir, *arguments):
  return subprocess.Popen(
      [sys.executable, '-c', PROGRAM, str(workdir), *map(str, arguments)],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(process, text):
  while text not in (line := process.stdout.readline()):
    assert line, process.stderr.read()


@pytest.mark.parametrize('number', [
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, number):
  process = start(tmp_path, 10**6)
  wait_for(process, 'step 3')
  process.send_signal(number)
  _, log = process.communicate(timeout=60)
  assert process.returncode == 75, log
  saved = files.read_json(tmp_path / 'count/step.json')
  assert f'INTERRUPTED: saved at step {saved}; run the same command' in log
  assert 'Traceback' not in log
  status = status_of(tmp_path)
  assert (status['state'], status['exit_code'], status['stage']) == (
      'interrupted', 75, 'count')
  again = start(tmp_path, saved + 2)
  output, log = again.communicate(timeout=60)
  assert again.returncode == 0, log
  assert 'first' in output and 'skipped' in output
  assert re.findall(r'step (\d+)', output) == [
      str(saved + 1), str(saved + 2)]
  assert status_of(tmp_path)['state'] == 'complete'


def test_a_terminal_that_is_closed(tmp_path):
  """The kernel sends SIGHUP, and no word can be printed any more."""
  ours, theirs = os.openpty()
  process = subprocess.Popen(
      ['setsid', '--ctty', sys.executable, '-c', PROGRAM, str(tmp_path),
       '1000000'], env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      stdin=theirs, stdout=theirs, stderr=theirs)
  os.close(theirs)
  seen = b''
  while b'step 3' not in seen:
    seen += os.read(ours, 1000)
  os.close(ours)
  process.wait(timeout=60)
  status = status_of(tmp_path)
  assert (status['state'], status['exit_code']) == ('interrupted', 75)


def test_a_signal_that_is_ignored_stays_so(tmp_path):
  """SIGHUP under nohup."""
  process = subprocess.Popen(
      ['nohup', sys.executable, '-c', PROGRAM, str(tmp_path), '1000000'],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'}, text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  wait_for(process, 'step 3')
  process.send_signal(signal.SIGHUP)
  for _ in range(20):
    assert process.stdout.readline().startswith('step')
  process.terminate()
  process.communicate(timeout=60)
  assert process.returncode == 75


def test_a_killed_run_is_told_from_one_that_lives(tmp_path, capsys):
  """And a status names the stage that runs."""
  process = start(tmp_path, 10**6, 'deaf')
  wait_for(process, 'step 1')
  living = status_lib.read(tmp_path)
  assert (living['state'], living['stage'], living['pid'], living['host']) == (
      'running', 'count', process.pid, socket.gethostname())
  process.kill()
  process.communicate()
  assert status_lib.read(tmp_path) == living | {'state': 'killed'}
  run_lib.run_study([], tmp_path, config={})
  said = f'the last command was killed (pid {process.pid}, in count); going on'
  assert said in capsys.readouterr().out
  assert status_lib.read(tmp_path)['state'] == 'complete'
  run_lib.run_study([], tmp_path, config={})
  assert 'killed' not in capsys.readouterr().out


@pytest.mark.parametrize('number, code', [
    (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_second_signal_exits_at_once(tmp_path, number, code):
  process = start(tmp_path, 10**6, 'deaf')
  wait_for(process, 'step 1')
  time.sleep(0.2)
  process.send_signal(number)
  assert select.select([process.stderr], [], [], 5)[0]
  assert 'once more' in process.stderr.readline()
  began = time.monotonic()
  process.send_signal(number)
  assert process.wait(timeout=5) == code
  assert time.monotonic() - began < 2
  process.communicate()
  assert files.read_json(tmp_path / 'count/step.json') == 1
  status = status_of(tmp_path)
  assert (status['state'], status['exit_code'], status['stage']) == (
      'killed', code, 'count')


def test_a_signal_during_a_stage_stops_before_the_next(tmp_path):
  calls = []

  def signalled(unused_context):
    os.kill(os.getpid(), signal.SIGTERM)
    return {}

  stages = [run_lib.Stage('first', signalled), *make_stages(calls)]
  with pytest.raises(errors.Interrupted, match='start of seed_0/sft'):
    run_lib.run_study(stages, tmp_path, config={})
  assert not calls
  run_lib.run_study(stages, tmp_path, config={})
  assert len(calls) == 3


def test_two_processes_one_workdir(tmp_path):
  owner = start(tmp_path, 10**6, 'deaf')
  wait_for(owner, 'step 1')
  before = tree(tmp_path)
  began = time.monotonic()
  with pytest.raises(errors.WorkdirLockedError):
    run_lib.run_study([], tmp_path, config={})
  assert time.monotonic() - began < 5
  second = start(tmp_path, 10**6)
  _, log = second.communicate(timeout=60)
  assert second.returncode == 7
  assert f'pid {owner.pid} on {socket.gethostname()}' in log
  assert str(tmp_path) in log
  assert len(log.splitlines()) == 1
  assert tree(tmp_path) == before
  owner.kill()
  owner.communicate()
  third = start(tmp_path, 2)
  _, log = third.communicate(timeout=60)
  assert third.returncode == 0, log
  assert status_of(tmp_path)['state'] == 'complete'


def test_a_clock_that_jumps(tmp_path, monkeypatch):
  """Back by days between two steps; nothing is lost or done twice."""
  clock = itertools.count(2e9, -1e5)
  monkeypatch.setattr(time, 'time', lambda: next(clock))

  def train(context):
    with metrics.MetricsWriter(context.directory / 'metrics.jsonl') as writer:
      writer.truncate(0)
      for step in range(1, 6):
        writer.write(step, {'loss': 1 / step})
    return {'loss': .2}

  stages = [run_lib.Stage('train', train)]
  for _ in range(2):
    run_lib.run_study(stages, tmp_path, config=CONFIG)
  lines = files.read_jsonl(tmp_path / 'train/metrics.jsonl')
  assert [line['step'] for line in lines] == [1, 2, 3, 4, 5]
  assert lines[0]['time'] > lines[-1]['time']
  assert status_of(tmp_path)['state'] == 'complete'
  assert workdirs.read_record(tmp_path / 'train')['seconds'] >= 0


def test_stdout_may_be_closed(tmp_path):
  reader, writer = os.pipe()
  os.close(reader)
  script = ('import sys\nfrom rlhf_jax.runner import run as run_lib\n'
            's = [run_lib.Stage(n, lambda c: {}) for n in "ab"]\n'
            'run_lib.run_study(s, sys.argv[1], config={})\n')
  done = subprocess.run(
      [sys.executable, '-c', script, str(tmp_path)], stdout=writer,
      stderr=subprocess.PIPE, text=True)
  os.close(writer)
  assert (done.returncode, done.stderr) == (0, '')
  assert status_of(tmp_path)['state'] == 'complete'
