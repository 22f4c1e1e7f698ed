r"""RLHF, as lecture notes tell it: where the value function begins.

Claim: Stiennon et al. 2020 start PPO's value function from the reward model,
with a network of its own, so that neither the policy nor the value spoils the
other; it then learns faster than one that shares the policy's trunk.

Run:      python -m rlhf_jax.main --workdir=runs/value_start \
            --config=experiments/rlhf_notes/value_start.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the notes have no experiment. PPO against one reward model on clean
          pairs, whose shape at laptop size is smaller than the policy's.
"""

from rlhf_jax.configs import base

TRUNKS = {'shared': "the policy's trunk", 'separate': 'a copy of the policy',
          'reward': 'the reward model'}


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = base.online_config(size)
  config.title = 'RLHF notes: PPO by where its value function begins'
  config.conditions.clean = dict(num_members=1)
  config.online.kl.coef = 0.05
  if size != 'smoke':
    config.seeds = (1, 2, 3)
    config.online.update(num_steps=60)
    config.online.optimizer.learning_rate = 3e-4
    config.online.evaluation.every = 6
  for trunk, title in TRUNKS.items():
    config.runs[trunk] = dict(
        value=dict(trunk=trunk), labels=dict(value=title))
  config.figure = dict(
      kind='curves', x='step', y=('proxy', 'gold'), line=('value',),
      baseline=dict(value=TRUNKS['shared']),
      columns=('proxy', 'gold', 'rule', 'kl_k1', 'distinct_2', 'length'))
  return base.finish(config, smoke=('shared', 'reward'))
