r"""Coste et al. 2024, figure 14: PPO by the number of pairs.

Claim: as in Gao et al. 2023, with more pairs the gold score rises higher, and
overoptimisation grows as the policy is pushed on.

Run:      python -m rlhf_jax.main --workdir=runs/fig14 \
            --config=experiments/coste2024_reward_model_ensembles/fig14_ppo_data_size.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says. Numbers of pairs are those of fig9_data_size.py. Neither noise
          nor penalty is stated; here 25 % as in figure 13, and none.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = coste2024.online(
      size, 'figure 14: PPO without a penalty, 25 % label noise')
  if size == 'full':
    config.seeds = (1, 2, 3)
  for share in coste2024.PAIRS:
    condition, count = coste2024.pairs_condition(config, 0.25, share)
    coste2024.add(config, 'single', condition, pairs=count, kl_coef=0.0)
  config.figure = coste2024.curves(line=('pairs',))
  return base.finish(config, smoke=('single_0_noise_25_kl_0',))
