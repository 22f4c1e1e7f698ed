"""Checkpoints: exact, verified, and never silently wrong."""

import gc
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlhf_jax import errors
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files

# Orbax leaves coroutines behind when a damaged file makes it raise.
pytestmark = pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning')


def make_state(step):
  key = jax.random.key(step)
  params = {
      'layer': {'kernel': jax.random.normal(key, (64, 64))},
      'bias': jnp.full((3,), step + 0.5, jnp.bfloat16),
  }
  training = {
      'opt_state': optax.adam(1e-3).init(params),
      'key': jax.random.split(key, 2),
      'rbg': jax.random.key(step, impl='rbg'),
      'step': jnp.int32(step),
      'position': step,
      'ids': np.arange(3) + step,
  }
  return params, training


def abstract_state():
  params, training = make_state(0)
  shapes = jax.eval_shape(lambda: params)
  arrays = {k: v for k, v in training.items() if k not in ('position', 'ids')}
  return shapes, {**training, **jax.eval_shape(lambda: arrays)}


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
    assert getattr(a, 'dtype', type(a)) == getattr(b, 'dtype', type(b))
    a, b = checkpoint._host(a), checkpoint._host(b)
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def save_steps(directory, *steps, **kwargs):
  with checkpoint.Checkpointer(directory, **kwargs) as checkpointer:
    for step in steps:
      checkpointer.save(step, *make_state(step), {'epoch': step})


def restore(directory):
  with checkpoint.Checkpointer(directory) as checkpointer:
    return checkpointer.restore_latest(*abstract_state())


def test_round_trip_is_exact(tmp_path):
  save_steps(tmp_path, 1, 2, 3)
  step, params, training, meta = restore(tmp_path)
  assert (step, meta) == (3, {'epoch': 3})
  assert_same((params, training), make_state(3))
  assert isinstance(training['opt_state'][0], optax.ScaleByAdamState)
  assert_same(jax.random.uniform(training['rbg']),
              jax.random.uniform(make_state(3)[1]['rbg']))
  assert checkpoint._steps(tmp_path) == [2, 3]  # keep=2


def test_new_directory_has_nothing_to_restore(tmp_path):
  assert restore(tmp_path / 'new') is None


def test_params_alone(tmp_path):
  save_steps(tmp_path, 4)
  params, _ = make_state(4)
  assert_same(checkpoint.restore_params(tmp_path, params), params)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.restore_latest(params)[2] is None
  missing = tmp_path / 'missing'
  with pytest.raises(errors.CheckpointError, match=str(missing)):
    checkpoint.restore_params(missing, params)
  assert not missing.exists()


