"""Files: exact, verified, whole or not there, and never a pickle."""

import csv
import hashlib
import json
import math
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax import errors
from rlhf_jax.storage import files


def assert_same(actual, expected):
  assert list(actual) == list(expected)
  for name, x in expected.items():
    assert (actual[name].dtype, actual[name].shape) == (x.dtype, x.shape)
    assert actual[name].tobytes() == x.tobytes()


def test_arrays_round_trip(tmp_path):
  arrays = {
      'tokens': np.arange(24, dtype=np.int32).reshape(2, 3, 4),
      'scores': np.float32([1.5, np.nan, -np.inf]),
      'mask': np.array([[True], [False]]),
      'texts': np.array(['a', 'ü']),
      'empty': np.zeros((0, 3)),
      'scalar': np.float64(0.1),
      'transposed': np.arange(6.0).reshape(2, 3).T,
  }
  path = tmp_path / 'a.npz'
  files.save_arrays(path, **arrays, device=jnp.arange(2))
  loaded = files.load_arrays(path)
  assert_same(loaded, arrays | {'device': np.arange(2, dtype=np.int32)})
  assert os.listdir(tmp_path) == ['a.npz']


def test_arrays_of_another_owner_are_refused(tmp_path):
  """A shard of another seed, or another shard, in the place of one."""
  path = tmp_path / 'a.npz'
  files.save_arrays(path, owner='seed 0', x=np.arange(3))
  assert list(files.load_arrays(path)) == ['x']
  assert list(files.load_arrays(path, owner='seed 0')) == ['x']
  shutil.copy(path, tmp_path / 'b.npz')
  files.save_arrays(tmp_path / 'c.npz', x=np.arange(3))
  for name, owner in (('a', 'seed 1'), ('b', 'seed 0'), ('c', 'seed 0')):
    with pytest.raises(errors.CheckpointError, match='to another stage, or'):
      files.load_arrays(tmp_path / f'{name}.npz', owner=owner)



def test_damaged_arrays_are_refused_or_unharmed(tmp_path):
  path = tmp_path / 'a.npz'
  arrays = {'x': np.arange(5.0), 'y': np.array([True, False])}
  files.save_arrays(path, **arrays)
  data = path.read_bytes()
  refused = 0
  damaged = [data[:n] for n in range(0, len(data), 20)]
  for i in range(len(data)):
    damaged.append(data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1:])
  for content in damaged:
    path.write_bytes(content)
    try:
      assert_same(files.load_arrays(path), arrays)
    except errors.CheckpointError as error:
      assert str(path) in str(error)
      refused += 1
  assert refused > 0.5 * len(damaged)
  path.unlink()
  with pytest.raises(errors.CheckpointError, match=r'a\.npz'):
    files.load_arrays(path)


def test_foreign_content_of_an_npz_is_refused(tmp_path):
  path = tmp_path / 'a.npz'
  files.save_arrays(path, x=np.arange(5.0))
  with np.load(path) as stream:
    parts = dict(stream)
  np.savez(path, **parts | {'x': parts['x'] + 1})  # a valid zip, other values
  with pytest.raises(errors.CheckpointError, match='SHA-256'):
    files.load_arrays(path)
  np.savez(path, x=parts['x'])
  with pytest.raises(errors.CheckpointError, match='sha256'):
    files.load_arrays(path)


class Canary:

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_no_pickle_is_written_or_read(tmp_path):
  path, canary = tmp_path / 'a.npz', tmp_path / 'canary'
  for bad in (np.array([None]), jnp.ones(2, jnp.bfloat16)):
    with pytest.raises(ValueError, match='bad'):
      files.save_arrays(path, bad=bad)
  assert not path.exists()
  np.savez(path, x=np.array([Canary(canary)], object))
  for content in (path.read_bytes(), pickle.dumps(Canary(canary))):
    path.write_bytes(content)
    with pytest.raises(errors.CheckpointError):
      files.load_arrays(path)
  assert not canary.exists()


