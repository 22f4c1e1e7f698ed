r"""Coste et al. 2024, figure 12: final gold score over lambda.

Claim: most reasonable weights of the uncertainty penalty work well, for every
number of reward models. Figure 24 says the same without noise.

Run:      python -m rlhf_jax.main --workdir=runs/fig12 \
            --config=experiments/coste2024_reward_model_ensembles/fig12_uncertainty_coef.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,noise=0 (or :full,noise=0) is figure 24, without label noise
          :laptop,best_of_n=3 is the best-of-n half, a study for
          each number of members: :laptop,best_of_n=4  :laptop,best_of_n=5
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models (fig3_best_of_n.py), and what fig4_ppo.py
          says. The paper prints no values of lambda; these are of members that
          are standardised, and 0 is the mean (the released code turns it into
          1). The KL coefficient, which the text does not state, is .01.
          Best-of-n has lambdas of 0 to 2.
"""

from experiments import coste2024
from rlhf_jax.configs import base

UNCERTAINTY_COEFS = (0.0, 0.05, 0.1, 0.5, 1.0)
BEST_OF_N = (0.5, 0.0, 0.1, 1.0, 2.0)


def get_config(size: str = 'laptop'):
  """The config of one size."""
  size, noise, members = base.options(
      size, noise=(0.25, 0.0), best_of_n=(None, *coste2024.NUM_MEMBERS))
  if members:
    return coste2024.best_of_n(
        size, f'{coste2024.item(12, noise)}: best-of-n, {members} members '
        f'(UWO: lambda {BEST_OF_N[0]})', noise=(noise,),
        methods=coste2024.methods(BEST_OF_N), num_members=members).lock()
  config = coste2024.online(
      size, f'{coste2024.item(12, noise)}: final gold score of PPO over the '
      'uncertainty coefficient')
  usual = coste2024.condition(config, noise)
  coste2024.add(config, 'single', usual, kl_coef=0.01)
  for members in coste2024.num_members(size):
    condition = coste2024.members_condition(config, noise, members)
    for coef in UNCERTAINTY_COEFS:
      coste2024.add(
          config, 'uncertainty_weighted', condition, kl_coef=0.01,
          uncertainty_coef=coef, num_members=members)
  config.figure = coste2024.final(
      'uncertainty_coef', line=('method', 'num_members'))
  return base.finish(config, smoke=(
      f'single_0_{usual}_kl_001',
      f'uncertainty_weighted_{usual}_kl_001'))
