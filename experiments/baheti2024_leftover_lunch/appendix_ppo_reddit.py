r"""Baheti et al. 2024, appendix C.3: PPO on the Reddit rewards.

Claim: PPO maximises the five rewards further than A-LOL, by generic
responses: its sum of rewards is higher and its diversity much lower.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_ppo_reddit \
            --config=experiments/baheti2024_leftover_lunch/appendix_ppo_reddit.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as table4_reddit.py, whose data and rewards these are, on up-voted
          comments. PPO's reward is the sum of the same five components, each
          in its own unit; 2.67 times the optimizer steps.
"""

from experiments import baheti2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.reddit(
      size, 'appendix C.3: PPO and A-LOL on five rewards')
  baheti2024.add_ppo(config)
  config.runs.ppo.reward.components = config.logs.reddit.components.to_dict()
  kept = ('reference', 'nll_up', 'a_lol_up', 'a_lol_sequence_up', 'ppo')
  config.runs = {name: config.runs[name].to_dict() for name in kept}
  config.figure = dict(
      kind='table', baseline=dict(method='A-LOL'),
      columns=('proxy', 'words', 'distinct_1', 'distinct_2', 'distinct_3',
               *(f'component_{name}' for name in baheti2024.REDDIT)))
  return base.finish(config, smoke=('reference', 'a_lol_up', 'ppo'))
