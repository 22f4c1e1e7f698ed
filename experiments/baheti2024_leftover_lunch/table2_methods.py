r"""Baheti et al. 2024, table 2: reward by split, length and diversity.

Claim: A-LOL and its variants have the highest reward but for DPO's on the
helpful splits; A-LOL seq is the most diverse of all; DPO writes the longest
and least diverse text, PPO the shortest.

Run:      python -m rlhf_jax.main --workdir=runs/baheti_table2 \
            --config=experiments/baheti2024_leftover_lunch/table2_methods.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  as figure 2, whose policies these are. Splits are four kinds of
          things that reviews are of, in place of harmless, helpful, online
          and rejection. PPO makes 2.67 times the optimizer steps, as theirs.
"""

from experiments import baheti2024
from rlhf_jax.configs import base

SPLITS = ('electronics', 'media', 'travel', 'household')


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = baheti2024.preferences(size, 'table 2: methods on logged responses')
  baheti2024.add_reference(config)
  for method in baheti2024.METHODS:
    baheti2024.add(config, method)
  baheti2024.add_ppo(config)
  config.figure = dict(
      kind='table', columns=baheti2024.COLUMNS + tuple(
          f'gold_split_{name}' for name in SPLITS),
      baseline=baheti2024.NLL)
  return base.finish(config, smoke=('reference', 'nll', 'pro', 'a_lol', 'ppo'))
