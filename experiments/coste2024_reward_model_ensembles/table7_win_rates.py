r"""Coste et al. 2024, table 7: win rates with smaller and larger reward models.

Claim: by gold score the policies of ensembles win against those of single
models at either size, in 51 to 59 % of the prompts with 7M, in 56 to 63 % with
1.3B.

Run:      python -m rlhf_jax.main --workdir=runs/table7 \
            --config=experiments/coste2024_reward_model_ensembles/table7_win_rates.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          and fig8_model_size.py say, whose policies these are (--reuse). Ties,
          which the paper does not mention, are half a win. The half of the
          table for best-of-n is not computed.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = coste2024.online(size, 'table 7: win rates by gold score, by size')
  if size == 'full':
    config.seeds = (1, 2, 3)
  for model in ('small', 'large'):
    condition, width = coste2024.model_condition(config, 0.25, model)
    longer = 2 * config.online.num_steps if model == 'large' else None
    for method in coste2024.METHODS:
      coste2024.add(
          config, method, condition, model_width=width, num_steps=longer,
          kl_coef=coste2024.small_kl_coef(method, 0.25))
  config.figure = dict(
      kind='win_rates', against=dict(method='single'), line=('method',),
      panel=('model_width',), columns=coste2024.COLUMNS)
  return base.finish(config, smoke=(
      'single_0_noise_25_large_kl_001',
      'uncertainty_weighted_noise_25_large_kl_001'))
