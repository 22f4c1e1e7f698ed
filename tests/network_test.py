"""Studies where there is no network: no interface, and no loopback either.

Linux lets a process be in a network namespace of its own, which has none. What
a study needs from elsewhere, even by accident of a library, fails there.
"""

import shutil
import subprocess
import sys

from absl.testing import absltest
from absl.testing import parameterized
import worlds

ALONE = ('unshare', '--map-root-user', '--net')
CONNECT = "import socket; socket.create_connection(('127.0.0.1', 9), 5)"


def alone(*arguments: str) -> subprocess.CompletedProcess:
  """Runs Python in a network namespace of its own."""
  return subprocess.run(
      [*ALONE, sys.executable, *arguments], cwd=worlds.ROOT, text=True,
      env=worlds.environment(), capture_output=True, timeout=600)


def permitted() -> bool:
  return bool(shutil.which('unshare')) and subprocess.run(
      [*ALONE, 'true'], capture_output=True).returncode == 0


@absltest.skipUnless(permitted(), 'namespaces are not permitted here')
class NetworkTest(parameterized.TestCase):

  def test_there_is_none(self):
    self.assertIn('Network is unreachable', alone('-c', CONNECT).stderr)

  @parameterized.parameters(
      worlds.FIGURE_3, f'{worlds.BAHETI}/fig2_validation_reward.py')
  def test_a_study_is_the_same(self, config):
    """To the last digit of its results."""
    workdir = worlds.folder() / 'study'
    _, *run = worlds.command(f'{config}:smoke', workdir)
    done = alone(*run)
    self.assertEqual(done.returncode, 0, done.stderr)
    path, = workdir.glob('report_seeds_*/results.csv')
    other, = worlds.smoke(config)[0].glob('report_seeds_*/results.csv')
    self.assertEqual(timeless(path), timeless(other))


def timeless(path) -> list[dict]:
  """Its rows without the column of seconds."""
  return [{name: text for name, text in row.items() if name != 'time'}
          for row in worlds.rows(path)]


if __name__ == '__main__':
  absltest.main()
