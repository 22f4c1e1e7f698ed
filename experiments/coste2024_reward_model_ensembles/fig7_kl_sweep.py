r"""Coste et al. 2024, figure 7: final gold score over the KL coefficient.

Claim: at 25 % label noise worst-case and uncertainty-weighted ensembles match
or beat a single model at every KL coefficient, by most at small ones. Figure
20 says the same without noise.

Run:      python -m rlhf_jax.main --workdir=runs/fig7 \
            --config=experiments/coste2024_reward_model_ensembles/fig7_kl_sweep.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,noise=0 (or :full,noise=0) is figure 20, without label noise
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, noise = base.options(size, noise=(0.25, 0.0))
  config = coste2024.online(
      size, f'{coste2024.item(7, noise)}: final gold score of PPO over the KL '
      'coefficient')
  condition = coste2024.condition(config, noise)
  for kl_coef in coste2024.KL_COEFS:
    for method in coste2024.METHODS:
      coste2024.add(config, method, condition, kl_coef=kl_coef)
  config.figure = coste2024.final('kl_coef', paired_by=('kl_coef',))
  return base.finish(config, smoke=(
      f'single_0_{condition}_kl_0', f'single_0_{condition}_kl_001',
      f'uncertainty_weighted_{condition}_kl_001'))
