r"""Ahmadian et al. 2024, table 2: fluency, diversity, length, reward variance.

Claim: RLOO, RAFT and REINFORCE have lower perplexity than PPO and Vanilla PG
at about equal diversity; at equal k RLOO has less reward variance than RAFT,
and REINFORCE 27 % less than Vanilla PG.

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_table2 \
            --config=experiments/ahmadian2024_back_to_basics/table2_alignment_tax.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
          :laptop,seeds=10 has ten other seeds, 101 to 110
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. Batch size,
          learning rate, number of steps and the KL coefficient (.1) are ours,
          for the text has none. Scores are standardised, not logits.
          Perplexity is of held-out demonstrations. The policies are those of
          fig2_methods.py (--reuse). DPO, which is offline, is not trained
          here.
"""

from experiments import ahmadian2024
from experiments import replication
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size and number of seeds: 'laptop,seeds=10'."""
  size, seeds = base.options(size, seeds=replication.NUMBERS)
  config = ahmadian2024.online(
      size, 'table 2: perplexity of held-out completions', seeds)
  ahmadian2024.add_all(config)
  config.figure = dict(kind='table', columns=(
      'perplexity', 'diversity_1', 'diversity_2', 'length',
      'reward_variance', 'proxy'))
  return base.finish(config, smoke=('vanilla_pg', 'reinforce'))
