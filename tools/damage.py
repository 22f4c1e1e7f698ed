"""What may happen to a file, and what a workdir holds, bit for bit."""

from collections.abc import Iterator
import hashlib
import json
import os
import pathlib
import random
import re
from typing import Any
import warnings

from rlhf_jax import errors
from rlhf_jax.runner import workdirs
from rlhf_jax.storage import files

KINDS = ('flip', 'truncate', 'empty', 'delete', 'swap', 'link')
# Of a command and not of a study: who, when, how long.
NOTES = ('lock', 'log.txt', 'status.json')
_CLOCK = ('time', 'second')  # parts of the names of what a clock has measured


def paths(workdir: pathlib.Path) -> Iterator[pathlib.Path]:
  """The files of a study below its workdir, nothing that was set aside."""
  for root, below, names in os.walk(workdir):
    below[:] = sorted(name for name in below if not name.startswith('.')
                      and not name.endswith('.damaged'))
    for name in sorted(names):
      path = pathlib.Path(root, name)
      if not name.startswith('.') and path.relative_to(
          workdir).as_posix() not in NOTES:
        yield path


def twin(path: pathlib.Path, workdir: pathlib.Path, other: pathlib.Path
         ) -> pathlib.Path:
  """The same file of a study with another seed."""
  (ours,), (theirs,) = ({m[1] for x in root.iterdir()
                         if (m := re.fullmatch(r'seed_(\d+)', x.name))}
                        for root in (workdir, other))
  name = path.relative_to(workdir).as_posix()
  return other / re.sub(rf'(seeds?_){ours}\b', rf'\g<1>{theirs}', name)


def damage(path: pathlib.Path, kind: str, rng: random.Random,
           other: pathlib.Path | None = None) -> bool:
  """Does it to a file; whether that has changed what is read there.

  Args:
    path: of the file.
    kind: one of `KINDS`.
    rng: says which bit, and where the file is cut.
    other: of the file that takes its place, for 'swap' and 'link'.
  """
  data = path.read_bytes()
  if kind in ('swap', 'link'):
    if other is None or not other.is_file() or other.read_bytes() == data:
      return False
    path.unlink()
    if kind == 'swap':
      path.write_bytes(other.read_bytes())
    else:
      path.symlink_to(other)
    return True
  if kind == 'delete':
    path.unlink()
    return True
  changed = bytearray(data)
  if kind == 'empty':
    changed.clear()
  elif kind == 'truncate':
    del changed[rng.randrange(len(data) or 1):]
  elif data:
    bit = rng.randrange(8 * len(data))
    changed[bit // 8] ^= 1 << bit % 8
  path.unlink()  # of several names of it, which stages share, only this one
  path.write_bytes(changed)
  return changed != data


def leaves(step: pathlib.Path) -> list[str]:
  """The SHA-256 of every leaf of a checkpoint, as it can be read.

  Raises:
    CheckpointError: they are not those that the checkpoint says it has.
  """
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  from rlhf_jax.storage import noise

  def read(name, argument):
    with noise.quiet(), ocp.Checkpointer(
        ocp.CompositeCheckpointHandler()) as reader:
      return reader.restore(step, ocp.args.Composite(**{name: argument}))[name]

  try:
    record = read('meta', ocp.args.JsonRestore())
    expected = record.pop('sha256')
    same = files.digest(record) == expected
    items = record['items']
    digests = [leaf['sha256'] for item in items.values()
               for leaf in item.values()]
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # that no sharding was asked for
      trees = [read(name, ocp.args.StandardRestore()) for name in items]
    out = [files.array_digest(np.asarray(x)) for x in jax.tree.leaves(trees)]
  except Exception as error:  # Orbax raises anything
    raise errors.CheckpointError(
        f'{step}: {errors.first_line(error)}') from error
  if not same or sorted(digests) != sorted(out):
    raise errors.CheckpointError(f'{step}: SHA-256 differs')
  return sorted(out)


def steps(workdir: pathlib.Path) -> list[pathlib.Path]:
  """The newest checkpoint of every training, by where it is."""
  newest = {}
  for path in paths(workdir):
    step = path.parent.parent
    if path.name == 'metadata' and path.parent.name == 'meta':
      newest[step.parent] = max(
          step, newest.get(step.parent, step), key=lambda x: int(x.name))
  return sorted(newest.values())


def contents(workdir: pathlib.Path) -> dict[str, Any]:
  """What a study has made, by file, without what a clock has measured.

  Raises:
    CheckpointError: a file is damaged, or one of a complete stage is not as
      the stage has left it.
  """
  out = {}
  for path in paths(workdir):
    name = path.relative_to(workdir).as_posix()
    if path.name == workdirs.RESULT:
      record = workdirs.read_intact(path.parent)
      text = json.dumps(record['result']).replace(str(workdir), '')
      out[name] = [json.loads(text), record.get('recipe')]
    elif path.suffix == '.npz':
      out[name] = {key: hashlib.sha256(array.tobytes()).hexdigest()
                   for key, array in files.load_arrays(path).items()}
    elif path.suffix == '.jsonl':
      out[name] = files.read_jsonl(path)
    elif path.suffix == '.csv':
      out[name] = files.read_csv(path)
    elif path.name == 'config.json':
      out[name] = files.read_json(path)
    elif not any(part.isdecimal() for part in path.parts):
      out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  for step in steps(workdir):
    out[step.relative_to(workdir).as_posix()] = leaves(step)
  return json.loads(json.dumps({k: _untimed(v) for k, v in out.items()}))


def _untimed(value: Any) -> Any:
  if isinstance(value, dict):
    return {k: _untimed(v) for k, v in value.items()
            if not any(word in k for word in _CLOCK)}
  if isinstance(value, list):
    return [_untimed(item) for item in value]
  return value


def differences(ours: dict, theirs: dict) -> list[str]:
  """The files that are not the same."""
  return [name for name in sorted(ours.keys() | theirs.keys())
          if ours.get(name) != theirs.get(name)]