def test_restores_onto_the_shardings_asked_for(tmp_path):
  save_steps(tmp_path, 1)
  mesh = jax.make_mesh((8,), ('data',),
                       axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec('data')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  abstract, _ = abstract_state()
  abstract['layer']['kernel'] = jax.ShapeDtypeStruct(
      (64, 64), jnp.float32, sharding=sharding)
  params = checkpoint.restore_params(tmp_path, abstract)
  assert params['layer']['kernel'].sharding == sharding
  assert_same(params, make_state(1)[0])


def damage(path, kind, seed):
  data = bytearray(path.read_bytes())
  if kind == 'delete':
    path.unlink()
  elif kind == 'empty':
    path.write_bytes(b'')
  elif kind == 'truncate':
    path.write_bytes(data[:len(data) // 2])
  elif data:
    bit = random.Random(seed).randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def test_damage_is_never_silently_wrong(tmp_path):
  original, copy = tmp_path / 'original', tmp_path / 'copy'
  save_steps(original, 1, 2)
  files = sorted(path.relative_to(original) for path in
                 (original / '2').rglob('*') if path.is_file())
  assert len(files) > 15
  kinds = ['truncate', 'delete', 'empty', 'flip']
  rejected = set()
  for seed, (name, kind) in enumerate(
      (name, kind) for name in files for kind in kinds):
    shutil.copytree(original, copy)
    damage(copy / name, kind, seed)
    step, params, training, meta = restore(copy)
    assert_same((params, training), make_state(step))
    assert meta == {'epoch': step}
    if step == 1:
      rejected.add((name, kind))
    shutil.rmtree(copy)
  gc.collect()  # the coroutines, while their warnings are ignored
  values = values_file(original / '2')
  meta_file = original / '2' / 'meta' / 'metadata'
  for name in (values.relative_to(original), meta_file.relative_to(original)):
    assert {(name, kind) for kind in kinds} <= rejected


def values_file(step_directory):
  """The file with the values of the kernel, the largest by far."""
  files = [p for p in (step_directory / 'params').rglob('*') if p.is_file()]
  return max(files, key=lambda path: path.stat().st_size)


def flip_kernel(directory, step):
  """Flips a bit among the values: orbax alone does not notice."""
  path = values_file(directory / str(step))
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 4
  path.write_bytes(data)


def test_fall_back_warns_once_and_training_goes_on(tmp_path, caplog):
  save_steps(tmp_path, 1, 2)
  flip_kernel(tmp_path, 2)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.restore_latest(*abstract_state())[0] == 1
    (record,) = [r for r in caplog.records if r.name.startswith('rlhf_jax')]
    assert record.levelno == logging.WARNING
    assert 'step 2' in record.getMessage()
    assert 'leaf params/' in record.getMessage()
    checkpointer.save(2, *make_state(2))
  assert restore(tmp_path)[0] == 2
  assert (tmp_path / '2.damaged').is_dir()


def test_damage_is_an_error_where_somebody_says_so(tmp_path):
  save_steps(tmp_path, 1, 2)
  flip_kernel(tmp_path, 2)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    with pytest.raises(errors.CheckpointError, match=(
        r'2 is damaged \(leaf params/.*; without --strict_resume')):
      checkpointer.restore_latest(*abstract_state(), strict=True)
    assert checkpoint._steps(tmp_path) == [1, 2]
    assert checkpointer.restore_latest(*abstract_state())[0] == 1
    assert checkpointer.restore_latest(
        *abstract_state(), strict=True)[0] == 1


def test_of_what_is_complete_no_older_step_is_read(tmp_path):
  """It would be another model, under the name of the last one."""
  directory = tmp_path / 'sft/checkpoints'
  save_steps(directory, 1, 2)
  flip_kernel(directory, 2)
  with pytest.raises(errors.CheckpointError, match=(
      r'2 is damaged \(leaf params/.*make it again with --redo=sft')):
    checkpoint.restore_params(directory, abstract_state()[0])


def test_all_damaged_is_an_error_and_stays(tmp_path):
  save_steps(tmp_path, 1, 2)
  flip_kernel(tmp_path, 1)
  flip_kernel(tmp_path, 2)
  with pytest.raises(errors.CheckpointError, match=r'\[1, 2\].*verifies'):
    restore(tmp_path)
  assert checkpoint._steps(tmp_path) == [1, 2]


def with_kernel(leaf):
  params, _ = abstract_state()
  return {**params, 'layer': {'kernel': leaf}}


@pytest.mark.parametrize('abstract, message', [
    (with_kernel(jax.ShapeDtypeStruct((64, 64), jnp.bfloat16)),
     'params/layer/kernel is float32.*expected bfloat16'),
    (with_kernel(jax.ShapeDtypeStruct((64, 64), jnp.int32)), 'expected int32'),
    (with_kernel(jax.ShapeDtypeStruct((32, 128), jnp.float32)), r'\[32, 128\]'),
    ({**abstract_state()[0], 'extra': jax.ShapeDtypeStruct((1,), jnp.float32)},
     'params/extra is missing'),
    ({'bias': abstract_state()[0]['bias']},
     'params/layer/kernel is unexpected'),
])
def test_foreign_template_is_refused(tmp_path, abstract, message):
  save_steps(tmp_path, 1, 2)
  with pytest.raises(errors.CheckpointError, match=message):
    checkpoint.restore_params(tmp_path, abstract)
  assert checkpoint._steps(tmp_path) == [1, 2]


def test_missing_training_item_is_refused(tmp_path):
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(1, make_state(1)[0])
    with pytest.raises(errors.CheckpointError, match="no item 'training'"):
      checkpointer.restore_latest(*abstract_state())


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_non_finite_never_reaches_a_checkpoint(tmp_path, value):
  params, training = make_state(1)
  bad = params['bias'].at[1].set(value)
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    with pytest.raises(errors.NumericsError, match='params/bias'):
      checkpointer.save(1, {**params, 'bias': bad}, training)
    with pytest.raises(errors.NumericsError, match='training/average'):
      checkpointer.save(1, params, {'average': np.float32(value)})
  assert not list(tmp_path.iterdir())


def rewrite_meta(directory, **changes):
  path = directory / 'meta' / 'metadata'
  record = json.loads(path.read_text())
  record.pop('sha256')
  record |= changes
  record['sha256'] = files.digest(record)
  path.write_text(json.dumps(record))


def test_newer_format_is_refused_by_name(tmp_path):
  save_steps(tmp_path, 1, 2)
  rewrite_meta(tmp_path / '2', format=checkpoint.FORMAT + 1)
  with pytest.raises(errors.CheckpointError, match='format 3, newer than 2'):
    restore(tmp_path)
  assert checkpoint._steps(tmp_path) == [1, 2]


def test_older_format_is_refused_by_name(tmp_path):
  save_steps(tmp_path, 1, 2)
  rewrite_meta(tmp_path / '2', format=1)
  with pytest.raises(errors.CheckpointError,
                     match='format 1, older than 2; start a new workdir'):
    restore(tmp_path)


def test_other_environment_is_said_to_be_not_bitwise(tmp_path, caplog):
  save_steps(tmp_path, 1)
  rewrite_meta(tmp_path / '1', environment={
      **checkpoint._environment(), 'devices': 4})
  assert restore(tmp_path)[0] == 1
  assert 'not bitwise: devices 4 -> 8' in caplog.text


def test_declined_save_raises(tmp_path):
  save_steps(tmp_path, 2)
  for step in (1, 2):
    with pytest.raises(errors.CheckpointError, match='holds step 2'):
      save_steps(tmp_path, step)


def test_leftovers_are_no_steps(tmp_path):
  save_steps(tmp_path, 1)
  (tmp_path / '7').mkdir()
  shutil.copytree(tmp_path / '1', tmp_path / '6.orbax-checkpoint-tmp')
  assert restore(tmp_path)[0] == 1
  save_steps(tmp_path, 2)
  assert sorted(os.listdir(tmp_path)) == ['1', '2']


def test_file_in_the_way(tmp_path):
  path = tmp_path / 'file'
  path.write_text('')
  for directory in (path, path / 'below'):
    with pytest.raises(errors.CheckpointError, match=str(path)):
      checkpoint.Checkpointer(directory)


def start(script, *arguments):
  environment = {
      k: v for k, v in os.environ.items() if k not in ('XLA_FLAGS', 'NPROC')}
  environment['JAX_PLATFORMS'] = 'cpu'
  return subprocess.Popen(
      [sys.executable, '-c', script, *map(str, arguments)], text=True,
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


SAVE_FOREVER = """
import sys
import jax.numpy as jnp
from rlhf_jax.storage import checkpoint
make = lambda step: {str(i): jnp.full((40_000,), step + i) for i in range(4)}
with checkpoint.Checkpointer(sys.argv[1]) as checkpointer:
  found = checkpointer.restore_latest(make(0), make(0))
  step = found[0] if found else 0
  while True:
    step += 1
    checkpointer.save(step, make(step), make(-step))
    print(step, flush=True)
"""


def test_sigkill_during_saves_loses_nothing_acknowledged(tmp_path):
  generator = random.Random(0)
  acknowledged = 0
  caught_in_the_act = 0
  make = lambda step: {
      str(i): jnp.full((40_000,), step + i) for i in range(4)}
  for trial in range(6):
    with start(SAVE_FOREVER, tmp_path) as process:
      first = process.stdout.readline()
      assert first, process.stderr.read()
      time.sleep(generator.uniform(0, 0.3))
      deadline = time.monotonic() + 5
      while trial % 2 and time.monotonic() < deadline:
        if any('tmp' in name for name in os.listdir(tmp_path)):
          break
      process.kill()
      lines = [first, *process.stdout.read().splitlines(keepends=True)]
    caught_in_the_act += any('tmp' in name for name in os.listdir(tmp_path))
    acknowledged = max(
        acknowledged, *(int(line) for line in lines if line.endswith('\n')))
    with checkpoint.Checkpointer(tmp_path) as checkpointer:
      step, params, training, _ = checkpointer.restore_latest(make(0), make(0))
    assert step >= acknowledged
    assert_same((params, training), (make(step), make(-step)))
    assert not any('damaged' in name for name in os.listdir(tmp_path))
  assert caught_in_the_act > 0
  assert not any('tmp' in name for name in os.listdir(tmp_path))


FULL_DISK = """
import resource, signal, sys
import numpy as np
from rlhf_jax import errors
from rlhf_jax.storage import checkpoint, files
with checkpoint.Checkpointer(sys.argv[1]) as checkpointer:
  params = {name: np.random.default_rng(0).normal(size=50_000)
            for name in 'vw'}
  checkpointer.save(1, params)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
  for step in (2, 3):
    try:
      checkpointer.save(step, params)
    except errors.CheckpointError as error:
      print(error)
  try:
    files.save_arrays(sys.argv[1] + '/a.npz', **params)
  except errors.CheckpointError as error:
    print(error)
  resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  print(checkpointer.restore_latest(params)[0])
  checkpointer.save(4, params)
  print(checkpointer.restore_latest(params)[0])
"""


@pytest.mark.parametrize('checkpoints, short', [(2.9, True), (3.1, False)])
def test_short_space_is_said_before_the_first_step(
    tmp_path, monkeypatch, caplog, checkpoints, short):
  params = {'w': jax.ShapeDtypeStruct((2**20,), jnp.bfloat16)}
  training = {'m': jax.ShapeDtypeStruct((2**20,), jnp.float32),
              'key': jax.random.key(0), 'position': 3}
  free = int(checkpoints * 6 * 2**20)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: (
      shutil._ntuple_diskusage(0, 0, free)))
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    assert checkpointer.restore_latest(params, training) is None
    assert len(caplog.records) == short
    if short:
      assert (f'{tmp_path} has 17817 kB free, and a checkpoint takes 6144 kB'
              in caplog.text)


def test_a_step_is_on_disk_when_it_is_saved(tmp_path, monkeypatch):
  synced, fsync = set(), os.fsync
  monkeypatch.setattr(os, 'fsync', lambda descriptor: (synced.add(
      os.readlink(f'/proc/self/fd/{descriptor}')), fsync(descriptor)))
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    checkpointer.save(3, *make_state(3))
  step = tmp_path / '3'
  assert synced >= {str(x) for x in (tmp_path, step, *step.rglob('*'))}


def test_full_disk_names_path_and_size_and_keeps_older_steps(tmp_path):
  process = start(FULL_DISK, tmp_path)
  output, log = process.communicate(timeout=60)
  assert (process.returncode, log) == (0, '')  # not a word of libraries
  second, third, arrays, before, after = output.splitlines()
  assert second == (
      f'cannot save {tmp_path / "2"} (800000 bytes needed): File too large; '
      'free space or choose another --workdir; older steps are intact')
  assert str(tmp_path / '3') in third
  assert str(tmp_path / 'a.npz') in arrays
  assert (before, after) == ('1', '4')
  assert not [name for name in os.listdir(tmp_path) if 'a.npz' in name]
