"""What tests of the upper half share: studies, worlds and contexts.

A finished study takes longer than the test that reads it, so each is made once
a run of the suite, on disk, by whichever process comes first; the others wait
at its lock.
"""

import atexit
import contextlib
import csv
import dataclasses
import fcntl
import functools
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import numpy as np

from rlhf_jax import errors
from rlhf_jax.data import corpus as corpus_lib
from rlhf_jax.data import load as load_lib
from rlhf_jax.data import tokenizer
from rlhf_jax.models import convert
from rlhf_jax.models import pretrained
from rlhf_jax.models import transformer
from rlhf_jax.parallel import meshes
from rlhf_jax.pipeline import artifacts
from rlhf_jax.pipeline import fit as fit_lib
from rlhf_jax.rewards import models as reward_models
from rlhf_jax.runner import bars
from rlhf_jax.storage import checkpoint
from rlhf_jax.storage import files
from rlhf_jax.storage import metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
COSTE = 'experiments/coste2024_reward_model_ensembles'
AHMADIAN = 'experiments/ahmadian2024_back_to_basics'
BAHETI = 'experiments/baheti2024_leftover_lunch'
ZHU = 'experiments/zhu2023_advantage_induced_policy_alignment'
FIGURE_3 = f'{COSTE}/fig3_best_of_n.py'
# A smoke study of each kind, and of each kind of data and of figure.
SMOKES = (
    FIGURE_3,
    f'{COSTE}/fig4_ppo.py', f'{COSTE}/table6_win_rates.py',
    f'{COSTE}/fig15_validation_loss.py',
    f'{AHMADIAN}/fig3_rloo_raft.py', f'{AHMADIAN}/fig2_methods.py',
    f'{AHMADIAN}/table1_win_rates.py',
    'experiments/rlhf_notes/iterated.py',
    f'{BAHETI}/fig2_validation_reward.py', f'{BAHETI}/table2_methods.py',
    f'{BAHETI}/fig5_components.py', f'{BAHETI}/comet.py',
    f'{ZHU}/fig9_offline.py',
)
# Whose stages one takes over; where nothing else is said, those of figure 3.
REUSED = {
    FIGURE_3: (),
    f'{COSTE}/table6_win_rates.py': (f'{COSTE}/fig4_ppo.py',),
    f'{AHMADIAN}/fig2_methods.py': (f'{AHMADIAN}/fig3_rloo_raft.py',),
    f'{AHMADIAN}/table1_win_rates.py': (f'{AHMADIAN}/fig2_methods.py',),
    f'{BAHETI}/table2_methods.py': (f'{BAHETI}/fig2_validation_reward.py',),
    f'{BAHETI}/fig5_components.py': (),  # a corpus of its own
    f'{BAHETI}/comet.py': (),
}


def _shared() -> pathlib.Path:
  """One directory for all processes of a run of the suite; see conftest.py."""
  if 'RLHF_JAX_TEST_WORLDS' in os.environ:
    return pathlib.Path(os.environ['RLHF_JAX_TEST_WORLDS'])
  path = tempfile.mkdtemp(prefix='rlhf_jax_worlds_')  # a test without pytest
  atexit.register(shutil.rmtree, path, ignore_errors=True)
  return pathlib.Path(path)


SHARED = _shared()


def folder() -> pathlib.Path:
  """A new empty directory, gone after the tests."""
  SHARED.mkdir(exist_ok=True)
  return pathlib.Path(tempfile.mkdtemp(dir=SHARED))


