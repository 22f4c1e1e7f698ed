"""Several processes on one machine: the same numbers, and ends that agree."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from absl.testing import absltest
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.parallel import processes
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

CONFIG = 'tests/configs/methods.py:smoke'


def _port() -> int:
  with socket.socket() as listening:
    listening.bind(('127.0.0.1', 0))
    return listening.getsockname()[1]


def start(count: int, workdir, *, own=((), ())):
  """`count` processes of one run, which share two devices."""
  address, environment = f'127.0.0.1:{_port()}', worlds.environment() | {
      'JAX_NUM_CPU_DEVICES': str(2 // count)}
  several = [] if count == 1 else [
      [f'--coordinator={address}', f'--num_processes={count}',
       f'--process_id={i}', '--heartbeat=5'] for i in range(count)]
  return [subprocess.Popen(
      [*worlds.command(CONFIG, workdir), *more, *mine],
      cwd=worlds.ROOT, env=environment, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE) for more, mine in zip(several or [[]], own)]


def end(started) -> list[tuple[int, str, str]]:
  """(exit code, stdout, stderr) of each."""
  outputs = [process.communicate(timeout=300) for process in started]
  return [(process.returncode, *output)
          for process, output in zip(started, outputs)]


def complete(test, started):
  """Ends with success: process 0 says something, the others nothing."""
  owner, *others = end(started)
  test.assertEqual(owner[0], 0, owner[2])
  for code, stdout, stderr in others:
    test.assertEqual((code, stdout), (0, ''), stderr)
  return owner


def await_step(path: pathlib.Path, step: int, started):
  """Returns when a stage has logged a step."""
  deadline = time.monotonic() + 200
  while time.monotonic() < deadline:
    if path.exists() and path.read_bytes().count(b'\n') >= step:
      return
    assert all(process.poll() is None for process in started), end(started)
    time.sleep(.02)
  raise AssertionError(f'{path} has no step {step}')


def digests(workdir) -> dict[str, str]:
  """SHA-256 of every leaf of the last checkpoint of every stage."""
  actual = {}
  for meta in pathlib.Path(workdir).rglob('meta/metadata'):
    stage = meta.parents[2].relative_to(workdir)
    step = int(meta.parents[1].name)
    for item, leaves in files.read_json(meta)['items'].items():
      for leaf, entry in leaves.items():
        actual[f'{stage} {step:06d} {item} {leaf}'] = entry['sha256']
  return actual


def numbers(workdir) -> list[list[float]]:
  rows = worlds.rows(pathlib.Path(workdir, 'report_seeds_0', 'results.csv'))
  return [[float(x) for k, x in sorted(row.items())
           if x and not any(c.isalpha() for c in x) and k != 'seconds']
          for row in rows]


@functools.cache
def undisturbed(count: int) -> pathlib.Path:
  workdir = worlds.folder() / 'study'
  complete(absltest.TestCase(), start(count, workdir))
  return workdir


# What one process of two is told, as JSON.
AGREE = """
import json, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rlhf_jax import errors
from rlhf_jax.parallel import processes
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
mine = processes.index()
def refuse():
  raise errors.ConfigError('not so')
def within():  # the owner asks nobody
  return [mine, processes.any_of(False), processes.from_all('alone')]
def failure(function):
  try:
    processes.from_owner(function)
  except Exception as error:
    return [type(error).__name__, str(error)]
mesh = jax.make_mesh((2,), ('x',))
rows = jax.make_array_from_callback(
    (2,), NamedSharding(mesh, PartitionSpec('x')),
    lambda at: np.arange(2.)[at] + 1)
said = [
    processes.count(), processes.from_all({'mine': mine, 'text': 'x' * mine}),
    [processes.any_of(mine == who) for who in (0, 1, 2)],
    processes.from_owner(within), failure(refuse), failure(lambda: 1 / 0),
    processes.whole({'rows': rows, 'one': mine})['rows'].tolist()]
