"""A study under kill -9 and Ctrl-C ends in the same bits as one left alone."""

import functools
import hashlib
import json
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time

from absl.testing import absltest
import jax
import numpy as np
import worlds

from rlhf_jax import errors
from rlhf_jax.pipeline import artifacts
from rlhf_jax.stages import sft
from rlhf_jax.storage import files
from rlhf_jax.studies import plan

SMOKE = f'{worlds.FIGURE_3}:smoke'
RESULTS = 'report_seeds_0/results.csv'
SEED = 20260731  # of when to kill
KILLS = 5


def prints(workdir: pathlib.Path) -> dict[str, str]:
  """SHA-256 of the content of every array and leaf, optimizer and keys too."""
  out = {}
  for path in sorted(workdir.rglob('*.npz')):
    name = str(path.relative_to(workdir))
    for key, array in files.load_arrays(path).items():
      out[f'{name}:{key}'] = hashlib.sha256(array.tobytes()).hexdigest()
  for path in sorted(workdir.rglob('checkpoints')):
    newest = max((p for p in path.iterdir() if p.name.isdecimal()),
                 key=lambda p: int(p.name))
    record = json.loads((newest / 'meta/metadata').read_text())
    for item in record['items'].values():
      for leaf, entry in item.items():
        out[f'{newest.relative_to(workdir)}:{leaf}'] = entry['sha256']
  return out


def steps(workdir: pathlib.Path) -> dict[str, list[int]]:
  """The logged steps of every stage."""
  return {str(p.relative_to(workdir)): [
      json.loads(line)['step'] for line in p.read_text().splitlines()]
      for p in sorted(workdir.rglob('metrics.jsonl'))}


def without(others, actual: dict) -> dict:
  """Those of one condition: whose names hold none of `others`."""
  return {name: value for name, value in actual.items()
          if not any(other in name for other in others)}


