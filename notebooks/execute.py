"""Runs each notebook in a copy: python notebooks/execute.py [name ...]

What they write is gone afterwards, and the files here stay without outputs.
The exit code is 1 if a cell fails or a notebook takes longer than `LIMIT`.
"""

import os
import pathlib
import sys
import tempfile
import time

import nbclient
import nbformat

HERE = pathlib.Path(__file__).resolve().parent
LIMIT = 600  # seconds of one cell, on a busy machine; two minutes on a calm one


def run(path: pathlib.Path) -> str:
  """What went wrong, in a line; nothing if all cells ran."""
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  with tempfile.TemporaryDirectory() as folder:
    client = nbclient.NotebookClient(
        notebook, timeout=LIMIT, kernel_name='python3',
        resources={'metadata': {'path': folder}})
    # By files, not by ports, where others on the machine could listen.
    manager = client.create_kernel_manager()
    manager.transport, manager.ip = 'ipc', os.path.join(folder, 'kernel')
    try:
      client.execute()
    except (nbclient.exceptions.CellExecutionError,
            nbclient.exceptions.CellTimeoutError) as error:
      return str(error).strip().splitlines()[-1]
  return ''


def main(names: list[str]) -> int:
  # Kernels begin in an empty folder: the package and papers.py are here.
  os.environ['PYTHONPATH'] = os.pathsep.join(
      [str(HERE.parent), str(HERE), os.environ.get('PYTHONPATH', '')])
  paths = [path for path in sorted(HERE.glob('*.ipynb'))
           if not names or path.stem in names]
  failed = False
  for path in paths:
    start = time.monotonic()
    wrong = run(path)
    failed |= bool(wrong)
    print(f'{path.name:<55}{time.monotonic() - start:6.1f} s  {wrong}',
          flush=True)
  return int(failed or not paths)


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
