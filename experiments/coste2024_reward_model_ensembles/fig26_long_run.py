r"""Coste et al. 2024, figure 26: PPO for 10,000 steps.

Claim: with a KL coefficient of .01 at 25 % label noise ensembles stay near
their best however long the policy is optimised, so none need be stopped early.

Run:      python -m rlhf_jax.main --workdir=runs/fig26 \
            --config=experiments/coste2024_reward_model_ensembles/fig26_long_run.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says. As in the paper, 10/3 of the steps of figure 4.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = coste2024.online(
      size, 'figure 26: PPO, 3.3 times as long, 25 % label noise')
  condition = coste2024.condition(config, 0.25)
  for method in coste2024.METHODS:
    coste2024.add(config, method, condition, kl_coef=0.01,
                  num_steps=round(config.online.num_steps * 10 / 3))
  config.figure = coste2024.curves(baseline=dict(method='single'))
  return base.finish(config, smoke=('single_0_noise_25_kl_001',))
