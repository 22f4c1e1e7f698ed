r"""Coste et al. 2024, figure 17: PPO against each single model.

Claim: single models of one size, data and label noise are overoptimised by
PPO to different degrees; the mean of these curves is the single model of
figure 4.

Run:      python -m rlhf_jax.main --workdir=runs/fig17 \
            --config=experiments/coste2024_reward_model_ensembles/fig17_ppo_members.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says, whose policies these are (--reuse).
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = coste2024.online(
      size, 'figure 17: PPO against each single reward model')
  if size == 'full':
    config.seeds = (1, 2, 3)
  for noise in (0.0, 0.25):
    coste2024.add(config, 'single', coste2024.condition(config, noise),
                  kl_coef=coste2024.small_kl_coef('single', noise))
  config.figure = coste2024.curves(
      panel=('label_noise',), line=('method', 'member'))
  return base.finish(config, smoke=('single_0_noise_25_kl_001',))
