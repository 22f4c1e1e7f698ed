r"""Coste et al. 2024, figure 9: final gold score over the number of pairs.

Claim: at 25 % label noise the gain of ensembles adds to that of more
preference pairs. Figure 22 says the same without noise.

Run:      python -m rlhf_jax.main --workdir=runs/fig9 \
            --config=experiments/coste2024_reward_model_ensembles/fig9_data_size.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,noise=0 (or :full,noise=0) is figure 22, without label noise
          :laptop,best_of_n=quarter is the best-of-n half, a study for
          each share: :laptop,best_of_n=half  :laptop,best_of_n=all
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says. Pairs: a quarter, half and all; the paper's numbers, but for
          its 46k, are in no text. What is not trained on is held out, and
          members are standardised on it. The KL coefficients, which the text
          does not state, are those of figure 4. Best-of-n draws no bars: its
          final scores are in the summary of each study.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, noise, share = base.options(
      size, noise=(0.25, 0.0), best_of_n=(None, *coste2024.PAIRS))
  if share:
    return coste2024.best_of_n(
        size, f'{coste2024.item(9, noise)}: best-of-n, pairs: {share}',
        noise=(noise,), methods=coste2024.methods(), pairs=share).lock()
  config = coste2024.online(
      size, f'{coste2024.item(9, noise)}: final gold score of PPO over the '
      'number of pairs')
  for share in coste2024.PAIRS:
    condition, count = coste2024.pairs_condition(config, noise, share)
    for method in coste2024.METHODS:
      coste2024.add(config, method, condition, pairs=count,
                    kl_coef=coste2024.small_kl_coef(method, noise))
  config.figure = coste2024.final('pairs', paired_by=('pairs',))
  name = base.tag(100 * noise)
  return base.finish(config, smoke=(
      f'single_0_noise_{name}_pairs_32_kl_001',
      f'single_0_noise_{name}_kl_001'))
