"""Builds the wheel, and runs it where nothing else of the project is.

  python tests/wheels.py [--install]

The wheel is built of the files that git knows. In it are all
modules of the package, `py.typed` and the license, and nothing beside them.
With --install it goes into an environment of its own with all that it asks
for, which takes minutes, and the command runs there from an empty folder.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import venv
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[1]


def tracked() -> list[str]:
  """Files that git knows, and those that it would."""
  return subprocess.run(
      ['git', 'ls-files', '--cached', '--others', '--exclude-standard'],
      cwd=ROOT, check=True, capture_output=True, text=True).stdout.split('\n')


def build(folder: pathlib.Path, *, isolated: bool = True) -> pathlib.Path:
  """The wheel, built in a copy, below an empty folder.

  Args:
    folder: empty.
    isolated: whether pip gets setuptools of the version that is asked for;
      needs the package index.
  """
  source = folder / 'source'
  for name in filter(None, tracked()):
    if not name.startswith('rlhf_jax/') and '/' in name:
      continue  # tests must not be in it, and results are large
    if (ROOT / name).is_file():
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      (source / name).write_bytes((ROOT / name).read_bytes())
  subprocess.run(
      [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps',
       '--disable-pip-version-check', '--wheel-dir', folder / 'dist',
       *([] if isolated else ['--no-build-isolation']), source],
      check=True, cwd=folder)
  wheel, = (folder / 'dist').glob('*.whl')
  return wheel


def faults(wheel: pathlib.Path) -> list[str]:
  """What is missing in a wheel, or should not be there."""
  with zipfile.ZipFile(wheel) as archive:
    names = {*archive.namelist()}
    scripts, = (name for name in names if name.endswith('entry_points.txt'))
    commands = archive.read(scripts).decode()
  wanted = {name for name in tracked() if name.startswith('rlhf_jax/')
            and (ROOT / name).is_file()}
  own = {name for name in names if '.dist-info/' not in name}
  result = [f'is missing: {name}' for name in sorted(wanted - own)]
  result += [f'does not belong: {name}' for name in sorted(own - wanted)]
  if not any(name.endswith('/LICENSE') for name in names):
    result.append('is missing: LICENSE')
  if 'rlhf-jax = rlhf_jax.main:main' not in commands:
    result.append('is missing: the command rlhf-jax')
  return result


def install(wheel: pathlib.Path, folder: pathlib.Path):
  """Runs it in an environment of its own, in an empty folder."""
  venv.create(folder / 'venv', with_pip=True)
  run = lambda *words: subprocess.run(words, check=True, cwd=folder / 'empty')
  (folder / 'empty').mkdir()
  bin_ = folder / 'venv' / 'bin'
  run(bin_ / 'python', '-m', 'pip', 'install', '--quiet', wheel)
  run(bin_ / 'rlhf-jax', '--version')
  run(bin_ / 'rlhf-jax', 'train', '--help')
  run(bin_ / 'python', '-c',
      'from rlhf_jax import testing\n'
      'from rlhf_jax.objectives import sft\n'
      'testing.check_objective(sft.objective)')


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--install', action='store_true')
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    wheel = build(folder)
    wrong = faults(wheel)
    print('\n'.join(wrong) or f'{wheel.name} has what it must')
    if options.install and not wrong:
      install(wheel, folder)
  return int(bool(wrong))


if __name__ == '__main__':
  sys.exit(main())
