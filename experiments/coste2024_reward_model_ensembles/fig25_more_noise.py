r"""Coste et al. 2024, figure 25: 35 % label noise.

Claim: with more noise ensembles still help, and with a KL coefficient of .01
conservative ones are still not overoptimised.

Run:      python -m rlhf_jax.main --workdir=runs/fig25 \
            --config=experiments/coste2024_reward_model_ensembles/fig25_more_noise.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,best_of_n=0.35 is the best-of-n half
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, noise = base.options(size, best_of_n=(None, 0.35))
  if noise:
    return coste2024.best_of_n(
        size, 'figure 25: best-of-n at 35 % label noise', noise=(noise,),
        methods=coste2024.methods()).lock()
  config = coste2024.online(size, 'figure 25: PPO at 35 % label noise')
  condition = coste2024.condition(config, 0.35)
  for method in coste2024.METHODS:
    coste2024.add(config, method, condition, kl_coef=0.01)
  config.figure = coste2024.curves(baseline=dict(method='single'))
  return base.finish(config, smoke=('single_0_noise_35_kl_001',))
