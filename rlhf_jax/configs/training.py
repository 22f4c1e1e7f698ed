"""From a few words to the config of a study on a user's own data.

`rlhf-jax train` says them as flags. What it does not say is filled in here, by
the size, the model and the data; `describe` says all that was filled in, and
every field can be set besides by --config.<field>=<value>.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

from ml_collections import config_dict

from rlhf_jax import algorithms
from rlhf_jax import errors
from rlhf_jax.configs import base
from rlhf_jax.configs import choices
from rlhf_jax.configs import tasks
from rlhf_jax.configs import texts as texts_lib
from rlhf_jax.pipeline import methods
from rlhf_jax.pipeline import offline_methods
from rlhf_jax.pipeline import online_methods


def names() -> list[str]:
  """The algorithms that a task may name."""
  return [tasks.REWARD, *offline_methods.names(), *online_methods.names()]


def get_config(task: tasks.Task) -> config_dict.ConfigDict:
  """The config of a study that does what a task says, unlocked.

  Args:
    task: see `tasks.Task`.

  Raises:
    ConfigError: a word that does not fit the others.
    DataError: the data is missing or malformed, or has not what the algorithm
      learns from.
  """
  if task.algorithm not in names():
    raise errors.ConfigError(
        f'--algorithm={task.algorithm} trains nothing; '
        f'{errors.nearest(task.algorithm, names())}')
  if task.size not in base.SIZES:
    raise errors.ConfigError(f'--size={task.size}: there are '
                             f'{", ".join(base.SIZES)}')
  config = base.offline_config('smoke' if task.size == 'smoke' else 'laptop')
  config.size, config.seeds = task.size, (task.seed,)
  config.title = f'{_title(task)} on {pathlib.Path(task.data).name}'
  config.conditions, config.runs, config.logs = dict(), dict(), dict()
  for node in (config.policy, config.proxy, config.proxy.sft, config.gold):
    node.packing = True  # texts differ in length; only roundings change
  _set_models(config, task)
  online = task.algorithm in online_methods.names()
  texts = texts_lib.survey(task, prompts=online)
  _set_texts(config, task, texts, online)
  if task.algorithm == tasks.REWARD:
    _reward_models(config, task, texts)
  elif online:
    _online(config, task, texts)
  else:
    _offline(config, task, texts)
  return config


def describe(config: config_dict.ConfigDict, task: tasks.Task) -> list[str]:
  """What a run is about to do, line by line, with all that was filled in."""
  data = config.data
  of_texts = data.files if data.path is not None else data.logged
  lengths = (f'prompts of up to {of_texts.max_prompt_length} tokens, responses '
             f'of up to {of_texts.max_response_length}')
  lines = [f'{_title(task)}: {task.data} ({of_texts.kind}), '
           f'{data.num_eval_prompts} prompts held out',
           f'prompt format {of_texts.format}, {lengths}']
  node = (config.proxy if task.algorithm == tasks.REWARD else
          config.online if task.algorithm in online_methods.names()
          else config.offline)
  adapters = f', adapters of rank {task.lora}' if task.lora else ''
  if task.algorithm == tasks.REWARD:
    lines.append(f'{config.proxy.num_members} reward models of '
                 f'{task.model}{adapters}, {node.num_epochs} epochs of '
                 f'{texts_lib.survey(task, prompts=False).pairs} pairs, '
                 f'{node.held_out} of them held out, '
                 f'learning rate {node.optimizer.learning_rate:g}')
    return lines
  batch = (config.online.rollout.batch_size if node is config.online
           else config.offline.batch_size)
  lines.append(
      f'{node.num_steps} steps of {batch} from {task.model}'
      + (f' after {config.policy.num_steps} of SFT' if config.policy.num_steps
         else '')
      + f'{adapters}, learning rate {node.optimizer.learning_rate:g}')
  lines += [f'{name}: ' + ', '.join(f'{k}={v}' for k, v in kwargs.items())
            for name, kwargs in node.arguments.items()]
  components = _components(config, node)
  lines.append('reward: ' + ('none' if not components else ' + '.join(
      f'{name} {dict(value)}' for name, value in components.items())))
  squashed = [name for name, value in components.items()
              if value.get('kind') == 'file' and value.get('squash')]
  if squashed:
    lines.append(f'{", ".join(squashed)} of the file squashed: the values of '
                 'prompts that this algorithm learns need a reward from 0 on '
                 '(config.log.components)')
  return lines


def _title(task: tasks.Task) -> str:
  if task.algorithm == tasks.REWARD:
    return 'reward models'
  title = algorithms.ALGORITHMS[task.algorithm].title
  return title if task.objective is None else f'{title} by {task.objective}'


def _components(config, node) -> Mapping[str, Any]:
  return (node.reward.components if node is config.online
          else config.log.components).to_dict()


def _set_models(config, task: tasks.Task):
  """The model of the policy, and those of the reward models and of gold."""
  if task.lora and task.is_fresh:
    raise errors.ConfigError(
        f'--lora={task.lora} adapts a model that is loaded; give --model')
  if task.is_fresh:
    return
  source = ({'name': task.model} if task.model == 'smollm2'
            else {'path': _model_path(task.model)})
  for part in (config.policy, config.proxy, config.gold):
    part.model.update(source)
    part.model.lora.rank = task.lora


def _model_path(model: str) -> str:
  path = pathlib.Path(model)
  if not path.exists():
    raise errors.ConfigError(
        f'--model={model}: there is no such directory or file; give one, '
        "'smollm2' or 'scratch'")
  if (path / 'model.json').exists():
    workdir = path.parent
    while workdir != workdir.parent and not (workdir / 'config.json').exists():
      workdir = workdir.parent
    raise errors.ConfigError(
        f'--model={model} is a stage; export it first: rlhf-jax export '
        f'--workdir={workdir} --stage={path.relative_to(workdir)} '
        '--directory=<new>')
  return str(path.absolute())


def _set_texts(config, task: tasks.Task, texts, online: bool):
  """Where the texts are, how they are written, and how many are held out."""
  size = tasks.SIZES[task.size]
  shared = dict(
      format=texts.format, kind=texts.kind,
      allow_checkpoint_template=task.allow_checkpoint_template,
      max_bad_rows=task.max_bad_rows,
      max_prompt_length=task.max_prompt_length or size['prompt'],
      max_response_length=task.max_response_length or size['response'])
  if online:
    config.data.path = task.data
    config.data.files.update(shared, split=task.split)
    config.data.files.columns.update(dict(task.columns))
    if task.preferences is not None:
      config.data.preferences = task.preferences
  else:
    config.data.logged.update(
        shared, path=task.data, split=task.split,
        max_samples=max(texts.most_answers, 1))
    config.data.logged.columns.update(dict(task.columns))
  held_out = task.eval_prompts or max(
      2, min(size['held_out'], texts.prompts // 10))
  if task.algorithm == tasks.REWARD:
    held_out = task.eval_prompts or 2  # no policy is evaluated
  training = max(texts.prompts - held_out, 1)
  config.data.update(num_eval_prompts=held_out, num_pair_prompts=training,
                     num_demonstrations=texts.prompts)
  steps = task.sft_steps
  if steps is None:
    steps = size['steps'] if task.is_fresh and texts.has_answers and (
        task.algorithm != 'sft') else 0
  batch = min(size['batch'][not task.is_fresh], training)
  for node in (config.policy, config.proxy.sft):
    node.update(num_steps=steps, batch_size=batch)
    node.optimizer.learning_rate = tasks.usual_rate(task)
  if task.lora and task.algorithm != tasks.REWARD:
    config.proxy.sft.num_steps = 0  # --sft_steps is of the policy
  apart = max(2, min(config.gold.held_out, training // 10))
  config.gold.update(num_steps=size['steps'], held_out=apart,
                     batch_size=max(1, min(batch, training - apart)))
  config.gold.optimizer.learning_rate = tasks.usual_rate(task)


def _reward_models(config, task: tasks.Task, texts):
  """A study of an ensemble on the pairs of the data."""
  if not texts.pairs:
    raise errors.DataError(
        f'{task.data}: rows of kind {texts.kind!r} make no pair of a chosen '
        'and a rejected response, which reward models learn from')
  for field in ('reward', 'preferences', 'kl_coef', 'samples', 'objective'):
    if getattr(task, field) is not None:
      raise errors.ConfigError(
          f'--{field} is of policies; --algorithm=reward learns from pairs')
  config.study, config.pairs, config.force_eos = (
      'reward_models', 'preferences', False)
  config.conditions = {tasks.CONDITION: dict()}
  choices.set_ensemble(
      config, task, texts.pairs - config.data.num_eval_prompts)
  config.figure = dict(kind='curves', x='epoch', y=('loss', 'accuracy'),
                       line=('condition',), columns=('loss', 'accuracy'))


def _online(config, task: tasks.Task, texts):
  """A policy that samples, and is rewarded."""
  config.study = 'online'
  for field in ('log', 'logs', 'offline'):
    del config[field]
  config.best_of_n = base.samples('smoke')
  node, size = config.online, tasks.SIZES[task.size]
  row = algorithms.ALGORITHMS[task.algorithm]
  samples = task.samples or (
      row.samples if not row.more else max(row.samples, 4))
  node.reward.components = choices.reward(config, task, ())
  batch = task.batch_size or size['batch'][not task.is_fresh]
  node.update(algorithm=task.algorithm, num_steps=task.steps or {
      'smoke': 2, 'laptop': 50, 'full': 500}[task.size])
  node.rollout.update(batch_size=batch, samples=samples)
  if 'old_values' not in [item['name'] for item in row.annotators]:
    node.updates.num_epochs = 1  # epochs are PPO's
  node.kl.coef = task.kl_coef
  _set_objective(node, task)
  node.optimizer.learning_rate = tasks.rate(task)
  _set_evaluation(config, node, task)
  config.runs = {tasks.RUN: dict(labels=dict(method=_title(task)))}
  config.figure = tasks.FIGURE | dict(
      x='step', y=('proxy', 'kl_k1'), columns=('proxy', 'kl_k1', 'length'))


def _offline(config, task: tasks.Task, texts):
  """A policy that learns from what is logged."""
  if task.preferences is not None or task.samples is not None:
    raise errors.ConfigError(
        '--preferences and --samples are of algorithms that sample; this one '
        'learns from --data')
  node, size = config.offline, tasks.SIZES[task.size]
  row = algorithms.ALGORITHMS[task.algorithm]
  texts_lib.check(task, texts, row.source)
  training = texts.prompts - config.data.num_eval_prompts
  log = config.log
  log.source = 'corpus'
  log.num_validation = max(2, min(log.num_validation, training // 10))
  log.value.batch_size = max(1, min(
      log.value.batch_size, log.num_validation // 2))
  log.components = choices.reward(config, task, texts.scores)
  if offline_methods.needs_values(row):
    texts_lib.bound(log.components, texts)
  config.logs = dict(data=dict())
  batch = min(task.batch_size or size['batch'][not task.is_fresh],
              max(training - log.num_validation, 1))
  rows = training * (1 if row.source in ('preferences', 'rankings')
                     else texts.most_answers)
  epoch = max(1, rows // batch)
  # A laptop sees a small file several times, a large one in part.
  steps = task.steps or {'smoke': 2, 'laptop': min(max(3 * epoch, 50), 400),
                         'full': epoch}[task.size]
  node.update(
      algorithm=task.algorithm, log='data', num_steps=steps, batch_size=batch,
      use='all' if row.source == 'logged' else 'first',
      priority=('advantage' if offline_methods.needs_values(row) else 'none'))
  if task.kl_coef is not None:
    raise errors.ConfigError('--kl_coef is of algorithms that sample; see '
                             '--config.offline.arguments')
  node.packing = offline_methods.can_pack(row)
  _set_objective(node, task)
  node.optimizer.learning_rate = tasks.rate(task)
  _set_evaluation(config, node, task)
  config.runs = {tasks.RUN: dict(labels=dict(method=_title(task)))}
  y = ('proxy', 'kl_k1') if log.components else ('kl_k1', 'perplexity')
  config.figure = tasks.FIGURE | dict(x='updates', y=y, columns=(*y, 'length'))


def _set_objective(node, task: tasks.Task):
  """The loss, and every argument of the row as a field."""
  node.objective = task.objective
  try:
    node.arguments = methods.arguments(
        algorithms.ALGORITHMS[task.algorithm], task.objective)
  except ValueError as error:
    raise errors.ConfigError(f'--objective: {error}') from None


def _set_evaluation(config, node, task: tasks.Task):
  node.evaluation.update(
      every=max(1, node.num_steps // 5),
      num_prompts=config.data.num_eval_prompts, texts=4,
      chunk_size=256 if task.is_fresh else 16)
