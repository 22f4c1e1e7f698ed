r"""Coste et al. 2024, figure 11: final gold score over the number of members.

Claim: at 25 % label noise four reward models are noticeably better than three,
and five about as good as four. Figure 23 says the same without noise.

Run:      python -m rlhf_jax.main --workdir=runs/fig11 \
            --config=experiments/coste2024_reward_model_ensembles/fig11_ensemble_size.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,noise=0 (or :full,noise=0) is figure 23, without label noise
          :laptop,best_of_n=3 is the best-of-n half, a study for
          each number of members: :laptop,best_of_n=4  :laptop,best_of_n=5
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says. One member, the single models, is the dotted line. The KL
          coefficients, which the text does not state, are those of figure 4.
          Best-of-n: its final scores are in the summary of each study.
"""

from experiments import coste2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, noise, members = base.options(
      size, noise=(0.25, 0.0), best_of_n=(None, *coste2024.NUM_MEMBERS))
  if members:
    return coste2024.best_of_n(
        size, f'{coste2024.item(11, noise)}: best-of-n, {members} members',
        noise=(noise,), methods=coste2024.methods(), num_members=members).lock()
  config = coste2024.online(
      size, f'{coste2024.item(11, noise)}: final gold score of PPO over the '
      'number of reward models')
  usual = coste2024.condition(config, noise)
  coste2024.add(config, 'single', usual, kl_coef=0.01)
  for members in coste2024.num_members(size):
    condition = coste2024.members_condition(config, noise, members)
    for method in coste2024.ENSEMBLES:
      coste2024.add(config, method, condition, num_members=members,
                    kl_coef=coste2024.small_kl_coef(method, noise))
  config.figure = coste2024.final('num_members')
  return base.finish(config, smoke=(
      f'single_0_{usual}_kl_001',
      f'uncertainty_weighted_{usual}_kl_001'))
