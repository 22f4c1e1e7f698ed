"""What a user waits for: the first training step of a process, and the demo.

  python -m benchmarks.starts ours <flags of rlhf-jax train>
  python -m benchmarks.starts trl DATA MODEL BATCH LENGTH

ends with the first training step, and fails if there is none. What only one of
them needs is imported where it is used.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarks import measure

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_DEMO = 'experiments/coste2024_reward_model_ensembles/fig3_best_of_n.py'


def _command(*argv: str, cache: pathlib.Path):
  """Runs a module; what it says counts only if it fails.

  Args:
    *argv: of `python -m`.
    cache: of compiled programs.
  """
  done = subprocess.run(
      [sys.executable, '-m', *argv], cwd=_ROOT, text=True, capture_output=True,
      env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache)})
  if done.returncode:
    raise RuntimeError(f'{argv} has failed:\n{done.stdout}{done.stderr}')


def prepare(folder: pathlib.Path) -> tuple[str, ...]:
  """Writes data.jsonl, and shape and tokenizer of our model, for the peer.

  Args:
    folder: to which both go; the latter as model/, of transformers.

  Returns:
    The flags of `rlhf-jax train` that make this model, but for --workdir.
  """
  data, workdir = folder / 'data.jsonl', f'--workdir={folder / "first"}'
  # Both sides find these columns by themselves.
  data.write_text(''.join(json.dumps({
      'prompt': f'What is {i} plus {i % 7}?', 'completion': f'{i + i % 7}.'})
      + '\n' for i in range(64)))
  flags = ('--algorithm=sft', '--size=smoke', f'--data={data}')
  stage = 'seed_0/sft'
  for words in (('train', *flags, f'--stages={stage}'),
                ('export', f'--stage={stage}', f'--directory={folder}/model')):
    _command('rlhf_jax', *words, workdir, cache=folder / 'cache')
  return flags


def first_step(quick: bool, *, cold: bool) -> measure.Case:
  """A start of `rlhf-jax train` against one of SFTTrainer, same shapes.

  Args:
    quick: without effect: it is a smoke.
    cold: whether nothing of ours is compiled yet.
  """
  del quick
  from rlhf_jax.configs import tasks
  size = tasks.SIZES['smoke']
  batch, length = size['batch'][0], size['prompt'] + size['response']
  # It goes with the case, whose functions hold it.
  folder = tempfile.TemporaryDirectory()
  path = pathlib.Path(folder.name)
  flags = prepare(path)
  new = lambda: pathlib.Path(tempfile.mkdtemp(dir=folder.name))

  def ours():
    _command('benchmarks.starts', 'ours', *flags, f'--workdir={new()}',
             cache=new() if cold else path / 'cache')
    return 1

  def peer():
    _command('benchmarks.starts', 'trl', f'{path}/data.jsonl', f'{path}/model',
             str(batch), str(length), cache=path / 'cache')
    return 1

  return measure.Case(
      ours=ours, peer=peer, unit='s', note='TRL; from the start of a process '
      f'to the end of its first step of SFT, {batch} rows of at most {length} '
      'tokens; ours by `rlhf-jax train`, which evaluates first, with '
      f'{"no program" if cold else "its programs"} in the cache')


def demo(quick: bool) -> dict[str, Any]:
  """Seconds of `make demo` with nothing compiled before, by its records."""
  size = 'smoke' if quick else 'laptop,world=long_tail'
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder, 'demo')
    _command('rlhf_jax.main', f'--config={_DEMO}:{size}',
             '--config.seeds=(601,)', f'--workdir={workdir}',
             cache=pathlib.Path(folder, 'cache'))
    records = [json.loads(path.read_text())
               for path in workdir.rglob('result.json')]
  records.sort(key=lambda record: -record['seconds'])
  return {'ours': sum(record['seconds'] for record in records), 'peer': None,
          'unit': 's', 'ratio': None, 'cpu_ratio': None,
          'note': f'no peer; {_DEMO}:{size}, by stage: ' + ', '.join(
              f'{record["stage"]} {record["seconds"]:.1f}'
              for record in records)}


def _ours(*flags: str):
  import jax

  from rlhf_jax import main
  from rlhf_jax import train
  steps = train.train

  def first(*args, **kwargs):
    for _, state, metrics in steps(*args, **kwargs):
      jax.block_until_ready((state, metrics))
      os._exit(0)
    return ()

  train.train = first
  main.run(['rlhf-jax', 'train', *flags])


def _trl(data: str, model: str, batch: str, length: str):
  import datasets
  import transformers
  import trl

  class End(transformers.TrainerCallback):

    def on_step_end(self, *args, **kwargs):
      os._exit(0)

  with open(data) as lines, tempfile.TemporaryDirectory() as directory:
    trl.SFTTrainer(
        transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(model)),
        args=trl.SFTConfig(
            output_dir=directory, max_steps=1, max_length=int(length),
            per_device_train_batch_size=int(batch), learning_rate=1e-3,
            bf16=False, use_cpu=True, gradient_checkpointing=False,
            report_to='none', disable_tqdm=True),
        train_dataset=datasets.Dataset.from_list(list(map(json.loads, lines))),
        processing_class=transformers.AutoTokenizer.from_pretrained(model),
        callbacks=[End()]).train()


if __name__ == '__main__':
  {'ours': _ours, 'trl': _trl}[sys.argv[1]](*sys.argv[2:])
  sys.exit('there was no training step')
