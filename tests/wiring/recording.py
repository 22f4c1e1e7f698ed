"""A study through its front door, with what passed the boundaries kept.

  python -m wiring.recording <folder> --config=... --workdir=...

runs `rlhf_jax.main` with these arguments in a process of its own. Three names
are replaced by themselves with a look at arguments and results; the product
has no hooks and runs the programs that it always runs:

  rlhf_jax.pipeline.fit.fit     states, batches and frozen parameters of every
                                training, its loop
  rlhf_jax.sources.online       what is sampled, scored on the host, annotated
  rlhf_jax.evaluation.monitor.Monitor.__call__  parameters and responses of
                                every evaluation

A training leaves <folder>/<its stage>.msgpack, see `load`. Arrays are NumPy's,
copied before the train step donates them; keys of random numbers are their
words, u32[2].
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
from typing import Any
from unittest import mock

from flax import serialization
import jax
import numpy as np
import optax
import worlds

ROOT = pathlib.Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Training:
  """One call of `fit`; states and batches are dicts of NumPy arrays.

  Attributes:
    start: the state before the first step, see `_state`.
    steps: {'batch', 'state', 'metrics'} of each: what it was given, what came
      out.
    num_steps: of its loop.
    frozen: what it may read: 'reference', 'reward', 'reward_scale', 'base'.
    prompts: [tokens, lengths] of all that an online source may ask.
    rollouts: of an online source, for each step: 'calls' of the sampler
      ('params_digest', 'tokens', 'lengths', 'key', 'rows'), 'sampled' (a
      batch), 'places' of its prompts and 'host_scores' f32[B, K] where texts
      are scored, 'digest' of the frozen parameters.
    evaluations: 'step', 'params', 'tokens', 'mask', 'proxy', 'row' of each.
  """

  start: dict[str, Any]
  num_steps: int
  frozen: dict[str, Any]
  steps: list[dict] = dataclasses.field(default_factory=list)
  prompts: list | None = None
  rollouts: list[dict] = dataclasses.field(default_factory=list)
  evaluations: list[dict] = dataclasses.field(default_factory=list)


def run(folder: pathlib.Path, config: pathlib.Path, workdir: pathlib.Path,
        *arguments: str):
  """Records a study, on one device.

  Args:
    folder: for what is kept.
    config: of the study, with its size.
    workdir: of the study.
    *arguments: others of the front door.

  Raises:
    CalledProcessError: it fails.
  """
  subprocess.run(
      [sys.executable, '-m', 'wiring.recording', str(folder),
       f'--config={config}', f'--workdir={workdir}', *arguments], cwd=ROOT,
      check=True, timeout=900, env=worlds.environment() | {
          'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}'})


def load(folder: pathlib.Path, stage: str) -> Training:
  """What a stage's training left."""
  return Training(**serialization.msgpack_restore(
      (folder / f'{stage}.msgpack').read_bytes()))


def restore(stage: pathlib.Path) -> Any:
  """The parameters that a stage left, by orbax alone."""
  import orbax.checkpoint as ocp

  step = max((stage / 'checkpoints').iterdir(), key=lambda x: int(x.name))
  with ocp.PyTreeCheckpointer() as reader:
    return jax.tree.map(np.asarray, reader.restore(step / 'params'))


def digest(tree: Any) -> str:
  """SHA-256 of the leaves of a tree, and of where they are."""
  sha = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    sha.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
  return sha.hexdigest()


# In the process that is recorded.


def _host(tree):
  """NumPy copies of a tree, plain where it is a dataclass of ours."""
  def copy(x):
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(
        x.dtype, jax.dtypes.prng_key):
      x = jax.random.key_data(x)
    return np.array(x)
  return jax.tree.map(copy, tree)


def _fields(x):
  """The fields of a dataclass that are there."""
  return {field.name: _host(getattr(x, field.name))
          for field in dataclasses.fields(x)
          if getattr(x, field.name) is not None}


