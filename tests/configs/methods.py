"""A tiny study of an ensemble, RLOO and PPO (`online`), or DPO (`offline`)."""

from experiments import baheti2024
from experiments import base


def get_config(which: str = 'online'):
  """The config of one study; two steps of a batch that two processes share."""
  if which == 'offline':
    config = baheti2024.preferences('smoke', 'DPO')
    baheti2024.add(config, 'dpo')
    config.figure = dict(kind='curves', x='updates', y=('proxy',),
                         columns=('proxy',))
    return config
  config = base.online_config('smoke')
  config.title = 'RLOO and PPO'
  config.conditions = dict(clean=dict(num_members=2))
  config.online.condition = 'clean'
  config.runs = {
      'rloo': dict(algorithm='rloo', rollout=dict(samples=2),
                   labels=dict(method='rloo')),
      'ppo': dict(algorithm='ppo', updates=dict(num_minibatches=2),
                  kl=dict(target=.1), labels=dict(method='ppo'))}
  config.figure = dict(kind='curves', columns=('proxy', 'gold'))
  return config
