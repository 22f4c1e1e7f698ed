r"""Ahmadian et al. 2024, tables 1 and 2: the rows of DPO.

Claim: RLOO wins more than DPO, which learns from the pairs of the reward model
alone, and DPO writes by far the longest responses.

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_dpo \
            --config=experiments/ahmadian2024_back_to_basics/table1_dpo.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as table1_win_rates.py, whose reward model, PPO and RLOO these are.
          DPO learns from the pairs that the reward model has learned from, at
          beta = .1, in five epochs, as that has; the text has no numbers for
          it.
"""

from experiments import ahmadian2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = ahmadian2024.with_pairs(
      size, 'tables 1 and 2: win rates of DPO and of online methods')
  config.runs.dpo = dict(algorithm='dpo', labels=dict(method='DPO'))
  for algorithm, samples in (('ppo', 1), ('rloo', 2), ('rloo', 4)):
    ahmadian2024.add_method(config, algorithm, samples)
  config.judge.update(
      against='reference', num_prompts=config.online.evaluation.num_prompts)
  config.figure = dict(
      kind='table', columns=('win_rate', 'gold', 'proxy', 'rule', 'kl_k1',
                             'length', 'perplexity'),
      baseline=dict(method='DPO'))
  return base.finish(config, smoke=('dpo', 'rloo_2'))
