r"""Coste et al. 2024, figure 10: variance of the ensemble under PPO.

Claim: over training the variance between members grows about threefold
(2.5-fold at 25 % label noise) when their mean is optimised, and by about a
fifth when it is penalised (lambda = .1); a KL penalty of .01 lowers it a
little.

Run:      python -m rlhf_jax.main --workdir=runs/fig10 \
            --config=experiments/coste2024_reward_model_ensembles/fig10_ensemble_variance.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py). Members are
          standardised, and the variance is the population's (the released code
          has raw scores and divides by 4, not 5: ensemble_variance_unbiased in
          results.csv).
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = coste2024.online(
      size, 'figure 10: variance of the ensemble under PPO')
  for noise in (0.0, 0.25):
    condition = coste2024.condition(config, noise)
    for method in ('mean', 'uncertainty_weighted'):
      for kl_coef in (0.0, 0.01):
        coste2024.add(config, method, condition, kl_coef=kl_coef)
  config.figure = dict(
      kind='curves', x='step', y=('ensemble_variance',),
      line=('method', 'kl_coef'), panel=('label_noise',),
      columns=('ensemble_variance', *coste2024.COLUMNS))
  return base.finish(config, smoke=('uncertainty_weighted_noise_25_kl_001',))
