r"""Ahmadian et al. 2024, figure 4: RLOO and RAFT by responses drawn.

Claim: at the same number of responses RLOO is above RAFT, whatever k.

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_fig4 \
            --config=experiments/ahmadian2024_back_to_basics/fig4_samples.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. Batch size,
          learning rate, number of steps and the KL coefficient (.1) are ours,
          for the text has none. Scores are standardised, not logits. All have
          32 prompts in a rollout, so that k = 4 draws 128 responses and k = 2
          draws 64; the runs are those of fig3_rloo_raft.py (--reuse).
"""

from experiments import ahmadian2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = ahmadian2024.online(size, 'figure 4: RLOO and RAFT by response')
  ahmadian2024.add_k_sweep(config)
  config.figure = dict(kind='curves', x='samples', y=('proxy',),
                       line=('method',), columns=ahmadian2024.COLUMNS)
  return base.finish(config, smoke=('rloo_2', 'raft_2'))
