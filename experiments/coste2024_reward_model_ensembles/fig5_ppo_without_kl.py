r"""Coste et al. 2024, figure 5: PPO against ensembles, without a KL penalty.

Claim: without a penalty worst-case and uncertainty-weighted ensembles
overoptimise less than a single model and than the mean, but they do.

Run:      python -m rlhf_jax.main --workdir=runs/fig5 \
            --config=experiments/coste2024_reward_model_ensembles/fig5_ppo_without_kl.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,world=long_tail has twenty seeds at 25 % label noise, in a
          world with something in the content to overoptimise
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size and world: 'laptop,world=long_tail'."""
  size, world = base.options(size, world=base.WORLDS)
  config = coste2024.online(size, 'figure 5: PPO without a KL penalty', world)
  for noise in coste2024.NOISES[world]:
    condition = coste2024.condition(config, noise)
    for method in coste2024.METHODS:
      coste2024.add(config, method, condition, kl_coef=0.0)
  config.figure = coste2024.curves(
      panel=('label_noise',), baseline=dict(method='single'))
  return base.finish(config, smoke=('single_0_noise_25_kl_0',))
