"""The reward of a task: whose, and in which words of the reward language."""

import pathlib

from rlhf_jax import errors
from rlhf_jax.configs import base
from rlhf_jax.configs import tasks
from rlhf_jax.configs import texts as texts_lib
from rlhf_jax.pipeline import online_methods


def set_ensemble(config, task: tasks.Task, pairs: int):
  """Members, epochs and held-out pairs of reward models, of so many pairs."""
  size, proxy = tasks.SIZES[task.size], config.proxy
  held_out = max(2, min(512, pairs // 10))
  batch = task.batch_size or size['batch'][not task.is_fresh]
  proxy.update(num_members=task.members or proxy.num_members,
               held_out=held_out, batch_size=min(batch, pairs - held_out))
  proxy.optimizer.learning_rate = (
      tasks.rate if task.algorithm == tasks.REWARD else tasks.usual_rate)(task)
  if task.algorithm == tasks.REWARD and task.steps is not None:
    proxy.num_epochs = max(1, round(
        task.steps * proxy.batch_size / max(pairs - held_out, 1)))
  elif task.size != 'smoke':
    proxy.num_epochs = 1 if not task.is_fresh else 5


def reward(config, task: tasks.Task, scores) -> dict[str, dict]:
  """The components of --reward; of a log without it, its own score."""
  online = task.algorithm in online_methods.names()
  reward = task.reward
  if reward is None and task.preferences is not None and online:
    config.pairs = 'preferences'
    config.conditions = {tasks.CONDITION: dict()}
    config.online.condition = tasks.CONDITION
    set_ensemble(config, task, texts_lib.count_pairs(task.preferences))
    return base.proxy(aggregate=dict(kind=task.aggregate))
  if reward is None and online:
    raise errors.ConfigError(
        f'--algorithm={task.algorithm} needs a reward: --reward=module:function'
        ', a directory of reward models, or --preferences=FILE to learn them '
        'from')
  if reward is None:
    reward = texts_lib.own_score(task, scores)
    if reward is None:
      return {}
  if reward in scores:
    config.data.logged.target = reward
    return {reward if reward.isidentifier() else 'score': dict(
        kind='file', column=reward)}
  if pathlib.Path(reward).is_dir():
    config.conditions = {tasks.CONDITION: dict(path=reward)}
    config.online.condition = tasks.CONDITION
    if not online:
      config.log.condition = tasks.CONDITION
    return base.proxy(aggregate=dict(kind=task.aggregate))
  if ':' in reward:
    return {reward.rpartition(':')[2]: dict(
        kind='function', function=reward, range=task.reward_range,
        on_bad_reward=task.on_bad_reward)}
  if reward in tasks.COMPONENTS:
    return {reward: dict(kind=reward)}
  raise errors.ConfigError(
      f'--reward={reward} is no module:function, no directory of reward '
      f'models, none of {", ".join(tasks.COMPONENTS)}'
      + (f' and no score of the data ({", ".join(scores)})' if scores else '')
      + f'; {errors.nearest(reward, [*tasks.COMPONENTS, *scores])}')
