"""Trains a policy, or reward models, on your own data.

  rlhf-jax train --algorithm=dpo --data=pairs.jsonl --model=models/mine \\
      --workdir=runs/dpo [--lora=8] [--size=smoke|laptop|full]
  rlhf-jax train --algorithm=rloo --data=prompts.jsonl --model=models/mine \\
      --reward=rewards:polite --workdir=runs/rloo
  rlhf-jax train --algorithm=reward --data=pairs.jsonl --members=5 \\
      --workdir=runs/rewards

--algorithm is `reward` or a row of the algorithm table that trains a policy,
by its name: sft, dpo, simpo, a_lol, rloo, ppo, ... The kind of a file is found
by its columns. Only the stages that are needed are made. What no flag says is
filled in and printed; --print_config prints all of it, and every field of it is
a flag, such as --config.online.rollout.temperature=0.7 or --config.mesh.fsdp=4.
The same command again goes on where it was.
"""

import dataclasses
import pathlib
import types
import typing

from absl import flags

from rlhf_jax import errors
from rlhf_jax.commands import arguments
from rlhf_jax.commands import config_files
from rlhf_jax.commands import launch
from rlhf_jax.configs import base
from rlhf_jax.configs import tasks
from rlhf_jax.parallel import processes

_HELP = {
    'algorithm': "'reward', or a row of the table that trains a policy",
    'data': 'a file or directory: prompts for algorithms that sample, pairs, '
            'ranked or logged responses, demonstrations for others',
    'model': "where training starts: 'scratch', 'smollm2', a directory of "
             'transformers, a .gguf or a llama2.c .bin file',
    'reward': "module:function(prompts, responses) -> numbers; a directory of "
              'reward models (a stage, an export, or of transformers); a score '
              'of the logged responses; or vader, readability, exact_match',
    'objective': "your own loss, module:function(out, batch, **arguments), on "
                 "the data and annotators of the algorithm's row; "
                 'rlhf_jax.testing.check_objective holds it to the laws',
    'reward_range': 'of a function, least,largest: values outside are an '
                    'error; A-LOL needs one, from 0 on',
    'on_bad_reward': "of a function that gives None, NaN or infinity: 'error' "
                     "(exit 6), or 'drop', which leaves the prompt out with "
                     'all its samples; where the algorithm samples',
    'preferences': 'pairs that reward models learn from first, where the '
                   'algorithm samples',
    'size': "'smoke' (minutes, no meaning), 'laptop' or 'full': steps, batch "
            'and lengths, where nothing else says them',
    'seed': 'of everything',
    'steps': 'of the optimizer, or rollouts; of reward models, in whole epochs',
    'sft_steps': 'of supervised fine-tuning before, on the same data; 0 if a '
                 'model is loaded',
    'batch_size': 'examples or prompts of a step',
    'learning_rate': "of the algorithm's own training; by rule of thumb, as "
                     'in stages before it, 1e-3 from scratch, 1e-5 for loaded '
                     'models, 2e-4 for adapters',
    'samples': 'responses to each prompt of a rollout',
    'members': 'reward models of an ensemble',
    'aggregate': 'what an ensemble says: mean, worst_case, '
                 'uncertainty_weighted',
    'kl_coef': "of the penalty to the initial policy; the row's own if absent",
    'lora': 'rank of adapters, of the policy and of reward models that are '
            'trained; 0: all of each is trained',
    'kind': 'of the data, where its columns do not tell',
    'columns': 'what columns are called: prompt=question,chosen=better',
    'split': 'of data that has several',
    'format': "of prompts, by name, see data.formats; a loaded model's own if "
              'absent',
    'allow_checkpoint_template': "whether --format=chat_template may run the "
                                 'template that came with the model, a program '
                                 'by somebody else, in a sandbox',
    'max_prompt_length': 'in tokens; longer prompts lose their front',
    'max_response_length': 'in tokens, the EOS included',
    'eval_prompts': 'prompts held out for evaluation',
    'max_bad_rows': 'malformed rows that may be left out',
}


