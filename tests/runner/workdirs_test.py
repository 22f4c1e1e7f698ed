"""One owner, one config, and no result that is not what was written."""

import fcntl
import os
import socket
import threading

import pytest

from rlhf_jax import errors
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

CONFIG = {'seed': 0, 'sft': {'lr': 0.1, 'log_every': 10}}


def test_the_lock_names_its_owner_only(tmp_path):
  (tmp_path / 'lock').write_text('pid 123456789 on another-host\n')
  expected = f'pid {os.getpid()} on {socket.gethostname()}\n'
  with workdirs.locked(tmp_path):
    assert (tmp_path / 'lock').read_text() == expected
    with pytest.raises(errors.WorkdirLockedError) as caught:
      with workdirs.locked(tmp_path):
        pass
    assert f'{tmp_path} is in use by {expected.strip()};' in str(caught.value)
    assert (tmp_path / 'lock').read_text() == expected
  with workdirs.locked(tmp_path):
    pass


def test_a_link_is_not_followed(tmp_path):
  """Neither by the lock nor by the log: its target is somebody's file."""
  victim, workdir = tmp_path / 'victim', tmp_path / 'workdir'
  victim.write_text('precious')
  workdir.mkdir()
  for name in ('lock', 'log.txt'):
    (workdir / name).symlink_to(victim)
    with pytest.raises(errors.CheckpointError, match=f'{name}.*link.*remove'):
      with workdirs.locked(workdir):
        pass
    (workdir / name).unlink()
  assert victim.read_text() == 'precious'


def test_who_only_looks_is_in_nobodys_way(tmp_path):
  (tmp_path / 'lock').touch()
  with open(tmp_path / 'lock') as looking:
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(.03, looking.close)
    timer.start()
    with workdirs.locked(tmp_path):
      pass
    timer.join()


def test_a_lock_that_is_deleted_still_holds(tmp_path):
  with workdirs.locked(tmp_path):
    (tmp_path / 'lock').unlink()
    with pytest.raises(errors.WorkdirLockedError, match='another process'):
      with workdirs.locked(tmp_path):
        pass
  with workdirs.locked(tmp_path):
    pass


def test_what_a_killed_process_was_writing_goes(tmp_path):
  (tmp_path / 'seed_0').mkdir()
  (tmp_path / 'seed_0/.result.json.0123456789abcdef.tmp').write_text('{')
  with workdirs.locked(tmp_path):
    assert not os.listdir(tmp_path / 'seed_0')


def test_a_file_in_the_way(tmp_path):
  path = tmp_path / 'file'
  path.write_text('')
  for workdir in (path, path / 'below'):
    with pytest.raises(errors.CheckpointError, match=str(path)):
      with workdirs.locked(workdir):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write anywhere')
def test_a_read_only_workdir(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(errors.CheckpointError, match=str(tmp_path)):
    with workdirs.locked(tmp_path):
      pass


def test_a_changed_config_is_refused_with_a_diff(tmp_path):
  safe_keys = ('*log_every',)
  assert workdirs.check_config(tmp_path, CONFIG, safe_keys) == []
  before = (tmp_path / 'config.json').read_bytes()
  changed = {'seed': True, 'sft': {'lr': 0.2, 'log_every': 5}, 'extra': [1]}
  with pytest.raises(errors.ConfigError) as caught:
    workdirs.check_config(tmp_path, changed, safe_keys)
  message = str(caught.value)
  for part in ('sft.lr: 0.1 -> 0.2', 'extra: (absent) -> [1]',
               'seed: 0 -> true', '--workdir'):
    assert part in message
  assert 'log_every' not in message
  assert '\n' not in message
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_safe_change_is_returned_and_written(tmp_path):
  workdirs.check_config(tmp_path, CONFIG, ())
  safe = {'seed': 0, 'sft': {'lr': 0.1, 'log_every': 5}}
  changes = workdirs.check_config(tmp_path, safe, ('sft.log_*',))
  assert changes == ['sft.log_every: 10 -> 5']
  assert workdirs.read_config(tmp_path) == safe | {'layout': workdirs.LAYOUT}
  assert workdirs.check_config(tmp_path, safe, ()) == []


@pytest.mark.parametrize('old, new', [('0.1', '0.3'), ('"seed"', '"need"')])
def test_a_damaged_config_is_refused(tmp_path, old, new):
  """Also where a command reads no other, and where it says what it should."""
  workdirs.check_config(tmp_path, CONFIG, ())
  path = tmp_path / 'config.json'
  path.write_text(path.read_text().replace(old, new))
  for refuse in (lambda: workdirs.check_config(tmp_path, CONFIG, ()),
                 lambda: workdirs.check_config(tmp_path, CONFIG, ('*',)),
                 lambda: workdirs.read_config(tmp_path)):
    with pytest.raises(errors.CheckpointError, match=(
        r'config\.json is damaged, or was edited; delete it and give')):
      refuse()
  path.unlink()
  assert workdirs.check_config(tmp_path, CONFIG, ()) == []


def test_a_config_of_an_earlier_commit_has_no_digest(tmp_path):
  config = CONFIG | {'layout': workdirs.LAYOUT}
  files.write_json(tmp_path / 'config.json', config)
  assert workdirs.read_config(tmp_path) == config
  assert workdirs.check_config(tmp_path, CONFIG, ()) == []


@pytest.mark.parametrize('config, layout', [
    ({}, 1), (CONFIG, 1), (CONFIG | {'layout': 1}, 1), ([], 1)])
def test_a_study_of_an_older_layout_is_refused(tmp_path, config, layout):
  """Whether its config is the same or not, and nothing is written."""
  files.write_json(tmp_path / 'config.json', config)
  before = (tmp_path / 'config.json').read_bytes()
  for refuse in (lambda: workdirs.check_config(tmp_path, CONFIG, ('*',)),
                 lambda: workdirs.check_layout(tmp_path)):
    with pytest.raises(errors.ConfigError) as caught:
      refuse()
    assert str(caught.value) == (
        f'{tmp_path} was made by an older version of rlhf_jax (layout '
        f'{layout}, this one has {workdirs.LAYOUT}); start a new workdir')
  assert (tmp_path / 'config.json').read_bytes() == before


def test_a_record_comes_back(tmp_path):
  assert workdirs.read_record(tmp_path) is None
  record = {'result': {'loss': .25, 'none': None}, 'seconds': 1.5}
  for more in ({}, {'recipe': 'ab12'}):
    workdirs.write_record(tmp_path, record | more)
    assert workdirs.read_record(tmp_path) == record | more | {'files': {}}


@pytest.mark.parametrize('damage', [
    lambda data: data[:-9], lambda data: b'', lambda data: b'[]',
    lambda data: data.replace(b'0.25', b'0.24'),
    lambda data: data.replace(b'sha256', b'sha257'),
])
def test_a_damaged_record_is_named(tmp_path, damage):
  workdirs.write_record(tmp_path, {'result': {'loss': .25}, 'seconds': 1.5})
  path = tmp_path / 'result.json'
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(errors.CheckpointError, match=str(path)):
    workdirs.read_record(tmp_path)


def test_a_foreign_record(tmp_path):
  """Its digest is right, and it is no result."""
  workdirs.write_record(tmp_path, {'loss': .25})
  with pytest.raises(errors.CheckpointError, match='is damaged'):
    workdirs.read_record(tmp_path)
