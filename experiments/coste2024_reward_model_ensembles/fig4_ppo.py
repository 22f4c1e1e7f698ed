r"""Coste et al. 2024, figure 4: PPO against ensembles, with a small KL penalty.

Claim: with a KL coefficient of .01 worst-case and uncertainty-weighted
ensembles do not overoptimise, at no cost in gold score; a single model does,
and under 25 % label noise the ensemble mean needs .1.

Run:      python -m rlhf_jax.main --workdir=runs/fig4 \
            --config=experiments/coste2024_reward_model_ensembles/fig4_ppo.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,world=long_tail has twenty seeds at 25 % label noise, in a
          world with something in the content to overoptimise
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and 3 of the 5 single
          models at laptop size. Members are standardised before they are
          combined (the released code combines raw scores). KL coefficients are
          fixed, as the text has them (the released code adapts its own).
          lambda is .1, as in figure 10; Table 6 has .5. Single models have 3
          policies each, as ensembles have, not one.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size and world: 'laptop,world=long_tail'."""
  size, world = base.options(size, world=base.WORLDS)
  config = coste2024.online(
      size, 'figure 4: PPO, KL coefficient .01 (mean at 25 % noise: .1)',
      world)
  if size == 'full':
    config.seeds = (1, 2, 3)
  for noise in coste2024.NOISES[world]:
    condition = coste2024.condition(config, noise)
    for method in coste2024.METHODS:
      coste2024.add(config, method, condition,
                    kl_coef=coste2024.small_kl_coef(method, noise))
  config.figure = coste2024.curves(
      panel=('label_noise',), baseline=dict(method='single'))
  return base.finish(config, smoke=(
      'single_0_noise_25_kl_001', 'uncertainty_weighted_noise_25_kl_001'))
