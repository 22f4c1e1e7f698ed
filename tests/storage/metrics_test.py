"""Metrics: every step exactly once, whatever happens to the files."""

import json
import logging
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.storage import metrics


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path):
  return [row['step'] for row in read(path)]


def write_steps(path, *numbers):
  with metrics.MetricsWriter(path) as writer:
    for number in numbers:
      writer.write(number, {'loss': 1.0 / number})


def test_values_are_json(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  with metrics.MetricsWriter(path) as writer:
    writer.write(np.int32(1), {
        'train/loss': jnp.float32(1 / 3),
        'nan': float('nan'),
        'inf': np.float32(-np.inf),
        'count': np.int64(2**40),
        'done': np.True_,
        'small': 1.23456789e-20,
    })
    with pytest.raises(TypeError, match='scalar'):
      writer.write(2, {'text': 'no'})
  (row,) = read(path)
  assert row.pop('time') > 1e9
  assert row == {
      'step': 1, 'train/loss': 0.333333, 'nan': None, 'inf': None,
      'count': 2**40, 'done': 1, 'small': 1.23457e-20}


def test_resume_keeps_each_step_once(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write_steps(path, 1, 2, 2, 3, 4)
  with metrics.MetricsWriter(path) as writer:
    writer.truncate(2)
    writer.write(3, {})
  assert steps(path) == [1, 2, 2, 3]
  with metrics.MetricsWriter(path) as writer:
    writer.truncate(0)
  assert path.read_bytes() == b''


def test_a_line_cut_short_is_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  write_steps(path, 1, 2)
  path.write_bytes(path.read_bytes()[:-3])
  write_steps(path, 2)
  assert steps(path) == [1, 2]


def test_a_killed_process_loses_no_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  script = ('import os, sys\nfrom rlhf_jax.storage import metrics\n'
            'writer = metrics.MetricsWriter(sys.argv[1])\n'
            'for i in range(50): writer.write(i, {})\n'
            'os.kill(os.getpid(), 9)\n')
  done = subprocess.run([sys.executable, '-c', script, str(path)])
  assert done.returncode == -signal.SIGKILL
  assert steps(path) == list(range(50))


def test_a_deleted_file_comes_back_whole(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  with metrics.MetricsWriter(path) as writer:
    writer.write(1, {})
    path.unlink()
    writer.write(2, {})
    writer.write(3, {})
  assert steps(path) == [1, 2, 3]


def test_a_deleted_directory_costs_lines_and_one_warning(tmp_path, caplog):
  path = tmp_path / 'below' / 'metrics.jsonl'
  path.parent.mkdir()
  with metrics.MetricsWriter(path) as writer:
    writer.write(1, {})
    path.unlink()
    path.parent.rmdir()
    writer.write(2, {})
    writer.write(3, {})
    path.parent.mkdir()
    writer.write(4, {})
  assert steps(path) == [1, 4]
  assert [r.levelno for r in caplog.records] == [logging.WARNING]


def test_an_unusable_path_never_raises(tmp_path, caplog):
  victim, link = tmp_path / 'victim', tmp_path / 'metrics.jsonl'
  victim.write_text('precious\n')
  link.symlink_to(victim)
  for count, path in enumerate((tmp_path, link), 1):
    with metrics.MetricsWriter(path) as writer:
      writer.write(1, {})
      writer.truncate(0)
    assert len(caplog.records) == count
  assert victim.read_text() == 'precious\n'


FULL_DISK = """
import resource, sys
from rlhf_jax.storage import metrics
writer = metrics.MetricsWriter(sys.argv[1])
writer.write(1, {})
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
full = writer.path.stat().st_size + 10
resource.setrlimit(resource.RLIMIT_FSIZE, (full, limits[1]))
writer.write(2, {})
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
writer.write(3, {})
"""


def test_a_full_disk_leaves_no_half_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  done = subprocess.run([sys.executable, '-c', FULL_DISK, str(path)],
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert 'being lost' in done.stderr
  assert steps(path) == [1, 3]


def test_followers_have_the_rows_that_are_written(tmp_path):
  path, rows = tmp_path / 'metrics.jsonl', []
  with metrics.MetricsWriter(path, [rows.append]) as writer:
    writer.write(3, {'loss': jnp.float32(0.5)})
  assert rows == read(path) and rows[0]['loss'] == 0.5
