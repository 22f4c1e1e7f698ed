r"""Coste et al. 2024, figure 27: figure 6 beyond a KL of 150 nats.

Claim: past 150 nats the gold score of single models goes on falling unless the
KL penalty holds the policy back.

Run:      python -m rlhf_jax.main --workdir=runs/fig27 \
            --config=experiments/coste2024_reward_model_ensembles/fig27_untruncated.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says. The runs are those of fig6_single_kl_sweep.py (--reuse).
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = coste2024.online(
      size, 'figure 27: figure 6 beyond a KL of 150 nats')
  condition = coste2024.condition(config, 0.25)
  for kl_coef in coste2024.KL_COEFS:
    coste2024.add(config, 'single', condition, kl_coef=kl_coef)
  config.figure = coste2024.curves(line=('kl_coef',), limit_kl=None)
  return base.finish(config, smoke=(
      'single_0_noise_25_kl_0', 'single_0_noise_25_kl_001'))