def once(name: str, make) -> pathlib.Path:
  """The directory that `make` has filled, the first time it is asked for."""
  SHARED.mkdir(exist_ok=True)
  path, complete = SHARED / name, SHARED / f'{name}.complete'
  with open(SHARED / f'{name}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not complete.exists():
      shutil.rmtree(path, ignore_errors=True)
      path.mkdir()
      make(path)
      complete.touch()
  return path


def importable(case, directory: pathlib.Path):
  """Makes the modules of a directory importable, for one test."""
  case.enterContext(mock.patch.object(sys, 'path', [str(directory), *sys.path]))


@contextlib.contextmanager
def inside(directory: pathlib.Path):
  """In another working directory."""
  before = os.getcwd()
  os.chdir(directory)
  try:
    yield
  finally:
    os.chdir(before)


# The front door, and the studies that it has finished.


def environment() -> dict[str, str]:
  """One device, so that a run is what a user would see."""
  return os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'}


def command(config: str, workdir, *arguments: str) -> list[str]:
  return [sys.executable, '-m', 'rlhf_jax.main', f'--config={config}',
          f'--workdir={workdir}', *arguments]


def launch(config: str, workdir, *arguments: str):
  """Runs the front door to its end."""
  return _launch(command(config, workdir, *arguments))


def _launch(arguments, **variables):
  return subprocess.run(
      arguments, cwd=ROOT, env=environment() | variables, capture_output=True,
      text=True, timeout=600)


def get_config(config: str, size: str = 'laptop') -> dict:
  """What a config file says, as plain values."""
  spec = importlib.util.spec_from_file_location('config', ROOT / config)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(size).to_dict()


# How eight devices are used in the smoke of a study of each kind.
EIGHT = {
    FIGURE_3: dict(fsdp=2, tensor=2), f'{COSTE}/fig4_ppo.py': dict(fsdp=8),
    f'{BAHETI}/fig2_validation_reward.py': dict(fsdp=2),
    'experiments/rlhf_notes/iterated.py': dict(member=2, fsdp=2)}


def smoke(config: str = FIGURE_3, num_devices: int = 1
          ) -> tuple[pathlib.Path, dict]:
  """The workdir of a finished smoke study, and what its command printed.

  It takes over what those of `REUSED` have made, on as many devices. Beside
  the workdir, `streams.jsonl` says which streams it has asked for.

  Args:
    config: path of the file.
    num_devices: 1, or 8, used as `EIGHT` says.
  """
  reused = [smoke(other, num_devices)[0]
            for other in REUSED.get(config, (FIGURE_3,))]
  axes = EIGHT[config] if num_devices == 8 else {}

  def make(path):
    arguments = [f'--config.mesh.{axis}={size}' for axis, size in axes.items()]
    if reused:
      arguments.append(f'--reuse={",".join(map(str, reused))}')
    python, _, _, *flags = command(
        f'{config}:smoke', path / 'study', *arguments)
    done = _launch(
        [python, ROOT / 'tests/recorder.py', path / 'streams.jsonl', *flags],
        JAX_NUM_CPU_DEVICES=str(num_devices))
    files.write_json(path / 'done.json', {
        'code': done.returncode, 'stdout': done.stdout,
        'stderr': done.stderr})

  name = config.removeprefix('experiments/').removesuffix('.py')
  path = once(f'smoke_{num_devices}_{name.replace("/", "_")}', make)
  done = files.read_json(path / 'done.json')
  assert done['code'] == 0, done['stderr']
  return path / 'study', done


def rows(path: pathlib.Path) -> list[dict[str, str]]:
  """The rows of a .csv file."""
  with open(path, newline='') as stream:
    return list(csv.DictReader(stream))


# Texts of a user in files, and a model to load.

ALPACA = [{'instruction': f'count to {i}', 'output': f'it is {i}, my dear'}
          for i in range(40)]
HH = [{'chosen': f'\n\nHuman: is {i} odd?\n\nAssistant: yes dear {i}',
       'rejected': f'\n\nHuman: is {i} odd?\n\nAssistant: no {i}'}
      for i in range(40)]


def loaded() -> pathlib.Path:
  """A directory with `alpaca.json`, `hh.jsonl` and a `model`.

  The model has more embeddings than its tokenizer has tokens.
  """
  return once('loaded', _make_loaded)


def _make_loaded(directory: pathlib.Path):
  files.write_json(directory / 'alpaca.json', ALPACA)
  files.write_jsonl(directory / 'hh.jsonl', HH)
  coder = tokenizer.Tokenizer.train_bpe(
      [x['output'] for x in ALPACA], vocab_size=270,
      control=('<|prompter|>', '<|assistant|>'))
  config = transformer.make_config(
      'gpt_neox', vocab_size=288, hidden_size=16, num_layers=3, num_heads=2,
      max_positions=None)
  convert.save(directory / 'model', config, jax.jit(
      transformer.init, static_argnums=0)(config, jax.random.key(5)))
  coder.save_directory(directory / 'model')


def on_files(config: dict, preferences: bool = True) -> dict:
  """The config of a study on these texts, with these models' tokenizer."""
  config['data']['path'] = str(loaded() / 'alpaca.json')
  if preferences:
    config['data']['preferences'] = str(loaded() / 'hh.jsonl')
  config['data']['files'].update(max_prompt_length=40, max_response_length=16)
  config['gold']['held_out'] = 8
  return config


# Contexts, and a world that nothing has trained.


class Stop:
  """Asks to stop after so many steps."""

  def __init__(self, steps=10**9):
    self._left = steps

  def requested(self, step=0):
    del step
    self._left -= 1
    return self._left < 0

  def check(self, where):
    if self._left < 0:
      self.stop(where)

  def stop(self, where):
    raise errors.Interrupted(where)


@functools.cache
def mesh() -> jax.sharding.Mesh:
  """Of the first device alone, for which programs compile faster."""
  return meshes.make(devices=jax.devices()[:1])


def devices(count: int = 8, **axes: int) -> contextlib.AbstractContextManager:
  """A mesh in use over the first devices; none over one.

  Args:
    count: of devices.
    **axes: of `meshes.make`.
  """
  if count == 1:
    return contextlib.nullcontext()
  return jax.set_mesh(meshes.make(
      {'data': -1, **axes}, jax.devices()[:count]))


class Context:
  """Of a stage that reads a workdir and writes to a directory of its own."""

  def __init__(self, workdir: pathlib.Path, directory=None, stop=None,
               num_devices: int = 1):
    self.workdir = workdir
    self.directory = pathlib.Path(directory or folder())
    self.stop = stop or Stop()
    self.devices = functools.partial(devices, num_devices)
    self.shown, self.key, self.strict = [], None, False
    self.name = self.directory.name
    self.show = self.log = self.shown.append
    self.progress = bars.Bar

  def writer(self, name: str) -> metrics.MetricsWriter:
    return metrics.MetricsWriter(self.directory / f'{name}.jsonl')

  def directory_of(self, name: str) -> pathlib.Path:
    self.result_of(name)
    return self.workdir / name

  def result_of(self, name: str) -> dict:
    return files.read_json(self.workdir / name / 'result.json')['result']

  def lines(self, name: str) -> list[dict]:
    """Of a .jsonl file, without what differs between two equal runs."""
    return [{k: v for k, v in line.items() if k != 'time'}
            for line in files.read_jsonl(self.directory / f'{name}.jsonl')]


DATA = dict(name='reviews', num_demonstrations=24, num_pair_prompts=8,
            num_eval_prompts=4, max_response_length=12)
MODEL = dict(family='llama', hidden_size=16, num_layers=1, num_heads=2)
NUM_PAIRS, NUM_MEMBERS = 24, 2


def loaded_node(**tuning) -> dict:
  """A model that is loaded and reads the small world; what of it is trained."""
  return dict(path=str(once('loaded_small', _make_loaded_small) / 'model'),
              **tuning)


def _make_loaded_small(directory: pathlib.Path):
  shape = pretrained.config(
      MODEL | {'num_layers': 2}, corpus().tokenizer.vocab_size)
  convert.save(directory / 'model', shape, transformer.init(
      shape, jax.random.key(5)))


def corpus_of(seed: int) -> corpus_lib.Corpus:
  return load_lib.load(DATA, seed)


def corpus() -> corpus_lib.Corpus:
  return corpus_of(0)


def logged_corpus(**changes) -> corpus_lib.Corpus:
  """Whose log has up to three responses to each of six prompts, 16 in all.

  Each has one vote more than the one before it.

  Args:
    **changes: fields of its `corpus.Log`.
  """
  rows = corpus().demonstrations
  at = np.arange(18).reshape(6, 3)
  mask = rows.mask[at, 0]
  mask[1, 2] = mask[4, 0] = False
  missing = ~mask.any(axis=-1)
  log = corpus_lib.Log(
      tokens=rows.tokens[at, 0], mask=mask,
      group=np.where(missing, -1, at % 2).astype(np.int32),
      groups=('up', 'down'),
      scores={'votes': np.where(missing, np.nan, at).astype(np.float32)})
  return dataclasses.replace(
      corpus(), log=dataclasses.replace(log, **changes))


def config() -> transformer.Config:
  return pretrained.config(MODEL, corpus().tokenizer.vocab_size)


def save(workdir: pathlib.Path, name: str, result: dict, *, params=None,
         kind: str | None = None, num_members: int | None = None, **arrays):
  """A complete stage of a workdir, as if it had run.

  Args:
    workdir: of the study.
    name: of the stage.
    result: what it returned.
    params: of its model; `kind` and `num_members` of `write_model` say which.
    kind: 'policy' or 'reward'.
    num_members: of an ensemble.
    **arrays: by the name of their .npz file, {name: array} each.
  """
  context = Context(workdir, workdir / name)
  context.directory.mkdir(parents=True, exist_ok=True)
  if params is not None:
    with checkpoint.Checkpointer(context.directory / 'checkpoints') as saver:
      saver.save(0, params)
    artifacts.write_model(context, kind, MODEL, corpus().tokenizer, texts=None,
                          num_members=num_members)
  for file, values in arrays.items():
    files.save_arrays(context.directory / f'{file}.npz', **values)
  files.write_json(context.directory / 'result.json', {'result': result})


def cut(tokens, mask, count):
  """Responses [N, T] without their last tokens, the EOS among them."""
  left = np.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > count
  return np.where(mask & ~left, 0, tokens), mask & left


def untrained() -> pathlib.Path:
  """A workdir with a policy, a gold model, proxies and pairs.

  They come out of nowhere: 'sft', 'gold' (that has learned the column 'votes'
  in units of mean 0 and deviation 1), 'proxies' and 'pairs'.
  """
  return once('untrained', _make_untrained)


def _make_untrained(workdir: pathlib.Path):
  keys = jax.random.split(jax.random.key(0), 3)
  save(workdir, 'sft', {'corpus': corpus().fingerprint()}, kind='policy',
       params=transformer.init(config(), keys[0]))
  save(workdir, 'gold', {'target_mean': 0., 'target_std': 1.}, kind='reward',
       params=reward_models.init(config(), keys[1]))
  save(workdir, 'proxies', {}, kind='reward', num_members=NUM_MEMBERS,
       params=reward_models.init_members(
           config(), jax.random.split(keys[2], NUM_MEMBERS)),
       scale={'mean': np.float32([.1, -.2]), 'std': np.float32([.5, 2.])})
  demonstrations = corpus().demonstrations
  first = demonstrations.tokens[:, 0], demonstrations.mask[:, 0]
  tokens, mask = (np.stack(x, axis=1) for x in zip(first, cut(*first, 3)))
  scores = np.random.default_rng(0).normal(size=(NUM_PAIRS, 2))
  save(workdir, 'pairs', {'gold_mean': .1, 'gold_std': .7}, pairs=dict(
      tokens=tokens, mask=mask, gold_scores=scores.astype(np.float32)))


def copy(workdir: pathlib.Path, target: pathlib.Path):
  """The stages of a workdir, to be changed."""
  shutil.copytree(workdir, target, dirs_exist_ok=True)


def replace(workdir: pathlib.Path, name: str, params):
  """Gives a stage of a copied workdir other parameters."""
  shutil.rmtree(workdir / name / 'checkpoints')
  with checkpoint.Checkpointer(workdir / name / 'checkpoints') as saver:
    saver.save(0, params)


def loop_of(stage):
  """The `fit.Loop` with which a stage would train."""
  with mock.patch.object(fit_lib, 'fit', side_effect=InterruptedError) as fit:
    try:
      stage()
    except InterruptedError:
      return fit.call_args.kwargs['loop']


def curves(**runs):
  """Rows of {run: {seed: values}}, at steps 0, 1, ... and a KL of 0, 2, ..."""
  return [{'seed': seed, 'run': run, 'method': run[0], 'gold': str(x),
           'kl': str(2 * i), 'step': str(i)}
          for run, seeds in runs.items() for seed, values in seeds.items()
          for i, x in enumerate(values)]