def define(values: flags.FlagValues):
  """Adds a flag for each field of `tasks.Task`."""
  for field in dataclasses.fields(tasks.Task):
    help_ = _HELP[field.name]
    if field.name in ('columns', 'reward_range'):
      flags.DEFINE_list(field.name, [], help_, flag_values=values)
      continue
    kind = field.type
    if isinstance(kind, types.UnionType):
      kind, _ = typing.get_args(kind)
    make = {str: flags.DEFINE_string, int: flags.DEFINE_integer,
            float: flags.DEFINE_float, bool: flags.DEFINE_boolean}[kind]
    default = field.default
    if default is dataclasses.MISSING:
      default = None
    make(field.name, default, help_, flag_values=values)


def task(values: flags.FlagValues) -> tasks.Task:
  """What parsed flags ask for."""
  fields = {field.name: values[field.name].value
            for field in dataclasses.fields(tasks.Task)}
  return tasks.Task(**fields | {
      'columns': _columns(fields['columns']),
      'reward_range': _range(fields['reward_range'])})


def _range(words: list[str]) -> tuple[float, float] | None:
  try:
    low, high = map(float, words or (0, 1))
    if low < high:
      return (low, high) if words else None
  except ValueError:
    pass
  raise errors.ConfigError(
      f'--reward_range={",".join(words)}: give least,largest, such as 0,1')


def _columns(words: list[str]) -> tuple[tuple[str, str], ...]:
  pairs = []
  for word in words:
    name, equals, column = word.partition('=')
    if not (name and equals and column):
      raise errors.ConfigError(
          f'--columns has {word!r}; give <name>=<column>,...')
    if name not in base.COLUMNS:
      raise errors.ConfigError(f'--columns has {word!r}; of these names '
                               f'{errors.nearest(name, base.COLUMNS)}')
    pairs.append((name, column))
  return tuple(pairs)


def configure(argv: list[str], doc: str, *, trains: bool = False) -> tuple[
    dict, list[str], flags.FlagValues]:
  """The config that flags describe, what to say of it, and the other flags.

  Args:
    argv: name of the command, and flags.
    doc: see `arguments.parse`.
    trains: whether a workdir is needed, unless it is only planned or shown.

  Raises:
    UserError: of whatever kind.
  """
  argv, values = launch.spelled_out(argv), flags.FlagValues()
  launch.define(values)
  define(values)
  flags.DEFINE_boolean('print_config', False, 'print the config and end',
                       flag_values=values)
  changes = [word for word in argv[1:] if word.startswith('--config.')]
  arguments.parse(
      values, [word for word in argv if word not in changes], doc)
  arguments.require(values, argv, 'algorithm', 'data')
  if trains and not (values.workdir or values.plan or values.print_config):
    raise errors.ConfigError(f'give --workdir=<directory>; see {argv[0]} '
                             '--help')
  request = task(values)
  for name in ('data', 'preferences'):
    path = getattr(request, name)
    if path is not None and not pathlib.Path(path).exists():
      raise errors.DataError(f'--{name}={path}: there is no such file')
  # Imported here, so that mistyped flags and names are refused at once, and
  # malformed data soon.
  from rlhf_jax.configs import reading

  reading.read(request)
  from rlhf_jax.configs import training

  config = config_files.change(training.get_config(request), changes)
  return config.to_dict(), training.describe(config, request), values


def run(argv: list[str]):
  """Parses, configures, plans, trains.

  Args:
    argv: name of the command, and flags.

  Raises:
    UserError: of whatever kind.
  """
  config, lines, values = configure(argv, __doc__, trains=True)
  if values.print_config:
    print(config_files.text(config))
    return
  if not processes.index():
    print('\n'.join(lines), flush=True)
  launch.launch(config, values)
