"""Tests for rlhf_jax.runner.cluster; processes that meet: processes_test."""

import os
import subprocess
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import worlds

from rlhf_jax import errors
from rlhf_jax.runner import cluster

# A child that says something below Python, and ends as it is told.
CHILD = """
import os, sys
from rlhf_jax.runner import cluster
cluster.supervise()
print('at work')
os.write(1, b'Gloo met its peers')
os.write(2, sys.argv[1].encode())
print('in Python', file=sys.stderr)
os.abort() if sys.argv[2] == 'abort' else os._exit(int(sys.argv[2]))
"""


class ClusterTest(parameterized.TestCase):

  @parameterized.parameters(
      (dict(coordinator='localhost:1'), 'together, or none'),
      (dict(coordinator='localhost:1', num_processes=2, process_id=2),
       r'process_id=2 is not in \[0, 2\)'),
      (dict(heartbeat=0), 'heartbeat=0 must be >= 1'))
  def test_flags(self, flags, message):
    with self.assertRaisesRegex(errors.ConfigError, message):
      cluster.Cluster(**flags)

  def test_environment(self):
    """SLURM, Open MPI and GKE are seen; one process is none of them."""
    several = lambda **variables: mock.patch.dict(os.environ, variables)
    self.assertFalse(cluster.Cluster().several)
    self.assertTrue(cluster.Cluster(coordinator='auto').several)
    self.assertFalse(cluster.Cluster('localhost:1', 1, 0).several)
    for variables in (
        dict(SLURM_STEP_NUM_TASKS='2'), dict(OMPI_COMM_WORLD_SIZE='4'),
        dict(TPU_WORKER_HOSTNAMES='a,b')):
      with several(**variables):
        self.assertTrue(cluster.Cluster().several, variables)
    for variables in (
        dict(SLURM_STEP_NUM_TASKS='1'), dict(TPU_WORKER_HOSTNAMES='localhost')):
      with several(**variables):
        self.assertFalse(cluster.Cluster().several, variables)

  @parameterized.parameters(
      ('F0 the coordination service says no', 'abort', 8, 1),
      ('F0 out of memory', 'abort', 128 + 6, 0),
      ('F0 of no interest', '75', 75, 0))
  def test_supervise(self, noise, end, code, lost):
    """One line for a peer that is lost; else what was said is not kept back."""
    done = subprocess.run(
        [sys.executable, '-c', CHILD, noise, end], cwd=worlds.ROOT,
        env=worlds.environment(), text=True, capture_output=True, timeout=60)
    self.assertEqual(done.returncode, code, done.stderr)
    self.assertEqual(done.stdout, 'at work\n')
    first, *lines = done.stderr.splitlines()
    self.assertEqual(first, 'in Python')
    self.assertLen([line for line in lines if line.startswith(
        'rlhf_jax: TOPOLOGY: another process')], lost)
    self.assertEqual(noise in done.stderr, end == 'abort' and not lost)
    if lost:
      self.assertLen(lines, 1)


if __name__ == '__main__':
  absltest.main()