def interrupt(workdir, number, ready, *arguments, delay=0.):
  """Starts the study, signals it once `ready()`; its code and its stderr."""
  process = subprocess.Popen(
      worlds.command(SMOKE, workdir, *arguments),
      cwd=worlds.ROOT, env=worlds.environment(),
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
  try:
    deadline = time.monotonic() + 300
    while process.poll() is None and not ready():
      assert time.monotonic() < deadline
      time.sleep(.002)
    time.sleep(delay)
    process.send_signal(number)
    _, log = process.communicate(timeout=120)
  finally:
    process.kill()
  return process.returncode, log


def finish(workdir, *arguments):
  done = worlds.launch(SMOKE, workdir, *arguments)
  assert done.returncode == 0, done.stderr
  return done


class ResumeTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.workdir = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.whole, _ = worlds.smoke()

  def check_interrupted(self, code, log):
    """Exit code 75 and one line that says what to do."""
    self.assertEqual(code, 75, log)
    self.assertNotIn('Traceback', log)
    last = log.splitlines()[-1]
    self.assertStartsWith(last, 'rlhf_jax: INTERRUPTED: saved at ')
    self.assertIn('run the same command to go on', last)
    self.assertEqual(log.count('INTERRUPTED'), 1)
    status = files.read_json(self.workdir / 'status.json')
    self.assertEqual((status['state'], status['exit_code']),
                     ('interrupted', 75))

  def check_condition(self, *others, row):
    """One condition alone gives what it gives beside `others`, in all bits."""
    ours, whole = prints(self.workdir), prints(self.whole)
    self.assertTrue(any('curves.npz' in name for name in ours))
    self.assertEqual(ours, without(others, whole))
    head, *rows = (self.whole / RESULTS).read_text().splitlines()
    rows = [line for line in rows if line.startswith(row)]
    self.assertEqual(
        (self.workdir / RESULTS).read_text().splitlines(), [head, *rows])
    # Of the same recipes, the report apart: it names its conditions.
    for path in self.workdir.glob('seed_0/**/result.json'):
      name = path.relative_to(self.workdir)
      recipes = [files.read_json(root / name)['recipe']
                 for root in (self.workdir, self.whole)]
      self.assertEqual(*recipes, name)

  def test_killed_five_times(self):
    rng = random.Random(SEED)
    arguments = ('--config.label_noise=(0.,)', '--config.force_eos=(False,)')
    others = ('forced_eos', 'noise_0.25')
    names = without(others, {str(p.parent.relative_to(self.whole)): p
                             for p in self.whole.rglob('result.json')})
    when = lambda name: (self.whole / name / 'result.json').stat().st_mtime_ns
    killed = 0
    for name in sorted(rng.sample(sorted(names), KILLS), key=when):
      delay = rng.uniform(0, .6)
      code, log = interrupt(self.workdir, signal.SIGKILL,
                            (self.workdir / name).exists, *arguments,
                            delay=delay)
      self.assertIn(code, (0, -9), f'{name} {delay}: {log}')
      killed += code == -9
    self.assertGreaterEqual(killed, KILLS - 1, f'seed {SEED}')
    finish(self.workdir, *arguments)
    self.check_condition(*others, row='0,False,0.0,')
    self.assertEqual(steps(self.workdir), without(others, steps(self.whole)))
    partial = [p for p in self.workdir.rglob('*') if 'tmp' in p.name]
    self.assertEqual(partial, [])

  def test_interrupted_twice(self):
    arguments = ('--config.label_noise=(0.25,)', '--config.force_eos=(True,)')
    for name in ('seed_0/gold', 'seed_0/forced_eos/samples/shard_0000.npz'):
      code, log = interrupt(self.workdir, signal.SIGINT,
                            (self.workdir / name).exists, *arguments)
      self.check_interrupted(code, log)
      self.assertFalse((self.workdir / RESULTS).exists())
    finish(self.workdir, *arguments)
    self.check_condition('as_sampled', 'noise_0/', row='0,True,0.25,')

  def test_interrupted_and_killed_in_training(self):
    arguments = ('--config.policy.num_steps=400', '--stages=sft')
    path = self.workdir / 'seed_0/sft/metrics.jsonl'
    logged = lambda: steps(self.workdir).get('seed_0/sft/metrics.jsonl', [])

    def lines_after(count):
      return lambda: path.exists() and path.read_bytes().count(
          b'\n') >= count

    code, log = interrupt(
        self.workdir, signal.SIGKILL, lines_after(1), *arguments)
    self.assertEqual(code, -9, log)
    path.unlink()
    code, log = interrupt(
        self.workdir, signal.SIGINT, lines_after(2), *arguments)
    self.check_interrupted(code, log)
    saved = int(re.search(r'saved at step (\d+) of sft', log)[1])
    code, log = interrupt(
        self.workdir, signal.SIGKILL, lines_after(len(logged()) + 1),
        *arguments)
    self.assertEqual(code, -9, log)
    self.assertGreater(logged()[-1], saved)  # these are lost, and done again
    finish(self.workdir, *arguments)
    self.assertEqual(logged(), [*range(20, 401, 20)])

    ours, ours_lines = prints(self.workdir), path.read_text().splitlines()
    other = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    finish(other, *arguments)
    self.assertEqual(ours, prints(other))
    whole = (other / 'seed_0/sft/metrics.jsonl').read_text().splitlines()
    values = lambda lines: {
        (row := json.loads(line))['step']: {
            k: v for k, v in row.items() if k.startswith('train/')}
        for line in lines}
    ours_values, whole_values = values(ours_lines), values(whole)
    self.assertLen(whole_values, 20)
    self.assertEqual(ours_values, whole_values)

  def test_a_finished_study_does_nothing(self):
    """Nor does it mind that its workdir has moved."""
    moved = self.workdir / 'moved'
    shutil.copytree(self.whole, moved)
    files = lambda: {str(p): (p.read_bytes(), p.stat().st_mtime_ns)
                     for p in moved.rglob('*') if p.is_file()
                     and p.name not in ('lock', 'log.txt', 'status.json')}
    before = files()
    done = finish(moved)
    self.assertEqual(files(), before)
    *lines, last = done.stdout.splitlines()
    self.assertLen(lines, 20)
    for line in lines:
      self.assertEndsWith(line, 'skipped, complete')
    self.assertEqual(pathlib.Path(last), moved / 'report_seeds_0/figure.png')
    self.assertEqual(done.stderr, '')


class FitTest(absltest.TestCase):

  def test_resumes_bitwise(self):
    """Stopped twice, it sees the same batches and ends in the same bits."""
    study, _ = worlds.smoke()
    stage = next(stage for stage in plan.plan(
        files.read_json(study / 'config.json')) if stage.name == 'seed_0/sft')
    self.assertIs(stage.run.func, sft.run)
    stopped, whole = worlds.folder(), worlds.folder()
    with worlds.devices(8):
      for steps in (3, 2):
        with self.assertRaises(errors.Interrupted):
          stage.run(worlds.Context(study, stopped, worlds.Stop(steps - 1)))
      stage.run(worlds.Context(study, stopped))
      stage.run(worlds.Context(study, whole))
    params = [artifacts.restore_policy(directory).params
              for directory in (stopped, whole, study / 'seed_0/sft')]
    jax.tree.map(np.testing.assert_array_equal, *params[:2])
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5),
                 *params[1:])  # another number of devices
    for directory in (stopped, whole):
      lines = files.read_jsonl(directory / 'metrics.jsonl')
      self.assertEqual([line['step'] for line in lines], [8])


if __name__ == '__main__':
  absltest.main()
