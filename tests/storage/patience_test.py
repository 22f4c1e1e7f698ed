"""Tests for rlhf_jax.storage.patience: a file system that does not answer."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import worlds

from rlhf_jax import errors
from rlhf_jax.storage import checkpoint

HANGS = """
import sys, time
import jax.numpy as jnp
from rlhf_jax.storage import checkpoint, files
with checkpoint.Checkpointer(sys.argv[1]) as checkpointer:
  checkpointer.save(1, {'x': jnp.zeros(3)})
  files.sync_files = lambda path: time.sleep(300)
  checkpointer.save(2, {'x': jnp.ones(3)})
"""


def test_a_file_system_that_hangs(tmp_path, monkeypatch):
  monkeypatch.setenv('RLHF_JAX_SAVE_TIMEOUT', '4')
  done = subprocess.run(
      [sys.executable, '-c', HANGS, tmp_path], env=worlds.environment(),
      capture_output=True, text=True, timeout=120)
  error = done.stderr
  assert (done.returncode, done.stdout) == (4, ''), error
  assert error.startswith(
      f'rlhf_jax: CHECKPOINT: {tmp_path}/2 is not saved after 4 s'), error
  assert error.count('\n') == 1
  with checkpoint.Checkpointer(tmp_path) as checkpointer:
    step, params, *_ = checkpointer.restore_latest(
        jax.eval_shape(lambda: {'x': jnp.zeros(3)}))
  assert (step, params['x'].tolist()) == (1, [0, 0, 0])


@pytest.mark.parametrize('text', ['', 'soon', '0', '-1', 'nan', '1e300'])
def test_patience_that_is_no_number(tmp_path, monkeypatch, text):
  monkeypatch.setenv('RLHF_JAX_SAVE_TIMEOUT', text)
  with pytest.raises(errors.ConfigError, match='RLHF_JAX_SAVE_TIMEOUT is'):
    checkpoint.Checkpointer(tmp_path / 'x')
  assert not (tmp_path / 'x').exists()
