r"""Baheti et al. 2024, figure 2: reward of evaluation prompts by step.

Claim: every method is above NLL; DPO reaches the highest reward among the
preference methods and varies most over seeds; A-LOL and its variants reach as
much and vary little; A-LOL KL falls off late.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_fig2 \
            --config=experiments/baheti2024_leftover_lunch/fig2_validation_reward.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: pairs of samples of the SFT policy in
          place of Anthropic HH, put in order with 25 % of the labels wrong;
          a policy of 2 layers from scratch, trained whole. The reward model is
          trained on those pairs, its sigmoid is the reward. The clip interval
          (.9) and R-GOLD's u (.1) are the code's, the KL coefficient (.05) is
          ours, for neither text nor code has one. Equal steps for all.
          Evaluation prompts are drawn anew, but of so small a grammar that
          most occur in training too.
"""

from experiments import baheti2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.preferences(size, 'figure 2: reward by optimizer step')
  for method in baheti2024.METHODS:
    baheti2024.add(config, method)
  config.figure = dict(
      kind='curves', x='updates', y=('proxy', 'gold'), line=('method',),
      panel=('group',), everywhere=baheti2024.NLL,
      columns=baheti2024.COLUMNS, baseline=baheti2024.NLL, paired_by=())
  return base.finish(config, smoke=('nll', 'dpo', 'r_lol', 'a_lol'))
