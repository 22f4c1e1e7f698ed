"""The package builds as a wheel, with what it must have and nothing else.

`make wheel` installs it besides, into an environment of its own.
"""

import pathlib
import tempfile
import zipfile

from absl.testing import absltest
import wheels


class WheelTest(absltest.TestCase):

  def test_it_builds_and_is_whole(self):
    with tempfile.TemporaryDirectory() as name:
      wheel = wheels.build(pathlib.Path(name), isolated=False)
      self.assertEmpty(wheels.faults(wheel))
      # A test in it, and a module that is not, are seen.
      other = wheel.with_name('other.whl')
      with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(
          other, 'w') as copy:
        for member in source.namelist():
          if member != 'rlhf_jax/types.py':
            copy.writestr(member, source.read(member))
        copy.writestr('tests/worlds.py', '')
      self.assertEqual(wheels.faults(other), [
          'is missing: rlhf_jax/types.py', 'does not belong: tests/worlds.py'])


if __name__ == '__main__':
  absltest.main()
