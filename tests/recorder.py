"""The front door, which writes down the streams that its stages ask for.

  python tests/recorder.py streams.jsonl --config=... --workdir=...

A line of the file is {'stage', 'seed', 'names'}, once for each of them.
"""

import json
import sys

from rlhf_jax import main
from rlhf_jax import streams
from rlhf_jax.runner import run as run_lib


def record(path: str):
  """Has `streams` write each stream that a stage asks for, the first time."""
  number, complete = streams.number, run_lib._complete
  stages, lines, file = ['the plan'], set(), open(path, 'a')

  def recorded(seed, *names):
    line = json.dumps({'stage': stages[-1], 'seed': seed, 'names': names},
                      default=int)  # of numpy
    if line not in lines:
      lines.add(line)
      print(line, file=file, flush=True)
    return number(seed, *names)

  def completed(context, stage, *args, **kwargs):
    stages.append(stage.name)
    return complete(context, stage, *args, **kwargs)

  streams.number, run_lib._complete = recorded, completed


if __name__ == '__main__':
  record(sys.argv.pop(1))
  main.main()