print(json.dumps([mine, said]), flush=True)
"""


class ProcessesTest(absltest.TestCase):

  def test_alone(self):
    """A single process agrees with itself, without a device."""
    self.assertEqual(processes.count(), 1)
    self.assertEqual(processes.from_owner(lambda: {'x': 3}), {'x': 3})
    self.assertEqual(processes.from_all([1]), [[1]])
    self.assertTrue(processes.any_of(True))
    self.assertFalse(processes.any_of(False))

  def test_agreement(self):
    address = f'127.0.0.1:{_port()}'
    environment = worlds.environment() | {'JAX_NUM_CPU_DEVICES': '1'}
    started = [subprocess.Popen(
        [sys.executable, '-c', AGREE, address, str(i)], cwd=worlds.ROOT,
        env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE) for i in range(2)]
    for i, (code, stdout, stderr) in enumerate(end(started)):
      self.assertEqual(code, 0, stderr)
      mine, (count, all_of, any_of, owners, refused, failed, rows) = json.loads(
          stdout.splitlines()[-1])
      self.assertEqual((mine, count), (i, 2))
      self.assertEqual(all_of, [
          {'mine': 0, 'text': ''}, {'mine': 1, 'text': 'x'}])
      self.assertEqual(any_of, [True, True, False])
      self.assertEqual(owners, [0, False, ['alone']])
      self.assertEqual(refused, ['ConfigError', 'not so'])
      self.assertEqual(failed, [
          ['ZeroDivisionError', 'RuntimeError'][i], 'division by zero'])
      self.assertEqual(rows, [1, 2])

  def test_equal_one_process(self):
    """SFT, an ensemble, DPO, RLOO and PPO, as whole stages."""
    one, two = map(undisturbed, (1, 2))
    np.testing.assert_allclose(numbers(two), numbers(one), rtol=1e-4, atol=1e-5)
    listing = lambda path: {
        str(file.relative_to(path)) for file in path.rglob('*')
        if not {'checkpoints', 'training'} & set(file.parts)}
    self.assertEqual(listing(two), listing(one))
    for path in two.rglob('metrics.jsonl'):  # each step once
      steps = [line['step'] for line in files.read_jsonl(path)]
      self.assertEqual(steps, sorted(set(steps)), path)

  def test_killed_and_stopped(self):
    """What is left of a run goes on to the same bits, whoever died, and how."""
    workdir = worlds.folder() / 'study'
    step = 1 + int(time.time()) % 4
    run = functools.partial(start, 2, workdir)

    with self.subTest(f'SIGKILL of process 1 at step {step} of PPO'):
      started = run()
      await_step(workdir / 'seed_0/policies/ppo/metrics.jsonl', step, started)
      started[1].kill()
      killed = time.monotonic()
      code, _, stderr = end(started[:1])[0]
      self.assertLess(time.monotonic() - killed, 20)
      self.assertEqual(code, errors.TopologyError.exit_code, stderr)
      self.assertRegex(stderr.splitlines()[-1],
                       '^rlhf_jax: TOPOLOGY: another process of this run died')
      # Nor do the libraries below print their stacks.
      self.assertNotRegex(stderr, r'(?m)^([EFIW]\d{4} |\*\*\* |\s+@ )')
    with self.subTest(f'SIGTERM to process 0 at step {step} of RLOO'):
      started = run()
      await_step(workdir / 'seed_0/policies/rloo/metrics.jsonl', step, started)
      started[0].send_signal(signal.SIGTERM)
      for code, _, stderr in end(started):
        self.assertEqual(code, errors.Interrupted.exit_code, stderr)
        self.assertIn('run the same command to go on', stderr.splitlines()[-1])
    complete(self, run())
    self.assertEqual(digests(workdir), digests(undisturbed(2)))

  def test_disagreement(self):
    """Refused before anything is written."""
    workdir = worlds.folder() / 'study'
    for code, stdout, stderr in end(start(
        2, workdir, own=((), ('--config.gold.num_steps=3',)))):
      self.assertEqual((code, stdout), (errors.TopologyError.exit_code, ''))
      self.assertRegex(stderr.splitlines()[-1],
                       'process 1 of 2 was started with another config')
    self.assertFalse(workdir.exists())

  def test_second_owner(self):
    """Every process of the second run says so."""
    workdir = undisturbed(2)
    with workdirs.locked(workdir):
      for code, _, stderr in end(start(2, workdir)):
        self.assertEqual(code, errors.WorkdirLockedError.exit_code, stderr)
        self.assertRegex(
            stderr.splitlines()[-1], f'is in use by .*{os.getpid()}')


if __name__ == '__main__':
  absltest.main()
