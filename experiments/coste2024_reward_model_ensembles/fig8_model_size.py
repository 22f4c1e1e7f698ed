r"""Coste et al. 2024, figure 8: final gold score over the reward models' size.

Claim: at 25 % label noise the gain of ensembles adds to that of larger reward
models, up to the size of the policy. Figure 21 says the same without noise.

Run:      python -m rlhf_jax.main --workdir=runs/fig8 \
            --config=experiments/coste2024_reward_model_ensembles/fig8_model_size.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,noise=0 (or :full,noise=0) is figure 21, without label noise
          :laptop,best_of_n=small is the best-of-n half, a study for
          each size: :laptop,best_of_n=medium  :laptop,best_of_n=large
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says. Sizes: width 16, 32 and 64, of which the largest is the
          policy's own shape; the paper has 7M, 44M and 1.3B beside a policy of
          1.4B (at full size, give
          --config.conditions.noise_25_large.model.path, and so on). The KL
          coefficients, which the text does not state, are those of figure 4.
          As in the paper, policies against the largest are trained twice as
          long. Best-of-n draws no bars: its final scores are in the summary of
          each study.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, noise, model = base.options(
      size, noise=(0.25, 0.0), best_of_n=(None, *coste2024.SIZES))
  if model:
    return coste2024.best_of_n(
        size, f'{coste2024.item(8, noise)}: best-of-n, {model} reward models',
        noise=(noise,), methods=coste2024.methods(), model=model).lock()
  config = coste2024.online(
      size, f'{coste2024.item(8, noise)}: final gold score of PPO over the '
      'size of the reward models')
  for model in coste2024.SIZES:
    condition, width = coste2024.model_condition(config, noise, model)
    longer = 2 * config.online.num_steps if model == 'large' else None
    for method in coste2024.METHODS:
      coste2024.add(
          config, method, condition, model_width=width, num_steps=longer,
          kl_coef=coste2024.small_kl_coef(method, noise))
  config.figure = coste2024.final('model_width', paired_by=('model_width',))
  name = base.tag(100 * noise)
  return base.finish(config, smoke=(
      f'single_0_noise_{name}_kl_001', f'single_0_noise_{name}_large_kl_001'))
