r"""Coste et al. 2024, figures 18 and 19: the curves behind figure 8.

Claim: against reward models smaller (figure 18) and larger (figure 19) than
those of figure 4, conservative ensembles are overoptimised less by PPO than
single models are, under 25 % label noise.

Run:      python -m rlhf_jax.main --workdir=runs/fig18 \
            --config=experiments/coste2024_reward_model_ensembles/fig18_size_curves.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop is figure 18, small reward models; :laptop,model=large is
          figure 19. Their halves for best-of-n are drawn by
          fig8_model_size.py, with best_of_n=small and best_of_n=large
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          and fig8_model_size.py say, whose policies these are (--reuse).
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, model = base.options(size, model=('small', 'large'))
  config = coste2024.online(
      size, f'figures 18 and 19: PPO, {model} reward models, 25 % label noise')
  condition, width = coste2024.model_condition(config, 0.25, model)
  longer = 2 * config.online.num_steps if model == 'large' else None
  for method in coste2024.METHODS:
    coste2024.add(
        config, method, condition, model_width=width, num_steps=longer,
        kl_coef=coste2024.small_kl_coef(method, 0.25))
  config.figure = coste2024.curves(baseline=dict(method='single'))
  return base.finish(config, smoke=(f'single_0_noise_25_{model}_kl_001',))
