"""The front door, which writes down the streams that its stages ask for.

  python tests/recorder.py streams.jsonl --config=... --workdir=...

A line of the file is {'stage', 'seed', 'names'}, once for each of them. Beside
it, `programs.jsonl` has the name of each program that was compiled, or read
from the cache.
"""

import json
import pathlib
import sys

import jax

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
  programs = open(pathlib.Path(path).with_name('programs.jsonl'), 'a')

  def compiled(event, unused_seconds, fun_name='', **unused):
    if event == '/jax/core/compile/backend_compile_duration':
      print(json.dumps({'name': fun_name}), file=programs, flush=True)

  jax.monitoring.register_event_duration_secs_listener(compiled)


if __name__ == '__main__':
  record(sys.argv.pop(1))
  main.main()
