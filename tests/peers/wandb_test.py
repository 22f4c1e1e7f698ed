"""Runs that wandb itself reads back."""

import json
import struct
import subprocess
import sys

import pytest
import worlds

from rlhf_jax.storage import files

pytest.importorskip('wandb')

# A study of its own process: as it ends, wandb writes what is left.
STUDY = """
import pathlib, sys
from rlhf_jax.runner import run
def train(context):
  with context.writer('metrics') as writer, context.writer('evaluation') as at:
    at.write(0, {'proxy': .25})
    for step in (1, 2):
      writer.write(step, {'train/loss': 1 / step, 'nan': float('nan')})
  return {}
run.run_study([run.Stage('seed_0/sft', train)], pathlib.Path(sys.argv[1]),
              config={'seeds': [0]}, log_to=['wandb'])
"""


def records(path):
  """The protocol buffers of a run that was not sent.

  A file of LevelDB's log: blocks of 32 KiB, in which pieces begin with a
  checksum, a length and a kind: whole, first, middle or last.
  """
  from wandb.proto import wandb_internal_pb2

  data, at, parts = path.read_bytes(), 7, b''  # after wandb's own header
  while at < len(data):
    if 2**15 - at % 2**15 < 7:  # no room for a piece
      at += 2**15 - at % 2**15
      continue
    _, size, kind = struct.unpack('<IHB', data[at:at + 7])
    parts += data[at + 7:at + 7 + size]
    at += 7 + size
    if kind in (1, 4):
      yield wandb_internal_pb2.Record.FromString(parts)
      parts = b''


def test_the_runs_are_the_metrics(tmp_path):
  environment = {k: v for k, v in worlds.environment().items()
                 if not k.startswith('WANDB')}
  done = subprocess.run(
      [sys.executable, '-c', STUDY, tmp_path / 'study'], capture_output=True,
      env=environment, text=True, timeout=300, check=True)
  assert 'wandb' not in done.stdout + done.stderr
  runs = {}
  for path in (tmp_path / 'study' / 'wandb').glob('offline-run-*/*.wandb'):
    rows = []
    for record in records(path):
      if record.WhichOneof('record_type') == 'run':
        run = record.run
      elif record.WhichOneof('record_type') == 'history':
        row = {'/'.join(item.nested_key) or item.key:
               json.loads(item.value_json) for item in record.history.item}
        rows.append({k: v for k, v in row.items() if not k.startswith('_')})
    assert (run.run_group, run.project) == ('study', 'rlhf_jax')
    runs[run.display_name] = rows
  assert runs == {
      'seed_0/sft/evaluation': [{'step': 0, 'proxy': .25}],
      'seed_0/sft/metrics': [{'step': 1, 'train/loss': 1},
                             {'step': 2, 'train/loss': .5}]}
  # The stage has no file more than without.
  assert {path.name for path in (tmp_path / 'study/seed_0/sft').iterdir()} == {
      'metrics.jsonl', 'evaluation.jsonl', 'result.json'}
  assert files.read_json(tmp_path / 'study/status.json')['exit_code'] == 0
