r"""Ahmadian et al. 2024, figure 3: RLOO and RAFT by rollout.

Claim: RLOO is above RAFT of the same k throughout, and RLOO with k = 2 matches
or beats RAFT with k = 4.

Run:      python -m rlhf_jax.main --workdir=runs/ahmadian_fig3 \
            --config=experiments/ahmadian2024_back_to_basics/fig3_rloo_raft.py:laptop
Sizes:    :smoke (CI, seconds)  :laptop (2 cores, minutes)  :full
Hardware: laptop: 2 CPU cores. full: eight; see experiments/launch; not yet run.
Measured: README.md beside this file (laptop).
Differs:  the world and the models: reviews from a grammar, models of 1 to 2
          layers from scratch, one reward model on clean pairs. Batch size,
          learning rate, number of steps and the KL coefficient (.1) are ours,
          for the text has none. Scores are standardised, not logits. All have
          32 prompts in a rollout, so that k = 4 draws 128 responses and k = 2
          draws 64; by responses, the same runs are fig4_samples.py.
"""

from experiments import ahmadian2024
from rlhf_jax.configs import base


def get_config(size: str = 'laptop'):
  """The config of one size."""
  config = ahmadian2024.online(size, 'figure 3: RLOO and RAFT by rollout')
  ahmadian2024.add_k_sweep(config)
  config.figure = dict(kind='curves', x='step', y=('proxy',),
                       line=('method',), columns=ahmadian2024.COLUMNS)
  return base.finish(config, smoke=('rloo_2', 'raft_2'))
