r"""Coste et al. 2024, table 6: win rates against single models.

Claim: by gold score the policies of ensembles win against those of single
models in 58 to 60 % of the prompts without label noise, in 60 to 63 % with 25
%.

Run:      python -m rlhf_jax.main --workdir=runs/table6 \
            --config=experiments/coste2024_reward_model_ensembles/table6_win_rates.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says. The policies are those of figure 4 (--reuse). Ties, which the
          paper does not mention, are half a win. The half of the table for
          best-of-n is not computed.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = coste2024.online(size, 'table 6: win rates by gold score')
  if size == 'full':
    config.seeds = (1, 2, 3)
  for noise in (0.0, 0.25):
    condition = coste2024.condition(config, noise)
    for method in coste2024.METHODS:
      coste2024.add(config, method, condition,
                    kl_coef=coste2024.small_kl_coef(method, noise))
  config.figure = dict(
      kind='win_rates', against=dict(method='single'), line=('method',),
      panel=('label_noise',), columns=coste2024.COLUMNS)
  return base.finish(config, smoke=(
      'single_0_noise_25_kl_001', 'uncertainty_weighted_noise_25_kl_001'))