def _state(state):
  """Of a TrainState: with Adam's 'mu' and 'nu' for its optimizer's."""
  fields = _fields(state.replace(opt_state=None, statistics=None))
  fields |= {name: _host(optax.tree.get(state.opt_state, name))
             for name in ('mu', 'nu')}
  statistics = dict(state.statistics or {})
  moments = statistics.pop('score_moments', None)
  if moments is not None:
    statistics['score_moments'] = _fields(moments)
  return fields | {'statistics': _host(statistics)}


class _Recorder:
  """Wraps the three boundaries; `training` is the one that is running."""

  def __init__(self, folder: pathlib.Path, workdir: pathlib.Path):
    self.folder, self.workdir = folder, workdir
    self.training, self.pending = None, {}

  def fit(self, real):
    def fit(context, state, source, step_fn, *, loop, frozen=None, **kwargs):
      self.training = training = Training(
          _state(state), loop.num_steps, {} if frozen is None else
          _fields(frozen), **self.pending)
      self.pending = {}

      def recorded_source(step, state, frozen):
        batch = source(step, state, frozen)
        kept = batch.batch if hasattr(batch, 'batch') else batch
        training.steps.append({'batch': _fields(kept)})
        return batch

      def recorded_step(state, batch, *extra):
        state, metrics = step_fn(state, batch, *extra)
        training.steps[-1] |= {'state': _state(state),
                               'metrics': _host(metrics)}
        return state, metrics

      try:
        return real(context, state, recorded_source, recorded_step, loop=loop,
                    frozen=frozen, **kwargs)
      finally:
        stage = context.directory.relative_to(self.workdir)
        path = self.folder / f'{stage}.msgpack'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(serialization.msgpack_serialize(vars(training)))
        self.training = None
    return fit

  def online(self, real):
    def online(prompts, sampler, annotated, *, score=None, **kwargs):
      rollouts, current = [], {'calls': []}
      self.pending = {'rollouts': rollouts, 'prompts': [
          _host(prompts.tokens), _host(prompts.lengths)]}

      def recorded_sampler(params, tokens, lengths, key, rows):
        current['calls'].append(_host({
            'tokens': tokens, 'lengths': lengths, 'key': key, 'rows': rows}
            ) | {'params_digest': digest(params)})
        return sampler(params, tokens, lengths, key, rows)

      def recorded_score(step, batch, places):
        scores = score(step, batch, places)
        current.update(_host({'host_scores': scores, 'places': places}))
        return scores

      def recorded_annotated(batch, state, frozen):
        rollouts.append({**current, 'sampled': _fields(batch),
                         'digest': digest([frozen.reference, frozen.reward])})
        current.clear()
        current['calls'] = []
        return annotated(batch, state, frozen)

      return real(prompts, recorded_sampler, recorded_annotated,
                  score=None if score is None else recorded_score, **kwargs)
    return online

  def evaluate(self, real):
    def evaluate(monitor, params, *, step):
      result = real(monitor, params, step=step)
      self.training.evaluations.append({
          'step': step, 'params': _host(params), 'row': dict(result.row),
          **{name: np.array(getattr(result, name))
             for name in ('tokens', 'mask', 'proxy')}})
      return result
    return evaluate


def _main(folder: str, *arguments: str) -> int:
  from rlhf_jax import main
  from rlhf_jax import sources
  from rlhf_jax.evaluation import monitor
  from rlhf_jax.pipeline import fit

  workdir = next(x.partition('=')[2] for x in arguments
                 if x.startswith('--workdir='))
  recorder = _Recorder(
      pathlib.Path(folder), pathlib.Path(workdir).absolute())
  with contextlib.ExitStack() as stack:
    for owner, name, wrap in (
        (fit, 'fit', recorder.fit), (sources, 'online', recorder.online),
        (monitor.Monitor, '__call__', recorder.evaluate)):
      stack.enter_context(mock.patch.object(
          owner, name, wrap(getattr(owner, name))))
    return main.run(['rlhf_jax.main', *arguments])


if __name__ == '__main__':
  sys.exit(_main(*sys.argv[1:]))
