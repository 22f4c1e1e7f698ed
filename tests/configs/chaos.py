"""A tiny study of ways to train that keep something between steps.

SFT, an ensemble, prompt values, A-LOL with priorities, PPO with an adaptive
coefficient and running statistics; with 'smoke,runs=all' also DPO, ILQL, RLOO,
RAFT and REINFORCE.
"""

from experiments import baheti2024
from rlhf_jax.configs import base

ONLINE = {
    'ppo': dict(kl=dict(target=.1), reward=dict(scale='running'),
                updates=dict(num_minibatches=2)),
    'rloo': dict(rollout=dict(samples=2)),
    'raft': dict(rollout=dict(samples=2)),
    'reinforce': {},
}


def get_config(argument: str = 'smoke'):
  """The config; a checkpoint at every other step."""
  size, runs = base.options(argument, runs=('few', 'all'))
  config = baheti2024.preferences(size, 'What is kept between steps')
  baheti2024.add(config, 'a_lol')
  if runs == 'all':
    baheti2024.add(config, 'dpo')
    config.runs.ilql = dict(algorithm='ilql', labels=dict(method='ilql'))
  for name in ONLINE if runs == 'all' else ('ppo',):
    config.runs[name] = dict(
        algorithm=name, labels=dict(method=name)) | ONLINE[name]
  config.conditions.clean.num_members = 2
  config.online.num_steps = config.offline.num_steps = 6
  config.online.evaluation.every = config.offline.evaluation.every = 3
  config.log.value.num_steps = 6
  config.training.update(save_every=2, log_every=1)
  config.figure = dict(kind='curves', x='updates', y=('proxy',),
                       line=('method',), columns=('proxy', 'gold'))
  return config