def test_json_is_atomic_and_strict(tmp_path):
  path = tmp_path / 'a.json'
  files.write_json(
      path, {'loss': np.float32('nan'), 'n': np.arange(2), 'p': tmp_path})
  assert files.read_json(path) == {
      'loss': None, 'n': [0, 1], 'p': str(tmp_path)}
  before = path.read_bytes()
  with pytest.raises(TypeError):
    files.write_json(path, {'bad': object()})
  assert path.read_bytes() == before
  path.write_bytes(before[:-4])
  with pytest.raises(errors.CheckpointError, match=r'a\.json'):
    files.read_json(path)
  with pytest.raises(errors.CheckpointError, match='missing'):
    files.write_json(tmp_path / 'missing' / 'b.json', {})
  assert os.listdir(tmp_path) == ['a.json']


@pytest.mark.parametrize('text', ['[]', '3', 'null', '"a"', '{"a": 1}', '{}'])
def test_an_object_that_lacks_something(tmp_path, text):
  path = tmp_path / 'a.json'
  path.write_text(text)
  with pytest.raises(errors.CheckpointError, match=(
      r'a\.json is damaged: it has no (b|a, b|\{\.\.\.\}); restore it')):
    files.read_object(path, 'a', 'b')
  path.write_text('{"a": 1, "b": null, "c": 2}')
  assert files.read_object(path, 'a', 'b') == {'a': 1, 'b': None, 'c': 2}


def test_nothing_is_written_through_a_link(tmp_path):
  """Neither where it stands nor where a temporary file would."""
  victim, path = tmp_path / 'victim', tmp_path / 'a.json'
  victim.write_text('precious')
  for name in ('a.json', '.a.json.tmp', 'log.txt'):
    (tmp_path / name).symlink_to(victim)
  os.mkfifo(tmp_path / 'pipe')
  files.write_json(path, [])
  assert not path.is_symlink() and files.read_json(path) == []
  for name, why in (('log.txt', 'a link'), ('pipe', 'no regular file')):
    with pytest.raises(OSError, match=why):
      files.open_appending(tmp_path / name)
  assert victim.read_text() == 'precious'
  for _ in range(2):
    with files.open_appending(tmp_path / 'new') as stream:
      stream.write(b'ab')
      stream.seek(0)
      stream.read(1)
      stream.write(b'c')
  assert (tmp_path / 'new').read_bytes() == b'abcabc'


def test_temporary_names_are_new_and_swept(tmp_path, monkeypatch):
  """A file that appears is named on disk; what a kill leaves goes later."""
  seen, synced = [], []
  replace, fsync = os.replace, os.fsync
  monkeypatch.setattr(os, 'replace', lambda source, target: (
      seen.append(os.path.basename(source)), replace(source, target)))
  monkeypatch.setattr(os, 'fsync', lambda descriptor: (synced.append(
      os.readlink(f'/proc/self/fd/{descriptor}')), fsync(descriptor)))
  for _ in range(2):
    files.write_json(tmp_path / 'a.json', [])
  assert len({*seen}) == 2 and all(len(name) > 20 for name in seen)
  assert synced[1::2] == [str(tmp_path)] * 2
  (tmp_path / 'below/.staging.tmp').mkdir(parents=True)
  (tmp_path / 'below' / seen[0]).write_text('half')
  (tmp_path / seen[1]).symlink_to(tmp_path / 'a.json')
  files.sweep(tmp_path)
  assert sorted(os.listdir(tmp_path)) == ['a.json', 'below']
  assert os.listdir(tmp_path / 'below') == ['.staging.tmp']


def test_what_may_hang_or_is_nested_too_deeply_is_one_line(tmp_path):
  """A pipe without a writer, and brackets without an end."""
  path = tmp_path / 'pipe'
  os.mkfifo(path)
  for read in (files.read_json, files.read_jsonl, files.load_arrays):
    with pytest.raises(errors.CheckpointError, match=r'pipe.*no regular file'):
      read(path)
  with pytest.raises(errors.DataError, match=r'pipe: .*no regular file'):
    files.fingerprint(path)
  (tmp_path / 'deep').write_text('[' * 10**5 + ']' * 10**5)
  for read in (files.read_json, files.read_jsonl):
    with pytest.raises(errors.CheckpointError, match='deep: RecursionError'):
      read(tmp_path / 'deep')


