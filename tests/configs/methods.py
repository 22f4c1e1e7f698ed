"""A tiny study of SFT, an ensemble, DPO, RLOO and PPO, all in one."""

from experiments import baheti2024


def get_config(size: str = 'smoke'):
  """The config; batches that two processes share."""
  config = baheti2024.preferences(size, 'DPO, RLOO and PPO')
  baheti2024.add(config, 'dpo')
  config.conditions.clean.num_members = 2
  config.runs.update(
      # Clipped so far that prompts of equal scores are replaced by others.
      rloo=dict(algorithm='rloo', rollout=dict(samples=2, resample=2),
                kl=dict(coef=0.), reward=dict(clip=.05),
                labels=dict(method='rloo')),
      ppo=dict(algorithm='ppo', updates=dict(num_minibatches=2),
               kl=dict(target=.1), labels=dict(method='ppo')))
  config.online.num_steps = 6
  config.online.evaluation.every = 3
  config.offline.num_steps = 4
  config.training.update(save_every=1, log_every=1)
  config.figure = dict(kind='curves', x='updates', y=('proxy',),
                       line=('method',), columns=('proxy', 'gold'))
  return config