def test_a_reader_never_sees_half_a_file(tmp_path):
  path = tmp_path / 'a.json'
  script = ("import sys\nfrom rlhf_jax.storage import files\ni = 0\n"
            "while True:\n  i += 1\n"
            "  files.write_json(sys.argv[1], [i] * 5000)\n")
  with subprocess.Popen(
      [sys.executable, '-c', script, str(path)],
      env=os.environ | {'JAX_PLATFORMS': 'cpu'}, text=True,
      stderr=subprocess.PIPE) as process:
    while not path.exists():
      assert process.poll() is None, process.stderr.read()
    seen = set()
    while len(seen) < 20:
      values = files.read_json(path)
      assert len(values) == 5000
      seen.update(values)
    process.send_signal(signal.SIGKILL)
  assert len(files.read_json(path)) == 5000


def test_lines_round_trip(tmp_path):
  path = tmp_path / 'rows.jsonl'
  files.write_jsonl(path, iter([{'x': .1, 'y': math.nan}, {'x': -1}]))
  assert path.read_text() == '{"x": 0.1, "y": null}\n{"x": -1}\n'
  assert files.read_jsonl(path) == [{'x': .1, 'y': None}, {'x': -1}]
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(errors.CheckpointError, match=r'rows\.jsonl'):
    files.read_jsonl(path)
  with pytest.raises(errors.CheckpointError, match=r'none\.jsonl'):
    files.read_jsonl(tmp_path / 'none.jsonl')


def test_csv_round_trip(tmp_path):
  rows = [{'method': 'a, "b"', 'gold': .1 + .2, 'end': True},
          {'method': 'ü', 'gold': math.nan, 'end': False}]
  files.write_csv(tmp_path / 'rows.csv', rows)
  with open(tmp_path / 'rows.csv', newline='') as stream:
    back = list(csv.DictReader(stream))
  assert [row['method'] for row in back] == ['a, "b"', 'ü']
  assert float(back[0]['gold']) == .1 + .2  # no digit is lost
  assert math.isnan(float(back[1]['gold']))


@pytest.mark.parametrize('write', [files.write_csv, files.write_jsonl])
def test_whole_or_not_at_all(tmp_path, write):
  path = tmp_path / 'out'
  path.write_text('before')
  with pytest.raises((ValueError, TypeError)):
    write(path, [{'x': 1}, {'x': object(), 'z': 2}])
  assert path.read_text() == 'before'
  assert os.listdir(tmp_path) == ['out']


def test_jsonable():
  assert files.jsonable({1: (np.float64('inf'), np.int32(2), None),
                         'p': pathlib.Path('a/b')}) == {
      '1': [None, 2, None], 'p': 'a/b'}


def test_digest_does_not_depend_on_order():
  expected = hashlib.sha256(
      json.dumps({'a': 1, 'b': [2]}).encode()).hexdigest()
  assert files.digest({'b': [2], 'a': 1}) == expected


def test_fingerprint_of_a_file_and_of_a_directory(tmp_path):
  (tmp_path / 'a.txt').write_text('a')
  (tmp_path / 'b.bin').write_text('b')
  (tmp_path / 'below').mkdir()
  assert files.fingerprint(tmp_path / 'a.txt') == hashlib.sha256(
      b'a').hexdigest()
  whole = files.fingerprint(tmp_path)
  texts = files.fingerprint(tmp_path, ('.txt',))
  (tmp_path / 'below/c.txt').write_text('c')
  assert files.fingerprint(tmp_path) == whole
  (tmp_path / 'b.bin').write_text('B')
  assert files.fingerprint(tmp_path) != whole
  assert files.fingerprint(tmp_path, ('.txt',)) == texts
  (tmp_path / 'a.txt').rename(tmp_path / 'd.txt')
  assert files.fingerprint(tmp_path, ('.txt',)) != texts
